"""InfoNCE with cosine similarity: in-batch, shared, per-anchor or listed negatives; loss and analytic gradients."""
import functools
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from gnncy._check import check_array, check_choice, check_finite, check_float, check_out
from gnncy._kernels import infonce, rows, spmm
from gnncy._threads import run_pieces
from gnncy.losses.loss import REDUCTIONS, Problem, evaluate
from gnncy.nn import Tensor

_BLOCK = 1024  # anchors whose logits exist at one time, half of them in each thread's hands; a multiple of 256
_ELEMENTS = 1 << 23  # fewer where there would be more logits than these
_KEPT = 1 << 24  # cosines of a symmetric batch that are kept rather than computed twice
_ROWS = 1024
_CACHES = 1 << 24  # bytes of an output that no longer stays in them
_MILD = 0.05  # temperature from which exp((cosine - 1) / temperature) is a normal float32 with room to spare


class InfoNCEGradients(NamedTuple):
    """Gradients of :func:`info_nce` by its arguments; None for what was not given, or given by index."""

    anchors: np.ndarray
    positives: np.ndarray | None = None
    negatives: np.ndarray | None = None
    table: np.ndarray | None = None


class InfoNCELoss:
    r"""InfoNCE: the cosine to the positive against those to the negatives, as a softmax.

    .. math:: \ell_i = -\frac{s_{ip}}{\tau} + \log\big( e^{s_{ip}/\tau} + G_i \big), \qquad
              G_i = \sum_k m_{ik}\, e^{s_{ik}/\tau}

    with the cosines *s*, the temperature τ, and *m* = 0 for a candidate that is left out as a false negative. A row
    shorter than 1e-12 has cosine 0 to all rows and gradient 0.

    Parameters
    ----------
    temperature : float
        τ. 0.4 to 0.9 suit graphs; images take 0.07.
    reduction : {"mean", "sum", "none"}
        Of the anchors' losses. The gradients are those of the same mean or sum, with "none" of the sum.
    symmetric : bool
        In-batch negatives only: the mean of both directions, anchors to positives and positives to anchors.
    prior : float
        Probability, in 0..1 (below 1), that a negative is a false one: the debiased loss. See the notes.
    hardness : float
        How much more negatives count that are near the anchor; 0 for all alike. See the notes.

    See Also
    --------
    info_nce : the same as a function.

    Notes
    -----
    With a ``prior`` :math:`\pi`, a ``hardness`` :math:`\beta` and :math:`M_i = \sum_k m_{ik}` negatives

    .. math:: G_i = \max\Big( \frac{M_i}{1 - \pi} \Big( \sum_k w_{ik}\, e^{s_{ik}/\tau} - \pi\, e^{s_{ip}/\tau} \Big),\;
              M_i\, e^{-1/\tau} \Big), \qquad
              w_{ik} = \frac{m_{ik}\, e^{\beta s_{ik}/\tau}}{\sum_j m_{ij}\, e^{\beta s_{ij}/\tau}}.

    The gradient goes through the weights *w* too, as in Robinson's code; where the bound holds, it is that of a
    constant G.

    With several positives :math:`P_i` the loss is the mean over them of -log of their share of all candidates, the
    positives included ("out" of Khosla et al.):

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{p \in P_i} \frac{s_{ip}}{\tau} +
              \log \sum_{k \in P_i \cup K_i} e^{s_{ik}/\tau}.

    References
    ----------
    van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018.
    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations (SimCLR), ICML 2020.
    Khosla et al., Supervised Contrastive Learning, NeurIPS 2020.
    Chuang et al., Debiased Contrastive Learning, NeurIPS 2020.
    Robinson et al., Contrastive Learning with Hard Negative Samples, ICLR 2021.

    Examples
    --------
    On arrays, loss and gradients come back:

    >>> import numpy as np
    >>> from gnncy import losses, nn
    >>> z = np.eye(4, dtype=np.float32)
    >>> loss, grads = losses.InfoNCELoss(temperature=0.5)(z, z)
    >>> round(loss, 4)
    0.3408
    >>> grads.anchors.shape
    (4, 4)

    On Tensors, a Tensor:

    >>> x = nn.Tensor(z, requires_grad=True)
    >>> losses.InfoNCELoss()(x, x).backward()
    >>> x.grad.shape
    (4, 4)

    Negatives by index into a table, whose gradient comes back with the table's shape:

    >>> loss, grads = losses.InfoNCELoss()(z, z, [[1, 2], [2, 3], [3, 0], [0, 0]], table=z)
    >>> grads.table.shape
    (4, 4)
    """

    def __init__(self, temperature: float = 0.5, reduction: str = "mean", symmetric: bool = False, *,
                 prior: float = 0.0, hardness: float = 0.0):
        self.temperature = check_float(temperature, "temperature", above=0)
        self.reduction = check_choice(reduction, "reduction", REDUCTIONS)
        self.symmetric = bool(symmetric)
        self.prior, self.hardness = _check_weighting(prior, hardness)

    def __call__(self, anchors, positives, negatives=None, *, table=None, false_negatives=None, positive_mask=None,
                 out=None):
        """See :func:`info_nce`."""
        return info_nce(anchors, positives, negatives, table=table, out=out, temperature=self.temperature,
                        reduction=self.reduction, symmetric=self.symmetric, false_negatives=false_negatives,
                        positive_mask=positive_mask, prior=self.prior, hardness=self.hardness)

    def __repr__(self) -> str:
        weighting = f", prior={self.prior}, hardness={self.hardness}" if self.prior or self.hardness else ""
        return (f"InfoNCELoss(temperature={self.temperature}, reduction={self.reduction!r}, "
                f"symmetric={self.symmetric}{weighting})")


