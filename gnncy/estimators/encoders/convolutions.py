"""Graph convolutions as an encoder needs them: over sampled neighbourhoods, and over all nodes out of core."""
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from gnncy import nn
from gnncy._linalg import matmul
from gnncy.graph import Block, normalize, spmm
from gnncy.storage.passes import TILE, ColumnTiles

HEADS = 4  # of attention, where they divide the layer's width


class Convolution:
    """One kind of layer, over one graph. A subclass gives the layer, what it hears, and its pass over all nodes.

    Attributes
    ----------
    graph : csr_array
        What neighbours are drawn from.
    weighted : bool
        Whether a sampled block needs the arcs' weights.
    """

    weighted = False
    terms = 1  # matrices of a layer
    arc_bytes = 40  # of a sampled arc, at most: the block that is heard, its transpose
    multiplies_sources = False  # whether a layer holds products of all its sources

    def __init__(self, adjacency: csr_array):
        self.graph = adjacency

    @staticmethod
    def layer(inputs: int, outputs: int, rng) -> nn.Module:
        """The layer before training."""
        raise NotImplementedError

    @classmethod
    def parameters(cls, inputs: int, outputs: int) -> int:
        """Numbers that a layer learns."""
        return (cls.terms * inputs + 1) * outputs

    @staticmethod
    def plan(n: int, nnz: int) -> dict[str, int]:
        """Bytes that it holds beside the graph, while training and while embedding."""
        return {}

    def hear(self, block: Block, nodes: np.ndarray) -> Block:
        """A sampled block as the layer takes it; ``nodes`` are the ids of its sources."""
        return block

    def over_all(self, layer, hidden: Iterable, folder: Path, *, activate: bool) -> ColumnTiles:
        """The layer's output for all nodes over all their neighbours, from ``(start, rows)`` of its input."""
        raise NotImplementedError


class Sage(Convolution):
    """A node's own row through one matrix, the mean of the neighbours' through another."""

    terms = 2

    @staticmethod
    def layer(inputs, outputs, rng):
        return nn.SAGEConv(inputs, outputs, rng=rng)

    @staticmethod
    def plan(n, nnz):
        return {"propagation matrix": 8 * nnz + 8 * n}

    def over_all(self, layer, hidden, folder, *, activate):
        mean = normalize(self.graph, "row", self_loops=0.0)
        n, d = mean.shape[0], layer.out_features
        own, message = ColumnTiles(folder, n, d), ColumnTiles(folder, n, d)
        for start, rows in hidden:
            own.write_rows(start, matmul(rows, layer.weight_self.data) + layer.bias.data)
            message.write_rows(start, matmul(rows, layer.weight_neigh.data))
        x, out = np.empty((n, TILE), np.float32), np.empty((n, TILE), np.float32)
        for tile in range(own.n_tiles):
            spmm(mean, message.read_tile(tile, x), out=out)
            out += own.read_tile(tile, x)
            own.write_tile(tile, np.maximum(out, 0, out=out) if activate else out)
        message.close()
        return own


