"""The gradient of skip-gram with negative sampling, for pairs of records; negatives are shared by a group of pairs.

Arguments are checked by gnncy.estimators.
"""
from cython cimport floating
from libc.math cimport log
from libc.stdint cimport int32_t, int64_t, uint64_t

from gnncy._kernels._hash cimport mix64
from gnncy._kernels._places cimport group_equal, place, position
from gnncy._kernels._prefetch cimport prefetch_span

from .._math cimport expo
from .records cimport adagrad

cdef enum:
    AHEAD = 4  # pairs whose rows are asked for before their turn
    FACTORS = 510  # factors of at most 2 whose product is sure to be finite

cdef double UNIT = 2.0 ** -53


cdef inline Py_ssize_t target(Py_ssize_t e, Py_ssize_t t, Py_ssize_t pairs, Py_ssize_t drawn) noexcept nogil:
    """Of pair e the place of the context (t = 0) or of a negative."""
    return pairs + e if t == 0 else drawn + t - 1


cdef inline floating slope(floating s, bint positive, double* most, double* product) noexcept nogil:
    """The derivative of log(1 + exp(s)), for a positive of log(1 + exp(-s)); adds the loss as maximum and factor."""
    cdef floating x, zero = 0, one = 1
    x = expo(-s if s > zero else s)
    product[0] *= one + x
    if positive:
        most[0] += zero if s > zero else -s
        return -(x if s > zero else one) / (one + x)
    most[0] += s if s > zero else zero
    return (one if s > zero else x) / (one + x)


cdef void descent(Py_ssize_t start, Py_ssize_t stop, const floating[:, ::1] records, const int64_t* places,
                  Py_ssize_t n, Py_ssize_t pairs, Py_ssize_t group, floating[:, ::1] factor, double[::1] loss,
                  floating[:, ::1] grad) noexcept nogil:
    """:func:`gradient` for the first ``n`` places, of ``pairs`` pairs."""
    cdef Py_ssize_t c, e, j, t, first, last, drawn, d = grad.shape[1]
    cdef Py_ssize_t targets = factor.shape[1], negatives = targets - 1, size = d * sizeof(floating)
    cdef const floating *x0
    cdef const floating *x1
    cdef const floating *x2
    cdef const floating *x3
    cdef const floating *y0
    cdef const floating *y1
    cdef const floating *y2
    cdef floating *g
    cdef floating s0, s1, s2, s3, zero = 0
    cdef double most, product
    for c in range(start, stop):
        first = c * group
        last = min(first + group, pairs)
        drawn = 2 * pairs + c * negatives
        for t in range(drawn + negatives, min(drawn + 2 * negatives, n)):
            prefetch_span(&records[places[t], 0], size)
        for e in range(first, last):
            if e + AHEAD < pairs:
                prefetch_span(&records[places[e + AHEAD], 0], size)
                prefetch_span(&records[places[pairs + e + AHEAD], 0], size)
            most = 0
            product = 1
            x0 = &records[places[e], 0]
            for t in range(0, targets - 2, 3):  # three at a time, so that their sums do not wait for each other
                y0 = &records[places[target(e, t, pairs, drawn)], 0]
                y1 = &records[places[drawn + t], 0]
                y2 = &records[places[drawn + t + 1], 0]
                s0 = s1 = s2 = zero
                for j in range(d):
                    s0 += x0[j] * y0[j]
                    s1 += x0[j] * y1[j]
                    s2 += x0[j] * y2[j]
                factor[e, t] = slope(s0, t == 0, &most, &product)
                factor[e, t + 1] = slope(s1, False, &most, &product)
                factor[e, t + 2] = slope(s2, False, &most, &product)
                if t % FACTORS == FACTORS - 3:
                    most += log(product)
                    product = 1
            for t in range(targets - targets % 3, targets):
                y0 = &records[places[target(e, t, pairs, drawn)], 0]
                s0 = zero
                for j in range(d):
                    s0 += x0[j] * y0[j]
                factor[e, t] = slope(s0, t == 0, &most, &product)
            loss[e] = most + log(product)

            g = &grad[pairs + e, 0]
            s0 = factor[e, 0]
            for j in range(d):
                g[j] = s0 * x0[j]
            g = &grad[e, 0]
            for j in range(d):
                g[j] = zero
            for t in range(0, targets - 2, 3):
                y0 = &records[places[target(e, t, pairs, drawn)], 0]
                y1 = &records[places[drawn + t], 0]
                y2 = &records[places[drawn + t + 1], 0]
                s0 = factor[e, t]
                s1 = factor[e, t + 1]
                s2 = factor[e, t + 2]
                for j in range(d):
                    g[j] += s0 * y0[j] + s1 * y1[j] + s2 * y2[j]
            for t in range(targets - targets % 3, targets):
                y0 = &records[places[target(e, t, pairs, drawn)], 0]
                s0 = factor[e, t]
                for j in range(d):
                    g[j] += s0 * y0[j]
        for t in range(1, targets):
            g = &grad[drawn + t - 1, 0]
            for j in range(d):
                g[j] = zero
            for e in range(first, last - 3, 4):
                x0 = &records[places[e], 0]
                x1 = &records[places[e + 1], 0]
                x2 = &records[places[e + 2], 0]
                x3 = &records[places[e + 3], 0]
                s0 = factor[e, t]
                s1 = factor[e + 1, t]
                s2 = factor[e + 2, t]
                s3 = factor[e + 3, t]
                for j in range(d):
                    g[j] += s0 * x0[j] + s1 * x1[j] + s2 * x2[j] + s3 * x3[j]
            for e in range(last - (last - first) % 4, last):
                x0 = &records[places[e], 0]
                s0 = factor[e, t]
                for j in range(d):
                    g[j] += s0 * x0[j]


