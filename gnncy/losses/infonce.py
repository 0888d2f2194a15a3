"""InfoNCE with cosine similarity: in-batch, shared or per-anchor negatives; loss and analytic gradients."""
import functools
from typing import NamedTuple

import numpy as np

from gnncy._check import check_array, check_choice, check_finite, check_float
from gnncy._kernels import infonce, rows
from gnncy._linalg import matmul
from gnncy._threads import run_pieces
from gnncy.nn import Operation, Tensor

_BLOCK = 512  # anchors whose logits exist at one time; fewer where there are many candidates
_ELEMENTS = 1 << 23
_PIECE = 128  # anchors that one thread takes at a time


class InfoNCEGradients(NamedTuple):
    """Gradients of :func:`info_nce` by its arguments; ``negatives`` is None for in-batch negatives."""

    anchors: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray | None


class InfoNCELoss:
    r"""InfoNCE: the cosine to the positive against those to the negatives, as a softmax.

    .. math:: \ell_i = -\frac{s_{ip}}{\tau} + \log\Big( e^{s_{ip}/\tau} + \sum_k m_{ik}\, e^{s_{ik}/\tau} \Big)

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

    See Also
    --------
    info_nce : the same as a function.

    References
    ----------
    van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018.
    Chen et al., A Simple Framework for Contrastive Learning of Visual Representations (SimCLR), ICML 2020.

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
    """

    def __init__(self, temperature: float = 0.5, reduction: str = "mean", symmetric: bool = False):
        self.temperature = check_float(temperature, "temperature", above=0)
        self.reduction = check_choice(reduction, "reduction", ("mean", "sum", "none"))
        self.symmetric = bool(symmetric)

    def __call__(self, anchors, positives, negatives=None, *, false_negatives=None):
        """See :func:`info_nce`."""
        return info_nce(anchors, positives, negatives, temperature=self.temperature, reduction=self.reduction,
                        symmetric=self.symmetric, false_negatives=false_negatives)

    def __repr__(self) -> str:
        return (f"InfoNCELoss(temperature={self.temperature}, reduction={self.reduction!r}, "
                f"symmetric={self.symmetric})")


def info_nce(anchors, positives, negatives=None, *, temperature: float = 0.5, reduction: str = "mean",
             symmetric: bool = False, false_negatives=None):
    """InfoNCE loss and its gradients; the formula stands at :class:`InfoNCELoss`.

    No matrix of all anchors by all candidates is kept: logits exist for a block of anchors at a time.

    Parameters
    ----------
    anchors, positives : array_like or Tensor of shape (n, d)
        Row i of ``positives`` belongs to row i of ``anchors``. Any length; only directions matter.
    negatives : array_like or Tensor of shape (k, d) or (n, k, d), optional
        Shared by all anchors, or each anchor's own. Default: the positives of the other anchors.
    temperature : float
    reduction : {"mean", "sum", "none"}
        See :class:`InfoNCELoss`.
    symmetric : bool
        In-batch negatives only: the mean of both directions.
    false_negatives : array_like of bool, optional
        Of shape (n, n) for in-batch negatives, (n, k) for others: True leaves a candidate out for an anchor. The
        diagonal of the in-batch form is ignored: it is the positive.

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
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    if symmetric and negatives is not None:
        raise ValueError("symmetric=True needs in-batch negatives: leave negatives out")
    inputs = (anchors, positives) if negatives is None else (anchors, positives, negatives)
    if any(isinstance(x, Tensor) for x in inputs):
        return _InfoNCE.apply(*inputs, temperature=temperature, reduction=reduction, symmetric=symmetric,
                              false_negatives=false_negatives)
    problem = _Problem(*inputs, temperature=temperature, symmetric=symmetric, false_negatives=false_negatives)
    losses, grads = problem.solve(problem.weights(reduction))
    return _reduced(losses, reduction), InfoNCEGradients(*grads, *(() if len(grads) == 3 else (None,)))


def _reduced(losses: np.ndarray, reduction: str):
    return losses if reduction == "none" else float(losses.mean() if reduction == "mean" else losses.sum())


class _InfoNCE(Operation):
    """The loss on the tape. Mean and sum keep finished gradients; none must wait for each anchor's weight."""

    def forward(self, *arrays, temperature, reduction, symmetric, false_negatives):
        problem = _Problem(*arrays, temperature=temperature, symmetric=symmetric, false_negatives=false_negatives)
        later = reduction == "none" or not any(self.needs)
        losses, grads = problem.solve(None if later else problem.weights(reduction))
        self.save(problem if later else None, grads)
        return np.asarray(_reduced(losses, reduction))

    def backward(self, grad):
        problem, grads = self.saved
        if problem is not None:
            return problem.solve(grad)[1]
        return tuple(g if grad == 1 else g * g.dtype.type(grad) for g in grads)


