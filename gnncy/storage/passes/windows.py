"""Passes by windows: some consecutive rows of the result at a time, computed from their neighbours' gathered rows."""
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gnncy.graph import Block
from gnncy.storage._blocks import MAX_RUN, ahead, direct_empty
from gnncy.storage.passes.direct import Source

ALIGN = 256  # rows of which a window is a multiple: whole pieces of a product, whatever the memory


@dataclass(frozen=True)
class WindowPlan:
    """Ranges of rows whose neighbours fit in memory."""

    ranges: list[tuple[int, int]]
    memory: int
    bytes_read: int
    operations: int


@dataclass(frozen=True)
class Window:
    """Rows ``start .. stop - 1``: their arcs, and the rows of all sources; with ``own`` theirs come first."""

    start: int
    stop: int
    block: Block
    rows: np.ndarray


@dataclass(frozen=True)
class Costs:
    """Bytes that a window holds for each gathered row, for each of its arcs, and for each row of the result."""

    source: int
    arc: int
    target: int


def plan_windows(graph: Block, own: bool, row_bytes: int, costs: Costs, memory: int, gap: float,
                 span: tuple[int, int] | None = None, most: float = np.inf) -> WindowPlan | None:
    """Cut all rows into windows of which two fit in ``memory`` bytes; None if some cannot be cut small enough.

    ``row_bytes`` are those of a row on disk, ``gap`` the bytes whose reading costs as much as one more operation;
    ``span`` are the rows, all by default. None, too, if more than ``most`` bytes would be read.
    """
    memory -= 2 * (1 + graph.indices.itemsize) * graph.n_src
    ranges: list[tuple[int, int]] = []
    largest = nbytes = operations = 0
    pending = [span or (0, graph.n_dst)]
    while pending:
        start, stop = pending.pop()
        arcs = int(graph.indptr[stop] - graph.indptr[start])
        fixed = arcs * costs.arc + (stop - start) * costs.target
        sources = None
        if 2 * fixed <= memory:
            sources = _sources(graph, start, stop, own)
            fixed += len(sources) * costs.source
        if sources is None or 2 * fixed > memory:
            if stop - start <= ALIGN:
                return None
            middle = start + (stop - start) // 2 // ALIGN * ALIGN
            if middle == start:
                middle = start + ALIGN
            pending += [(middle, stop), (start, middle)]
            continue
        ranges.append((start, stop))
        largest = max(largest, fixed)
        between = (np.diff(sources) - 1) * row_bytes
        apart = between[between > gap]
        read = int(sources[-1] - sources[0] + 1) * row_bytes - int(apart.sum()) if len(sources) else 0
        nbytes += read
        operations += len(apart) + 1 + read // MAX_RUN
        if nbytes > most:
            return None
    return WindowPlan(ranges, 2 * largest + 2 * (1 + graph.indices.itemsize) * graph.n_src, nbytes, operations)


def windows(source: Source, graph: Block, own: bool, plan: WindowPlan) -> Iterator[Window]:
    """Each window in turn; the next one is read while one is in use."""

    def load(k: int) -> Window:
        start, stop = plan.ranges[k]
        low, high = graph.indptr[start], graph.indptr[stop]
        sources = _sources(graph, start, stop, own)
        if own:
            outside = sources[(sources < start) | (sources >= stop)]
            sources = np.concatenate([np.arange(start, stop), outside])
        place = np.empty(graph.n_src, graph.indices.dtype)
        place[sources] = np.arange(len(sources))
        block = Block(graph.indptr[start:stop + 1] - low, place[graph.indices[low:high]], len(sources), stop - start,
                      weights=None if graph.weights is None else graph.weights[low:high])
        return Window(start, stop, block, source.pick(sources, direct_empty((len(sources), source.shape[1]),
                                                                            source.dtype)))

    return ahead(load, len(plan.ranges), 1)


def _sources(graph: Block, start: int, stop: int, own: bool) -> np.ndarray:
    """Places of the neighbours of some rows, ascending; with ``own`` the rows are among them."""
    seen = np.zeros(graph.n_src, bool)
    seen[graph.indices[graph.indptr[start]:graph.indptr[stop]]] = True
    if own:
        seen[start:stop] = True
    return np.flatnonzero(seen)