def gradient(Py_ssize_t start, Py_ssize_t stop, const floating[:, ::1] records, const int64_t[::1] places,
             Py_ssize_t group, floating[:, ::1] factor, double[::1] loss, floating[:, ::1] grad):
    """Write the loss of the pairs of the groups start..stop, and the gradient of its sum, one row for each of places.

    ``places`` are records: of the pairs' centres, of their contexts, and the negatives of each group of ``group``
    pairs. A pair's loss is -log s(u v) - sum_k log s(-u n_k), with s the logistic function. A record begins with its
    row, as wide as ``grad``. ``factor`` receives the derivatives by each pair's products.
    """
    with nogil:
        descent(start, stop, records, &places[0], places.shape[0], factor.shape[0], group, factor, loss, grad)


def train(const int64_t[::1] u, const int64_t[::1] v, int vectors, const int64_t[::1] blocks,
          const double[::1] cumulative, const int32_t[::1] guide, uint64_t key, Py_ssize_t group,
          const int64_t[::1] slot_of, int bits, int32_t[::1] mark, int64_t[:, ::1] scratch, double[::1] loss,
          floating[:, ::1] factor, floating[:, ::1] grad, floating lr, floating eps, floating[:, ::1] records):
    """Steps of row-wise Adagrad on pairs of nodes in order, as many a step as ``loss`` has places; returns the loss.

    A node has ``vectors`` rows, of which the last is its context. Negatives are the nodes of ``blocks``, by lots that the
    key names and the sums of their odds. Where rows lie is as for ``tables.locate``; ``mark`` and what ``scratch`` holds,
    a place more than ``grad`` is long, as for ``tables.group``.
    """
    cdef Py_ssize_t step, first, e, m, n, count, groups, negatives = factor.shape[1] - 1
    cdef Py_ssize_t pairs = u.shape[0], batch = loss.shape[0]
    cdef int other = vectors - 1
    cdef int64_t i, mask = (<int64_t>1 << bits) - 1
    cdef int64_t *where = &scratch[0, 0]
    cdef int64_t *distinct = &scratch[1, 0]
    cdef int64_t *begin = &scratch[2, 0]
    cdef int64_t *order = &scratch[3, 0]
    cdef double lot, total = 0
    with nogil:
        for step in range((pairs + batch - 1) // batch):
            first = step * batch
            m = min(batch, pairs - first)
            groups = (m + group - 1) // group
            n = 2 * m + groups * negatives
            for e in range(m):
                where[e] = place(u[first + e] * vectors, slot_of, bits)
                where[m + e] = place(v[first + e] * vectors + other, slot_of, bits)
            for e in range(groups * negatives):
                lot = (mix64(key + <uint64_t>e) >> 11) * UNIT
                i = position(lot, cumulative, guide) * vectors + other
                where[2 * m + e] = (slot_of[blocks[i >> bits]] << bits) | (i & mask)
            key = mix64(key)
            descent(0, groups, records, where, n, m, group, factor, loss, grad)
            for e in range(m):
                total += loss[e]
            count = group_equal(where, n, mark, distinct, begin, order)
            adagrad(0, count, distinct, order, begin, grad, lr, eps, records)
    return total
