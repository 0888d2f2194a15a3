"""Which SIMD levels this CPU can run; asks for exactly what setup.py's -m flags assume."""

cdef extern from *:
    """
    #if (defined(__GNUC__) || defined(__clang__)) && (defined(__x86_64__) || defined(__i386__))
    static int gnncy_has_avx2(void) {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
    #else
    static int gnncy_has_avx2(void) { return 0; }
    #endif
    """
    int gnncy_has_avx2()


def levels():
    """Names of the SIMD levels that this CPU runs, least first."""
    return ("base", "avx2") if gnncy_has_avx2() else ("base",)
