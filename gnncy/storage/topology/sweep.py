"""Ascending passes over an array of a graph on disk: for arcs by their numbers, and for those that are drawn."""
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gnncy._kernels.topology import draws
from gnncy.storage._blocks import PAGE, STREAMS, BlockFile, ascending, direct_empty, together
from gnncy.storage.topology.layout import ArrayFile

_SLICE = 1 << 16  # arcs that are read one by one at a time
_PIECE_BITS = 20  # of a file that is read in order: pieces of 1 MiB
_PIECES = 1 << 12  # of a file, at most


@dataclass(slots=True)
class Lists:
    """From which lists of neighbours how many arcs are drawn, by several minibatches; an entry is a node of one.

    ``starts[rows[entry]] .. starts[rows[entry] + 1] - 1`` are the arcs of its list, and of those that are drawn
    ``indptr[entry] .. indptr[entry + 1] - 1`` are the places. Entries before ``stops[d]`` are of minibatch ``d``.
    """

    starts: np.ndarray
    rows: np.ndarray
    nodes: np.ndarray
    indptr: np.ndarray
    stops: np.ndarray
    keys: np.ndarray  # of each minibatch's draws
    longest: int  # arcs of a list, at most
    most: int  # arcs that are drawn of a longer list, at most

    def scratch(self) -> tuple[np.ndarray, np.ndarray]:
        """What one thread draws in."""
        most = max(1, min(self.most, self.longest))
        return np.zeros(self.longest // 64 + 1, np.uint64), np.empty((draws.GROUP, most), self.starts.dtype)


def sweep_nbytes(file: ArrayFile) -> int:
    """Bytes that a pass reads into."""
    return STREAMS << _bits(file)


def visit(file: ArrayFile, block: BlockFile, arcs: np.ndarray, out: np.ndarray, threads: int) -> None:
    """Bring the elements of arcs, by their numbers; ``out`` may be ``arcs``."""
    size, bits = file.dtype.itemsize, _bits(file)
    counts = np.zeros(_pieces(file), np.int64)
    draws.count(arcs, size, file.offset, bits, counts)
    stops = np.cumsum(counts)
    places = np.empty(len(arcs), np.int32)
    draws.arrange(arcs, size, file.offset, bits, stops - counts, places)

    def take(number: int, first: int, piece: np.ndarray) -> None:
        own = places[int(stops[number] - counts[number]):int(stops[number])]
        if out is arcs:
            draws.replace(piece, first, own, arcs)
        else:
            draws.pick(piece, first, own, arcs, out)

    few: list[np.ndarray] = []
    for number in _sweep(file, block, counts, take, threads):
        few.append(places[int(stops[number] - counts[number]):int(stops[number])])
        if sum(map(len, few)) >= _SLICE:
            _single(file, block, arcs[np.concatenate(few)], np.concatenate(few), out)
            few.clear()
    if few:
        _single(file, block, arcs[np.concatenate(few)], np.concatenate(few), out)


def draw(file: ArrayFile, block: BlockFile, lists: Lists, out: np.ndarray, threads: int) -> None:
    """Bring the elements of the arcs that are drawn."""
    size, bits = file.dtype.itemsize, _bits(file)
    where = lists.starts, lists.rows, lists.indptr, size, file.offset, bits
    count = _pieces(file)
    steps, most, arcs = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count)
    draws.count_lists(*where, np.zeros(count, np.int32), steps, most, arcs)
    stops = np.cumsum(steps)
    order = np.empty(int(stops[-1]), np.uint16)
    draws.arrange_lists(*where, np.zeros(count, np.int32), stops - steps, order)
    drawing = lists.stops, lists.keys, lists.starts, lists.rows, lists.nodes, lists.indptr
    scratch = deque(lists.scratch() for _ in range(threads))

    def entries(number: int) -> np.ndarray:
        own = order[int(stops[number] - steps[number]):int(stops[number])]
        return np.cumsum(own, dtype=np.int32)[own != draws.SKIP]

    def take(number: int, first: int, piece: np.ndarray) -> None:
        own = scratch.pop()
        try:
            draws.take(piece, first, entries(number), *drawing, *own, out)
        finally:
            scratch.append(own)

    numbers, places, found = np.empty(0, np.int64), np.empty(0, np.int64), 0
    for number in _sweep(file, block, arcs, take, threads):
        room = found + int(most[number])
        if room > len(numbers):
            numbers, places = (np.concatenate([array[:found], np.empty(room + _SLICE - found, np.int64)])
                               for array in (numbers, places))
        low, high = _range(file, number)
        found += draws.locate(low, high, entries(number), *drawing, *scratch[0], numbers[found:], places[found:])
        if found >= _SLICE:
            _single(file, block, numbers[:found], places[:found], out)
            found = 0
    if found:
        _single(file, block, numbers[:found], places[:found], out)


def _sweep(file: ArrayFile, block: BlockFile, arcs: np.ndarray,
           take: Callable[[int, int, np.ndarray], None], threads: int) -> list[int]:
    """Read the pieces of which much is needed, ``arcs[number]`` of each, and ``take(number, first arc, elements)``.

    Returns the numbers of the others. Some threads wait for the disk; ``threads`` of them may ``take`` at a time.
    """
    # A piece is read whole if its elements lie so close that most reads of single ones would be joined.
    whole = arcs * max(int(block.disk.break_even_gap), PAGE) >= 1 << _bits(file)
    todo = deque(np.flatnonzero(whole).tolist())
    streams = min(len(todo), block.io_threads or STREAMS)
    buffers = deque(np.split(direct_empty(streams << _bits(file)), streams)) if todo else deque()
    working = threading.BoundedSemaphore(threads)

    def use(number: int, buffer: np.ndarray) -> None:
        low, high = number << _bits(file), min((number + 1) << _bits(file), file.offset + file.nbytes)
        block.read_range(low, buffer[:high - low])
        low, high = _range(file, number)
        skip = file.offset if number == 0 else 0
        with working:
            take(number, low, buffer[skip:skip + (high - low) * file.dtype.itemsize].view(file.dtype))

    def work() -> None:
        buffer = buffers.pop()
        try:
            while todo:
                try:
                    number = todo.popleft()
                except IndexError:  # another thread took the last one
                    return
                use(number, buffer)
        except BaseException:
            todo.clear()
            raise

    if todo:
        # The end of the file is no whole page: it goes through an arena, and only this thread shall have touched one.
        use(todo.pop(), buffers[0])
        together(work, streams, todo.clear)
    return np.flatnonzero(~whole & (arcs > 0)).tolist()


def _single(file: ArrayFile, block: BlockFile, arcs: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """Read elements one by one, joined where they lie close."""
    size = np.int64(file.dtype.itemsize)
    rows, order = ascending(arcs)
    values = np.empty(len(places), file.dtype)
    block.gather(rows * size + file.offset, np.broadcast_to(size, len(rows)), order * size, values)
    out[places] = values


def _bits(file: ArrayFile) -> int:
    """Large files are read by larger pieces, so that there are not too many heaps to sort places into."""
    return max(_PIECE_BITS, ((file.offset + file.nbytes) // _PIECES).bit_length())


def _pieces(file: ArrayFile) -> int:
    return ((file.offset + file.nbytes) >> _bits(file)) + 1


def _range(file: ArrayFile, number: int) -> tuple[int, int]:
    """The elements of a piece of the file."""
    low, high = (min(max((k << _bits(file)) - file.offset, 0), file.nbytes) for k in (number, number + 1))
    return low // file.dtype.itemsize, high // file.dtype.itemsize
