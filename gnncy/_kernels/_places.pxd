"""Where the rows of a table lie in memory, which of them are the same, and which are drawn."""
from libc.stdint cimport int32_t, int64_t, uint64_t

from gnncy._kernels._hash cimport below, mix64
from gnncy._kernels._prefetch cimport prefetch

cdef enum:
    AHEAD = 16  # marks asked for before their turn


cdef inline int64_t place(int64_t row, const int64_t[::1] slot_of, int bits) noexcept nogil:
    """A row's place within its block of 2 ** bits, in the slot that holds the block."""
    return (slot_of[row >> bits] << bits) | (row & ((<int64_t>1 << bits) - 1))


cdef inline Py_ssize_t group_equal(const int64_t* places, Py_ssize_t n, int32_t[::1] mark, int64_t* distinct,
                                   int64_t* begin, int64_t* order) noexcept nogil:
    """Group equal places; returns how many are distinct, which are written in the order in which they first come.

    order[begin[i]:begin[i + 1]] are the positions of distinct[i], ascending. ``mark`` holds -1 for each place, and does
    so again after.
    """
    cdef Py_ssize_t i, found = 0
    cdef int64_t last
    cdef int32_t k
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


cdef inline int64_t position(double lot, const double* cumulative, const int32_t* guide, Py_ssize_t n) noexcept nogil:
    """The position of ``n`` that a lot of 0..1 draws, position i with odds cumulative[i] - cumulative[i - 1].

    ``guide[k]`` is what the lot k / n draws; the search begins there.
    """
    cdef int64_t i = guide[<Py_ssize_t>(lot * n)]
    cdef double x = lot * cumulative[n - 1]
    while i < n - 1 and cumulative[i] <= x:
        i += 1
    return i


cdef inline void shuffle_pairs(int64_t* u, int64_t* v, Py_ssize_t n, uint64_t key) noexcept nogil:
    """Put pairs in the random order that the key names."""
    cdef Py_ssize_t i, j
    for i in range(n - 1, 0, -1):
        j = below(mix64(key + <uint64_t>i), i + 1)
        u[i], u[j] = u[j], u[i]
        v[i], v[j] = v[j], v[i]
