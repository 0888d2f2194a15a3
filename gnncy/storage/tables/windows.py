"""The order in which all pairs of a table's blocks come together in a part of memory."""
from dataclasses import dataclass

import numpy as np

from gnncy._random import stream

CHUNKS = 192  # at most
GROUPS = 12  # so a twelfth of the table stays in memory while the rest passes by
LANES = 4  # parts of a chunk, of which each meets another one at the same time
RUN_ROWS = 1024  # at least, that stay together, so that they are read at once
CHUNK_ROWS = 2048  # at least, so that a window of a small table is worth its turn


@dataclass(frozen=True)
class Window:
    """A chunk of blocks that meets the chunks ``held`` and, if ``own``, itself."""

    chunk: int
    held: tuple[int, ...]
    own: bool

    @property
    def chunks(self) -> tuple[int, ...]:
        """All chunks that it needs."""
        return (*self.held, self.chunk)


class EpochWindows:
    """The windows of one epoch, in each of which one chunk of blocks comes into memory.

    Runs of neighbouring blocks are dealt anew to chunks, and these to groups. A group is built up chunk by chunk, each
    meeting those that are there; then every chunk of the later groups comes by and meets the group. So each pair of
    blocks meets once, and with g groups the table is read (g + 1) / 2 times. The order does not depend on memory: where
    there is more of it, more blocks are still there when their turn comes. The blocks of a chunk are dealt to lanes.

    Parameters
    ----------
    n_blocks, block_rows : int
    seed, epoch : int
        Keys of the deal.
    """

    def __init__(self, n_blocks: int, block_rows: int, seed: int, epoch: int):
        run = run_blocks(block_rows)
        dealt = stream(seed, "chunks", epoch).permutation(-(-n_blocks // run))
        self.chunks = [(np.sort(part)[:, None] * run + np.arange(run)).reshape(-1)
                       for part in np.array_split(dealt, chunk_count(n_blocks, block_rows))]
        self.chunks = [blocks[blocks < n_blocks] for blocks in self.chunks]
        self.chunk_of = np.empty(n_blocks, np.int32)
        self.lane_of = np.empty(n_blocks, np.uint8)
        for c, blocks in enumerate(self.chunks):
            self.chunk_of[blocks] = c
            self.lane_of[blocks] = np.arange(len(blocks)) % LANES
        self._uses: list[list[int]] = [[] for _ in self.chunks]
        self.windows: list[Window] = []
        size = group_size(len(self.chunks))
        for turn, first in enumerate(range(0, len(self.chunks), size)):
            group = tuple(range(first, min(first + size, len(self.chunks))))
            for k, chunk in enumerate(group):
                self._add(chunk, group[:k], own=True)
            later = range(group[-1] + 1, len(self.chunks))
            for chunk in later if turn % 2 == 0 else reversed(later):
                self._add(chunk, group, own=False)

    def _add(self, chunk: int, held: tuple[int, ...], own: bool) -> None:
        window = Window(chunk, held, own)
        for c in window.chunks:
            self._uses[c].append(len(self.windows))
        self.windows.append(window)

    def __len__(self) -> int:
        return len(self.windows)

    def blocks(self, window: int) -> np.ndarray:
        """The blocks that a window needs, ascending."""
        return np.sort(np.concatenate([self.chunks[c] for c in self.windows[window].chunks]))

    def due(self, chunk: int, after: int) -> int:
        """The next window after one that uses a chunk; the number of windows where none does."""
        uses = self._uses[chunk]
        k = int(np.searchsorted(uses, after, "right"))
        return uses[k] if k < len(uses) else len(self.windows)


def run_blocks(block_rows: int) -> int:
    """Blocks of a run."""
    return -(-RUN_ROWS // block_rows)


def chunk_count(n_blocks: int, block_rows: int) -> int:
    """Chunks of a table."""
    runs = -(-n_blocks // run_blocks(block_rows))
    most = max(1, min(CHUNKS, runs, n_blocks * block_rows // CHUNK_ROWS))
    return -(-runs // -(-runs // most))  # as few as take the same runs each


def group_size(n_chunks: int) -> int:
    """Chunks of a group."""
    return -(-n_chunks // GROUPS)


def chunk_blocks(n_blocks: int, block_rows: int) -> int:
    """Blocks of a chunk, at most."""
    run = run_blocks(block_rows)
    return min(n_blocks, -(-n_blocks // (run * chunk_count(n_blocks, block_rows))) * run)


def blocks_needed(n_blocks: int, block_rows: int) -> int:
    """Blocks in memory with which a window and the next chunk fit."""
    chunks = group_size(chunk_count(n_blocks, block_rows)) + 2
    return min(n_blocks, chunks * chunk_blocks(n_blocks, block_rows))
