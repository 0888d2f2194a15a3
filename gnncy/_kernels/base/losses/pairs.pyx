"""Losses on pairs of rows. Each row's gradient is written by its own node, from all its pairs (see incidence.pyx).

Arguments are checked by gnncy.losses.
"""
from cython cimport floating
from libc.math cimport log1p
from libc.stdint cimport int32_t, int64_t

from gnncy._kernels._prefetch cimport prefetch_span

from .._math cimport expo, root

ctypedef fused index:
    int32_t
    int64_t

cdef enum:
    AHEAD = 6  # rows of z asked for before their turn
    TILE = 64  # columns whose sums stay in registers; those left over add up in memory


def margin_grad(const index[::1] indptr, const index[::1] others, const index[::1] pairs, const floating[:, ::1] z,
                const unsigned char[::1] similar, const floating[::1] weight, floating margin, Py_ssize_t start,
                Py_ssize_t stop, double[::1] loss, floating[:, ::1] grad):
    """Add the gradient of sum_p weight_p loss_p to rows start..stop, and write the losses of pairs they are first in.

    A similar pair's loss is its squared distance, another's max(0, margin - distance)^2. Another pair of equal rows is
    pushed apart along one axis, a different one for each pair.
    """
    cdef Py_ssize_t i, j, e, p, v, d = z.shape[1], m = others.shape[0], size = d * sizeof(floating)
    cdef bint first
    cdef floating s, t, c, l, zero = 0, two = 2
    with nogil:
        for i in range(start, stop):
            for e in range(indptr[i], indptr[i + 1]):
                if e + AHEAD < m:
                    prefetch_span(&z[others[e + AHEAD], 0], size)
                v = others[e]
                p = pairs[e]
                first = p >= 0
                p = p if first else ~p
                s = 0
                for j in range(d):
                    t = z[i, j] - z[v, j]
                    s += t * t
                if similar[p]:
                    l = s
                    c = two
                else:
                    s = root(s)
                    t = margin - s if margin > s else zero
                    l = t * t
                    if s > zero:
                        c = -two * t / s
                    else:
                        c = zero
                        grad[i, p % d] += -two * t * weight[p] if first else two * t * weight[p]
                if first:
                    loss[p] = l
                c = c * weight[p]
                if c != zero:
                    for j in range(d):
                        grad[i, j] += c * (z[i, j] - z[v, j])


def logistic_grad(const index[::1] indptr, const index[::1] others, const index[::1] pairs, const floating[:, ::1] z,
                  const unsigned char[::1] similar, const floating[::1] weight, Py_ssize_t start, Py_ssize_t stop,
                  double[::1] loss, floating[:, ::1] grad):
    """As :func:`margin_grad`, for the cross entropy of whether a pair is similar, its logit the dot product."""
    cdef Py_ssize_t i, j, e, p, v, d = z.shape[1], m = others.shape[0], size = d * sizeof(floating)
    cdef bint first
    cdef floating s, x, c, zero = 0, one = 1
    with nogil:
        for i in range(start, stop):
            for e in range(indptr[i], indptr[i + 1]):
                if e + AHEAD < m:
                    prefetch_span(&z[others[e + AHEAD], 0], size)
                v = others[e]
                p = pairs[e]
                first = p >= 0
                p = p if first else ~p
                s = 0
                for j in range(d):
                    s += z[i, j] * z[v, j]
                s = -s if similar[p] else s  # the loss is log(1 + exp(s))
                x = expo(-s if s > zero else s)
                c = (one if s > zero else x) / (one + x) * weight[p]
                c = -c if similar[p] else c
                if first:
                    loss[p] = (s if s > zero else zero) + log1p(x)
                for j in range(d):
                    grad[i, j] += c * z[v, j]


def laplacian_grad(const index[::1] indptr, const index[::1] indices, const floating[::1] weights,
                   const floating[:, ::1] z, const floating[::1] share, const floating[::1] scale, floating factor,
                   Py_ssize_t start, Py_ssize_t stop, double[::1] loss, floating[:, ::1] grad):
    """Write factor times the gradient of sum_i loss_i, and loss_i, for rows start..stop of a symmetric graph.

    loss_i is half of sum_j w_ij (share_i + share_j) |scale_i z_i - scale_j z_j|^2 over the arcs of i.
    """
    cdef Py_ssize_t i, j, p, c, v, tile, d = z.shape[1], m = indices.shape[0], rest = d - d % TILE
    cdef double total
    cdef floating s, t, w, a, b, zero = 0, two = 2
    cdef floating[TILE] own, sums
    with nogil:
        for i in range(start, stop):
            total = 0
            a = scale[i]
            for tile in range(d // TILE):
                c = TILE * tile
                for j in range(TILE):
                    own[j] = a * z[i, c + j]
                    sums[j] = zero
                for p in range(indptr[i], indptr[i + 1]):
                    if p + AHEAD < m:
                        prefetch_span(&z[indices[p + AHEAD], c], TILE * sizeof(floating))
                    v = indices[p]
                    b = scale[v]
                    w = weights[p] * (share[i] + share[v])
                    s = 0
                    for j in range(TILE):
                        t = own[j] - b * z[v, c + j]
                        s += t * t
                        sums[j] += w * t
                    total += w * s
                for j in range(TILE):
                    grad[i, c + j] = sums[j] * (a * two * factor)
            for j in range(rest, d):
                grad[i, j] = zero
            for p in range(indptr[i], indptr[i + 1] if rest < d else indptr[i]):
                if p + AHEAD < m:
                    prefetch_span(&z[indices[p + AHEAD], rest], (d - rest) * sizeof(floating))
                v = indices[p]
                b = scale[v]
                w = weights[p] * (share[i] + share[v])
                s = 0
                for j in range(rest, d):
                    t = a * z[i, j] - b * z[v, j]
                    s += t * t
                    grad[i, j] += w * t
                total += w * s
            for j in range(rest, d):
                grad[i, j] *= a * two * factor
            loss[i] = total / 2
