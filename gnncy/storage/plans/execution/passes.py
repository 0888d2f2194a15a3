"""One pass over an epoch's minibatches, in each of the four ways."""
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import numpy as np

from gnncy._check import check_ids
from gnncy._kernels.storage import rowset
from gnncy._kernels.storage.repack import divide
from gnncy._memory import format_bytes
from gnncy._threads import current_threads, inherit_threads, run_pieces
from gnncy.errors import MemoryLimitError
from gnncy.storage._blocks import ascending, direct_empty
from gnncy.storage.hyperbatch import HyperbatchResult
from gnncy.storage.plans.execution.memory import AHEAD, peak_memory
from gnncy.storage.plans.execution.repack import RepackBuffers, Repacker, SpillReader
from gnncy.storage.plans.execution.rows import as_bytes, read_members
from gnncy.storage.plans.execution.spill import SpillFile

if TYPE_CHECKING:
    from gnncy.storage.plans.execution.run import PlanRun

PIECE = 4096  # rows that one thread puts together at a time
_END = object()


class _Cancelled(Exception):
    """The pass was closed."""


class _Ahead:
    """Iterates a generator in a thread, up to ``depth`` items ahead of the one in use."""

    def __init__(self, items: Iterator, depth: int, stop: threading.Event):
        self.items, self.stop = items, stop
        self.slots = threading.Semaphore(depth)
        self.ready: queue.SimpleQueue = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, args=(current_threads(),), name="gnncy-prefetch", daemon=True)
        self.thread.start()

    def _run(self, threads: int) -> None:
        inherit_threads(threads)
        try:
            with closing(self.items):  # type: ignore[type-var]
                while self.slots.acquire() and not self.stop.is_set():
                    item = next(self.items, _END)
                    self.ready.put(item)
                    if item is _END:
                        return
            self.ready.put(_Cancelled())  # its consumer may be a thread that waits
        except BaseException as error:  # raised in the consumer
            self.ready.put(error)

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        item = self.ready.get()
        if item is _END:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        self.slots.release()
        return item

    def close(self) -> None:
        self.stop.set()
        self.slots.release()
        self.thread.join()


class _Window:
    """Minibatches that were drawn together, to be drawn again when their rows are there."""

    def __init__(self, keep: bool):
        self.checks: list[tuple[int, int]] = []  # length and checksum of the ids of each
        self.items: list[tuple[np.ndarray, Any]] | None = [] if keep else None
        self.last = False
        # plans B and C
        self.words = self.rows = np.empty(0)
        self.cold_rows = 0
        # plan D
        self.spill: SpillFile | None = None
        self.offsets: list[int] = []
        self.piece = 0

    def __len__(self) -> int:
        return len(self.checks)

    def add(self, ids: np.ndarray, batch) -> None:
        self.checks.append(checksum(ids))
        if self.items is not None:
            self.items.append((ids, batch))


