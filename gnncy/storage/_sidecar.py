"""What lies beside a file of dense rows, and how the file and it are written: whole, or not at all.

Several files cannot change at one moment. So what will lie beside a new file is written first, under names that end
in ``.next``; renaming the file of rows is the moment of change, and the other names follow. Whoever opens a file that
has a ``.next`` beside it sees by the checksums of the rows on which side of that moment a crash was.
"""
import errno
import fcntl
import glob
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np

from gnncy import _files
from gnncy._check import check_finite, check_ids
from gnncy._files import fsync_directory, release, remove_temporaries, replacing, write_text
from gnncy.errors import StorageError
from gnncy.storage._blocks import PAGE, BlockFile, ascending, npy_header, read_npy_header
from gnncy.storage.layout import checksums

FORMAT = "gnncy-features"
VERSION = 2
_IDS = 1 << 18  # of an order that are read or written at a time
_PROBES = 16


class Writer:
    """Rows on their way into a new file, in storage order; ``order`` and the checksums go beside it."""

    def __init__(self, file: BlockFile, shape: tuple[int, int], dtype: np.dtype, order: np.ndarray | None,
                 encode: Callable[..., np.ndarray], before: checksums.RunningChecksums | None = None):
        self.file, self.shape, self.dtype, self.order, self.encode = file, shape, dtype, order, encode
        self.row_bytes = shape[1] * dtype.itemsize
        self._checksums = before or checksums.RunningChecksums()
        self._written = 0

    def append(self, start: int, block) -> int:
        """Check, convert and write rows; returns how many there were."""
        rows = self.encode(block, self.shape[1], self.dtype, f"the block at row {start}")
        if start + len(rows) > self.shape[0]:
            raise ValueError(f"blocks hold at least {start + len(rows)} rows, shape {self.shape} needs {self.shape[0]}")
        self.write(start, rows)
        return len(rows)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows of the file's dtype, C-contiguous; each block begins where the one before ended."""
        self.file.write(rows, PAGE + start * self.row_bytes)
        self._checksums.add(rows)
        self._written += len(rows)

    def table(self) -> np.ndarray:
        """Checksums of all rows; those of a file into which none was written are zeros."""
        if not self._written:
            return checksums.of_zeros(self.shape[0] * self.row_bytes)
        return self._checksums.table()


@contextmanager
def writing(path, shape: tuple[int, int], dtype, order, overwrite: bool, *, finite: bool = True,
            owned: bool = False, encode: Callable[..., np.ndarray] | None = None) -> Iterator[Writer]:
    """A new file, reserved on disk, for rows to be written to; it and what lies beside it appear at the end.

    ``owned`` replaces a file that the caller has open for writing. ``encode`` makes rows of the file of what is given,
    as :func:`check_rows` does where there is none.
    """
    path = Path(path)
    dtype = check_file_dtype(dtype) if encode is None else np.dtype(dtype)
    if shape[0] * shape[1] * dtype.itemsize >= 1 << 62:
        raise ValueError(f"shape {shape} of {dtype} is more than a file can hold")
    order = None if order is None else check_order(order, shape[0], "order")
    if path.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, "already exists; pass overwrite=True to replace it", str(path))
    header = npy_header(shape, dtype)
    remove_temporaries(path.parent, glob.escape(path.name) + "*")
    with unwritten(path) if path.exists() and not owned else nullcontext(), replacing(path) as temporary:
        with BlockFile(temporary, os.O_RDWR) as file:
            file.path = path  # the one that errors shall name
            file.reserve(PAGE + shape[0] * shape[1] * dtype.itemsize)
            file.write(header, 0)
            writer = Writer(file, shape, dtype, order, encode or check_rows)
            yield writer
        _stage(path, writer, finite, zlib.crc32(header))
    _finish(path)


