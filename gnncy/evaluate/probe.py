"""The linear probe: logistic regression on frozen embeddings."""
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from gnncy._check import check_choice, check_float, check_ids, check_int
from gnncy._random import seed_from, stream
from gnncy._threads import working_threads
from gnncy.evaluate.links import roc_auc
from gnncy.evaluate.metrics import Scores, accuracy, check_labels, macro_f1
from gnncy.evaluate.rows import ROWS, as_dense, as_source, take_rows
from gnncy.optim.logistic import Logistic, class_scores

METRICS = ("accuracy", "macro_f1", "roc_auc")
DENSE = 1 / 3  # share of entries from which on a sparse matrix and its transpose take more memory than a dense one


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What :func:`linear_probe` found: scores on the test nodes, the chosen ``C`` and its validation accuracy.

    ``roc_auc`` is nan unless there are two classes and the test nodes are of both.
    """

    accuracy: float
    macro_f1: float
    C: float
    val_accuracy: float
    n_classes: int
    predictions: np.ndarray = field(repr=False)
    roc_auc: float = float("nan")


def split_parts(split, labels, seed):
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


def linear_probe(embedding, labels, split=None, *, C=(1, 10, 100, 1000), normalize: str | None = "l2",
                 max_iter: int = 100, metric: str = "accuracy", random_state=0,
                 n_jobs: int | None = None) -> ProbeResult:
    r"""Accuracy of logistic regression on frozen embeddings, the usual measure of unsupervised ones.

    Minimises, over the training nodes,

    .. math:: C \sum_i -\log \operatorname{softmax}(x_i W + b)_{y_i} + \tfrac12 \|W\|^2

    for the values of ``C`` in ascending order, each starting from the last solution, until the score of the
    validation nodes falls. The model with the best of them is scored on the test nodes.

    Parameters
    ----------
    embedding : array, sparse matrix or feature store of shape (n, d)
        Anything with ``shape`` and rows taken by an array of ids: ndarray, memory map, scipy sparse,
        :class:`~gnncy.storage.FeatureStorage`. Rows of training nodes are held in memory as float64, of the others
        some thousand at a time.
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
    metric : {"accuracy", "macro_f1", "roc_auc"}
        The validation nodes' score by which ``C`` is chosen; ``"roc_auc"`` is for two classes.
    random_state : int, None or numpy Generator
        Draws the split where none is given.
    n_jobs : int or None
        Threads. The result does not depend on them.

    Returns
    -------
    ProbeResult
        ``accuracy``, ``macro_f1``, ``roc_auc``, ``C``, ``val_accuracy``, ``n_classes``, and ``predictions`` of the test
        nodes, in their order.

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
    The minimum is that of scikit-learn's ``LogisticRegression(C=C)`` (of two classes that of twice the ``C``, as that
    has one vector of weights where this has two), found by a Newton method that needs some ten matrices of d by the
    number of classes. Published figures are comparable only under one protocol: the same split,
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
    labels = check_labels(labels)
    embedding = as_source(embedding, len(labels))
    strengths = sorted(check_float(value, "C", above=0) for value in np.atleast_1d(C))
    if not strengths:
        raise ValueError("C is empty; give one value or several")
    max_iter = check_int(max_iter, "max_iter", 1)
    check_choice(metric, "metric", METRICS)
    if normalize is not None:
        check_choice(normalize, "normalize", ("l2",))
    train, val, test = split_parts(split, labels, seed_from(random_state))
    for name, part in ("training", train), ("validation", val), ("test", test):
        if not part.size:
            raise ValueError(f"there are no {name} nodes; each part of the split needs at least one")
    classes, codes = np.unique(labels[train], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"all {len(train)} training nodes have label {classes[0]!r}; two classes are needed")
    if metric == "roc_auc" and (len(classes) > 2 or len(np.unique(labels[val])) != 2):
        raise ValueError(f"metric='roc_auc' needs two classes among the training and the validation nodes, there are "
                         f"{len(classes)} and {len(np.unique(labels[val]))}")

    with working_threads(n_jobs):
        rows = take_rows(embedding, train, normalize)
        used: Any = slice(None)
        if sparse.issparse(rows):  # columns without a training entry have weight 0
            used = np.flatnonzero(np.bincount(rows.indices, minlength=rows.shape[1]))
            rows = rows[:, used]
            if rows.nnz > DENSE * rows.shape[0] * rows.shape[1]:
                rows = as_dense(rows)

        def scores(ids: np.ndarray, parameters: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
            for start in range(0, len(ids), ROWS):
                block = take_rows(embedding, ids[start:start + ROWS], normalize)[:, used]
                yield slice(start, start + ROWS), class_scores(block, parameters)

        model = Logistic(rows, codes, len(classes))
        best, most, val_accuracy, chosen = np.empty(0), -1.0, 0.0, 0.0
        for strength in strengths:
            model.fit(strength, max_iter)
            parameters = model.parameters
            found = np.concatenate([part for _, part in scores(val, parameters)])
            predicted = classes[found.argmax(axis=1)]
            right = float(np.mean(predicted == labels[val]))
            if metric == "accuracy":
                score = right
            elif metric == "macro_f1":
                score = macro_f1(labels[val], predicted)
            else:
                score = _auc(labels[val], classes, found)
            if score < most:
                break
            if score > most:
                best, most, val_accuracy, chosen = parameters, score, right, strength
        del model, rows
        predictions = np.empty(len(test), labels.dtype)
        margins = np.empty((len(test), 2 if len(classes) == 2 else 0))
        for part, found in scores(test, best):
            predictions[part] = classes[found.argmax(axis=1)]
            margins[part] = found[:, :margins.shape[1]]
    return ProbeResult(accuracy(labels[test], predictions), macro_f1(labels[test], predictions), chosen, val_accuracy,
                       len(classes), predictions, _auc(labels[test], classes, margins))


def _auc(labels, classes, scores) -> float:
    """ROC AUC of the second of two classes; nan where it has no meaning."""
    if len(classes) != 2 or not np.array_equal(np.unique(labels), classes):
        return float("nan")
    return roc_auc(labels == classes[1], scores[:, 1] - scores[:, 0])


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
    labels = check_labels(labels)
    train, _, test = split_parts(split, labels, seed_from(random_state))
    if not train.size or not test.size:
        raise ValueError(f"training and test nodes are needed, got {len(train)} and {len(test)}")
    classes, count = np.unique(labels[train], return_counts=True)
    guess = np.full(len(test), classes[count.argmax()])
    return Scores(accuracy(labels[test], guess), macro_f1(labels[test], guess))
