"""The ``propagate`` encoder: features smoothed over the graph once, out of core, then an encoder of single rows."""
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from gnncy import _memory, nn
from gnncy._files import replacing
from gnncy._linalg import matmul
from gnncy._random import derive, stream
from gnncy.estimators.encoders.matrices import chunk_plan, graph_plan, mean_matrix, symmetric_matrix
from gnncy.estimators.encoders.signals import (
    DISASSORTATIVE,
    PLACE,
    degree_assortativity,
    row_lengths,
    split_half_reliability,
    structure,
)
from gnncy.estimators.stored import Graph
from gnncy.graph import is_symmetric, undirected
from gnncy.losses import drop_blocks, info_nce
from gnncy.nn import Tensor
from gnncy.storage import FeatureStorage, GraphStorage, HyperbatchIterator
from gnncy.storage.passes import (
    CHUNK,
    OVERSAMPLING,
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
OWN = Diffusion("power", 0)
SMOOTHINGS = ((OWN, 0.7), (Diffusion("power", 1), 0.7), (Diffusion("power", 2), 0.7),
              (Diffusion("appnp", 16, alpha=0.05), 1.0))
"""Smoothings that stand side by side in a row, and the length of each in the row."""
SHORT = 2 / 3  # of the length of the features' reliable part: smoothings that are shorter count less
FLAT = 1e-6  # length of rows that differ from their mean by rounding only
BLOCKS = len(SMOOTHINGS)  # each has a hop of the structure beside it, of which there are HOPS + 1


class Propagation(NamedTuple):
    """Exponent b of a neighbour's degree, weight of the self loop, and whether smoothed rows keep their lengths.

    The mean of neighbours is long where they agree; or where it is that of a single hub.
    """

    exponent: float
    loops: float
    keep_length: bool


PROPAGATIONS = {"even": Propagation(0.5, 1.0, True), "hubs": Propagation(-0.25, 0.0, False)}
"""``even`` is close to GCN's symmetric normalisation; ``hubs`` lets well connected neighbours count more, as the
general terms of a taxonomy should."""
VARIANCE_POWER = 1 / 3  # of a direction's eigenvalue over the largest in its scale: weak directions are mostly noise
STRUCTURE_SHARE = 0.01  # of a row's squared length, on the mean
STRUCTURE_COLUMNS = 0.125  # of the embedding's columns, at most, are for the structure
FILL_SCALE = 10.0  # of the perceptron's first weights in columns that have no linear part
STRUCTURE_SPREAD = 0.1  # least standard deviation that a structural column is divided by
SAMPLE = 65_536  # rows from which the principal directions are computed


class SmoothedEncoder:
    """Smooths features over the graph, then trains a residual MLP under a projection head on single rows.

    The weights of the linear path start at the principal directions of the smoothed rows, so that training
    starts from what a careful user would compute without it.
    """

    auto_steps, auto_rate = 50, 1e-4  # of training by default; more of either takes away what the directions began with
    io_threads: int | None = None  # requests that reads of the store have in flight
    n_place = PLACE  # columns of the structure beside each block
    basis_diffusion: Diffusion | None = BASIS_DIFFUSION
    smoothings: tuple[tuple[Diffusion, float], ...] = SMOOTHINGS
    given: str | None = None  # propagation, in place of the one that the signal chooses
    hops = True  # whether the graph counts
    tiles = 1  # of columns that are smoothed at a time: as many as there is room for where arcs are on disk
    model_: Any

    def __init__(self, *, n_components: int, width: int, hidden: int, temperature: float, dropout: float,
                 batch_size: int, seed: int) -> None:
        self.n_components, self.width, self.hidden = n_components, width, hidden
        self.temperature, self.dropout, self.batch_size, self.seed = temperature, dropout, batch_size, seed

    @property
    def n_blocks(self) -> int:
        """Blocks of a row, one a smoothing."""
        return len(self.smoothings)

    def plan(self, adjacency: Graph, features, buffer: int) -> dict[str, dict[str, int]]:
        """What each stage holds for a graph and features."""
        (n, d), sparse = features.shape, is_sparse(features)
        width = self._reduced_width(n, d, sparse)
        columns = self.store_columns(n, d, sparse)
        held, graph, looking = graph_plan(adjacency, symmetric=not self.hops or _symmetric(adjacency))
        chunk = {"chunk of rows": chunk_plan(features)}
        k = self.n_components
        weights = columns * (k + self.hidden) + self.hidden * (k + 1) + 4 * k * k + 3 * k
        rows, views = self.batch_size, 2 * self.batch_size
        activations = 4 * ((rows + views) * columns + 1024 * rows
                           + max(views * columns, views * (3 * self.hidden + 12 * k)))
        stages = {"look over": looking} if looking else {}
        if self._reduces(d, sparse):
            stages["reduce"] = graph | chunk | {"basis": FeatureReducer(width).memory_needed(n, d, self.tiles)}
        stages["smooth"] = graph | chunk | {"column tiles": 3 * 4 * n * TILE * self.tiles, "basis": 4 * d * width,
                                          "second moments": 4 * 8 * (2 * width)**2}
        stages["directions"] = held | {"second moments": 5 * 8 * columns**2, "chunk of rows": 2 * 4 * CHUNK}
        stages["train"] = held | {"weights, gradients, Adam": 4 * 4 * weights, "activations": activations,
                                  "order of rows": 16 * n, "read buffers": max(buffer, self.least_buffer(columns))}
        stages["embed"] = held | {"weights": 4 * weights, "chunk of rows": 4 * chunk_rows(columns) * (
            2 * columns + 4 * self.hidden + 4 * k)}
        return stages

    def widen(self, features, room: int) -> None:
        """Smooth more tiles at a time, in so many bytes more: a pass over arcs on disk serves them all."""
        (n, d), sparse = features.shape, is_sparse(features)
        most = self._reduced_width(n, d, sparse) + self._reduces(d, sparse) * OVERSAMPLING
        tiles = -(-most // TILE)
        groups = -(-tiles // (1 + max(room, 0) // (3 * 4 * n * TILE)))
        self.tiles = -(-tiles // groups)  # groups of one size, as few as there is room for

    def least_buffer(self, columns: int) -> int:
        """Bytes of the smallest read buffers: two minibatches."""
        return HyperbatchIterator.buffer_bytes_for(self.batch_size, columns)

    def store_columns(self, n: int, d: int, sparse: bool) -> int:
        """Columns of the store that training reads."""
        return self.n_blocks * (self._reduced_width(n, d, sparse) + self.n_place)

    def _reduces(self, d: int, sparse: bool) -> bool:
        return sparse or d > self.width

    def _reduced_width(self, n: int, d: int, sparse: bool) -> int:
        return min(max(self.width - self.n_place, 1), n, d) if self._reduces(d, sparse) else d

    def prepare(self, adjacency: Graph, features, work: Path, *, fit: bool) -> FeatureStorage:
        """The store of smoothed rows, kept in ``work``; resumes where a stage is whole.

        What later graphs need as well lies beside ``work``: the basis, the centres, the choice of propagation.
        """
        path, state = work / "smoothed.npy", work.parent / "smoothing.npz"
        if not self.hops:
            adjacency = csr_array(adjacency.shape, dtype=np.float32)
        both_ways = adjacency if _symmetric(adjacency) else undirected(adjacency)
        if not fit:
            self._smooth(adjacency, both_ways, features, work, path, fit=False)
            return FeatureStorage.open(path, io_threads=self.io_threads)
        self._fit_reducer(both_ways, features, work)
        if path.exists() and state.exists():
            with np.load(state, allow_pickle=False) as there:
                self.centre_, self.lengths_, self.structure_ = there["centre"], there["lengths"], there["structure"]
                self.propagation_ = str(there["propagation"])
        else:
            self._smooth(adjacency, both_ways, features, work, path, fit=True)
            with replacing(state) as temporary, open(temporary, "wb") as f:
                np.savez(f, centre=self.centre_, lengths=self.lengths_, structure=self.structure_,
                         propagation=np.array(self.propagation_))
        if self.reducer_ is not None:
            self.reducer_.load(work.parent, features.shape[1])  # mapped anew, so that none of it is in memory
        _memory.trim()
        return FeatureStorage.open(path, io_threads=self.io_threads)

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
            if self.basis_diffusion is None:
                self.reducer_.fit(features)
            else:
                with symmetric_matrix(adjacency, work) as matrix:
                    self.reducer_.fit(features, matrix, self.basis_diffusion, work, self.tiles)
                del matrix
            self.reducer_.save(work.parent)
            _memory.trim()

    def _smooth(self, adjacency, both_ways, features, folder: Path, path: Path, *, fit: bool) -> None:
        """Write the store: blocks side by side, each centred and of its own length."""
        with reduced_tiles(features, self.reducer_, folder) as source:
            if fit:
                self.propagation_ = self.given or choose_propagation(both_ways)
            log.info("smoothing over the graph (%s): %d blocks of %d columns", self.propagation_, self.n_blocks,
                     source.shape[1])
            exponent, loops, keep_length = PROPAGATIONS[self.propagation_]
            with mean_matrix(both_ways, folder, exponent=exponent, loops=loops) as matrix:
                blocks = diffuse_tiles(matrix, source, [diffusion for diffusion, _ in self.smoothings], folder,
                                       self.tiles)
        del matrix
        place = self._structure(adjacency, both_ways, features, folder, fit=fit)
        if fit:
            self.centre_, rms = (np.stack(found) for found in zip(*map(_moments, blocks), strict=True))
            reliability = 0.0
            if keep_length and self.n_blocks > 1:
                reliability = split_half_reliability(features, self.reducer_, self.seed)
            self.lengths_ = self._lengths(rms, keep_length, reliability)
        n, width = blocks[0].shape
        place *= np.float32(np.sqrt(STRUCTURE_SHARE * width / PLACE))
        columns = self.n_blocks * (width + self.n_place)

        def rows():
            size = chunk_rows(columns)
            for start in range(0, n, size):
                stop = min(start + size, n)
                chunk = np.empty((stop - start, self.n_blocks, width + self.n_place), np.float32)
                for b, block in enumerate(blocks):
                    part = block.read_rows(start, stop) - self.centre_[b]
                    chunk[:, b, :width] = (part if keep_length else unit_rows(part)) * self.lengths_[b]
                chunk[:, :, width:] = place[start:stop]
                yield chunk.reshape(stop - start, -1)

        FeatureStorage.from_blocks(path, (n, columns), rows(), dtype=np.float32, overwrite=True).close()
        for block in blocks:
            block.close()
        _memory.trim()

    def _lengths(self, rms: np.ndarray, keep_length: bool, reliability: float) -> np.ndarray:
        """What each block is multiplied by, with rows of the mean length ``rms`` or of length 1.

        Entries of all rows then have mean square 1. A smoothing that is short beside features that are reliable counts
        less.
        """
        lengths = np.array([length for _, length in self.smoothings])
        if keep_length:
            lengths *= np.minimum(rms / max(SHORT * np.sqrt(reliability) * rms[0], FLAT), 1)
        lengths *= np.sqrt(self.n_blocks * self.centre_.shape[1] / max((lengths**2).sum(), FLAT))
        if keep_length:
            lengths = np.divide(lengths, rms, out=np.zeros_like(lengths), where=rms > FLAT)
        return lengths.astype(np.float32)

    def _structure(self, adjacency, both_ways, features, folder: Path, *, fit: bool) -> np.ndarray:
        """Columns of the structure beside each block, standardised: n x blocks x columns."""
        place = structure(adjacency, both_ways, row_lengths(features), folder)
        if fit:
            self.structure_ = np.stack([place.mean(axis=0, dtype=np.float64),
                                        np.maximum(place.std(axis=0, dtype=np.float64), STRUCTURE_SPREAD)],
                                       dtype=np.float32, casting="same_kind")
        place -= self.structure_[0]
        place /= self.structure_[1]
        return np.clip(place, -4, 4, out=place)

    def build(self, store: FeatureStorage) -> None:
        """The untrained encoder for a store of smoothed rows."""
        columns = store.shape[1]
        k, rng = self.n_components, stream(self.seed, "weights")
        encoder = nn.ResidualMLP(columns, self.hidden, k, rng=rng)
        directions = principal_directions(store, k, self.seed, self.n_blocks, self.n_place, power=VARIANCE_POWER)
        linear = directions.shape[1]  # at most k: where rows span fewer, the other columns are the perceptron's alone
        encoder.skip.weight.data[:, :linear] = directions
        encoder.skip.weight.data[:, linear:] = 0
        self.model_ = nn.Projected(encoder, nn.ProjectionHead(k, 2 * k, k, rng=rng))
        encoder.second.weight.data[:, :linear] = 0
        fill = encoder.second.weight.data[:, linear:]
        np.multiply(fill, np.float32(FILL_SCALE), out=fill)
        _memory.trim()

    def epochs(self, adjacency: Graph, store: FeatureStorage, *, buffer: int, prefetch: bool):
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
        views = np.empty((2 * count, x.shape[1]), np.float32)
        for i in range(2):
            views[i * count:(i + 1) * count] = self._view(x, derive(key, "view", i))
        z = self.model_(Tensor(views))
        loss = info_nce(z[:count], z[count:], temperature=self.temperature, symmetric=True)
        loss.backward()
        return float(loss.data), count

    def embed_batch(self, batch) -> tuple[np.ndarray, Tensor]:
        """Ids and embeddings of the nodes of one minibatch, nothing dropped."""
        return batch.node_ids, self.model_.encoder(Tensor(batch.features))

    def _view(self, x: np.ndarray, key: int) -> np.ndarray:
        kept = drop_blocks(x, x.shape[1] // self.n_blocks, self.dropout, key)
        return nn.dropout(Tensor(kept), self.dropout, key=derive(key, "columns")).data

    def embed(self, adjacency: Graph, store: FeatureStorage, path: Path, folder: Path) -> None:
        """Write the embedding of every row of the store, in one pass."""
        n = store.shape[0]

        def rows():
            with nn.no_grad():
                for _, rows in iter_nodes(store):
                    yield self.model_.encoder(Tensor(rows)).data

        FeatureStorage.from_blocks(path, (n, self.n_components), rows(), dtype=np.float32, overwrite=True).close()


def choose_propagation(adjacency: Graph) -> str:
    """The name in ``PROPAGATIONS`` that suits a symmetric graph, by how its degrees go together."""
    assortativity = degree_assortativity(adjacency)
    log.info("degree assortativity %.2f", assortativity)
    return "hubs" if assortativity < DISASSORTATIVE else "even"


def _symmetric(adjacency: Graph) -> bool:
    return isinstance(adjacency, GraphStorage) or is_symmetric(adjacency)  # one on disk has been looked over


def _moments(tiles) -> tuple[np.ndarray, float]:
    """Means of the columns, and the root of the mean square of a centred row's length."""
    n, d = tiles.shape
    buffer, means, squares = np.empty((n, TILE), tiles.dtype), np.empty(tiles.n_tiles * TILE), 0.0
    for tile in range(tiles.n_tiles):
        part = tiles.read_tile(tile, buffer)
        mean = part.mean(axis=0, dtype=np.float64)
        means[tile * TILE:(tile + 1) * TILE] = mean
        squares += np.einsum("ij,ij->", part, part, dtype=np.float64) - n * (mean @ mean)
    return means[:d].astype(np.float32), np.sqrt(max(squares, 0.0) / n)


def principal_directions(store, k: int, seed: int, blocks: int = BLOCKS, place_columns: int = PLACE, *,
                         power: float = 0.0) -> np.ndarray:
    """Leading eigenvectors of the second moments of (a sample of) rows, ``columns x`` at most ``k``.

    The smoothed features and the structure have theirs apart, so that neither crowds out the other. Those of the
    features are scaled by their eigenvalue over the largest, to a power.
    """
    n, columns = store.shape
    ids = np.arange(n) if n <= SAMPLE else np.sort(stream(seed, "directions").choice(n, SAMPLE, replace=False))
    block = columns // blocks
    of_place = np.arange(columns) % block >= block - place_columns
    smooth, place = (np.zeros((count, count)) for count in (columns - blocks * place_columns, blocks * place_columns))
    size = chunk_rows(columns)
    for start in range(0, len(ids), size):
        rows = store.read_batch(ids[start:start + size])
        for moments, chosen in ((smooth, ~of_place), (place, of_place)):
            part = rows[:, chosen]
            moments += matmul(part.T, part)
    place, _ = _leading(place, int(STRUCTURE_COLUMNS * k))
    smooth, values = _leading(smooth, k - place.shape[1])
    smooth *= (values / values[:1])**power
    found = np.zeros((columns, smooth.shape[1] + place.shape[1]), np.float32)
    found[~of_place, :smooth.shape[1]] = smooth
    found[of_place, smooth.shape[1]:] = place
    return found


def _leading(moments: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``k`` eigenvectors of the largest eigenvalues, none of an eigenvalue of 0, and these."""
    if not len(moments):
        return moments, np.empty(0)
    values, vectors = np.linalg.eigh(moments)
    k = min(k, int((values > 1e-7 * max(values[-1], 1e-30)).sum()))
    return fixed_signs(vectors[:, ::-1][:, :k]), values[::-1][:k]
