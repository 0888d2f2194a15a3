"""Pairs of nodes as an undirected graph: each pair stands in the rows of both its nodes, columns ascending.

An entry's ``pair`` is p in the row of the pair's first node and ~p in that of its second. Arguments are checked by
gnncy.losses.local.
"""
from cython cimport floating
from libc.stdint cimport int32_t, int64_t, uint64_t

from gnncy._kernels._hash cimport below, mix64

ctypedef fused index:
    int32_t
    int64_t


def count(const index[::1] left, const index[::1] right, index[::1] indptr):
    """Write the row starts; ``indptr`` comes in as zeros."""
    cdef Py_ssize_t p, i
    with nogil:
        for p in range(left.shape[0]):
            indptr[left[p] + 1] += 1
            indptr[right[p] + 1] += 1
        for i in range(indptr.shape[0] - 1):
            indptr[i + 1] += indptr[i]


def enter(const index[::1] left, const index[::1] right, index[::1] cursor, index[::1] others, index[::1] pairs):
    """Write both entries of each pair, in the pairs' order; ``cursor`` comes in as the row starts."""
    cdef Py_ssize_t p, e
    with nogil:
        for p in range(left.shape[0]):
            e = cursor[left[p]]
            cursor[left[p]] += 1
            others[e] = right[p]
            pairs[e] = <index>p
            e = cursor[right[p]]
            cursor[right[p]] += 1
            others[e] = left[p]
            pairs[e] = <index>(~p)


def transpose(const index[::1] indptr, const index[::1] others, const index[::1] pairs, index[::1] cursor,
              index[::1] out_others, index[::1] out_pairs):
    """Write each entry into its other node's row, so that columns ascend, and equal ones by their pair."""
    cdef Py_ssize_t i, e, to
    with nogil:
        for i in range(indptr.shape[0] - 1):
            for e in range(indptr[i], indptr[i + 1]):
                to = cursor[others[e]]
                cursor[others[e]] += 1
                out_others[to] = <index>i
                out_pairs[to] = ~pairs[e]


def repeats(const index[::1] indptr, const index[::1] others, const index[::1] pairs,
            const unsigned char[::1] similar, unsigned char[::1] repeated):
    """Mark every pair that is listed before, in either direction and of the same kind; returns their number."""
    cdef Py_ssize_t i, e, p, found = 0
    cdef bint[2] seen
    with nogil:
        for i in range(indptr.shape[0] - 1):
            for e in range(indptr[i], indptr[i + 1]):
                if e == indptr[i] or others[e] != others[e - 1]:
                    seen[0] = False
                    seen[1] = False
                p = pairs[e]
                if others[e] < i or others[e] == i and p < 0:
                    continue
                p = p if p >= 0 else ~p
                if seen[similar[p]]:
                    repeated[p] = 1
                    found += 1
                seen[similar[p]] = True
    return found


def number(const index[::1] indptr, const index[::1] indices, index[::1] cursor, index[::1] pairs):
    """Number the edges of a graph with sorted rows and no self-loops, in the order of their smaller ends.

    Returns how many there are, or -1 if an arc has no reverse. ``cursor`` comes in as the row starts.
    """
    cdef Py_ssize_t i, e, to, j, p = 0
    with nogil:
        for i in range(indptr.shape[0] - 1):
            if cursor[i] < indptr[i + 1] and indices[cursor[i]] < i:
                p = -1  # an arc to a smaller node that the smaller node has no reverse of
                break
            for e in range(cursor[i], indptr[i + 1]):
                j = indices[e]
                to = cursor[j]
                if to == indptr[j + 1] or indices[to] != i:
                    p = -1
                    break
                cursor[j] += 1
                pairs[e] = <index>p
                pairs[to] = ~<index>p
                p += 1
            if p < 0:
                break
    return p


def symmetric(const index[::1] indptr, const index[::1] indices, const floating[::1] data, index[::1] cursor):
    """Whether each arc of a graph with sorted rows has a reverse of the same weight; self-loops are their own."""
    cdef Py_ssize_t i, e, to, j
    cdef bint same = True
    with nogil:
        for i in range(indptr.shape[0] - 1):
            if cursor[i] < indptr[i + 1] and indices[cursor[i]] < i:
                same = False
            for e in range(cursor[i], indptr[i + 1]):
                j = indices[e]
                to = cursor[j] if j != i else e
                if to == indptr[j + 1] or indices[to] != i or data[to] != data[e]:
                    same = False
                    break
                cursor[j] += 1
            if not same:
                break
    return same


cdef inline bint adjacent(const index *row, Py_ssize_t degree, index other) noexcept nogil:
    cdef Py_ssize_t low = 0, high = degree, middle
    while low < high:
        middle = (low + high) >> 1
        if row[middle] < other:
            low = middle + 1
        else:
            high = middle
    return low < degree and row[low] == other


def non_edges(const index[::1] indptr, const index[::1] others, uint64_t key, Py_ssize_t tries, Py_ssize_t start,
              Py_ssize_t stop, index[::1] left, index[::1] right):
    """Write two different nodes that are no pair, for the draws start..stop; a draw depends on key and its number.

    Nodes are uniform. After ``tries`` pairs that are none of these the next free one is taken: there must be one.
    """
    cdef Py_ssize_t p, t, n = indptr.shape[0] - 1
    cdef uint64_t stream
    cdef index u, v
    with nogil:
        for p in range(start, stop):
            stream = mix64(key ^ mix64(p))
            u = 0
            v = 0
            t = 0
            while u == v or adjacent(&others[0] + indptr[u], indptr[u + 1] - indptr[u], v):
                if t < tries:
                    u = <index>below(mix64(stream + 2 * t), n)
                    v = <index>below(mix64(stream + 2 * t + 1), n)
                    t += 1
                else:
                    v += 1
                    if v == n:
                        v = 0
                        u = u + 1 if u + 1 < n else 0
            left[p] = u
            right[p] = v
