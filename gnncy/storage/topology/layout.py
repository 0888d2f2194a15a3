"""How a graph lies in a folder: ``indptr.npy``, ``indices.npy``, perhaps ``data.npy``, and a manifest."""
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gnncy._check import check_int
from gnncy._files import fsync_directory
from gnncy.errors import GraphFormatError, StorageError
from gnncy.storage._blocks import PAGE, npy_header, read_npy_header, write_all
from gnncy.storage.layout import checksums

FORMAT, VERSION, MANIFEST = "gnncy-topology", 1, "topology.json"
NAMES = ("indptr", "indices", "data")
MOST = 3_037_000_499  # nodes: the square is less than 2**63
_PIECE = 1 << 16


class ArrayFile(NamedTuple):
    """One array of a graph: where it is, its length and type, and its first byte."""

    path: Path
    length: int
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        return self.length * self.dtype.itemsize


class Layout(NamedTuple):
    """What a folder holds."""

    files: dict[str, ArrayFile]
    summed: bool  # tables of checksums lie beside the files
    symmetric: bool | None  # None where it is not known

    @property
    def n_nodes(self) -> int:
        return self.files["indptr"].length - 1

    @property
    def nnz(self) -> int:
        return self.files["indices"].length


def table_of(path: Path) -> Path:
    """Where the checksums of an array are."""
    return path.with_name(path.stem + ".crc32.npy")


def read_layout(folder: Path) -> Layout:
    """The arrays of a folder, their headers held against each other and against the manifest, if there is one."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    files, headers = {}, {}
    for name in NAMES:
        path = folder / f"{name}.npy"
        try:
            with open(path, "rb") as file:
                shape, dtype, offset, headers[name] = read_npy_header(file, path)
        except (FileNotFoundError, NotADirectoryError):
            if name == "data":
                continue
            raise StorageError(f"{path}: missing, so {folder} is not a graph on disk, or writing it was cut short; "
                               f"make one with GraphStorage.create or from_edges") from None
        kinds = ("float32", "float64") if name == "data" else ("int32", "int64")
        if len(shape) != 1 or dtype.name not in kinds or dtype.byteorder == ">":
            raise StorageError(f"{path}: an array of shape {shape} and dtype {dtype}, need one axis of "
                               f"{' or '.join(kinds)}; write the graph again with GraphStorage.create")
        files[name] = ArrayFile(path, shape[0], dtype, offset)
    summed = (folder / MANIFEST).exists()
    # The folders of generators hold graphs of edges, each in both directions.
    layout = Layout(files, summed, True if (folder / "meta.json").exists() and not summed else None)
    if layout.files["indptr"].length == 0 or "data" in files and files["data"].length != layout.nnz:
        weights = files["data"].length if "data" in files else "no"
        raise StorageError(f"{folder}: {files['indptr'].length} row starts, {layout.nnz} indices and {weights} weights "
                           f"do not belong together; restore the folder from a copy")
    return layout._replace(symmetric=_read_manifest(folder / MANIFEST, layout, headers)) if summed else layout


def _read_manifest(path: Path, layout: Layout, headers: dict[str, int]) -> bool:
    """Hold the files against the manifest; whether the graph is symmetric."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        name, version = meta["format"], meta["version"]
        if (name, version) == (FORMAT, VERSION):
            said = {key: meta[key] for key in ("n_nodes", "nnz", "headers", "extent_bytes")}
            symmetric = bool(meta["symmetric"])
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: damaged or foreign ({error!r}); restore the folder from a copy") from None
    if name != FORMAT:
        raise StorageError(f"{path}: its format is {name!r}, need {FORMAT!r}; it belongs to another program")
    if version != VERSION:
        raise StorageError(f"{path}: format version {version!r}, this gnncy reads version {VERSION}; update gnncy or "
                           f"create the graph again")
    found = {"n_nodes": layout.n_nodes, "nnz": layout.nnz, "headers": headers, "extent_bytes": checksums.EXTENT}
    if said != found:
        raise StorageError(f"{path.parent}: the headers of its files ({found}) are not those that {path.name} "
                           f"describes ({said}); restore the folder from a copy")
    return symmetric


