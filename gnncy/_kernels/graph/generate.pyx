"""Edges of random graphs: edge ``first + i`` depends on the seed and its number alone."""
from libc.stdint cimport int64_t, uint64_t

from gnncy._kernels._hash cimport below, mix64


def sbm(uint64_t seed, uint64_t first, uint64_t n_nodes, uint64_t n_classes, uint64_t within,
        int64_t[::1] source, int64_t[::1] target):
    """Edges between nodes of the same class (``node % n_classes``) with probability ``within / 2**32``."""
    cdef Py_ssize_t i, n = source.shape[0]
    cdef uint64_t key, u, c
    with nogil:
        for i in range(n):
            key = mix64(seed ^ mix64(first + <uint64_t>i))
            u = below(mix64(key), n_nodes)
            c = u % n_classes
            if n_classes > 1 and mix64(key + 1) >> 32 >= within:
                c = (c + 1 + below(mix64(key + 2), n_classes - 1)) % n_classes
            # Class c holds the nodes c, c + n_classes, c + 2 n_classes, ...
            source[i] = <int64_t>u
            target[i] = <int64_t>(c + n_classes * below(mix64(key + 3), (n_nodes - c + n_classes - 1) // n_classes))


def rmat(uint64_t seed, uint64_t first, int scale, uint64_t a, uint64_t ab, uint64_t abc,
         int64_t[::1] source, int64_t[::1] target):
    """Edges drawn by ``scale`` choices of a quadrant; cumulated probabilities in units of ``2**-32``."""
    cdef Py_ssize_t i, n = source.shape[0]
    cdef int level
    cdef uint64_t key, draw, u, v
    with nogil:
        for i in range(n):
            key = mix64(seed ^ mix64(first + <uint64_t>i))
            u = 0
            v = 0
            for level in range(scale):
                draw = mix64(key + <uint64_t>level) >> 32
                u = 2 * u + (draw >= ab)
                v = 2 * v + ((draw >= a and draw < ab) or draw >= abc)
            source[i] = <int64_t>u
            target[i] = <int64_t>v
