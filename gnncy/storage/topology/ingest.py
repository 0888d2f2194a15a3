"""To graphs on disk: matrices, and lists of edges in any order, larger than memory perhaps."""
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gnncy._check import check_finite, check_ids, check_int
from gnncy._memory import format_bytes
from gnncy.errors import GraphFormatError, MemoryLimitError
from gnncy.graph import as_csr, is_symmetric
from gnncy.storage.topology.layout import MOST, writing
from gnncy.storage.topology.sorting import KEY_BYTES, WEIGHED_BYTES, Piece, distinct

_ELEMENTS = 1 << 20  # of a matrix, that are written at a time
_EDGES = 1 << 16  # edges in hand at a time
_SCRATCH = 12_000_000  # bytes for them
_LEAST = 1 << 16  # keys that are sorted at a time, at least


def write_matrix(path, adjacency, overwrite: bool) -> None:
    """What :meth:`GraphStorage.create` does."""
    graph = as_csr(adjacency)
    weights = None if (graph.data == 1).all() else graph.data.dtype
    with writing(path, graph.shape[0], weights, is_symmetric(graph), overwrite) as writer:
        for start in range(0, graph.shape[0] + 1, _ELEMENTS):
            writer.start_rows(graph.indptr[start:start + _ELEMENTS])
        for start in range(0, graph.nnz, _ELEMENTS):
            part = slice(start, start + _ELEMENTS)
            writer.append(None, graph.indices[part], graph.data[part])


def write_rows(path, rows: Iterable, n_nodes: int, dtype, symmetric: bool, overwrite: bool) -> None:
    """What :meth:`GraphStorage.from_rows` does."""
    with writing(path, n_nodes, dtype, symmetric, overwrite) as writer:
        arcs = count = 0
        writer.start_rows(np.zeros(1, np.int64))
        for block in rows:
            if block.shape[1] != n_nodes:
                raise ValueError(f"rows must have {n_nodes} columns, one a node, got a block of shape {block.shape}")
            writer.start_rows(arcs + block.indptr[1:].astype(np.int64))
            writer.append(None, block.indices, block.data)
            arcs, count = arcs + block.nnz, count + block.shape[0]
        if count != n_nodes:
            raise ValueError(f"rows must be {n_nodes}, one a node, got {count}")


def write_edges(path, edges, n_nodes: int | None, directed: bool, limit: int, overwrite: bool) -> None:
    """What :meth:`GraphStorage.from_edges` does."""
    path = Path(path)
    if isinstance(edges, (str, os.PathLike)):
        edges = np.load(edges, mmap_mode="r", allow_pickle=False)
    if isinstance(edges, np.ndarray):
        _check_pairs(edges, "edges")
        if n_nodes is None:
            n_nodes = 1 + max((int(piece.max()) for piece in _slices(edges)), default=-1)
        edges = _slices(edges)
    elif n_nodes is None:
        raise ValueError("n_nodes is needed with an iterable of pieces: what they hold is seen only once")
    n_nodes = check_int(n_nodes, "n_nodes", 0, MOST)
    least = _SCRATCH + WEIGHED_BYTES * _LEAST
    if limit < least:
        raise MemoryLimitError(f"memory_limit of {format_bytes(limit)} is too small to sort edges; at least "
                               f"{format_bytes(least)} are needed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.spill-") as folder:
        with _Spilled(Path(folder), n_nodes, directed) as spilled:
            for piece in edges:
                spilled.add(piece)
        room = (limit - _SCRATCH) // (WEIGHED_BYTES if spilled.weighted else KEY_BYTES)
        arcs = distinct(spilled.pieces(), spilled.count, 0, max(n_nodes, 1) ** 2, room, Path(folder))
        with writing(path, n_nodes, np.float32 if spilled.weighted else None, not directed, overwrite) as writer:
            for keys, weights in arcs:
                if weights is not None:
                    keys, weights = keys[weights != 0], weights[weights != 0]
                rows, columns = np.divmod(keys, n_nodes)
                writer.append(rows, columns, weights)


class _Spilled:
    """All arcs as they came, in a file: how many there are must be known before they are sorted."""

    def __init__(self, folder: Path, n_nodes: int, directed: bool):
        self.n_nodes, self.directed = n_nodes, directed
        self.weighted: bool | None = None
        self.count = 0
        self._keys, self._weights = folder / "arcs", folder / "arcs.weights"
        self._files = open(self._keys, "wb", buffering=0), open(self._weights, "wb", buffering=0)

    def add(self, piece) -> None:
        """Edges: an array (k, 2), or sources, targets and perhaps weights."""
        if isinstance(piece, np.ndarray):
            _check_pairs(piece, "a piece of edges")
            parts = [piece[:, 0], piece[:, 1]]
        else:
            parts = [np.asarray(part) for part in piece]
        if len(parts) not in (2, 3) or any(part.shape != parts[0].shape for part in parts):
            raise ValueError(f"a piece of edges must be an array of shape (k, 2), or sources, targets and perhaps "
                             f"weights of one length, got shapes {[part.shape for part in parts]}")
        if self.weighted is not None and len(parts[0]) and self.weighted != (len(parts) == 3):
            raise ValueError("some pieces of edges have weights and others have none; give weights to all or to none")
        for start in range(0, len(parts[0]), _EDGES):
            self.weighted = len(parts) == 3
            source, target = (check_ids(part[start:start + _EDGES], self.n_nodes, "ids of nodes") for part in parts[:2])
            self._write(source * self.n_nodes + target, parts[2][start:start + _EDGES] if self.weighted else None)
            if not self.directed:
                self._write(target * self.n_nodes + source, parts[2][start:start + _EDGES] if self.weighted else None)

    def _write(self, keys: np.ndarray, weights: np.ndarray | None) -> None:
        keys.tofile(self._files[0])
        self.count += len(keys)
        if weights is not None:
            with np.errstate(over="ignore"):  # what overflows is refused
                weights = weights.astype(np.float32)
            check_finite(weights, "weights of edges")
            weights.tofile(self._files[1])

    def __enter__(self) -> "_Spilled":
        return self

    def __exit__(self, *error) -> None:
        for file in self._files:
            file.close()

    def pieces(self) -> Iterator[Piece]:
        """The arcs, once; their file is gone after."""
        with open(self._keys, "rb", buffering=0) as keys, open(self._weights, "rb", buffering=0) as weights:
            self._keys.unlink()
            self._weights.unlink()
            while (some := np.fromfile(keys, np.int64, _EDGES)).size:
                yield some, np.fromfile(weights, np.float32, _EDGES) if self.weighted else None


def _slices(edges: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(edges), _EDGES):
        yield edges[start:start + _EDGES]


def _check_pairs(edges: np.ndarray, name: str) -> None:
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise GraphFormatError(f"{name} must be integers of shape (m, 2), both ends of each edge, got {edges.dtype} of "
                               f"shape {edges.shape}")

