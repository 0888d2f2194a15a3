"""The ``propagate`` encoder: features smoothed over the graph once, out of core, then an encoder of single rows."""
import logging
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, diags_array

from gnncy import _memory, nn
from gnncy._files import replacing
from gnncy._linalg import matmul
from gnncy._random import derive, stream
from gnncy.graph import as_csr, degrees, normalize, spmm
from gnncy.losses import drop_blocks, info_nce
from gnncy.nn import Tensor
from gnncy.storage import FeatureStorage, HyperbatchIterator
from gnncy.storage.passes import (
    CHUNK,
    TILE,
    Diffusion,
    FeatureReducer,
    chunk_rows,
    diffuse_tiles,
    fixed_signs,
    is_sparse,
    iter_nodes,
    reduced_tiles,
    unit_rows,
)

log = logging.getLogger("gnncy")

BASIS_DIFFUSION = Diffusion("appnp", 8, alpha=0.15)
BLOCKS = ((Diffusion("appnp", 16, alpha=0.05), 1.0), (Diffusion("appnp", 8, alpha=0.15), 0.7),
          (Diffusion("power", 1), 0.5), (Diffusion("power", 0), 0.5))
"""Smoothings that stand side by side in a row, widest first, and the length of each in the row."""
PROPAGATIONS = {"even": (0.5, 1.0), "hubs": (-0.25, 0.0)}
"""Exponent b of a neighbour's degree, and weight of the self loop: ``even`` is close to GCN's symmetric
normalisation; ``hubs`` lets well connected neighbours count more, as the general terms of a taxonomy should."""
CHOICE_SAMPLE = 2000  # nodes from which the propagation is chosen
SAMPLE = 65_536  # rows from which the principal directions are computed


