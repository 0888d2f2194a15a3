"""InfoNCE: softmax rows and their gradient. Arguments are checked by gnncy.losses.infonce."""
from cython cimport floating
from libc.math cimport log, log1p

from ._math cimport expo, root


cdef inline double row_loss(double shift, double positive, double e, double others) noexcept nogil:
    """log(exp(positive) + exp(shift) others) - positive, exact also where the positive is nearly all."""
    if positive >= shift:
        return log1p(others / e)
    return shift - positive + log(others + e)


def softmax_grad(floating[:, ::1] logits, const floating[::1] positive, const floating[::1] shift,
                 const floating[::1] weight, floating tau, double[::1] loss, floating[::1] positive_grad):
    """Turn logits of negatives into the gradient of sum_i weight_i loss_i by their cosines, in place.

    ``positive`` holds each row's positive logit, ``shift`` a bound of the row with it that is one of its logits.
    """
    cdef Py_ssize_t i, j, n = logits.shape[0], k = logits.shape[1]
    cdef floating x, e, s, c, m
    with nogil:
        for i in range(n):
            m = shift[i]
            s = 0
            for j in range(k):
                x = expo(logits[i, j] - m)
                logits[i, j] = x
                s += x
            e = expo(positive[i] - m)
            loss[i] = row_loss(m, positive[i], e, s)
            c = weight[i] / (tau * (s + e))
            positive_grad[i] = -c * s
            for j in range(k):
                logits[i, j] = logits[i, j] * c


def per_anchor_grad(const floating[:, ::1] anchors, const floating[:, :, ::1] negatives,
                    const floating[::1] positive, const floating[::1] weight, floating tau, const unsigned char[:, ::1] left_out,
                    floating[:, ::1] cosine, floating[:, ::1] norm, double[::1] loss, floating[::1] positive_grad,
                    floating[:, ::1] grad_anchors, floating[:, :, ::1] grad_negatives):
    """Loss and gradients of unit ``anchors`` against negatives of their own, which need not be of unit length.

    A negative shorter than 1e-12 has cosine 0 and gradient 0. ``cosine`` is scratch, ``norm`` receives lengths.
    """
    cdef Py_ssize_t i, j, p, n = negatives.shape[0], k = negatives.shape[1], d = negatives.shape[2]
    cdef floating dot, square, inverse, e, s, c, m, g, gc
    cdef floating zero = 0, one = 1, least = <floating>1e-12, per_tau = one / tau
    with nogil:
        for i in range(n):
            m = positive[i]
            for p in range(k):
                dot = 0
                square = 0
                for j in range(d):
                    dot += anchors[i, j] * negatives[i, p, j]
                    square += negatives[i, p, j] * negatives[i, p, j]
                square = root(square)
                norm[i, p] = zero if square < least else square
                dot = zero if square < least else dot / square
                cosine[i, p] = dot
                m = dot * per_tau if dot * per_tau > m and not left_out[i, p] else m
            s = 0
            for p in range(k):
                s += zero if left_out[i, p] else expo(cosine[i, p] * per_tau - m)
            e = expo(positive[i] - m)
            loss[i] = row_loss(m, positive[i], e, s)
            c = weight[i] / (tau * (s + e))
            positive_grad[i] = -c * s
            for j in range(d):
                grad_anchors[i, j] = zero
            for p in range(k):
                inverse = one / norm[i, p] if norm[i, p] > zero and not left_out[i, p] else zero
                g = expo(cosine[i, p] * per_tau - m) * c * inverse if inverse > zero else zero
                gc = g * cosine[i, p] * inverse
                for j in range(d):
                    grad_anchors[i, j] += g * negatives[i, p, j]
                for j in range(d):
                    grad_negatives[i, p, j] = g * anchors[i, j] - gc * negatives[i, p, j]
