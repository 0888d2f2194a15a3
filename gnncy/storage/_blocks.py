"""What the stores share: I/O statistics, padded ``.npy`` headers, gathers and scatters of extents of a file."""
import ast
import errno
import os
import threading
import time
import zlib
from pathlib import Path

import numpy as np

from gnncy._kernels.storage import blockio
from gnncy._memory import aligned_empty, format_bytes
from gnncy._threads import run_pieces
from gnncy.errors import StorageError

PAGE = 4096
_LONGEST_HEADER = 1 << 16
MAX_GAP = 64 * 1024  # reading a shorter gap is cheaper than a second operation
MAX_RUN = 1024 * 1024
AMPLIFICATION = 4.0  # bytes read for each byte needed, at most
MAX_CALL = 1 << 30  # bytes in one system call (the kernel's own bound is just under 2 GiB)

_local = threading.local()


class IOStatistics:
    """Counters of a store's input and output. Adding to them is thread-safe.

    Parameters
    ----------
    bytes_requested : int, default 0
        Bytes of the rows that callers asked for, repeats included.
    bytes_read, bytes_written : int, default 0
        Bytes that system calls moved.
    operations : int, default 0
        System calls that moved them.
    seconds : float, default 0
        Wall time spent in reading and writing, summed over callers.

    Examples
    --------
    >>> from gnncy.storage import IOStatistics
    >>> stats = IOStatistics()
    >>> before = stats.snapshot()
    >>> stats.add(bytes_read=4096, operations=1)
    >>> (stats.snapshot() - before).bytes_read
    4096
    """

    FIELDS = ("bytes_requested", "bytes_read", "bytes_written", "operations", "seconds")

    def __init__(self, bytes_requested: int = 0, bytes_read: int = 0, bytes_written: int = 0, operations: int = 0,
                 seconds: float = 0.0):
        self.bytes_requested = bytes_requested
        self.bytes_read = bytes_read
        self.bytes_written = bytes_written
        self.operations = operations
        self.seconds = seconds
        self._lock = threading.Lock()

    def add(self, **amounts: float) -> None:
        """Add to the named counters at once."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def as_dict(self) -> dict[str, float]:
        """The counters by name."""
        with self._lock:
            return {name: getattr(self, name) for name in self.FIELDS}

    def snapshot(self) -> "IOStatistics":
        """A copy that no longer changes."""
        return IOStatistics(**self.as_dict())  # type: ignore[arg-type]

    def __sub__(self, other: "IOStatistics") -> "IOStatistics":
        mine, theirs = self.as_dict(), other.as_dict()
        return IOStatistics(**{name: mine[name] - theirs[name] for name in self.FIELDS})  # type: ignore[arg-type]

    def __eq__(self, other) -> bool:
        return isinstance(other, IOStatistics) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (f"IOStatistics(requested {format_bytes(self.bytes_requested)}, read {format_bytes(self.bytes_read)}, "
                f"written {format_bytes(self.bytes_written)}, {self.operations} operations, {self.seconds:.3f} s)")


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """The first 4096 bytes of a standard ``.npy`` file whose data begin at byte 4096."""
    text = repr({"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}).encode()
    head = b"\x93NUMPY\x01\x00" + (PAGE - 10).to_bytes(2, "little")
    return head + text.ljust(PAGE - 11) + b"\n"


def read_npy_header(file, path: Path) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """Shape, dtype, first byte of the data and checksum of the header of an open ``.npy`` file, validated."""
    file.seek(0)
    head = file.read(12)
    if head[:6] != b"\x93NUMPY":
        raise StorageError(f"{path}: not a .npy file (its first bytes are something else); write one with "
                           f"np.save or FeatureStorage.from_array")
    # numpy's own reader tries to mend what it cannot parse, and needs seconds for a page of blanks.
    size = {1: 2, 2: 4, 3: 4}.get(head[6] if len(head) == 12 else 0)
    if size is None or head[7]:
        raise StorageError(f"{path}: damaged .npy header or a version of the format other than 1.0, 2.0 and 3.0; "
                           f"restore the file from a copy or write it again with np.save")
    offset = 8 + size + int.from_bytes(head[8:8 + size], "little")
    file.seek(0)
    header = file.read(min(offset, _LONGEST_HEADER))
    crc = zlib.crc32(header)
    try:
        if len(header) < offset:
            raise ValueError("the file ends, or the header is too long")
        fields = ast.literal_eval(header[8 + size:].decode("utf-8" if head[6] == 3 else "latin-1").strip())
        if set(fields) != {"descr", "fortran_order", "shape"} or not isinstance(fields["shape"], tuple) \
                or not all(type(length) is int and length >= 0 for length in fields["shape"]):
            raise ValueError(f"its fields are {fields}")
        shape, fortran, dtype = fields["shape"], fields["fortran_order"], np.dtype(fields["descr"])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise StorageError(f"{path}: damaged or truncated .npy header ({error}); restore it from a copy") from None
    if fortran and len(shape) > 1:
        raise StorageError(f"{path}: the array is in Fortran (column) order, rows are needed together; copy it with "
                           f"FeatureStorage.from_array(np.load({str(path)!r}, mmap_mode='r'), new_path)")
    size = os.fstat(file.fileno()).st_size
    need = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size < need:
        raise StorageError(f"{path}: truncated: {size} bytes where shape {shape} of {dtype} needs {need}; "
                           f"restore it from a copy or create it again")
    return shape, dtype, offset, crc


def io_error(path: Path, status: int, offset: int, doing: str) -> StorageError:
    """The exception for a kernel's status (an errno, or -1 where the file ended) at a byte of a file."""
    if status < 0:
        return StorageError(errno.EIO, f"the file ends at or before byte {offset}, it was cut short while open; "
                                       f"create it again or restore it from a copy", str(path))
    return StorageError(status, f"{os.strerror(status)} while {doing} at byte {offset}", str(path))


