"""Scan and repack: one sequential pass over a file gives every minibatch of a window its rows, side by side."""
import errno
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import gcd

import numpy as np

from gnncy._kernels.storage import repack as kernels
from gnncy.storage._blocks import PAGE, IOStatistics, direct_empty, io_error
from gnncy.storage.plans.execution.spill import SpillFile

EXTENT = 256 << 10  # bytes of one write, at most
PIECE = 1 << 20  # bytes of one read of the spill file, and that one thread writes at a time, at most
CHUNK = 2 << 20  # bytes of one read of the scan, at most
IN_FLIGHT = 8  # chunks, pieces and writes at a time


@dataclass(frozen=True)
class RepackBuffers:
    """Memory of a scan and repack, all in proportion to the extents.

    Attributes
    ----------
    extent, piece, chunk : int
        Bytes of one write, of one read of the spill file, and of one read of the scan.
    chunk_rows : int
        Rows that one read of the scan brings.
    extents : int
        Extents in memory: one for each minibatch of the window, and those that are being written.
    """

    extent: int
    piece: int
    chunk: int
    chunk_rows: int
    extents: int

    @classmethod
    def of(cls, extent: int, window: int, row_bytes: int) -> "RepackBuffers":
        """Those for a window of minibatches."""
        piece = min(PIECE, 8 * extent)
        rows = max(1, min(CHUNK, 16 * extent) // row_bytes)
        step = PAGE // gcd(PAGE, row_bytes)  # so many rows fill whole pages
        rows = rows // step * step or rows
        return cls(extent, piece, pages(rows * row_bytes) + 2 * PAGE, rows, window + IN_FLIGHT * -(-piece // extent))

    @classmethod
    def within(cls, memory: int, window: int, row_bytes: int) -> "RepackBuffers":
        """The largest ones of at most ``memory`` bytes, or the least there are."""
        low, high = 1, EXTENT // PAGE
        while low < high:
            middle = (low + high + 1) // 2
            fits = cls.of(middle * PAGE, window, row_bytes).nbytes <= memory
            low, high = (middle, high) if fits else (low, middle - 1)
        return cls.of(low * PAGE, window, row_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return IN_FLIGHT * (self.chunk + self.piece) + self.extents * self.extent


class Repacker:
    """Scans a file of rows for one window after the other, and reads the minibatches back.

    Parameters
    ----------
    rows : RowFile
        The file.
    hot : HotRows
        Rows that need not be read.
    pool : ThreadPoolExecutor
        Threads that wait for the disk.
    gap : int
        Bytes whose reading costs as much as another operation.
    stats : IOStatistics
        Counts input and output.
    check : callable
        Called before every chunk; ends a scan by an exception.
    """

    def __init__(self, rows, hot, pool: ThreadPoolExecutor, gap: float, stats: IOStatistics,
                 check: Callable[[], None]):
        self.rows, self.hot, self.pool, self.stats, self.check = rows, hot, pool, stats, check
        self.gap = int(gap) // PAGE
        self.end = rows.offset + rows.n * rows.row_bytes
        self.needed = np.zeros(-(-self.end // PAGE), np.uint8)
        self.start()

    def start(self) -> None:
        """Begin a new window."""
        self.lists, self.bounds, self.offsets = bytearray(), [0], [0]
        self.counts: list[int] = []
        self.needed.fill(0)

    def add(self, rows: np.ndarray) -> None:
        """Add a minibatch of storage rows, which are sorted in place, to the window."""
        rows.sort()
        cold = np.empty(len(rows), np.int64)
        cold = cold[:kernels.distinct(rows, self.hot.words, cold)]
        code = np.empty(10 * len(cold), np.uint8)
        self.lists += code[:kernels.encode(cold, code)].data
        self.bounds.append(len(self.lists))
        self.counts.append(len(cold))
        self.offsets.append(self.offsets[-1] + pages(len(cold) * self.rows.row_bytes))
        kernels.touch(cold, self.rows.row_bytes, self.rows.offset, self.needed)

    def remove_last(self) -> None:
        """Take the minibatch that was added last out of the window."""
        self.counts.pop()
        self.bounds.pop()
        self.offsets.pop()
        del self.lists[self.bounds[-1]:]

    def scan(self, spill: SpillFile, buffers: RepackBuffers) -> None:
        """Read the file once, and write the rows of every minibatch of the window to ``spill``."""
        lists, self.lists = np.frombuffer(self.lists, np.uint8), bytearray()
        extents = direct_empty((buffers.extents, buffers.extent))
        streams = kernels.Streams(lists, np.array(self.bounds), np.array(self.offsets[:-1]), self.rows.row_bytes,
                                  extents)
        del lists
        group = max(1, buffers.piece // buffers.extent)
        writing: deque[tuple[np.ndarray, Future]] = deque()

        def write(least: int) -> None:
            while streams.waiting >= least:
                full = streams.take(group)
                writing.append((full, self.pool.submit(self._write, spill, extents, full)))

        def written() -> None:
            full, future = writing.popleft()
            future.result()
            streams.release(full)

        try:
            for (stop, base, _, _), chunk in in_order(self.pool, self._read_chunk, self._chunks(buffers.chunk_rows),
                                                      buffers.chunk):
                self.check()
                while not streams.append(chunk, base - self.rows.offset, stop):
                    write(1)
                    written()
                write(group)
                while writing and writing[0][1].done():
                    written()
            streams.finish()
            while streams.waiting or writing:
                if streams.waiting:
                    write(1)
                else:
                    written()
        finally:
            wait(future for _, future in writing)

    def _chunks(self, step: int) -> Iterator[tuple]:
        """Row after the last of each chunk, its first byte, and the runs of bytes to read."""
        first, last = np.empty((2, self.rows.row_bytes * step // PAGE + 3), np.int64)
        for start in range(0, self.rows.n, step):
            stop = min(start + step, self.rows.n)
            low = (self.rows.offset + start * self.rows.row_bytes) // PAGE
            high = -(-(self.rows.offset + stop * self.rows.row_bytes) // PAGE)
            n = kernels.runs(self.needed, low, high, self.gap, first, last)
            if n:
                yield stop, low * PAGE, first[:n].copy(), last[:n].copy()

    def _read_chunk(self, task: tuple, buffer: np.ndarray) -> None:
        _, base, first, last = task
        report = np.zeros(3, np.int64)
        status = kernels.read(self.rows.descriptor(), first, last, base, self.end, buffer, report)
        if status == errno.EINVAL and self.rows.read_buffered():
            status = kernels.read(self.rows.descriptor(), first, last, base, self.end, buffer, report)
        for stats in (self.stats, self.rows.storage.stats):
            stats.add(bytes_read=int(report[0]), operations=int(report[1]))
        if status:
            raise io_error(self.rows.path, status, int(report[2]), "reading")
        self.rows.drop(int(first[0]), int(last[-1] - first[0]))

    def _write(self, spill: SpillFile, extents: np.ndarray, full: np.ndarray) -> None:
        report = np.zeros(3, np.int64)
        status = kernels.write(spill.fd, extents, full, report)
        self.stats.add(bytes_written=int(report[0]), operations=int(report[1]))
        if status:
            raise io_error(spill.folder, status, int(report[2]), "writing the temporary file")


class SpillReader:
    """Reads what a scan has written, from the first minibatch to the last."""

    def __init__(self, spill: SpillFile, total: int, size: int, pool: ThreadPoolExecutor, stats: IOStatistics):
        self.spill, self.total, self.stats = spill, total, stats
        tasks = ((low, min(low + size, total)) for low in range(0, total, size))
        self.pieces = in_order(pool, self._read, tasks, size)
        self.low, self.high, self.piece = 0, 0, np.empty(0, np.uint8)

    def _read(self, task: tuple[int, int], buffer: np.ndarray) -> None:
        report = np.zeros(3, np.int64)
        low, high = np.array(task)[:, None]
        status = kernels.read(self.spill.fd, low, high, task[0], self.total, buffer, report)
        self.stats.add(bytes_read=int(report[0]), operations=int(report[1]))
        if status:
            raise io_error(self.spill.folder, status, int(report[2]), "reading the temporary file")

    def rows(self, start: int, stop: int, cold: np.ndarray, rank: np.ndarray, out: np.ndarray) -> None:
        """Copy row ``rank[k]`` of those at ``start .. stop - 1`` of the file to row ``cold[k]`` of ``out``, bytes."""
        done, reached = 0, start
        while done < len(cold):
            if self.high <= reached:
                (self.low, self.high), self.piece = next(self.pieces)
                continue
            done = kernels.put(self.piece[reached - self.low:], reached - start, min(self.high, stop) - start, cold,
                               rank, done, out)
            reached = self.high

    def close(self) -> None:
        """Wait for the reads in flight."""
        self.pieces.close()


def in_order(pool: ThreadPoolExecutor, read: Callable, tasks: Iterable, size: int) -> Generator:
    """Tasks with a buffer that ``read(task, buffer)`` filled, in order; the next ones are being read meanwhile.

    A buffer is used again when the next one is asked for.
    """
    memory = direct_empty((IN_FLIGHT, size))
    todo = iter(tasks)
    flying: deque[tuple[object, np.ndarray, Future]] = deque()

    def take_off(buffer: np.ndarray) -> None:
        for task in todo:
            flying.append((task, buffer, pool.submit(read, task, buffer)))
            return

    try:
        for buffer in memory:
            take_off(buffer)
        while flying:
            task, buffer, future = flying.popleft()
            future.result()
            yield task, buffer
            take_off(buffer)
    finally:
        wait(future for _, _, future in flying)


def pages(nbytes: int) -> int:
    """Bytes of the whole pages that hold so many."""
    return -(-nbytes // PAGE) * PAGE


def code_bytes(rows: float, n: int) -> float:
    """Bytes of the list of a minibatch's rows, if they are spread evenly over ``n``."""
    missing = 1 - min(rows / n, 1)
    return rows * sum(missing ** 128 ** k for k in range(1, 5)) + rows
