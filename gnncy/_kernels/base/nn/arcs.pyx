"""Values on the arcs of a CSR pattern, per head: scores, their softmax over a row, sums weighted by them.

Arrays of nodes are (n, heads, channels), those of arcs (arcs, heads). Where a kernel walks the transposed pattern,
``places`` tells where each of its arcs stands in the first; an empty ``places`` means as they come. Each writes the rows
start..stop, or the arcs of these rows. Arguments are checked by the callers.
"""
from cython cimport floating
from libc.stdint cimport int32_t, int64_t

from .._math cimport expo

ctypedef fused index:
    int32_t
    int64_t


def sums(const index[::1] indptr, const index[::1] indices, const floating[:, ::1] left,
         const floating[:, ::1] right, Py_ssize_t start, Py_ssize_t stop, floating[:, ::1] out):
    """Write left_i + right_j for the arc from i to j."""
    cdef Py_ssize_t i, p, v, h
    with nogil:
        for i in range(start, stop):
            for p in range(indptr[i], indptr[i + 1]):
                v = indices[p]
                for h in range(left.shape[1]):
                    out[p, h] = left[i, h] + right[v, h]


def total(const index[::1] indptr, const index[::1] places, const floating[:, ::1] x, Py_ssize_t start,
          Py_ssize_t stop, floating[:, ::1] out):
    """Write the sum of x over each row's arcs."""
    cdef Py_ssize_t i, p, q, h
    with nogil:
        for i in range(start, stop):
            for h in range(x.shape[1]):
                out[i, h] = 0
            for p in range(indptr[i], indptr[i + 1]):
                q = places[p] if places.shape[0] > 0 else p
                for h in range(x.shape[1]):
                    out[i, h] += x[q, h]


def dots(const index[::1] indptr, const index[::1] indices, const floating[:, :, ::1] left,
         const floating[:, :, ::1] right, Py_ssize_t start, Py_ssize_t stop, floating[:, ::1] out):
    """Write left_i . right_j, each head by itself."""
    cdef Py_ssize_t i, p, v, h, c
    cdef floating s
    with nogil:
        for i in range(start, stop):
            for p in range(indptr[i], indptr[i + 1]):
                v = indices[p]
                for h in range(left.shape[1]):
                    s = 0
                    for c in range(left.shape[2]):
                        s += left[i, h, c] * right[v, h, c]
                    out[p, h] = s


def combine(const index[::1] indptr, const index[::1] indices, const index[::1] places,
            const floating[:, ::1] weights, const floating[:, :, ::1] x, Py_ssize_t start, Py_ssize_t stop,
            floating[:, :, ::1] out):
    """Write the sum over each row's arcs of weights_p x_j."""
    cdef Py_ssize_t i, p, q, v, h, c
    cdef floating w
    with nogil:
        for i in range(start, stop):
            for h in range(x.shape[1]):
                for c in range(x.shape[2]):
                    out[i, h, c] = 0
            for p in range(indptr[i], indptr[i + 1]):
                q = places[p] if places.shape[0] > 0 else p
                v = indices[p]
                for h in range(x.shape[1]):
                    w = weights[q, h]
                    for c in range(x.shape[2]):
                        out[i, h, c] += w * x[v, h, c]


def softmax(const index[::1] indptr, const floating[:, ::1] x, Py_ssize_t start, Py_ssize_t stop,
            floating[:, ::1] out):
    """Write exp(x) over its sum in the row, each head by itself."""
    cdef Py_ssize_t i, p, h
    cdef floating top, s, one = 1
    with nogil:
        for i in range(start, stop):
            if indptr[i] == indptr[i + 1]:
                continue
            for h in range(x.shape[1]):
                top = x[indptr[i], h]
                for p in range(indptr[i] + 1, indptr[i + 1]):
                    top = x[p, h] if x[p, h] > top else top
                s = 0
                for p in range(indptr[i], indptr[i + 1]):
                    out[p, h] = expo(x[p, h] - top)
                    s += out[p, h]
                s = one / s
                for p in range(indptr[i], indptr[i + 1]):
                    out[p, h] *= s