def _bounce() -> np.ndarray:
    buffer = getattr(_local, "bounce", None)
    if buffer is None:
        buffer = _local.bounce = aligned_empty(MAX_RUN, np.uint8, PAGE)
    return buffer


def _plan(start, length, max_gap):
    first, group = np.empty((2, len(start) + 1), np.int64)
    count = np.empty(2, np.int64)
    blockio.plan(start, length, max_gap, MAX_RUN, AMPLIFICATION, first, group, count)
    return first, group, int(count[0]), int(count[1])


def gather(fd: int, path: Path, start: np.ndarray, length: np.ndarray, place: np.ndarray, out: np.ndarray,
           stats: IOStatistics, io_threads: int | None = None) -> None:
    """Read ``length[k]`` bytes at ``start[k]`` (ascending) into the bytes of ``out`` at ``place[k]``."""
    if len(start) == 0:
        return
    begun = time.perf_counter()
    data = out.reshape(-1).view(np.uint8)
    first, group, _, groups = _plan(start, length, MAX_GAP)

    def work(low: int, high: int) -> None:
        report = np.zeros(3, np.int64)
        status = blockio.read_runs(fd, start, length, place, first, group[low], group[high], MAX_CALL, _bounce(),
                                   data, report)
        stats.add(bytes_read=int(report[0]), operations=int(report[1]))
        if status:
            raise io_error(path, status, int(report[2]), "reading")

    run_pieces(work, groups, 1, io_threads)
    stats.add(bytes_requested=int(length.sum()), seconds=time.perf_counter() - begun)


def read_range(fd: int, path: Path, offset: int, out: np.ndarray, stats: IOStatistics,
               io_threads: int | None = None) -> None:
    """Fill ``out`` with the bytes at ``offset``, in large pieces."""
    place = np.arange(0, out.nbytes, MAX_RUN, dtype=np.int64)
    gather(fd, path, place + offset, np.minimum(MAX_RUN, out.nbytes - place), place, out, stats, io_threads)


def scatter(fd: int, path: Path, start: np.ndarray, length: np.ndarray, place: np.ndarray, data: np.ndarray,
            stats: IOStatistics) -> None:
    """Write the bytes of ``data`` at ``place[k]`` to the file at ``start[k]``, ascending; of repeats the last stays."""
    if len(start) == 0:
        return
    begun = time.perf_counter()
    first, _, runs, _ = _plan(start, length, 0)
    report = np.zeros(3, np.int64)
    status = blockio.write_runs(fd, start, length, place, first, 0, runs, MAX_CALL, _bounce(),
                                data.reshape(-1).view(np.uint8), report)
    stats.add(bytes_written=int(report[0]), operations=int(report[1]), seconds=time.perf_counter() - begun)
    if status:
        raise io_error(path, status, int(report[2]), "writing")


def write_all(fd: int, path: Path, data, offset: int) -> None:
    """Write all bytes of ``data`` at ``offset``."""
    view = memoryview(data).cast("B")
    while view:
        try:
            done = os.pwrite(fd, view[:MAX_CALL], offset)
        except OSError as error:
            raise io_error(path, error.errno or errno.EIO, offset, "writing") from error
        view, offset = view[done:], offset + done


def reserve(fd: int, path: Path, size: int) -> None:
    """Reserve ``size`` bytes of disk for a file, so that a full disk is an error now and not later."""
    try:
        try:
            os.posix_fallocate(fd, 0, size)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            os.ftruncate(fd, size)
    except OSError as error:
        raise StorageError(error.errno, f"cannot reserve {format_bytes(size)}: {os.strerror(error.errno or 0)}; "
                                        f"free some space or choose another directory", str(path)) from error


def ascending(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted ``rows`` and the positions they came from; of equal rows the earlier one comes first."""
    rows = rows.astype(np.int64, copy=False)
    n = len(rows)
    if n < 2 or (rows[1:] >= rows[:-1]).all():
        return rows, np.arange(n, dtype=np.int64)
    if n < 1 << 32 and int(rows.max()) < 1 << 31:
        key = rows << 32  # one sort of plain integers is several times faster than an argsort
        key |= np.arange(n, dtype=np.int64)
        key.sort()
        return key >> 32, key & 0xFFFFFFFF
    position = np.argsort(rows, kind="stable")
    return rows[position], position
