"""The gradient of skip-gram with negative sampling, for pairs of records; negatives are shared by a group of pairs.

Arguments are checked by gnncy.storage.tables and gnncy.estimators.
"""
from cython cimport floating
from libc.math cimport log
from libc.stdint cimport int64_t

from gnncy._kernels._prefetch cimport prefetch_span

from .._math cimport expo

cdef enum:
    AHEAD = 4  # pairs whose rows are asked for before their turn
    SEVERAL = 3  # targets that are taken together, so that their sums do not wait for each other
    FACTORS = 64  # factors of at most 2 whose product is sure to be finite


cdef inline floating slope(floating s, bint positive, double* most, double* product) noexcept nogil:
    """The derivative of log(1 + exp(s)), of log(1 + exp(-s)) for a positive; adds the loss as max and factor."""
    cdef floating x, zero = 0, one = 1
    x = expo(-s if s > zero else s)
    product[0] *= one + x
    if positive:
        most[0] += zero if s > zero else -s
        return -(x if s > zero else one) / (one + x)
    most[0] += s if s > zero else zero
    return (one if s > zero else x) / (one + x)


def gradient(Py_ssize_t start, Py_ssize_t stop, const floating[:, ::1] records, const int64_t[::1] places,
             Py_ssize_t pairs, Py_ssize_t group, Py_ssize_t negatives, double[::1] loss, floating[:, ::1] grad):
    """Write the loss of the pairs of the groups start..stop, and the gradient of its sum, one row for each of places.

    ``places`` are records: of the pairs' centres, of their contexts, and ``negatives`` for each group of ``group``
    pairs. A pair's loss is -log s(u v) - sum_k log s(-u n_k), with s the logistic function. A record begins with its
    row, as wide as ``grad``.
    """
    cdef Py_ssize_t c, e, j, t, first, last, drawn, n = places.shape[0], d = grad.shape[1], size = d * sizeof(floating)
    cdef Py_ssize_t[SEVERAL] at
    cdef const floating *x
    cdef const floating *y0
    cdef const floating *y1
    cdef const floating *y2
    cdef floating *gx
    cdef floating *g0
    cdef floating *g1
    cdef floating *g2
    cdef floating s0, s1, s2, a, zero = 0
    cdef double most, product
    with nogil:
        for c in range(start, stop):
            first = c * group
            last = min(first + group, pairs)
            drawn = 2 * pairs + c * negatives
            for j in range(negatives):
                prefetch_span(&records[places[min(drawn + negatives + j, n - 1)], 0], size)
                g0 = &grad[drawn + j, 0]
                for t in range(d):
                    g0[t] = zero
            for e in range(first, last):
                if e + AHEAD < pairs:
                    prefetch_span(&records[places[e + AHEAD], 0], size)
                    prefetch_span(&records[places[pairs + e + AHEAD], 0], size)
                most = 0
                product = 1
                x = &records[places[e], 0]
                gx = &grad[e, 0]
                # The context is target 0, the negatives follow; its gradient has one term.
                y0 = &records[places[pairs + e], 0]
                g0 = &grad[pairs + e, 0]
                t = 0
                if negatives >= SEVERAL - 1:
                    y1 = &records[places[drawn], 0]
                    y2 = &records[places[drawn + 1], 0]
                    g1 = &grad[drawn, 0]
                    g2 = &grad[drawn + 1, 0]
                    s0 = s1 = s2 = zero
                    for j in range(d):
                        a = x[j]
                        s0 += a * y0[j]
                        s1 += a * y1[j]
                        s2 += a * y2[j]
                    s0 = slope(s0, True, &most, &product)
                    s1 = slope(s1, False, &most, &product)
                    s2 = slope(s2, False, &most, &product)
                    for j in range(d):
                        a = x[j]
                        gx[j] = s0 * y0[j] + s1 * y1[j] + s2 * y2[j]
                        g0[j] = s0 * a
                        g1[j] += s1 * a
                        g2[j] += s2 * a
                    t = SEVERAL - 1
                else:
                    s0 = zero
                    for j in range(d):
                        s0 += x[j] * y0[j]
                    s0 = slope(s0, True, &most, &product)
                    for j in range(d):
                        gx[j] = s0 * y0[j]
                        g0[j] = s0 * x[j]
                while t + SEVERAL <= negatives:
                    for j in range(SEVERAL):
                        at[j] = drawn + t + j
                    y0 = &records[places[at[0]], 0]
                    y1 = &records[places[at[1]], 0]
                    y2 = &records[places[at[2]], 0]
                    g0 = &grad[at[0], 0]
                    g1 = &grad[at[1], 0]
                    g2 = &grad[at[2], 0]
                    s0 = s1 = s2 = zero
                    for j in range(d):
                        a = x[j]
                        s0 += a * y0[j]
                        s1 += a * y1[j]
                        s2 += a * y2[j]
                    s0 = slope(s0, False, &most, &product)
                    s1 = slope(s1, False, &most, &product)
                    s2 = slope(s2, False, &most, &product)
                    for j in range(d):
                        a = x[j]
                        gx[j] += s0 * y0[j] + s1 * y1[j] + s2 * y2[j]
                        g0[j] += s0 * a
                        g1[j] += s1 * a
                        g2[j] += s2 * a
                    t += SEVERAL
                    if t % FACTORS < SEVERAL:
                        most += log(product)
                        product = 1
                while t < negatives:
                    y0 = &records[places[drawn + t], 0]
                    g0 = &grad[drawn + t, 0]
                    s0 = zero
                    for j in range(d):
                        s0 += x[j] * y0[j]
                    s0 = slope(s0, False, &most, &product)
                    for j in range(d):
                        gx[j] += s0 * y0[j]
                        g0[j] += s0 * x[j]
                    t += 1
                loss[e] = most + log(product)
