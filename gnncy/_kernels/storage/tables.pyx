"""Places of a table's rows in memory, and the pairs of nodes that a window of its blocks trains on.

A block is ``2 ** bits`` rows. Arguments are checked by gnncy.storage.tables and gnncy.estimators.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from gnncy._kernels._hash cimport mix64
from gnncy._kernels._prefetch cimport prefetch

ctypedef fused index:
    int32_t
    int64_t

cdef enum:
    AHEAD = 16  # marks asked for before their turn


def locate(const int64_t[::1] rows, const int64_t[::1] slot_of, int bits, int64_t[::1] place):
    """Write where rows lie: a row's place within its block, in the slot that holds the block."""
    cdef Py_ssize_t i
    cdef int64_t mask = (<int64_t>1 << bits) - 1
    with nogil:
        for i in range(rows.shape[0]):
            place[i] = (slot_of[rows[i] >> bits] << bits) | (rows[i] & mask)


def group(const int64_t[::1] places, int32_t[::1] mark, int64_t[::1] distinct, int64_t[::1] begin,
          int64_t[::1] order):
    """Group equal places; returns how many are distinct, which are written in the order in which they first come.

    ``order[begin[i]:begin[i + 1]]`` are the positions of ``distinct[i]``, ascending. ``mark`` holds -1 for each place,
    and does so again after.
    """
    cdef Py_ssize_t i, n = places.shape[0], found = 0
    cdef int64_t last
    cdef int32_t k
    with nogil:
        for i in range(n):
            if i + AHEAD < n:
                prefetch(&mark[places[i + AHEAD]])
            k = mark[places[i]]
            if k < 0:
                k = <int32_t>found
                mark[places[i]] = k
                distinct[found] = places[i]
                begin[found + 1] = 0
                found += 1
            begin[k + 1] += 1
        begin[0] = 0
        for i in range(found):
            begin[i + 1] += begin[i]
        for i in range(n):
            k = mark[places[i]]
            order[begin[k]] = i
            begin[k] += 1
        last = 0
        for i in range(found):
            mark[distinct[i]] = -1
            last, begin[i] = begin[i], last
    return found


cdef inline bint kept(int64_t u, int64_t v, const int32_t[::1] chunk_of, const uint8_t[::1] held, int bits,
                      int32_t chunk, uint64_t key) noexcept nogil:
    """Whether the window takes the pair: its other end is held, or both are of its chunk and the lot names u."""
    cdef int32_t c = chunk_of[v >> bits]
    if c != chunk:
        return held[c]
    return u != v and (mix64(key ^ mix64(min(u, v)) ^ max(u, v)) & 1) == (u < v)


def arc_pairs(const index[::1] indptr, const index[::1] indices, Py_ssize_t start, Py_ssize_t stop,
              const int64_t[::1] first, const int64_t[::1] last, const int32_t[::1] chunk_of, const uint8_t[::1] held,
              int bits, int32_t chunk, uint64_t key, int64_t[::1] u, int64_t[::1] v):
    """Write the pairs of the arcs of the nodes first[k]..last[k], for k in start..stop; returns their number.

    The nodes are those of ``chunk`` (-1: it does not meet itself). A pair of two chunks is taken where the other one
    is held; of the two arcs of a pair within the chunk, one.
    """
    cdef Py_ssize_t k, count = 0
    cdef int64_t node, a
    with nogil:
        for k in range(start, stop):
            for node in range(first[k], last[k]):
                for a in range(indptr[node], indptr[node + 1]):
                    u[count] = node
                    v[count] = indices[a]
                    count += kept(node, indices[a], chunk_of, held, bits, chunk, key)
    return count


def walk_pairs(const int64_t[:, ::1] walks, const int32_t[::1] chunk_of, const uint8_t[::1] held, int bits,
               int32_t chunk, uint64_t key, int64_t[::1] u, int64_t[::1] v):
    """As :func:`arc_pairs`, for the pairs of a walk's start with the nodes that it comes to."""
    cdef Py_ssize_t i, t, count = 0
    with nogil:
        for i in range(walks.shape[0]):
            for t in range(1, walks.shape[1]):
                u[count] = walks[i, 0]
                v[count] = walks[i, t]
                count += walks[i, 0] != walks[i, t] and kept(walks[i, 0], walks[i, t], chunk_of, held, bits, chunk, key)
    return count


def draw(const double[::1] cumulative, const double[::1] lots, int64_t[::1] out):
    """Write the position that each lot of 0..1 draws, position i with odds cumulative[i] - cumulative[i - 1]."""
    cdef Py_ssize_t i
    cdef int64_t low, half, n = cumulative.shape[0]
    cdef double x
    with nogil:
        for i in range(lots.shape[0]):
            x = lots[i] * cumulative[n - 1]
            low = 0
            half = n
            while half > 1:
                # No branch to foresee wrongly: the bounds move by selection.
                low += (half >> 1) if cumulative[low + (half >> 1) - 1] <= x else 0
                half -= half >> 1
            out[i] = low


def balance(const index[::1] indptr, const index[::1] indices, Py_ssize_t start, Py_ssize_t stop):
    """A sum over the arcs of the nodes start..stop that is 0 over all of them if each has its reverse.

    If not, it is 0 with odds of 2**-64.
    """
    cdef uint64_t total = 0
    cdef int64_t node, a
    with nogil:
        for node in range(start, stop):
            for a in range(indptr[node], indptr[node + 1]):
                total += mix64(mix64(node) ^ <uint64_t>indices[a]) - mix64(mix64(indices[a]) ^ <uint64_t>node)
    return total
