"""Dense features on disk: a standard ``.npy`` file, read by coalesced positional reads."""
import os
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from gnncy._check import check_choice, check_ids, check_int, check_out
from gnncy._kernels import narrow
from gnncy._memory import available, format_bytes, parse_bytes
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.storage._blocks import BlockFile, IOStatistics, ahead, ascending, direct_empty
from gnncy.storage._sidecar import (
    appending,
    check_rows,
    invert,
    scatter_rows,
    sidecar_file,
    table_file,
    unlock,
    writing,
)
from gnncy.storage.layout import checksums
from gnncy.storage.layout.checksums import VerifyReport, WrittenExtents
from gnncy.storage.layout.rewrite import copy_rows, good_rows, reorder_rows, tile_rows
from gnncy.storage.layout.rows import SLICE, RowsFile, open_rows

if TYPE_CHECKING:
    from gnncy.storage.plans import DiskModel

_CHUNK = 8 * 1024 * 1024  # bytes of rows that streaming calls hold by default
_WIDEN = 2 * 1024 * 1024  # bytes of narrow rows that are read before they are widened


class FeatureStorage:
    """Rows of node features in a standard ``.npy`` file, read by node id without loading the file.

    The file is what ``np.save`` writes, with its header padded so that rows begin at byte 4096;
    ``np.load(path, mmap_mode="r")`` opens it. Beside it lie ``<path>.json`` (format version, shape, order),
    ``<path>.crc32.npy`` (checksums of the rows) and, if rows are stored in another order than that of the ids,
    ``<path>.order.npy``; move the files together. Reads are positional, coalesced and thread-safe, and never map the
    file. float16 rows are widened to float32 on the way in.

    Plain ``.npy`` files with two dimensions, C order and a float dtype, and files of the reference layout (a header of
    24 bytes, one row to a block of pages) open read-only; :meth:`convert` rewrites them.

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
    _closed = True  # until a file was opened

    def __init__(self, path, mode: str = "r", *, io_threads: int | None = None, direct: bool | None = None,
                 disk: "DiskModel | None" = None):
        self.path = Path(path)
        self.mode = check_choice(mode, "mode", ("r", "r+"))
        self.io_threads = None if io_threads is None else check_int(io_threads, "io_threads", 1)
        self._direct, self._disk = direct, disk
        self.stats = IOStatistics()
        self._writer = os.getpid() if mode == "r+" else 0
        self._dirty = False
        self._attaching, self._writing = threading.Lock(), threading.RLock()
        self._attach()

    def _attach(self) -> None:
        """Open and validate the file; sets everything that depends on what it holds."""
        rows = open_rows(self.path, self._writer == os.getpid(), self._check_form, direct=self._direct, disk=self._disk,
                         io_threads=self.io_threads, stats=self.stats)
        self._rows, self._pid, self._closed = rows, os.getpid(), False
        self.file_dtype, self.finite_checked = rows.dtype, rows.finite
        self.dtype = np.dtype(np.float64 if rows.dtype.itemsize == 8 else np.float32)

    # How rows lie in the file, which a subclass may change

    _EXTRA = 0  # columns of the file beside those of a row

    def _check_form(self, file_dtype: np.dtype, shape) -> None:
        if file_dtype.kind != "f" or file_dtype.itemsize > 8:
            raise StorageError(f"{self.path}: rows of dtype {file_dtype}, need float16, float32 or float64; copy "
                               f"it with FeatureStorage.from_array(np.load(path, mmap_mode='r'), new_path)")

    @classmethod
    def _new_file(cls, path, shape: tuple[int, int], dtype, order, overwrite: bool):
        return writing(path, shape, dtype, order, overwrite)

    @classmethod
    def _given(cls, path) -> "FeatureStorage":
        """The file that is to be converted."""
        return cls(path)

    _encode = staticmethod(check_rows)

    def _decode(self, stored: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Write rows as they are in the file to places of ``out``."""
        if stored.dtype == np.float16:
            narrow.widen(stored.view(np.uint16), places, out.view(np.uint32))
        else:
            out[places] = stored

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
        with cls._new_file(path, shape, dtype, order, overwrite):
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
        if chunk_rows is None and order is not None:
            step = max(step, good_rows(shape[0], shape[1] * np.dtype(dtype).itemsize))
        with cls._new_file(path, shape, dtype, order, overwrite) as writer:
            copy_rows(writer, array, step)
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
        with cls._new_file(path, shape, dtype, order, overwrite) as writer:
            start = 0
            for block in blocks:
                start += writer.append(start, block)
            if start != shape[0]:
                raise ValueError(f"blocks hold {start} rows in all, shape {shape} needs {shape[0]}")
        return cls(path)

    @classmethod
    def convert(cls, path, new_path=None, *, order=None, dtype=None, chunk_rows: int | None = None,
                overwrite: bool = False) -> "FeatureStorage":
        """Rewrite a file that opens read-only (the reference layout, a plain ``.npy``) as one of this class.

        Parameters
        ----------
        path : path-like
            Any file that this class opens.
        new_path : path-like, optional
            Where to; by default the new file takes the place of the old one, at once and when it is whole.
        order, dtype, chunk_rows
            As in :meth:`from_array`.
        overwrite : bool
            Replace another file at ``new_path``.

        Returns
        -------
        FeatureStorage
            Of the new file, with checksums, every row checked for nan and infinity.

        Raises
        ------
        FileExistsError
            If another file is at ``new_path`` and ``overwrite`` is False.
        StorageError
            If ``path`` does not open, or the disk is full.
        ValueError
            If a row holds nan or infinity.

        Examples
        --------
        >>> import numpy as np
        >>> from gnncy.storage import FeatureStorage
        >>> np.save("plain.npy", np.eye(3, dtype=np.float32))
        >>> with FeatureStorage.convert("plain.npy") as store:
        ...     store.verify().ok
        True
        """
        with cls._given(path) as source:
            new_path = path if new_path is None else new_path
            overwrite = overwrite or os.path.exists(new_path) and os.path.samefile(path, new_path)
            return cls.from_array(source, new_path, order=order, dtype=dtype, chunk_rows=chunk_rows,
                                  overwrite=overwrite)

    # What it is

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._rows.shape[0], self._rows.shape[1] - self._EXTRA

    @property
    def n_nodes(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows in the file."""
        return self._rows.nbytes

    @property
    def order(self) -> np.ndarray | None:
        """Node id stored at each place; None if rows lie in the order of the ids."""
        return None if self._rows.position is None else invert(self._rows.position).astype(np.int64)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def direct(self) -> bool:
        """Whether reads go past the page cache."""
        return self._opened().direct

    def __len__(self) -> int:
        return self.n_nodes

    def __repr__(self) -> str:
        state = "closed" if self.closed else self.mode
        order = "" if self._rows.position is None else ", ordered"
        return (f"{type(self).__name__}({str(self.path)!r}, {self.n_nodes} x {self.dim} {self.file_dtype.name}{order}, "
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
        return self._gather(self._places(ids), self._target(out, len(ids)))

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
        stored = self._on_disk()
        step = max(1, (_WIDEN // stored.row_bytes) if narrow else stop - start)
        for low in range(start, stop, step):
            rows = out[low - start:low - start + step]
            if narrow:
                self._decode(stored.read(low, stored.empty(len(rows))), rows, np.arange(len(rows)))
            else:
                stored.read(low, rows)
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
                self._on_disk().drop(start, stop)
            return rows

        return ahead(block, -(-self.n_nodes // step), depth)

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, slice):
            start, stop, step = key.indices(self.n_nodes)
            if self._rows.position is None and step == 1:
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

    def _places(self, ids: np.ndarray) -> np.ndarray:
        """Where the rows of nodes are stored."""
        position = self._on_disk().position
        return ids if position is None else position[ids]

    def _target(self, out, n: int) -> np.ndarray:
        shape = (n, self.dim)
        if out is None:
            return direct_empty(shape, self.dtype) if self.direct else np.empty(shape, self.dtype)
        return check_out(out, shape, self.dtype)

    def _gather(self, rows: np.ndarray, out: np.ndarray, in_flight: int | None = None) -> np.ndarray:
        stored, narrow = self._on_disk(), self.file_dtype != out.dtype
        rows, place = ascending(rows)
        step = max(1, _WIDEN // stored.row_bytes) if narrow else SLICE
        for low in range(0, len(rows), step):
            some, own = rows[low:low + step], place[low:low + step]
            if narrow:
                there = stored.empty(len(some))
                stored.pick(some, np.arange(len(some)), there, in_flight)
                self._decode(there, out, own)
            else:
                stored.pick(some, own, out, in_flight)
        return out

    # Writing

    def write_features(self, ids, rows) -> None:
        """Write rows of the given nodes in place. Threads may write at the same time, one after the other.

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
        rows = self._encode(rows, self._rows.shape[1], self.file_dtype, "rows")
        if len(rows) != len(ids):
            raise ValueError(f"rows must have one row for each of the {len(ids)} ids, got shape {rows.shape}")
        places, file = self._places(ids), self._opened()
        with self._writing:
            self._dirty = True
            if self._rows.written is not None and len(places):
                self._rows.written.mark(places.astype(np.int64) * self._rows.row_bytes, self._rows.row_bytes)
            scatter_rows(file, self._rows.offset, places, rows)

    def append(self, rows, *, chunk_rows: int | None = None) -> np.ndarray:
        """Add rows of new nodes behind those that are there.

        The file is as it was until all rows are on the disk, and after a crash it is as before or as after. Storages
        of the file that are open elsewhere go on without the new rows.

        Parameters
        ----------
        rows : array-like, shape (k, dim)
            Anything with a shape whose slices are rows, as for :meth:`from_array`.
        chunk_rows : int, optional
            Rows held in memory at a time; about 8 MiB of them by default.

        Returns
        -------
        ndarray of int64, shape (k,)
            Ids of the new nodes, which follow those before. They are stored last, whatever the order.

        Raises
        ------
        ValueError
            If the shape is wrong or a value is not finite in the file's dtype; nothing is changed then.
        StorageError
            If the storage was opened read-only, the disk is full, or a write fails.

        Examples
        --------
        >>> import numpy as np
        >>> from gnncy.storage import FeatureStorage
        >>> FeatureStorage.from_array(np.eye(2, dtype=np.float32), "grown.npy").close()
        >>> with FeatureStorage("grown.npy", "r+") as store:
        ...     store.append([[5, 6], [7, 8]]), store.shape
        (array([2, 3]), (4, 2))
        """
        self._check_writer()
        rows = rows if hasattr(rows, "shape") else np.asarray(rows)
        if len(rows.shape) != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"rows must have shape (k, {self.dim}), got {tuple(rows.shape)}")
        more = int(rows.shape[0])
        with self._writing:
            n = self.n_nodes
            if more == 0:
                return np.arange(n, n)
            self.flush()
            file, step = self._opened(), _chunk_rows(chunk_rows, self.dim, self.file_dtype)
            table = (checksums.load_table(table_file(self.path), self.nbytes) if self._rows.summed
                     else np.full(checksums.n_extents(self.nbytes), checksums.UNKNOWN))
            with appending(self.path, file, (n, self._rows.shape[1]), more, self.file_dtype, self.order, table,
                           self.finite_checked, self._encode) as writer:
                for start in range(0, more, step):
                    writer.append(n + start, rows[start:start + step])
            grown = replace(self._rows, shape=(n + more, self._rows.shape[1]), summed=True,
                            position=None if writer.order is None else invert(writer.order))
            grown.written = WrittenExtents(table_file(self.path), grown.nbytes)
            self._rows = grown
        return np.arange(n, n + more)

    def flush(self) -> None:
        """Wait until everything written is on the disk (fsync), and sum up the extents it is in."""
        if not self._dirty:
            return
        self._check_writer()
        file = self._opened()
        with self._writing:
            file.sync()
            if self._rows.written is not None:
                self._rows.written.settle(file, self._rows.offset, self.nbytes)
            self._dirty = False

    # The whole file

    def verify(self) -> VerifyReport:
        """Read all rows from the disk and hold them against the checksums taken when they were written.

        Reads go past the page cache where the file system allows it, 8 MiB at a time while those before are summed up.
        What this storage has written is flushed first.

        Returns
        -------
        VerifyReport
            True if every row was checked and none is damaged; else it names the rows and nodes.

        Raises
        ------
        StorageError
            If the file cannot be read or was replaced, or its table of checksums is missing.

        Examples
        --------
        >>> import numpy as np
        >>> from gnncy.storage import FeatureStorage
        >>> FeatureStorage.from_array(np.ones((1000, 16)), "features.npy", overwrite=True).close()
        >>> with open("features.npy", "rb+") as file:
        ...     _ = file.seek(50_000), file.write(b"!")
        >>> with FeatureStorage("features.npy") as store:
        ...     report = store.verify()
        >>> report.ok, report.damaged
        (False, ((0, 1000),))
        """
        opened = self._opened()
        if self._writer == os.getpid():
            self.flush()
        # What counts is on the disk, not in the page cache.
        with BlockFile(self.path, direct=True, io_threads=self.io_threads, stats=self.stats) as file:
            if not os.path.sameopenfile(file.fd, opened.fd):
                raise StorageError(f"{self.path} was replaced by another file while open; open it again")
            return self._rows.verify(file)

    def reorder(self, order, path=None, *, memory_limit: int | float | str = "256MB",
                overwrite: bool = False) -> "FeatureStorage":
        """Rewrite the file with its rows in another order. Ids at every call stay what they are.

        Every row is read twice and written twice, in large pieces: once to the tile of the new file it belongs to, and
        once to its place in the tile. If a tile can hold half of the file or more, rows go to their places at once.

        Parameters
        ----------
        order : array of int, shape (n_nodes,), or None
            Node whose row is stored at each place, such as :func:`gnncy.graph.community_order` gives; None for the
            order of the ids.
        path : path-like, optional
            A new file to write. By default the new file takes the place of this one, when it is whole: a crash leaves
            the old file as it was.
        memory_limit : int or str
            Bytes to hold beside ``order``, of which 8 for each row are needed throughout.
        overwrite : bool
            Replace another file at ``path``.

        Returns
        -------
        FeatureStorage
            This storage, now of the new file, or with ``path`` a new one opened for reading.

        Raises
        ------
        ValueError
            If ``order`` does not hold every node once.
        MemoryLimitError
            If ``memory_limit`` is too small; the message names the least that would do.
        FileExistsError
            If another file is at ``path`` and ``overwrite`` is False.
        StorageError
            If the disk has no room for a second file, or this file is plain or in the reference layout and to be
            replaced (see :meth:`convert`).

        Examples
        --------
        >>> import numpy as np
        >>> from gnncy.storage import FeatureStorage
        >>> store = FeatureStorage.from_array(np.eye(4, dtype=np.float32), "features.npy", overwrite=True)
        >>> store.reorder([3, 1, 0, 2]).order
        array([3, 1, 0, 2])
        >>> store.read_batch([3])
        array([[0., 0., 0., 1.]], dtype=float32)
        >>> store.close()
        """
        here = path is None or os.path.exists(path) and os.path.samefile(path, self.path)
        if path is None and self._rows.summed is False and not sidecar_file(self.path).exists():
            raise StorageError(f"{self.path}: not a file of this class; rewrite it with FeatureStorage.convert(path, "
                               f"order=order)")
        target = self.path if here else Path(path)
        rows = tile_rows(self.n_nodes, self._rows.row_bytes, parse_bytes(memory_limit))
        if self._writer == os.getpid():
            self.flush()
        native = self.file_dtype.newbyteorder("<")
        with writing(target, (self.n_nodes, self._rows.shape[1]), native, order, overwrite or path is None,
                     finite=self.finite_checked, owned=here and self._writer == os.getpid(),
                     encode=check_rows) as writer:
            reorder_rows(writer, self._on_disk(), rows)
        if not here:
            return type(self)(target)
        if not self._closed:
            self._closed = True
            self._rows.file.close()
        self._attach()
        return self

    # Its life

    def _check_writer(self) -> None:
        if self.mode != "r+":
            raise StorageError(f"{self.path} is open read-only; open it with mode='r+' to write")
        if self._writer != os.getpid():
            raise StorageError(f"{self.path} is open for writing in process {self._writer}, from which this one was "
                               f"forked; write there, or open it again here after closing it there")

    def _on_disk(self) -> RowsFile:
        if self._closed:
            raise ValueError(f"{self.path}: the storage is closed; open it again")
        if self._pid != os.getpid():
            with self._attaching:
                self._attach_again()
        return self._rows

    def _opened(self) -> BlockFile:
        return self._on_disk().file

    def _attach_again(self) -> None:
        # A forked child has the parent's descriptor, and with it the parent's lock: it reads through its own.
        if self._closed or self._pid == os.getpid():
            return
        inherited = self._rows
        self._attach()
        inherited.file.close()
        if (self._rows.shape, self._rows.dtype) != (inherited.shape, inherited.dtype):
            raise StorageError(f"{self.path} was replaced by another file while open; open it again")

    def close(self) -> None:
        """Flush what was written and let go of the file. Closing twice does nothing."""
        if self._closed:
            return
        try:
            if self._writer == os.getpid():
                self.flush()
        finally:
            self._closed = True
            if self._writer == os.getpid():
                unlock(self._rows.file.fd)
            self._rows.file.close()

    def __enter__(self) -> "FeatureStorage":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __del__(self):
        if not self._closed and not sys.is_finalizing():
            if self._pid == os.getpid():
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __reduce__(self):
        options = {"io_threads": self.io_threads, "direct": self._direct, "disk": self._disk}
        return _reopen, (type(self), os.path.abspath(self.path), self.mode, options)


def _reopen(kind, path, mode, options):
    return kind(path, mode, **options)


def _check_shape(shape, name: str) -> None:
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} must be (n_nodes, dim) with at least one row and column, got shape {shape}")


def _chunk_rows(chunk_rows: int | None, dim: int, dtype) -> int:
    if chunk_rows is None:
        return max(1, _CHUNK // (dim * np.dtype(dtype).itemsize))
    return check_int(chunk_rows, "chunk_rows", 1)
