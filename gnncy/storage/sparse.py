"""Sparse features on disk: the three arrays of a CSR matrix in a directory."""
import glob
import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from gnncy._check import check_finite, check_ids, check_int
from gnncy._files import fsync_directory, in_use, new_temporary, release, remove_temporaries
from gnncy._memory import format_bytes
from gnncy.errors import StorageError
from gnncy.storage._blocks import (
    PAGE,
    BlockFile,
    IOStatistics,
    ascending,
    npy_header,
    read_npy_header,
    write_all,
)
from gnncy.storage.layout import checksums
from gnncy.storage.layout.checksums import VerifyReport

if TYPE_CHECKING:
    from gnncy.storage.plans import DiskModel

if TYPE_CHECKING:
    from gnncy.storage.plans import DiskModel

FORMAT = "gnncy-sparse-features"
VERSION = 2
_CHUNK = 8 * 1024 * 1024


class SparseFeatureStorage:
    """Rows of sparse features in a directory, read by node id without loading them all.

    ``indptr.npy``, ``indices.npy`` and ``data.npy`` are the arrays of a CSR matrix (each opens with ``np.load``),
    ``meta.json`` says what they are. The row pointers, 8 bytes for each node, are held in memory. Read-only.

    Parameters
    ----------
    path : path-like
        The directory.
    io_threads : int or None
    direct : bool or None
    disk : DiskModel, optional
        How the files are read, as in :class:`FeatureStorage`.

    Attributes
    ----------
    path : pathlib.Path
    dtype : numpy.dtype
        float32 or float64.
    index_dtype : numpy.dtype
        Of the column indices: int32 if they fit.
    stats : IOStatistics

    Raises
    ------
    StorageError
        If a file is truncated, damaged, foreign or of an unsupported version.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from gnncy.storage import SparseFeatureStorage
    >>> x = csr_array(np.array([[0, 1, 0], [2, 0, 3], [0, 0, 0]], dtype=np.float32))
    >>> with SparseFeatureStorage.from_csr(x, "words") as store:
    ...     store.read_batch([1, 0, 1]).toarray()
    array([[2., 0., 3.],
           [0., 1., 0.],
           [2., 0., 3.]], dtype=float32)
    """

    ndim = 2

    def __init__(self, path, *, io_threads: int | None = None, direct: bool | None = None,
                 disk: "DiskModel | None" = None):
        self._files: tuple[BlockFile, BlockFile] | None = None
        self.path = Path(path)
        self.io_threads = None if io_threads is None else check_int(io_threads, "io_threads", 1)
        self._direct, self._disk = direct, disk
        self.stats = IOStatistics()
        self._attaching = threading.Lock()
        meta = _read_meta(self.path)
        arrays = {name: _read_header(self.path / f"{name}.npy") for name in ("indptr", "indices", "data")}
        n, dim, nnz = meta["shape"][0], meta["shape"][1], meta["nnz"]
        for name, size, kinds in (("indptr", n + 1, ("int64",)), ("indices", nnz, ("int32", "int64")),
                                  ("data", nnz, ("float32", "float64"))):
            shape, dtype, _ = arrays[name]
            if shape != (size,) or dtype.name not in kinds or dtype.byteorder == ">":
                raise StorageError(f"{self.path / name}.npy: an array of shape {shape} and dtype {dtype}, {_META} "
                                   f"needs ({size},) of {' or '.join(kinds)}; restore the directory from a copy")
        self._indptr = np.load(self.path / "indptr.npy")
        if self._indptr[0] != 0 or self._indptr[-1] != nnz or (np.diff(self._indptr) < 0).any():
            raise StorageError(f"{self.path / 'indptr.npy'}: row pointers do not ascend from 0 to {nnz}, the file is "
                               f"damaged; restore the directory from a copy")
        self.shape: tuple[int, int] = (n, dim)
        self.nnz: int = nnz
        self._summed = meta["version"] >= 2
        self.index_dtype, self.dtype = arrays["indices"][1], arrays["data"][1]
        self._offsets = arrays["indices"][2], arrays["data"][2]
        self._attach()

    def _attach(self) -> None:
        def opened(name: str) -> BlockFile:
            return BlockFile(self.path / name, direct=self._direct, disk=self._disk, io_threads=self.io_threads,
                             stats=self.stats)

        first = opened("indices.npy")
        try:
            self._files = first, opened("data.npy")
        except BaseException:
            first.close()
            raise
        self._pid = os.getpid()

    @classmethod
    def open(cls, path, **options) -> "SparseFeatureStorage":
        """The storage at ``path``; the same as calling the class."""
        return cls(path, **options)

    @classmethod
    def from_csr(cls, matrix, path, *, overwrite: bool = False) -> "SparseFeatureStorage":
        """Write a sparse matrix of any format to disk and open it.

        Parameters
        ----------
        matrix : sparse array or matrix, shape (n_nodes, dim)
            Left as it is; duplicate entries are summed. float64 is kept, other types become float32.
        path : path-like
            Directory to make; whole or absent.
        overwrite : bool
            Replace a storage that is already there.

        Raises
        ------
        ValueError
            If a value is nan or infinite.
        """
        if not sp.issparse(matrix):
            raise TypeError(f"matrix must be a scipy.sparse array, got {type(matrix).__name__}; "
                            f"use FeatureStorage.from_array for dense rows")
        return cls.from_blocks(path, matrix.shape[1], [matrix], dtype=_value_dtype(matrix.dtype), overwrite=overwrite)

    @classmethod
    def from_blocks(cls, path, dim: int, blocks: Iterable, *, dtype=np.float32,
                    overwrite: bool = False) -> "SparseFeatureStorage":
        """Write sparse blocks of rows that come one after the other, and open the storage.

        Parameters
        ----------
        path : path-like
            Directory to make; whole or absent.
        dim : int
            Columns.
        blocks : iterable of sparse arrays, each shape (rows, dim)
        dtype : float32 or float64
        overwrite : bool
            Replace a storage that is already there.
        """
        path, dim = Path(path), check_int(dim, "dim", 1)
        if np.dtype(dtype).name not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
        _finish_interrupted(path)
        if path.exists():
            if not overwrite:
                raise FileExistsError(f"{path} already exists; pass overwrite=True to replace it")
            if not path.is_dir() or any(path.iterdir()) and not (path / _META).exists():
                raise StorageError(f"{path} is not a sparse feature storage and is left alone; choose another path")
        remove_temporaries(path.parent, glob.escape(path.name))
        beside, alive = new_temporary(path, folder=True)
        try:
            _write(beside, dim, np.dtype(dtype).newbyteorder("<"), blocks)
            if path.exists():
                old = beside.with_suffix(".old")
                path.rename(old)
                try:
                    beside.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                shutil.rmtree(old)
            else:
                beside.rename(path)
            fsync_directory(path.parent)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        finally:
            release(alive)
        return cls(path)

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays on disk."""
        return self._indptr.nbytes + self.nnz * (self.index_dtype.itemsize + self.dtype.itemsize)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._files is None

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return (f"SparseFeatureStorage({str(self.path)!r}, {self.shape[0]} x {self.shape[1]} {self.dtype.name}, "
                f"{self.nnz} stored, {format_bytes(self.nbytes)}{', closed' if self.closed else ''})")

    def read_batch(self, ids) -> sp.csr_array:
        """Rows of the given nodes, in the given order.

        Parameters
        ----------
        ids : array of int, shape (k,), or boolean mask, shape (n_nodes,)
            Any order, repeats allowed.

        Returns
        -------
        csr_array, shape (k, dim)
        """
        ids = check_ids(ids, self.shape[0], "ids")
        rows, place = ascending(ids)
        size = self._indptr[ids + 1] - self._indptr[ids]
        indptr = np.concatenate([[0], np.cumsum(size)])
        kept = size[place] > 0
        rows, place = rows[kept], place[kept]
        length, start, target = size[place], self._indptr[rows], indptr[place]
        return self._assemble(indptr, lambda file, offset, out: file.gather(
            start * out.itemsize + offset, length * out.itemsize, target * out.itemsize, out))

    take = read_batch

    def read_rows(self, start: int, stop: int) -> sp.csr_array:
        """Rows ``start .. stop - 1``, read sequentially."""
        start = check_int(start, "start", 0, self.shape[0])
        stop = check_int(stop, "stop", start, self.shape[0])
        first = int(self._indptr[start])
        return self._assemble(self._indptr[start:stop + 1] - first, lambda file, offset, out: file.read_range(
            first * out.itemsize + offset, out))

    def iter_rows(self, chunk_rows: int | None = None) -> Iterator[sp.csr_array]:
        """Blocks of rows in their order; ``chunk_rows`` in each, or as many as fill about 8 MiB."""
        if chunk_rows is None:
            chunk_rows = max(1, int(_CHUNK * self.shape[0] / max(1, self.nbytes)))
        step = check_int(chunk_rows, "chunk_rows", 1)
        return (self.read_rows(start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step))

    def verify(self) -> VerifyReport:
        """Read all three arrays from the disk and hold them against their checksums, as :meth:`FeatureStorage.verify`.

        Returns
        -------
        VerifyReport
            True if all was checked and nothing is damaged; else it names the rows.
        """
        n, nnz = self.shape[0], self.nnz
        found: tuple[list, list] = ([], [])
        for name, entries, width in (("indptr", n + 1, 8), ("indices", nnz, self.index_dtype.itemsize),
                                     ("data", nnz, self.dtype.itemsize)):
            table = partial(checksums.load_table, self.path / f"{name}.crc32.npy", entries * width)
            with BlockFile(self.path / f"{name}.npy", direct=True, io_threads=self.io_threads,
                           stats=self.stats) as file:
                extents = checksums.check(file, PAGE, entries * width, table if self._summed else None)
            for ranges, some in zip(found, extents, strict=True):
                ranges += [self._rows_of(name, *span) for span in checksums.row_ranges(some, width, entries)]
        damaged, unchecked = map(checksums.merged, found)
        return VerifyReport(self.path, n, damaged, unchecked, checksums.members(damaged))

    def _rows_of(self, name: str, start: int, stop: int) -> tuple[int, int]:
        """Rows that need the entries ``start .. stop - 1`` of an array."""
        if name == "indptr":
            return max(start - 1, 0), min(stop, self.shape[0])
        return (int(np.searchsorted(self._indptr, start, side="right")) - 1,
                int(np.searchsorted(self._indptr, stop, side="left")))

    def _assemble(self, indptr, read) -> sp.csr_array:
        """A matrix with row pointers ``indptr``, whose other arrays ``read`` fills from the two files."""
        arrays = []
        for file, offset, dtype in zip(self._opened(), self._offsets, (self.index_dtype, self.dtype), strict=True):
            out = np.empty(int(indptr[-1]), dtype)
            read(file, offset, out)
            arrays.append(out)
        indices, data = arrays
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= self.shape[1]):
            raise StorageError(f"{self.path / 'indices.npy'}: column indices outside 0..{self.shape[1] - 1}, the file "
                               f"is damaged; restore the directory from a copy")
        matrix = sp.csr_array((data, indices, indptr.astype(indices.dtype)), shape=(len(indptr) - 1, self.shape[1]))
        matrix.has_sorted_indices = matrix.has_canonical_format = True
        return matrix

    def _opened(self) -> tuple[BlockFile, BlockFile]:
        if self._files is None:
            raise ValueError(f"{self.path}: the storage is closed; open it again")
        if self._pid != os.getpid():
            with self._attaching:
                if self._pid != os.getpid():
                    inherited = self._files
                    self._attach()
                    for file in inherited:
                        file.close()
        return self._files

    def close(self) -> None:
        """Let go of the files. Closing twice does nothing."""
        files, self._files = self._files, None
        for file in files or ():
            file.close()

    def __enter__(self) -> "SparseFeatureStorage":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __del__(self):
        if getattr(self, "_files", None) is not None:
            if self._pid == os.getpid():
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __reduce__(self):
        return _reopen, (os.path.abspath(self.path), {"io_threads": self.io_threads, "direct": self._direct,
                                                      "disk": self._disk})


_META = "meta.json"
_SWAP_SECONDS = 1.0  # for which another process may be between two renames


def _reopen(path, options):
    return SparseFeatureStorage(path, **options)


def _value_dtype(dtype) -> type:
    if np.dtype(dtype).kind not in "fiub":
        raise TypeError(f"features must be real numbers, got dtype {np.dtype(dtype)}")
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


def _canonical(block, dim: int, dtype: np.dtype, start: int) -> sp.csr_array:
    """A block in canonical CSR form, checked; the caller's is left as it is."""
    if not sp.issparse(block):
        raise TypeError(f"blocks must be scipy.sparse arrays, got {type(block).__name__}")
    if block.ndim != 2 or block.shape[1] != dim:
        raise ValueError(f"the block at row {start} must have {dim} columns, got shape {block.shape}")
    _value_dtype(block.dtype)
    csr = sp.csr_array(block)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    if csr.nnz:
        check_finite(csr.data, f"the block at row {start}")
        if int(csr.indices.min()) < 0 or int(csr.indices.max()) >= dim:
            raise ValueError(f"the block at row {start} has column indices outside 0..{dim - 1}")
    return csr.astype(dtype, copy=False)


