"""The four ways to feed an epoch's minibatches from disk. All give the same minibatches, bit for bit."""
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from gnncy._check import check_ids, check_int
from gnncy._kernels.storage import rowset
from gnncy._kernels.storage.repack import divide
from gnncy._memory import format_bytes
from gnncy._threads import current_threads, inherit_threads, run_pieces
from gnncy.errors import MemoryLimitError
from gnncy.storage._blocks import ARENA, PAGE, IOStatistics, ascending, direct_empty
from gnncy.storage.features import FeatureStorage
from gnncy.storage.hyperbatch import HyperbatchResult, HyperbatchStatistics
from gnncy.storage.plans.disk import DiskModel, known_disk
from gnncy.storage.plans.plan import EpochPlan
from gnncy.storage.plans.repack import RepackBuffers, Repacker, SpillReader, code_bytes
from gnncy.storage.plans.spill import SpillFile
from gnncy.storage.sources import ArrayStorage, as_storage

AHEAD = 2  # minibatches that are ready or being put together while one is in use
SLICE = 1 << 17  # rows that one call reads
PIECE = 4096  # rows that one thread puts together at a time
ACCESS = 112  # bytes for each access of a minibatch that is being put together: ids, places, sorting
_END = object()


class RowFile:
    """The rows of a storage as they lie: by place in storage order, in the dtype of the file."""

    def __init__(self, storage, disk: DiskModel | None = None):
        self.storage, self.disk = as_storage(storage), disk
        if not hasattr(self.storage, "read_batch") or hasattr(self.storage, "nnz"):
            raise TypeError(f"storage must hold dense rows, got {type(self.storage).__name__}; "
                            f"reduce sparse features to a width of your choice first")
        self.n, self.dim = self.storage.shape
        self.is_file = isinstance(self.storage, FeatureStorage)
        self.dtype = np.dtype(self.storage.file_dtype if self.is_file else self.storage.dtype)
        self.row_bytes = self.dim * self.dtype.itemsize
        self.nbytes = self.n * self.row_bytes
        self.widened = self.dtype != self.storage.dtype
        if self.is_file:
            self.path, self.offset = self.storage.path, self.storage._offset

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Where the rows of nodes lie, as a new array."""
        position = self.storage._position if self.is_file else None
        return np.array(ids) if position is None else position[ids].astype(np.int64)

    def read(self, places: np.ndarray, out: np.ndarray) -> None:
        """The rows at ascending places."""
        if self.is_file:
            self.storage._gather(places, out, self.threads())
        else:
            self.storage.read_batch(places, out=out)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Rows as the storage gives them."""
        return rows.astype(self.storage.dtype) if self.widened else rows

    def descriptor(self) -> int:
        """Of the file, past the page cache if it is read that way."""
        file = self.storage._opened()
        return file._aligned_fd if file.direct else file.fd

    def threads(self) -> int:
        """Threads that one read takes."""
        if not self.is_file:
            return 0
        file = self.storage._opened()
        return file.io_threads or (self.disk or file.disk).threads

    def stats(self) -> IOStatistics:
        """What the storage has read so far, if it counts that."""
        stats = getattr(self.storage, "stats", None)
        return stats.snapshot() if isinstance(stats, IOStatistics) else IOStatistics()

    def read_buffered(self) -> bool:
        """Give up reading past the page cache; False if that was not done anyway."""
        file = self.storage._opened()
        direct, file.direct = file.direct, False
        return direct

    def drop(self, offset: int, size: int) -> None:
        """Let the page cache forget what was read, if the file is to pass it by and could not."""
        file = self.storage._opened()
        if file._passing and not file.direct:
            file.drop(offset, size)


