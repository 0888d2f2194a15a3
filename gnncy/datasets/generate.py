"""Random graphs with features and labels, in memory or streamed to a folder, the same bits either way.

Edge ``e`` is a function of the seed and ``e``, a row of features of the seed and the row's block, so nothing
depends on how the work is cut.
"""
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from gnncy._check import check_float, check_int
from gnncy._kernels.graph import generate
from gnncy._memory import format_bytes, parse_bytes
from gnncy._random import derive, seed_from, stream
from gnncy._threads import run_pieces
from gnncy.datasets.dataset import GraphDataset, Split, random_parts
from gnncy.datasets.folder import index_dtype, new_folder, write_adjacency, write_meta, write_vector
from gnncy.errors import MemoryLimitError
from gnncy.storage.topology.sorting import distinct

_LICENCE = "generated: free of rights"
_DRAWS = 1 << 16  # edges drawn at a time
_ROWS = 1024  # rows of features from one random stream: never change it, the bits depend on it
_SCRATCH = 8 << 20  # bytes for the edges in hand
_KEY = 8  # bytes for a key being sorted


@dataclass(frozen=True)
class _Recipe:
    name: str
    n_nodes: int
    n_draws: int
    draw: Callable[[int, np.ndarray, np.ndarray], Any]  # (first edge, source, target) fills both
    label: Callable[[np.ndarray], np.ndarray]
    n_classes: int
    n_features: int
    feature_noise: float
    seed: int
    parameters: dict[str, Any]

    @property
    def bits(self) -> int:
        return (self.n_nodes - 1).bit_length()

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(f"class {c}" for c in range(self.n_classes))

    def labels(self) -> Iterator[np.ndarray]:
        for start in range(0, self.n_nodes, _DRAWS):
            yield self.label(np.arange(start, min(start + _DRAWS, self.n_nodes)))

    def arcs(self) -> Iterator[np.ndarray]:
        """Both directions of every edge drawn, as ``source << bits | target``, without self loops."""
        source, target = np.empty((2, _DRAWS), np.int64)
        for first in range(0, self.n_draws, _DRAWS):
            size = min(_DRAWS, self.n_draws - first)
            u, v = source[:size], target[:size]
            self.draw(first, u, v)
            keep = u != v
            u, v = u[keep], v[keep]
            yield np.concatenate([u << self.bits | v, v << self.bits | u])

    def keys(self, capacity: int, folder: Path | None = None) -> Iterator[np.ndarray]:
        """The distinct arcs, ascending; ``capacity`` of them are held at a time, the others in ``folder``."""
        arcs = ((keys, None) for keys in self.arcs())
        return (keys for keys, _ in distinct(arcs, 2 * self.n_draws, 0, self.n_nodes << self.bits, capacity, folder))

    def centres(self) -> np.ndarray:
        return stream(self.seed, "centres").standard_normal((self.n_classes, self.n_features), np.float32)

    def rows(self, centres: np.ndarray, start: int, stop: int) -> np.ndarray:
        random = stream(self.seed, "features", start // _ROWS)
        rows = random.standard_normal((stop - start, self.n_features), np.float32)
        rows *= np.float32(self.feature_noise)
        rows += centres[self.label(np.arange(start, stop))]
        return rows

    def blocks(self) -> Iterator[np.ndarray]:
        centres = self.centres()
        for start in range(0, self.n_nodes, _ROWS):
            yield self.rows(centres, start, min(start + _ROWS, self.n_nodes))

    def make(self) -> GraphDataset:
        """The data set in memory."""
        n = self.n_nodes
        keys = np.concatenate([np.empty(0, np.int64), *self.keys(2 * self.n_draws)])
        dtype = index_dtype(2 * self.n_draws)
        indptr = np.searchsorted(keys, np.arange(n + 1) << self.bits).astype(dtype)
        indices = (keys & ((1 << self.bits) - 1)).astype(dtype)
        adjacency = csr_array((np.ones(len(keys), np.float32), indices, indptr), shape=(n, n))
        features, centres = np.empty((n, self.n_features), np.float32), self.centres()

        def piece(start, stop):
            features[start:stop] = self.rows(centres, start, stop)

        run_pieces(piece, n, _ROWS)
        return GraphDataset(self.name, adjacency, features, np.concatenate(list(self.labels())), self.class_names,
                            Split.from_parts(random_parts(n, self.seed)), _LICENCE)

    def write(self, folder: str | os.PathLike, memory_limit: int | float | str) -> None:
        """The data set as a folder."""
        from gnncy.storage import FeatureStorage
        limit = parse_bytes(memory_limit)
        # Beyond the scratch: the split and the permutation that it is cut from; or centres and blocks; or keys.
        least = _SCRATCH + max(9 * self.n_nodes, 4 * self.n_features * (self.n_classes + 4 * _ROWS), _KEY * _DRAWS)
        if limit < least:
            raise MemoryLimitError(f"memory_limit of {format_bytes(limit)} is too small to write {self.name} with "
                                   f"{self.n_nodes:,} nodes; at least {format_bytes(least)} are needed")
        folder = new_folder(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".spill-") as spill:
            keys = self.keys((limit - _SCRATCH) // _KEY, Path(spill))
            arcs = write_adjacency(folder, keys, self.n_nodes, self.bits, 2 * self.n_draws)
        write_vector(folder / "labels.npy", self.labels(), np.int64)
        write_vector(folder / "split.npy", [random_parts(self.n_nodes, self.seed)], np.uint8)
        FeatureStorage.from_blocks(folder / "features.npy", (self.n_nodes, self.n_features), self.blocks(),
                                   dtype=np.float32, overwrite=True).close()
        write_meta(folder, name=self.name, n_nodes=self.n_nodes, n_edges=arcs // 2, n_features=self.n_features,
                   class_names=self.class_names, licence=_LICENCE, seed=self.seed, parameters=self.parameters)


def _sbm(n_nodes, n_classes, degree, homophily, n_features, feature_noise, seed) -> _Recipe:
    n_nodes = check_int(n_nodes, "n_nodes", 2, 2**31 - 1)
    n_classes = check_int(n_classes, "n_classes", 1, n_nodes)
    degree = check_float(degree, "degree", 0, n_nodes - 1)
    homophily = check_float(homophily, "homophily", 0, 1)
    n_features = check_int(n_features, "n_features", 1)
    feature_noise = check_float(feature_noise, "feature_noise", 0)
    seed = seed_from(seed)

    def draw(first, source, target):
        generate.sbm(derive(seed, "edges"), first, n_nodes, n_classes, round(homophily * 2**32), source, target)

    return _Recipe("sbm", n_nodes, round(n_nodes * degree / 2), draw, partial(_modulo, n_classes), n_classes,
                   n_features, feature_noise, seed, {"degree": degree, "homophily": homophily,
                                                     "feature_noise": feature_noise})


def _modulo(n_classes, nodes):
    return nodes % n_classes


def _rmat(scale, edge_factor, probabilities, n_classes, n_features, feature_noise, seed) -> _Recipe:
    scale = check_int(scale, "scale", 1, 31)
    edge_factor = check_int(edge_factor, "edge_factor", 0)
    a, b, c, d = (check_float(p, "probabilities", 0, 1) for p in _four(probabilities))
    if abs(a + b + c + d - 1) > 1e-9:
        raise ValueError(f"probabilities must sum to 1, got {tuple(probabilities)} with sum {a + b + c + d:g}")
    n_classes = check_int(n_classes, "n_classes", 1, 2**scale)
    n_features = check_int(n_features, "n_features", 1)
    feature_noise = check_float(feature_noise, "feature_noise", 0)
    seed = seed_from(seed)
    bounds = [round(p * 2**32) for p in (a, a + b, a + b + c)]
    odd, inverse, mask, shift = _scramble(scale, seed)

    def draw(first, source, target):
        generate.rmat(derive(seed, "edges"), first, scale, *bounds, source, target)
        for ids in (source, target):
            ids[:] = _mix(ids, odd, shift, mask)

    def label(nodes):
        return _mix(nodes, inverse, shift, mask) * n_classes >> scale

    return _Recipe("rmat", 2**scale, edge_factor * 2**scale, draw, label, n_classes, n_features, feature_noise, seed,
                   {"edge_factor": edge_factor, "probabilities": [a, b, c, d], "feature_noise": feature_noise})


def _four(probabilities):
    values = tuple(probabilities)
    if len(values) != 4:
        raise ValueError(f"probabilities must be four numbers, one for each quadrant, got {len(values)}")
    return values


def _scramble(scale, seed):
    """An odd multiplier, its inverse modulo ``2**scale``, the mask of that modulus and a shift for :func:`_mix`."""
    odd = derive(seed, "order") % 2**scale | 1
    return odd, pow(odd, -1, 2**scale), 2**scale - 1, scale // 2 + 1


def _mix(ids, factor, shift, mask):
    """A bijection of the ids; with the inverse factor, its inverse (the shift is more than half the bits)."""
    ids = ids * factor & mask
    ids ^= ids >> shift
    return ids * factor & mask


def make_sbm(n_nodes: int, n_classes: int = 8, *, degree: float = 10.0, homophily: float = 0.8,
             n_features: int = 128, feature_noise: float = 5.0, seed=0) -> GraphDataset:
    """A stochastic block model with equal classes and Gaussian features, in memory.

    ``n_nodes * degree / 2`` edges are drawn one by one: a node uniformly, then a node of the same class with
    probability ``homophily``, of any other class otherwise. Self loops and repetitions are left out. So a node has
    about ``degree`` neighbours, and with ``n`` nodes in ``k`` classes two nodes of one class are joined with
    probability ``degree * homophily * k / n``, two others with ``degree * (1 - homophily) * k / (n * (k - 1))``.
    Node ``i`` is of class ``i % n_classes``; its features are the centre of the class, drawn from a standard normal
    distribution, plus ``feature_noise`` times standard normal noise.

    Parameters
    ----------
    n_nodes : int
        2 to 2**31 - 1.
    n_classes : int
    degree : float
        Mean number of neighbours, before repetitions are left out.
    homophily : float
        Share of edges within a class.
    n_features : int
    feature_noise : float
        Standard deviation of the noise; the centres' is 1.
    seed : int, None or numpy Generator

    Returns
    -------
    GraphDataset
        With a random split of 10, 10 and 80 %.

    See Also
    --------
    write_sbm : the same graph, bit for bit, to a folder.

    References
    ----------
    P. W. Holland, K. B. Laskey, S. Leinhardt, "Stochastic blockmodels: first steps", Social Networks 5, 1983.

    Examples
    --------
    >>> from gnncy.datasets import make_sbm
    >>> make_sbm(1000, 4, n_features=16)
    GraphDataset(sbm: 1,000 nodes, 4,910 edges, 16 features, 4 classes)
    """
    return _sbm(n_nodes, n_classes, degree, homophily, n_features, feature_noise, seed).make()


def write_sbm(folder: str | os.PathLike, n_nodes: int, n_classes: int = 8, *, degree: float = 10.0,
              homophily: float = 0.8, n_features: int = 128, feature_noise: float = 5.0, seed=0,
              memory_limit: int | float | str = "256MB") -> None:
    """Write the graph of :func:`make_sbm` to a folder, at any size, within a memory limit.

    Edges are spilled to files in the folder (16 bytes an edge, removed after) and sorted part by part; features
    are written in blocks of rows. Read it with :func:`open_graph`.

    Parameters
    ----------
    folder : path
        Made if need be; a folder that holds a whole graph is refused.
    n_nodes, n_classes, degree, homophily, n_features, feature_noise, seed
        As in :func:`make_sbm`.
    memory_limit : int or str, default "256MB"
        Bytes to be held at a time; at least 9 a node and 8 MB.

    Raises
    ------
    FileExistsError
        The folder holds a graph.
    MemoryLimitError
        The limit is too small; the message names the least.

    Examples
    --------
    >>> from gnncy.datasets import open_graph, write_sbm
    >>> write_sbm("graph", 1000, 4, n_features=16, memory_limit="16MB")
    >>> with open_graph("graph").features as features:
    ...     features.shape
    (1000, 16)
    """
    _sbm(n_nodes, n_classes, degree, homophily, n_features, feature_noise, seed).write(folder, memory_limit)


def make_rmat(scale: int, edge_factor: int = 16, *, probabilities=(.57, .19, .19, .05), n_classes: int = 8,
              n_features: int = 128, feature_noise: float = 5.0, seed=0) -> GraphDataset:
    """A recursive-matrix (Kronecker) graph with a heavy-tailed degree distribution, in memory.

    Each of the ``edge_factor * 2**scale`` edges falls into a quadrant of the adjacency matrix by ``probabilities``
    (top left, top right, bottom left, bottom right), then into a quadrant of that, and so on; it is then made
    undirected, and self loops and repetitions are left out. Many nodes have no edge. Ids are scrambled, so that
    nodes of high degree lie anywhere. A class is a range of the ids before scrambling; features are as in
    :func:`make_sbm`. With the default probabilities, those of the Graph500 benchmark, the edges follow the degrees and
    hardly the classes: good for speed, and for learning use :func:`make_sbm` or more weight on the diagonal.

    Parameters
    ----------
    scale : int
        The graph has ``2**scale`` nodes, up to 2**31.
    edge_factor : int
        Edges drawn, per node.
    probabilities : four floats of sum 1
    n_classes, n_features, feature_noise, seed
        As in :func:`make_sbm`.

    Returns
    -------
    GraphDataset

    References
    ----------
    D. Chakrabarti, Y. Zhan, C. Faloutsos, "R-MAT: a recursive model for graph mining", SDM 2004.

    Examples
    --------
    >>> from gnncy.datasets import make_rmat
    >>> data = make_rmat(10, n_features=16)
    >>> degree = data.adjacency.indptr[1:] - data.adjacency.indptr[:-1]
    >>> data.n_nodes, int(degree.max()), int(degree.mean())
    (1024, 465, 20)
    """
    return _rmat(scale, edge_factor, probabilities, n_classes, n_features, feature_noise, seed).make()


def write_rmat(folder: str | os.PathLike, scale: int, edge_factor: int = 16, *, probabilities=(.57, .19, .19, .05),
               n_classes: int = 8, n_features: int = 128, feature_noise: float = 5.0, seed=0,
               memory_limit: int | float | str = "256MB") -> None:
    """Write the graph of :func:`make_rmat` to a folder, at any size, within a memory limit.

    Parameters
    ----------
    folder : path
        Made if need be; a folder that holds a whole graph is refused.
    scale, edge_factor, probabilities, n_classes, n_features, feature_noise, seed
        As in :func:`make_rmat`.
    memory_limit : int or str, default "256MB"
        Bytes to be held at a time; at least 9 a node and 8 MB.

    Raises
    ------
    FileExistsError
        The folder holds a graph.
    MemoryLimitError
        The limit is too small; the message names the least.

    Examples
    --------
    >>> from gnncy.datasets import open_graph, write_rmat
    >>> write_rmat("graph", 10, n_features=16, memory_limit="16MB")
    >>> with open_graph("graph").features as features:
    ...     features.shape
    (1024, 16)
    """
    recipe = _rmat(scale, edge_factor, probabilities, n_classes, n_features, feature_noise, seed)
    recipe.write(folder, memory_limit)
