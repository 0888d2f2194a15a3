"""Ask for a cache line before it is needed; a hint that never faults."""

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define gnncy_prefetch(p) __builtin_prefetch(p)
    #define gnncy_prefetch_early(p) __builtin_prefetch(p, 0, 2)
    #else
    #define gnncy_prefetch(p) ((void)(p))
    #define gnncy_prefetch_early(p) ((void)(p))
    #endif
    """
    void prefetch "gnncy_prefetch"(const void *p) noexcept nogil
    void prefetch_early "gnncy_prefetch_early"(const void *p) noexcept nogil


cdef inline void prefetch_span(const void *start, Py_ssize_t size) noexcept nogil:
    """Ask for every cache line of ``size`` bytes."""
    cdef Py_ssize_t i
    for i in range(0, size, 64):
        prefetch(<const char *>start + i)


cdef inline void prefetch_span_early(const void *start, Py_ssize_t size) noexcept nogil:
    """As ``prefetch_span``, to the second level of the cache, which takes in many more lines at once than the first."""
    cdef Py_ssize_t i
    for i in range(0, size, 64):
        prefetch_early(<const char *>start + i)
