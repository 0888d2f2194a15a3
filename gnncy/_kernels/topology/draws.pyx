"""Sampling from lists of neighbours that are on disk, one hop of one minibatch.

What is drawn depends on where the lists begin and how long they are, so places are drawn before anything is read.
"""
from cython cimport floating
from libc.stdint cimport int32_t, int64_t, uint64_t

from gnncy._kernels._floyd cimport choose_some, index
from gnncy._kernels._hash cimport mix64
from gnncy._kernels._prefetch cimport prefetch

ctypedef fused end:
    int32_t
    int64_t

cdef enum:
    AHEAD = 16  # ids that are looked up ahead of need


def choose(const int64_t[::1] nodes, const index[::1] first, const index[::1] degree, const index[::1] indptr,
           uint64_t key, uint64_t[::1] taken, index[::1] edges):
    """Write the chosen places of each node's arcs: all in order, or a uniform subset. taken has a zero bit per arc."""
    cdef Py_ssize_t i, t, k
    with nogil:
        for i in range(nodes.shape[0]):
            k = indptr[i + 1] - indptr[i]
            if k == degree[i]:
                for t in range(k):
                    edges[indptr[i] + t] = <index>(first[i] + t)
            else:
                choose_some(first[i], degree[i], k, mix64(key ^ mix64(<uint64_t>nodes[i])), &taken[0],
                            &edges[indptr[i]])


def count(const index[::1] edges, int64_t size, int64_t offset, int shift, int64_t[::1] counts):
    """Add up how many edges have their element, of ``size`` bytes from ``offset`` on, in each ``2**shift`` bytes of a file."""
    cdef Py_ssize_t p
    with nogil:
        for p in range(edges.shape[0]):
            counts[(edges[p] * size + offset) >> shift] += 1


def arrange(const index[::1] edges, int64_t size, int64_t offset, int shift, int64_t[::1] begin, int32_t[::1] places):
    """Write the places of the edges, those of each piece of the file together; ``begin`` is moved to where each ends."""
    cdef Py_ssize_t p, piece
    with nogil:
        for p in range(edges.shape[0]):
            piece = (edges[p] * size + offset) >> shift
            places[begin[piece]] = <int32_t>p
            begin[piece] += 1


def replace(const end[::1] piece, int64_t first, const int32_t[::1] places, index[::1] edges):
    """Put where they lead in place of the edges at some places; ``piece`` holds the ends from edge ``first`` on."""
    cdef Py_ssize_t k, n = places.shape[0]
    with nogil:
        for k in range(n):
            if k + AHEAD < n:
                prefetch(&edges[places[k + AHEAD]])
            edges[places[k]] = <index>piece[edges[places[k]] - first]


def pick(const floating[::1] piece, int64_t first, const int32_t[::1] places, const index[::1] edges,
         floating[::1] out):
    """Write the weights of the edges at some places; ``piece`` holds those from edge ``first`` on."""
    cdef Py_ssize_t k
    with nogil:
        for k in range(places.shape[0]):
            out[places[k]] = piece[edges[places[k]] - first]


cdef inline Py_ssize_t slot(int64_t node, Py_ssize_t mask) noexcept nogil:
    return <Py_ssize_t>(mix64(<uint64_t>node) & <uint64_t>mask)


cdef inline Py_ssize_t find(const index[:, ::1] table, index node, Py_ssize_t mask) noexcept nogil:
    """Where a node is in an open table of 2**k pairs (node or -1, position), or the free place where it would go."""
    cdef Py_ssize_t i = slot(node, mask)
    while table[i, 0] != node and table[i, 0] != -1:
        i = (i + 1) & mask
    return i


def enter(const int64_t[::1] nodes, index[:, ::1] table):
    """Note each node's position in an empty table. Returns the first repeated node's position, or -1."""
    cdef Py_ssize_t i, p, repeated = -1, mask = table.shape[0] - 1
    with nogil:
        for i in range(nodes.shape[0]):
            p = find(table, <index>nodes[i], mask)
            if table[p, 0] != -1:
                repeated = i
                break
            table[p, 0] = <index>nodes[i]
            table[p, 1] = <index>i
    return repeated


def relabel(const index[::1] ends, int64_t n, Py_ssize_t known, index[:, ::1] table, int64_t[::1] nodes,
            index[::1] out):
    """Write the position among nodes of each edge's end, appending new nodes; returns how many there are then.

    -1 comes back if an end is not in ``0 .. n - 1``.
    """
    cdef Py_ssize_t i, p, m = ends.shape[0], mask = table.shape[0] - 1
    cdef index v
    with nogil:
        for p in range(m):
            if p + AHEAD < m:
                prefetch(&table[slot(ends[p + AHEAD], mask), 0])
            v = ends[p]
            if v < 0 or v >= n:
                known = -1
                break
            i = find(table, v, mask)
            if table[i, 0] == -1:
                table[i, 0] = v
                table[i, 1] = <index>known
                nodes[known] = v
                known += 1
            out[p] = table[i, 1]
    return known


def misplaced(const int64_t[::1] indptr, const index[::1] indices, int64_t n, unsigned char[::1] bad):
    """Mark rows whose columns do not ascend or lie outside ``0 .. n - 1``; ``indptr`` begins at 0."""
    cdef Py_ssize_t i, p
    cdef int64_t before
    with nogil:
        for i in range(indptr.shape[0] - 1):
            before = -1
            for p in range(indptr[i], indptr[i + 1]):
                if indices[p] <= before:
                    bad[i] = 1
                before = indices[p]
            if before >= n:
                bad[i] = 1
