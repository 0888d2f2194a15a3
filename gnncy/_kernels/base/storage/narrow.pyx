"""Rows of few bytes: int8 with a scale for each row, and float16, widened to float32 as they are gathered."""
from libc.math cimport fabsf, nextafterf, rint
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

cdef enum:
    SCALE = 4  # bytes of a row before its values


def quantise(const float[:, ::1] x, Py_ssize_t start, Py_ssize_t stop, uint8_t[:, ::1] out):
    """Write rows as a scale s = max|x| / 127 and the integers nearest to x / s, ties to even."""
    cdef Py_ssize_t i, j, d = x.shape[1]
    cdef float top, scale, largest = 3.4028235e38
    cdef double inverse
    cdef int8_t* values
    with nogil:
        for i in range(start, stop):
            top = 0
            for j in range(d):
                top = max(top, fabsf(x[i, j]))
            scale = <float>(<double>top / 127)
            if <double>scale * 127 > <double>largest:
                scale = nextafterf(scale, 0)  # so that no row is read as infinity
            elif <double>top > <double>scale * 127.5:
                scale = nextafterf(scale, largest)  # of subnormal numbers
            inverse = 1 / <double>scale if scale > 0 else 0
            memcpy(&out[i, 0], &scale, SCALE)
            values = <int8_t*>&out[i, SCALE]
            for j in range(d):
                values[j] = <int8_t>rint(x[i, j] * inverse)


def dequantise(const uint8_t[:, ::1] rows, const int64_t[::1] places, float[:, ::1] out):
    """Write row i, as :func:`quantise` made it, to row ``places[i]``."""
    cdef Py_ssize_t i, j, d = out.shape[1]
    cdef float scale
    cdef const int8_t* values
    cdef float* target
    with nogil:
        for i in range(rows.shape[0]):
            memcpy(&scale, &rows[i, 0], SCALE)
            values = <const int8_t*>&rows[i, SCALE]
            target = &out[places[i], 0]
            for j in range(d):
                target[j] = scale * values[j]


def widen(const uint16_t[:, ::1] rows, const int64_t[::1] places, uint32_t[:, ::1] out):
    """Write the bits of float16 row i, as those of float32, to row ``places[i]``; every float16 has its float32."""
    cdef Py_ssize_t i, j, d = out.shape[1]
    cdef uint32_t half, bits, exponent
    cdef float value, rescale = 5.192296858534828e33  # 2 ** 112, the distance of the exponents
    cdef const uint16_t* source
    cdef uint32_t* target
    with nogil:
        for i in range(rows.shape[0]):
            source = &rows[i, 0]
            target = &out[places[i], 0]
            for j in range(d):
                half = source[j]
                bits = (half & 0x7FFF) << 13
                memcpy(&value, &bits, 4)
                value = value * rescale
                memcpy(&bits, &value, 4)
                exponent = <uint32_t>0x7F800000 if (half & 0x7C00) == 0x7C00 else 0
                target[j] = bits | exponent | (half & 0x8000) << 16
