"""Element-wise activations and their gradients, and dropout, on flat arrays. Arguments are checked by the callers."""
from cython cimport floating
from libc.math cimport erf, erff
from libc.stdint cimport uint64_t

from gnncy._kernels._hash cimport mix64
from .._math cimport expo


def exponential(const floating[::1] x, floating[::1] out):
    """Write exp(x)."""
    cdef Py_ssize_t i, n = x.shape[0]
    with nogil:
        for i in range(n):
            out[i] = expo(x[i])


def relu(const floating[::1] x, floating[::1] out):
    """Write x where x >= 0, else 0; a nan stays."""
    cdef Py_ssize_t i, n = x.shape[0]
    cdef floating zero = 0
    with nogil:
        for i in range(n):
            out[i] = zero if x[i] < zero else x[i]


def relu_grad(const floating[::1] out, const floating[::1] grad, floating[::1] grad_x):
    """Write the gradient through :func:`relu` (0 at 0) from its output."""
    cdef Py_ssize_t i, n = out.shape[0]
    cdef floating zero = 0
    with nogil:
        for i in range(n):
            grad_x[i] = grad[i] if out[i] > zero else zero


def leaky_relu(const floating[::1] x, floating slope, floating[::1] out):
    """Write x where x >= 0, else slope x."""
    cdef Py_ssize_t i, n = x.shape[0]
    cdef floating zero = 0
    with nogil:
        for i in range(n):
            out[i] = slope * x[i] if x[i] < zero else x[i]


def leaky_relu_grad(const floating[::1] out, const floating[::1] grad, floating slope, floating[::1] grad_x):
    """Write the gradient through :func:`leaky_relu` (slope at 0) from its output."""
    cdef Py_ssize_t i, n = out.shape[0]
    cdef floating zero = 0
    with nogil:
        for i in range(n):
            grad_x[i] = grad[i] if out[i] > zero else slope * grad[i]


def elu(const floating[::1] x, floating alpha, floating[::1] out):
    """Write x where x > 0, else alpha (exp(x) - 1)."""
    cdef Py_ssize_t i, n = x.shape[0]
    cdef floating e, zero = 0, one = 1
    with nogil:
        for i in range(n):
            e = alpha * (expo(x[i]) - one)
            out[i] = x[i] if x[i] > zero else e


def elu_grad(const floating[::1] out, const floating[::1] grad, floating alpha, floating[::1] grad_x):
    """Write the gradient through :func:`elu` from its output."""
    cdef Py_ssize_t i, n = out.shape[0]
    cdef floating zero = 0
    with nogil:
        for i in range(n):
            grad_x[i] = grad[i] if out[i] > zero else (out[i] + alpha) * grad[i]


cdef inline floating normal_cdf(floating x) noexcept nogil:
    cdef floating half = <floating>0.5, one = 1, root_half = <floating>0.70710678118654752440
    if floating is float:
        return half * (one + erff(x * root_half))
    else:
        return half * (one + erf(x * root_half))


def gelu(const floating[::1] x, floating[::1] out):
    """Write x P(Z <= x), Z standard normal."""
    cdef Py_ssize_t i, n = x.shape[0]
    with nogil:
        for i in range(n):
            out[i] = x[i] * normal_cdf(x[i])


def gelu_grad(const floating[::1] x, const floating[::1] grad, floating[::1] grad_x):
    """Write the gradient through :func:`gelu` from its input."""
    cdef Py_ssize_t i, n = x.shape[0]
    cdef floating half = <floating>0.5, scale = <floating>0.39894228040143267794
    with nogil:
        for i in range(n):
            grad_x[i] = grad[i] * (normal_cdf(x[i]) + x[i] * scale * expo(-half * x[i] * x[i]))


def dropout(const floating[::1] x, uint64_t key, Py_ssize_t first, int threshold, floating scale, floating[::1] out):
    """Write scale x, or 0 with probability threshold / 2**16; ``x`` begins at element ``first``, a multiple of 4.

    Whether an element stays depends on the key and its place alone.
    """
    cdef Py_ssize_t i, j, n = x.shape[0], whole = n - n % 4
    cdef uint64_t bits, base = mix64(key) + (<uint64_t>first) // 4
    cdef floating keep, zero = 0
    with nogil:
        for i in range(0, whole, 4):
            # One hash of 64 bits decides four elements.
            bits = mix64(base + <uint64_t>i // 4)
            for j in range(4):
                keep = zero if <int>((bits >> (16 * j)) & 0xFFFF) < threshold else scale
                out[i + j] = x[i + j] * keep
        bits = mix64(base + <uint64_t>whole // 4)
        for j in range(n - whole):
            keep = zero if <int>((bits >> (16 * j)) & 0xFFFF) < threshold else scale
            out[whole + j] = x[whole + j] * keep