def _check_weighting(prior, hardness) -> tuple[float, float]:
    prior = check_float(prior, "prior", 0.0)
    if prior >= 1:
        raise ValueError(f"prior must be below 1, got {prior}")
    return prior, check_float(hardness, "hardness", 0.0)


def info_nce(anchors, positives, negatives=None, *, table=None, temperature: float = 0.5, reduction: str = "mean",
             symmetric: bool = False, false_negatives=None, positive_mask=None, prior: float = 0.0,
             hardness: float = 0.0, out: np.ndarray | None = None):
    """InfoNCE loss and its gradients; the formulas stand at :class:`InfoNCELoss`.

    No matrix of all anchors by all candidates is kept (of a small symmetric batch it is): logits exist for a block of
    anchors at a time.

    Parameters
    ----------
    anchors, positives : array_like or Tensor of shape (n, d)
        Row i of ``positives`` belongs to row i of ``anchors``. Any length; only directions matter. With a ``table``
        positives may be given by index: integers of shape (n,), or (n, m) for several positives of each anchor, with
        -1 where there are fewer.
    negatives : array_like or Tensor of shape (k, d) or (n, k, d), optional
        Shared by all anchors, or each anchor's own. Default: the positives of the other anchors. With a ``table``
        integers of shape (k,) or (n, k), with -1 for no negative.
    table : array_like or Tensor of shape (t, d), optional
        Rows that integers in ``negatives`` and ``positives`` stand for. Its gradient has its shape; a row that is
        named several times receives the sum.
    temperature : float
    reduction : {"mean", "sum", "none"}
        See :class:`InfoNCELoss`.
    symmetric : bool
        In-batch negatives only: the mean of both directions.
    false_negatives : array_like of bool, optional
        Of shape (n, n) for in-batch negatives, (n, k) for others: True leaves a candidate out for an anchor. The
        diagonal of the in-batch form is ignored: it is the positive.
    positive_mask : array_like of bool, shape (n, n), optional
        In-batch negatives only: True where row k of ``positives`` is a positive of anchor i too, for instance for
        equal labels. The diagonal always is.
    prior, hardness : float
        The debiased loss and hard negatives, see :class:`InfoNCELoss`; for one positive of each anchor.
    out : ndarray of shape (n, k, d), optional
        Receives the gradient by negatives of that shape: that of the step before, say. A new array of 64 MB takes as
        long to get from the system as the loss to compute.

    Returns
    -------
    loss : float, or ndarray of shape (n,) for ``reduction="none"``
        Accumulated in float64.
    grads : InfoNCEGradients
        Arrays of the arguments' shapes, float64 if an argument is float64, else float32.

    If an argument is a Tensor, the loss alone comes back, as a Tensor on the tape.

    Raises
    ------
    ValueError
        On empty or non-finite input, shapes that do not agree, or a temperature not above 0.
    IndexError
        If an index is outside the table.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import info_nce
    >>> rng = np.random.default_rng(0)
    >>> a, p = rng.normal(size=(2, 8, 4))
    >>> loss, grads = info_nce(a, p, rng.normal(size=(8, 5, 4)), temperature=0.2)
    >>> grads.negatives.shape
    (8, 5, 4)
    """
    temperature = check_float(temperature, "temperature", above=0)
    prior, hardness = _check_weighting(prior, hardness)
    if negatives is not None and (symmetric or positive_mask is not None):
        name = "symmetric=True" if symmetric else "positive_mask"
        raise ValueError(f"{name} needs in-batch negatives: leave negatives out")
    if out is not None and (np.ndim(negatives) != 3 or any(isinstance(x, Tensor) for x in
                                                           (anchors, positives, negatives))):
        raise ValueError("out needs arrays, and negatives of shape (n, k, d): leave it out")
    if table is not None and negatives is None:
        raise ValueError("a table needs negatives by index into it, of shape (k,) or (n, k)")
    inputs = {"anchors": anchors, "positives": positives, "negatives": negatives, "table": table}
    listed = {}
    if table is not None:
        listed["negatives"] = inputs.pop("negatives")
        if not isinstance(positives, Tensor) and np.asarray(positives).dtype.kind in "iu":
            listed["positives"] = inputs.pop("positives")
    inputs = {name: value for name, value in inputs.items() if value is not None}
    result = evaluate(_InfoNCE, *inputs.values(), reduction=reduction, names=tuple(inputs), listed=listed,
                   temperature=temperature, symmetric=symmetric, false_negatives=false_negatives,
                   positive_mask=positive_mask, prior=prior, hardness=hardness, out=out)
    if not isinstance(result, tuple):
        return result
    return result[0], InfoNCEGradients(**dict(zip(inputs, result[1], strict=True)))


