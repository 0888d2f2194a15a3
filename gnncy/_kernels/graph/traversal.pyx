"""Loops over a CSR pattern: its form, its transpose, orders of its nodes, its permutation; the sums of its rows."""
from cython cimport floating
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from gnncy._kernels._prefetch cimport prefetch, prefetch_span

ctypedef fused index:
    int32_t
    int64_t

cdef enum:
    SHORT = 80  # rows up to here are sorted by counting smaller entries, longer ones by radix
    FEW = 24  # children up to here are sorted by insertion, more by radix
    WALKS = 8


def form(const index[::1] indptr, const index[::1] indices, Py_ssize_t n_columns):
    """0: sorted rows without repeats; 1: not so; -1: indptr falls or leaves indices; -2: a column out of range."""
    cdef Py_ssize_t i, p, low, high, n = indptr.shape[0] - 1, used = indptr[n]
    cdef index v, last = <index>(n_columns - 1), signs = 0, falls = 0
    cdef bint broken
    with nogil:
        broken = indptr[0] != 0 or used > indices.shape[0]
        for i in range(n):
            broken |= indptr[i] > indptr[i + 1]
        if not broken and used > 0:
            signs = indices[0] | (last - indices[0])
            for low in range(0, n, 1024):  # rows whose columns stay in the cache
                high = min(low + 1024, n)
                # Where columns do not rise, a row must begin: counted over some rows, less those at their beginnings.
                for p in range(max(1, indptr[low]), indptr[high]):
                    v = indices[p]
                    signs |= v | (last - v)  # negative if one of the two is
                    falls += v <= indices[p - 1]
                for i in range(low, high):
                    p = indptr[i]
                    falls -= (0 < p) & (p < indptr[i + 1]) & (indices[p - (p == used)] <= indices[p - (p > 0)])
    if broken:
        return -1
    return -2 if signs < 0 else int(falls > 0)


def row_sums(const index[::1] indptr, const floating[::1] data, Py_ssize_t start, Py_ssize_t stop, double[::1] out):
    """Write the sums of rows start..stop, added one by one from the left."""
    cdef Py_ssize_t i, p
    cdef double total
    with nogil:
        for i in range(start, stop):
            total = 0
            for p in range(indptr[i], indptr[i + 1]):
                total += data[p]
            out[i] = total


def transpose(const index[::1] indptr, const index[::1] indices, index[::1] out_indptr, index[::1] out_indices,
              index[::1] out_edges):
    """Write the transposed pattern, rows sorted, and the place of each entry in the original. out_indptr comes zeroed."""
    cdef Py_ssize_t i, p, n = indptr.shape[0] - 1, m = out_indptr.shape[0] - 1
    cdef index q
    with nogil:
        for p in range(indptr[n]):
            out_indptr[indices[p] + 1] += 1
        for i in range(m):
            out_indptr[i + 1] += out_indptr[i]
        for i in range(n):
            for p in range(indptr[i], indptr[i + 1]):
                q = out_indptr[indices[p]]
                out_indptr[indices[p]] = q + 1
                out_indices[q] = i
                out_edges[q] = p
        # Each start has moved on to the next row's.
        for i in range(m, 0, -1):
            out_indptr[i] = out_indptr[i - 1]
        out_indptr[0] = 0


def by_degree(const index[::1] indptr, int64_t[::1] first, int64_t[::1] order):
    """Write the nodes by falling degree, ties by rising id. first (n + 2 places for degrees 0..n) comes zeroed."""
    cdef Py_ssize_t i, n = indptr.shape[0] - 1
    cdef int64_t d, most = 0
    with nogil:
        for i in range(n):
            most = max(most, indptr[i + 1] - indptr[i])
        for i in range(n):
            first[most - (indptr[i + 1] - indptr[i]) + 1] += 1
        for i in range(most + 1):
            first[i + 1] += first[i]
        for i in range(n):
            d = most - (indptr[i + 1] - indptr[i])
            order[first[d]] = i
            first[d] += 1


cdef inline Py_ssize_t visit(const index[::1] indptr, const index[::1] indices, index* queue, Py_ssize_t head,
                             Py_ssize_t tail, unsigned char* seen) noexcept nogil:
    """Append the neighbours of queue[head] that were not seen; returns the new end of the queue."""
    cdef Py_ssize_t p, k, stop
    cdef index u, v
    if head + 16 < tail:
        prefetch(&indptr[queue[head + 16]])
        u = queue[head + 8]
        if indptr[u] < indptr[u + 1]:
            prefetch_span(&indices[indptr[u]], min(indptr[u + 1] - indptr[u], SHORT) * sizeof(index))
    u = queue[head]
    p, stop = indptr[u], indptr[u + 1]
    while p < stop:
        # Most neighbours were seen: four at a time are passed over.
        if p + 4 <= stop and seen[indices[p]] & seen[indices[p + 1]] & seen[indices[p + 2]] & seen[indices[p + 3]]:
            p += 4
            continue
        for k in range(p, min(p + 4, stop)):
            # Written always, kept if new: no branch to guess wrong.
            v = indices[k]
            queue[tail] = v
            tail += 1 - seen[v]
            seen[v] = 1
        p += 4
    return tail


