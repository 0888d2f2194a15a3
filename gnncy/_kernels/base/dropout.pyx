"""Dropout with a counter-based mask: kept or not depends on the key and the place alone."""
from cython cimport floating
from libc.stdint cimport uint64_t

from .._hash cimport mix64


def dropout(const floating[::1] x, uint64_t key, Py_ssize_t first, int threshold, floating scale, floating[::1] out):
    """Write scale x, or 0 with probability threshold / 2**16; ``x`` begins at element ``first``, a multiple of 4."""
    cdef Py_ssize_t i, j, n = x.shape[0], whole = n - n % 4
    cdef uint64_t bits, base = mix64(key) + (<uint64_t>first) // 4
    cdef floating keep, zero = 0
    with nogil:
        for i in range(0, whole, 4):
            # One hash of 64 bits decides four elements.
            bits = mix64(base + <uint64_t>i // 4)
            for j in range(4):
                keep = zero if <int>((bits >> (16 * j)) & 0xFFFF) < threshold else scale
                out[i + j] = x[i + j] * keep
        bits = mix64(base + <uint64_t>whole // 4)
        for j in range(n - whole):
            keep = zero if <int>((bits >> (16 * j)) & 0xFFFF) < threshold else scale
            out[whole + j] = x[whole + j] * keep
