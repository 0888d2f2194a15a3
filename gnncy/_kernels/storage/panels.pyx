"""Rows cut into slabs of columns, and slabs lined up in rows. Everything is counted in bytes."""
from libc.stdint cimport uint8_t
from libc.string cimport memcpy


def cut(const uint8_t[:, ::1] rows, uint8_t[:, :, ::1] slabs, Py_ssize_t start, Py_ssize_t stop):
    """Write bytes s * width .. of row i to ``slabs[s, i]``, width that of a slab; the last slab takes what is left."""
    cdef Py_ssize_t i, s, at, width = slabs.shape[2], length = rows.shape[1]
    with nogil:
        for i in range(start, stop):
            for s in range(slabs.shape[0]):
                at = s * width
                memcpy(&slabs[s, i, 0], &rows[i, at], <size_t>min(width, length - at))


def line_up(const uint8_t[:, :, :, ::1] slabs, uint8_t[:, :, ::1] rows, Py_ssize_t start, Py_ssize_t stop):
    """Write ``slabs[s, k, i]`` to ``rows[i, k]`` from byte s * width on."""
    cdef Py_ssize_t i, s, k, at, width = slabs.shape[3], length = rows.shape[2]
    with nogil:
        for i in range(start, stop):
            for k in range(rows.shape[1]):
                for s in range(slabs.shape[0]):
                    at = s * width
                    memcpy(&rows[i, k, at], &slabs[s, k, i, 0], <size_t>min(width, length - at))