class Pass:
    """One pass over the minibatches."""

    def __init__(self, run: "PlanRun"):
        self.run, self.file, self.hot, self.statistics = run, run.file, run.hot, run.statistics
        self.closed = self.finished = False
        self.stop = threading.Event()  # ends the threads
        self.longest = 0  # accesses of a minibatch so far
        self.at_once = 2 if run.prefetch else 1  # windows whose rows are held: the one in use, and the next
        self.source: Any = None

    def results(self) -> Iterator[HyperbatchResult]:
        try:
            self._check_open()
            make = {"A": self._resident, "B": self._gathered, "C": self._gathered, "D": self._repacked}
            self.source = self._ahead(make[self.run.plan.name](), AHEAD)
            index = 0
            while True:
                begun = time.perf_counter()
                item = next(self.source, None)
                self.statistics.wait_seconds += time.perf_counter() - begun
                if item is None:
                    self.finished = True
                    return
                ids, features, batch = item
                self.statistics.minibatches += 1
                self.statistics.rows_used += len(ids)
                yield HyperbatchResult(ids, features, index, batch)
                self._check_open()
                index += 1
        finally:
            self.close()

    def _ahead(self, items: Iterator, depth: int):
        return _Ahead(items, depth, self.stop) if self.run.prefetch else items

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("this pass over the minibatches was closed, or ended by a newer one")

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise _Cancelled

    def close(self) -> None:
        self.closed = True
        self.stop.set()
        source, self.source = self.source, None
        if source is not None:
            source.close()
        if not self.finished:
            self.run.free()

    # What all plans do

    def _draw(self) -> Iterator[tuple[np.ndarray, Any]]:
        for k, batch in enumerate(self.run.batches):
            yield check_ids(getattr(batch, "nodes", batch), self.file.n, f"node ids of minibatch {k}"), batch

    def _windows(self, begin: Callable[[_Window], None],
                 add: Callable[[_Window, np.ndarray], None]) -> Iterator[_Window]:
        """Windows of minibatches; ``add`` raises a MemoryLimitError and leaves out what is too much for a window."""
        keep = iter(self.run.batches) is self.run.batches
        source = self._draw()
        failure: list[BaseException] = []

        def draw():
            try:
                return next(source, None)
            except BaseException as error:  # raised after the minibatches before it
                failure.append(error)

        item = draw()
        while item is not None:
            begun = time.perf_counter()
            window = _Window(keep)
            begin(window)
            while item is not None and len(window) < self.run.plan.window:
                self._check_stop()
                self.longest = max(self.longest, len(item[0]))
                try:
                    add(window, item[0])
                except MemoryLimitError:
                    if not window.checks:
                        raise
                    break
                window.add(*item)
                item = draw()
            window.last = item is None
            self.statistics.hyperbatches += 1
            self.statistics.read_seconds += time.perf_counter() - begun
            yield window
        if failure:
            raise failure[0]

    def _again(self, window: _Window, source: Iterator) -> Iterator[tuple[np.ndarray, Any]]:
        """The window's minibatches, drawn again."""
        for k, check in enumerate(window.checks):
            item = next(source, None) if window.items is None else window.items[k]
            if item is None or checksum(item[0]) != check:
                raise ValueError("batches gives other minibatches when it is iterated a second time; they must depend "
                                 "on nothing but their position, or be kept in a list")
            yield item

    def _memory(self, cold_rows: int = 0, window: int = 0, list_bytes: int = 0) -> int:
        file = self.file
        return peak_memory(
            self.run.plan.name, n_nodes=file.n, row_bytes=file.row_bytes, batch_rows=self.longest,
            hot_rows=len(self.hot), window=window, cold_rows=cold_rows, list_bytes=list_bytes,
            feature_bytes=file.dim * file.storage.dtype.itemsize, io_threads=file.threads(),
            prefetch=self.run.prefetch)

    def _check_memory(self, **needs: int) -> None:
        need, limit = self._memory(**needs), self.run.plan.peak_memory
        if need > limit:
            raise MemoryLimitError(f"a minibatch of {self.longest} rows needs a peak_memory of at least {need} "
                                   f"({format_bytes(need)}) in plan {self.run.plan.name} with {len(self.hot)} hot "
                                   f"rows, got {limit}; give it more, fewer hot rows or smaller minibatches")

    # A

    def _resident(self) -> Iterator[tuple]:
        for ids, batch in self._draw():
            yield ids, self._take(ids, self.hot.words, self.hot.rows), batch

    def _take(self, ids: np.ndarray, words: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The features of a minibatch whose rows are in memory, the cold ones as the set ``words``."""
        place = self.file.places(ids)
        self._count(len(ids), rowset.places(place, self.hot.words, words, place))
        out = np.empty((len(ids), self.file.dim), self.file.dtype)
        views = as_bytes(self.hot.rows), as_bytes(rows), as_bytes(out)
        run_pieces(lambda start, stop: rowset.take(place, views[0], views[1], start, stop, views[2]), len(ids), PIECE)
        return self.file.features(out)

    def _count(self, lookups: int, hits: int) -> None:
        self.statistics.lookups += lookups
        self.statistics.hits += hits

    # B and C

    def _gathered(self) -> Iterator[tuple]:
        again = self._draw()
        with closing(self._ahead(self._gather(), 1)) as windows:
            for window in windows:
                for ids, batch in self._again(window, again):
                    yield ids, self._take(ids, window.words, window.rows), batch

    def _gather(self) -> Iterator[_Window]:
        """Windows with their distinct cold rows in memory."""
        sets = [np.zeros_like(self.hot.words) for _ in range(self.at_once)]
        arenas: list[np.ndarray] = []

        def begin(window: _Window) -> None:
            window.words = sets[0]
            window.words.fill(0)

        def add(window: _Window, ids: np.ndarray) -> None:
            fresh = np.empty(len(ids), np.int64)
            fresh = fresh[:rowset.mark(self.file.places(ids), self.hot.words, window.words, fresh)]
            window.cold_rows += len(fresh)
            try:
                self._check_memory(cold_rows=window.cold_rows)
            except MemoryLimitError:
                rowset.unmark(fresh, window.words)
                window.cold_rows -= len(fresh)
                raise

        for window in self._windows(begin, add):
            begun, before = time.perf_counter(), self.file.stats()
            if not arenas:  # memory that is not written to takes up none
                room = (self.run.plan.peak_memory - self._memory()) // self.at_once // self.file.row_bytes
                shape = min(room, self.file.n), self.file.dim
                arenas.extend(direct_empty(shape, self.file.dtype) for _ in sets)
            rowset.count(window.words)
            window.rows = arenas[0][:window.cold_rows]
            sets.append(sets.pop(0))
            arenas.append(arenas.pop(0))
            read_members(self.file, window.words, window.rows, self._check_stop)
            self.statistics.rows_read += window.cold_rows
            self.statistics.io.add(**(self.file.stats() - before).as_dict())
            self.statistics.read_seconds += time.perf_counter() - begun
            yield window

    # D

    def _repacked(self) -> Iterator[tuple]:
        again = self._draw()
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(self.run.disk.threads, "gnncy-plan"))
            windows = stack.enter_context(closing(self._ahead(self._pack(pool), 1)))
            for window in windows:
                reader = SpillReader(window.spill, window.offsets[-1], window.piece, pool, self.statistics.io)
                with closing(reader):
                    for k, (ids, batch) in enumerate(self._again(window, again)):
                        yield ids, self._put(ids, reader, window.offsets[k], window.offsets[k + 1]), batch

    def _pack(self, pool: ThreadPoolExecutor) -> Iterator[_Window]:
        """Windows whose cold rows lie in a file, those of each minibatch together."""
        plan, file = self.run.plan, self.file
        repacker = Repacker(file, self.hot, pool, self.run.disk.break_even_gap, self.statistics.io, self._check_stop)
        spills = self.run.spills

        def begin(window: _Window) -> None:
            repacker.start()

        def add(window: _Window, ids: np.ndarray) -> None:
            repacker.add(file.places(ids))
            try:
                self._check_memory(window=len(window) + 1, list_bytes=len(repacker.lists))
            except MemoryLimitError:
                repacker.remove_last()
                raise

        for window in self._windows(begin, add):
            begun = time.perf_counter()
            window.offsets = repacker.offsets
            count = 1 if window.last and len(spills) < 2 else self.at_once
            for _ in range(len(spills), count):
                folder = file.path.absolute().parent if self.run.spill_folder is None else self.run.spill_folder
                spills.append(SpillFile(folder, max(window.offsets[-1], plan.spill_bytes // count)))
            window.spill = spills[0]
            window.spill.reserve(window.offsets[-1])
            spills.append(spills.pop(0))
            self.statistics.spill_bytes = sum(spill.nbytes for spill in spills)
            left = plan.peak_memory - self._memory(list_bytes=len(repacker.lists))
            buffers = RepackBuffers.within(left, len(window), file.row_bytes)
            window.piece = buffers.piece
            rows = sum(repacker.counts)
            repacker.scan(window.spill, buffers)
            seconds = time.perf_counter() - begun
            self.statistics.rows_read += rows
            self.statistics.read_seconds += seconds
            self.statistics.io.add(bytes_requested=rows * file.row_bytes, seconds=seconds)
            yield window

    def _put(self, ids: np.ndarray, reader: SpillReader, start: int, stop: int) -> np.ndarray:
        """The features of a minibatch whose cold rows lie in bytes ``start .. stop - 1`` of the spill file."""
        begun = time.perf_counter()
        places, position = ascending(self.file.places(ids))
        out = np.empty((len(ids), self.file.dim), self.file.dtype)
        cold, rank = np.empty((2, len(ids)), np.int64)
        count = divide(places, position, self.hot.words, as_bytes(self.hot.rows), as_bytes(out), cold, rank)
        self._count(len(ids), len(ids) - count)
        reading = time.perf_counter()
        reader.rows(start, stop, cold[:count], rank[:count], as_bytes(out))
        self.statistics.io.add(seconds=time.perf_counter() - reading)
        self.statistics.read_seconds += time.perf_counter() - begun
        return self.file.features(out)


def checksum(ids: np.ndarray) -> tuple[int, int]:
    """Length and checksum of the ids of a minibatch."""
    return len(ids), zlib.crc32(ids.data)
