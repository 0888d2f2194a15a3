"""Errors of reconstructed rows and their gradients. Arguments are checked by gnncy.losses.reconstruction."""
from cython cimport floating
from libc.math cimport pow

from .._math cimport root


def squared_grad(const floating[:, ::1] x, const floating[:, ::1] target, const floating[::1] weight, Py_ssize_t start,
                 Py_ssize_t stop, double[::1] loss, floating[:, ::1] grad):
    """Write the mean over the columns of (x - target)^2, and the gradient of sum_i weight_i loss_i."""
    cdef Py_ssize_t i, j, d = x.shape[1]
    cdef floating s, t, c, two = 2
    with nogil:
        for i in range(start, stop):
            c = two * weight[i] / d
            s = 0
            for j in range(d):
                t = x[i, j] - target[i, j]
                s += t * t
                grad[i, j] = c * t
            loss[i] = s / d


def cosine_grad(const floating[:, ::1] x, const floating[:, ::1] target, const floating[::1] weight, double gamma,
                Py_ssize_t start, Py_ssize_t stop, double[::1] loss, floating[:, ::1] grad):
    """Write (1 - cosine)^gamma, and the gradient of sum_i weight_i loss_i.

    A row shorter than 1e-12 has cosine 0 and gradient 0. 1 - cosine is half the squared distance of the unit rows, so
    that a small one keeps its digits.
    """
    cdef Py_ssize_t i, j, d = x.shape[1]
    cdef floating xx, tt, a, b, s, t, c, zero = 0, one = 1, least = <floating>1e-12
    cdef double error
    with nogil:
        for i in range(start, stop):
            xx = 0
            tt = 0
            for j in range(d):
                xx += x[i, j] * x[i, j]
                tt += target[i, j] * target[i, j]
            xx = root(xx)
            tt = root(tt)
            if xx < least or tt < least:
                loss[i] = 1
                for j in range(d):
                    grad[i, j] = zero
                continue
            a = one / xx
            b = one / tt
            s = 0
            for j in range(d):
                t = a * x[i, j] - b * target[i, j]
                s += t * t
            error = s / 2
            loss[i] = pow(error, gamma)
            c = <floating>(gamma * pow(error, gamma - 1)) * weight[i] * a
            s = one - s / 2  # the cosine
            for j in range(d):
                grad[i, j] = c * (s * a * x[i, j] - b * target[i, j])
