"""Passes by slabs of columns: a few columns of all rows in memory, over them any number of steps.

Rows are read once and laid down by slabs, each slab is read, smoothed and written back, and the results are lined up in
rows. A slab is read while the one before is computed and the one before that is written. The first slab is kept in
memory on its way in and the last on its way out; with a single slab there is no scratch space at all.

What is laid down of a chunk of rows, one panel for each slab and each result that is kept, lies together. If it is as
large as the chunk's rows of the result, it lies in their place, in the result's own file.
"""
from collections.abc import Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np

from gnncy._kernels.storage import panels
from gnncy._threads import run_pieces
from gnncy.storage._blocks import STREAMS, IOStatistics, ahead, direct_empty
from gnncy.storage.passes.direct import Result, Scratch, Source, Space, in_background
from gnncy.storage.passes.smoothing import Smoothing

ALIGN = 1024  # rows of which a chunk is a multiple: whole pages of any slab, and whole pieces of a product
_EXTENT = 1 << 20  # bytes of a slab in a chunk, at most
_LINE = 64
_TURNED = 256  # rows that are turned at a time


@dataclass(frozen=True)
class ColumnPlan:
    """Slabs for a matrix of ``n`` rows: their columns, their number, and the rows that are turned at a time."""

    n: int
    dim: int
    itemsize: int
    kept: int
    columns: int
    slabs: int
    chunk: int
    memory: int
    stays: bool
    inside: bool

    @property
    def slab_bytes(self) -> int:
        """Bytes of a slab."""
        return self.n * self.columns * self.itemsize

    @property
    def panels(self) -> int:
        """Panels that are laid down of a chunk; a single one is not."""
        return self.slabs * self.kept

    @property
    def scratch_bytes(self) -> int:
        """Bytes of a scratch file."""
        return self.panels * self.slab_bytes if self.panels > 1 and not self.inside else 0

    def traffic(self) -> tuple[int, int, int]:
        """Bytes of the scratch space that are read and written, and operations."""
        if self.panels == 1:
            return 0, 0, 0
        slots, own = self.panels - 1, self.slabs - 1  # the first stays in memory, and so does the last
        turned = (own + slots) * self.slab_bytes
        extent = min(self.chunk, self.n) * self.columns * self.itemsize
        return turned, turned - self.stays * own * self.slab_bytes, turned // min(extent, _EXTENT) + turned // _EXTENT


