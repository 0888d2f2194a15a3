"""How good an embedding is: linear probe, scores, signs of collapse."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from gnncy._check import check_array, check_choice, check_finite, check_float, check_ids, check_int
from gnncy._linalg import matmul
from gnncy._random import seed_from, stream
from gnncy._threads import working_threads

__all__ = ["EmbeddingHealth", "ProbeResult", "Scores", "accuracy", "embedding_health", "linear_probe", "macro_f1",
           "majority_baseline"]

_ROWS = 8192  # rows of the embedding in memory at a time


class Scores(NamedTuple):
    """Accuracy and macro-averaged F1, both 0 to 1."""

    accuracy: float
    macro_f1: float


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What :func:`linear_probe` found: scores on the test nodes, the chosen ``C`` and its validation accuracy."""

    accuracy: float
    macro_f1: float
    C: float
    val_accuracy: float
    n_classes: int
    predictions: np.ndarray = field(repr=False)


class EmbeddingHealth(NamedTuple):
    """Signs of collapse; see :func:`embedding_health`."""

    effective_rank: float
    uniformity: float
    dead_columns: float


def accuracy(true, predicted) -> float:
    """Share of equal labels.

    Parameters
    ----------
    true, predicted : array_like of shape (n,), int or str

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        If there are no labels, or not as many in one as in the other.
    TypeError
        If they are neither integers nor strings.

    Examples
    --------
    >>> from gnncy.evaluate import accuracy
    >>> accuracy([0, 1, 1, 2], [0, 1, 2, 2])
    0.75
    """
    true, predicted = _labels_pair(true, predicted)
    return float(np.mean(true == predicted))


def macro_f1(true, predicted) -> float:
    """Mean of the classes' F1 = 2 TP / (2 TP + FP + FN), over the classes that occur in either argument.

    Parameters
    ----------
    true, predicted : array_like of shape (n,), int or str

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError, TypeError
        As in :func:`accuracy`.

    Examples
    --------
    >>> from gnncy.evaluate import macro_f1
    >>> round(macro_f1([0, 1, 1, 2], [0, 1, 2, 2]), 4)
    0.7778
    """
    true, predicted = _labels_pair(true, predicted)
    classes, codes = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    true, predicted = codes[:len(true)], codes[len(true):]
    count = np.bincount(true, minlength=len(classes)) + np.bincount(predicted, minlength=len(classes))
    hits = np.bincount(true[true == predicted], minlength=len(classes))
    return float(np.mean(2 * hits / count))


def _labels_pair(true, predicted):
    true, predicted = _labels(true, "true"), _labels(predicted, "predicted")
    if true.shape != predicted.shape:
        raise ValueError(f"true and predicted must have the same length, got {len(true)} and {len(predicted)}")
    if not true.size:
        raise ValueError("true is empty")
    return true, predicted


def _labels(labels, name="labels"):
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"{name} must be 1-dimensional, got shape {labels.shape}")
    if labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubUS":
        raise TypeError(f"{name} must be integers or strings, got dtype {labels.dtype}")
    return labels


