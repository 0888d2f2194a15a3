"""Sparse times dense, by rows. A column's result does not depend on how many columns there are.

Terms are added one by one in the order of the row, so nothing is left to reassociate.
"""
from cython cimport floating
from libc.stdint cimport int32_t, int64_t

from gnncy._kernels._prefetch cimport prefetch_span_early

ctypedef fused index:
    int32_t
    int64_t

cdef extern from *:
    """
    /* Loops of one line are unrolled before they can be vectorised, and stay scalar: so they are written in vectors. */
    #if defined(__GNUC__) || defined(__clang__)
    #ifdef __AVX2__
    #define GNNCY_LANES 32
    #else
    #define GNNCY_LANES 16
    #endif
    #define GNNCY_LINE(name, type)                                                                              \\
        typedef type name##_lanes __attribute__((vector_size(GNNCY_LANES), aligned(sizeof(type)), may_alias));  \\
        static inline void name(type *sums, type w, const type *row) {                                          \\
            for (int k = 0; k < 64 / GNNCY_LANES; k++)                                                          \\
                ((name##_lanes *)sums)[k] += w * ((const name##_lanes *)row)[k];                                \\
        }
    #else
    #define GNNCY_LINE(name, type)                                                                              \\
        static inline void name(type *sums, type w, const type *row) {                                          \\
            for (int j = 0; j < 64 / (int)sizeof(type); j++)                                                    \\
                sums[j] += w * row[j];                                                                          \\
        }
    #endif
    GNNCY_LINE(gnncy_add_floats, float)
    GNNCY_LINE(gnncy_add_doubles, double)
    """
    void add_floats "gnncy_add_floats"(float *sums, float w, const float *row) noexcept nogil
    void add_doubles "gnncy_add_doubles"(double *sums, double w, const double *row) noexcept nogil

cdef enum:
    LINE = 64  # bytes of a line of the cache
    AHEAD = 128  # lines of x asked for before their turn: half the time of 12 rows where memory is large
    NEAR = 1 << 20  # bytes of x that stay in the second level of the cache, where asking for them only costs


cdef inline Py_ssize_t rows_ahead(Py_ssize_t size) noexcept nogil:
    """Rows to ask for before their turn, if ``size`` bytes of each are needed."""
    return max(1, AHEAD * LINE // max(size, LINE))


cdef inline Py_ssize_t asked_until(Py_ssize_t arcs, Py_ssize_t size) noexcept nogil:
    """The arc before which rows are asked for, of an x of ``size`` bytes."""
    return 0 if size <= NEAR else arcs


cdef inline void add_line(floating *sums, floating w, const floating *row) noexcept nogil:
    """Add w times a line of a row."""
    if floating is float:
        add_floats(sums, w, row)
    else:
        add_doubles(sums, w, row)


cdef inline void sum_lines(const index *indices, const floating *weights, const floating *x, Py_ssize_t d,
                           Py_ssize_t low, Py_ssize_t high, Py_ssize_t until, floating scale, Py_ssize_t lines,
                           floating *out) noexcept nogil:
    """Write a few lines of a row's sum, which stay in registers as their number is known to the compiler."""
    cdef Py_ssize_t j, k, p, width = LINE // sizeof(floating), ahead = rows_ahead(lines * LINE)
    cdef floating[LINE] sums
    cdef floating w, one = 1
    for j in range(lines * width):
        sums[j] = 0
    for p in range(low, high):
        if p + ahead < until:
            prefetch_span_early(x + indices[p + ahead] * d, lines * LINE)
        w = one if weights == NULL else weights[p]
        for k in range(lines):
            add_line(sums + k * width, w, x + indices[p] * d + k * width)
    for j in range(lines * width):
        out[j] = sums[j] * scale


cdef inline void sum_columns(const index *indices, const floating *weights, const floating *x, Py_ssize_t d,
                             Py_ssize_t low, Py_ssize_t high, Py_ssize_t until, floating scale,
                             floating *out) noexcept nogil:
    """Write a row's sum of less than a line."""
    cdef Py_ssize_t j, p, ahead = rows_ahead(d * sizeof(floating))
    cdef floating[LINE] sums
    cdef floating w, one = 1
    for j in range(d):
        sums[j] = 0
    for p in range(low, high):
        if p + ahead < until:
            prefetch_span_early(x + indices[p + ahead] * d, d * sizeof(floating))
        w = one if weights == NULL else weights[p]
        for j in range(d):
            sums[j] += w * x[indices[p] * d + j]
    for j in range(d):
        out[j] = sums[j] * scale


cdef inline void sum_rows(const index *indptr, const index *indices, const floating *weights, const floating *x,
                          Py_ssize_t d, Py_ssize_t until, const floating *scale, Py_ssize_t start, Py_ssize_t stop,
                          floating *out) noexcept nogil:
    """Write scale_i * sum_p weights_p x[indices_p] for rows start..stop; without weights they are 1."""
    cdef Py_ssize_t i, c, width = LINE // sizeof(floating)
    for i in range(start, stop):
        if d < width:
            sum_columns(indices, weights, x, d, indptr[i], indptr[i + 1], until, scale[i], out + i * d)
            continue
        c = 0
        while d - c >= 4 * width:
            sum_lines(indices, weights, x + c, d, indptr[i], indptr[i + 1], until, scale[i], 4, out + i * d + c)
            c += 4 * width
        if d - c >= 2 * width:
            sum_lines(indices, weights, x + c, d, indptr[i], indptr[i + 1], until, scale[i], 2, out + i * d + c)
            c += 2 * width
        while c < d:
            c = min(c, d - width)  # the last line may write columns of the one before again
            sum_lines(indices, weights, x + c, d, indptr[i], indptr[i + 1], until, scale[i], 1, out + i * d + c)
            c += width


def gather_sum(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] x,
               const floating[::1] scale, Py_ssize_t start, Py_ssize_t stop, floating[:, ::1] out):
    """Write scale_i * sum_p x[indices_p] for rows start..stop."""
    cdef Py_ssize_t until = asked_until(indices.shape[0], x.shape[0] * x.shape[1] * sizeof(floating))
    with nogil:
        sum_rows(&indptr[0], &indices[0], <const floating *>NULL, &x[0, 0], x.shape[1], until, &scale[0],
                 start, stop, &out[0, 0])