class HotRows:
    """Rows of a storage that are held in memory, for as long as this object lives.

    Parameters
    ----------
    storage : storage or array-like, shape (n_nodes, dim)
        Anything that :func:`as_storage` takes whose rows are dense. The rows are read at once, in ascending order.
    nodes : array of int, shape (k,), or boolean mask, or int, optional
        The nodes whose rows are held; an int stands for so many rows from the start of the file, which are the most
        needed ones if it is in such an order. All by default.

    Attributes
    ----------
    rows : ndarray, shape (k, dim)
        In storage order, in the dtype of the file.
    words : ndarray of uint64
        Which rows are held, as bits with running counts: a quarter of a byte for each row of the storage.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage.plans import HotRows
    >>> hot = HotRows(np.arange(8, dtype=np.float32).reshape(4, 2), [3, 0])
    >>> len(hot), hot.nbytes
    (2, 32)
    """

    def __init__(self, storage, nodes=None):
        file = storage if isinstance(storage, RowFile) else RowFile(storage)
        self.words = np.zeros((-(-file.n // 64), 2), np.uint64)
        if nodes is None or isinstance(nodes, (int, np.integer)):
            wanted = file.n if nodes is None else min(check_int(nodes, "hot", 0), file.n)
            parts = (np.arange(start, min(start + SLICE, wanted)) for start in range(0, wanted, SLICE))
        else:
            nodes = check_ids(nodes, file.n, "hot")
            parts = (file.places(nodes[start:start + SLICE]) for start in range(0, len(nodes), SLICE))
        none, fresh = np.zeros_like(self.words), np.empty(SLICE, np.int64)
        for places in parts:
            rowset.mark(places, none, self.words, fresh)
        count = rowset.count(self.words)
        array = file.storage.array if isinstance(file.storage, ArrayStorage) else None
        if count == file.n and array is not None and array.dtype == file.dtype and array.flags.c_contiguous:
            self.rows = array  # in memory already
        else:
            self.rows = direct_empty((count, file.dim), file.dtype)
            read_members(file, self.words, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of what finds them."""
        return self.rows.nbytes + self.words.nbytes

    def __repr__(self) -> str:
        return f"HotRows({len(self)} rows, {format_bytes(self.nbytes)})"


def read_members(file: RowFile, words: np.ndarray, out: np.ndarray, check=lambda: None) -> None:
    """Read the rows of a set in ascending order to ``out``."""
    word = done = 0
    places = np.empty(min(SLICE, len(out) + 64), np.int64)
    while done < len(out):
        check()
        word, some = rowset.members(words, word, places)
        file.read(places[:some], out[done:done + some])
        done += some


def run_plan(plan: EpochPlan, storage, batches: Iterable, *, hot=None, disk: DiskModel | None = None, spill_folder=None,
             prefetch: bool = True) -> "PlanRun":
    """Feed minibatches in the way that a plan says.

    Every plan gives the same minibatches in the same order, bit for bit.

    Parameters
    ----------
    plan : EpochPlan
        ``hot_rows`` and ``window`` are taken from it, and ``peak_memory`` is what buffers have to fit into: a window
        that would take more ends before.
    storage : storage or array-like, shape (n_nodes, dim)
        Anything that :func:`as_storage` takes whose rows are dense; plan D needs a :class:`FeatureStorage`.
    batches : iterable
        For each minibatch an array of node ids, or an object with such an array as ``nodes``. Plans B, C and D draw
        each minibatch twice, once to plan the reading and once to use it, so that sampled minibatches need not be kept;
        what cannot be iterated twice (a generator) is kept for a window.
    hot : HotRows or array of int, optional
        Rows that are held in memory, or the nodes they belong to, the first ``plan.hot_rows`` of which are. A
        :class:`HotRows` is shared with other runs, so that it is read once. By default the first rows of the file;
        plan A holds all.
    disk : DiskModel, optional
        What the disk costs; by default that of an earlier calibration.
    spill_folder : path-like, optional
        Where plan D puts its temporary file; the folder of the storage by default.
    prefetch : bool
        Read ahead in threads; False reads when a minibatch is asked for.

    Returns
    -------
    PlanRun

    Raises
    ------
    MemoryLimitError
        While it is iterated, if a minibatch does not fit into ``plan.peak_memory``.
    StorageError
        If the storage cannot be read, or the temporary file does not fit on the disk.
    ValueError
        If a minibatch is another one when it is drawn again.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage.plans import EpochPlan, run_plan
    >>> x = np.arange(8, dtype=np.float32).reshape(4, 2)
    >>> plan = EpochPlan("C", hot_rows=1, window=2, seconds=0, bytes_read=0, bytes_written=0, operations=0,
    ...                  peak_memory=10_000_000)
    >>> [result.features.tolist() for result in run_plan(plan, x, [[3, 0], [1]])]
    [[[6.0, 7.0], [0.0, 1.0]], [[2.0, 3.0]]]
    """
    return PlanRun(plan, storage, batches, hot=hot, disk=disk, spill_folder=spill_folder, prefetch=prefetch)


class PlanRun:
    """Minibatches with their features, in order; made by :func:`run_plan`. Each ``iter()`` makes one pass.

    Leaving the loop, an error or :meth:`close` ends all threads and removes temporary files before it returns. After a
    whole pass plan D's files stay for the next one, which writes to them twice as fast as to new ones. Errors in
    threads are raised in the loop, after the minibatches that were read before them.

    Attributes
    ----------
    plan : EpochPlan
    hot : HotRows
        Rows held in memory, over passes.
    statistics : HyperbatchStatistics
        Of the current or last pass.
    """

    def __init__(self, plan: EpochPlan, storage, batches: Iterable, *, hot=None, disk: DiskModel | None = None,
                 spill_folder=None, prefetch: bool = True):
        self.plan, self.batches, self.prefetch = plan, batches, bool(prefetch)
        self.file = RowFile(storage, disk)
        if plan.name == "D" and not self.file.is_file:
            raise TypeError(f"plan D scans a file, the storage is of type {type(self.file.storage).__name__}; write "
                            f"one with FeatureStorage.from_array, or take another plan")
        self.disk = disk or known_disk(self.file.path if self.file.is_file else ".")
        self.spill_folder = spill_folder
        if not isinstance(hot, HotRows):
            if plan.name == "A":
                hot = None
            elif hot is None:
                hot = plan.hot_rows
            else:
                hot = check_ids(hot, self.file.n, "hot")[:plan.hot_rows]
            hot = HotRows(self.file, hot)
        elif hot.rows.shape[1:] != (self.file.dim,) or len(hot.words) != -(-self.file.n // 64):
            raise ValueError("hot holds rows of another storage")
        self.hot = hot
        if plan.name == "A" and len(hot) != self.file.n:
            raise ValueError(f"plan A holds all {self.file.n} rows in memory, hot holds {len(hot)}")
        self.statistics = HyperbatchStatistics()
        self.spills: list[SpillFile] = []
        self._pass: _Pass | None = None

    def __iter__(self) -> Iterator[HyperbatchResult]:
        self._end_pass()
        self.statistics = HyperbatchStatistics()
        self._pass = _Pass(self)
        return self._pass.results()

    def _end_pass(self) -> None:
        current, self._pass = self._pass, None
        if current is not None:
            current.close()

    def free(self) -> None:
        """Give back the disk space of temporary files."""
        while self.spills:
            self.spills.pop().close()

    def close(self) -> None:
        """End the current pass with its threads, and remove temporary files.

        Closing twice does nothing; a new pass may follow.
        """
        self._end_pass()
        self.free()

    def __enter__(self) -> "PlanRun":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


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


class _Pass:
    """One pass over the minibatches."""

    def __init__(self, run: PlanRun):
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


def as_bytes(rows: np.ndarray) -> np.ndarray:
    """The bytes of rows, one row each."""
    return rows.view(np.uint8).reshape(len(rows), -1) if rows.size else np.empty((0, rows.shape[1]), np.uint8)


def peak_memory(name: str, *, n_nodes: int, row_bytes: int, batch_rows: int, hot_rows: int = 0, window: int = 1,
                cold_rows: int = 0, list_bytes: int | None = None, feature_bytes: int | None = None,
                extent: int = PAGE, io_threads: int = 16, prefetch: bool = True) -> int:
    """Bytes that a plan holds at most, beyond the sampled minibatches themselves.

    Parameters
    ----------
    name : {"A", "B", "C", "D"}
    n_nodes, row_bytes : int
        Rows of the file, and the bytes of one.
    batch_rows : int
        Accesses of the largest minibatch.
    hot_rows : int
        Rows that are held throughout; all of them in plan A.
    window : int
        Minibatches of a window (plan D).
    cold_rows : int
        Distinct cold rows of a window (plans B and C), or of a minibatch (plan D).
    list_bytes : int, optional
        Bytes of the lists of a window's rows (plan D); by default as expected of rows that are spread evenly.
    feature_bytes : int, optional
        Bytes of a row as it is given to the consumer, if not ``row_bytes``.
    extent : int
        Bytes of one write of plan D: the more, the faster; it takes what memory there is up to 256 KiB.
    io_threads : int
        Reads in flight.
    prefetch : bool
        Whether the next window and the next minibatches are read ahead.

    Returns
    -------
    int

    Examples
    --------
    >>> from gnncy.storage.plans import peak_memory
    >>> peak_memory("A", n_nodes=1_000_000, row_bytes=512, batch_rows=10_000, hot_rows=1_000_000)
    545507216
    """
    feature_bytes = row_bytes if feature_bytes is None else feature_bytes
    words = -(-n_nodes // 64) * 16
    total = hot_rows * row_bytes + words
    total += batch_rows * (feature_bytes * (AHEAD + 1 if prefetch else 2) + ACCESS)
    if feature_bytes != row_bytes:
        total += batch_rows * row_bytes
    if name in ("B", "C") or hot_rows:
        total += min(io_threads * ARENA, n_nodes * row_bytes)  # each thread reads through an arena of its own
    if name in ("B", "C"):
        total += (2 if prefetch else 1) * (words + cold_rows * row_bytes) + min(SLICE, n_nodes) * 40
    if name == "D":
        lists = window * code_bytes(cold_rows, n_nodes) if list_bytes is None else list_bytes
        total += n_nodes * row_bytes // PAGE + int(lists * 9 / 8)  # an array of bytes grows by an eighth
        total += RepackBuffers.of(extent, window, row_bytes).nbytes if window else 0
    return total