class SmoothedEncoder:
    """Smooths features over the graph, then trains a residual MLP under a projection head on single rows.

    The weights of the linear path start at the principal directions of the smoothed rows, so that training
    starts from what a careful user would compute without it.
    """

    blocks: tuple[tuple[Diffusion, float], ...] = BLOCKS
    model_: Any
    basis_diffusion: Diffusion | None = BASIS_DIFFUSION

    def __init__(self, *, n_components: int, width: int, hidden: int, temperature: float, dropout: float,
                 batch_size: int, seed: int) -> None:
        self.n_components, self.width, self.hidden = n_components, width, hidden
        self.temperature, self.dropout, self.batch_size, self.seed = temperature, dropout, batch_size, seed

    def plan(self, adjacency: csr_array, features, buffer: int) -> dict[str, dict[str, int]]:
        """What each stage holds for a graph and features."""
        (n, d), nnz, sparse = features.shape, adjacency.nnz, is_sparse(features)
        width = self._reduced_width(n, d, sparse)
        columns = self.store_columns(n, d, sparse)
        graph = {"graph": 12 * nnz + 16 * n, "propagation matrix": 8 * nnz + 8 * n}
        chunk = {"chunk of rows": 4 * 4 * CHUNK}
        k = self.n_components
        weights = columns * (k + self.hidden) + self.hidden * (k + 1) + 4 * k * k + 3 * k
        rows, views = self.batch_size, 2 * self.batch_size
        activations = 4 * ((rows + views) * columns + 1024 * rows
                           + max(views * columns, views * (3 * self.hidden + 12 * k)))
        stages = {}
        if self._reduces(d, sparse):
            stages["reduce"] = graph | chunk | {"basis": FeatureReducer(width).memory_needed(n, d)}
        stages["smooth"] = graph | chunk | {"column tiles": 4 * 4 * n * TILE, "basis": 4 * d * width}
        stages["directions"] = {"graph": 12 * nnz + 8 * n, "second moments": 5 * 8 * columns**2,
                                "chunk of rows": 2 * 4 * CHUNK}
        stages["train"] = {"graph": 12 * nnz + 8 * n, "weights, gradients, Adam": 4 * 4 * weights,
                           "activations": activations,
                           "order of rows": 16 * n, "read buffers": max(buffer, self.least_buffer(columns))}
        stages["embed"] = {"graph": 12 * nnz + 8 * n, "weights": 4 * weights,
                           "chunk of rows": 4 * chunk_rows(columns) * (2 * columns + 4 * self.hidden + 4 * k)}
        return stages

    def least_buffer(self, columns: int) -> int:
        """Bytes of the smallest read buffers: two minibatches."""
        return HyperbatchIterator.buffer_bytes_for(self.batch_size, columns)

    def store_columns(self, n: int, d: int, sparse: bool) -> int:
        """Columns of the store that training reads."""
        return len(self.blocks) * self._reduced_width(n, d, sparse)

    def _reduces(self, d: int, sparse: bool) -> bool:
        return sparse or d > self.width

    def _reduced_width(self, n: int, d: int, sparse: bool) -> int:
        return min(self.width, n, d) if self._reduces(d, sparse) else d

    def prepare(self, adjacency: csr_array, features, work: Path, *, fit: bool) -> FeatureStorage:
        """The store of smoothed rows, ``n x (4 width)``, kept in ``work``; resumes where a stage is whole.

        What later graphs need as well lies beside ``work``: the basis, the centre, the choice of propagation.
        """
        path, state = work / "smoothed.npy", work.parent / "smoothing.npz"
        if not fit:
            self._smooth(adjacency, features, work, path, fit=False)
            return FeatureStorage.open(path)
        self._fit_reducer(adjacency, features, work)
        if path.exists() and state.exists():
            with np.load(state, allow_pickle=False) as there:
                self.centre_, self.propagation_ = there["centre"], str(there["propagation"])
        else:
            self._smooth(adjacency, features, work, path, fit=True)
            with replacing(state) as temporary, open(temporary, "wb") as f:
                np.savez(f, centre=self.centre_, propagation=np.array(self.propagation_))
        if self.reducer_ is not None:
            self.reducer_.load(work.parent, features.shape[1])  # mapped anew, so that none of it is in memory
        _memory.trim()
        return FeatureStorage.open(path)

    def _fit_reducer(self, adjacency, features, work: Path) -> None:
        n, d = features.shape
        sparse = is_sparse(features)
        self.n_features_in_ = d
        self.reducer_ = None
        if not self._reduces(d, sparse):
            return
        self.reducer_ = FeatureReducer(self._reduced_width(n, d, sparse), seed=derive(self.seed, "reduce"))
        if not self.reducer_.load(work.parent, d):
            log.info("reducing %d feature columns to %d", d, self.reducer_.width)
            self.reducer_.fit(features, normalize(adjacency, "sym", self_loops=1.0), self.basis_diffusion, work)
            self.reducer_.save(work.parent)
            _memory.trim()

    def _smooth(self, adjacency, features, folder: Path, path: Path, *, fit: bool) -> None:
        """Write the store: blocks side by side, each centred and of its own length in every row."""
        with reduced_tiles(features, self.reducer_, folder) as source:
            if fit:
                self.propagation_ = _choose_propagation(adjacency, source, self.seed)
            log.info("smoothing over the graph (%s): %d blocks of %d columns", self.propagation_, len(self.blocks),
                     source.shape[1])
            matrix = propagation_matrix(adjacency, self.propagation_)
            blocks = diffuse_tiles(matrix, source, [diffusion for diffusion, _ in self.blocks], folder)
        if fit:
            self.centre_ = np.stack([_column_means(block) for block in blocks])
        n, width = blocks[0].shape
        lengths = np.array([length for _, length in self.blocks])
        lengths *= np.sqrt(len(self.blocks) * width / (lengths**2).sum())  # entries of a row have mean square 1

        def rows():
            size = chunk_rows(len(self.blocks) * width)
            for start in range(0, n, size):
                stop = min(start + size, n)
                chunk = np.empty((stop - start, len(self.blocks), width), np.float32)
                for b, block in enumerate(blocks):
                    part = block.read_rows(start, stop) - self.centre_[b]
                    chunk[:, b] = unit_rows(part) * np.float32(lengths[b])
                yield chunk.reshape(stop - start, -1)

        shape = (n, len(self.blocks) * width)
        FeatureStorage.from_blocks(path, shape, rows(), dtype=np.float32, overwrite=True).close()
        for block in blocks:
            block.close()
        _memory.trim()

    def build(self, store: FeatureStorage) -> None:
        """The untrained encoder for a store of smoothed rows."""
        columns = store.shape[1]
        if self.n_components > columns:
            raise ValueError(f"n_components must be at most {columns} for these features, got {self.n_components}")
        k, rng = self.n_components, stream(self.seed, "weights")
        encoder = nn.ResidualMLP(columns, self.hidden, k, rng=rng)
        encoder.skip.weight.data[...] = _principal_directions(store, k, self.seed)
        self.model_ = nn.Projected(encoder, nn.ProjectionHead(k, 2 * k, k, rng=rng))
        _memory.trim()

    def epochs(self, adjacency: csr_array, store: FeatureStorage, *, buffer: int, prefetch: bool):
        """A function ``(epoch, first)`` that gives an epoch's minibatches of shuffled rows from ``first`` on."""
        n = store.shape[0]

        def batches(epoch: int, first: int):
            order = stream(self.seed, "order", epoch).permutation(n)
            ids = (order[i * self.batch_size:(i + 1) * self.batch_size]
                   for i in range(first, self.steps_per_epoch(n)))
            return HyperbatchIterator(store, ids, buffer_bytes=buffer, prefetch=prefetch)

        return batches

    def steps_per_epoch(self, n: int) -> int:
        """Full minibatches of an epoch; the rows left over come at another place in the next epoch's order."""
        return max(1, n // self.batch_size)

    def step(self, batch, key: int) -> tuple:
        """Loss and gradients of one minibatch: two random views of the same rows are each other's positives."""
        x, count = batch.features, len(batch.features)
        views = np.concatenate([self._view(x, derive(key, "view", i)) for i in range(2)])
        z = self.model_(Tensor(views))
        loss = info_nce(z[:count], z[count:], temperature=self.temperature, symmetric=True)
        loss.backward()
        return float(loss.data), count

    def embed_batch(self, batch) -> tuple[np.ndarray, Tensor]:
        """Ids and embeddings of the nodes of one minibatch, nothing dropped."""
        return batch.node_ids, self.model_.encoder(Tensor(batch.features))

    def _view(self, x: np.ndarray, key: int) -> np.ndarray:
        kept = drop_blocks(x, x.shape[1] // len(self.blocks), self.dropout, key)
        return nn.dropout(Tensor(kept), self.dropout, key=derive(key, "columns")).data

    def embed(self, adjacency: csr_array, store: FeatureStorage, path: Path, folder: Path) -> None:
        """Write the embedding of every row of the store, in one pass."""
        n = store.shape[0]

        def rows():
            with nn.no_grad():
                for _, rows in iter_nodes(store):
                    yield self.model_.encoder(Tensor(rows)).data

        FeatureStorage.from_blocks(path, (n, self.n_components), rows(), dtype=np.float32, overwrite=True).close()


def propagation_matrix(adjacency: csr_array, kind: str) -> csr_array:
    """The row-stochastic matrix of a name in ``PROPAGATIONS``: rows of :math:`(A + w I) D^{-b}`, summing to 1."""
    exponent, loops = PROPAGATIONS[kind]
    degree = np.maximum(degrees(adjacency), 1).astype(np.float64)
    scaled = csr_array(adjacency, copy=True)
    scaled.data *= (degree**-exponent)[scaled.indices].astype(scaled.dtype)
    if loops:
        scaled = as_csr(scaled + diags_array(loops * degree**-exponent).astype(scaled.dtype))
    return normalize(scaled, "row", self_loops=0.0)


def _choose_propagation(adjacency: csr_array, source, seed: int) -> str:
    """The propagation under which a node's neighbours tell most about its own features, no label used.

    For a sample of nodes that have neighbours: the mean cosine between the node's centred features and the centred
    mean of its neighbours' under the candidate's weights (without the node itself).
    """
    n = adjacency.shape[0]
    degree = degrees(adjacency)
    linked = np.flatnonzero(degree > 0)
    if len(linked) == 0:
        return next(iter(PROPAGATIONS))
    ids = np.sort(stream(seed, "propagation").permutation(linked)[:CHOICE_SAMPLE])
    scores = {}
    for kind, (exponent, _) in PROPAGATIONS.items():
        rows = adjacency[ids]
        weights = rows.data * np.maximum(degree, 1).astype(np.float64)[rows.indices] ** -exponent
        weights /= np.repeat(np.add.reduceat(weights, rows.indptr[:-1]), np.diff(rows.indptr))
        rows = csr_array((weights.astype(np.float32), rows.indices, rows.indptr), shape=rows.shape)
        dot, own, mean = (np.zeros(len(ids)) for _ in range(3))
        x = np.empty((n, TILE), np.float32)
        for tile in range(source.n_tiles):
            source.read_tile(tile, x)
            a, b = x[ids].astype(np.float64), spmm(rows, x).astype(np.float64)
            a -= a.mean(axis=0)
            b -= b.mean(axis=0)
            dot += (a * b).sum(axis=1)
            own += (a * a).sum(axis=1)
            mean += (b * b).sum(axis=1)
        scale = np.sqrt(own * mean)
        scores[kind] = float(np.divide(dot, scale, out=np.zeros_like(dot), where=scale > 0).mean())
    log.info("agreement of features with the neighbours': %s", ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
    return max(scores, key=lambda kind: scores[kind])


def _column_means(tiles) -> np.ndarray:
    n, d = tiles.shape
    buffer, means = np.empty((n, TILE), tiles.dtype), np.empty(tiles.n_tiles * TILE)
    for tile in range(tiles.n_tiles):
        means[tile * TILE:(tile + 1) * TILE] = tiles.read_tile(tile, buffer).mean(axis=0, dtype=np.float64)
    return means[:d].astype(np.float32)


def _principal_directions(store, k: int, seed: int) -> np.ndarray:
    """Leading eigenvectors of the second moments of (a sample of) rows, ``columns x k``."""
    n, columns = store.shape
    ids = np.arange(n) if n <= SAMPLE else np.sort(stream(seed, "directions").choice(n, SAMPLE, replace=False))
    moments = np.zeros((columns, columns))
    size = chunk_rows(columns)
    for start in range(0, len(ids), size):
        rows = store.read_batch(ids[start:start + size])
        moments += matmul(rows.T, rows)
    return fixed_signs(np.linalg.eigh(moments)[1][:, ::-1][:, :k]).astype(np.float32)