class _Problem:
    """Checked arguments with unit rows, and the gradient of any weighted sum of the anchors' losses."""

    def __init__(self, anchors, positives, negatives=None, *, temperature, symmetric, false_negatives):
        self.temperature = temperature
        self.symmetric = symmetric
        anchors = check_array(anchors, "anchors", finite=False)
        positives = check_array(positives, "positives", finite=False)
        arrays = [anchors, positives]
        if positives.shape != anchors.shape:
            raise ValueError(f"positives must have the shape of anchors, {anchors.shape}, got {positives.shape}")
        n, d = anchors.shape
        if negatives is not None:
            negatives = check_array(negatives, "negatives", ndim=3 if np.ndim(negatives) == 3 else 2, finite=False)
            if negatives.shape[-1] != d or negatives.ndim == 3 and len(negatives) != n:
                raise ValueError(f"negatives must have shape (k, {d}) or ({n}, k, {d}) for anchors of shape "
                                 f"{anchors.shape}, got {negatives.shape}")
            arrays.append(negatives)
        self.dtype = np.result_type(*arrays)
        if false_negatives is not None:
            false_negatives = np.asarray(false_negatives)
            shape = (n, n if negatives is None else negatives.shape[-2])
            if false_negatives.dtype != bool or false_negatives.shape != shape:
                raise ValueError(f"false_negatives must be boolean of shape {shape}, got {false_negatives.dtype} of "
                                 f"shape {false_negatives.shape}")
        self.false_negatives = false_negatives
        self.anchors, self.anchor_norms = self._unit(anchors, "anchors")
        self.positives, self.positive_norms = self._unit(positives, "positives")
        self.form = "in_batch" if negatives is None else "shared" if negatives.ndim == 2 else "own"
        if self.form == "shared":
            self.negatives, self.negative_norms = self._unit(negatives, "negatives")
        elif self.form == "own":
            self.negatives = np.asarray(negatives, self.dtype)

    def _unit(self, x, name):
        x = np.asarray(x, self.dtype)
        unit, norms = np.empty_like(x), np.empty(len(x), self.dtype)
        run_pieces(lambda a, b: rows.normalise(x[a:b], unit[a:b], norms[a:b]), len(x), 1024)
        _check_norms(norms, x, name)
        return unit, norms

    def weights(self, reduction) -> np.ndarray:
        n = len(self.anchors)
        return np.full(n, 1 / n if reduction == "mean" else 1)

    def solve(self, weight: np.ndarray | None) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Each anchor's loss, and the gradients of their sum weighted by ``weight`` (none if it is None)."""
        wanted = weight is not None
        weight = np.asarray(weight if wanted else np.zeros(len(self.anchors)), self.dtype)
        left_out = self.false_negatives
        if self.form == "own":
            losses, grads = self._own_negatives(weight)
        elif self.form == "shared":
            losses, grads = self._streamed(self.anchors, self.positives, self.negatives, weight, wanted, left_out)
        else:
            losses, grads = self._streamed(self.anchors, self.positives, None, weight, wanted, left_out)
            if self.symmetric:
                left_out = None if left_out is None else left_out.T
                other, others = self._streamed(self.positives, self.anchors, None, weight, wanted, left_out)
                losses = (losses + other) / 2
                for grad, back in zip(grads, others[::-1], strict=True):
                    grad += back
                    grad /= 2
        if not wanted:
            return losses, ()
        self._through_norms(self.anchors, self.anchor_norms, grads[0])
        self._through_norms(self.positives, self.positive_norms, grads[1])
        if self.form == "shared":
            self._through_norms(self.negatives, self.negative_norms, grads[2])
        return losses, grads

    @staticmethod
    def _through_norms(unit, norms, grad):
        """Turn gradients by unit rows into gradients by the rows that were given, in place."""
        run_pieces(lambda a, b: rows.normalise_grad(unit[a:b], norms[a:b], grad[a:b], grad[a:b]), len(unit), 1024)

    def _streamed(self, anchors, positives, negatives, weight, wanted, left_out):
        """Losses against shared negatives, or (None) the other positives, and gradients by unit rows."""
        in_batch = negatives is None
        candidates = positives if in_batch else negatives
        n, k = len(anchors), len(candidates)
        temperature = self.dtype.type(self.temperature)
        positive = np.einsum("ij,ij->i", anchors, positives) / temperature
        shift, positive_grad = np.empty_like(positive), np.empty_like(positive)
        losses = np.empty(n)
        by_anchors, by_candidates, part = (np.empty_like(x if wanted else x[:0])
                                           for x in (anchors, candidates, candidates))
        block = max(_PIECE, min(_BLOCK, _ELEMENTS // k // _PIECE * _PIECE))
        logits = np.empty((min(block, n), k), self.dtype)

        def softmax(first, start, stop):
            here = logits[start:stop]
            start, stop = first + start, first + stop
            np.matmul(anchors[start:stop] / temperature, candidates.T, out=here)
            own = np.arange(stop - start), np.arange(start, stop)
            if left_out is not None:
                here[left_out[start:stop]] = -np.inf
            if in_batch:
                here[own] = -np.inf  # the positive stands apart
            np.maximum(here.max(axis=1), positive[start:stop], out=shift[start:stop])
            infonce.softmax_grad(here, positive[start:stop], shift[start:stop], weight[start:stop], temperature,
                                 losses[start:stop], positive_grad[start:stop])
            if wanted:
                if in_batch:
                    here[own] = positive_grad[start:stop]
                np.matmul(here, candidates, out=by_anchors[start:stop])

        for first in range(0, n, block):
            last = min(first + block, n)
            run_pieces(functools.partial(softmax, first), last - first, _PIECE)
            if wanted:
                if first == 0:
                    matmul(logits[:last - first].T, anchors[first:last], out=by_candidates)
                else:
                    by_candidates += matmul(logits[:last - first].T, anchors[first:last], out=part)
        if in_batch or not wanted:
            return losses, (by_anchors, by_candidates)
        by_anchors += positive_grad[:, None] * positives
        return losses, (by_anchors, positive_grad[:, None] * anchors, by_candidates)

    def _own_negatives(self, weight):
        """Losses against each anchor's own negatives, gradients by unit anchors and positives and by negatives."""
        n, k, _ = self.negatives.shape
        temperature = self.dtype.type(self.temperature)
        positive = np.einsum("ij,ij->i", self.anchors, self.positives) / temperature
        positive_grad = np.empty_like(positive)
        losses = np.empty(n)
        left_out = np.zeros((n, k), bool) if self.false_negatives is None else self.false_negatives
        left_out = np.ascontiguousarray(left_out).view(np.uint8)
        norms = np.empty((n, k), self.dtype)
        by_anchors, by_negatives = np.empty_like(self.anchors), np.empty_like(self.negatives)

        def piece(a, b):
            infonce.per_anchor_grad(self.anchors[a:b], self.negatives[a:b], positive[a:b], weight[a:b], temperature,
                                    left_out[a:b], np.empty((b - a, k), self.dtype), norms[a:b], losses[a:b],
                                    positive_grad[a:b], by_anchors[a:b], by_negatives[a:b])

        run_pieces(piece, n, 64)
        _check_norms(norms, self.negatives, "negatives")
        by_anchors += positive_grad[:, None] * self.positives
        return losses, (by_anchors, positive_grad[:, None] * self.anchors, by_negatives)


def _check_norms(norms: np.ndarray, x: np.ndarray, name: str) -> None:
    """Refuse non-finite rows. Their lengths, known anyway, show them without another pass over the data."""
    if not np.isfinite(norms).all():
        check_finite(x, name)
        raise ValueError(f"{name} has rows too long for {x.dtype} (a sum of squares overflows); scale them down")