def bfs(const index[::1] indptr, const index[::1] indices, const int64_t[::1] roots, unsigned char[::1] seen,
        index[::1] order):
    """Write the nodes in breadth-first order from each root not yet seen. order has one place to spare."""
    cdef Py_ssize_t r, head = 0, tail = 0
    with nogil:
        for r in range(roots.shape[0]):
            if seen[roots[r]]:
                continue
            seen[roots[r]] = 1
            order[tail] = <index>roots[r]
            tail += 1
            while head < tail:
                tail = visit(indptr, indices, &order[0], head, tail, &seen[0])
                head += 1


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


def cuthill_mckee(const index[::1] indptr, const index[::1] indices, const index[::1] by_degree,
                  const index[::1] rank, unsigned char[::1] seen, index[::1] scratch, index[::1] out):
    """Write the Cuthill-McKee order of all components, each from a node at its rim.

    by_degree holds the nodes by rising degree, rank their places there. seen comes zeroed; out has a place to spare.
    """
    cdef Py_ssize_t n = rank.shape[0], r, i, turn, walk, head, tail, begin = 0, size, low
    cdef Py_ssize_t depth, width, deepest, narrowest, level, last
    cdef index root, best, next_root
    cdef index *queue = &out[0]
    cdef int bits = 0
    with nogil:
        while (n - 1) >> bits > 0:
            bits += 1
        for r in range(n):
            root = by_degree[r]
            if seen[root]:
                continue
            # From the node of least degree to the one of least degree in its last level, as long as there are more
            # levels than before.
            best, size, deepest, narrowest = root, 0, -1, 0
            for walk in range(WALKS):
                queue[begin] = root
                seen[root] = 1
                head, tail, level, last, depth, width = begin, begin + 1, begin + 1, begin, 0, 1
                while head < tail:
                    tail = visit(indptr, indices, queue, head, tail, &seen[0])
                    head += 1
                    if head == level and head < tail:
                        last, level = level, tail
                        depth += 1
                        width = max(width, level - last)
                for i in range(begin, tail):
                    seen[queue[i]] = 0
                if walk > 0 and (tail - begin != size or depth < deepest):
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
                if depth * depth * depth < size:
                    best = root  # a shallow graph has no rim that is worth more walks
                    break
            # Where arcs go one way the search from the rim may not come back to the first node, which then follows.
            for turn in range(2):
                root = by_degree[r] if turn else best
                if seen[root]:
                    continue
                queue[begin] = root
                seen[root] = 1
                head, tail = begin, begin + 1
                while head < tail:
                    low = tail
                    tail = visit(indptr, indices, queue, head, tail, &seen[0])
                    if tail - low > 1:
                        for i in range(low, tail):
                            queue[i] = rank[queue[i]]
                        sort(queue + low, &scratch[0], tail - low, bits)
                        for i in range(low, tail):
                            queue[i] = by_degree[queue[i]]
                    head += 1
                begin = tail


def permute(const index[::1] indptr, const index[::1] indices, const floating[::1] data, const int64_t[::1] order,
            const index[::1] inverse, Py_ssize_t start, Py_ssize_t stop, index[::1] keys, floating[::1] values,
            const index[::1] out_indptr, index[::1] out_indices, floating[::1] out_data):
    """Write rows start..stop of A[order][:, order], columns sorted. keys and values hold the longest row."""
    cdef Py_ssize_t i, j, k, p, q, length, shift, n = order.shape[0]
    cdef index key
    cdef index *key_from
    cdef index *key_to
    cdef floating *value_from
    cdef floating *value_to
    cdef index[SHORT] rank
    cdef Py_ssize_t[257] first
    with nogil:
        for i in range(start, stop):
            if i + 16 < stop:
                prefetch(&indptr[order[i + 16]])
            if i + 8 < stop and out_indptr[i + 8] < out_indptr[i + 9]:
                p = indptr[order[i + 8]]
                length = min(out_indptr[i + 9] - out_indptr[i + 8], SHORT)
                prefetch_span(&indices[p], (length + 15) * sizeof(index))
                prefetch_span(&data[p], (length + 15) * sizeof(floating))
            if i + 2 < stop:
                p = indptr[order[i + 2]]
                for k in range(min(out_indptr[i + 3] - out_indptr[i + 2], SHORT)):
                    prefetch(&inverse[indices[p + k]])
            p = indptr[order[i]]
            q = out_indptr[i]
            length = out_indptr[i + 1] - q
            for k in range(length):
                keys[k] = inverse[indices[p + k]]
            if length <= SHORT:
                for k in range(length):
                    rank[k] = 0
                for j in range(length):
                    key = keys[j]
                    for k in range(length):
                        rank[k] += key < keys[k]
                for k in range(length):
                    out_indices[q + rank[k]] = keys[k]
                    out_data[q + rank[k]] = data[p + k]
                continue
            for k in range(length):
                values[k] = data[p + k]
            # From one pair of arrays to the other and back, a byte of the key at a time.
            key_from, key_to, value_from, value_to = &keys[0], &out_indices[q], &values[0], &out_data[q]
            shift = 0
            while (n - 1) >> shift:
                for j in range(257):
                    first[j] = 0
                for k in range(length):
                    first[((key_from[k] >> shift) & 255) + 1] += 1
                for j in range(256):
                    first[j + 1] += first[j]
                for k in range(length):
                    j = (key_from[k] >> shift) & 255
                    key_to[first[j]] = key_from[k]
                    value_to[first[j]] = value_from[k]
                    first[j] += 1
                shift += 8
                key_from, key_to, value_from, value_to = key_to, key_from, value_to, value_from
            if key_from == &keys[0]:
                for k in range(length):
                    out_indices[q + k] = keys[k]
                    out_data[q + k] = values[k]
