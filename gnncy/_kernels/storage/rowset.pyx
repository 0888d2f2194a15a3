"""Rows of a file held in memory: which they are, where each lies, and minibatches put together from them.

A set of rows is an array of shape (words, 2) as `_rowset.pxd` says; its members lie in memory in ascending order.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from gnncy._kernels._prefetch cimport prefetch
from gnncy._kernels._rowset cimport popcount, rank_of


cdef extern from * nogil:
    int trailing_zeros "__builtin_ctzll"(unsigned long long word)


def mark(const int64_t[::1] rows, const uint64_t[:, ::1] hot, uint64_t[:, ::1] words, int64_t[::1] fresh):
    """Add the rows that are not in ``hot`` to a set, without counting; writes the new ones to ``fresh``.

    Returns how many are new.
    """
    cdef Py_ssize_t k, new = 0
    cdef int64_t word
    cdef uint64_t bit
    with nogil:
        for k in range(rows.shape[0]):
            word = rows[k] >> 6
            bit = <uint64_t>1 << (rows[k] & 63)
            if not (words[word, 0] | hot[word, 0]) & bit:
                words[word, 0] |= bit
                fresh[new] = rows[k]
                new += 1
    return new


def unmark(const int64_t[::1] rows, uint64_t[:, ::1] words):
    """Take rows out of a set, without counting."""
    cdef Py_ssize_t k
    with nogil:
        for k in range(rows.shape[0]):
            words[rows[k] >> 6, 0] &= ~(<uint64_t>1 << (rows[k] & 63))


def count(uint64_t[:, ::1] words):
    """Bring the running counts of a set up to date; returns the number of its members."""
    cdef Py_ssize_t i
    cdef uint64_t total = 0
    with nogil:
        for i in range(words.shape[0]):
            words[i, 1] = total
            total += popcount(words[i, 0])
    return total


def members(const uint64_t[:, ::1] words, Py_ssize_t word, int64_t[::1] out):
    """Write members from the given word on, ascending, whole words at a time while there is room for 64.

    Returns the word to go on with and how many were written.
    """
    cdef Py_ssize_t n = 0
    cdef uint64_t bits
    with nogil:
        while word < words.shape[0] and n + 64 <= out.shape[0]:
            bits = words[word, 0]
            while bits:
                out[n] = 64 * word + trailing_zeros(bits)
                bits &= bits - 1
                n += 1
            word += 1
    return word, n


def places(const int64_t[::1] rows, const uint64_t[:, ::1] hot, const uint64_t[:, ::1] cold, int64_t[::1] place):
    """Where each row of either set lies: its rank in ``cold``, or -1 - its rank in ``hot``; returns how many are hot."""
    cdef Py_ssize_t k, hits = 0
    cdef int64_t rank
    with nogil:
        for k in range(rows.shape[0]):
            rank = rank_of(hot, rows[k])
            hits += rank >= 0
            place[k] = -1 - rank if rank >= 0 else rank_of(cold, rows[k])
    return hits


def take(const int64_t[::1] place, const uint8_t[:, ::1] hot, const uint8_t[:, ::1] cold, Py_ssize_t start,
         Py_ssize_t stop, uint8_t[:, ::1] out):
    """Copy row ``place[k]`` of ``cold``, or row ``-1 - place[k]`` of ``hot``, to ``out[k]``."""
    cdef Py_ssize_t k, size = out.shape[1]
    cdef int64_t ahead
    with nogil:
        for k in range(start, stop):
            ahead = place[min(k + 8, stop - 1)]
            prefetch(&cold[ahead, 0] if ahead >= 0 else &hot[-1 - ahead, 0])
            if place[k] >= 0:
                memcpy(&out[k, 0], &cold[place[k], 0], <size_t>size)
            else:
                memcpy(&out[k, 0], &hot[-1 - place[k], 0], <size_t>size)
