"""Random walks, many at once. A step depends on the key, the walk's start and number, and the number of the step alone."""
from libc.stdint cimport int32_t, int64_t, uint64_t

from gnncy._kernels._hash cimport below, mix64
from gnncy._kernels._prefetch cimport prefetch

ctypedef fused index:
    int32_t
    int64_t

cdef enum:
    GROUP = 32  # walks that take a step together, so that their cache misses overlap


def walk(const index[::1] indptr, const index[::1] indices, const int64_t[::1] starts, Py_ssize_t n_walks,
         uint64_t key, Py_ssize_t start, Py_ssize_t stop, int64_t[:, ::1] walks):
    """Write the walks numbered start..stop, n_walks from each of the starts: the start, then a node a step.

    A walk stays where no arc leads on.
    """
    cdef Py_ssize_t first = start, last, i, t, length = walks.shape[1] - 1
    cdef int64_t node, degree, place
    cdef uint64_t streams[GROUP]
    with nogil:
        while first < stop:
            last = min(first + GROUP, stop)
            for i in range(first, last):
                node = starts[i // n_walks]
                streams[i - first] = mix64(mix64(key ^ mix64(node)) ^ mix64(i % n_walks))
                walks[i, 0] = node
                prefetch(&indptr[node])
            for t in range(length):
                for i in range(first, last):
                    # Negative marks a node without arcs; places are drawn first and read later.
                    node = walks[i, t]
                    degree = indptr[node + 1] - indptr[node]
                    place = -1
                    if degree > 0:
                        place = indptr[node] + <int64_t>below(mix64(streams[i - first] + t), degree)
                        prefetch(&indices[place])
                    walks[i, t + 1] = place
                for i in range(first, last):
                    place = walks[i, t + 1]
                    node = walks[i, t] if place < 0 else indices[place]
                    walks[i, t + 1] = node
                    prefetch(&indptr[node])
            first = last