class GCN(Convolution):
    r"""Neighbours weighted by both degrees, :math:`D^{-1/2} (A + I) D^{-1/2}` of the whole graph.

    A node always hears itself. The weights of its sampled neighbours are multiplied by (neighbours / neighbours
    drawn), so that what it hears is on average what it would hear from all.
    """

    weighted = True

    def __init__(self, adjacency):
        whole = normalize(adjacency.astype(np.float32), "sym", self_loops=1.0)
        self.own = whole.diagonal()
        others = np.repeat(np.arange(whole.shape[0]), np.diff(whole.indptr)) != whole.indices
        count = np.zeros(len(others) + 1, whole.indptr.dtype)
        np.cumsum(others, out=count[1:])
        self.graph = csr_array((whole.data[others], whole.indices[others], count[whole.indptr]), shape=whole.shape)

    @staticmethod
    def layer(inputs, outputs, rng):
        return nn.GCNConv(inputs, outputs, normalize=False, rng=rng)

    @staticmethod
    def plan(n, nnz):
        return {"propagation matrix": 30 * (nnz + n)}

    def hear(self, block, nodes):
        targets = nodes[:block.n_dst]
        count = np.diff(block.indptr)
        all_of_them = self.graph.indptr[targets + 1] - self.graph.indptr[targets]
        factor = (all_of_them / np.maximum(count, 1)).astype(np.float32)
        weights = block.weights * np.repeat(factor, count)
        looped = nn.add_self_loops(Block(block.indptr, block.indices, block.n_src, block.n_dst, weights=weights))
        assert looped.weights is not None
        looped.weights[looped.indptr[:-1]] = self.own[targets]
        return looped

    def over_all(self, layer, hidden, folder, *, activate):
        n = self.graph.shape[0]
        message = ColumnTiles(folder, n, layer.out_features)
        for start, rows in hidden:
            message.write_rows(start, matmul(rows, layer.weight.data))
        x, out = np.empty((n, TILE), np.float32), np.empty((n, TILE), np.float32)
        bias = np.zeros(message.n_tiles * TILE, np.float32)
        bias[:layer.out_features] = layer.bias.data
        own = self.own[:, None]
        for tile in range(message.n_tiles):
            spmm(self.graph, message.read_tile(tile, x), out=out)
            x *= own
            out += x
            out += bias[tile * TILE:(tile + 1) * TILE]
            message.write_tile(tile, np.maximum(out, 0, out=out) if activate else out)
        return message


class GAT(Convolution):
    """Attention over the neighbours and the node itself, in four heads where they divide the layer's width."""

    arc_bytes = 40 + 32 * HEADS
    multiplies_sources = True

    @staticmethod
    def layer(inputs, outputs, rng):
        heads = HEADS if outputs % HEADS == 0 else 1
        return nn.GATConv(inputs, outputs // heads, heads, rng=rng)

    @classmethod
    def parameters(cls, inputs, outputs):
        return (inputs + 3) * outputs

    @staticmethod
    def plan(n, nnz):
        return {"graph with loops": 8 * (nnz + n), "attention": 16 * (nnz + n) + 8 * HEADS * n}

    def over_all(self, layer, hidden, folder, *, activate):
        n, heads, width = self.graph.shape[0], layer.heads, layer.out_features
        values, result = ColumnTiles(folder, n, heads * width), ColumnTiles(folder, n, heads * width)
        by_target, by_source = np.empty((n, heads), np.float32), np.empty((n, heads), np.float32)
        for start, rows in hidden:
            value = matmul(rows, layer.linear.weight.data)
            values.write_rows(start, value)
            value = value.reshape(-1, heads, width)
            for score, vector in ((by_target, layer.vector_target), (by_source, layer.vector_source)):
                score[start:start + len(value)] = (value * vector.data).sum(axis=-1)
        looped = nn.add_self_loops(Block(self.graph.indptr, self.graph.indices, n, n))
        x, out = np.empty((n, TILE), np.float32), np.empty((n, TILE), np.float32)
        for head in range(heads):
            with nn.no_grad():
                scores = nn.arc_add(looped, by_target[:, head:head + 1], by_source[:, head:head + 1])
                attention = nn.segment_softmax(nn.leaky_relu(scores, layer.slope), looped.indptr).data.reshape(-1)
            weighted = csr_array((attention, looped.indices, looped.indptr), shape=(n, n))
            first, last = head * width, (head + 1) * width
            for tile in range(first // TILE, -(-last // TILE)):
                spmm(weighted, values.read_tile(tile, x), out=out)
                left, right = max(first, tile * TILE), min(last, (tile + 1) * TILE)
                here = slice(left - tile * TILE, right - tile * TILE)
                columns = out[:, here] + layer.bias.data[left:right]
                result.read_tile(tile, x)
                x[:, here] = np.maximum(columns, 0) if activate else columns
                result.write_tile(tile, x)
        values.close()
        return result


CONVOLUTIONS: dict[str, type[Convolution]] = {"sage": Sage, "gcn": GCN, "gat": GAT}
