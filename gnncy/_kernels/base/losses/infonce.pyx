"""InfoNCE: softmax rows and their gradient. Arguments are checked by gnncy.losses.infonce.

A row holds the logits (cosine / tau) of an anchor's candidates; one that is left out is -infinity.
"""
from cython cimport floating
from libc.math cimport INFINITY, log, log1p
from libc.stdint cimport int64_t

from gnncy._kernels._prefetch cimport prefetch_span
from gnncy._kernels._stream cimport stream, stream_end

from .._math cimport expo, root

cdef enum:
    AHEAD = 4  # rows of a table asked for before their turn


cdef inline double row_loss(double shift, double positive, double e, double others) noexcept nogil:
    """log(exp(positive) + exp(shift) others) - positive for e = exp(positive - shift), exact for few others too."""
    if e > 1e-30:
        return log1p(others / e)
    return shift - positive + log(others + e)


cdef inline floating largest(const floating *x, Py_ssize_t k, floating least) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(k):
        least = x[j] if x[j] > least else least
    return least


cdef inline void negatives_row(floating *x, Py_ssize_t k, floating shift, floating positive, floating weight,
                               floating tau, floating prior, floating hardness, double *loss,
                               floating *positive_grad) noexcept nogil:
    """Turn a row of negatives into the gradient of weight * loss by their cosines, in place.

    ``shift`` bounds the row and ``positive``. With a prior (Chuang et al.) or a hardness (Robinson et al.) the sum over
    the negatives is that of :class:`gnncy.losses.InfoNCELoss`, and so is its gradient, through the weights too.
    """
    cdef Py_ssize_t j, count = 0
    cdef floating e = expo(positive - shift), s = 0, h, y, c, top, b = 0, pull, zero = 0, one = 1, least = -1e30
    if prior == zero and hardness == zero:
        for j in range(k):
            y = expo(x[j] - shift)
            x[j] = y
            s += y
        loss[0] = row_loss(shift, positive, e, s)
        c = weight / (tau * (s + e))
        positive_grad[0] = -c * s
        for j in range(k):
            x[j] = x[j] * c
        return
    top = largest(x, k, least)
    for j in range(k):
        if x[j] > least:
            h = expo(hardness * (x[j] - top))
            s += h * expo(x[j] - shift)
            b += h
            count += 1
    if count == 0:
        loss[0] = 0
        positive_grad[0] = 0
        for j in range(k):
            x[j] = 0
        return
    s = s / b  # the weighted mean of the negatives' exponentials
    pull = prior * e
    y = count * (s - pull) / (one - prior)
    h = count * expo(-one / tau - shift)
    if prior > zero and y < h:  # the bound holds: the sum depends on nothing
        y = h
        pull = 0
        b = INFINITY
    loss[0] = row_loss(shift, positive, e, y)
    c = weight / (tau * (y + e))
    positive_grad[0] = -c * (y + count * pull / (one - prior))
    c = c * count / (b * (one - prior))
    for j in range(k):
        if x[j] > least:
            h = expo(hardness * (x[j] - top))
            x[j] = c * h * ((one + hardness) * expo(x[j] - shift) - hardness * s)
        else:
            x[j] = 0


cdef inline void positives_row(floating *x, const unsigned char *is_positive, Py_ssize_t k, floating weight,
                               floating tau, double *loss) noexcept nogil:
    """As :func:`negatives_row` for several positives within the row: the mean over them of -log of their share."""
    cdef Py_ssize_t j, count = 0
    cdef floating shift, y, s = 0, others = 0, share, zero = 0, one = 1, least = -1e30
    cdef double mean = 0
    shift = largest(x, k, least)
    for j in range(k):
        if is_positive[j] and x[j] > least:
            count += 1
            mean += x[j]
        y = expo(x[j] - shift)
        s += y
        others += zero if is_positive[j] else y
    mean = mean / count
    if count == 1:
        loss[0] = row_loss(shift, mean, expo(<floating>mean - shift), others)
    else:
        loss[0] = shift - mean + log(s)
    share = one / count
    for j in range(k):
        y = expo(x[j] - shift) / s
        if is_positive[j] and x[j] > least:
            y = -others / s if count == 1 else y - share
        x[j] = y * weight / tau


def softmax_grad(floating[:, ::1] logits, const floating[::1] positive, const floating[::1] shift,
                 const floating[::1] weight, floating tau, floating prior, floating hardness, double[::1] loss,
                 floating[::1] positive_grad):
    """Turn logits of negatives into the gradient of sum_i weight_i loss_i by their cosines, in place.

    ``positive`` holds each row's positive logit, ``shift`` a bound of the row with it.
    """
    cdef Py_ssize_t i
    with nogil:
        for i in range(logits.shape[0]):
            negatives_row(&logits[i, 0], logits.shape[1], shift[i], positive[i], weight[i], tau, prior, hardness,
                          &loss[i], &positive_grad[i])


