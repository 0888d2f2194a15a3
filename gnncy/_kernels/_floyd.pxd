"""Drawing some of a node's neighbours: which of them depends on the stream of random numbers and their number alone."""
from libc.stdint cimport int32_t, int64_t, uint64_t

from gnncy._kernels._hash cimport below, mix64

ctypedef fused index:
    int32_t
    int64_t


cdef inline void choose_some(int64_t first, int64_t degree, Py_ssize_t k, uint64_t stream, uint64_t* taken,
                             index* out) noexcept nogil:
    """Write a uniform subset of k of the places first .. first + degree - 1 (Floyd). taken has a zero bit per place."""
    cdef Py_ssize_t t
    cdef int64_t last, c, hit
    for t in range(k):
        last = degree - k + t
        c = <int64_t>below(mix64(stream + <uint64_t>t), <uint64_t>(last + 1))
        hit = (taken[c >> 6] >> (c & 63)) & 1
        c += hit * (last - c)
        taken[c >> 6] |= <uint64_t>1 << (c & 63)
        out[t] = <index>(first + c)
    for t in range(k):
        taken[(out[t] - first) >> 6] = 0
