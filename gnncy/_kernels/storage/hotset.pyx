"""Numbering of distinct ids, and rows to and from the slots of a cache.

Ids are non-negative. The caller checks arguments and holds a lock: nothing here is safe against a second thread.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from gnncy._kernels._hash cimport mix64
from gnncy._kernels._prefetch cimport prefetch_span

cdef enum:
    AHEAD = 8  # rows that are asked for ahead of need


cdef inline Py_ssize_t find(const int64_t[::1] keys, int64_t key) noexcept nogil:
    """Where ``key`` is in an open table of 2**k keys (-1 is free), or the free place where it would go."""
    cdef Py_ssize_t mask = keys.shape[0] - 1
    cdef Py_ssize_t i = <Py_ssize_t>(mix64(<uint64_t>key) & <uint64_t>mask)
    while keys[i] != key and keys[i] != -1:
        i = (i + 1) & mask
    return i


def number(const int64_t[::1] ids, Py_ssize_t count, int64_t[::1] keys, int32_t[::1] values, int64_t[::1] unique,
           int32_t[::1] local):
    """Number distinct ids in the order of their first appearance, going on from ``count``.

    Writes each id's number to ``local`` and new ids to ``unique``; returns the new count. If ``unique`` is too short
    everything is left as it was before the call, and -1 comes back.
    """
    cdef Py_ssize_t k, i, n = ids.shape[0], before = count, room = unique.shape[0]
    cdef bint full = False
    with nogil:
        for k in range(n):
            i = find(keys, ids[k])
            if keys[i] == -1:
                if count == room:
                    full = True
                    break
                keys[i] = ids[k]
                values[i] = <int32_t>count
                unique[count] = ids[k]
                count += 1
            local[k] = values[i]
        if full:
            while count > before:  # the newest key ends every chain that it is on, so it can simply be cleared
                count -= 1
                keys[find(keys, unique[count])] = -1
            count = -1
    return count


def take(const uint8_t[:, ::1] rows, const int32_t[::1] slots, uint8_t[:, ::1] out):
    """Copy the row of each slot to ``out``, where it is not -1; returns how many there were."""
    cdef Py_ssize_t k, n = slots.shape[0], width = rows.shape[1], count = 0
    with nogil:
        for k in range(n):
            if k + AHEAD < n and slots[k + AHEAD] >= 0:
                prefetch_span(&rows[slots[k + AHEAD], 0], width)
            if slots[k] >= 0:
                memcpy(&out[k, 0], &rows[slots[k], 0], <size_t>width)
                count += 1
    return count


def put(const uint8_t[:, ::1] source, const int32_t[::1] slots, uint8_t[:, ::1] rows):
    """Copy each row of ``source`` to its slot, in order, where it is not -1."""
    cdef Py_ssize_t k, width = rows.shape[1]
    with nogil:
        for k in range(slots.shape[0]):
            if slots[k] >= 0:
                memcpy(&rows[slots[k], 0], &source[k, 0], <size_t>width)
