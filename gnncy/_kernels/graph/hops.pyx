"""Nodes at a range of distances from one node, at the cost of what lies within it."""
from libc.stdint cimport int32_t, int64_t

ctypedef fused index:
    int32_t
    int64_t


def ring(const index[::1] indptr, const index[::1] indices, Py_ssize_t start, Py_ssize_t nearest, Py_ssize_t farthest,
         unsigned char[::1] seen, int64_t[::1] reached):
    """Write the nodes at distances 0..farthest, by distance; returns where distance ``nearest`` begins, and the end.

    seen comes and goes zeroed. reached has one place to spare.
    """
    cdef Py_ssize_t p, hop, head = 0, level = 1, tail = 1, begin = 0 if nearest == 0 else 1
    cdef int64_t u, v
    with nogil:
        reached[0] = start
        seen[start] = 1
        for hop in range(1, farthest + 1):
            if hop <= nearest:
                begin = tail
            while head < level:
                u = reached[head]
                head += 1
                for p in range(indptr[u], indptr[u + 1]):
                    # Written always, kept if new: no branch to guess wrong.
                    v = indices[p]
                    reached[tail] = v
                    tail += 1 - seen[v]
                    seen[v] = 1
            level = tail
        for p in range(tail):
            seen[reached[p]] = 0
    return begin, tail
