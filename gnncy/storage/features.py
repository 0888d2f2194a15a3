"""Dense features on disk: a standard ``.npy`` file, read by coalesced positional reads."""
import errno
import fcntl
import json
import os
import sys
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from gnncy._check import check_choice, check_finite, check_ids, check_int
from gnncy._files import fsync_directory, replacing, write_text
from gnncy._memory import available, format_bytes
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.storage._blocks import (
    PAGE,
    BlockFile,
    IOStatistics,
    ahead,
    ascending,
    direct_empty,
    npy_header,
    read_npy_header,
)

if TYPE_CHECKING:
    from gnncy.storage.plans import DiskModel

FORMAT = "gnncy-features"
VERSION = 1
_CHUNK = 8 * 1024 * 1024  # bytes of rows that streaming calls hold by default
_SLICE = 1 << 17  # rows whose reads are planned at once
_WIDEN = 2 * 1024 * 1024  # bytes of narrow rows that are read before they are widened


class FeatureStorage:
    """Rows of node features in a standard ``.npy`` file, read by node id without loading the file.

    The file is what ``np.save`` writes, with its header padded so that rows begin at byte 4096;
    ``np.load(path, mmap_mode="r")`` opens it. Beside it lie ``<path>.json`` (format version, shape, order and
    checksum of the header) and, if rows are stored in another order than that of the ids, ``<path>.order.npy``;
    move the files together. Reads are positional, coalesced and thread-safe, and never map the file. float16 rows
    are widened to float32 on the way in.

    Plain ``.npy`` files with two dimensions, C order and a float dtype open read-only.

    Parameters
    ----------
    path : path-like
        The ``.npy`` file.
    mode : {"r", "r+"}
        Read, or read and write. A file has one writer at a time (an advisory lock).
    io_threads : int or None
        Requests that one call has in flight. None means as many as the disk serves best, and the threads of the
        surrounding work for what is in the page cache. The result is the same.
    direct : bool or None
        Read past the page cache (``O_DIRECT``), where the file system allows it. None means for a file that is larger
        than the page cache could get. The result is the same.
    disk : DiskModel, optional
        What the disk costs, for the planning of reads; by default that of an earlier
        :func:`~gnncy.storage.plans.calibrate`. The result is the same.

    Attributes
    ----------
    path : pathlib.Path
    mode : str
    dtype : numpy.dtype
        Of the rows as they are read: float32 or float64.
    file_dtype : numpy.dtype
        Of the rows in the file.
    finite_checked : bool
        Whether every row was checked for nan and infinity when it was written.
    stats : IOStatistics
        Bytes, operations and seconds since the file was opened.

    Raises
    ------
    StorageError
        If the file is truncated, damaged, foreign, of an unsupported form, or locked by another writer.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import FeatureStorage
    >>> x = np.arange(12, dtype=np.float32).reshape(4, 3)
    >>> with FeatureStorage.from_array(x, "features.npy", order=[3, 1, 0, 2]) as store:
    ...     store.read_batch([2, 0, 2])
    array([[6., 7., 8.],
           [0., 1., 2.],
           [6., 7., 8.]], dtype=float32)
    >>> np.load("features.npy")[0]
    array([ 9., 10., 11.], dtype=float32)
    """

    ndim = 2

    def __init__(self, path, mode: str = "r", *, io_threads: int | None = None, direct: bool | None = None,
                 disk: "DiskModel | None" = None):
        self._file: BlockFile | None = None
        self.path = Path(path)
        self.mode = check_choice(mode, "mode", ("r", "r+"))
        self.io_threads = None if io_threads is None else check_int(io_threads, "io_threads", 1)
        self._direct, self._disk = direct, disk
        self.stats = IOStatistics()
        self._writer = os.getpid() if mode == "r+" else 0
        self._dirty = False
        self._attaching = threading.Lock()
        self._attach()

    def _attach(self) -> None:
        """Open and validate the file; sets everything that depends on what it holds."""
        writes = self._writer == os.getpid()
        opened = BlockFile(self.path, os.O_RDWR if writes else os.O_RDONLY, direct=self._direct, disk=self._disk,
                           io_threads=self.io_threads, stats=self.stats)
        try:
            if writes:
                _lock(opened.fd, self.path)
            with open(opened.fd, "rb", closefd=False) as file:
                shape, file_dtype, offset, crc = read_npy_header(file, self.path)
            if file_dtype.kind != "f" or file_dtype.itemsize > 8:
                raise StorageError(f"{self.path}: rows of dtype {file_dtype}, need float16, float32 or float64; copy "
                                   f"it with FeatureStorage.from_array(np.load(path, mmap_mode='r'), new_path)")
            if len(shape) != 2 or 0 in shape:
                raise StorageError(f"{self.path}: an array of shape {shape}, need (n_nodes, dim) with at least one row "
                                   f"and column; reshape it and save it again")
            meta = _read_sidecar(self.path, shape, file_dtype, crc)
            if meta is None and writes:
                raise StorageError(f"{self.path}: a plain .npy file without its sidecar {_sidecar(self.path).name} "
                                   f"opens read-only; use mode='r', or copy it with FeatureStorage.from_array")
            position = None if meta is None or meta["order"] is None else _read_order(self.path, shape[0], meta)
        except BaseException:
            opened.close()
            raise
        self._file, self._pid = opened, os.getpid()
        self._shape, self.file_dtype, self._offset, self._position = shape, file_dtype, offset, position
        self.dtype = np.dtype(np.float64 if file_dtype.itemsize == 8 else np.float32)
        self.finite_checked = bool(meta and meta["finite"])
        self._row_bytes = shape[1] * file_dtype.itemsize

    # Making one

    @classmethod
    def open(cls, path, mode: str = "r", **options) -> "FeatureStorage":
        """The storage at ``path``; the same as calling the class."""
        return cls(path, mode, **options)

    @classmethod
    def create(cls, path, n_nodes: int, dim: int, *, dtype=np.float32, order=None,
               overwrite: bool = False) -> "FeatureStorage":
        """A new file of zeros, opened for writing.

        The whole file is reserved on disk before it appears at ``path``, so a full disk is an error at once;
        rows are then written in place.

        Parameters
        ----------
        path : path-like
        n_nodes, dim : int
        dtype : float16, float32 or float64
        order : array of int, shape (n_nodes,), optional
            Node whose row is stored at each place; ids order if not given.
        overwrite : bool
            Replace a file that is already there.

        Raises
        ------
        FileExistsError
            If ``path`` exists and ``overwrite`` is False.
        StorageError
            If the disk is full, or the file to replace is open for writing.
        """
        shape = (check_int(n_nodes, "n_nodes", 1), check_int(dim, "dim", 1))
        with _writing(path, shape, dtype, order, overwrite):
            pass
        return cls(path, "r+")

    @classmethod
    def from_array(cls, array, path, *, order=None, dtype=None, chunk_rows: int | None = None,
                   overwrite: bool = False) -> "FeatureStorage":
        """Copy an array to disk in chunks, and open it for reading.

        Parameters
        ----------
        array : array-like, shape (n_nodes, dim)
            Anything with a shape whose slices are rows: ndarray, memmap, another storage, an HDF5 or zarr array.
        path : path-like
            Whole or absent: the file is written under a temporary name and renamed.
        order : array of int, shape (n_nodes,), optional
            Node whose row is stored at each place, for example ``gnncy.graph.bfs_order(adjacency)``.
        dtype : float16, float32 or float64, optional
            Of the file; by default that of ``array``, and float32 for integers.
        chunk_rows : int, optional
            Rows held in memory at a time; about 8 MiB of them by default.
        overwrite : bool
            Replace a file that is already there.

        Raises
        ------
        ValueError
            If a row holds nan or infinity; nothing is left at ``path``.
        """
        if sp.issparse(array) or hasattr(array, "nnz"):
            raise TypeError("from_array needs dense rows, got sparse features; keep them sparse with "
                            "SparseFeatureStorage.from_csr(features, path)")
        if not hasattr(array, "shape"):
            array = np.asarray(array)
        _check_shape(array.shape, "array")
        shape = int(array.shape[0]), int(array.shape[1])
        if dtype is None:
            given = np.dtype(getattr(array, "file_dtype", array.dtype))
            dtype = given.newbyteorder("=") if given.kind == "f" and given.itemsize <= 8 else np.float32
        step = _chunk_rows(chunk_rows, shape[1], dtype)
        with _writing(path, shape, dtype, order, overwrite) as writer:
            for start in range(0, shape[0], step):
                writer.put(start, array[start:start + step])
        return cls(path)

    @classmethod
    def from_blocks(cls, path, shape, blocks: Iterable, *, order=None, dtype=np.float32,
                    overwrite: bool = False) -> "FeatureStorage":
        """Write blocks of rows that come one after the other, in storage order, and open the file for reading.

        Parameters
        ----------
        path : path-like
            Whole or absent, as in :meth:`from_array`.
        shape : (int, int)
            Rows and columns in all.
        blocks : iterable of arrays, each shape (rows, dim)
        order, dtype, overwrite
            As in :meth:`from_array`; block rows follow ``order``.

        Raises
        ------
        ValueError
            If the blocks do not add up to ``shape``, or hold nan or infinity.
        """
        _check_shape(shape, "shape")
        shape = check_int(shape[0], "shape", 1), check_int(shape[1], "shape", 1)
        with _writing(path, shape, dtype, order, overwrite) as writer:
            start = 0
            for block in blocks:
                start += writer.append(start, block)
            if start != shape[0]:
                raise ValueError(f"blocks hold {start} rows in all, shape {shape} needs {shape[0]}")
        return cls(path)

    # What it is

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._shape

    @property
    def n_nodes(self) -> int:
        """Number of rows."""
        return self._shape[0]

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self._shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in the file."""
        return self.n_nodes * self._row_bytes

    @property
    def order(self) -> np.ndarray | None:
        """Node id stored at each place; None if rows lie in the order of the ids."""
        return None if self._position is None else _invert(self._position).astype(np.int64)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._file is None

    @property
    def direct(self) -> bool:
        """Whether reads go past the page cache."""
        return self._opened().direct

    def __len__(self) -> int:
        return self.n_nodes

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.mode
        order = "" if self._position is None else ", ordered"
        return (f"FeatureStorage({str(self.path)!r}, {self.n_nodes} x {self.dim} {self.file_dtype.name}{order}, "
                f"{format_bytes(self.nbytes)}, {state})")

    # Reading

    def read_batch(self, ids, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of the given nodes, in the given order.

        Parameters
        ----------
        ids : array of int, shape (k,), or boolean mask, shape (n_nodes,)
            Any order, repeats allowed.
        out : ndarray, shape (k, dim), optional
            C-contiguous array of this storage's ``dtype`` to write to.

        Returns
        -------
        ndarray, shape (k, dim)
            ``out`` if it was given.

        Raises
        ------
        IndexError
            If an id is out of range.
        StorageError
            If the file cannot be read; its ``errno`` is that of the failed call.
        """
        ids = check_ids(ids, self.n_nodes, "ids")
        return self._gather(ids if self._position is None else self._position[ids], self._target(out, len(ids)))

    take = read_batch

    def read_features(self, node: int) -> np.ndarray:
        """The row of one node, shape (dim,)."""
        return self.read_batch([check_int(node, "node")])[0]

    def read_rows(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows ``start .. stop - 1`` in storage order, read sequentially."""
        start = check_int(start, "start", 0, self.n_nodes)
        stop = check_int(stop, "stop", start, self.n_nodes)
        out = self._target(out, stop - start)
        narrow = self.file_dtype != out.dtype
        step = max(1, (_WIDEN // self._row_bytes) if narrow else stop - start)
        for low in range(start, stop, step):
            rows = out[low - start:low - start + step]
            target = np.empty(rows.shape, self.file_dtype) if narrow else rows
            self._opened().read_range(self._offset + low * self._row_bytes, target)
            if narrow:
                rows[...] = target
        return out

    def iter_rows(self, chunk_rows: int | None = None, *, drop_cache: bool = False,
                  read_ahead: int = 0, reuse: bool = False) -> Iterator[np.ndarray]:
        """Blocks of rows in storage order, each a new array.

        Parameters
        ----------
        chunk_rows : int, optional
            Rows in a block; about 8 MiB of them by default.
        drop_cache : bool
            Tell the system that the pages just read are not needed again, so that a pass over a large file
            does not push everything else out of the page cache.
        read_ahead : int
            Blocks that are read while one is in use, and held in memory beside it.
        reuse : bool
            Blocks share ``read_ahead + 1`` arrays, made once: each is overwritten when the next one is asked for.
        """
        step = min(_chunk_rows(chunk_rows, self.dim, self.dtype), self.n_nodes)
        depth = check_int(read_ahead, "read_ahead", 0)
        own = [self._target(None, step) for _ in range(depth + 1)] if reuse else []

        def block(k: int) -> np.ndarray:
            start = k * step
            stop = min(start + step, self.n_nodes)
            rows = self.read_rows(start, stop, own[k % len(own)][:stop - start] if own else None)
            if drop_cache:
                self._opened().drop(self._offset + start * self._row_bytes, (stop - start) * self._row_bytes)
            return rows

        return ahead(block, -(-self.n_nodes // step), depth)

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, slice):
            start, stop, step = key.indices(self.n_nodes)
            if self._position is None and step == 1:
                return self.read_rows(start, max(start, stop))
            return self.read_batch(np.arange(start, stop, step))
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            if not -self.n_nodes <= key < self.n_nodes:
                raise IndexError(f"index {key} is out of range for {self.n_nodes} rows")
            return self.read_features(int(key) % self.n_nodes)
        if isinstance(key, tuple):
            raise TypeError("a FeatureStorage is indexed by rows only; select columns of the rows that come back")
        ids = np.asarray(key)
        if ids.dtype.kind == "i" and ids.size and ids.min() < 0:
            ids = np.where(ids < 0, ids + self.n_nodes, ids)
        return self.read_batch(ids)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("the rows are on disk: an array of them is always a copy")
        need = self.n_nodes * self.dim * self.dtype.itemsize
        if need > available():
            raise MemoryLimitError(f"all rows of {self.path} need {format_bytes(need)}, {format_bytes(available())} "
                                   f"are available; read them in parts with read_batch or iter_rows")
        rows = self[:]
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def _target(self, out, n: int) -> np.ndarray:
        shape = (n, self.dim)
        if out is None:
            return direct_empty(shape, self.dtype) if self.direct else np.empty(shape, self.dtype)
        if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != self.dtype:
            raise ValueError(f"out must be an array of shape {shape} and dtype {self.dtype}, got "
                             f"{getattr(out, 'shape', type(out).__name__)} {getattr(out, 'dtype', '')}")
        if not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError("out must be C-contiguous and writeable")
        return out

    def _gather(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        size = self._row_bytes
        rows, place = ascending(rows)
        narrow = self.file_dtype != out.dtype
        step = max(1, _WIDEN // size) if narrow else _SLICE
        for low in range(0, len(rows), step):
            some, own = rows[low:low + step], place[low:low + step]
            target = np.empty((len(some), self.dim), self.file_dtype) if narrow else out
            self._opened().gather(some * size + self._offset, np.broadcast_to(np.int64(size), len(some)),
                                  (np.arange(len(some)) if narrow else own) * size, target)
            if narrow:
                out[own] = target
        return out

    # Writing

    def write_features(self, ids, rows) -> None:
        """Write rows of the given nodes in place.

        Parameters
        ----------
        ids : array of int, shape (k,), boolean mask, or one int
            Of repeats the last row stays.
        rows : array-like, shape (k, dim), or (dim,) for one id

        Raises
        ------
        ValueError
            If the shape is wrong or a value is not finite in the file's dtype; nothing is written then.
        StorageError
            If the storage was opened read-only, or the write fails.
        """
        self._check_writer()
        if isinstance(ids, (int, np.integer)):
            ids, rows = [ids], np.asarray(rows)[None]
        ids = check_ids(ids, self.n_nodes, "ids")
        rows = _rows(rows, self.dim, self.file_dtype, "rows")
        if len(rows) != len(ids):
            raise ValueError(f"rows must have one row for each of the {len(ids)} ids, got shape {rows.shape}")
        file = self._opened()
        self._dirty = True
        _scatter(file, self._offset, ids if self._position is None else self._position[ids], rows)

    def flush(self) -> None:
        """Wait until everything written is on the disk (fsync)."""
        if self._dirty:
            self._check_writer()
            self._opened().sync()
            self._dirty = False

    # Its life

    def _check_writer(self) -> None:
        if self.mode != "r+":
            raise StorageError(f"{self.path} is open read-only; open it with mode='r+' to write")
        if self._writer != os.getpid():
            raise StorageError(f"{self.path} is open for writing in process {self._writer}, from which this one was "
                               f"forked; write there, or open it again here after closing it there")

    def _opened(self) -> BlockFile:
        if self._file is None:
            raise ValueError(f"{self.path}: the storage is closed; open it again")
        if self._pid != os.getpid():
            with self._attaching:
                self._attach_again()
        return self._file

    def _attach_again(self) -> None:
        # A forked child has the parent's descriptor, and with it the parent's lock: it reads through its own.
        if self._file is None or self._pid == os.getpid():
            return
        inherited, before = self._file, (self._shape, self.file_dtype)
        self._attach()
        inherited.close()
        if (self._shape, self.file_dtype) != before:
            raise StorageError(f"{self.path} was replaced by another file while open; open it again")

    def close(self) -> None:
        """Flush what was written and let go of the file. Closing twice does nothing."""
        if self._file is None:
            return
        try:
            if self._writer == os.getpid():
                self.flush()
        finally:
            file, self._file = self._file, None
            file.close()

    def __enter__(self) -> "FeatureStorage":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __del__(self):
        if getattr(self, "_file", None) is not None and not sys.is_finalizing():
            if self._pid == os.getpid():
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __reduce__(self):
        return _reopen, (os.path.abspath(self.path), self.mode, {"io_threads": self.io_threads, "direct": self._direct,
                                                                 "disk": self._disk})


def _reopen(path, mode, options):
    return FeatureStorage(path, mode, **options)


class _Writer:
    """Rows on their way into a new file, checked and converted."""

    def __init__(self, file: BlockFile, shape, dtype: np.dtype, position: np.ndarray | None):
        self.file, self.shape, self.dtype, self.position = file, shape, dtype, position

    def append(self, start: int, block) -> int:
        """Write rows in storage order; returns how many there were."""
        rows = _rows(block, self.shape[1], self.dtype, f"the block at row {start}")
        if start + len(rows) > self.shape[0]:
            raise ValueError(f"blocks hold at least {start + len(rows)} rows, shape {self.shape} needs {self.shape[0]}")
        self.file.write(rows, PAGE + start * self.shape[1] * self.dtype.itemsize)
        return len(rows)

    def put(self, start: int, block) -> None:
        """Write rows of the ids from ``start``."""
        if self.position is None:
            self.append(start, block)
        else:
            rows = _rows(block, self.shape[1], self.dtype, f"the block at row {start}")
            _scatter(self.file, PAGE, self.position[start:start + len(rows)], rows)


@contextmanager
def _writing(path, shape: tuple[int, int], dtype, order, overwrite: bool) -> Iterator[_Writer]:
    """A new file, reserved on disk, for rows to be written to; it and what lies beside it appear at the end."""
    path = Path(path)
    dtype = _file_dtype(dtype)
    if shape[0] * shape[1] * dtype.itemsize >= 1 << 62:
        raise ValueError(f"shape {shape} of {dtype} is more than a file can hold")
    position = None if order is None else _invert(_check_order(order, shape[0], "order"))
    if path.exists():
        if not overwrite:
            raise FileExistsError(errno.EEXIST, "already exists; pass overwrite=True to replace it", str(path))
        _refuse_if_written(path)
    header = npy_header(shape, dtype)
    with replacing(path) as temporary:
        with BlockFile(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file:
            file.path = path  # the one that errors shall name
            file.reserve(PAGE + shape[0] * shape[1] * dtype.itemsize)
            file.write(header, 0)
            yield _Writer(file, shape, dtype, position)
        # From here to the new sidecar an ordered file has an order and no sidecar, which `_read_sidecar` refuses:
        # a crash in between can never pair rows with the wrong ids.
        _sidecar(path).unlink(missing_ok=True)
        fsync_directory(path.parent)
        crc = None
        if position is not None:
            stored = _invert(position).astype("<i8")
            crc = zlib.crc32(stored.data)
            with replacing(_order_file(path)) as order_temporary, open(order_temporary, "wb") as file:
                np.save(file, stored)
    if position is None:
        _order_file(path).unlink(missing_ok=True)
    write_text(_sidecar(path), json.dumps({
        "format": FORMAT, "version": VERSION, "shape": list(shape), "dtype": dtype.name, "finite": True,
        "order": None if position is None else _order_file(path).name, "order_crc32": crc,
        "header_crc32": zlib.crc32(header)}, indent=1) + "\n")


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _order_file(path: Path) -> Path:
    return path.with_name(path.name + ".order.npy")


def _read_sidecar(path: Path, shape, dtype: np.dtype, crc: int) -> dict | None:
    """What the sidecar says, checked against the file; None for a plain ``.npy`` file."""
    sidecar = _sidecar(path)
    if not sidecar.exists():
        if _order_file(path).exists():
            raise StorageError(f"{path}: {_order_file(path).name} is there but {sidecar.name} is missing, so the order "
                               f"of the rows is not known (an interrupted write?); create the file again")
        return None
    try:
        meta = json.loads(sidecar.read_text(encoding="utf-8"))
        name, version = meta["format"], meta["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{sidecar}: damaged or foreign ({error}); create the storage again, or remove the "
                           f"file to read {path.name} as a plain array in the order of its rows") from None
    if name != FORMAT:
        raise StorageError(f"{sidecar}: its format is {name!r}, need {FORMAT!r}; it belongs to another program")
    if version != VERSION:
        raise StorageError(f"{sidecar}: format version {version!r}, this gnncy reads version {VERSION}; "
                           f"update gnncy or create the storage again")
    try:
        same = (tuple(meta["shape"]) == shape and np.dtype(meta["dtype"]) == dtype and meta["header_crc32"] == crc)
        meta["finite"], meta["order"], meta["order_crc32"]
    except (KeyError, TypeError) as error:
        raise StorageError(f"{sidecar}: damaged ({error!r}); create the storage again") from None
    if not same:
        raise StorageError(f"{path}: its header ({shape} of {dtype}, checksum {crc:#x}) is not the one that "
                           f"{sidecar.name} describes; one of the two is damaged or was replaced, restore both from a "
                           f"copy")
    return meta


def _read_order(path: Path, n: int, meta: dict) -> np.ndarray:
    """Place of each node's row, from the order file."""
    file = _order_file(path)
    try:
        order = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise StorageError(f"{file}: the order of the rows is missing; restore it from a copy") from None
    except (ValueError, EOFError) as error:
        raise StorageError(f"{file}: damaged or foreign ({error}); restore it from a copy") from None
    if meta["order"] != file.name or order.dtype != "<i8" or zlib.crc32(order.data) != meta["order_crc32"]:
        raise StorageError(f"{file}: not the order that {_sidecar(path).name} describes; restore both from a copy")
    return _invert(_check_order(order, n, str(file)))


def _check_order(order, n: int, name: str) -> np.ndarray:
    order = check_ids(order, n, name)
    seen = np.zeros(n, bool)
    seen[order] = True
    if len(order) != n or not seen.all():
        raise ValueError(f"{name} must hold each of 0..{n - 1} once, got {len(order)} ids, {int(seen.sum())} different")
    return order


def _invert(order: np.ndarray) -> np.ndarray:
    """The inverse permutation, in the narrowest integers that hold it."""
    n = len(order)
    inverse = np.empty(n, np.int32 if n <= np.iinfo(np.int32).max else np.int64)
    inverse[order] = np.arange(n, dtype=inverse.dtype)
    return inverse


def _scatter(file: BlockFile, offset: int, rows: np.ndarray, data: np.ndarray) -> None:
    row_bytes = data.shape[1] * data.itemsize
    rows, place = ascending(rows)
    file.scatter(rows * row_bytes + offset, np.broadcast_to(np.int64(row_bytes), len(rows)), place * row_bytes, data)


def _rows(value, dim: int, dtype: np.dtype, name: str) -> np.ndarray:
    """C-contiguous finite rows of the file's dtype."""
    rows = np.asarray(value)
    if rows.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers, got dtype {rows.dtype}")
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(f"{name} must have shape (n, {dim}), got {rows.shape}")
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(rows, dtype=dtype)
    if rows.size:
        check_finite(rows, f"{name}, as {dtype.name},")
    return rows


def _check_shape(shape, name: str) -> None:
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} must be (n_nodes, dim) with at least one row and column, got shape {shape}")


def _file_dtype(dtype) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"dtype must be float16, float32 or float64, got {dtype}")
    return dtype.newbyteorder("<")


def _chunk_rows(chunk_rows: int | None, dim: int, dtype) -> int:
    if chunk_rows is None:
        return max(1, _CHUNK // (dim * np.dtype(dtype).itemsize))
    return check_int(chunk_rows, "chunk_rows", 1)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise StorageError(error.errno, "already open for writing, here or in another process; close it there "
                                        "or open it with mode='r'", str(path)) from None


def _refuse_if_written(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        _lock(fd, path)
    finally:
        os.close(fd)
