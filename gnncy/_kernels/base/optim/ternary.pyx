"""Ternary vectors in two bit planes of 64-bit words, bit j of word w for element 64 w + j.

Elements are worked in blocks of ``block``, a multiple of 64 (the last may be shorter); a kernel takes the blocks
``first .. last``. Bits past the last element are 0. Arguments are checked by gnncy.optim.compression.
"""
from cython cimport floating
from libc.stdint cimport int64_t, uint32_t, uint64_t

from gnncy._kernels._hash cimport mix64
from .._math cimport root

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(__SSE2__)
    #include <immintrin.h>
    #endif

    /* Bit j of plus says x[j] > t[j], of minus x[j] < -t[j], for 64 elements. Returns the sum of |x| over both. */
    static inline float gnncy_masks_f(const float *x, const float *t, uint64_t *plus, uint64_t *minus) {
        uint64_t p = 0, m = 0;
        int j;
    #if defined(__AVX2__)
        const __m256 sign = _mm256_set1_ps(-0.0f);
        __m256 sum = _mm256_setzero_ps();
        for (j = 0; j < 64; j += 8) {
            __m256 a = _mm256_loadu_ps(x + j), size = _mm256_andnot_ps(sign, a);
            __m256 kept = _mm256_cmp_ps(size, _mm256_loadu_ps(t + j), _CMP_GT_OQ);
            uint64_t k = (uint32_t)_mm256_movemask_ps(kept), negative = (uint32_t)_mm256_movemask_ps(a);
            p |= (k & ~negative) << j;
            m |= (k & negative) << j;
            sum = _mm256_add_ps(sum, _mm256_and_ps(kept, size));
        }
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    #elif defined(__SSE2__)
        const __m128 sign = _mm_set1_ps(-0.0f);
        __m128 half = _mm_setzero_ps();
        for (j = 0; j < 64; j += 4) {
            __m128 a = _mm_loadu_ps(x + j), size = _mm_andnot_ps(sign, a);
            __m128 kept = _mm_cmpgt_ps(size, _mm_loadu_ps(t + j));
            uint64_t k = (uint32_t)_mm_movemask_ps(kept), negative = (uint32_t)_mm_movemask_ps(a);
            p |= (k & ~negative) << j;
            m |= (k & negative) << j;
            half = _mm_add_ps(half, _mm_and_ps(kept, size));
        }
    #else
        float total = 0;
        for (j = 0; j < 64; j++) {
            float size = x[j] > 0 ? x[j] : -x[j];
            p |= (uint64_t)(x[j] > t[j]) << j;
            m |= (uint64_t)(-x[j] > t[j]) << j;
            total += size > t[j] ? size : 0;
        }
    #endif
        *plus = p;
        *minus = m;
    #if defined(__SSE2__)
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
    #else
        return total;
    #endif
    }

    static inline double gnncy_masks_d(const double *x, const double *t, uint64_t *plus, uint64_t *minus) {
        uint64_t p = 0, m = 0;
        double total = 0;
        int j;
        for (j = 0; j < 64; j++) {
            double size = x[j] > 0 ? x[j] : -x[j];
            p |= (uint64_t)(x[j] > t[j]) << j;
            m |= (uint64_t)(-x[j] > t[j]) << j;
            total += size > t[j] ? size : 0;
        }
        *plus = p;
        *minus = m;
        return total;
    }

    #if defined(__GNUC__)
    #define gnncy_popcount(x) ((int64_t)__builtin_popcountll(x))
    #else
    static inline int64_t gnncy_popcount(uint64_t x) {
        x -= (x >> 1) & 0x5555555555555555ull;
        x = (x & 0x3333333333333333ull) + ((x >> 2) & 0x3333333333333333ull);
        return (int64_t)((((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0full) * 0x0101010101010101ull) >> 56);
    }
    #endif
    """
    float gnncy_masks_f(const float *x, const float *t, uint64_t *plus, uint64_t *minus) noexcept nogil
    double gnncy_masks_d(const double *x, const double *t, uint64_t *plus, uint64_t *minus) noexcept nogil
    int64_t gnncy_popcount(uint64_t x) noexcept nogil


cdef inline floating masks(const floating *x, Py_ssize_t count, const floating *t, uint64_t *plus,
                           uint64_t *minus) noexcept nogil:
    """Write the two words of ``count`` elements, at most 64; the sum of |x| over those that are kept."""
    cdef floating short[64]
    cdef Py_ssize_t j
    if count < 64:
        for j in range(64):
            short[j] = 0
        for j in range(count):
            short[j] = x[j]
        x = short
    if floating is float:
        return gnncy_masks_f(x, t, plus, minus)
    else:
        return gnncy_masks_d(x, t, plus, minus)


cdef inline void fill(floating *t, floating value) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(64):
        t[j] = value


cdef inline void draws(uint64_t key, floating limit, floating *t) noexcept nogil:
    """64 uniform draws from (0, limit); 32-bit mixing (Wellons' lowbias32) is what vectors can do."""
    cdef Py_ssize_t j
    cdef uint32_t h, low = <uint32_t>key, high = <uint32_t>(key >> 32)
    cdef floating step = limit * <floating>(1.0 / (1 << 24)), half = <floating>0.5
    for j in range(64):
        h = low + <uint32_t>j * <uint32_t>0x9E3779B9
        h = (h ^ (h >> 16)) * <uint32_t>0x7FEB352D
        h = (h ^ (h >> 15)) * <uint32_t>0x846CA68B
        h = (h ^ (h >> 16)) + high
        t[j] = step * (<floating><int>(h >> 8) + half)


cdef inline void add(uint64_t plus, uint64_t minus, floating factor, floating *y, Py_ssize_t count) noexcept nogil:
    """Add factor q to ``count`` elements, at most 64."""
    cdef Py_ssize_t j, low = count if count < 32 else 32
    cdef uint32_t p = <uint32_t>plus, m = <uint32_t>minus
    for j in range(low):
        y[j] += factor * (<int>((p >> j) & 1) - <int>((m >> j) & 1))
    p = <uint32_t>(plus >> 32)
    m = <uint32_t>(minus >> 32)
    for j in range(count - low):
        y[low + j] += factor * (<int>((p >> j) & 1) - <int>((m >> j) & 1))


cdef inline floating size(floating x) noexcept nogil:
    return x if x > 0 else -x


cdef inline double sum_of_absolutes(const floating *x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, j
    cdef floating part
    cdef double total = 0
    for i in range(0, n - 255, 256):
        part = 0
        for j in range(i, i + 64):  # four terms an addition: it is the chain of additions that takes the time
            part += (size(x[j]) + size(x[j + 64])) + (size(x[j + 128]) + size(x[j + 192]))
        total += part
    for j in range(n & ~<Py_ssize_t>255, n):
        total += size(x[j])
    return total


cdef inline double mean_above(const floating *x, Py_ssize_t n, floating threshold) noexcept nogil:
    """The mean of |x| over the elements where it exceeds the threshold, 0 if none does."""
    cdef Py_ssize_t j
    cdef double total = 0, count = 0
    cdef floating a
    for j in range(n):
        a = size(x[j])
        total += a if a > threshold else 0
        count += 1 if a > threshold else 0
    return total / count if count > 0 else 0


def sum_abs(Py_ssize_t first, Py_ssize_t last, Py_ssize_t block, const floating[::1] x, double[::1] out):
    """Write the sum of |x| of each block; not finite if an element is not."""
    cdef Py_ssize_t b, start, n = x.shape[0]
    with nogil:
        for b in range(first, last):
            start = b * block
            out[b] = sum_of_absolutes(&x[start], min(block, n - start))


cdef inline void sum_moments(const floating *x, Py_ssize_t n, double *out) noexcept nogil:
    """The sum, the sum of squares and the largest |x|."""
    cdef Py_ssize_t i, j
    cdef floating part, squares, a, top = 0
    out[0] = 0
    out[1] = 0
    for i in range(0, n, 256):
        part = 0
        squares = 0
        for j in range(i, min(i + 256, n)):
            part += x[j]
            squares += x[j] * x[j]
        for j in range(i, min(i + 256, n)):
            a = size(x[j])
            top = a if a > top else top
        out[0] += part
        out[1] += squares
    out[2] = top


def moments(Py_ssize_t first, Py_ssize_t last, Py_ssize_t block, const floating[::1] x, double[:, ::1] out):
    """Write the sum, the sum of squares and the largest |x| of each block; squares not finite if an element is not."""
    cdef Py_ssize_t b, start, n = x.shape[0]
    with nogil:
        for b in range(first, last):
            start = b * block
            sum_moments(&x[start], min(block, n - start), &out[b, 0])


cdef inline void pack_block(const floating *x, Py_ssize_t n, floating threshold, uint64_t *plus, uint64_t *minus,
                            double *kept) noexcept nogil:
    cdef Py_ssize_t i
    cdef floating t[64]
    cdef double total = 0
    cdef int64_t count = 0
    fill(t, threshold)
    for i in range(0, n, 64):
        total += masks(x + i, min(64, n - i), t, plus + (i >> 6), minus + (i >> 6))
        count += gnncy_popcount(plus[i >> 6] | minus[i >> 6])
    kept[0] = total
    kept[1] = count


def pack(Py_ssize_t first, Py_ssize_t last, Py_ssize_t block, const floating[::1] x, const floating[::1] threshold,
         uint64_t[::1] plus, uint64_t[::1] minus, double[:, ::1] kept):
    """Keep the signs of elements above a block's threshold in size; write their sum of |x| and their number."""
    cdef Py_ssize_t b, start, n = x.shape[0]
    with nogil:
        for b in range(first, last):
            start = b * block
            pack_block(&x[start], min(block, n - start), threshold[b], &plus[start >> 6], &minus[start >> 6],
                       &kept[b, 0])


def pack_above_mean(Py_ssize_t first, Py_ssize_t last, Py_ssize_t block, const floating[::1] x, floating ratio,
                    double[::1] sums, uint64_t[::1] plus, uint64_t[::1] minus, double[:, ::1] kept):
    """:func:`sum_abs`, and :func:`pack` with ``ratio`` times a block's mean as its threshold, in one pass."""
    cdef Py_ssize_t b, start, count, n = x.shape[0]
    with nogil:
        for b in range(first, last):
            start = b * block
            count = min(block, n - start)
            sums[b] = sum_of_absolutes(&x[start], count)
            pack_block(&x[start], count, ratio * <floating>(sums[b] / count), &plus[start >> 6], &minus[start >> 6],
                       &kept[b, 0])


def draw(Py_ssize_t first, Py_ssize_t last, Py_ssize_t block, const floating[::1] x, const floating[::1] limit,
         uint64_t key, uint64_t[::1] plus, uint64_t[::1] minus):
    """Keep the sign of each element with probability min(1, |x| / limit), drawn by its place under ``key``."""
    cdef Py_ssize_t b, i, w, n = x.shape[0]
    cdef floating t[64]
    with nogil:
        for b in range(first, last):
            for i in range(b * block, min((b + 1) * block, n), 64):
                w = i >> 6
                draws(mix64(key ^ <uint64_t>w), limit[b], t)
                masks(&x[i], min(64, n - i), t, &plus[w], &minus[w])


def axpy(Py_ssize_t first, Py_ssize_t last, Py_ssize_t block, const uint64_t[::1] plus, const uint64_t[::1] minus,
         const floating[::1] factor, floating[::1] y):
    """Add factor q to ``y``, the factor of each block its own."""
    cdef Py_ssize_t b, i, n = y.shape[0]
    with nogil:
        for b in range(first, last):
            for i in range(b * block, min((b + 1) * block, n), 64):
                add(plus[i >> 6], minus[i >> 6], factor[b], &y[i], min(64, n - i))


def compare(const uint64_t[::1] plus_a, const uint64_t[::1] minus_a, const uint64_t[::1] plus_b,
            const uint64_t[::1] minus_b):
    """The dot product of two ternary vectors, how many elements differ, and how many are not 0 in each."""
    cdef Py_ssize_t w
    cdef int64_t dot = 0, differ = 0, size_a = 0, size_b = 0
    cdef uint64_t pa, ma, pb, mb
    with nogil:
        for w in range(plus_a.shape[0]):
            pa = plus_a[w]
            ma = minus_a[w]
            pb = plus_b[w]
            mb = minus_b[w]
            dot += gnncy_popcount((pa & pb) | (ma & mb)) - gnncy_popcount((pa & mb) | (ma & pb))
            differ += gnncy_popcount((pa ^ pb) | (ma ^ mb))
            size_a += gnncy_popcount(pa | ma)
            size_b += gnncy_popcount(pb | mb)
    return dot, differ, size_a, size_b


# Bit-sliced counters: row w of ``planes`` holds 64 counters of ``bits`` bits in two's complement, a plane a bit, lowest
# first. Where there is error feedback, three more planes hold the signs of a residual and one of four sizes, 0, 1, 3
# or 9 times the block's mean, in two bits. ``scales`` has a block's unit and that mean.

cdef inline void put_residual(const float *p, Py_ssize_t count, float mean, uint64_t *planes) noexcept nogil:
    """Write three planes for at most 64 elements."""
    cdef float t[64]
    cdef uint64_t plus, minus, over_half, over_two
    fill(t, mean / 2)
    masks(p, count, t, &plus, &minus)
    planes[0] = minus
    over_half = plus | minus
    fill(t, 2 * mean)
    masks(p, count, t, &plus, &minus)
    over_two = plus | minus
    fill(t, 6 * mean)
    masks(p, count, t, &plus, &minus)
    planes[1] = over_half ^ over_two ^ (plus | minus)
    planes[2] = over_two


cdef inline void add_residual(const uint64_t *planes, float mean, float *y, Py_ssize_t count) noexcept nogil:
    """Add it to at most 64 elements."""
    cdef uint64_t minus = planes[0], low = planes[1], high = planes[2]
    add((low | high) & ~minus, (low | high) & minus, mean, y, count)
    add(high & ~minus, high & minus, 2 * mean, y, count)
    add(low & high & ~minus, low & high & minus, 6 * mean, y, count)


cdef inline void halve(uint64_t *c, int bits, uint64_t up, uint64_t *plus, uint64_t *minus) noexcept nogil:
    """Divide by 2, halves upwards in ``up``; ``plus`` and ``minus`` mark where 1 was lost or added."""
    cdef int i
    cdef uint64_t carry = c[0] & up, t
    plus[0] = c[0] & ~up
    minus[0] = carry
    for i in range(bits - 1):
        t = c[i + 1]
        c[i] = t ^ carry
        carry &= t
    c[bits - 1] ^= carry


cdef inline uint64_t count_up(uint64_t *c, int bits, int m, uint64_t plus, uint64_t minus) noexcept nogil:
    """Add m to the counters in ``plus``, -m to those in ``minus``; those that would overflow are left and returned."""
    cdef uint64_t total[16]
    cdef uint64_t carry = 0, a = 0, digit = 0, overflow
    cdef int i
    for i in range(bits):
        a = (plus if (m >> i) & 1 else 0) | (minus if (-m >> i) & 1 else 0)
        digit = c[i] ^ a ^ carry
        carry = (c[i] & a) | (carry & (c[i] ^ a))
        total[i] = digit
    overflow = ~(c[bits - 1] ^ a) & (c[bits - 1] ^ digit)
    for i in range(bits):
        c[i] = (c[i] & overflow) | (total[i] & ~overflow)
    return overflow


def accumulate(Py_ssize_t first, Py_ssize_t last, Py_ssize_t block, const float[::1] x, float ratio, float clip,
               uint64_t key, int bits, bint feedback, bint make_room, float[::1] scratch, uint64_t[:, ::1] planes,
               float[:, ::1] scales):
    """Quantise x, and the residual with it, and add s q to the counters.

    With ``clip`` 0 the threshold is ``ratio`` times the mean of |x|, else draws decide what is kept of x clipped at
    clip sigma, with the next multiple of the unit as the scale.
    ``scratch`` holds a block. ``make_room`` doubles the units first.
    """
    cdef Py_ssize_t b, i, j, w, start, count, n = x.shape[0]
    cdef float t[64]
    cdef float *p = &scratch[0]
    cdef float unit, s, threshold = 0, top, a
    cdef double found[3]
    cdef double variance
    cdef uint64_t plus, minus, up, stuck
    cdef int m, halvings
    with nogil:
        for b in range(first, last):
            start = b * block
            count = min(block, n - start)
            unit = scales[b, 0]
            for j in range(count):
                p[j] = x[start + j]
            if feedback and scales[b, 1] > 0:
                for i in range(0, count, 64):
                    w = (start + i) >> 6
                    add_residual(&planes[w, bits], scales[b, 1], p + i, min(64, count - i))
            if clip > 0:
                sum_moments(p, count, found)
                variance = found[1] / count - (found[0] / count) ** 2
                top = <float>found[2]
                s = clip * <float>root(variance if variance > 0 else 0)
                s = s if 0 < s and s < top else top
                for j in range(count):
                    a = s if p[j] > s else p[j]
                    p[j] = -s if a < -s else a
            else:
                threshold = ratio * <float>(sum_of_absolutes(p, count) / count)
                s = <float>mean_above(p, count, threshold)
            halvings = 1 if make_room else 0
            if unit == 0:
                unit = s if feedback else s / 2
                if clip > 0:
                    unit *= <float>1.1  # two units have room for a scale that is a little larger
                halvings = 0
            else:
                while s > 3 * unit * <float>(1 << min(halvings, 30)) and halvings < 30:
                    halvings += 1
            for m in range(halvings):
                if m < bits + 1:
                    for i in range(0, count, 64):
                        w = (start + i) >> 6
                        up = planes[w, 1]  # to the even
                        if clip > 0:
                            up = mix64(~key ^ <uint64_t>w ^ (<uint64_t>m << 56))
                        halve(&planes[w, 0], bits, up, &plus, &minus)
                        if feedback:
                            add(plus, minus, unit, p + i, min(64, count - i))
                unit *= 2
            m = 0
            if unit > 0:
                m = <int>(s / unit + <float>0.5)
                if clip > 0 and m * unit < s:
                    m += 1
                m = min(m, 3)
            fill(t, threshold)
            for i in range(0, count, 64):
                w = (start + i) >> 6
                if clip > 0:
                    draws(mix64(key ^ <uint64_t>w), m * unit, t)
                masks(p + i, min(64, count - i), t, &plus, &minus)
                stuck = count_up(&planes[w, 0], bits, m, plus, minus)
                if feedback:
                    add(plus & ~stuck, minus & ~stuck, -m * unit, p + i, min(64, count - i))
            scales[b, 0] = unit
            if feedback:
                scales[b, 1] = <float>mean_above(p, count, 0)
                for i in range(0, count, 64):
                    w = (start + i) >> 6
                    put_residual(p + i, min(64, count - i), scales[b, 1], &planes[w, bits])


def read_counters(Py_ssize_t first, Py_ssize_t last, Py_ssize_t block, int bits, bint feedback,
                  const uint64_t[:, ::1] planes, const float[:, ::1] scales, float factor, float[::1] out):
    """Write factor times (unit times counter, and the residual)."""
    cdef Py_ssize_t b, i, j, n = out.shape[0]
    cdef int k
    cdef float value
    cdef uint64_t word
    with nogil:
        for b in range(first, last):
            for i in range(b * block, min((b + 1) * block, n), 64):
                for j in range(i, min(i + 64, n)):
                    out[j] = 0
                for k in range(bits):
                    value = factor * scales[b, 0] * (1 << k)
                    word = planes[i >> 6, k]
                    add(word if k < bits - 1 else 0, word if k == bits - 1 else 0, value, &out[i], min(64, n - i))
                if feedback:
                    add_residual(&planes[i >> 6, bits], factor * scales[b, 1], &out[i], min(64, n - i))
