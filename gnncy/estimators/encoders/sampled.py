"""Encoders over sampled neighbourhoods, features gathered from the cold tier: GraphSAGE, GCN, attention."""
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from gnncy import _memory, nn
from gnncy._random import derive, stream
from gnncy.estimators.encoders.convolutions import CONVOLUTIONS, Convolution
from gnncy.estimators.encoders.rows import joint_plan
from gnncy.graph import NeighborSampler, SampledBatch
from gnncy.losses import drop_edges, mask_features
from gnncy.losses.joint_embedding.objective import JointEmbedding, Size
from gnncy.nn import Tensor
from gnncy.storage import AdaptiveHotset, FeatureStorage, HyperbatchIterator, as_storage
from gnncy.storage.passes import CHUNK, TILE, ColumnTiles, FeatureReducer, chunk_rows, is_sparse, iter_nodes

log = logging.getLogger("gnncy")


HOTSET_OVERHEAD = 112  # bytes that the hot set keeps for each row beside it
PLAN_SAMPLES = 4  # minibatches whose size the plan looks at


class ConvolutionStack(nn.Module):
    """Graph layers, one for each block of a sampled neighbourhood, with ReLU between them."""

    def __init__(self, layers: list[nn.Module]):
        self.layers = layers

    def forward(self, blocks, x) -> Tensor:
        for i, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            x = layer(block, x if i == 0 else nn.relu(x))
        return x


@dataclass
class Neighbourhoods:
    """Sampled neighbourhoods of anchors and of their positives, which may be the same nodes, and who hears them."""

    sample: SampledBatch
    anchors: np.ndarray
    positives: np.ndarray
    convolution: Convolution

    @property
    def nodes(self) -> np.ndarray:
        """Ids of the nodes whose features are needed."""
        return self.sample.nodes


