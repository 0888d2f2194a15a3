"""Sparse times dense, by rows. A column's result does not depend on how many columns there are.

Terms are added one by one in the order of the row, so nothing is left to reassociate.
"""
from cython cimport floating
from libc.stdint cimport int32_t, int64_t

from gnncy._kernels._prefetch cimport prefetch_span

ctypedef fused index:
    int32_t
    int64_t

cdef enum:
    AHEAD = 12  # rows of x asked for before their turn


def gather_sum(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] x,
               const floating[::1] scale, Py_ssize_t start, Py_ssize_t stop, floating[:, ::1] out):
    """Write scale_i * sum_p x[indices_p] for rows start..stop."""
    cdef Py_ssize_t i, j, p, v, d = x.shape[1], m = indices.shape[0], size = d * sizeof(floating)
    with nogil:
        for i in range(start, stop):
            for j in range(d):
                out[i, j] = 0
            for p in range(indptr[i], indptr[i + 1]):
                if p + AHEAD < m:
                    prefetch_span(&x[indices[p + AHEAD], 0], size)
                v = indices[p]
                for j in range(d):
                    out[i, j] += x[v, j]
            for j in range(d):
                out[i, j] *= scale[i]


def weighted_sum(const index[::1] indptr, const index[::1] indices, const floating[::1] weights,
                 const floating[:, ::1] x, const floating[::1] scale, Py_ssize_t start, Py_ssize_t stop,
                 floating[:, ::1] out):
    """Write scale_i * sum_p weights_p x[indices_p] for rows start..stop."""
    cdef Py_ssize_t i, j, p, v, d = x.shape[1], m = indices.shape[0], size = d * sizeof(floating)
    cdef floating w
    with nogil:
        for i in range(start, stop):
            for j in range(d):
                out[i, j] = 0
            for p in range(indptr[i], indptr[i + 1]):
                if p + AHEAD < m:
                    prefetch_span(&x[indices[p + AHEAD], 0], size)
                v = indices[p]
                w = weights[p]
                for j in range(d):
                    out[i, j] += w * x[v, j]
            for j in range(d):
                out[i, j] *= scale[i]


def scaled(const index[::1] indptr, const index[::1] indices, const floating[::1] weights, const double[::1] left,
           const double[::1] right, floating[::1] out):
    """Write left_i weights_p right_{indices_p}, rounded once."""
    cdef Py_ssize_t i, p
    with nogil:
        for i in range(indptr.shape[0] - 1):
            for p in range(indptr[i], indptr[i + 1]):
                out[p] = <floating>(weights[p] * (left[i] * right[indices[p]]))
