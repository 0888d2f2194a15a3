"""Cuthill-McKee: breadth-first orders whose children come by rising degree, and where to begin them."""
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from gnncy._kernels._prefetch cimport prefetch, prefetch_span

ctypedef fused index:
    int32_t
    int64_t

cdef enum:
    SHORT = 80  # arcs of a row that are asked for before they are needed
    FEW = 24  # children up to here are sorted by insertion, more by radix
    WALKS = 8
    DONE = 255  # greater than the mark of any walk


cdef inline Py_ssize_t visit(const index[::1] indptr, const index[::1] indices, index* queue, Py_ssize_t head,
                             Py_ssize_t tail, unsigned char* seen, unsigned char mark) noexcept nogil:
    """Append the neighbours of queue[head] that carry a lesser mark, and mark them; returns the end of the queue."""
    cdef Py_ssize_t p
    cdef index u, v
    if head + 16 < tail:
        prefetch(&indptr[queue[head + 16]])
        u = queue[head + 8]
        if indptr[u] < indptr[u + 1]:
            prefetch_span(&indices[indptr[u]], min(indptr[u + 1] - indptr[u], SHORT) * sizeof(index))
    u = queue[head]
    for p in range(indptr[u], indptr[u + 1]):
        # Written always, kept if new: no branch to guess wrong.
        v = indices[p]
        queue[tail] = v
        tail += seen[v] < mark
        seen[v] = max(seen[v], mark)
    return tail


cdef void sort(index* keys, index* scratch, Py_ssize_t n, int bits) noexcept nogil:
    """Sort numbers of so many bits."""
    cdef Py_ssize_t i, j, total, count
    cdef Py_ssize_t[256] first
    cdef index key
    cdef index *origin = keys
    cdef index *target = scratch
    cdef int shift = 0
    if n <= FEW:
        for i in range(1, n):
            key = keys[i]
            j = i
            while j > 0 and keys[j - 1] > key:
                keys[j] = keys[j - 1]
                j -= 1
            keys[j] = key
        return
    while shift < bits:
        for j in range(256):
            first[j] = 0
        for i in range(n):
            first[(origin[i] >> shift) & 255] += 1
        total = 0
        for j in range(256):
            count = first[j]
            first[j] = total
            total += count
        for i in range(n):
            j = (origin[i] >> shift) & 255
            target[first[j]] = origin[i]
            first[j] += 1
        origin, target = target, origin
        shift += 8
    if origin != keys:
        memcpy(keys, origin, n * sizeof(index))


def order(const index[::1] indptr, const index[::1] indices, const index[::1] by_degree, const index[::1] rank,
          unsigned char[::1] seen, index[::1] scratch, index[::1] out):
    """Write the Cuthill-McKee order of all components, each from a node at its rim.

    by_degree holds the nodes by rising degree, rank their places there. seen comes zeroed; out has a place to spare.
    """
    cdef Py_ssize_t n = rank.shape[0], r, i, turn, head, tail, begin = 0, size, low
    cdef Py_ssize_t depth, width, deepest, narrowest, level, last
    cdef index root, best, next_root
    cdef index *queue = &out[0]
    cdef unsigned char mark
    cdef int bits = 0
    with nogil:
        while (n - 1) >> bits > 0:
            bits += 1
        for r in range(n):
            root = by_degree[r]
            if seen[root] == DONE:
                continue
            # From the node of least degree to the one of least degree in its last level, as long as there are more
            # levels than before.
            best, mark, size, deepest, narrowest = root, 1, 0, -1, 0
            while mark < WALKS:
                queue[begin] = root
                seen[root] = mark
                head, tail, level, last, depth, width = begin, begin + 1, begin + 1, begin, 0, 1
                while head < tail:
                    tail = visit(indptr, indices, queue, head, tail, &seen[0], mark)
                    head += 1
                    if head == level and head < tail:
                        last, level = level, tail
                        depth += 1
                        width = max(width, level - last)
                if mark > 1 and (tail - begin != size or depth < deepest):
                    break  # only where arcs go one way
                if depth > deepest or width < narrowest:
                    best, narrowest = root, width
                size = tail - begin
                next_root = queue[last]
                for i in range(last + 1, tail):
                    if rank[queue[i]] < rank[next_root]:
                        next_root = queue[i]
                if depth <= deepest or depth < 2:
                    break
                deepest = depth
                root = next_root
                mark += 1
                if depth * depth * depth < size:
                    best = root  # a shallow graph has no rim that is worth more walks
                    break
            # Where arcs go one way the search from the rim may not come back to the first node, which then follows.
            for turn in range(2):
                root = by_degree[r] if turn else best
                if seen[root] == DONE:
                    continue
                queue[begin] = root
                seen[root] = DONE
                head, tail = begin, begin + 1
                while head < tail:
                    low = tail
                    tail = visit(indptr, indices, queue, head, tail, &seen[0], DONE)
                    if tail - low > 1:
                        for i in range(low, tail):
                            queue[i] = rank[queue[i]]
                        sort(queue + low, &scratch[0], tail - low, bits)
                        for i in range(low, tail):
                            queue[i] = by_degree[queue[i]]
                    head += 1
                begin = tail