class GraphWriter:
    """A graph on its way to disk, row after row."""

    def __init__(self, folder: Path, n_nodes: int, weights, symmetric: bool):
        if n_nodes > MOST:
            raise GraphFormatError(f"n_nodes must be at most {MOST}, got {n_nodes}")
        self.folder, self.n_nodes, self.symmetric = folder, n_nodes, symmetric
        self.dtypes = {"indptr": np.dtype("<i8"),
                       "indices": np.dtype("<i4" if n_nodes <= np.iinfo(np.int32).max else "<i8")}
        if weights is not None:
            self.dtypes["data"] = np.dtype(weights).newbyteorder("<")
        self._sizes = dict.fromkeys(self.dtypes, 0)
        self._sums = {name: checksums.RunningChecksums() for name in self.dtypes}
        self._fds: dict[str, int] = {}

    def __enter__(self) -> "GraphWriter":
        for name in self.dtypes:
            self._fds[name] = os.open(self.folder / f"{name}.npy", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        return self

    def append(self, rows: np.ndarray | None, columns: np.ndarray, weights: np.ndarray | None) -> None:
        """The next arcs. ``rows`` are theirs, ascending; None if row starts are given by :meth:`start_rows`."""
        if rows is not None and len(rows):
            # Rows that begin at or before the last arc; the others begin in a later piece.
            for some in _ranges(self._sizes["indptr"], int(rows[-1]) + 1):
                self.start_rows(self._sizes["indices"] + np.searchsorted(rows, some))
        self._write("indices", columns)
        if "data" in self.dtypes:
            assert weights is not None
            self._write("data", weights)

    def start_rows(self, starts: np.ndarray) -> None:
        """Where the next rows begin."""
        self._write("indptr", starts)

    def finish(self) -> None:
        """Write what is left: the starts of empty rows, headers, checksums, the manifest."""
        for some in _ranges(self._sizes["indptr"], self.n_nodes + 1):
            self.start_rows(np.full(len(some), self._sizes["indices"]))
        headers = {}
        for name, fd in self._fds.items():
            path = self.folder / f"{name}.npy"
            write_all(fd, path, npy_header((self._sizes[name],), self.dtypes[name]), 0)
            os.fsync(fd)
            with open(path, "rb") as file:
                headers[name] = read_npy_header(file, path)[3]
            checksums.save_table(table_of(path), self._sums[name].table())
        with open(self.folder / MANIFEST, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "version": VERSION, "n_nodes": self.n_nodes, "nnz": self._sizes["indices"],
                       "symmetric": self.symmetric, "headers": headers, "extent_bytes": checksums.EXTENT}, file,
                      indent=1)
            file.flush()
            os.fsync(file.fileno())
        fsync_directory(self.folder)

    def _write(self, name: str, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, self.dtypes[name])
        if values.size:
            offset = PAGE + self._sizes[name] * values.itemsize
            write_all(self._fds[name], self.folder / f"{name}.npy", values, offset)
            self._sums[name].add(values)
            self._sizes[name] += values.size

    def __exit__(self, *error) -> None:
        for fd in self._fds.values():
            os.close(fd)


def _ranges(start: int, stop: int) -> Iterator[np.ndarray]:
    for first in range(start, stop, _PIECE):
        yield np.arange(first, min(first + _PIECE, stop))


@contextmanager
def writing(path, n_nodes: int, weights, symmetric: bool, overwrite: bool) -> Iterator[GraphWriter]:
    """A new folder for a graph to be written to; it appears at the end, whole. ``weights`` is their type, or None."""
    path, n_nodes = Path(path), check_int(n_nodes, "n_nodes", 0)
    if path.exists():
        if not overwrite:
            raise FileExistsError(f"{path} already exists; pass overwrite=True to replace it")
        if not path.is_dir() or any(path.iterdir()) and not (path / MANIFEST).exists():
            raise StorageError(f"{path} is not a graph that GraphStorage wrote and is left alone; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    beside.mkdir()
    try:
        with GraphWriter(beside, n_nodes, weights, symmetric) as writer:
            yield writer
            writer.finish()
        if path.exists():
            old = beside.with_suffix(".old")
            path.rename(old)
            beside.rename(path)
            shutil.rmtree(old)
        else:
            beside.rename(path)
        fsync_directory(path.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