def weighted_sum(const index[::1] indptr, const index[::1] indices, const floating[::1] weights,
                 const floating[:, ::1] x, const floating[::1] scale, Py_ssize_t start, Py_ssize_t stop,
                 floating[:, ::1] out):
    """Write scale_i * sum_p weights_p x[indices_p] for rows start..stop."""
    cdef Py_ssize_t until = asked_until(indices.shape[0], x.shape[0] * x.shape[1] * sizeof(floating))
    with nogil:
        sum_rows(&indptr[0], &indices[0], &weights[0], &x[0, 0], x.shape[1], until, &scale[0], start, stop, &out[0, 0])


def scaled(const index[::1] indptr, const index[::1] indices, const floating[::1] weights, const double[::1] left,
           const double[::1] right, floating[::1] out):
    """Write left_i weights_p right_{indices_p}, rounded once; to ``weights`` themselves if they are ``out``."""
    cdef Py_ssize_t i, p
    with nogil:
        for i in range(indptr.shape[0] - 1):
            for p in range(indptr[i], indptr[i + 1]):
                out[p] = <floating>(weights[p] * (left[i] * right[indices[p]]))


def maximum(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] x, Py_ssize_t start,
            Py_ssize_t stop, floating[:, ::1] out):
    """Write the largest x[indices_p] of each column for rows start..stop; 0 for a row without entries."""
    cdef Py_ssize_t i, j, p, v, d = x.shape[1], m = indices.shape[0]
    cdef Py_ssize_t ahead = rows_ahead(d * sizeof(floating)), until = asked_until(m, x.shape[0] * d * sizeof(floating))
    with nogil:
        for i in range(start, stop):
            if indptr[i] == indptr[i + 1]:
                for j in range(d):
                    out[i, j] = 0
                continue
            v = indices[indptr[i]]
            for j in range(d):
                out[i, j] = x[v, j]
            for p in range(indptr[i] + 1, indptr[i + 1]):
                if p + ahead < until:
                    prefetch_span_early(&x[indices[p + ahead], 0], d * sizeof(floating))
                v = indices[p]
                for j in range(d):
                    out[i, j] = x[v, j] if x[v, j] > out[i, j] else out[i, j]


def share(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] x, const floating[:, ::1] top,
          const floating[:, ::1] grad, Py_ssize_t start, Py_ssize_t stop, floating[:, ::1] out):
    """Write the gradient through :func:`maximum` by each of the entries that reach the maximum ``top``."""
    cdef Py_ssize_t i, j, p, v, d = x.shape[1]
    cdef floating zero = 0, one = 1
    with nogil:
        for i in range(start, stop):
            for j in range(d):
                out[i, j] = 0
            for p in range(indptr[i], indptr[i + 1]):
                v = indices[p]
                for j in range(d):
                    out[i, j] += one if x[v, j] == top[i, j] else zero
            for j in range(d):
                out[i, j] = grad[i, j] / (out[i, j] if out[i, j] > zero else one)


def maximum_grad(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] x,
                 const floating[:, ::1] top, const floating[:, ::1] shares, Py_ssize_t start, Py_ssize_t stop,
                 floating[:, ::1] out):
    """Write the gradient through :func:`maximum` for rows start..stop of the transposed pattern."""
    cdef Py_ssize_t i, j, p, v, d = x.shape[1]
    cdef floating zero = 0
    with nogil:
        for i in range(start, stop):
            for j in range(d):
                out[i, j] = 0
            for p in range(indptr[i], indptr[i + 1]):
                v = indices[p]
                for j in range(d):
                    out[i, j] += shares[v, j] if x[i, j] == top[v, j] else zero
