"""Minibatches of features, read ahead: many minibatches share one ascending pass over the file."""
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gnncy._check import check_float, check_ids, check_int
from gnncy._kernels.storage import hotset as kernels
from gnncy._memory import aligned_empty, format_bytes, parse_bytes
from gnncy._threads import current_threads, inherit_threads
from gnncy.errors import MemoryLimitError
from gnncy.storage._blocks import PAGE, IOStatistics
from gnncy.storage.hotset import AdaptiveHotset
from gnncy.storage.sources import as_storage


@dataclass(frozen=True)
class HyperbatchConfig:
    """How hyperbatches are read.

    Parameters
    ----------
    batch_size : int
        Seed nodes in a minibatch, for whoever draws the minibatches.
    prefetch_factor : int
        Hyperbatches in memory at once, the one in use included, as far as there are buffers; 1 reads nothing ahead.
    block_align : int
        Buffers begin at multiples of so many bytes, a power of 2.
    num_buffers : int
        Buffers that ``buffer_bytes`` is divided into.
    hotset_fraction : float
        Share of the rows that the hotset may hold; 0 turns it off.
    buffer_bytes : int or str
        Memory of all buffers together, for example ``"64MB"``.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import HyperbatchConfig
    >>> config = HyperbatchConfig(buffer_bytes="1MB", hotset_fraction=0)
    >>> for result in config.iterate(np.eye(4, dtype=np.float32), [[0, 1], [2, 1]]):
    ...     print(result.batch_index, result.node_ids, result.features.shape)
    0 [0 1] (2, 4)
    1 [2 1] (2, 4)
    """

    batch_size: int = 4096
    prefetch_factor: int = 2
    block_align: int = 4096
    num_buffers: int = 2
    hotset_fraction: float = 0.05
    buffer_bytes: int | str = "64MB"

    def __post_init__(self):
        check_int(self.batch_size, "batch_size", 1)
        check_int(self.prefetch_factor, "prefetch_factor", 1)
        _check_align(self.block_align)
        check_int(self.num_buffers, "num_buffers", 1)
        check_float(self.hotset_fraction, "hotset_fraction", 0, 1)
        parse_bytes(self.buffer_bytes, "buffer_bytes")

    def hotset(self, storage) -> AdaptiveHotset | None:
        """An empty hotset for ``hotset_fraction`` of the rows of ``storage``; None if that is no row."""
        capacity = int(storage.shape[0] * self.hotset_fraction)
        return AdaptiveHotset(capacity, storage.shape[1], dtype=storage.dtype) if capacity else None

    def iterate(self, storage, batches: Iterable, hotset: AdaptiveHotset | None = None) -> "HyperbatchIterator":
        """A :class:`HyperbatchIterator` with these settings."""
        storage = as_storage(storage)
        return HyperbatchIterator(storage, batches, buffer_bytes=self.buffer_bytes, num_buffers=self.num_buffers,
                                  prefetch_factor=self.prefetch_factor, block_align=self.block_align,
                                  hotset=self.hotset(storage) if hotset is None else hotset)


@dataclass(frozen=True, eq=False)
class HyperbatchResult:
    """One minibatch with its features.

    Attributes
    ----------
    node_ids : ndarray of int64, shape (k,)
    features : ndarray, shape (k, dim)
        Row i belongs to ``node_ids[i]``; a new array, the caller's to keep or change.
    batch_index : int
        Position of the minibatch, from 0.
    batch : object
        What was given for it.
    """

    node_ids: np.ndarray
    features: np.ndarray
    batch_index: int
    batch: Any


