"""The gradient of skip-gram with negative sampling, for pairs of records; negatives are shared by a group of pairs.

Arguments are checked by gnncy.estimators.
"""
from cython cimport floating
from libc.math cimport log
from libc.stdint cimport int32_t, int64_t, uint64_t

from gnncy._kernels._hash cimport mix64
from gnncy._kernels._places cimport group_equal, place, position, shuffle_pairs
from gnncy._kernels._prefetch cimport prefetch_span

from .._math cimport expo
from .records cimport adagrad

cdef enum:
    AHEAD = 4  # pairs whose rows are asked for before their turn
    FACTORS = 96  # factors of at most 2 whose product is sure to be finite

cdef double UNIT = 2.0 ** -53


cdef inline Py_ssize_t target(Py_ssize_t e, Py_ssize_t t, Py_ssize_t pairs, Py_ssize_t drawn) noexcept nogil:
    """Of pair e the place of the context (t = 0) or of a negative."""
    return pairs + e if t == 0 else drawn + t - 1


cdef inline double slopes(floating* s, Py_ssize_t n) noexcept nogil:
    """Write over s with the derivatives of log(1 + exp(s)); returns the sum of these logarithms."""
    cdef Py_ssize_t block, i
    cdef floating x, y, size, most, product, zero = 0, half = 0.5, one = 1
    cdef double total = 0
    for block in range((n + FACTORS - 1) // FACTORS):
        most = zero
        product = one
        for i in range(block * FACTORS, min((block + 1) * FACTORS, n)):
            y = s[i]
            size = y if y > zero else -y
            x = expo(-size)
            most += y + size
            s[i] = (one if y > zero else x) / (one + x)
        for i in range(block * FACTORS, min((block + 1) * FACTORS, n)):
            y = s[i]
            product *= y if y > half else one - y
        total += most / 2 - log(product)
    return total


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
                factor[e, t] = s0
                factor[e, t + 1] = s1
                factor[e, t + 2] = s2
            for t in range(targets - targets % 3, targets):
                y0 = &records[places[target(e, t, pairs, drawn)], 0]
                s0 = zero
                for j in range(d):
                    s0 += x0[j] * y0[j]
                factor[e, t] = s0
            factor[e, 0] = -factor[e, 0]
        loss[c] = slopes(&factor[first, 0], (last - first) * targets)
        for e in range(first, last):
            factor[e, 0] = -factor[e, 0]
            x0 = &records[places[e], 0]
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
    """Write the losses of the groups start..stop, and the gradient of their sum, one row for each of places.

    ``places`` are records: of the pairs' centres, of their contexts, and the negatives of each group of ``group``
    pairs. The loss of a group is the sum of -log s(u v) - sum_k log s(-u n_k) over its pairs, with s the
    logistic function. A record begins with its
    row, as wide as ``grad``. ``factor`` receives the derivatives by each pair's products.
    """
    with nogil:
        descent(start, stop, records, &places[0], places.shape[0], factor.shape[0], group, factor, loss, grad)


def train(const int64_t[::1] cells, const int64_t[::1] begin, int64_t[::1] u, int64_t[::1] v, int vectors,
          const int64_t[::1] first, const int64_t[::1] blocks, const double[::1] cumulative, const int32_t[::1] guide,
          uint64_t key, Py_ssize_t group, const int64_t[::1] slot_of, int bits, int32_t[::1] mark,
          int64_t[:, ::1] scratch, double[::1] loss, floating[:, ::1] factor, floating[:, ::1] grad, floating lr,
          floating eps, floating[:, ::1] records, double[::1] losses):
    """Steps of row-wise Adagrad on the pairs of nodes of some cells, one after the other; writes the cells' losses.

    The pairs of cell k, u, v[begin[k]:begin[k + 1]], are put in a random order that k and the key name; a step takes as
    many as ``factor`` is long. A node has ``vectors`` rows, of which the last is its context. Negatives are nodes of lane
    k modulo the number of lanes: those of ``blocks``, of which the nodes' odds begin at first[lane] of ``cumulative``, the
    sums of them. Where rows lie is as for ``tables.locate``; ``mark`` and what ``scratch`` holds, a place more than
    ``grad`` is long, as for ``tables.group``.
    """
    cdef Py_ssize_t c, lane, step, start, e, m, n, count, groups, negatives = factor.shape[1] - 1
    cdef Py_ssize_t batch = factor.shape[0], lanes = first.shape[0] - 1
    cdef int other = vectors - 1
    cdef int64_t i, cell, mask = (<int64_t>1 << bits) - 1
    cdef int64_t *where = &scratch[0, 0]
    cdef int64_t *distinct = &scratch[1, 0]
    cdef int64_t *from_ = &scratch[2, 0]
    cdef int64_t *order = &scratch[3, 0]
    cdef double lot, total
    cdef uint64_t lots
    with nogil:
        for c in range(cells.shape[0]):
            cell = cells[c]
            lane = cell % lanes
            total = 0
            lots = mix64(key ^ <uint64_t>cell)
            if begin[cell] < begin[cell + 1]:
                shuffle_pairs(&u[begin[cell]], &v[begin[cell]], begin[cell + 1] - begin[cell], lots)
            for step in range((begin[cell + 1] - begin[cell] + batch - 1) // batch):
                start = begin[cell] + step * batch
                lots = mix64(lots)
                m = min(batch, begin[cell + 1] - start)
                groups = (m + group - 1) // group
                n = 2 * m + groups * negatives
                for e in range(m):
                    where[e] = place(u[start + e] * vectors, slot_of, bits)
                    where[m + e] = place(v[start + e] * vectors + other, slot_of, bits)
                for e in range(groups * negatives):
                    lot = (mix64(lots + <uint64_t>e) >> 11) * UNIT
                    i = first[lane] + position(lot, &cumulative[first[lane]], &guide[first[lane]],
                                               first[lane + 1] - first[lane])
                    i = i * vectors + other
                    where[2 * m + e] = (slot_of[blocks[i >> bits]] << bits) | (i & mask)
                descent(0, groups, records, where, n, m, group, factor, loss, grad)
                for e in range(groups):
                    total += loss[e]
                count = group_equal(where, n, mark, distinct, from_, order)
                adagrad(0, count, distinct, order, from_, grad, lr, eps, records)
            losses[cell] = total
