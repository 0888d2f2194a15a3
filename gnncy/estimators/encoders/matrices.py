"""Matrices that smooth over a graph, each row from that row of the graph: in memory, or on disk if its arcs are."""
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from gnncy._kernels import spmm
from gnncy.estimators.stored import CHANGED, LOOK, LOOKED, Graph, arc_counts, changed_rows, row_blocks
from gnncy.graph import as_csr
from gnncy.storage import GraphStorage
from gnncy.storage.passes import CHUNK
from gnncy.storage.passes.diffuse import ARCS, BLOCK_BYTES
from gnncy.storage.passes.reduce import SPARSE_ROWS


def symmetric_matrix(graph: Graph, folder: Path | None = None):
    r"""A context of :math:`D^{-1/2} (A + I) D^{-1/2}`, :math:`D` the row sums of :math:`A + I`; A is symmetric."""
    n = graph.shape[0]
    ones, total = np.ones(n), np.empty(n)

    def looped(first: int, rows: csr_array) -> csr_array:
        return _plus_diagonal(rows, first, np.ones(rows.shape[0]))

    for first, rows in row_blocks(graph):
        total[first:first + rows.shape[0]] = looped(first, rows) @ ones
    inverse = 1 / np.sqrt(total)
    return changed_rows(graph, lambda first, rows: _scaled(looped(first, rows), inverse[first:], inverse), folder)


def mean_matrix(graph: Graph, folder: Path | None = None, *, exponent: float = 0.0, loops: float = 0.0):
    r"""A context of the matrix whose rows are those of :math:`(A + w I) D^{-b}`, each divided by its sum.

    :math:`D` counts arcs, ``exponent`` is b and ``loops`` is w. A row without entries stays empty.
    """
    ones = np.ones(graph.shape[0])
    factor = np.maximum(arc_counts(graph), 1).astype(np.float64)**-exponent

    def change(first: int, rows: csr_array) -> csr_array:
        if exponent:
            rows = csr_array(rows, copy=True)
            rows.data *= factor[rows.indices].astype(rows.dtype)
        if loops:
            rows = _plus_diagonal(rows, first, loops * factor[first:first + rows.shape[0]])
        total = rows @ ones
        return _scaled(rows, np.divide(1, total, out=np.zeros_like(total), where=total > 0), ones)

    return changed_rows(graph, change, folder)


def graph_plan(graph: Graph, *, symmetric: bool) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Bytes of a graph that is at hand, of one that is being smoothed over, and of looking over one on disk."""
    (n, _), nnz = graph.shape, graph.nnz
    if isinstance(graph, GraphStorage):
        longest, starts = graph.longest_list(), {"row starts": graph.indptr_nbytes}
        return (starts, {"row starts": 2 * graph.indptr_nbytes + 16 * n,
                         "arcs": max(BLOCK_BYTES * max(ARCS, longest), CHANGED * max(LOOK, longest))},
                starts | {"arcs": LOOKED * max(LOOK, longest)})
    both_ways = 0 if symmetric else 16 * nnz
    return ({"graph": 12 * nnz + 8 * n},
            {"graph": 12 * nnz + 16 * n + both_ways, "propagation matrix": max(8 * nnz, both_ways) + 8 * n}, {})


def chunk_plan(features) -> int:
    """Bytes of a chunk of rows of features; the rows of a graph on disk may be long."""
    longest = 0
    if isinstance(features, GraphStorage):
        indptr = features.load_indptr()
        longest = int(np.diff(np.append(indptr[:-1:SPARSE_ROWS], indptr[-1])).max())
    return 4 * 4 * CHUNK + CHANGED * longest


def _plus_diagonal(rows: csr_array, first: int, values: np.ndarray) -> csr_array:
    count = rows.shape[0]
    diagonal = csr_array((values.astype(rows.dtype), (np.arange(count), np.arange(first, first + count))),
                         shape=rows.shape)
    return as_csr(rows + diagonal, square=False)


def _scaled(rows: csr_array, left: np.ndarray, right: np.ndarray) -> csr_array:
    data = np.empty_like(rows.data)
    spmm.scaled(rows.indptr, rows.indices, rows.data, left, right, data)
    return csr_array((data, rows.indices.copy(), rows.indptr.copy()), shape=rows.shape)
