"""Optimizer steps on records: a row and behind it the optimizer's state, side by side in one line of an array.

Place i of a step is the record ``records[place[i]]``; its gradient is the sum of the rows order[begin[i]:begin[i + 1]]
of ``grad``, in that order, which is left in the first of them. Arguments are checked by gnncy.storage.tables.
"""
from cython cimport floating
from libc.stdint cimport int64_t

from gnncy._kernels._prefetch cimport prefetch_span

from .._math cimport root


def sgd(Py_ssize_t start, Py_ssize_t stop, const int64_t[::1] place, const int64_t[::1] order,
        const int64_t[::1] begin, floating[:, ::1] grad, floating lr, floating[:, ::1] records):
    """One step of plain gradient descent; there is no state."""
    cdef Py_ssize_t i, j, d = grad.shape[1], size = records.shape[1] * sizeof(floating)
    cdef floating *g
    cdef floating *row
    with nogil:
        for i in range(start, stop):
            if i + AHEAD < stop:
                prefetch_span(&records[place[i + AHEAD], 0], size)
                prefetch_span(&grad[order[begin[i + AHEAD]], 0], grad.shape[1] * sizeof(floating))
            g = total(&order[0], begin[i], begin[i + 1], grad)
            row = &records[place[i], 0]
            for j in range(d):
                row[j] -= lr * g[j]


def rowwise_adagrad(Py_ssize_t start, Py_ssize_t stop, const int64_t[::1] place, const int64_t[::1] order,
                    const int64_t[::1] begin, floating[:, ::1] grad, floating lr, floating eps,
                    floating[:, ::1] records):
    """One step of Adagrad; the state is one sum of mean squares."""
    with nogil:
        adagrad(start, stop, &place[0], &order[0], &begin[0], grad, lr, eps, records)


def adam(Py_ssize_t start, Py_ssize_t stop, const int64_t[::1] place, const int64_t[::1] order,
         const int64_t[::1] begin, floating[:, ::1] grad, floating rate, floating beta1, floating fresh1,
         floating beta2, floating fresh2, floating root_correction, floating eps, floating[:, ::1] records):
    """One step of Adam; the state are both means. Arguments as those of ``optimizer.row_adam``."""
    cdef Py_ssize_t i, j, d = grad.shape[1], size = records.shape[1] * sizeof(floating)
    cdef floating *g
    cdef floating *row
    cdef floating *m
    cdef floating *v
    cdef floating a, b
    with nogil:
        for i in range(start, stop):
            if i + AHEAD < stop:
                prefetch_span(&records[place[i + AHEAD], 0], size)
                prefetch_span(&grad[order[begin[i + AHEAD]], 0], grad.shape[1] * sizeof(floating))
            g = total(&order[0], begin[i], begin[i + 1], grad)
            row = &records[place[i], 0]
            m = row + d
            v = m + d
            for j in range(d):
                a = beta1 * m[j] + fresh1 * g[j]
                b = beta2 * v[j] + fresh2 * g[j] * g[j]
                m[j] = a
                v[j] = b
                row[j] -= rate * a / (root(b) * root_correction + eps)