@contextmanager
def appending(path: Path, file: BlockFile, shape: tuple[int, int], more: int, dtype: np.dtype,
              order: np.ndarray | None, table: np.ndarray, finite: bool,
              encode: Callable[..., np.ndarray]) -> Iterator[Writer]:
    """Room for ``more`` rows behind those of a file that is open for writing; they are its own when the block ends.

    Until then its header says nothing of them, and what lies behind the rows that it names is nobody's.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    grown = shape[0] + more, shape[1]
    if order is not None:
        order = np.concatenate([order, np.arange(shape[0], grown[0])])
    header = npy_header(grown, dtype)
    writer = Writer(file, grown, dtype, order, encode, checksums.RunningChecksums(table, size))
    try:
        file.reserve(PAGE + grown[0] * shape[1] * dtype.itemsize)
        yield writer
        file.sync()
        _stage(path, writer, finite, zlib.crc32(header))
    except BaseException:
        os.ftruncate(file.fd, PAGE + size)
        raise
    file.write(header, 0)
    file.sync()
    _finish(path)


def sidecar_file(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def order_file(path: Path) -> Path:
    return path.with_name(path.name + ".order.npy")


def table_file(path: Path) -> Path:
    return path.with_name(path.name + ".crc32.npy")


def _next(file: Path) -> Path:
    return file.with_name(file.name + ".next")


def _stage(path: Path, writer: Writer, finite: bool, header_crc: int) -> None:
    """Write what will lie beside a file that is about to appear."""
    for file in (sidecar_file(path), order_file(path), table_file(path)):
        _next(file).unlink(missing_ok=True)
    order_crc = None if writer.order is None else _write_order(_next(order_file(path)), writer.order)
    checksums.save_table(_next(table_file(path)), writer.table())
    write_text(_next(sidecar_file(path)), checksums.sealed({
        "format": FORMAT, "version": VERSION, "shape": list(writer.shape), "dtype": writer.dtype.name, "finite": finite,
        "order": None if writer.order is None else order_file(path).name, "order_crc32": order_crc,
        "header_crc32": header_crc, "checksums": table_file(path).name, "extent_bytes": checksums.EXTENT}))


def _finish(path: Path) -> None:
    """Give what was staged its name. Another process may be doing the same."""
    with suppress(FileNotFoundError):
        meta = json.loads(_next(sidecar_file(path)).read_text(encoding="utf-8"))
        for file in (order_file(path), table_file(path)):
            if _next(file).exists():
                os.replace(_next(file), file)
        if meta["order"] is None:
            order_file(path).unlink(missing_ok=True)
        os.replace(_next(sidecar_file(path)), sidecar_file(path))
    fsync_directory(path.parent)


def _finish_interrupted(path: Path, file: BlockFile, size: int, header_crc: int) -> None:
    """If a crash came between the renaming of the file and that of what lies beside it, do the rest."""
    try:
        meta = json.loads(_next(sidecar_file(path)).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if meta["header_crc32"] != header_crc:
        return  # written for a file that never came
    if _next(table_file(path)).exists() and not _holds(path, file, size):
        return
    if not os.access(path.parent, os.W_OK):
        raise StorageError(f"{path}: an interrupted rewrite has to be finished, and {path.parent} is read-only; "
                           f"open the file once where it can be written")
    _finish(path)


def tidy(path: Path) -> None:
    """Remove what writers left that were killed. For the one who holds the file's lock, after it was opened."""
    remove_temporaries(path.parent, glob.escape(path.name) + "*")
    if not any(path.parent.glob(f".{glob.escape(path.name)}*.tmp")):  # or what was staged may be somebody's
        for file in (sidecar_file(path), order_file(path), table_file(path)):
            _next(file).unlink(missing_ok=True)


