"""A graph with features and labels as a folder of plain files, written and opened without holding it in memory.

``indptr.npy``, ``indices.npy`` and ``data.npy`` are the adjacency matrix in CSR form, ``features.npy`` the feature
store, ``labels.npy`` the labels and ``split.npy`` 0, 1 or 2 for training, validation and test nodes; ``meta.json``
holds the rest and is written last, so that a folder without it is an unfinished one.
"""
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from gnncy._check import check_int
from gnncy._files import replacing, write_text
from gnncy.datasets.dataset import GraphDataset, Split
from gnncy.errors import GraphFormatError, StorageError
from gnncy.storage._blocks import read_npy_header

_FORMAT, _VERSION = "gnncy graph", 1
_PIECE = 1 << 16


class _Appendable:
    """A one-dimensional ``.npy`` file that grows; numpy leaves room in the header for its final length."""

    def __init__(self, path: Path, dtype):
        self.dtype, self.length = np.dtype(dtype), 0
        self._file = open(path, "wb")
        self._header()

    def _header(self) -> None:
        np.lib.format.write_array_header_1_0(self._file, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)})

    def append(self, values) -> None:
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.length += len(values)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        with self._file:
            self._file.seek(0)
            self._header()


def write_adjacency(folder: Path, keys: Iterable[np.ndarray], n: int, bits: int, most: int) -> int:
    """Write the matrix of ones whose entries are the ascending ``row << bits | column``, at most ``most``; return
    their number."""
    dtype = index_dtype(most)
    with (replacing(folder / "indptr.npy") as p, replacing(folder / "indices.npy") as i,
          replacing(folder / "data.npy") as d,
          _Appendable(p, dtype) as indptr, _Appendable(i, dtype) as indices, _Appendable(d, np.float32) as data):
        for piece in keys:
            if not piece.size:
                continue
            # Rows that begin at or before the last key; the others begin in a later piece.
            for rows in _ranges(indptr.length, (int(piece[-1]) >> bits) + 1):
                indptr.append(indices.length + np.searchsorted(piece, rows << bits))
            indices.append(piece & ((1 << bits) - 1))
            data.append(np.ones(len(piece), np.float32))
        for rows in _ranges(indptr.length, n + 1):
            indptr.append(np.full(len(rows), indices.length))
        return indices.length


def _ranges(start: int, stop: int) -> Iterator[np.ndarray]:
    for first in range(start, stop, _PIECE):
        yield np.arange(first, min(first + _PIECE, stop))


def index_dtype(most: int):
    """The type of both index arrays of a matrix that may hold ``most`` entries."""
    return np.int32 if most < 2**31 else np.int64


def write_vector(path: Path, pieces: Iterable[np.ndarray], dtype) -> None:
    """Write an array that comes in pieces."""
    with replacing(path) as temporary, _Appendable(temporary, dtype) as array:
        for piece in pieces:
            array.append(piece)


def write_meta(folder: Path, **fields) -> None:
    """Write ``meta.json``, which makes the folder whole."""
    write_text(folder / "meta.json", json.dumps({"format": _FORMAT, "version": _VERSION, **fields}, indent=1) + "\n")


def new_folder(folder: str | os.PathLike) -> Path:
    """Make the folder; one that holds a whole graph is refused, an unfinished one is written over."""
    folder = Path(folder)
    if (folder / "meta.json").exists():
        raise FileExistsError(f"{folder} holds a graph already; remove it or give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.exists():
        if not folder.exists():
            raise FileNotFoundError(f"no such folder: {folder}")
        raise GraphFormatError(f"{folder} has no meta.json: it is not a graph folder, or writing it was cut short; "
                               "write it again")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise GraphFormatError(f"{path} is damaged: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise GraphFormatError(f"{path} does not describe a graph folder (its format is not {_FORMAT!r})")
    try:
        if check_int(meta["version"], "version", 1) > _VERSION:
            raise GraphFormatError(f"{folder} has format version {meta['version']}, this gnncy reads up to {_VERSION}; "
                                   "update gnncy")
        check_int(meta["n_nodes"], "n_nodes", 0, 1 << 60)
        check_int(meta["n_edges"], "n_edges", 0, 1 << 60)
        meta["name"], meta["class_names"], meta["licence"]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, GraphFormatError):
            raise
        raise GraphFormatError(f"{path} is damaged: {error!r}") from error
    return meta


def _load(path: Path, shape: tuple[int, ...] | None = None, mmap_mode=None) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            read_npy_header(file, path)  # numpy's own reader tries to mend what is damaged
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError, StorageError) as error:
        raise GraphFormatError(f"{path} is damaged or truncated: {error}") from error
    if shape is not None and array.shape != shape:
        raise GraphFormatError(f"{path} must have shape {shape} by meta.json, got {array.shape}")
    return array


def open_adjacency(folder: str | os.PathLike) -> csr_array:
    """The adjacency matrix of a graph folder, its arrays memory-mapped read-only."""
    folder = Path(folder)
    meta = _meta(folder)
    n, arcs = meta["n_nodes"], 2 * meta["n_edges"]
    indptr = _load(folder / "indptr.npy", (n + 1,), "r")
    if indptr[-1] != arcs:
        raise GraphFormatError(f"{folder / 'indptr.npy'} ends with {indptr[-1]}, {arcs} entries were expected")
    indices = _load(folder / "indices.npy", (arcs,), "r" if arcs else None)
    data = _load(folder / "data.npy", (arcs,), "r" if arcs else None)
    return csr_array((data, indices, indptr), shape=(n, n))


def open_graph(folder: str | os.PathLike) -> GraphDataset:
    """A graph from a folder that :func:`write_sbm` or :func:`write_rmat` made.

    Parameters
    ----------
    folder : path

    Returns
    -------
    GraphDataset
        The adjacency's arrays are memory-mapped read-only, the features an open
        :class:`~gnncy.storage.FeatureStorage` (close it when done), labels and split are in memory.

    Raises
    ------
    FileNotFoundError
        The folder does not exist.
    GraphFormatError
        It is not a graph folder, was not finished, or a file in it is damaged.

    Examples
    --------
    >>> import tempfile
    >>> from gnncy.datasets import open_graph, write_rmat
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_rmat(folder, 8, n_features=16)
    ...     data = open_graph(folder)
    ...     data.features.close()
    ...     data.n_nodes, data.features.shape
    (256, (256, 16))
    """
    from gnncy.storage import FeatureStorage
    folder = Path(folder)
    adjacency = open_adjacency(folder)
    meta = _meta(folder)
    n = meta["n_nodes"]
    labels = _load(folder / "labels.npy", (n,))
    split = Split.from_parts(_load(folder / "split.npy", (n,)))
    features = FeatureStorage.open(folder / "features.npy")
    return GraphDataset(meta["name"], adjacency, features, labels, tuple(meta["class_names"]), split, meta["licence"])
