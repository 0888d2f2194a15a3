"""Places of a table's rows in memory, and the pairs of nodes that a window of its blocks trains on.

A block is ``2 ** bits`` rows. Arguments are checked by gnncy.storage.tables and gnncy.estimators.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from gnncy._kernels._hash cimport mix64
from gnncy._kernels._places cimport group_equal, place, position, shuffle_pairs

cdef enum:
    OWN = 2  # a block of the chunk whose pairs are looked for

ctypedef fused index:
    int32_t
    int64_t

ctypedef fused end:
    int32_t
    int64_t


def locate(const int64_t[::1] rows, const int64_t[::1] slot_of, int bits, int64_t[::1] places):
    """Write where rows lie: a row's place within its block, in the slot that holds the block."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(rows.shape[0]):
            places[i] = place(rows[i], slot_of, bits)


def group(const int64_t[::1] places, int32_t[::1] mark, int64_t[::1] distinct, int64_t[::1] begin,
          int64_t[::1] order):
    """Group equal places; returns how many are distinct, which are written in the order in which they first come.

    ``order[begin[i]:begin[i + 1]]`` are the positions of ``distinct[i]``, ascending. ``mark`` holds -1 for each place,
    and does so again after.
    """
    cdef Py_ssize_t found
    if places.shape[0] == 0:
        return 0
    with nogil:
        found = group_equal(&places[0], places.shape[0], mark, &distinct[0], &begin[0], &order[0])
    return found


cdef inline bint kept(int64_t u, int64_t v, const uint8_t[::1] taken, int bits, uint64_t key) noexcept nogil:
    """Whether the window takes the pair: its other end's block is, or is of u's own chunk and the lot names u."""
    cdef uint8_t how = taken[v >> bits]
    if how != OWN:
        return how
    return u != v and (mix64(key ^ mix64(min(u, v)) ^ max(u, v)) & 1) == (u < v)


def arc_pairs(const index[::1] indptr, const end[::1] ends, const int64_t[::1] first, const int64_t[::1] last,
              const int64_t[::1] begin, const uint8_t[::1] taken, int bits, uint64_t key, int64_t[::1] u,
              int64_t[::1] v):
    """Write the pairs of the arcs of the nodes first[k]..last[k], for all k; returns their number.

    The ends of their arcs begin at ``ends[begin[k]]``. ``taken`` tells of each block whether pairs with its nodes are
    taken (1) or not (0), or it is of the same chunk as these nodes (2): of a pair's two arcs, one is taken then.
    """
    cdef Py_ssize_t k, count = 0
    cdef int64_t node, a, shift
    with nogil:
        for k in range(first.shape[0]):
            shift = begin[k] - <int64_t>indptr[first[k]]
            for node in range(first[k], last[k]):
                for a in range(indptr[node] + shift, indptr[node + 1] + shift):
                    u[count] = node
                    v[count] = ends[a]
                    count += kept(node, ends[a], taken, bits, key)
    return count


def walk_pairs(const int64_t[:, ::1] walks, const uint8_t[::1] taken, int bits, uint64_t key, int64_t[::1] u,
               int64_t[::1] v):
    """As :func:`arc_pairs`, for the pairs of a walk's start with the nodes that it comes to."""
    cdef Py_ssize_t i, t, count = 0
    with nogil:
        for i in range(walks.shape[0]):
            for t in range(1, walks.shape[1]):
                u[count] = walks[i, 0]
                v[count] = walks[i, t]
                count += walks[i, 0] != walks[i, t] and kept(walks[i, 0], walks[i, t], taken, bits, key)
    return count


def deal(const int64_t[::1] u, const int64_t[::1] v, const uint8_t[::1] lane_of, int bits, Py_ssize_t lanes,
         int64_t[::1] begin, int64_t[::1] a, int64_t[::1] b):
    """Write the pairs by the lanes of both ends: those of lanes i and j are a, b[begin[k]:begin[k + 1]], k = i lanes + j.

    ``begin`` has a place more than there are pairs of lanes.
    """
    cdef Py_ssize_t e, k, first, n = u.shape[0], cells = lanes * lanes
    with nogil:
        begin[:] = 0
        for e in range(n):
            begin[lane_of[u[e] >> bits] * lanes + lane_of[v[e] >> bits]] += 1
        first = 0
        for k in range(cells):
            begin[k], first = first, first + begin[k]
        for e in range(n):
            k = lane_of[u[e] >> bits] * lanes + lane_of[v[e] >> bits]
            a[begin[k]] = u[e]
            b[begin[k]] = v[e]
            begin[k] += 1
        first = 0
        for k in range(cells + 1):
            begin[k], first = first, begin[k]
        begin[cells] = n


def shuffle(int64_t[::1] u, int64_t[::1] v, uint64_t key):
    """Put pairs in the random order that the key names."""
    if u.shape[0]:
        with nogil:
            shuffle_pairs(&u[0], &v[0], u.shape[0], key)


def guide(const double[::1] cumulative, int32_t[::1] out):
    """Write of position k what the lot k / n draws, for :func:`draw`."""
    cdef Py_ssize_t k, n = cumulative.shape[0]
    cdef int32_t i = 0
    with nogil:
        for k in range(n):
            while i < n - 1 and cumulative[i] <= k * cumulative[n - 1] / n:
                i += 1
            out[k] = i


def draw(const double[::1] cumulative, const int32_t[::1] guide, const double[::1] lots, int64_t[::1] out):
    """Write the position that each lot of 0..1 draws, position i with odds cumulative[i] - cumulative[i - 1]."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(lots.shape[0]):
            out[i] = position(lots[i], &cumulative[0], &guide[0], cumulative.shape[0])


def balance(const index[::1] indptr, const index[::1] indices, Py_ssize_t start, Py_ssize_t stop, int64_t first=0):
    """A sum over the arcs of the rows start..stop, nodes from ``first`` on, that is 0 over all if each has its reverse.

    If not, it is 0 with odds of 2**-64.
    """
    cdef uint64_t total = 0
    cdef Py_ssize_t row
    cdef int64_t node, a
    with nogil:
        for row in range(start, stop):
            node = first + row
            for a in range(indptr[row], indptr[row + 1]):
                total += mix64(mix64(node) ^ <uint64_t>indices[a]) - mix64(mix64(indices[a]) ^ <uint64_t>node)
    return total
