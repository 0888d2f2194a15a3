"""Sampling from lists of neighbours that are on disk: many nodes of many minibatches, one hop of each.

What is drawn depends on where the lists begin and how long they are, not on where arcs lead, so it is known before
anything is read. The list of an entry is ``starts[rows[entry]] .. starts[rows[entry] + 1] - 1``, and what is drawn from
it has the places ``indptr[entry] .. indptr[entry + 1] - 1``.
"""
from cython cimport floating
from libc.stdint cimport int32_t, int64_t, uint16_t, uint64_t

from gnncy._kernels._floyd cimport choose_some, index
from gnncy._kernels._hash cimport below, mix64
from gnncy._kernels._prefetch cimport prefetch

ctypedef fused end:
    int32_t
    int64_t

ctypedef fused value:
    int32_t
    int64_t
    float
    double

cdef enum:
    AHEAD = 16  # entries that are looked up ahead of need

cpdef enum:
    GROUP = 8  # entries that are drawn for before elements are looked at
    SKIP = 65535  # the longest step from one entry to the next


def spans(const index[::1] starts, const index[::1] rows, Py_ssize_t fanout, index[::1] indptr):
    """Write the places of each entry's arcs from ``indptr[0]`` on: at most fanout, all if it is negative."""
    cdef Py_ssize_t i, n = rows.shape[0]
    cdef index k
    with nogil:
        for i in range(n):
            if i + AHEAD < n:
                prefetch(&starts[rows[i + AHEAD]])
            k = starts[rows[i] + 1] - starts[rows[i]]
            if fanout >= 0 and k > fanout:
                k = <index>fanout
            indptr[i + 1] = indptr[i] + k


def total(const index[::1] starts, const index[::1] rows, Py_ssize_t fanout):
    """How many arcs that are."""
    cdef Py_ssize_t i, n = rows.shape[0]
    cdef int64_t k, arcs = 0
    with nogil:
        for i in range(n):
            if i + AHEAD < n:
                prefetch(&starts[rows[i + AHEAD]])
            k = starts[rows[i] + 1] - starts[rows[i]]
            arcs += fanout if fanout >= 0 and k > fanout else k
    return arcs


def choose(const index[::1] starts, const index[::1] rows, const index[::1] nodes, const index[::1] indptr, uint64_t key,
           uint64_t[::1] taken, index[::1] edges):
    """Write the numbers of the chosen arcs: all in order, or a uniform subset. taken has a zero bit per arc of a list."""
    cdef Py_ssize_t i, t, k, n = rows.shape[0]
    cdef int64_t first, degree
    with nogil:
        for i in range(n):
            if i + AHEAD < n:
                prefetch(&starts[rows[i + AHEAD]])
            first = starts[rows[i]]
            degree = starts[rows[i] + 1] - first
            k = indptr[i + 1] - indptr[i]
            if k == degree:
                for t in range(k):
                    edges[indptr[i] + t] = <index>(first + t)
            else:
                choose_some(first, degree, k, mix64(key ^ mix64(<uint64_t>nodes[i])), &taken[0], &edges[indptr[i]])


def count_lists(const index[::1] starts, const index[::1] rows, const index[::1] indptr, int64_t size, int64_t offset,
                int shift, int32_t[::1] last, int64_t[::1] steps, int64_t[::1] most, double[::1] arcs):
    """Add up what is drawn from each ``2**shift`` bytes of a file, whose elements of ``size`` bytes begin at ``offset``.

    These are, of each piece, the steps that ``arrange_lists`` writes; the arcs of the entries whose lists lie in it; and
    about how many of them lie in it too. ``last`` holds 0 for each piece.
    """
    cdef Py_ssize_t i, k, piece, n = rows.shape[0]
    cdef int64_t low, high
    with nogil:
        for i in range(n):
            if i + AHEAD < n:
                prefetch(&starts[rows[i + AHEAD]])
            k = indptr[i + 1] - indptr[i]
            if k == 0:
                continue
            low = starts[rows[i]] * size + offset
            high = starts[rows[i] + 1] * size + offset
            for piece in range(low >> shift, ((high - 1) >> shift) + 1):
                steps[piece] += 1 + (i - last[piece]) // SKIP
                last[piece] = <int32_t>i
                most[piece] += k
                arcs[piece] += <double>k * <double>(min(high, <int64_t>(piece + 1) << shift)
                                                    - max(low, <int64_t>piece << shift)) / <double>(high - low)


def arrange_lists(const index[::1] starts, const index[::1] rows, const index[::1] indptr, int64_t size, int64_t offset,
                  int shift, int32_t[::1] last, int64_t[::1] begin, uint16_t[::1] order):
    """Write the entries of each piece of the file, ascending, as the steps from one to the next.

    The first one's is from 0; ``SKIP`` is a step to no entry. ``begin`` is moved to where each piece ends.
    """
    cdef Py_ssize_t i, step, piece, n = rows.shape[0]
    with nogil:
        for i in range(n):
            if i + AHEAD < n:
                prefetch(&starts[rows[i + AHEAD]])
            if indptr[i + 1] == indptr[i]:
                continue
            for piece in range((starts[rows[i]] * size + offset) >> shift,
                               (((starts[rows[i] + 1] * size + offset) - 1) >> shift) + 1):
                step = i - last[piece]
                last[piece] = <int32_t>i
                while step >= SKIP:
                    order[begin[piece]] = SKIP
                    begin[piece] += 1
                    step -= SKIP
                order[begin[piece]] = <uint16_t>step
                begin[piece] += 1


