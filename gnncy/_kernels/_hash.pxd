"""Counter-based randomness for kernels: a stateless mix of 64 bits (splitmix64, Steele et al. 2014)."""
from libc.stdint cimport uint64_t


cdef inline uint64_t mix64(uint64_t x) noexcept nogil:
    x = x + <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


cdef inline uint64_t below(uint64_t bits, uint64_t n) noexcept nogil:
    """Map 32 well-mixed high bits to 0..n-1 for n < 2**32 (Lemire's multiply-shift)."""
    return ((bits >> 32) * n) >> 32
