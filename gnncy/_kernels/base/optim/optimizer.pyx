"""Optimizer steps, in place on elements ``start .. stop`` of flat memory or on chosen rows of a table.

Arguments are checked by gnncy.optim. ``scale`` multiplies the gradient first (clipping), then ``l2`` adds l2 param.
"""
from cython cimport floating
from libc.stdint cimport int64_t, uint32_t, uint64_t

from .._math cimport root


ctypedef fused bits_t:
    uint32_t
    uint64_t


def all_finite(Py_ssize_t start, Py_ssize_t stop, const bits_t[::1] x):
    """Whether no float, given as its bits, has the exponent of nan and infinity (float rules could hide a nan)."""
    cdef Py_ssize_t i
    cdef bits_t bad = 0, exponent
    if bits_t is uint32_t:
        exponent = <uint32_t>0x7F800000
    else:
        exponent = <uint64_t>0x7FF0000000000000
    with nogil:
        for i in range(start, stop):
            bad |= (x[i] & exponent) == exponent
    return bad == 0


def sum_squares(Py_ssize_t start, Py_ssize_t stop, const floating[::1] x, double factor):
    """The sum of (factor x)^2, in float64: finite for any finite float32."""
    cdef Py_ssize_t i
    cdef double total = 0, value
    with nogil:
        for i in range(start, stop):
            value = factor * x[i]
            total += value * value
    return total


def multiply(Py_ssize_t start, Py_ssize_t stop, floating[::1] x, floating factor):
    """Multiply by a number."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(start, stop):
            x[i] *= factor


def clamp(Py_ssize_t start, Py_ssize_t stop, floating[::1] x, floating bound):
    """Move what lies outside -bound .. bound to the nearer end; nan stays."""
    cdef Py_ssize_t i
    cdef floating a
    with nogil:
        for i in range(start, stop):
            a = x[i]
            a = bound if a > bound else a
            x[i] = -bound if a < -bound else a


def sgd(Py_ssize_t start, Py_ssize_t stop, const floating[::1] grad, floating scale, floating lr, floating l2,
        floating[::1] param):
    """One step of plain gradient descent."""
    cdef Py_ssize_t i
    cdef floating p
    with nogil:
        for i in range(start, stop):
            p = param[i]
            param[i] = p - lr * (scale * grad[i] + l2 * p)


def momentum(Py_ssize_t start, Py_ssize_t stop, const floating[::1] grad, floating scale, floating lr, floating l2,
             floating mu, floating fresh, floating direct, floating along, floating[::1] param, floating[::1] velocity):
    """One step with momentum: velocity becomes mu velocity + fresh g, the step is direct g + along velocity."""
    cdef Py_ssize_t i
    cdef floating g, p, v
    with nogil:
        for i in range(start, stop):
            p = param[i]
            g = scale * grad[i] + l2 * p
            v = mu * velocity[i] + fresh * g
            velocity[i] = v
            param[i] = p - lr * (direct * g + along * v)


def adam(Py_ssize_t start, Py_ssize_t stop, const floating[::1] grad, floating scale, floating rate, floating beta1,
         floating fresh1, floating beta2, floating fresh2, floating root_correction, floating eps, floating l2,
         floating keep, floating[::1] param, floating[::1] m, floating[::1] v):
    """One step of Adam. ``rate`` is lr / (1 - beta1^t), ``root_correction`` 1 / sqrt(1 - beta2^t), ``fresh`` 1 - beta.

    ``keep`` multiplies param first (decoupled weight decay).
    """
    cdef Py_ssize_t i
    cdef floating g, p, a, b
    with nogil:
        for i in range(start, stop):
            p = param[i]
            g = scale * grad[i] + l2 * p
            a = beta1 * m[i] + fresh1 * g
            b = beta2 * v[i] + fresh2 * g * g
            m[i] = a
            v[i] = b
            param[i] = p * keep - rate * a / (root(b) * root_correction + eps)


def amsgrad(Py_ssize_t start, Py_ssize_t stop, const floating[::1] grad, floating scale, floating rate, floating beta1,
            floating fresh1, floating beta2, floating fresh2, floating root_correction, floating eps, floating l2,
            floating keep, floating[::1] param, floating[::1] m, floating[::1] v, floating[::1] top):
    """As :func:`adam`, dividing by the largest v so far."""
    cdef Py_ssize_t i
    cdef floating g, p, a, b, c
    with nogil:
        for i in range(start, stop):
            p = param[i]
            g = scale * grad[i] + l2 * p
            a = beta1 * m[i] + fresh1 * g
            b = beta2 * v[i] + fresh2 * g * g
            c = top[i]
            c = b if b > c else c
            m[i] = a
            v[i] = b
            top[i] = c
            param[i] = p * keep - rate * a / (root(c) * root_correction + eps)


def sum_rows(Py_ssize_t start, Py_ssize_t stop, const int64_t[::1] order, const int64_t[::1] begin,
             const floating[:, ::1] x, floating[:, ::1] out):
    """Write to row i of ``out`` the sum of the rows order[begin[i]:begin[i + 1]] of ``x``, in that order."""
    cdef Py_ssize_t i, j, k, row, d = x.shape[1]
    with nogil:
        for i in range(start, stop):
            row = order[begin[i]]
            for j in range(d):
                out[i, j] = x[row, j]
            for k in range(begin[i] + 1, begin[i + 1]):
                row = order[k]
                for j in range(d):
                    out[i, j] += x[row, j]


def row_adagrad(Py_ssize_t start, Py_ssize_t stop, const int64_t[::1] rows, const floating[:, ::1] grad, floating lr,
                floating eps, floating[:, ::1] param, floating[::1] total):
    """One step of Adagrad on the rows of ``param`` named in ``rows``, with one sum of mean squares a row."""
    cdef Py_ssize_t i, j, r, d = grad.shape[1]
    cdef floating squares, rate
    with nogil:
        for i in range(start, stop):
            r = rows[i]
            squares = 0
            for j in range(d):
                squares += grad[i, j] * grad[i, j]
            total[r] += squares / d
            rate = lr / (root(total[r]) + eps)
            for j in range(d):
                param[r, j] -= rate * grad[i, j]


def row_adam(Py_ssize_t start, Py_ssize_t stop, const int64_t[::1] rows, const floating[:, ::1] grad, floating rate,
             floating beta1, floating fresh1, floating beta2, floating fresh2, floating root_correction, floating eps,
             floating[:, ::1] param, floating[:, ::1] m, floating[:, ::1] v):
    """One step of :func:`adam` on the rows of ``param``, ``m`` and ``v`` named in ``rows``."""
    cdef Py_ssize_t i, j, r, d = grad.shape[1]
    cdef floating g, a, b
    with nogil:
        for i in range(start, stop):
            r = rows[i]
            for j in range(d):
                g = grad[i, j]
                a = beta1 * m[r, j] + fresh1 * g
                b = beta2 * v[r, j] + fresh2 * g * g
                m[r, j] = a
                v[r, j] = b
                param[r, j] -= rate * a / (root(b) * root_correction + eps)