class _Side:
    """Rows as given, of unit length, and back: a gradient by unit rows becomes one by the rows."""

    def __init__(self, x, name: str, dtype, used=None):
        self.shape, self.used = x.shape, used
        x = np.asarray(x if used is None else x[used], dtype)
        self.unit, self.norms = np.empty_like(x), np.empty(len(x), dtype)
        run_pieces(lambda a, b: rows.normalise(x[a:b], self.unit[a:b], self.norms[a:b]), len(x), _ROWS)
        _check_norms(self.norms, x, name)

    def through_norms(self, grad):
        """By the rows that were given, in place unless only some were used."""
        run_pieces(lambda a, b: rows.normalise_grad(self.unit[a:b], self.norms[a:b], grad[a:b], grad[a:b]), len(grad),
                   _ROWS)
        if self.used is None:
            return grad
        whole = np.zeros(self.shape, grad.dtype)
        whole[self.used] = grad
        return whole


def _check_norms(norms: np.ndarray, x: np.ndarray, name: str) -> None:
    """Refuse non-finite rows. Their lengths, known anyway, show them without another pass over the data."""
    if not np.isfinite(norms).all():
        check_finite(x, name)
        raise ValueError(f"{name} has rows too long for {x.dtype} (a sum of squares overflows); scale them down")