def _parts(split, labels, seed):
    """Training, validation and test ids."""
    n = len(labels)
    known = np.flatnonzero(labels >= 0) if labels.dtype.kind in "iu" else np.arange(n)
    if split is None:
        order = known[stream(seed, "probe split").permutation(len(known))]
        return tuple(np.sort(part) for part in np.split(order, [len(known) // 10, len(known) // 5]))
    if isinstance(split, Mapping):
        missing = {"train", "val", "test"} - set(split)
        if missing:
            raise ValueError(f"split lacks {', '.join(sorted(missing))}; its keys must be train, val and test")
        split = split["train"], split["val"], split["test"]
    elif all(hasattr(split, name) for name in ("train", "val", "test")):
        split = split.train, split.val, split.test
    elif not isinstance(split, Sequence) or len(split) != 3:
        raise TypeError("split must be None, three arrays of ids (train, val, test), a dict of them or an object with "
                        f"such attributes, got {type(split).__name__}")
    parts = tuple(check_ids(ids, n, f"split {name}") for ids, name in zip(split, ("train", "val", "test"), strict=True))
    use = np.bincount(np.concatenate(parts), minlength=n)
    if use.max(initial=0) > 1:
        raise ValueError(f"split: node {int(use.argmax())} occurs {int(use.max())} times; training, validation and "
                         "test ids must be distinct")
    if len(known) < n:
        bad = np.setdiff1d(np.concatenate(parts), known)
        if bad.size:
            raise ValueError(f"split: {bad.size} of its nodes have no label (-1), first {int(bad[0])}; leave them out")
    return parts


def _source(embedding, n):
    """The embedding as something with rows to take by an array of ids."""
    if sparse.issparse(embedding):
        embedding = sparse.csr_array(embedding)
    elif not hasattr(embedding, "shape"):
        embedding = np.asarray(embedding)
    if len(embedding.shape) != 2:
        raise ValueError(f"embedding must be 2-dimensional, got shape {tuple(embedding.shape)}")
    if n is not None and embedding.shape[0] != n:
        raise ValueError(f"embedding has {embedding.shape[0]} rows, labels {n}; one row a label is needed")
    return embedding


def _rows(embedding, ids, normalize):
    """Rows of the embedding in float64, dense or CSR, of unit length if wanted (zero rows stay zero)."""
    # A copy either way, as ids is an array.
    rows = embedding.read_batch(ids) if hasattr(embedding, "read_batch") else embedding[ids]
    if sparse.issparse(rows):
        rows = sparse.csr_array(rows, dtype=np.float64)
        check_finite(rows.data, "embedding")
        if normalize == "l2":
            row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
            norm = np.sqrt(np.bincount(row, rows.data**2, rows.shape[0]))
            rows.data /= np.where(norm > 0, norm, 1)[row]
        return rows
    rows = check_array(rows, "embedding", dtype=np.float64)
    if normalize == "l2":
        norm = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        rows /= np.where(norm > 0, norm, 1)[:, None]
    return rows


def _scores(rows, parameters):
    scores = rows @ parameters[:-1] if sparse.issparse(rows) else matmul(rows, parameters[:-1])
    scores += parameters[-1]
    return scores


class _Logistic:
    """C sum_i -log softmax(x_i W + b)[y_i] + |W|^2 / 2, minimised by Newton's method.

    ``parameters`` is one matrix, W (d, k) above b (1, k). Newton's equation is solved by conjugate gradients with
    the Hessian's diagonal as preconditioner, so that a handful of matrices of that size is all that is held.
    """

    def __init__(self, rows, labels, n_classes):
        self.rows, self.transposed = rows, rows.T.tocsr() if sparse.issparse(rows) else rows.T
        self.at = np.arange(len(labels)), labels
        self.parameters = np.zeros((rows.shape[1] + 1, n_classes))
        # The best constant guess is the logarithm of the classes' shares.
        self.parameters[-1] = np.log(np.bincount(labels, minlength=n_classes) / len(labels))
        self._forward(1.0)
        self.first = np.linalg.norm(self._gradient(1.0))  # at W = 0 the gradient is in proportion to C

    def fit(self, C, max_iter, tolerance=1e-3):
        """Go on from the parameters as they are until the gradient is ``tolerance`` of that at the first ones."""
        w = self.parameters
        value = self._forward(C)
        for _ in range(max_iter):
            gradient = self._gradient(C)
            norm = np.linalg.norm(gradient) / (C * self.first) if self.first else 0.0
            if norm <= tolerance:
                break
            step = self._newton_step(gradient, C, min(0.5, norm**0.5))
            slope, length = np.vdot(gradient, step), 1.0
            w += step
            while (new := self._forward(C)) > value + 1e-4 * length * slope and length > 1e-6:
                length /= 2
                w -= length * step
            value = new

    def _forward(self, C):
        """The objective; leaves the probabilities of the classes."""
        w = self.parameters
        scores = _scores(self.rows, w)
        scores -= scores.max(axis=1, keepdims=True)
        picked = scores[self.at].sum()
        np.exp(scores, out=scores)
        total = scores.sum(axis=1, keepdims=True)
        scores /= total
        self.probability = scores
        return C * (np.log(total).sum() - picked) + 0.5 * np.vdot(w[:-1], w[:-1])

    def _gradient(self, C):
        residual = self.probability.copy()
        residual[self.at] -= 1
        return self._back(residual, self.parameters, C, np.empty_like(self.parameters))

    def _hessian_product(self, v, C, out):
        z = _scores(self.rows, v)
        z -= np.einsum("ij,ij->i", z, self.probability)[:, None]
        z *= self.probability
        return self._back(z, v, C, out)

    def _back(self, residual, w, C, out):
        """C X^T R + W above the column sums of C R."""
        residual *= C
        if sparse.issparse(self.transposed):
            out[:-1] = self.transposed @ residual
        else:
            matmul(self.transposed, residual, out=out[:-1])
        out[:-1] += w[:-1]
        residual.sum(axis=0, out=out[-1])
        return out

    def _diagonal(self, C):
        variance = self.probability * (1 - self.probability)
        variance *= C
        out = np.empty_like(self.parameters)
        if sparse.issparse(self.transposed):
            out[:-1] = self.transposed.power(2) @ variance
        else:
            for j in range(0, len(out) - 1, 64):
                matmul(self.transposed[j:j + 64] ** 2, variance, out=out[j:min(j + 64, len(out) - 1)])
        out[:-1] += 1
        out[-1] = np.maximum(variance.sum(axis=0), 1e-12)
        return out

    def _newton_step(self, gradient, C, reduction):
        """Conjugate gradients until the residual is ``reduction`` of the gradient."""
        diagonal = self._diagonal(C)
        goal = reduction * np.linalg.norm(gradient)
        step, product, residual = np.zeros_like(gradient), np.empty_like(gradient), -gradient
        direction = residual / diagonal
        size = np.vdot(residual, direction)
        for _ in range(200):
            self._hessian_product(direction, C, product)
            length = size / np.vdot(direction, product)
            step += length * direction
            product *= length
            residual -= product
            if np.linalg.norm(residual) <= goal:
                break
            np.divide(residual, diagonal, out=product)
            before, size = size, np.vdot(residual, product)
            direction *= size / before
            direction += product
        return step


def linear_probe(embedding, labels, split=None, *, C=(1, 10, 100, 1000), normalize: str | None = "l2",
                 max_iter: int = 100, random_state=0, n_jobs: int | None = None) -> ProbeResult:
    r"""Accuracy of logistic regression on frozen embeddings, the usual measure of unsupervised ones.

    Minimises, over the training nodes,

    .. math:: C \sum_i -\log \operatorname{softmax}(x_i W + b)_{y_i} + \tfrac12 \|W\|^2

    for the values of ``C`` in ascending order, each starting from the last solution, until the accuracy on the
    validation nodes falls. The model with the best of them is scored on the test nodes.

    Parameters
    ----------
    embedding : array, sparse matrix or feature store of shape (n, d)
        Anything with ``shape`` and rows taken by an array of ids: ndarray, memory map, scipy sparse,
        :class:`~gnncy.storage.FeatureStorage`. Rows of training and validation nodes are held in memory as float64, of
        test nodes some thousand at a time.
    labels : array of shape (n,), int or str
        -1 marks nodes without a label.
    split : optional
        Ids or boolean masks of training, validation and test nodes: three arrays, a dict with the keys ``train``,
        ``val``, ``test`` or an object with such attributes. By default 10, 10 and 80 % of the labelled nodes at
        random.
    C : float or sequence of float
        Inverse strength of the regularisation.
    normalize : "l2" or None
        Scale rows to unit length first.
    max_iter : int
        Newton steps for each ``C``.
    random_state : int, None or numpy Generator
        Draws the split where none is given.
    n_jobs : int or None
        Threads. The result does not depend on them.

    Returns
    -------
    ProbeResult
        ``accuracy``, ``macro_f1``, ``C``, ``val_accuracy``, ``n_classes``, and ``predictions`` of the test nodes, in
        their order.

    Raises
    ------
    ValueError
        Shapes do not agree, rows are not finite, parts of the split overlap or lack labels, or the training
        nodes are all of one class.

    See Also
    --------
    majority_baseline : what a guess without any embedding reaches.

    Notes
    -----
    The minimum is that of scikit-learn's ``LogisticRegression(C=C)``, found by a Newton method that needs some ten
    matrices of d by the number of classes. Published figures are comparable only under one protocol: the same split,
    classifier, normalisation and choice of ``C``. Look at macro-F1 where classes are unequal.

    References
    ----------
    P. Velickovic et al., "Deep Graph Infomax", ICLR 2019.

    C.-J. Lin, R. C. Weng, S. S. Keerthi, "Trust region Newton method for large-scale logistic regression", JMLR 9,
    2008.

    Examples
    --------
    >>> from gnncy.datasets import make_sbm
    >>> from gnncy.evaluate import linear_probe, majority_baseline
    >>> data = make_sbm(2000, 4, n_features=32, feature_noise=2.0)
    >>> linear_probe(data.features, data.labels, data.split).accuracy > 0.8
    True
    >>> majority_baseline(data.labels, data.split).accuracy < 0.3
    True
    """
    labels = _labels(labels)
    embedding = _source(embedding, len(labels))
    strengths = sorted(check_float(value, "C", above=0) for value in np.atleast_1d(C))
    if not strengths:
        raise ValueError("C is empty; give one value or several")
    max_iter = check_int(max_iter, "max_iter", 1)
    if normalize is not None:
        check_choice(normalize, "normalize", ("l2",))
    train, val, test = _parts(split, labels, seed_from(random_state))
    for name, part in ("training", train), ("validation", val), ("test", test):
        if not part.size:
            raise ValueError(f"there are no {name} nodes; each part of the split needs at least one")
    classes, codes = np.unique(labels[train], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"all {len(train)} training nodes have label {classes[0]!r}; two classes are needed")

    with working_threads(n_jobs):
        rows, val_rows = _rows(embedding, train, normalize), _rows(embedding, val, normalize)
        used: Any = slice(None)
        if sparse.issparse(rows):  # columns without a training entry have weight 0
            used = np.flatnonzero(np.bincount(rows.indices, minlength=rows.shape[1]))
            rows, val_rows = rows[:, used], val_rows[:, used]
        model = _Logistic(rows, codes, len(classes))
        best, val_accuracy, chosen = np.empty(0), -1.0, 0.0
        for strength in strengths:
            model.fit(strength, max_iter)
            score = float(np.mean(classes[_scores(val_rows, model.parameters).argmax(axis=1)] == labels[val]))
            if score < val_accuracy:
                break
            if score > val_accuracy:
                best, val_accuracy, chosen = model.parameters.copy(), score, strength
        del model, rows, val_rows
        predictions = np.empty(len(test), labels.dtype)
        for start in range(0, len(test), _ROWS):
            block = _rows(embedding, test[start:start + _ROWS], normalize)[:, used]
            predictions[start:start + _ROWS] = classes[_scores(block, best).argmax(axis=1)]
    return ProbeResult(accuracy(labels[test], predictions), macro_f1(labels[test], predictions), chosen, val_accuracy,
                       len(classes), predictions)


def majority_baseline(labels, split=None, *, random_state=0) -> Scores:
    """Scores on the test nodes of always guessing the training nodes' most frequent class.

    Parameters
    ----------
    labels : array_like of shape (n,), int or str
        -1 marks nodes without a label.
    split, random_state : optional
        As in :func:`linear_probe`; without a split both draw the same one.

    Returns
    -------
    Scores
        ``accuracy`` and ``macro_f1``.

    Raises
    ------
    ValueError
        If there are no training or no test nodes, or parts of the split overlap or lack labels.

    Examples
    --------
    >>> from gnncy.evaluate import majority_baseline
    >>> majority_baseline([0, 0, 1, 0, 1], ([0, 1, 2], [], [3, 4]))
    Scores(accuracy=0.5, macro_f1=0.333...)
    """
    labels = _labels(labels)
    train, _, test = _parts(split, labels, seed_from(random_state))
    if not train.size or not test.size:
        raise ValueError(f"training and test nodes are needed, got {len(train)} and {len(test)}")
    classes, count = np.unique(labels[train], return_counts=True)
    guess = np.full(len(test), classes[count.argmax()])
    return Scores(accuracy(labels[test], guess), macro_f1(labels[test], guess))


def embedding_health(embedding, *, random_state=0) -> EmbeddingHealth:
    """Signs that an embedding has collapsed, without labels.

    Parameters
    ----------
    embedding : array or feature store of shape (n, d)
        Read in blocks of rows.
    random_state : int, None or numpy Generator
        Draws the rows (1024 at most) for the uniformity.

    Returns
    -------
    EmbeddingHealth
        ``effective_rank``, exp of the entropy of the singular values divided by their sum: d for rows spread evenly
        over all directions, 1 for rows on a line. ``uniformity``, log of the mean of ``exp(-2 |u - v|^2)`` over pairs
        of rows scaled to unit length: 0 if all are equal, towards -4 if spread over the sphere. ``dead_columns``, the
        share of columns with a standard deviation below 1e-5 of the entries' root mean square.

    References
    ----------
    Q. Garrido et al., "RankMe", ICML 2023. T. Wang, P. Isola, "Understanding contrastive representation learning
    through alignment and uniformity on the hypersphere", ICML 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.evaluate import embedding_health
    >>> health = embedding_health(np.random.default_rng(0).normal(size=(2000, 16)))
    >>> round(health.effective_rank, 1), health.dead_columns
    (16.0, 0.0)
    """
    embedding = _source(embedding, None)
    n, d = embedding.shape
    if n < 2 or d < 1:
        raise ValueError(f"embedding must have at least two rows and one column, got shape {(n, d)}")
    gram, total = np.zeros((d, d)), np.zeros(d)
    with working_threads():
        for start in range(0, n, _ROWS):
            rows = _dense(_rows(embedding, np.arange(start, min(start + _ROWS, n)), None))
            gram += matmul(rows.T, rows)
            total += rows.sum(axis=0)
        chosen = np.sort(stream(seed_from(random_state), "uniformity").permutation(n)[:1024])
        sample = _dense(_rows(embedding, chosen, "l2"))
        cosine = matmul(sample, sample.T)[np.triu_indices(len(sample), 1)]
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    share = singular[singular > 0] / max(singular.sum(), np.finfo(float).tiny)
    spread = np.diag(gram) / n - (total / n) ** 2
    dead = spread <= 1e-10 * np.trace(gram) / (n * d)
    return EmbeddingHealth(float(np.exp(-np.sum(share * np.log(share)))) if share.size else 0.0,
                           float(np.log(np.mean(np.exp(4 * (cosine - 1))))), float(dead.mean()))


def _dense(rows):
    return rows.toarray() if sparse.issparse(rows) else rows
