"""The ``sage`` encoder: GraphSAGE on sampled neighbourhoods, features gathered from the cold tier."""
import logging
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from gnncy import _memory, nn
from gnncy._linalg import matmul
from gnncy._random import derive, stream
from gnncy.graph import NeighborSampler, SampledBatch, normalize, spmm
from gnncy.losses import info_nce
from gnncy.nn import Tensor
from gnncy.storage import AdaptiveHotset, FeatureStorage, HyperbatchIterator, as_storage
from gnncy.storage.passes import CHUNK, TILE, ColumnTiles, FeatureReducer, chunk_rows, is_sparse, iter_nodes

log = logging.getLogger("gnncy")


HOTSET_OVERHEAD = 112  # bytes that the hot set keeps for each row beside it
PLAN_SAMPLES = 4  # minibatches whose size the plan looks at


@dataclass
class PairBatch:
    """Sampled neighbourhoods of anchors and of their positives."""

    sample: SampledBatch
    anchors: np.ndarray
    positives: np.ndarray

    @property
    def nodes(self) -> np.ndarray:
        """Ids of the nodes whose features are needed."""
        return self.sample.nodes


class SageEncoder:
    """Unsupervised GraphSAGE (Hamilton et al. 2017): a node and a random neighbour of it are a positive pair.

    Sparse features are first reduced to ``width`` dense columns in a store.
    """

    def __init__(self, *, n_components: int, width: int, hidden: int, n_neighbors: tuple[int, ...], temperature: float,
                 dropout: float, batch_size: int, seed: int) -> None:
        self.n_components, self.width, self.hidden = n_components, width, hidden
        self.n_neighbors, self.temperature = tuple(n_neighbors), temperature
        self.dropout, self.batch_size, self.seed = dropout, batch_size, seed
        self._sizes: list[int] | None = None

    def plan(self, adjacency: csr_array, features, buffer: int) -> dict[str, dict[str, int]]:
        """What each stage holds for a graph and features.

        The size of a minibatch is that of the largest of a few sampled ones, and a quarter: seeds are uniformly
        random, so sizes differ by a few per cent.
        """
        (n, d), nnz, sparse = features.shape, adjacency.nnz, is_sparse(features)
        width, itemsize = self.store_columns(n, d, sparse), 4 if sparse else features.dtype.itemsize
        graph = {"graph": 12 * nnz + 16 * n}
        dims = self._dims(width)
        weights = sum(2 * a * b + b for a, b in pairwise(dims))
        sizes = self._batch_sizes(adjacency)
        activations = (4 + itemsize) * sizes[0] * width
        activations += 4 * sum(6 * size * b for size, b in zip(sizes[1:], dims[1:], strict=True))
        activations += 4 * sum(4 * size * a for size, a in zip(sizes[1:-1], dims[1:-1], strict=True))
        stages = {}
        if sparse:
            stages["reduce"] = graph | {"chunk of rows": 16 * CHUNK,
                                        "basis": FeatureReducer(width).memory_needed(n, d) + 4 * d * width}
        stages["train"] = graph | {"weights, gradients, Adam": 16 * weights, "sampler": 8 * n + 64 * sizes[0],
                                   "activations": activations, "order of nodes": 16 * n,
                                   "read buffers": max(buffer, self.least_buffer(adjacency, width, itemsize))}
        stages["embed"] = graph | {"propagation matrix": 8 * nnz + 8 * n, "column tiles": 12 * n * TILE,
                                   "weights": 4 * weights, "chunk of rows": 16 * CHUNK * max(1, max(dims) // width)}
        return stages

    def _dims(self, width: int) -> list[int]:
        return [width, *[self.hidden] * (len(self.n_neighbors) - 1), self.n_components]

    def _batch_sizes(self, adjacency: csr_array) -> list[int]:
        """Nodes of a minibatch at each layer, outermost first; a safe estimate from a few samples."""
        if self._sizes is None:
            n = adjacency.shape[0]
            sampler = NeighborSampler(adjacency, self.n_neighbors, seed=derive(self.seed, "plan"))
            found = []
            for i in range(PLAN_SAMPLES):
                seeds = stream(self.seed, "plan", i).permutation(n)[:2 * self.batch_size]
                blocks = sampler.sample(seeds, epoch=0, batch=i).blocks
                found.append([block.n_src for block in blocks] + [len(seeds)])
            self._sizes = [min(n, int(1.25 * size) + 64) for size in np.max(found, axis=0)]
        return self._sizes

    def least_buffer(self, adjacency: csr_array, width: int, itemsize: int) -> int:
        """Bytes of the smallest read buffers: the neighbourhoods of two minibatches."""
        return HyperbatchIterator.buffer_bytes_for(self._batch_sizes(adjacency)[0], width, np.dtype(f"f{itemsize}"))

    def prepare(self, adjacency: csr_array, features, work: Path, *, fit: bool):
        """Dense features to gather from: the given ones, or a reduced store in ``work``."""
        n, d = features.shape
        if fit:
            self.n_features_in_ = d
            self.reducer_: FeatureReducer | Any = None
        if not is_sparse(features):
            return as_storage(features)
        path = work / "features.npy"
        if fit:
            self.reducer_ = self._fit_reducer(features, work)
        reducer = self.reducer_
        if not (fit and path.exists()):
            rows = (reducer.transform(part) for _, part in iter_nodes(features))
            FeatureStorage.from_blocks(path, (n, reducer.width), rows, dtype=np.float32, overwrite=True).close()
        if fit:
            reducer.load(work.parent, d)  # mapped anew, so that none of it is in memory
        _memory.trim()
        return FeatureStorage.open(path)

    def _fit_reducer(self, features, work: Path) -> FeatureReducer:
        n, d = features.shape
        reducer = FeatureReducer(self.store_columns(n, d, sparse=True), seed=derive(self.seed, "reduce"))
        if not reducer.load(work.parent, d):
            log.info("reducing %d feature columns to %d", d, reducer.width)
            reducer.fit(features)
            reducer.save(work.parent)
        return reducer

    def build(self, store) -> None:
        """The untrained encoder for a store of features."""
        self.convolutions_ = [nn.SAGEConv(a, b, rng=stream(self.seed, "weights", i))
                              for i, (a, b) in enumerate(pairwise(self._dims(store.shape[1])))]
        self.model_ = nn.Sequential(*self.convolutions_)

    def store_columns(self, n: int, d: int, sparse: bool) -> int:
        """Columns of the store that training reads."""
        return min(self.width, n, d) if sparse else d

    def epochs(self, adjacency: csr_array, store, *, buffer: int, prefetch: bool):
        """A function ``(epoch, first)`` that gives an epoch's sampled minibatches from ``first`` on."""
        n = adjacency.shape[0]
        sampler = NeighborSampler(adjacency, self.n_neighbors, seed=derive(self.seed, "sample"))
        partner = NeighborSampler(adjacency, (1,), seed=derive(self.seed, "positive"))
        width, itemsize = store.shape[1], store.dtype.itemsize
        reads = max(self.least_buffer(adjacency, width, itemsize), buffer // 2)
        capacity = min(max(buffer - reads, 0) // (width * itemsize + HOTSET_OVERHEAD), n)
        hotset = AdaptiveHotset(capacity, width, dtype=store.dtype) if capacity > 0 else None

        def pairs(epoch: int, first: int):
            order = stream(self.seed, "order", epoch).permutation(n)
            for i in range(first, self.steps_per_epoch(n)):
                anchors = order[i * self.batch_size:(i + 1) * self.batch_size]
                positives = _one_neighbour(partner.sample(anchors, epoch=epoch, batch=i), anchors)
                seeds, place = np.unique(np.concatenate([anchors, positives]), return_inverse=True)
                yield PairBatch(sampler.sample(seeds, epoch=epoch, batch=i), place[:len(anchors)], place[len(anchors):])

        def batches(epoch: int, first: int):
            if hotset is not None:
                hotset.decay_counts()
            return HyperbatchIterator(store, pairs(epoch, first), buffer_bytes=reads, prefetch=prefetch, hotset=hotset)

        return batches

    def steps_per_epoch(self, n: int) -> int:
        """Full minibatches of an epoch; the nodes left over come at another place in the next epoch's order."""
        return max(1, n // self.batch_size)

    def step(self, batch, key: int) -> tuple[float, int]:
        """Loss and gradients of one minibatch of pairs."""
        pairs = batch.batch
        x = Tensor(np.asarray(batch.features, np.float32))
        for i, (convolution, block) in enumerate(zip(self.convolutions_, pairs.sample.blocks, strict=True)):
            x = nn.dropout(x, self.dropout, key=derive(key, "dropout", i))
            x = convolution(block, x)
            if i < len(self.convolutions_) - 1:
                x = nn.relu(x)
        loss = info_nce(x[pairs.anchors], x[pairs.positives], temperature=self.temperature, symmetric=True)
        loss.backward()
        return float(loss.data), len(pairs.anchors)

    def embed(self, adjacency: csr_array, store, path: Path, folder: Path) -> None:
        """Write the embedding of every node, layer by layer over all neighbours (no sampling)."""
        mean = normalize(adjacency, "row", self_loops=0.0)
        hidden = iter_nodes(store)
        n = adjacency.shape[0]
        tiles: ColumnTiles | None = None
        for i, convolution in enumerate(self.convolutions_):
            following = _layer(mean, hidden, n, convolution, folder, activate=i < len(self.convolutions_) - 1)
            if tiles is not None:
                tiles.close()
            tiles = following
            hidden = tiles.iter_rows(chunk_rows(tiles.shape[1]))
        rows = (part.copy() for _, part in hidden)
        FeatureStorage.from_blocks(path, (n, self.n_components), rows, dtype=np.float32, overwrite=True).close()
        if tiles is not None:
            tiles.close()


def _one_neighbour(sample, anchors: np.ndarray) -> np.ndarray:
    """The sampled neighbour of each anchor; the anchor itself where it has none."""
    block = sample.blocks[0]
    chosen = anchors.copy()
    has = np.diff(block.indptr) > 0
    chosen[has] = sample.nodes[block.indices[block.indptr[:-1][has]]]
    return chosen


def _layer(mean: csr_array, hidden, n: int, convolution, folder: Path, *, activate: bool) -> ColumnTiles:
    """One SAGE layer over all nodes: own rows times one matrix, plus the neighbours' mean of the other product."""
    weight_self, weight_neigh = convolution.weight_self.data, convolution.weight_neigh.data
    d = weight_self.shape[1]
    own, message = ColumnTiles(folder, n, d), ColumnTiles(folder, n, d)
    for start, rows in hidden:
        rows = np.ascontiguousarray(rows, np.float32)
        own.write_rows(start, matmul(rows, weight_self) + convolution.bias.data)
        message.write_rows(start, matmul(rows, weight_neigh))
    x, out = np.empty((n, TILE), np.float32), np.empty((n, TILE), np.float32)
    for tile in range(own.n_tiles):
        spmm(mean, message.read_tile(tile, x), out=out)
        out += own.read_tile(tile, x)
        if activate:
            np.maximum(out, 0, out=out)
        own.write_tile(tile, out)
    message.close()
    return own