class SampledEncoder:
    """Graph convolutions on sampled neighbourhoods, trained for one or several objectives.

    A pair is a node and a random neighbour of it, embedded in one pass, as in unsupervised GraphSAGE (Hamilton et al.
    2017); or, with ``positives="views"``, the node twice, with other columns masked and other edges dropped. Sparse
    features are first reduced to ``width`` dense columns in a store.
    """

    auto_steps, auto_rate = 150, 3e-4  # of training by default
    io_threads: int | None = None  # requests that reads of the store have in flight

    def __init__(self, *, conv: str, objectives: dict[str, float], n_components: int, width: int, hidden: int,
                 n_neighbors: tuple[int, ...], temperature: float, dropout: float, batch_size: int, seed: int,
                 positives: str) -> None:
        self.conv, self.objectives = conv, objectives
        self.views = 2 if positives == "views" else 1
        self.n_components, self.width, self.hidden = n_components, width, hidden
        self.n_neighbors, self.temperature = tuple(n_neighbors), temperature
        self.dropout, self.batch_size, self.seed = dropout, batch_size, seed
        self._sizes: tuple[list[int], int] | None = None

    def plan(self, adjacency: csr_array, features, buffer: int) -> dict[str, dict[str, int]]:
        """What each stage holds for a graph and features.

        The size of a minibatch is that of the largest of a few sampled ones, and a quarter: seeds are uniformly
        random, so sizes differ by a few per cent.
        """
        (n, d), nnz, sparse = features.shape, adjacency.nnz, is_sparse(features)
        width, itemsize = self.store_columns(n, d, sparse), 4 if sparse else features.dtype.itemsize
        graph = {"graph": 12 * nnz + 16 * n}
        kind, dims = CONVOLUTIONS[self.conv], self._dims(width)
        weights = sum(kind.parameters(a, b) for a, b in pairwise(dims))
        sizes, arcs = self._batch_sizes(adjacency)
        layers = list(zip(sizes[1:], dims[:-1], dims[1:], strict=True))
        kept = sizes[0] * width + sum(size * (a + 2 * b) for size, a, b in layers)  # of a pass on the tape
        passing = max(2 * size * a + source * b for source, (size, a, b) in zip(sizes, layers, strict=False))
        if kind.multiplies_sources:
            kept += sum(source * b for source, (_, _, b) in zip(sizes, layers, strict=False))
        passes = self.views + ("ggd" in self.objectives)
        activations = 4 * (sizes[0] * width + passes * kept + passing) + passes * kind.arc_bytes * arcs
        if "bgrl" in self.objectives:
            activations += 4 * kept
        activations += activations // 4  # what the allocator loses between arrays of so many sizes
        stages = {}
        if sparse:
            stages["reduce"] = graph | {"chunk of rows": 16 * CHUNK,
                                        "basis": FeatureReducer(width).memory_needed(n, d) + 4 * d * width}
        stages["train"] = graph | kind.plan(n, nnz) | {
            "sampler": 8 * n + 64 * sizes[0], "activations": itemsize * sizes[0] * width + activations,
            "order of nodes": 16 * n, "read buffers": max(buffer, self.least_buffer(adjacency, width, itemsize))
        } | joint_plan(self.objectives, Size(self.n_components, width), weights, self.batch_size)
        stages["embed"] = graph | kind.plan(n, nnz) | {
            "column tiles": 12 * n * TILE, "weights": 4 * weights,
            "chunk of rows": 16 * CHUNK * max(1, max(dims) // width)}
        return stages

    def _dims(self, width: int) -> list[int]:
        return [width, *[self.hidden] * (len(self.n_neighbors) - 1), self.n_components]

    def _batch_sizes(self, adjacency: csr_array) -> tuple[list[int], int]:
        """Nodes of a minibatch at each layer, outermost first, and its arcs; a safe estimate from a few samples."""
        if self._sizes is None:
            n = adjacency.shape[0]
            sampler = NeighborSampler(adjacency, self.n_neighbors, seed=derive(self.seed, "plan"))
            found = []
            for i in range(PLAN_SAMPLES):
                seeds = stream(self.seed, "plan", i).permutation(n)[:self.batch_size * (3 - self.views)]
                blocks = sampler.sample(seeds, epoch=0, batch=i).blocks
                found.append([block.n_src for block in blocks] + [len(seeds), sum(block.n_arcs for block in blocks)])
            most = np.max(found, axis=0)
            self._sizes = [min(n, int(1.25 * size) + 64) for size in most[:-1]], int(1.25 * most[-1]) + 64
        return self._sizes

    def least_buffer(self, adjacency: csr_array, width: int, itemsize: int) -> int:
        """Bytes of the smallest read buffers: the neighbourhoods of two minibatches."""
        return HyperbatchIterator.buffer_bytes_for(self._batch_sizes(adjacency)[0][0], width, np.dtype(f"f{itemsize}"))

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
        return FeatureStorage.open(path, io_threads=self.io_threads)

    def _fit_reducer(self, features, work: Path) -> FeatureReducer:
        n, d = features.shape
        reducer = FeatureReducer(self.store_columns(n, d, sparse=True), seed=derive(self.seed, "reduce"))
        if not reducer.load(work.parent, d):
            log.info("reducing %d feature columns to %d", d, reducer.width)
            reducer.fit(features)
            reducer.save(work.parent)
        return reducer

    def build(self, store) -> None:
        """The untrained encoder for a store of features, under the heads of its objectives."""
        kind, columns = CONVOLUTIONS[self.conv], store.shape[1]
        layers = [kind.layer(a, b, stream(self.seed, "weights", i)) for i, (a, b) in
                  enumerate(pairwise(self._dims(columns)))]
        self.scale_ = _scale(store)
        self.model_ = JointEmbedding(ConvolutionStack(layers), self.objectives, width=self.n_components,
                                     columns=columns, temperature=self.temperature, rng=stream(self.seed, "heads"))

    def store_columns(self, n: int, d: int, sparse: bool) -> int:
        """Columns of the store that training reads."""
        return min(self.width, n, d) if sparse else d

    def epochs(self, adjacency: csr_array, store, *, buffer: int, prefetch: bool):
        """A function ``(epoch, first)`` that gives an epoch's sampled minibatches from ``first`` on."""
        n = adjacency.shape[0]
        convolution = CONVOLUTIONS[self.conv](adjacency)
        sampler = NeighborSampler(convolution.graph, self.n_neighbors, seed=derive(self.seed, "sample"),
                                  weighted=convolution.weighted)
        partner = NeighborSampler(adjacency, (1,), seed=derive(self.seed, "positive"))
        width, itemsize = store.shape[1], store.dtype.itemsize
        reads = max(self.least_buffer(adjacency, width, itemsize), buffer // 2)
        capacity = min(max(buffer - reads, 0) // (width * itemsize + HOTSET_OVERHEAD), n)
        hotset = AdaptiveHotset(capacity, width, dtype=store.dtype) if capacity > 0 else None

        def neighbourhoods(epoch: int, first: int):
            order = stream(self.seed, "order", epoch).permutation(n)
            for i in range(first, self.steps_per_epoch(n)):
                anchors = order[i * self.batch_size:(i + 1) * self.batch_size]
                positives = anchors
                if self.views == 1:
                    positives = _one_neighbour(partner.sample(anchors, epoch=epoch, batch=i), anchors)
                seeds, place = np.unique(np.concatenate([anchors, positives]), return_inverse=True)
                yield Neighbourhoods(sampler.sample(seeds, epoch=epoch, batch=i), place[:len(anchors)],
                                     place[len(anchors):], convolution)

        def batches(epoch: int, first: int):
            if hotset is not None:
                hotset.decay_counts()
            return HyperbatchIterator(store, neighbourhoods(epoch, first), buffer_bytes=reads, prefetch=prefetch,
                                      hotset=hotset)

        return batches

    def steps_per_epoch(self, n: int) -> int:
        """Full minibatches of an epoch; the nodes left over come at another place in the next epoch's order."""
        return max(1, n // self.batch_size)

    def step(self, batch, key: int) -> tuple[float, int, dict[str, float]]:
        """Loss and gradients of one minibatch, and each objective's loss."""
        x = np.asarray(batch.features, np.float32) * self.scale_
        views = SampledViews(batch.batch, x, self.views, rate=self.dropout, key=key)
        total, parts = self.model_(views)
        total.backward()
        return total.item(), len(batch.batch.anchors), parts

    def embed_batch(self, batch) -> tuple[np.ndarray, Tensor]:
        """Ids and embeddings of the nodes of one minibatch, by the neighbours sampled, nothing dropped."""
        sample, convolution = batch.batch.sample, batch.batch.convolution
        blocks = [convolution.hear(block, sample.nodes) for block in sample.blocks]
        x = Tensor(np.asarray(batch.features, np.float32) * self.scale_)
        return sample.seeds, self.model_.encoder(blocks, x)

    def embed(self, adjacency: csr_array, store, path: Path, folder: Path) -> None:
        """Write the embedding of every node, layer by layer over all neighbours (no sampling)."""
        convolution = CONVOLUTIONS[self.conv](adjacency)
        layers = self.model_.encoder.layers  # type: ignore[attr-defined]
        hidden: Iterator[tuple[int, np.ndarray]] = (
            (start, np.asarray(rows, np.float32) * self.scale_) for start, rows in iter_nodes(store))
        tiles: ColumnTiles | None = None
        for layer in layers:
            following = convolution.over_all(layer, hidden, folder, activate=layer is not layers[-1])
            if tiles is not None:
                tiles.close()
            tiles = following
            hidden = tiles.iter_rows(chunk_rows(tiles.shape[1]))
        rows = (part.copy() for _, part in hidden)
        FeatureStorage.from_blocks(path, (adjacency.shape[0], self.n_components), rows, dtype=np.float32,
                                   overwrite=True).close()
        if tiles is not None:
            tiles.close()


class SampledViews:
    """Random views of sampled neighbourhoods, ``count`` of them, with columns masked and edges dropped."""

    def __init__(self, batch: Neighbourhoods, x: np.ndarray, count: int, *, rate: float, key: int) -> None:
        self._batch, self._x, self._rate, self._key = batch, x, rate, key
        self._blocks = [self._some_edges(i) for i in range(count)]

    def _some_edges(self, number: int) -> list:
        nodes, key = self._batch.nodes, derive(self._key, "edges", number)
        return [self._batch.convolution.hear(drop_edges(block, self._rate, key, nodes=nodes[:block.n_src]), nodes)
                for block in self._batch.sample.blocks]

    def _some_columns(self, x: np.ndarray, number: int) -> Tensor:
        return Tensor(mask_features(x, self._rate, derive(self._key, "columns", number)))

    @property
    def targets(self) -> np.ndarray:
        return self._x[np.concatenate([self._batch.anchors, self._batch.positives])]

    def pair(self, encoder: nn.Module) -> Tensor:
        z = [encoder(blocks, self._some_columns(self._x, i)) for i, blocks in enumerate(self._blocks)]
        return nn.concatenate([z[0][self._batch.anchors], z[-1][self._batch.positives]])

    def corrupted(self, encoder: nn.Module) -> Tensor:
        order = stream(self._key, "corrupted").permutation(len(self._x))
        return encoder(self._blocks[0], self._some_columns(self._x[order], 0))[self._batch.anchors]


def _scale(store) -> np.float32:
    """What makes the mean square of (a sample of) the features 1: layers begin with weights for such rows."""
    n, d = store.shape
    ids = np.unique(np.linspace(0, n - 1, min(n, max(1, CHUNK // d))).astype(np.int64))
    mean = float(np.square(store.read_batch(ids), dtype=np.float64).mean())
    return np.float32(1 / np.sqrt(mean) if mean > 0 else 1)


def _one_neighbour(sample, anchors: np.ndarray) -> np.ndarray:
    """The sampled neighbour of each anchor; the anchor itself where it has none."""
    block = sample.blocks[0]
    chosen = anchors.copy()
    has = np.diff(block.indptr) > 0
    chosen[has] = sample.nodes[block.indices[block.indptr[:-1][has]]]
    return chosen