def positives_grad(floating[:, ::1] logits, const unsigned char[:, ::1] is_positive, const floating[::1] weight,
                   floating tau, double[::1] loss):
    """Turn logits of candidates, of which each row has at least one positive, into the gradient by their cosines."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(logits.shape[0]):
            positives_row(&logits[i, 0], &is_positive[i, 0], logits.shape[1], weight[i], tau, &loss[i])


def exponentials(floating[:, ::1] logits, floating shift, floating[::1] row_sum, floating[::1] column_sum):
    """Turn logits into exp(logit - shift); write the sums of the rows and of the columns."""
    cdef Py_ssize_t i, j, k = logits.shape[1]
    cdef floating y, s
    with nogil:
        for j in range(k):
            column_sum[j] = 0
        for i in range(logits.shape[0]):
            s = 0
            for j in range(k):
                y = expo(logits[i, j] - shift)
                logits[i, j] = y
                s += y
            for j in range(k):
                column_sum[j] += logits[i, j]
            row_sum[i] = s


def scale_sides(floating[:, ::1] x, const floating[::1] by_row, const floating[::1] by_column):
    """Multiply x_ij by by_row_i + by_column_j."""
    cdef Py_ssize_t i, j
    cdef floating c
    with nogil:
        for i in range(x.shape[0]):
            c = by_row[i]
            for j in range(x.shape[1]):
                x[i, j] *= c + by_column[j]


def per_anchor_grad(const floating[:, ::1] anchors, const floating[:, :, ::1] negatives,
                    const floating[::1] positive, const floating[::1] weight, floating tau, floating prior,
                    floating hardness, const unsigned char[:, ::1] left_out, floating[::1] cosine,
                    floating[::1] logit, floating[::1] scratch, bint past_caches, floating[:, ::1] norm,
                    double[::1] loss, floating[::1] positive_grad, floating[:, ::1] grad_anchors,
                    floating[:, :, ::1] grad_negatives):
    """Loss and gradients of unit ``anchors`` against negatives of their own, which need not be of unit length.

    A negative shorter than 1e-12 has cosine 0 and gradient 0. ``cosine`` and ``logit`` are scratch for one anchor,
    ``scratch`` for a row; ``norm`` receives lengths. ``past_caches`` suits gradients too large for the caches.
    """
    cdef Py_ssize_t i, j, p, n = negatives.shape[0], k = negatives.shape[1], d = negatives.shape[2]
    cdef floating dot, square, inverse, g, gc, zero = 0, one = 1, least = <floating>1e-12, per_tau = one / tau
    cdef floating *row = &scratch[0]
    with nogil:
        for i in range(n):
            for p in range(k):
                dot = 0
                square = 0
                for j in range(d):
                    dot += anchors[i, j] * negatives[i, p, j]
                    square += negatives[i, p, j] * negatives[i, p, j]
                square = root(square)
                norm[i, p] = zero if square < least else square
                dot = zero if square < least else dot / square
                cosine[p] = dot
                logit[p] = -<floating>INFINITY if left_out[i, p] else dot * per_tau
            negatives_row(&logit[0], k, largest(&logit[0], k, positive[i]), positive[i], weight[i], tau, prior,
                          hardness, &loss[i], &positive_grad[i])
            for j in range(d):
                grad_anchors[i, j] = zero
            for p in range(k):
                inverse = one / norm[i, p] if norm[i, p] > zero else zero
                g = logit[p] * inverse
                gc = g * cosine[p] * inverse
                if not past_caches:
                    row = &grad_negatives[i, p, 0]
                for j in range(d):
                    grad_anchors[i, j] += g * negatives[i, p, j]
                    row[j] = g * anchors[i, j] - gc * negatives[i, p, j]
                if past_caches:
                    stream(&grad_negatives[i, p, 0], row, d * sizeof(floating))
        if past_caches:
            stream_end()


def listed_grad(const floating[:, ::1] anchors, const floating[:, ::1] table, const int64_t[:, ::1] listed,
                const unsigned char[::1] is_positive, Py_ssize_t positives, const floating[::1] positive,
                const floating[::1] weight, floating tau, floating prior, floating hardness, double[::1] loss,
                floating[::1] positive_grad, floating[:, ::1] grad_anchors, floating[:, ::1] by_cosine):
    """Loss and gradients of unit ``anchors`` against rows of a unit ``table``, listed for each; -1 is no row.

    The first ``positives`` columns list positives; without any, ``positive`` holds each anchor's positive logit and
    ``positive_grad`` receives its gradient. ``by_cosine`` receives the gradient by the cosines to the rows.
    """
    cdef Py_ssize_t i, j, p, v, n = listed.shape[0], k = listed.shape[1], d = table.shape[1]
    cdef Py_ssize_t size = d * sizeof(floating)
    cdef floating s, zero = 0, one = 1, per_tau = one / tau
    cdef floating *x
    with nogil:
        for i in range(n):
            x = &by_cosine[i, 0]
            for p in range(k):
                if p + AHEAD < k and listed[i, p + AHEAD] >= 0:
                    prefetch_span(&table[listed[i, p + AHEAD], 0], size)
                v = listed[i, p]
                s = 0
                if v >= 0:
                    for j in range(d):
                        s += anchors[i, j] * table[v, j]
                x[p] = -<floating>INFINITY if v < 0 else s * per_tau
            if positives == 0:
                negatives_row(x, k, largest(x, k, positive[i]), positive[i], weight[i], tau, prior, hardness,
                              &loss[i], &positive_grad[i])
            elif positives == 1:
                negatives_row(x + 1, k - 1, largest(x, k, x[0]), x[0], weight[i], tau, prior, hardness, &loss[i], x)
            else:
                positives_row(x, &is_positive[0], k, weight[i], tau, &loss[i])
            for j in range(d):
                grad_anchors[i, j] = zero
            for p in range(k):
                v = listed[i, p]
                if v >= 0:
                    for j in range(d):
                        grad_anchors[i, j] += x[p] * table[v, j]
