"""Label propagation among groups of nodes that lie together in an order."""
from libc.stdint cimport int32_t, int64_t, uint64_t

from gnncy._kernels._hash cimport mix64
from gnncy._kernels._prefetch cimport prefetch_span

ctypedef fused index:
    int32_t
    int64_t

cdef enum:
    SHORT = 80  # arcs of a row that are asked for before they are needed


def propose(const index[::1] indptr, const index[::1] indices, const index[::1] order, const index[::1] first,
            const index[::1] group, const index[::1] label, const index[::1] size, int64_t most, Py_ssize_t start,
            Py_ssize_t stop, int64_t[::1] count, index[::1] touched, index[::1] out):
    """Write the label that most arcs of each group start..stop lead to, of those that have room, or its own.

    Group g holds the nodes order[first[g]] .. order[first[g + 1] - 1]; size counts the nodes of a label. count comes
    and goes zeroed; touched holds a number for every label.
    """
    cdef Py_ssize_t g, k, p, m
    cdef index u, own, known, best
    cdef int64_t votes, length
    cdef uint64_t luck, best_luck
    with nogil:
        for g in range(start, stop):
            own = label[g]
            length = first[g + 1] - first[g]
            m = 0
            for k in range(first[g], first[g + 1]):
                if k + 4 < first[stop]:
                    u = order[k + 4]
                    prefetch_span(&indices[indptr[u]], min(indptr[u + 1] - indptr[u], SHORT) * sizeof(index))
                u = order[k]
                for p in range(indptr[u], indptr[u + 1]):
                    if group[indices[p]] == g:
                        continue
                    known = label[group[indices[p]]]
                    touched[m] = known
                    m += count[known] == 0
                    count[known] += 1
            best, votes, best_luck = own, count[own], 0
            for k in range(m):
                known = touched[k]
                if count[known] >= votes and known != own and size[known] + length <= most:
                    luck = mix64((<uint64_t>known << 32) ^ <uint64_t>g) | 1
                    if count[known] > votes or (luck > best_luck and best != own):
                        best, votes, best_luck = known, count[known], luck
                count[known] = 0
            out[g - start] = best


def settle(const index[::1] first, const index[::1] proposed, int64_t most, Py_ssize_t start, index[::1] label,
           index[::1] size):
    """Move groups from ``start`` on to the labels proposed, one after the other while there is room; how many moved."""
    cdef Py_ssize_t g, moved = 0
    cdef index length
    with nogil:
        for g in range(start, start + proposed.shape[0]):
            length = first[g + 1] - first[g]
            if proposed[g - start] != label[g] and size[proposed[g - start]] + length <= most:
                size[label[g]] -= length
                label[g] = proposed[g - start]
                size[label[g]] += length
                moved += 1
    return moved
