"""What the stores share: I/O statistics, padded ``.npy`` headers, and files read and written by extents."""
import ast
import errno
import mmap
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np

from gnncy._kernels.storage import blockio
from gnncy._memory import aligned_empty, available, format_bytes
from gnncy._threads import current_threads, inherit_threads
from gnncy.errors import StorageError

PAGE = 4096
_PAGE_BITS = 12
_HUGE = 2 * 1024 * 1024
_LONGEST_HEADER = 1 << 16
ARENA = 1024 * 1024  # bytes of the buffer that each thread reads through
MAX_RUN = ARENA  # bytes of one operation
STREAMS = 4  # requests in flight that reading large runs needs
MAX_CALL = 1 << 30  # bytes in one system call (the kernel's own bound is just under 2 GiB)
AMPLIFICATION = 3.0  # bytes read for each byte needed, at most, where bytes cost more than operations
CACHED_GAP = 8192  # copying a shorter gap out of the page cache is cheaper than a second system call
CACHED_RUN = 256 * 1024  # a run that stays in the processor's cache until its rows are taken from it
_WORTH_A_THREAD = 1024 * 1024  # bytes to copy out of the page cache for which another thread is woken
_SHARES = 32  # that each thread takes of a request, so that all end together
SAMPLES = 16  # entries that are looked up in the page cache to see where a request will be read from

IN_FLIGHT = 32  # threads that wait for disks, at most; they are started as requests need them

_local = threading.local()
_spare: list[np.ndarray] = []
T = TypeVar("T")
_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


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