def _write(folder: Path, dim: int, dtype: np.dtype, blocks: Iterable) -> None:
    index_dtype = np.dtype("<i4" if dim <= np.iinfo(np.int32).max else "<i8")
    dtypes = {"indptr": np.dtype("<i8"), "indices": index_dtype, "data": dtype}
    sizes, sums = dict.fromkeys(dtypes, 0), {name: checksums.RunningChecksums() for name in dtypes}
    fds = {}
    try:
        for name in dtypes:
            fds[name] = os.open(folder / f"{name}.npy", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)

        def append(name: str, values: np.ndarray) -> None:
            values = np.ascontiguousarray(values, dtypes[name])
            if values.size:
                write_all(fds[name], folder / f"{name}.npy", values, PAGE + sizes[name] * dtypes[name].itemsize)
                sums[name].add(values)
                sizes[name] += values.size

        append("indptr", np.zeros(1, np.int64))
        for block in blocks:
            csr = _canonical(block, dim, dtype, sizes["indptr"] - 1)
            append("indptr", csr.indptr[1:].astype(np.int64) + sizes["data"])
            append("indices", csr.indices)
            append("data", csr.data)
        if sizes["indptr"] == 1:
            raise ValueError("no rows: the blocks are empty")
        for name, fd in fds.items():
            write_all(fd, folder / f"{name}.npy", npy_header((sizes[name],), dtypes[name]), 0)
            os.fsync(fd)
            checksums.save_table(folder / f"{name}.crc32.npy", sums[name].table())
    finally:
        for fd in fds.values():
            os.close(fd)
    meta = {"format": FORMAT, "version": VERSION, "shape": [sizes["indptr"] - 1, dim], "nnz": sizes["data"],
            "finite": True}
    with open(folder / _META, "w", encoding="utf-8") as file:
        file.write(checksums.sealed(meta))
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(folder)


