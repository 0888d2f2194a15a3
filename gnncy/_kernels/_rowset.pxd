"""Sets of rows as bits with running counts: 16 bytes for 64 rows tell whether a row is in the set, and its rank there.

Word i of a set is the pair (bits of the rows 64 i .. 64 i + 63, members before row 64 i).
"""
from libc.stdint cimport int64_t, uint64_t


cdef extern from * nogil:
    int popcount "__builtin_popcountll"(unsigned long long word)


cdef inline int64_t rank_of(const uint64_t[:, ::1] words, int64_t row) noexcept nogil:
    """Members before ``row`` if it is one, else -1."""
    cdef uint64_t bits = words[row >> 6, 0], bit = <uint64_t>1 << (row & 63)
    return <int64_t>words[row >> 6, 1] + popcount(bits & (bit - 1)) if bits & bit else -1