def plan_columns(n: int, dim: int, itemsize: int, kept: int, rooms: int, memory: int,
                 stays: bool = False, inside: bool = False) -> ColumnPlan | None:
    """The widest slabs that fit in ``memory`` bytes; None if not even one column does.

    ``rooms`` are the arrays that computing takes; ``stays`` says whether x itself is among what is kept, ``inside``
    whether the result's file may serve as scratch space.
    """
    column = n * itemsize

    def held(columns: int, chunk: int) -> int:
        slabs = -(-dim // columns)
        if slabs * kept == 1:
            return rooms * columns * column
        turning = 4 * kept * slabs * columns * min(chunk, n) * itemsize
        return max((rooms + 2) * columns * column, columns * column + turning)

    columns = dim
    if held(dim, ALIGN) > memory:
        columns = min(dim - 1, memory // ((rooms + 2) * column))
        line = _LINE // itemsize
        if columns > line:
            columns = columns // line * line
        while columns > 0 and held(columns, ALIGN) > memory:
            columns -= 1
    if columns < 1:
        return None
    chunk = max(ALIGN, _EXTENT // (columns * itemsize) // ALIGN * ALIGN)
    while chunk > ALIGN and held(columns, chunk) > memory:
        chunk -= ALIGN
    return ColumnPlan(n, dim, itemsize, kept, columns, -(-dim // columns), chunk, held(columns, chunk), stays,
                      inside and dim % columns == 0)


def least_memory(n: int, dim: int, itemsize: int, kept: int, rooms: int) -> int:
    """Bytes with which :func:`plan_columns` finds a plan."""
    turning = 4 * kept * dim * itemsize * min(ALIGN, n)
    return max((rooms + 2) * n * itemsize, n * itemsize + turning)


def column_rows(source: Source, smoothing: Smoothing, plan: ColumnPlan, folder, direct: bool, disk,
                stats: IOStatistics, target: Result | None = None) -> Generator[np.ndarray, None, None]:
    """The kept results side by side, blocks of rows in storage order; a block is overwritten after the next.

    With a plan that lies inside its result, blocks are appended to ``target`` before the next is asked for.
    """
    with ExitStack() as stack:
        scratch: Space | None = None
        if plan.inside and plan.panels > 1:
            assert target is not None
            scratch = target.space(disk)
        elif plan.panels > 1:
            scratch = Scratch(folder, plan.scratch_bytes, direct, disk, stats)
        if scratch is not None:
            stack.callback(scratch.close)
        work = _Slabs(plan, scratch, source.dtype)
        last = work.smooth(smoothing, work.spread(source))
        yield from work.lined_up(last)


class _Slabs:
    def __init__(self, plan: ColumnPlan, scratch: Space | None, dtype: np.dtype):
        self.plan, self.scratch, self.dtype = plan, scratch, dtype
        self.starts = range(0, plan.n, plan.chunk)
        self.width = plan.columns * plan.itemsize

    def empty(self, *shape: int) -> np.ndarray:
        return direct_empty(shape, self.dtype)

    def panel(self, slab: int, kept: int, start: int) -> tuple[int, int]:
        """First byte and length of what lies of a slab in the chunk of rows from ``start`` on."""
        plan = self.plan
        length = min(plan.chunk, plan.n - start) * self.width
        return start * self.width * plan.panels + (slab * plan.kept + kept) * length, length

    def gather(self, panels: list[tuple[int, int]], place, out: np.ndarray) -> np.ndarray:
        """Read panels, ascending, to their bytes ``place`` of an array."""
        assert self.scratch is not None
        start, length = np.array(panels, np.int64).T
        self.scratch.file.gather(start + self.scratch.base, length, np.asarray(place, np.int64), out, STREAMS)
        return out

    def spread(self, source: Source) -> np.ndarray:
        """Write all slabs but the first, which comes back."""
        plan, scratch = self.plan, self.scratch
        first = self.empty(plan.n, plan.columns)
        if plan.slabs == 1 or scratch is None:
            return source.range(0, plan.n, first)
        rows_of = [self.empty(min(plan.chunk, plan.n), plan.dim) for _ in range(2)]
        panels_of = [self.empty(plan.slabs, min(plan.chunk, plan.n), plan.columns) for _ in range(2)]
        for slabs in panels_of:
            slabs[-1, :, plan.dim - (plan.slabs - 1) * plan.columns:] = 0

        def read(k: int) -> np.ndarray:
            start, stop = self.starts[k], min(self.starts[k] + plan.chunk, plan.n)
            return source.range(start, stop, rows_of[k % 2][:stop - start])

        def write(slabs: np.ndarray, start: int, count: int) -> None:
            scratch.write_parts((slabs[slab, :count], self.panel(slab, 0, start)[0] + scratch.base)
                                for slab in range(1, plan.slabs))

        with _Writes() as writes:
            for k, rows in enumerate(ahead(read, len(self.starts), 1)):
                start, slabs = self.starts[k], panels_of[k % 2]
                run_pieces(partial(panels.cut, _bytes(rows), _bytes(slabs)), len(rows), _TURNED)
                first[start:start + len(rows)] = slabs[0, :len(rows)]
                writes.begin(write, slabs, start, len(rows))
        return first

    def smooth(self, smoothing: Smoothing, first: np.ndarray) -> np.ndarray:
        """Replace each slab by its results, and write them, but for the last, which comes back."""
        plan = self.plan
        alone = plan.slabs * plan.kept == 1
        free = [self.empty(plan.n, plan.columns) for _ in range(smoothing.rooms - 1 if alone else smoothing.rooms + 1)]

        def read(slab: int, out: np.ndarray) -> np.ndarray:
            return self.gather([self.panel(slab, 0, start) for start in self.starts],
                               [start * self.width for start in self.starts], out)

        def write(slab: int, kept: int, values: np.ndarray) -> None:
            assert self.scratch is not None
            try:
                base = self.scratch.base
                self.scratch.write_parts((values[start:start + plan.chunk], self.panel(slab, kept, start)[0] + base)
                                         for start in self.starts)
            finally:
                free.append(values)

        with _Writes() as writes:
            def take() -> np.ndarray:
                if not free:
                    writes.wait()
                return free.pop()

            x: np.ndarray | None = first
            coming: Future | None = None
            for slab in range(plan.slabs):
                if coming is not None:
                    x = coming.result()
                assert x is not None
                coming = writes.watch(in_background(read, slab + 1, take())) if slab + 1 < plan.slabs else None
                for kept, values in enumerate(smoothing.run(x, take, free.append)):
                    if (slab, kept) == (plan.slabs - 1, plan.kept - 1):
                        last = values
                    elif slab and smoothing.kept[kept] == 0:
                        free.append(values)  # it is there already
                    else:
                        writes.begin(write, slab, kept, values)
                x = None
        return last

    def lined_up(self, last: np.ndarray) -> Iterator[np.ndarray]:
        """Blocks of rows of all results."""
        plan = self.plan
        if self.scratch is None:
            for start in self.starts:
                yield last[start:start + plan.chunk]
            return
        count = min(plan.chunk, plan.n)
        slabs_of = [self.empty(plan.slabs, plan.kept, count, plan.columns) for _ in range(2)]
        rows_of = [self.empty(count, plan.kept, plan.dim) for _ in range(2)]

        def read(k: int) -> np.ndarray:
            return self.gather([self.panel(0, slot, self.starts[k]) for slot in range(plan.panels - 1)],
                               [slot * count * self.width for slot in range(plan.panels - 1)], slabs_of[k % 2])

        for k, slabs in enumerate(ahead(read, len(self.starts), 1)):
            own = last[self.starts[k]:self.starts[k] + plan.chunk]
            slabs[-1, -1, :len(own)] = own
            rows = rows_of[k % 2][:len(own)]
            run_pieces(partial(panels.line_up, _bytes(slabs), _bytes(rows)), len(rows), _TURNED)
            yield rows.reshape(len(rows), plan.kept * plan.dim)


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint8)


class _Writes:
    """Writes in the background, one at a time; all have ended when the block is left."""

    def __init__(self) -> None:
        self._writing: Future | None = None
        self._watched: Future | None = None

    def begin(self, call, *arguments) -> None:
        """Begin a write when the one before has ended."""
        self.wait()
        self._writing = in_background(call, *arguments)

    def wait(self) -> None:
        """Until the write has ended."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def watch(self, future: Future) -> Future:
        """Another call that must have ended before its arrays go."""
        self._watched = future
        return future

    def __enter__(self) -> "_Writes":
        return self

    def __exit__(self, kind, *exc) -> None:
        if kind is None:
            self.wait()
        wait([future for future in (self._writing, self._watched) if future is not None])