def _read_header(path: Path):
    try:
        with open(path, "rb") as file:
            return read_npy_header(file, path)[:3]
    except FileNotFoundError:
        raise StorageError(f"{path}: missing; restore the directory from a copy") from None


def _finish_interrupted(path: Path) -> None:
    """Give a storage its name, and remove the one it replaced, where a process was killed between the two."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
        beside, until = old.with_suffix(".tmp"), time.monotonic() + _SWAP_SECONDS
        while in_use(beside) and time.monotonic() < until:
            time.sleep(1e-3)
        if not path.exists():
            (beside if beside.exists() else old).rename(path)
        if not in_use(path):
            shutil.rmtree(old, ignore_errors=True)


def _read_meta(path: Path) -> dict:
    if not path.exists():
        _finish_interrupted(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such directory")
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
        name, version = meta["format"], meta["version"]
    except (FileNotFoundError, NotADirectoryError):
        raise StorageError(f"{path}: not a sparse feature storage (it has no {_META}); make one with "
                           f"SparseFeatureStorage.from_csr") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path / _META}: damaged or foreign ({error}); restore the directory from a copy") from None
    if name != FORMAT:
        raise StorageError(f"{path / _META}: its format is {name!r}, need {FORMAT!r}; it belongs to another program")
    if version not in (1, VERSION):
        raise StorageError(f"{path / _META}: format version {version!r}, this gnncy reads versions 1 to {VERSION}; "
                           f"update gnncy or create the storage again")
    given = dict(meta)
    try:
        meta["shape"] = [check_int(size, "shape", 1) for size in meta["shape"]]
        check_int(meta["nnz"], "nnz", 0)
        if len(meta["shape"]) != 2:
            raise ValueError(f"shape is {meta['shape']}")
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path / _META}: damaged ({error}); restore the directory from a copy") from None
    if version > 1:
        checksums.check_seal(path / _META, given)
    return meta