def _holds(path: Path, file: BlockFile, size: int) -> bool:
    """Whether the rows are those that the staged checksums are of, and not those before."""
    wanted = checksums.load_table(_next(table_file(path)), size)
    differs = np.ones(len(wanted), bool)
    with suppress(StorageError):  # the file before may have had no table, or one of another size
        differs = wanted != checksums.load_table(table_file(path), size)
    probes = np.flatnonzero(differs & (wanted != checksums.UNKNOWN))
    probes = probes[::len(probes) // _PROBES + 1]
    same = checksums.compute(file, PAGE, size, probes) == wanted[probes]
    if same.any() and not same.all():
        raise StorageError(f"{path}: a rewrite was interrupted, and the rows are neither those before nor those after "
                           f"it; restore the file and all that lies beside it from a copy")
    return bool(same.all())


def read_sidecar(path: Path, file: BlockFile, shape: tuple[int, int], dtype: np.dtype, header_crc: int) -> dict | None:
    """What the sidecar says, checked against the file; None for a plain ``.npy`` file."""
    _finish_interrupted(path, file, shape[0] * shape[1] * dtype.itemsize, header_crc)
    sidecar = sidecar_file(path)
    if not sidecar.exists():
        if order_file(path).exists():
            raise StorageError(f"{path}: {order_file(path).name} is there but {sidecar.name} is missing, so the order "
                               f"of the rows is not known; restore it from a copy, or create the file again")
        return None
    try:
        meta = json.loads(sidecar.read_text(encoding="utf-8"))
        name, version = meta["format"], meta["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{sidecar}: damaged or foreign ({error}); create the storage again, or remove the "
                           f"file to read {path.name} as a plain array in the order of its rows") from None
    if name != FORMAT:
        raise StorageError(f"{sidecar}: its format is {name!r}, need {FORMAT!r}; it belongs to another program")
    if version not in (1, VERSION):
        raise StorageError(f"{sidecar}: format version {version!r}, this gnncy reads versions 1 to {VERSION}; "
                           f"update gnncy or create the storage again")
    if version == 1:  # it has no checksum of its own
        meta |= {"checksums": None, "extent_bytes": checksums.EXTENT}
    try:
        same = (tuple(meta["shape"]) == shape and np.dtype(meta["dtype"]) == dtype
                and meta["header_crc32"] == header_crc and meta["extent_bytes"] == checksums.EXTENT)
        meta["finite"], meta["order"], meta["order_crc32"], meta["checksums"]
    except (KeyError, TypeError) as error:
        raise StorageError(f"{sidecar}: damaged ({error!r}); create the storage again") from None
    if not same:
        raise StorageError(f"{path}: its header ({shape} of {dtype}, checksum {header_crc:#x}) is not the one that "
                           f"{sidecar.name} describes; one of the two is damaged or was replaced, restore both from a "
                           f"copy")
    if version > 1:
        checksums.check_seal(sidecar, meta)
    return meta


def _write_order(path: Path, order: np.ndarray) -> int:
    """Write an order to a file of its own; its checksum."""
    crc = 0
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(npy_header(order.shape, np.dtype("<i8")))
        for start in range(0, len(order), _IDS):
            ids = order[start:start + _IDS].astype("<i8", copy=False)
            crc = zlib.crc32(ids.data, crc)
            file.write(ids.data)
    return crc


def read_order(path: Path, n: int, meta: dict) -> np.ndarray:
    """Place of each node's row, from the order file."""
    name = order_file(path)
    position = np.full(n, -1, np.int32 if n <= np.iinfo(np.int32).max else np.int64)
    crc = 0
    try:
        with open(name, "rb") as file:
            shape, dtype, offset, _ = read_npy_header(file, name)
            fits = shape == (n,) and dtype == "<i8" and meta["order"] == name.name
            file.seek(offset)
            for start in range(0, n if fits else 0, _IDS):
                ids = np.frombuffer(file.read(8 * min(_IDS, n - start)), "<i8")
                crc = zlib.crc32(ids.data, crc)
                if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= n):
                    break  # which no checksum of an order has
                position[ids] = np.arange(start, start + len(ids))
    except FileNotFoundError:
        raise StorageError(f"{name}: the order of the rows is missing; restore it from a copy") from None
    if not fits or crc != meta["order_crc32"] or int(position.min()) < 0:
        raise StorageError(f"{name}: not the order that {sidecar_file(path).name} describes; restore both from a copy")
    return position


def check_order(order, n: int, name: str) -> np.ndarray:
    """Int64 ids, each of 0..n-1 once."""
    order = check_ids(order, n, name)
    seen = np.zeros(n, bool)
    seen[order] = True
    if len(order) != n or not seen.all():
        raise ValueError(f"{name} must hold each of 0..{n - 1} once, got {len(order)} ids, {int(seen.sum())} different")
    return order


def invert(order: np.ndarray) -> np.ndarray:
    """The inverse permutation, in the narrowest integers that hold it."""
    n = len(order)
    inverse = np.empty(n, np.int32 if n <= np.iinfo(np.int32).max else np.int64)
    inverse[order] = np.arange(n, dtype=inverse.dtype)
    return inverse


def scatter_rows(file: BlockFile, offset: int, rows: np.ndarray, data: np.ndarray) -> None:
    """Write ``data`` as the rows at places ``rows`` of a file whose rows begin at ``offset``."""
    row_bytes = data.shape[1] * data.itemsize
    rows, place = ascending(rows)
    file.scatter(rows * row_bytes + offset, np.broadcast_to(np.int64(row_bytes), len(rows)), place * row_bytes, data)


def check_rows(value, dim: int, dtype: np.dtype, name: str) -> np.ndarray:
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


def check_file_dtype(dtype) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"dtype must be float16, float32 or float64, got {dtype}")
    return dtype.newbyteorder("<")


def lock(fd: int, path: Path) -> None:
    """Take the advisory lock that a file's one writer holds."""
    if not _files.lock(fd):
        holder = _files.lock_holder(fd) or "this process or another"
        raise StorageError(errno.EWOULDBLOCK, f"already open for writing in {holder}; close it there or open it with "
                                              f"mode='r'", str(path))


def unlock(fd: int) -> None:
    """Let go of the lock, in processes too that were forked since."""
    with suppress(OSError):  # of a file system without locks
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def unwritten(path: Path) -> Iterator[None]:
    """Raise if a writer has the file open, and let none open it inside."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        lock(fd, path)
        yield
    finally:
        release(fd)