def open_direct(path, flags: int = os.O_RDONLY) -> int | None:
    """A descriptor that goes past the page cache; None where the system or the file system has none to offer."""
    direct = getattr(os, "O_DIRECT", 0)
    if not direct:
        return None
    try:
        return os.open(path, flags | direct | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


class BlockFile:
    """A file whose extents are gathered and scattered by positional calls. Reads are thread-safe.

    ``direct`` reads past the page cache, through aligned buffers; None means if the file is larger than the page cache
    could get. Where the file system refuses, reads are buffered, and what was read is dropped from the cache.
    ``io_threads`` are the requests that one call has in flight; by default as many as the disk serves best, or the
    threads of the surrounding work for what is in the page cache. ``disk`` is the
    :class:`~gnncy.storage.plans.DiskModel` by which extents are joined; by default that of an earlier calibration.
    """

    def __init__(self, path, flags: int = os.O_RDONLY, *, direct: bool | None = False, io_threads: int | None = None,
                 disk=None, stats: IOStatistics | None = None):
        self.path = Path(path)
        self.io_threads = io_threads
        self.stats = IOStatistics() if stats is None else stats
        self.direct = False
        self._disk = disk
        self._aligned_fd = -1
        self.fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            self._passing = os.fstat(self.fd).st_size > available() if direct is None else direct
            if self._passing:
                aligned = open_direct(path)
                if aligned is not None:
                    self._aligned_fd = aligned
                    self.direct = os.path.sameopenfile(self.fd, aligned)
                if not self.direct:
                    self._advise("POSIX_FADV_RANDOM")
        except BaseException:
            self.close()
            raise

    @property
    def disk(self):
        """What the disk costs."""
        if self._disk is None:
            from gnncy.storage.plans.disk import known_disk
            self._disk = known_disk(self.path)
        return self._disk

    def gather(self, start: np.ndarray, length: np.ndarray, place: np.ndarray, out: np.ndarray,
               in_flight: int | None = None) -> None:
        """Read ``length[k]`` bytes at ``start[k]`` (ascending) into the bytes of ``out`` at ``place[k]``."""
        if len(start) == 0:
            return
        begun = time.perf_counter()
        data = out.reshape(-1).view(np.uint8)
        direct = self.direct
        status, offset = self._read(direct, start, length, place, data, in_flight)
        if status == errno.EINVAL and direct:  # some file systems take the flag and refuse the reads
            self.direct = direct = False
            self._advise("POSIX_FADV_RANDOM")
            status, offset = self._read(direct, start, length, place, data, in_flight)
        if self._passing and not direct:
            self.drop(int(start[0]), int(start[-1] + length[-1] - start[0]))
        self.stats.add(bytes_requested=int(length.sum()), seconds=time.perf_counter() - begun)
        if status:
            raise io_error(self.path, status, offset, "reading")

    def _read(self, direct, start, length, place, data, in_flight) -> tuple[int, int]:
        """Status and, of a failure, the byte."""
        fd = self._aligned_fd if direct else self.fd
        samples = 0 if self._passing else min(SAMPLES, len(start))
        if samples and blockio.cached(fd, start, samples) == samples:
            longest = min(CACHED_RUN, MAX_RUN)
            first, runs = _plan(start, length, 0, CACHED_GAP, longest, longest)
            size = int(length.sum()) + runs * CACHED_GAP
            threads = min(self.io_threads or current_threads(), 1 + size // _WORTH_A_THREAD)
            grain = max(1, runs // (_SHARES * threads))
        else:
            gap = int(self.disk.break_even_gap)
            first, runs = _plan(start, length, _PAGE_BITS, gap, MAX_RUN, gap)
            threads, grain = min(in_flight or self.io_threads or self.disk.threads, runs), 1
        ticket = np.zeros(1, np.int64)
        failures: list[tuple[int, int]] = []

        def work() -> None:
            report = np.zeros(3, np.int64)
            status = blockio.read_runs(fd, direct, start, length, place, first, runs, ticket, grain, MAX_CALL,
                                       arena(), data, report)
            self.stats.add(bytes_read=int(report[0]), operations=int(report[1]))
            if status:
                failures.append((int(report[2]), status))

        def cancel() -> None:
            ticket[0] = runs

        together(work, threads, cancel)
        offset, status = min(failures, default=(0, 0))
        return status, offset

    def read_range(self, offset: int, out: np.ndarray) -> None:
        """Fill ``out`` with the bytes at ``offset``, in large pieces."""
        place = np.arange(0, out.nbytes, MAX_RUN, dtype=np.int64)
        self.gather(place + offset, np.minimum(MAX_RUN, out.nbytes - place), place, out,
                    self.io_threads or min(STREAMS, self.disk.threads))

    def scatter(self, start: np.ndarray, length: np.ndarray, place: np.ndarray, data: np.ndarray) -> None:
        """Write the bytes of ``data`` at ``place[k]`` to ``start[k]``, ascending; of repeats the last stays."""
        if len(start) == 0:
            return
        begun = time.perf_counter()
        first, runs = _plan(start, length, 0, 0, MAX_RUN, MAX_RUN)
        report = np.zeros(3, np.int64)
        status = blockio.write_runs(self.fd, start, length, place, first, 0, runs, MAX_CALL, arena(),
                                    data.reshape(-1).view(np.uint8), report)
        self.stats.add(bytes_written=int(report[0]), operations=int(report[1]), seconds=time.perf_counter() - begun)
        if status:
            raise io_error(self.path, status, int(report[2]), "writing")

    def write(self, data, offset: int) -> None:
        """Write all bytes of ``data`` at ``offset``."""
        write_all(self.fd, self.path, data, offset)

    def reserve(self, size: int) -> None:
        """Reserve ``size`` bytes of disk, so that a full disk is an error now and not later."""
        reserve(self.fd, self.path, size)

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            text = f"{os.strerror(error.errno or 0)} while syncing"
            raise StorageError(error.errno, text, str(self.path)) from error

    def drop(self, offset: int, size: int) -> None:
        """Tell the system that the pages of these bytes are not needed again."""
        self._advise("POSIX_FADV_DONTNEED", offset, size)

    def _advise(self, advice: str, offset: int = 0, size: int = 0) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, offset, size, getattr(os, advice))

    def close(self) -> None:
        """Let go of the file. Closing twice does nothing."""
        fds, self.fd, self._aligned_fd, self.direct = (self.fd, self._aligned_fd), -1, -1, False
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> "BlockFile":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def together(work: Callable[[], None], threads: int, cancel: Callable[[], None]) -> None:
    """Call ``work`` on this thread and on ``threads - 1`` of those that wait for disks; all have ended on return.

    ``cancel`` makes the others end early; it is called if an exception (an interrupt, too) comes up here.
    """
    if threads <= 1:
        work()
        return
    helpers: list[Future] = []
    try:
        for _ in range(threads - 1):
            helpers.append(_waiting_threads().submit(work))
        work()
    except BaseException:
        cancel()
        raise
    finally:
        # A helper that has not started has nothing left to do: the pool may be busy with other requests.
        wait(helper for helper in helpers if not helper.cancel())
    for helper in helpers:
        if not helper.cancelled():
            helper.result()


def ahead(call: Callable[[int], T], n: int, depth: int) -> Iterator[T]:
    """``call(0) .. call(n - 1)``; the next ``depth`` of them are made while a result is in use."""
    pending: deque[Future[T]] = deque()
    try:
        for k in range(n):
            if depth == 0:
                yield call(k)
                continue
            while len(pending) <= depth and k + len(pending) < n:
                pending.append(_waiting_threads().submit(call, k + len(pending)))
            # The one in use is not pending any more: its successors are begun before it is handed out.
            yield pending.popleft().result()
    finally:
        wait([future for future in pending if not future.cancel()])


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is made while one is in use."""
    threads, end = current_threads(), object()

    def step() -> T | object:
        inherit_threads(threads)
        return next(items, end)

    coming = _waiting_threads().submit(step)
    try:
        while (item := coming.result()) is not end:
            coming = _waiting_threads().submit(step)
            yield item  # type: ignore[misc]
            del item
    finally:
        if not coming.cancel():
            wait([coming])


def _waiting_threads() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="gnncy-io")
        return _pool


def _forget_threads() -> None:
    """In a forked child: the parent's threads are not there, and its lock may be held for ever."""
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def direct_empty(shape, dtype=np.uint8) -> np.ndarray:
    """An uninitialised array that is best read to directly: on page bounds, and in huge pages if it is large.

    A disk driver that is handed a buffer in one piece was measured twice as fast as with the same in scattered pages.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return aligned_empty(shape, dtype, PAGE)
    pages = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(pages, np.uint8)
    start = -raw.ctypes.data % _HUGE
    return raw[start:start + size].view(dtype).reshape(shape)


def arena() -> np.ndarray:
    """The calling thread's own buffer to read through; two of them share a huge page."""
    buffer = getattr(_local, "arena", None)
    if buffer is None:
        with _pool_lock:
            if not _spare:
                _spare.extend(np.split(direct_empty(_HUGE), _HUGE // ARENA))
            buffer = _local.arena = _spare.pop()
    return buffer


def _plan(start, length, unit, max_gap, max_run, free_run):
    first = np.empty(len(start) + 1, np.int64)
    return first, blockio.plan(start, length, unit, max_gap, max_run, free_run, AMPLIFICATION, first)


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
