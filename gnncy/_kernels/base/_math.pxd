"""Width-generic maths for the SIMD kernels."""
from cython cimport floating
from libc.math cimport exp, sqrt, sqrtf


cdef extern from *:
    """
    #include <stdint.h>

    /* exp without calls or branches, so that loops over it become vectors (libm's is called once per element).
       x = n log 2 + r with |r| <= log(2)/2; a minimax polynomial for exp(r) (Cephes), times 2^n through the exponent
       bits. log 2 = hi + lo with n hi exact; as sums may be reordered here, n lo enters as the factor 1 - n lo.
       Relative error below 3e-7; 0 below -87.3, and exp(88) above 88. */
    static inline float gnncy_expf(float x) {
        union { uint32_t bits; float value; } power;
        float c = x < -87.3f ? -87.3f : x;
        c = c > 88.0f ? 88.0f : c;
        int32_t biased = (int32_t)(c * 1.44269504f + 127.5f);
        float n = (float)(biased - 127);
        float r = c - n * 0.693145751953125f;
        float p = 1.9875691500e-4f;
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * r * r + r + 1.0f;
        power.bits = (uint32_t)biased << 23;
        p = p * (1.0f - n * 1.42860682e-6f) * power.value;
        return x < -87.3f ? 0.0f : p;
    }
    """
    float gnncy_expf(float x) noexcept nogil


cdef inline floating root(floating x) noexcept nogil:
    if floating is float:
        return sqrtf(x)
    else:
        return sqrt(x)


cdef inline floating expo(floating x) noexcept nogil:
    if floating is float:
        return gnncy_expf(x)
    else:
        return exp(x)