class _InfoNCE(Problem):
    """Checked arguments with unit rows, and the gradient of any weighted sum of the anchors' losses."""

    def __init__(self, *arrays, names, listed, temperature, symmetric, false_negatives, positive_mask, prior, hardness,
                 out):
        given = {}
        for name, array in zip(names, arrays, strict=True):
            ndim = 3 if name == "negatives" and np.ndim(array) == 3 else 2
            given[name] = check_array(array, name, ndim=ndim, finite=False)
        self.dtype = np.result_type(*given.values())
        anchors = given["anchors"]
        self.count, d = n, d = anchors.shape
        self.symmetric, self.hardness, self.prior = symmetric, self.dtype.type(hardness), self.dtype.type(prior)
        self.temperature = self.dtype.type(temperature)
        if "positives" in given and given["positives"].shape != anchors.shape:
            raise ValueError(f"positives must have the shape of anchors, {anchors.shape}, got "
                             f"{given['positives'].shape}")
        negatives = given.get("negatives")
        if negatives is not None and (negatives.shape[-1] != d or negatives.ndim == 3 and len(negatives) != n):
            raise ValueError(f"negatives must have shape (k, {d}) or ({n}, k, {d}) for anchors of shape "
                             f"{anchors.shape}, got {negatives.shape}")
        if "table" in given:
            used = self._lists(given["table"], n, d, listed)
            candidates = self.negative_ids.shape[-1]
        else:
            used = None
            candidates = n if negatives is None else negatives.shape[-2]
        self.false_negatives = _mask(false_negatives, "false_negatives", (n, candidates))
        self.positive_mask = _mask(positive_mask, "positive_mask", (n, n))
        if self.positive_mask is not None:
            self.positive_mask = self.positive_mask | np.eye(n, dtype=bool)
        several = self.positive_mask is not None or "table" in given and self.positive_ids.shape[1] > 1
        if several and (prior or hardness):
            raise ValueError("prior and hardness are defined for one positive of each anchor, but several are given")
        self.form = ("in_batch" if negatives is None else "shared" if negatives.ndim == 2 else "own") \
            if used is None else "listed"
        self.names = names
        self.sides = {name: _Side(array, name, self.dtype, used if name == "table" else None)
                      for name, array in given.items() if name != "negatives" or self.form == "shared"}
        if self.form == "own":
            self.negatives = np.asarray(negatives, self.dtype)
            self.out = check_out(out, self.negatives.shape, self.dtype, self.negatives)

    def _lists(self, table, n, d, listed):
        """Check what names rows of the table; number the rows that are named, and return them."""
        if table.shape[1] != d:
            raise ValueError(f"table must have {d} columns like the anchors, got shape {table.shape}")
        ids = {}
        for name, value in listed.items():
            array = np.asarray(value)
            if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or not array.size:
                raise ValueError(f"{name} must be integers that name rows of the table, of shape "
                                 f"{'(k,) or (n, k)' if name == 'negatives' else '(n,) or (n, m)'}, got {array.dtype} "
                                 f"of shape {array.shape}")
            if array.min() < -1 or array.max() >= len(table):
                raise IndexError(f"{name} must lie in 0..{len(table) - 1}, or be -1 for none, got "
                                 f"{array.min() if array.min() < -1 else array.max()}")
            if array.ndim == 1:
                array = array[:, None] if name == "positives" else np.broadcast_to(array, (n, len(array)))
            if len(array) != n:
                raise ValueError(f"{name} must have a row for each of the {n} anchors, got {len(array)}")
            ids[name] = np.array(array, np.int64, order="C")
        positives = ids.get("positives", np.empty((n, 0), np.int64))
        if positives.shape[1] and (positives.max(axis=1) < 0).any():
            raise ValueError(f"anchor {int((positives.max(axis=1) < 0).argmax())} has no positive: each needs one")
        named = np.zeros(len(table) + 1, bool)
        named[positives] = named[ids["negatives"]] = True
        named[0] |= not named[:-1].any()  # where nothing is named, one row stands in
        used = np.flatnonzero(named[:-1])
        number = np.full(len(table) + 1, -1)
        number[used] = np.arange(len(used))
        self.positive_ids, self.negative_ids = number[positives], number[ids["negatives"]]
        return used

    def solve(self, weight):
        wanted = weight is not None
        weights = np.empty(self.count, self.dtype)
        weights[:] = weight if wanted else 0
        grads = dict.fromkeys(self.names)
        if self.form == "own":
            losses, grads["anchors"], grads["positives"], grads["negatives"] = self._own_negatives(weights)
        elif self.form == "listed":
            losses, by_side = self._listed(weights)
            grads.update(by_side)
        elif self.form == "shared":
            losses, grads["anchors"], grads["negatives"], positive_grad = self._streamed(
                "anchors", "positives", "negatives", weights, wanted, self.false_negatives, None)
            if wanted:
                grads["anchors"] += positive_grad[:, None] * self.sides["positives"].unit
                grads["positives"] = positive_grad[:, None] * self.sides["anchors"].unit
        else:
            losses, grads["anchors"], grads["positives"] = self._in_batch(weights, wanted)
        if not wanted:
            return losses, ()
        for name, side in self.sides.items():
            grads[name] = side.through_norms(grads[name])
        return losses, tuple(grads.values())

    def _in_batch(self, weights, wanted):
        masks = self.false_negatives, self.positive_mask
        plain = masks[1] is None and not (self.prior or self.hardness)
        if not self.symmetric:
            return self._streamed("anchors", "positives", None, weights, wanted, *masks)[:3]
        if plain and self.temperature >= _MILD:
            return self._both_ways(weights, wanted)
        losses, *grads = self._streamed("anchors", "positives", None, weights, wanted, *masks)[:3]
        flipped = (None if mask is None else mask.T for mask in masks)
        other, *others = self._streamed("positives", "anchors", None, weights, wanted, *flipped)[:3]
        for grad, back in zip(grads, others[::-1], strict=True):
            grad += back
            grad /= 2
        return (losses + other) / 2, *grads

    @staticmethod
    def _block(candidates: int) -> int:
        return max(256, min(_BLOCK, _ELEMENTS // candidates // 256 * 256))

    def _shift(self, logits, positive):
        """A bound of each row and its positive that keeps exponentials in range: a constant where cosines allow it."""
        if self.temperature >= _MILD:
            return np.full(len(positive), 1 / self.temperature, self.dtype)
        return np.maximum(logits.max(axis=1), positive)

    def _streamed(self, anchors, positives, negatives, weights, wanted, left_out, positive_mask):
        """Losses against shared negatives, or (None) the other positives.

        With gradients by unit anchors and candidates, and by the cosines to the positives.
        """
        in_batch = negatives is None
        anchors, positives = self.sides[anchors].unit, self.sides[positives].unit
        candidates = positives if in_batch else self.sides[negatives].unit
        n, k = len(anchors), len(candidates)
        positive = _dots(anchors, positives) / self.temperature
        positive_grad = np.empty_like(positive)
        losses = np.empty(n)
        by_anchors, by_candidates = (np.empty_like(x if wanted else x[:0]) for x in (anchors, candidates))
        block = self._block(k)
        logits = np.empty((min(block, n), k), self.dtype)

        def softmax(first, start, stop):
            here = logits[start:stop]
            start, stop = first + start, first + stop
            np.matmul(anchors[start:stop] / self.temperature, candidates.T, out=here)
            own = np.arange(stop - start), np.arange(start, stop)
            if positive_mask is not None:
                chosen = np.ascontiguousarray(positive_mask[start:stop])
                if left_out is not None:
                    here[left_out[start:stop] & ~chosen] = -np.inf
                infonce.positives_grad(here, chosen.view(np.uint8), weights[start:stop], self.temperature,
                                       losses[start:stop])
            else:
                if left_out is not None:
                    here[left_out[start:stop]] = -np.inf
                if in_batch:
                    here[own] = -np.inf  # the positive stands apart
                infonce.softmax_grad(here, positive[start:stop], self._shift(here, positive[start:stop]),
                                     weights[start:stop], self.temperature, self.prior, self.hardness,
                                     losses[start:stop], positive_grad[start:stop])
                if in_batch:
                    here[own] = positive_grad[start:stop]
            if wanted:
                np.matmul(here, candidates, out=by_anchors[start:stop])

        for first in range(0, n, block):
            last = min(first + block, n)
            run_pieces(functools.partial(softmax, first), last - first, block // 2)
            if wanted:
                _add_product(logits[:last - first], anchors[first:last], by_candidates, first == 0)
        return losses, by_anchors, by_candidates, positive_grad

    def _both_ways(self, weights, wanted):
        """Both directions of a batch from the same exponentials; those of a large batch are computed twice."""
        anchors, positives = self.sides["anchors"].unit, self.sides["positives"].unit
        n = len(anchors)
        shift = 1 / self.temperature
        e = np.exp(_dots(anchors, positives) * shift - shift)
        kept, block = n * n <= _KEPT, self._block(n)
        piece, block = block // 2, n if kept else block
        logits = np.empty((block, n), self.dtype)
        sums = np.empty((2, n), self.dtype)
        parts = np.empty((-(-block // piece), n), self.dtype)

        def exponentials(first, start, stop):
            here, part = logits[start:stop], parts[start // piece]
            start, stop = first + start, first + stop
            np.matmul(anchors[start:stop] * shift, positives.T, out=here)
            if self.false_negatives is not None:
                here[self.false_negatives[start:stop]] = -np.inf
            here[np.arange(stop - start), np.arange(start, stop)] = -np.inf
            infonce.exponentials(here, shift, sums[0, start:stop], part)

        by_column = np.zeros(n)
        for first in range(0, n, block):
            last = min(first + block, n)
            run_pieces(functools.partial(exponentials, first), last - first, piece)
            for part in parts[:-(-(last - first) // piece)]:
                by_column += part
        sums[1] = by_column
        losses = np.log1p(sums.astype(np.float64) / e).sum(axis=0) / 2
        if not wanted:
            return losses, None, None
        scale = weights / (2 * self.temperature * (sums + e))
        own = -(scale * sums).sum(axis=0)
        by_anchors, by_positives = np.empty_like(anchors), np.empty_like(positives)

        def gradient(first, start, stop):
            if not kept:
                exponentials(first, start, stop)
            here = logits[start:stop]
            start, stop = first + start, first + stop
            infonce.scale_sides(here, scale[0, start:stop], scale[1])
            here[np.arange(stop - start), np.arange(start, stop)] = own[start:stop]
            np.matmul(here, positives, out=by_anchors[start:stop])

        for first in range(0, n, block):
            last = min(first + block, n)
            run_pieces(functools.partial(gradient, first), last - first, piece)
            _add_product(logits[:last - first], anchors[first:last], by_positives, first == 0)
        return losses, by_anchors, by_positives

    def _own_negatives(self, weights):
        """Losses against each anchor's own negatives, gradients by unit anchors and positives and by negatives."""
        n, k, d = self.negatives.shape
        anchors, positives = self.sides["anchors"].unit, self.sides["positives"].unit
        positive = _dots(anchors, positives) / self.temperature
        positive_grad = np.empty_like(positive)
        losses = np.empty(n)
        left_out = np.zeros((n, k), bool) if self.false_negatives is None else self.false_negatives
        left_out = np.ascontiguousarray(left_out).view(np.uint8)
        norms = np.empty((n, k), self.dtype)
        by_anchors, by_negatives = np.empty_like(anchors), self.out
        past_caches = by_negatives.nbytes > _CACHES

        def piece(a, b):
            cosine, logit = np.empty((2, k), self.dtype)
            infonce.per_anchor_grad(anchors[a:b], self.negatives[a:b], positive[a:b], weights[a:b], self.temperature,
                                    self.prior, self.hardness, left_out[a:b], cosine, logit, np.empty(d, self.dtype),
                                    past_caches, norms[a:b], losses[a:b], positive_grad[a:b], by_anchors[a:b],
                                    by_negatives[a:b])

        run_pieces(piece, n, 64)
        _check_norms(norms, self.negatives, "negatives")
        by_anchors += positive_grad[:, None] * positives
        return losses, by_anchors, positive_grad[:, None] * anchors, by_negatives

    def _listed(self, weights):
        """Losses against listed rows of the table, gradients by unit rows of each side."""
        anchors, table = self.sides["anchors"].unit, self.sides["table"].unit
        n, m = self.positive_ids.shape
        negatives = self.negative_ids
        if self.false_negatives is not None:
            negatives = np.where(self.false_negatives, -1, negatives)
        chosen = np.concatenate([self.positive_ids, negatives], axis=1)
        is_positive = (np.arange(chosen.shape[1]) < m).astype(np.uint8)
        positive = np.zeros(n, self.dtype)
        if m == 0:
            positive = _dots(anchors, self.sides["positives"].unit) / self.temperature
        positive_grad, losses = np.empty(n, self.dtype), np.empty(n)
        by_anchors, by_cosine = np.empty_like(anchors), np.empty(chosen.shape, self.dtype)

        def piece(a, b):
            infonce.listed_grad(anchors[a:b], table, chosen[a:b], is_positive, m, positive[a:b], weights[a:b],
                                self.temperature, self.prior, self.hardness, losses[a:b], positive_grad[a:b],
                                by_anchors[a:b], by_cosine[a:b])

        run_pieces(piece, n, 64)
        # Each row of the table sums its own gradient, over the places that name it in their order.
        indptr = np.arange(0, chosen.size + 1, chosen.shape[1])
        back = sp.csr_array((by_cosine.ravel(), np.maximum(chosen, 0).ravel(), indptr), (n, len(table))).tocsc()
        by_table, ones = np.empty_like(table), np.ones(len(table), self.dtype)
        run_pieces(lambda a, b: spmm.weighted_sum(back.indptr, back.indices, back.data, anchors, ones, a, b, by_table),
                   len(table), _ROWS)
        grads = {"anchors": by_anchors, "table": by_table}
        if m == 0:
            by_anchors += positive_grad[:, None] * self.sides["positives"].unit
            grads["positives"] = positive_grad[:, None] * anchors
        return losses, grads


def _mask(mask, name: str, shape: tuple[int, int]) -> np.ndarray | None:
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != shape:
        raise ValueError(f"{name} must be boolean of shape {shape}, got {mask.dtype} of shape {mask.shape}")
    return mask


def _dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


def _add_product(logits, anchors, out, first: bool) -> None:
    """Add ``logits.T @ anchors`` to ``out``, or write it if it is the first."""
    def piece(a, b):
        if first:
            np.matmul(logits[:, a:b].T, anchors, out=out[a:b])
        else:
            out[a:b] += logits[:, a:b].T @ anchors

    run_pieces(piece, len(out), _ROWS)