@dataclass
class HyperbatchStatistics:
    """What one pass over the minibatches did.

    Attributes
    ----------
    minibatches, hyperbatches : int
    rows_used, rows_read : int
        Rows given to the consumer, and rows asked of the storage.
    lookups, hits : int
        Rows looked up in the hotset (distinct ones of a hyperbatch) or among hot rows (every one), and found there.
    wait_seconds : float
        Time for which the consumer waited for rows.
    read_seconds : float
        Time spent in drawing minibatches and reading their rows, beside the consumer's or in it.
    io : IOStatistics
        Bytes and operations of the storage, if it counts them, and of a temporary file.
    spill_bytes : int
        Disk space of temporary files.
    """

    minibatches: int = 0
    hyperbatches: int = 0
    rows_used: int = 0
    rows_read: int = 0
    lookups: int = 0
    hits: int = 0
    wait_seconds: float = 0.0
    read_seconds: float = 0.0
    io: IOStatistics = field(default_factory=IOStatistics)
    spill_bytes: int = 0

    @property
    def bytes_read(self) -> int:
        """Bytes that were read."""
        return self.io.bytes_read

    @property
    def bytes_written(self) -> int:
        """Bytes that were written to temporary files."""
        return self.io.bytes_written

    @property
    def hit_rate(self) -> float:
        """Share of lookups that the hotset answered."""
        return self.hits / self.lookups if self.lookups else 0.0


