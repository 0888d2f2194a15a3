"""Row-wise float loops. Arguments are checked by the callers."""
from cython cimport floating

from .._math cimport root


def normalise(const floating[:, ::1] x, floating[:, ::1] out, floating[::1] norm):
    """Write x_i / |x_i| and |x_i|; a row shorter than 1e-12 becomes zero and has norm 0."""
    cdef Py_ssize_t i, j, n = x.shape[0], d = x.shape[1]
    cdef floating s, inv, one = 1, least = <floating>1e-12
    with nogil:
        for i in range(n):
            s = 0
            for j in range(d):
                s += x[i, j] * x[i, j]
            s = root(s)
            if s < least:
                s = 0
                inv = 0
            else:
                inv = one / s
            norm[i] = s
            for j in range(d):
                out[i, j] = x[i, j] * inv


def normalise_grad(const floating[:, ::1] u, const floating[::1] norm, const floating[:, ::1] grad,
                   floating[:, ::1] out):
    """Write (g_i - u_i (u_i . g_i)) / |x_i|, the gradient through :func:`normalise`; 0 where the norm is 0."""
    cdef Py_ssize_t i, j, n = u.shape[0], d = u.shape[1]
    cdef floating s, inv, one = 1, zero = 0
    with nogil:
        for i in range(n):
            s = 0
            for j in range(d):
                s += u[i, j] * grad[i, j]
            inv = one / norm[i] if norm[i] > zero else zero
            for j in range(d):
                out[i, j] = (grad[i, j] - u[i, j] * s) * inv


def standardise(const floating[:, ::1] x, floating eps, floating[:, ::1] out, floating[::1] inverse):
    """Write (x_i - mean_i) / sqrt(var_i + eps) and 1 / sqrt(var_i + eps)."""
    cdef Py_ssize_t i, j, n = x.shape[0], d = x.shape[1]
    cdef floating mean, square, c, one = 1
    with nogil:
        for i in range(n):
            mean = 0
            for j in range(d):
                mean += x[i, j]
            mean = mean / d
            square = 0
            for j in range(d):
                c = x[i, j] - mean
                square += c * c
            inverse[i] = one / root(square / d + eps)
            for j in range(d):
                out[i, j] = (x[i, j] - mean) * inverse[i]


def standardise_grad(const floating[:, ::1] u, const floating[::1] inverse, const floating[:, ::1] grad,
                     floating[:, ::1] out):
    """Write (g_i - mean(g_i) - u_i mean(u_i g_i)) / sqrt(var_i + eps), the gradient through :func:`standardise`."""
    cdef Py_ssize_t i, j, n = u.shape[0], d = u.shape[1]
    cdef floating mean, dot
    with nogil:
        for i in range(n):
            mean = 0
            dot = 0
            for j in range(d):
                mean += grad[i, j]
                dot += u[i, j] * grad[i, j]
            mean = mean / d
            dot = dot / d
            for j in range(d):
                out[i, j] = (grad[i, j] - mean - u[i, j] * dot) * inverse[i]


def scatter_add(const floating[:, ::1] x, const Py_ssize_t[::1] index, floating[:, ::1] out):
    """Add row i of ``x`` to row ``index_i`` of ``out``, in ascending order of i."""
    cdef Py_ssize_t i, j, n = x.shape[0], d = x.shape[1]
    with nogil:
        for i in range(n):
            for j in range(d):
                out[index[i], j] += x[i, j]
