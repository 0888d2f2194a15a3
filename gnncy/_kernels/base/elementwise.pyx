"""Element-wise activations and their gradients, on flat arrays. Arguments are checked by the callers."""
from cython cimport floating

from ._math cimport expo


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
