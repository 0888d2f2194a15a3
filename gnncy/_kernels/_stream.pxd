"""Write rows past the caches, for an output larger than they are that nobody reads soon: it saves reading it first."""

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    static inline void gnncy_stream(void *to, const void *from, size_t size) {
        if (((uintptr_t)to | size) % 16) { memcpy(to, from, size); return; }
        for (size_t i = 0; i < size; i += 16)
            _mm_stream_si128((__m128i *)((char *)to + i), _mm_loadu_si128((const __m128i *)((const char *)from + i)));
    }
    #define gnncy_stream_end() _mm_sfence()
    #else
    #define gnncy_stream(to, from, size) memcpy(to, from, size)
    #define gnncy_stream_end() ((void)0)
    #endif
    """
    void stream "gnncy_stream"(void *to, const void *source, size_t size) noexcept nogil
    void stream_end "gnncy_stream_end"() noexcept nogil
