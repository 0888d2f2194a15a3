"""How probable it is that neighbour sampling reaches a node, one hop for a range of nodes.

``state[v]`` holds the probability of v after 0, 1, ... hops and, last, v's number of neighbours. A fan-out that takes all
neighbours is infinite.
"""
from libc.math cimport expm1, log1p
from libc.stdint cimport int32_t, int64_t

from gnncy._kernels._prefetch cimport prefetch

ctypedef fused index:
    int32_t
    int64_t

cdef enum:
    AHEAD = 16  # nodes asked for before their turn
    DEPTH = 32  # hops, at most


cdef inline double chance(double share, double fanout, bint replace) noexcept nogil:
    """Probability that a node that is expanded takes a given one of its neighbours, each a ``share`` of all."""
    if not replace:
        return min(fanout * share, 1)
    return -expm1(fanout * log1p(-share)) if share < 1 else 1


cdef inline double without(double reached, double helped) noexcept nogil:
    """Probability of being reached otherwise than with the help of one neighbour, which alone does it with ``helped``."""
    # Where that neighbour is certain to be reached, what it gets back from this node no longer matters.
    return (reached - helped) / (1 - helped) if helped < 0.999999 else reached


def hop(const index[::1] indptr, const index[::1] indices, const index[::1] in_indptr, const index[::1] in_indices,
        const float[:, ::1] state, const double[::1] fanouts, bint replace, Py_ssize_t hops, Py_ssize_t first,
        Py_ssize_t start, Py_ssize_t stop, float[:] out):
    """Write the probability of each node start..stop to be reached within ``hops`` hops, from those within fewer.

    Row i of the lists is that of node ``first + i``.
    """
    cdef Py_ssize_t e, t, v, u, other, last = state.shape[1] - 1, m = in_indices.shape[0]
    cdef double reached, share, to_v, to_u, x, y, fresh_u, fresh_v, before_x, before_y, step
    cdef double[DEPTH] chances
    cdef bint mutual
    with nogil:
        for v in range(start, stop):
            for t in range(hops):
                chances[t] = chance(1 / max(state[v, last], 1.0), fanouts[t], replace)
            reached = state[v, 0]
            other = indptr[v - first]
            for e in range(in_indptr[v - first], in_indptr[v - first + 1]):
                if e + AHEAD < m:
                    prefetch(&state[in_indices[e + AHEAD], 0])
                u = in_indices[e]
                if u == v or state[u, hops - 1] == 0:
                    continue
                while other < indptr[v - first + 1] and indices[other] < u:
                    other += 1
                mutual = other < indptr[v - first + 1] and indices[other] == u
                # to_v: u was reached without v and took v; to_u: v was reached without u and took u. Of those reached,
                # fresh has not yet taken the other.
                share = 1 / <double>state[u, last]
                to_v = 0
                to_u = 0
                fresh_u = 0
                fresh_v = 0
                before_x = 0
                before_y = 0
                for t in range(hops):
                    x = without(state[u, t], to_u) if t > 0 else state[u, 0]
                    y = 0 if not mutual else without(state[v, t], to_v) if t > 0 else state[v, 0]
                    fresh_u += max(x - before_x, 0)
                    before_x = max(x, before_x)
                    step = fresh_u * chance(share, fanouts[t], replace)
                    to_v += step
                    fresh_u -= step
                    if mutual:
                        fresh_v += max(y - before_y, 0)
                        before_y = max(y, before_y)
                        step = fresh_v * chances[t]
                        to_u += step
                        fresh_v -= step
                reached += min(to_v, 1) * (1 - reached)
            out[v] = <float>min(reached, 1)