class HyperbatchIterator:
    """Features of minibatches, in order, read from a storage many minibatches at a time.

    Consecutive minibatches form a hyperbatch while their distinct rows fit into a buffer. Those rows, without the ones
    that the hotset holds, are read by one ascending pass, in a thread of their own while the hyperbatch before is being
    used. What comes out does not depend on buffers, hotset, threads or prefetching.

    Parameters
    ----------
    storage : storage or array-like, shape (n_nodes, dim)
        Anything that :func:`as_storage` takes whose rows are dense.
    batches : iterable
        For each minibatch an array of node ids, or an object with such an array as ``nodes``. It is drawn from in the
        reading thread. Each ``iter()`` of this object makes one pass over it.
    buffer_bytes : int or str
        Memory for all buffers with their index. What comes on top: the yielded copies, the minibatches of the
        hyperbatches in memory, 1 MiB for each reading thread.
    prefetch : bool
        Read ahead in a thread; False reads when a minibatch is asked for.
    hotset : AdaptiveHotset, optional
        Cache of rows, kept over passes by the caller, whose statistics each pass starts anew.
    num_buffers : int
        Buffers that the memory is divided into.
    prefetch_factor : int, optional
        Buffers that are used; all by default.
    max_batches : int, optional
        Minibatches in a hyperbatch, at most; bounds the memory of the minibatches themselves.
    block_align : int
        Buffers begin at multiples of so many bytes, a power of 2.

    Attributes
    ----------
    statistics : HyperbatchStatistics
        Of the current or last pass.

    Raises
    ------
    MemoryLimitError
        If the rows of a single minibatch do not fit into a buffer; the message names the least that would do.

    Notes
    -----
    Leaving the loop, an error or :meth:`close` ends the reading thread before it returns. Errors in the thread are
    raised in the loop, after the minibatches that were read before them.

    References
    ----------
    AGNES: storage-centric training of graph neural networks, KDD 2026 (many minibatches share each block read).

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import HyperbatchIterator
    >>> x = np.arange(8, dtype=np.float32).reshape(4, 2)
    >>> loader = HyperbatchIterator(x, [np.array([3, 0]), np.array([1])], buffer_bytes="1MB")
    >>> [result.features.tolist() for result in loader]
    [[[6.0, 7.0], [0.0, 1.0]], [[2.0, 3.0]]]
    >>> loader.statistics.hyperbatches
    1
    """

    def __init__(self, storage, batches: Iterable, *, buffer_bytes: int | str, prefetch: bool = True,
                 hotset: AdaptiveHotset | None = None, num_buffers: int = 2, prefetch_factor: int | None = None,
                 max_batches: int | None = None, block_align: int = PAGE):
        self.storage = as_storage(storage)
        if not hasattr(self.storage, "read_batch") or hasattr(self.storage, "nnz"):
            raise TypeError(f"storage must hold dense rows, got {type(self.storage).__name__}; "
                            f"reduce sparse features to a width of your choice first")
        n, dim = self.storage.shape
        dtype = np.dtype(self.storage.dtype)
        if hotset is not None and (hotset.dim != dim or hotset.dtype != dtype):
            raise ValueError(f"hotset holds rows of {hotset.dim} {hotset.dtype}, the storage has {dim} {dtype}")
        self.batches, self.hotset = batches, hotset
        self.buffer_bytes = parse_bytes(buffer_bytes, "buffer_bytes")
        self.num_buffers = check_int(num_buffers, "num_buffers", 1)
        depth = num_buffers if prefetch_factor is None else check_int(prefetch_factor, "prefetch_factor", 1)
        depth = min(depth, num_buffers)
        self.max_batches = None if max_batches is None else check_int(max_batches, "max_batches", 1)
        self.prefetch = bool(prefetch) and depth > 1
        self.statistics = HyperbatchStatistics()
        row = _row_bytes(dim, dtype)
        rows = min(self.buffer_bytes // num_buffers // row, n)
        align = _check_align(block_align)
        self._arenas = [_Arena(rows, dim, dtype, align) for _ in range(depth if self.prefetch else 1)]
        self._pass: _Pass | None = None

    @staticmethod
    def buffer_bytes_for(rows: int, dim: int, dtype=np.float32, num_buffers: int = 2) -> int:
        """The least ``buffer_bytes`` for minibatches of at most ``rows`` distinct rows of width ``dim``."""
        return rows * num_buffers * _row_bytes(dim, np.dtype(dtype))

    def __iter__(self) -> Iterator[HyperbatchResult]:
        self.close()
        if self.hotset is not None:
            self.hotset.start_epoch()
        self.statistics = statistics = HyperbatchStatistics()
        self._pass = current = _Pass(self.storage, self.batches, self.hotset, self._arenas, self.num_buffers,
                                     self.max_batches, self.prefetch, statistics)
        return current.results()

    def close(self) -> None:
        """End the current pass and its thread. Closing twice does nothing; a new pass may follow."""
        current, self._pass = self._pass, None
        if current is not None:
            current.close()

    def __enter__(self) -> "HyperbatchIterator":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


class _Arena:
    """Room for the distinct rows of a hyperbatch, and the table that numbers their ids."""

    def __init__(self, rows: int, dim: int, dtype: np.dtype, align: int):
        self.rows = aligned_empty((rows, dim), dtype, align)
        self.unique = np.empty(rows, np.int64)
        size = _table_size(rows)
        self.keys, self.values = np.empty(size, np.int64), np.empty(size, np.int32)


def _check_align(align: int) -> int:
    if check_int(align, "block_align", 8) & (align - 1):
        raise ValueError(f"block_align must be a power of 2, got {align}")
    return align


def _table_size(rows: int) -> int:
    return 1 << max(3, (2 * rows).bit_length())


def _row_bytes(dim: int, dtype: np.dtype) -> int:
    """Bytes that a row of an arena may take: itself, its id, four places of the table, its part in sorting a read."""
    return dim * dtype.itemsize + 8 + 4 * 12 + 24


@dataclass
class _Hyperbatch:
    arena: _Arena
    batches: list[tuple[np.ndarray, np.ndarray, Any]]  # ids, places of their rows in the arena, what was given


class _Pass:
    """One pass over the minibatches. The thread runs :meth:`_read_all` and shares nothing else with the consumer."""

    def __init__(self, storage, batches, hotset, arenas, num_buffers, max_batches, prefetch, statistics):
        self.storage, self.hotset, self.statistics, self.num_buffers = storage, hotset, statistics, num_buffers
        self.source = iter(batches)
        self.max_batches = max_batches
        self.waiting: tuple[np.ndarray, Any] | None = None  # drawn, but too large for the hyperbatch before it
        self.drawn = 0
        self.stopped = False
        self.arenas = arenas
        self.thread = None
        if prefetch:
            self.free: queue.SimpleQueue = queue.SimpleQueue()
            self.ready: queue.SimpleQueue = queue.SimpleQueue()
            for arena in arenas:
                self.free.put(arena)
            self.thread = threading.Thread(target=self._read_all, args=(current_threads(),), name="gnncy-prefetch",
                                           daemon=True)

    def results(self) -> Iterator[HyperbatchResult]:
        try:
            if self.thread is not None and not self.stopped:
                self.thread.start()
            index = 0
            while True:
                self._check_open()
                begun = time.perf_counter()
                group = self._next()
                self.statistics.wait_seconds += time.perf_counter() - begun
                if group is None:
                    return
                for ids, places, batch in group.batches:
                    features = np.empty((len(ids), group.arena.rows.shape[1]), group.arena.rows.dtype)
                    np.take(group.arena.rows, places, axis=0, out=features, mode="clip")
                    self.statistics.minibatches += 1
                    self.statistics.rows_used += len(ids)
                    yield HyperbatchResult(ids, features, index, batch)
                    self._check_open()
                    index += 1
                if self.thread is not None:
                    self.free.put(group.arena)
        finally:
            self.close()

    def _check_open(self) -> None:
        if self.stopped:
            raise ValueError("this pass over the minibatches was closed, or ended by a newer one")

    def close(self) -> None:
        self.stopped = True
        if self.thread is not None and self.thread.ident is not None:
            self.free.put(None)
            self.thread.join()

    def _next(self) -> _Hyperbatch | None:
        if self.thread is None:
            return self._read(self.arenas[0])
        item = self.ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _read_all(self, threads: int) -> None:
        inherit_threads(threads)
        try:
            while (arena := self.free.get()) is not None and not self.stopped:
                group = self._read(arena)
                self.ready.put(group)
                if group is None:
                    return
        except BaseException as error:  # raised in the consumer
            self.ready.put(error)

    def _draw(self) -> tuple[np.ndarray, Any] | None:
        if self.waiting is not None:
            item, self.waiting = self.waiting, None
            return item
        for batch in self.source:
            ids = check_ids(getattr(batch, "nodes", batch), self.storage.shape[0],
                            f"node ids of minibatch {self.drawn}")
            self.drawn += 1
            return ids, batch
        return None

    def _read(self, arena: _Arena) -> _Hyperbatch | None:
        """The next hyperbatch, its rows in ``arena``."""
        begun = time.perf_counter()
        arena.keys.fill(-1)
        count = 0
        batches: list[tuple[np.ndarray, np.ndarray, Any]] = []
        while len(batches) != self.max_batches and not self.stopped and (item := self._draw()) is not None:
            ids, batch = item
            places = np.empty(len(ids), np.int32)
            total = kernels.number(ids, count, arena.keys, arena.values, arena.unique, places)
            if total < 0:
                if not batches:
                    raise self._too_small(len(np.unique(ids)))
                self.waiting = item
                break
            count = total
            batches.append((ids, places, batch))
        if not batches:
            return None
        moved = self._fill(arena, count)
        self.statistics.hyperbatches += 1
        self.statistics.read_seconds += time.perf_counter() - begun
        if moved is not None:
            batches = [(ids, moved[places], batch) for ids, places, batch in batches]
        return _Hyperbatch(arena, batches)

    def _fill(self, arena: _Arena, count: int) -> np.ndarray | None:
        """Bring the rows of the arena's ids; returns where each went if not to its own place."""
        unique, moved, misses = arena.unique[:count], None, count
        if self.hotset is not None:
            # Rows to be read come first, so that the storage writes straight into the arena.
            cached = self.hotset.contains(unique)
            order = np.argsort(cached, kind="stable")
            unique = unique[order]
            moved = np.empty(count, np.int32)
            moved[order] = np.arange(count, dtype=np.int32)
            hit = self.hotset.lookup(unique, arena.rows[:count])
            misses = count - int(cached.sum())
            if not hit[misses:].all():  # somebody else uses the hotset and changed it in between
                misses = count
            self.statistics.lookups += count
            self.statistics.hits += count - misses
        before = self._io()
        self.storage.read_batch(unique[:misses], out=arena.rows[:misses])
        if before is not None:
            self.statistics.io = _sum(self.statistics.io, self._io() - before)
        self.statistics.rows_read += misses
        if self.hotset is not None:
            self.hotset.insert(unique[:misses], arena.rows[:misses])
        return moved

    def _io(self):
        stats = getattr(self.storage, "stats", None)
        return stats.snapshot() if isinstance(stats, IOStatistics) else None

    def _too_small(self, rows: int) -> MemoryLimitError:
        need = rows * _row_bytes(self.storage.shape[1], np.dtype(self.storage.dtype)) * self.num_buffers
        return MemoryLimitError(f"minibatch {self.drawn - 1} has {rows} distinct rows, a buffer holds "
                                f"{len(self.arenas[0].unique)}: buffer_bytes must be at least {need} "
                                f"({format_bytes(need)}) for {self.num_buffers} buffers; or make minibatches smaller")


def _sum(a: IOStatistics, b: IOStatistics) -> IOStatistics:
    total = a.snapshot()
    total.add(**b.as_dict())
    return total