def softmax_grad(const index[::1] indptr, const floating[:, ::1] y, const floating[:, ::1] grad, Py_ssize_t start,
                 Py_ssize_t stop, floating[:, ::1] out):
    """Write y (g - sum of y g in the row), the gradient through :func:`softmax` from its result y."""
    cdef Py_ssize_t i, p, h
    cdef floating s
    with nogil:
        for i in range(start, stop):
            for h in range(y.shape[1]):
                s = 0
                for p in range(indptr[i], indptr[i + 1]):
                    s += y[p, h] * grad[p, h]
                for p in range(indptr[i], indptr[i + 1]):
                    out[p, h] = y[p, h] * (grad[p, h] - s)


def scores(const index[::1] indptr, const index[::1] indices, const floating[::1] weights,
           const floating[:, :, ::1] left, const floating[:, :, ::1] right, const floating[:, ::1] slant,
           const floating[:, ::1] vector, floating slope, Py_ssize_t start, Py_ssize_t stop, floating[:, ::1] out):
    """Write vector . leaky_relu(left_i + right_j + weights_p slant)."""
    cdef Py_ssize_t i, p, v, h, c
    cdef floating s, t, w, zero = 0
    with nogil:
        for i in range(start, stop):
            for p in range(indptr[i], indptr[i + 1]):
                v = indices[p]
                w = weights[p]
                for h in range(left.shape[1]):
                    s = 0
                    for c in range(left.shape[2]):
                        t = left[i, h, c] + right[v, h, c] + w * slant[h, c]
                        s += vector[h, c] * (t if t > zero else slope * t)
                    out[p, h] = s


def scores_grad(const index[::1] indptr, const index[::1] indices, const index[::1] places,
                const floating[::1] weights, const floating[:, :, ::1] left, const floating[:, :, ::1] right,
                const floating[:, ::1] slant, const floating[:, ::1] vector, floating slope,
                const floating[:, ::1] grad, Py_ssize_t start, Py_ssize_t stop, floating[:, :, ::1] out):
    """Write the gradient through :func:`scores` by ``left``; on the transposed pattern with the sides exchanged, by the
    other side."""
    cdef Py_ssize_t i, p, q, v, h, c
    cdef floating t, w, g, zero = 0, one = 1
    with nogil:
        for i in range(start, stop):
            for h in range(left.shape[1]):
                for c in range(left.shape[2]):
                    out[i, h, c] = 0
            for p in range(indptr[i], indptr[i + 1]):
                q = places[p] if places.shape[0] > 0 else p
                v = indices[p]
                w = weights[q]
                for h in range(left.shape[1]):
                    g = grad[q, h]
                    for c in range(left.shape[2]):
                        t = left[i, h, c] + right[v, h, c] + w * slant[h, c]
                        out[i, h, c] += g * (one if t > zero else slope)
            for h in range(left.shape[1]):
                for c in range(left.shape[2]):
                    out[i, h, c] *= vector[h, c]


def scores_grad_vectors(const index[::1] indptr, const index[::1] indices, const floating[::1] weights,
                        const floating[:, :, ::1] left, const floating[:, :, ::1] right,
                        const floating[:, ::1] slant, floating slope, const floating[:, ::1] grad, Py_ssize_t start,
                        Py_ssize_t stop, floating[:, ::1] by_vector, floating[:, ::1] by_slant):
    """Add to the gradients through :func:`scores` by ``vector``, and by ``slant`` but for the factor ``vector``."""
    cdef Py_ssize_t i, p, v, h, c
    cdef floating t, w, g, zero = 0, one = 1
    with nogil:
        for i in range(start, stop):
            for p in range(indptr[i], indptr[i + 1]):
                v = indices[p]
                w = weights[p]
                for h in range(left.shape[1]):
                    g = grad[p, h]
                    for c in range(left.shape[2]):
                        t = left[i, h, c] + right[v, h, c] + w * slant[h, c]
                        by_vector[h, c] += g * (t if t > zero else slope * t)
                        by_slant[h, c] += g * w * (one if t > zero else slope)
