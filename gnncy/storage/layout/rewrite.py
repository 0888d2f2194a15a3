"""Rows written in another order than they are read, in large sequential pieces and little memory."""
import math
from collections.abc import Callable

import numpy as np

from gnncy._memory import format_bytes
from gnncy.errors import MemoryLimitError
from gnncy.storage._blocks import PAGE, ascending
from gnncy.storage.layout.rows import RowsFile

ROW_OVERHEAD = 64  # bytes that planning the reads and writes of a row takes
LEAST_RUN = 4096  # bytes of a tile in a chunk, on average, below which a rewrite would be all small writes
GOOD_RUN = 64 * 1024  # and above which they are large enough
_FIXED = 8 * 1024 * 1024  # buffers that reads and writes go through


def tile_rows(n_rows: int, row_bytes: int, memory_limit: int) -> int:
    """Rows that may be held at a time under ``memory_limit``; MemoryLimitError if they are too few.

    Beside them stand 8 bytes for each row of the file, and 64 for each row held.
    """
    fixed = 8 * n_rows + _FIXED
    enough = min(n_rows, math.isqrt(n_rows * LEAST_RUN // row_bytes) + 1)
    rows = (memory_limit - fixed) // (row_bytes + ROW_OVERHEAD)
    if rows < enough:
        least = fixed + enough * (row_bytes + ROW_OVERHEAD)
        raise MemoryLimitError(f"rewriting {n_rows} rows of {row_bytes} bytes in another order needs memory_limit of "
                               f"at least {format_bytes(least)}, got {format_bytes(memory_limit)}")
    return min(n_rows, rows)


def good_rows(n_rows: int, row_bytes: int) -> int:
    """Rows to hold at a time, so that the parts of a tile in a chunk are large writes."""
    return math.isqrt(n_rows * GOOD_RUN // row_bytes)


def copy_rows(writer, array, rows: int) -> None:
    """Write the rows of anything that is sliced by rows, ``rows`` of them in memory at a time."""
    order = writer.order
    if order is None or _in_memory(array):
        for start in range(0, writer.shape[0], rows):
            writer.append(start, array[start:start + rows] if order is None else array[order[start:start + rows]])
    else:
        permute_rows(writer, lambda start, stop: writer.encode(array[start:stop], writer.shape[1], writer.dtype,
                                                               f"the block at row {start}"),
                     lambda start, stop: order[start:stop], rows)


def reorder_rows(writer, stored: RowsFile, rows: int) -> None:
    """Write the rows of a file as they are, ``rows`` of them in memory at a time.

    If a tile can hold half of the file or more, rows go to their places at once.
    """
    order, position = writer.order, stored.position

    def source(start: int, stop: int) -> np.ndarray:
        nodes = np.arange(start, stop) if order is None else order[start:stop]
        return nodes if position is None else position[nodes]

    if 2 * rows >= writer.shape[0] and stored.dtype == writer.dtype:
        pick_rows(writer, stored.pick, source, rows)
    else:
        permute_rows(writer, lambda start, stop: stored.read(start, stored.empty(stop - start)).astype(
            writer.dtype, copy=False), source, rows)


def permute_rows(writer, read: Callable[[int, int], np.ndarray], source: Callable[[int, int], np.ndarray],
                 rows: int) -> None:
    """Write all rows to a new file, ``rows`` of them in memory at a time.

    ``read(start, stop)`` gives rows in the order they are stored in now, and ``source(start, stop)`` their numbers in
    that order for the places ``start .. stop - 1`` of the new one. The new file is cut into tiles of ``rows`` rows. One
    pass moves every row to its tile, where rows line up as they arrive; a second one sorts each tile in memory.
    """
    n, row_bytes = writer.shape[0], writer.row_bytes
    tiles = -(-n // rows)
    tile_of = np.empty(n, np.uint16 if tiles <= 1 << 16 else np.uint32)
    for k in range(tiles):
        tile_of[source(k * rows, min((k + 1) * rows, n))] = k
    free = np.arange(tiles) * rows
    for start in range(0, n, rows):
        tile, place = ascending(tile_of[start:start + rows])
        count = np.bincount(tile, minlength=tiles)
        target = np.arange(len(tile)) + (free - (np.cumsum(count) - count))[tile]
        free += count
        writer.file.scatter(target * row_bytes + PAGE, np.broadcast_to(np.int64(row_bytes), len(tile)),
                            place * row_bytes, read(start, min(start + rows, n)))
    del tile_of

    def pick(lined_up: np.ndarray, place: np.ndarray, out: np.ndarray) -> None:
        writer.file.gather(lined_up * row_bytes + PAGE, np.broadcast_to(np.int64(row_bytes), len(lined_up)),
                           place * row_bytes, out)

    pick_rows(writer, pick, lambda start, stop: start + inverse_ranks(source(start, stop)), rows)


def pick_rows(writer, pick: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
              source: Callable[[int, int], np.ndarray], rows: int) -> None:
    """Write all rows, those of ``rows`` places at a time picked from wherever they are.

    ``pick(rows, place, out)`` reads rows, ascending, to places of ``out``.
    """
    n = writer.shape[0]
    for start in range(0, n, rows):
        wanted, place = ascending(source(start, min(start + rows, n)))
        block = np.empty((len(place), writer.shape[1]), writer.dtype)
        pick(wanted, place, block)
        writer.write(start, block)


def inverse_ranks(numbers: np.ndarray) -> np.ndarray:
    """How many of the numbers, all different, are less than each."""
    _, place = ascending(numbers)
    rank = np.empty(len(place), np.int64)
    rank[place] = np.arange(len(place))
    return rank


def _in_memory(array) -> bool:
    """Whether rows can be taken from an array in any order at no cost."""
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        if array.base is None:
            return True
        array = array.base
    return False
