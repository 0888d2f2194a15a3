"""What the steps on records share with what computes their gradients and takes the step at once."""
from cython cimport floating
from libc.stdint cimport int64_t

from gnncy._kernels._prefetch cimport prefetch_span

from .._math cimport root

cdef enum:
    AHEAD = 4  # records asked for before their turn


cdef inline floating* total(const int64_t* order, Py_ssize_t first, Py_ssize_t last, floating[:, ::1] grad) noexcept nogil:
    """Add the gradients of one record up in the first of them."""
    cdef Py_ssize_t j, k, d = grad.shape[1]
    cdef floating *g = &grad[order[first], 0]
    cdef const floating *other
    for k in range(first + 1, last):
        prefetch_span(&grad[order[min(k + AHEAD, last - 1)], 0], d * sizeof(floating))
        other = &grad[order[k], 0]
        for j in range(d):
            g[j] += other[j]
    return g


cdef inline void adagrad(Py_ssize_t start, Py_ssize_t stop, const int64_t* place, const int64_t* order,
                         const int64_t* begin, floating[:, ::1] grad, floating lr, floating eps,
                         floating[:, ::1] records) noexcept nogil:
    """One step of Adagrad on the records ``place[start:stop]``; the state is one sum of mean squares."""
    cdef Py_ssize_t i, j, d = grad.shape[1], size = records.shape[1] * sizeof(floating)
    cdef floating *g
    cdef floating *row
    cdef floating squares, rate
    for i in range(start, stop):
        if i + AHEAD < stop:
            prefetch_span(&records[place[i + AHEAD], 0], size)
            prefetch_span(&grad[order[begin[i + AHEAD]], 0], d * sizeof(floating))
        g = total(order, begin[i], begin[i + 1], grad)
        row = &records[place[i], 0]
        squares = 0
        for j in range(d):
            squares += g[j] * g[j]
        row[d] += squares / d
        rate = lr / (root(row[d]) + eps)
        for j in range(d):
            row[j] -= rate * g[j]
