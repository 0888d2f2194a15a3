"""Projections without a matrix: random signs, Hadamard rotations, hashed sketches. Callers check the arguments."""
from cython cimport floating
from libc.stdint cimport uint64_t

from gnncy._kernels._hash cimport below, mix64
from .._math cimport root


def flip(Py_ssize_t start, Py_ssize_t stop, uint64_t key, const floating[::1] x, floating[::1] out):
    """Write x with the random signs of ``key``; ``start`` is a multiple of 64."""
    cdef Py_ssize_t i, j
    cdef uint64_t bits
    with nogil:
        for i in range(start, stop, 64):
            bits = mix64(key ^ <uint64_t>(i >> 6))
            for j in range(i, min(i + 64, stop)):
                out[j] = -x[j] if (bits >> (j - i)) & 1 else x[j]


cdef inline void butterfly(floating *x, floating *y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t j
    cdef floating a, b
    for j in range(n):
        a = x[j]
        b = y[j]
        x[j] = a + b
        y[j] = a - b


def hadamard(Py_ssize_t first, Py_ssize_t last, Py_ssize_t start, Py_ssize_t size, floating[::1] x):
    """Rotate in place each of the blocks ``first .. last`` of ``size``, a power of 2, the first at ``start``.

    By the orthonormal Walsh-Hadamard matrix, which is its own inverse.
    """
    cdef Py_ssize_t b, i, j, h
    cdef floating one = 1, scale = one / root(<floating>size)
    cdef floating *v
    with nogil:
        for b in range(first, last):
            v = &x[start + b * size]
            h = 1
            while h < size:
                for i in range(size // (2 * h)):
                    butterfly(v + 2 * h * i, v + 2 * h * i + h, h)
                h *= 2
            for j in range(size):
                v[j] *= scale


def sketch(Py_ssize_t first, Py_ssize_t last, uint64_t key, const floating[::1] x, floating[:, ::1] table):
    """Add each element, with a random sign, to the one cell of each row of ``table`` that its place hashes to."""
    cdef Py_ssize_t r, i
    cdef uint64_t row, h, columns = table.shape[1]
    with nogil:
        for r in range(first, last):
            row = mix64(key ^ <uint64_t>r)
            for i in range(x.shape[0]):
                h = mix64(row ^ <uint64_t>i)
                table[r, below(h, columns)] += -x[i] if h & 1 else x[i]


def estimate(Py_ssize_t start, Py_ssize_t stop, uint64_t key, const floating[:, ::1] table, floating[:, ::1] out):
    """Write what each row of ``table`` says of the elements ``start .. stop``, to its row of ``out``."""
    cdef Py_ssize_t r, i
    cdef uint64_t row, h, columns = table.shape[1]
    cdef floating value
    with nogil:
        for r in range(table.shape[0]):
            row = mix64(key ^ <uint64_t>r)
            for i in range(start, stop):
                h = mix64(row ^ <uint64_t>i)
                value = table[r, below(h, columns)]
                out[r, i - start] = -value if h & 1 else value
