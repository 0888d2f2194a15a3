"""Width-generic maths for the SIMD kernels."""
from cython cimport floating
from libc.math cimport exp, expf, sqrt, sqrtf


cdef inline floating root(floating x) noexcept nogil:
    if floating is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline floating expo(floating x) noexcept nogil:
    if floating is float:
        return expf(x)
    else:
        return exp(x)
