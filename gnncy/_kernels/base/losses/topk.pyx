"""The best k of rows that arrive block by block. Arguments are checked by gnncy.losses.mining.

A row's list lies in falling order of score; of equal scores the one that came first stays in front, and nan and the
excluded -inf never enter. Nearly every column is refused by a comparison with the list's last score, many at a time.
"""
from cython cimport floating
from libc.math cimport log, log1p
from libc.stdint cimport int64_t, uint32_t, uint64_t

from gnncy._kernels._hash cimport mix64
from gnncy._kernels._prefetch cimport prefetch_span
from .._math cimport root

cdef extern from *:
    """
    #include <stdint.h>

    /* A bijection of 32 bits (Wellons, lowbias32): products of 64 bits would not become vectors. */
    static inline uint32_t gnncy_mix32(uint32_t x) {
        x ^= x >> 16;
        x *= 0x7feb352dU;
        x ^= x >> 15;
        x *= 0x846ca68bU;
        return x ^ (x >> 16);
    }

    /* log2(bits / 2^32) or less, by at most 0.09: the logarithm is taken for a line between powers of two. */
    static inline float gnncy_log2_below(uint32_t bits) {
        union { int32_t bits; float value; } x;
        x.value = (float)(int32_t)(bits >> 8);
        return (float)x.bits * 1.1920929e-7f - 151.0f;
    }
    """
    uint32_t mix32 "gnncy_mix32"(uint32_t x) noexcept nogil
    float log2_below "gnncy_log2_below"(uint32_t bits) noexcept nogil

cdef enum:
    CHUNK = 32  # columns refused at once
    AHEAD = 8  # rows asked for before their turn


cdef inline void insert(double value, int64_t name, floating cosine, Py_ssize_t k, double *scores, int64_t *names,
                        floating *cosines) noexcept nogil:
    """Put an entry that beats the last one in its place."""
    cdef Py_ssize_t p = k - 1
    while p > 0 and scores[p - 1] < value:
        scores[p] = scores[p - 1]
        names[p] = names[p - 1]
        cosines[p] = cosines[p - 1]
        p -= 1
    scores[p] = value
    names[p] = name
    cosines[p] = cosine


def largest(const floating[:, ::1] x, const int64_t[::1] names, const floating[::1] lower, const floating[::1] upper,
            const int64_t[::1] own, const int64_t[::1] labels, double[:, ::1] scores, int64_t[:, ::1] chosen,
            floating[:, ::1] cosines):
    """Enter the columns of x with the largest values in (lower_i, upper_i).

    Where labels are given, those of the row's own label are left out, unless it is negative.
    """
    cdef Py_ssize_t i, j, chunk, first, last, n = x.shape[0], m = x.shape[1], k = scores.shape[1]
    cdef floating least, high
    cdef int hits
    cdef bint labelled = labels.shape[0] > 0
    with nogil:
        for i in range(n):
            high = upper[i]
            least = <floating>scores[i, k - 1]
            least = lower[i] if lower[i] > least else least
            for chunk in range((m + CHUNK - 1) // CHUNK):
                first = CHUNK * chunk
                last = first + CHUNK if first + CHUNK < m else m
                hits = 0
                for j in range(first, last):
                    hits += (x[i, j] > least) & (x[i, j] < high)
                if hits == 0:
                    continue
                for j in range(first, last):
                    if x[i, j] > least and x[i, j] < high:
                        if labelled and own[i] >= 0 and labels[j] == own[i]:
                            continue
                        insert(x[i, j], names[j], x[i, j], k, &scores[i, 0], &chosen[i, 0], &cosines[i, 0])
                        if scores[i, k - 1] > least:
                            least = <floating>scores[i, k - 1]


def drawn(const floating[:, ::1] x, const int64_t[::1] names, const uint32_t[::1] ids, const int64_t[::1] anchors,
          uint64_t key, double alpha, const floating[::1] lower, const floating[::1] upper, const int64_t[::1] own,
          const int64_t[::1] labels, double[:, ::1] scores, int64_t[:, ::1] chosen, floating[:, ::1] cosines):
    """Enter the columns with the largest alpha x + Gumbel noise, of those with x in (lower_i, upper_i).

    The noise is a function of key, anchor and id. ids hold any mix of a column's id to 32 bits.
    """
    cdef Py_ssize_t i, j, chunk, first, last, n = x.shape[0], m = x.shape[1], k = scores.shape[1]
    cdef floating low, high, least, slope = <floating>(alpha * 1.4426950408889634)
    cdef double score, slack = 1e-4 + 1e-6 * alpha
    cdef int hits
    cdef uint32_t stream, noise
    cdef bint labelled = labels.shape[0] > 0
    with nogil:
        for i in range(n):
            low = lower[i]
            high = upper[i]
            stream = <uint32_t>(mix64(key ^ mix64(<uint64_t>anchors[i])) >> 32)
            least = <floating>(scores[i, k - 1] * 1.4426950408889634 - slack)
            for chunk in range((m + CHUNK - 1) // CHUNK):
                first = CHUNK * chunk
                last = first + CHUNK if first + CHUNK < m else m
                hits = 0
                # With u uniform the score is alpha x - log(-log(1 - u)), and -log(1 - u) >= u.
                for j in range(first, last):
                    hits += ((slope * x[i, j] - log2_below(mix32(ids[j] ^ stream)) > least) & (x[i, j] > low)
                             & (x[i, j] < high))
                if hits == 0:
                    continue
                for j in range(first, last):
                    noise = mix32(ids[j] ^ stream)
                    if slope * x[i, j] - log2_below(noise) > least and x[i, j] > low and x[i, j] < high:
                        if labelled and own[i] >= 0 and labels[j] == own[i]:
                            continue
                        score = alpha * x[i, j] - log(-log1p(-(noise + 0.5) * 2.0**-32))
                        if score > scores[i, k - 1]:
                            insert(score, names[j], x[i, j], k, &scores[i, 0], &chosen[i, 0], &cosines[i, 0])
                least = <floating>(scores[i, k - 1] * 1.4426950408889634 - slack)


def cosines(const floating[:, ::1] x, const int64_t[::1] nodes, const floating[::1] unit, floating[::1] out):
    """Write the cosines of some rows of x with a unit vector; 0 for a row shorter than 1e-12."""
    cdef Py_ssize_t i, j, n = nodes.shape[0], d = x.shape[1]
    cdef floating dot, square, zero = 0, least = <floating>1e-12
    with nogil:
        for i in range(n):
            if i + AHEAD < n:
                prefetch_span(&x[nodes[i + AHEAD], 0], d * sizeof(floating))
            dot = 0
            square = 0
            for j in range(d):
                dot += x[nodes[i], j] * unit[j]
                square += x[nodes[i], j] * x[nodes[i], j]
            square = root(square)
            out[i] = zero if square < least else dot / square
