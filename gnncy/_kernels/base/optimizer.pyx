"""Optimizer steps, in place on flat memory. Arguments are checked by gnncy.optim."""
from cython cimport floating
from libc.stdint cimport uint32_t, uint64_t

from ._math cimport root


ctypedef fused bits_t:
    uint32_t
    uint64_t


def all_finite(const bits_t[::1] x):
    """Whether no float, given as its bits, has the exponent of nan and infinity (float rules could hide a nan)."""
    cdef Py_ssize_t i, n = x.shape[0]
    cdef bits_t bad = 0, exponent
    if bits_t is uint32_t:
        exponent = <uint32_t>0x7F800000
    else:
        exponent = <uint64_t>0x7FF0000000000000
    with nogil:
        for i in range(n):
            bad |= (x[i] & exponent) == exponent
    return bad == 0


def adam(const floating[::1] grad, floating rate, floating beta1, floating beta2, floating root_correction,
         floating eps, floating l2, floating keep, floating[::1] param, floating[::1] m, floating[::1] v):
    """One step of Adam. ``rate`` is lr / (1 - beta1^t), ``root_correction`` 1 / sqrt(1 - beta2^t).

    ``l2`` adds l2 param to the gradient, ``keep`` multiplies param first (decoupled weight decay).
    """
    cdef Py_ssize_t i, n = grad.shape[0]
    cdef floating g, p, a, b, one = 1, c1 = one - beta1, c2 = one - beta2
    with nogil:
        for i in range(n):
            p = param[i]
            g = grad[i] + l2 * p
            a = beta1 * m[i] + c1 * g
            b = beta2 * v[i] + c2 * g * g
            m[i] = a
            v[i] = b
            param[i] = p * keep - rate * a / (root(b) * root_correction + eps)
