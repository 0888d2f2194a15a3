"""A graph by blocks of rows, whether its arcs are in memory or on disk, and what is looked at before all else."""
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.sparse import csr_array

from gnncy._kernels.storage import tables as kernels
from gnncy.errors import GraphFormatError
from gnncy.graph import as_csr
from gnncy.storage import GraphStorage

Graph: TypeAlias = csr_array | GraphStorage

LOOK = 1 << 17  # arcs that are looked over, or changed, at a time
LOOKED, CHANGED = 32, 96  # bytes that one of them takes


def row_blocks(graph: Graph) -> Iterator[tuple[int, csr_array]]:
    """``(first row, rows)`` in their order: all rows of a graph in memory, a block at a time of one on disk."""
    if not isinstance(graph, GraphStorage):
        yield 0, graph
        return
    for first, rows in graph.iter_rows(LOOK):
        yield first, as_csr(rows, square=False)


def arc_counts(graph: Graph) -> np.ndarray:
    """Arcs of every node, int64."""
    return np.diff(graph.load_indptr() if isinstance(graph, GraphStorage) else graph.indptr).astype(np.int64)


@contextmanager
def changed_rows(graph: Graph, change: Callable[[int, csr_array], csr_array], folder: Path | None) -> Iterator[Graph]:
    """The matrix of the rows ``change(first, rows)``: in memory of a graph there, else on disk, in ``folder``.

    A row of the result depends on that row alone, so both are the same.
    """
    if not isinstance(graph, GraphStorage):
        yield change(0, graph)
        return
    assert folder is not None
    path = folder / "matrix"
    rows = (change(first, rows) for first, rows in row_blocks(graph))
    GraphStorage.from_rows(path, rows, graph.n_nodes, dtype=graph.dtype, overwrite=True).close()
    try:
        with GraphStorage(path, io_threads=graph.io_threads, direct=graph.direct or None) as matrix:
            matrix.load_indptr()
            yield matrix
    finally:
        shutil.rmtree(path)


class Overview(NamedTuple):
    """What a pass over the arcs of a graph on disk tells."""

    checksum: int  # of row starts and ends
    weights: int  # checksum of the weights, 0 without
    two_way: bool  # every arc has its reverse
    symmetric: bool  # of the same weight


def look_over(graph: GraphStorage, name: str) -> Overview:
    """Go once over arcs on disk. ``name`` is the estimator's.

    Raises
    ------
    GraphFormatError
        If a weight is negative or 0, or an arc is there twice.
    """
    balance = weights = 0
    checksum = zlib.crc32(graph.load_indptr().data.cast("B"))
    for first, rows in graph.iter_rows(LOOK):
        checksum = zlib.crc32(rows.indices.data.cast("B"), checksum)
        balance += kernels.balance(rows.indptr, rows.indices, 0, rows.shape[0], first)
        if graph.weighted:
            weights = zlib.crc32(rows.data.data.cast("B"), weights)
            if rows.nnz and rows.data.min() < 0:
                raise GraphFormatError(f"Negative values in data passed to {name}: {graph.path} has weights down to "
                                       f"{rows.data.min():g}")
        if as_csr(rows, square=False).nnz < rows.nnz:
            raise GraphFormatError(f"{graph.path} has repeated arcs or arcs of weight 0: store it by "
                                   f"GraphStorage.from_edges, which counts each once")
    two_way = balance % 2**64 == 0
    return Overview(checksum, weights, two_way, two_way and bool(graph.symmetric or
                                                                 graph.symmetric is None and not graph.weighted))
