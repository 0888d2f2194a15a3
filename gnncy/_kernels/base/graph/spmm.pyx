"""Sparse times dense, by rows. A column's result does not depend on how many columns there are.

Terms are added one by one in the order of the row, so nothing is left to reassociate.
"""
from cython cimport floating
from libc.stdint cimport int32_t, int64_t

from gnncy._kernels._prefetch cimport prefetch_span_early

ctypedef fused index:
    int32_t
    int64_t

cdef enum:
    LINES = 128  # cache lines of x asked for before their turn: half the time of 12 rows where memory is large
    TILE = 64  # columns whose sums stay in registers; those left over add up in memory


cdef inline Py_ssize_t rows_ahead(Py_ssize_t size) noexcept nogil:
    """Rows to ask for before their turn, if ``size`` bytes of each are needed."""
    return max(1, LINES * 64 // max(size, 64))


def gather_sum(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] x,
               const floating[::1] scale, Py_ssize_t start, Py_ssize_t stop, floating[:, ::1] out):
    """Write scale_i * sum_p x[indices_p] for rows start..stop."""
    cdef Py_ssize_t i, j, p, c, v, tile, d = x.shape[1], m = indices.shape[0], rest = d - d % TILE
    cdef Py_ssize_t ahead = rows_ahead(TILE * sizeof(floating)), ahead_rest = rows_ahead((d - rest) * sizeof(floating))
    cdef floating[TILE] sums
    with nogil:
        for i in range(start, stop):
            for tile in range(d // TILE):
                c = TILE * tile
                for j in range(TILE):
                    sums[j] = 0
                for p in range(indptr[i], indptr[i + 1]):
                    if p + ahead < m:
                        prefetch_span_early(&x[indices[p + ahead], c], TILE * sizeof(floating))
                    v = indices[p]
                    for j in range(TILE):
                        sums[j] += x[v, c + j]
                for j in range(TILE):
                    out[i, c + j] = sums[j] * scale[i]
            if rest == d:
                continue
            for j in range(d - rest):
                sums[j] = 0
            for p in range(indptr[i], indptr[i + 1]):
                if p + ahead_rest < m:
                    prefetch_span_early(&x[indices[p + ahead_rest], rest], (d - rest) * sizeof(floating))
                v = indices[p]
                for j in range(d - rest):
                    sums[j] += x[v, rest + j]
            for j in range(d - rest):
                out[i, rest + j] = sums[j] * scale[i]


def weighted_sum(const index[::1] indptr, const index[::1] indices, const floating[::1] weights,
                 const floating[:, ::1] x, const floating[::1] scale, Py_ssize_t start, Py_ssize_t stop,
                 floating[:, ::1] out):
    """Write scale_i * sum_p weights_p x[indices_p] for rows start..stop."""
    cdef Py_ssize_t i, j, p, c, v, tile, d = x.shape[1], m = indices.shape[0], rest = d - d % TILE
    cdef Py_ssize_t ahead = rows_ahead(TILE * sizeof(floating)), ahead_rest = rows_ahead((d - rest) * sizeof(floating))
    cdef floating w
    cdef floating[TILE] sums
    with nogil:
        for i in range(start, stop):
            for tile in range(d // TILE):
                c = TILE * tile
                for j in range(TILE):
                    sums[j] = 0
                for p in range(indptr[i], indptr[i + 1]):
                    if p + ahead < m:
                        prefetch_span_early(&x[indices[p + ahead], c], TILE * sizeof(floating))
                    v = indices[p]
                    w = weights[p]
                    for j in range(TILE):
                        sums[j] += w * x[v, c + j]
                for j in range(TILE):
                    out[i, c + j] = sums[j] * scale[i]
            if rest == d:
                continue
            for j in range(d - rest):
                sums[j] = 0
            for p in range(indptr[i], indptr[i + 1]):
                if p + ahead_rest < m:
                    prefetch_span_early(&x[indices[p + ahead_rest], rest], (d - rest) * sizeof(floating))
                v = indices[p]
                w = weights[p]
                for j in range(d - rest):
                    sums[j] += w * x[v, rest + j]
            for j in range(d - rest):
                out[i, rest + j] = sums[j] * scale[i]


def scaled(const index[::1] indptr, const index[::1] indices, const floating[::1] weights, const double[::1] left,
           const double[::1] right, floating[::1] out):
    """Write left_i weights_p right_{indices_p}, rounded once."""
    cdef Py_ssize_t i, p
    with nogil:
        for i in range(indptr.shape[0] - 1):
            for p in range(indptr[i], indptr[i + 1]):
                out[p] = <floating>(weights[p] * (left[i] * right[indices[p]]))


def maximum(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] x, Py_ssize_t start,
            Py_ssize_t stop, floating[:, ::1] out):
    """Write the largest x[indices_p] of each column for rows start..stop; 0 for a row without entries."""
    cdef Py_ssize_t i, j, p, v, d = x.shape[1], m = indices.shape[0]
    cdef Py_ssize_t ahead = rows_ahead(d * sizeof(floating))
    with nogil:
        for i in range(start, stop):
            if indptr[i] == indptr[i + 1]:
                for j in range(d):
                    out[i, j] = 0
                continue
            v = indices[indptr[i]]
            for j in range(d):
                out[i, j] = x[v, j]
            for p in range(indptr[i] + 1, indptr[i + 1]):
                if p + ahead < m:
                    prefetch_span_early(&x[indices[p + ahead], 0], d * sizeof(floating))
                v = indices[p]
                for j in range(d):
                    out[i, j] = x[v, j] if x[v, j] > out[i, j] else out[i, j]


def share(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] x, const floating[:, ::1] top,
          const floating[:, ::1] grad, Py_ssize_t start, Py_ssize_t stop, floating[:, ::1] out):
    """Write the gradient through :func:`maximum` by each of the entries that reach the maximum ``top``."""
    cdef Py_ssize_t i, j, p, v, d = x.shape[1]
    cdef floating zero = 0, one = 1
    with nogil:
        for i in range(start, stop):
            for j in range(d):
                out[i, j] = 0
            for p in range(indptr[i], indptr[i + 1]):
                v = indices[p]
                for j in range(d):
                    out[i, j] += one if x[v, j] == top[i, j] else zero
            for j in range(d):
                out[i, j] = grad[i, j] / (out[i, j] if out[i, j] > zero else one)


def maximum_grad(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] x,
                 const floating[:, ::1] top, const floating[:, ::1] shares, Py_ssize_t start, Py_ssize_t stop,
                 floating[:, ::1] out):
    """Write the gradient through :func:`maximum` for rows start..stop of the transposed pattern."""
    cdef Py_ssize_t i, j, p, v, d = x.shape[1]
    cdef floating zero = 0
    with nogil:
        for i in range(start, stop):
            for j in range(d):
                out[i, j] = 0
            for p in range(indptr[i], indptr[i + 1]):
                v = indices[p]
                for j in range(d):
                    out[i, j] += shares[v, j] if x[i, j] == top[v, j] else zero
