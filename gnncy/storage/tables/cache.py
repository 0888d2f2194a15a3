"""Blocks of a table in memory: which lie where, which are read ahead, and which are written back when."""
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NamedTuple

import numpy as np

from gnncy._memory import format_bytes
from gnncy.errors import MemoryLimitError
from gnncy.storage._blocks import _waiting_threads, direct_empty
from gnncy.storage.tables.file import TableFile


class Exchange(NamedTuple):
    """Blocks and their slots: what is written, then what is read in its place, and what is written meanwhile."""

    out: np.ndarray
    leaving: np.ndarray
    missing: np.ndarray
    slots: np.ndarray
    kept: np.ndarray
    cleaned: np.ndarray


class BlockCache:
    """A bounded number of blocks. A block that leaves is written back first if it was changed.

    At most one exchange (changed blocks out, others in) is under way, in a thread, and touches none of the blocks that
    are held; all bookkeeping is done by the calling thread. A block that is on its way out can only come back by a
    later exchange, which then reads what was written: no reader ever sees a row without its pending change. Reading
    ahead seldom waits for a write: the blocks that leave next were written while those before them were read.

    ``before`` is called with the blocks that are about to be written over.
    """

    def __init__(self, file: TableFile, n_blocks: int, capacity: int, before: Callable[[np.ndarray], None]):
        self._file, self._before = file, before
        self.memory = direct_empty((capacity, file.block_bytes))
        self.slot_of = np.full(n_blocks, -1, np.int64)
        self.due = np.zeros(n_blocks, np.int64)  # when a block is used next; of others minus the time of the last use
        self._held = np.zeros(n_blocks, bool)
        self._block_in = np.full(capacity, -1, np.int64)
        self._changed = np.zeros(capacity, bool)
        self._clock = 0
        self._pending: tuple[Future, Exchange] | None = None
        self.hits = self.misses = 0

    @property
    def capacity(self) -> int:
        """Blocks that there is room for."""
        return len(self._block_in)

    def hold(self, blocks: np.ndarray) -> None:
        """Have these blocks (ascending) in memory, until others are asked for."""
        self.settle()
        if len(blocks) > self.capacity:
            least = format_bytes(len(blocks) * self._file.block_bytes)
            raise MemoryLimitError(f"a window of {len(blocks)} blocks does not fit into memory for {self.capacity}; "
                                   f"raise memory_limit to {least} or more")
        self._held[:] = False
        self._held[blocks] = True
        missing = blocks[self.slot_of[blocks] < 0]
        self.misses += len(missing)
        self.hits += len(blocks) - len(missing)
        if len(missing):
            exchange = self._plan(missing)
            self._carry_out(exchange)
            self._arrived(exchange)
        self._clock += 1
        self.due[blocks] = -self._clock

    def read_ahead(self, blocks: np.ndarray) -> None:
        """Begin to read what of these blocks (ascending) is missing, as far as there is room beside those held."""
        self.settle()
        missing = blocks[self.slot_of[blocks] < 0]
        spare = self.capacity - np.count_nonzero((self.slot_of >= 0) & self._held)
        spare -= len(blocks) - len(missing) - np.count_nonzero(self._held[blocks])
        missing = missing[:max(spare, 0)]
        if len(missing):
            exchange = self._plan(missing, also=blocks)
            self._pending = _waiting_threads().submit(self._carry_out, exchange), exchange

    def settle(self) -> None:
        """Wait for the exchange that is under way."""
        pending, self._pending = self._pending, None
        if pending:
            pending[0].result()
            self._arrived(pending[1])

    def change(self, slots: np.ndarray) -> None:
        """Note that the blocks in these slots were changed."""
        self._changed[slots] = True

    def write_back(self) -> None:
        """Write every changed block; all stay in memory."""
        self.settle()
        slots = np.flatnonzero(self._changed)
        slots = slots[np.argsort(self._block_in[slots])]
        self._write(self._block_in[slots], slots)
        self._changed[:] = False

    def forget(self) -> None:
        """Empty the memory without writing anything."""
        if self._pending:
            self._pending[0].exception()  # wait; what became of it does not matter any more
            self._pending = None
        self.slot_of[:] = self._block_in[:] = -1
        self._changed[:] = False
        self._held[:] = False

    def _plan(self, missing: np.ndarray, also: np.ndarray | None = None) -> Exchange:
        free = np.flatnonzero(self._block_in < 0)[:len(missing)]
        victims = next_victims = free[:0]
        if len(free) < len(missing):
            inside = np.flatnonzero(self._block_in >= 0)
            stays = self._held.copy()
            stays[missing if also is None else also] = True
            inside = inside[~stays[self._block_in[inside]]]
            inside = inside[np.argsort(-self.due[self._block_in[inside]], kind="stable")]
            some = len(missing) - len(free)
            inside = inside[:some if also is None else 2 * some]
            inside = inside[np.argsort(self._changed[inside], kind="stable")]  # so that reading need not wait
            victims, next_victims = np.sort(inside[:some]), inside[some:]
        leaving, cleaned = self._changed_of(victims), self._changed_of(next_victims)
        slots = np.concatenate([free, victims])
        exchange = Exchange(self._block_in[leaving], leaving, missing, slots, self._block_in[cleaned], cleaned)
        self.slot_of[self._block_in[victims]] = -1
        self._block_in[slots] = missing
        self._changed[slots] = self._changed[cleaned] = False
        return exchange

    def _changed_of(self, slots: np.ndarray) -> np.ndarray:
        """Those of some slots whose blocks were changed, by their blocks."""
        slots = slots[self._changed[slots]]
        return slots[np.argsort(self._block_in[slots])]

    def _carry_out(self, exchange: Exchange) -> None:
        self._write(exchange.out, exchange.leaving)
        writing = _waiting_threads().submit(self._write, exchange.kept, exchange.cleaned)
        try:
            self._file.get(exchange.missing, exchange.slots * self._file.block_bytes, self.memory)
        finally:
            wait([writing])
        writing.result()

    def _write(self, blocks: np.ndarray, slots: np.ndarray) -> None:
        if len(blocks):
            self._before(blocks)
            self._file.put(blocks, slots * self._file.block_bytes, self.memory)

    def _arrived(self, exchange: Exchange) -> None:
        self.slot_of[exchange.missing] = exchange.slots