cdef inline bint drawn(const index[::1] starts, const index[::1] rows, const index[::1] nodes, const index[::1] indptr,
                       Py_ssize_t entry, uint64_t key, uint64_t* taken, index* chosen) noexcept nogil:
    """Draw from an entry's list; False if all of it is taken."""
    cdef int64_t first = starts[rows[entry]], degree = starts[rows[entry] + 1] - first
    cdef Py_ssize_t k = indptr[entry + 1] - indptr[entry]
    if k == degree:
        return False
    choose_some(first, degree, k, mix64(key ^ mix64(<uint64_t>nodes[entry])), taken, chosen)
    return True


def take(const value[::1] piece, int64_t first, const int32_t[::1] order, const int64_t[::1] stops,
         const uint64_t[::1] keys, const index[::1] starts, const index[::1] rows, const index[::1] nodes,
         const index[::1] indptr, uint64_t[::1] taken, index[:, ::1] chosen, value[::1] out):
    """Write to their places those of the entries' draws that lie in ``piece``, which begins at arc ``first``.

    Entries ascend; those before ``stops[d]`` are of minibatch d, which draws by ``keys[d]``. ``chosen`` has a row for
    each of the entries that are drawn for before any element is looked at.
    """
    cdef Py_ssize_t e, i, t, group = 0, d = 0, n = order.shape[0], m = piece.shape[0]
    cdef int64_t begin, c
    with nogil:
        while group < n:
            for e in range(group, min(group + GROUP, n)):
                if e + 2 * AHEAD < n:
                    prefetch(&rows[order[e + 2 * AHEAD]])
                    prefetch(&indptr[order[e + 2 * AHEAD]])
                if e + AHEAD < n:
                    prefetch(&starts[rows[order[e + AHEAD]]])
                    prefetch(&out[indptr[order[e + AHEAD]]])
                i = order[e]
                while i >= stops[d]:
                    d += 1
                if drawn(starts, rows, nodes, indptr, i, keys[d], &taken[0], &chosen[e - group, 0]):
                    for t in range(indptr[i + 1] - indptr[i]):
                        c = chosen[e - group, t] - first
                        if 0 <= c < m:
                            prefetch(&piece[c])
                else:
                    chosen[e - group, 0] = -1
            for e in range(group, min(group + GROUP, n)):
                i = order[e]
                if chosen[e - group, 0] >= 0:
                    for t in range(indptr[i + 1] - indptr[i]):
                        c = chosen[e - group, t] - first
                        if 0 <= c < m:
                            out[indptr[i] + t] = piece[c]
                else:
                    begin = starts[rows[i]]
                    for c in range(max(begin, first), min(<int64_t>starts[rows[i] + 1], first + m)):
                        out[indptr[i] + c - begin] = piece[c - first]
            group += GROUP


def locate(int64_t first, int64_t stop, const int32_t[::1] order, const int64_t[::1] stops, const uint64_t[::1] keys,
           const index[::1] starts, const index[::1] rows, const index[::1] nodes, const index[::1] indptr,
           uint64_t[::1] taken, index[:, ::1] chosen, int64_t[::1] arcs, int64_t[::1] places):
    """As ``take``, but write the numbers of the arcs in ``first .. stop - 1`` and their places; returns how many."""
    cdef Py_ssize_t e, i, t, d = 0, found = 0
    cdef int64_t begin, c
    with nogil:
        for e in range(order.shape[0]):
            i = order[e]
            while i >= stops[d]:
                d += 1
            if drawn(starts, rows, nodes, indptr, i, keys[d], &taken[0], &chosen[0, 0]):
                for t in range(indptr[i + 1] - indptr[i]):
                    if first <= chosen[0, t] < stop:
                        arcs[found] = chosen[0, t]
                        places[found] = indptr[i] + t
                        found += 1
            else:
                begin = starts[rows[i]]
                for c in range(max(begin, first), min(<int64_t>starts[rows[i] + 1], stop)):
                    arcs[found] = c
                    places[found] = indptr[i] + c - begin
                    found += 1
    return found


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


cdef inline Py_ssize_t slot(int64_t node, Py_ssize_t size) noexcept nogil:
    return <Py_ssize_t>below(mix64(<uint64_t>node), <uint64_t>size)


cdef inline Py_ssize_t find(const index[::1] table, const index[::1] nodes, int64_t node) noexcept nogil:
    """Where the position of a node is in an open table (of positions, or -1), or the free place where it would go."""
    cdef Py_ssize_t i = slot(node, table.shape[0])
    while table[i] != -1 and nodes[table[i]] != node:
        i += 1
        if i == table.shape[0]:
            i = 0
    return i


def enter(const index[::1] nodes, index[::1] table):
    """Note each node's position in an empty table. Returns the first repeated node's position, or -1."""
    cdef Py_ssize_t i, p, repeated = -1
    with nogil:
        for i in range(nodes.shape[0]):
            p = find(table, nodes, nodes[i])
            if table[p] != -1:
                repeated = i
                break
            table[p] = <index>i
    return repeated


def relabel(const end[::1] ends, int64_t n, Py_ssize_t known, index[::1] table, index[::1] nodes, index[::1] out):
    """Write the position among nodes of each edge's end, appending new nodes; returns how many there are then.

    -1 comes back if an end is not in ``0 .. n - 1``.
    """
    cdef Py_ssize_t i, p, m = ends.shape[0]
    cdef int64_t v
    with nogil:
        for p in range(m):
            if p + AHEAD < m:
                prefetch(&table[slot(ends[p + AHEAD], table.shape[0])])
            v = ends[p]
            if v < 0 or v >= n:
                known = -1
                break
            i = find(table, nodes, v)
            if table[i] == -1:
                table[i] = <index>known
                nodes[known] = <index>v
                known += 1
            out[p] = table[i]
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
