"""Scores of predicted links, exact, ties included."""
from typing import NamedTuple

import numpy as np

from gnncy._check import check_array, check_int

KS = (10, 20, 50, 100)


class LinkScores(NamedTuple):
    """What :func:`link_scores` found, each 0 to 1; ``hits`` by k."""

    auc: float
    average_precision: float
    mrr: float
    hits: dict[int, float]


def roc_auc(true, scores) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, a tie counting one half.

    Parameters
    ----------
    true : array_like of shape (n,)
        0 or 1, or bool.
    scores : array_like of shape (n,)

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        If lengths differ, ``true`` has other values than two classes 0 and 1, or a score is not finite.

    Examples
    --------
    >>> from gnncy.evaluate import roc_auc
    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    positive, negative = _by_class(true, scores)
    below, ties = _below(positive, np.sort(negative))
    return float((2 * below + ties).sum() / (2 * len(positive) * len(negative)))


def average_precision(true, scores) -> float:
    r"""Average precision, :math:`\sum_k (R_k - R_{k-1}) P_k` over the distinct scores in descending order.

    Parameters
    ----------
    true, scores : array_like of shape (n,)
        As in :func:`roc_auc`.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        As in :func:`roc_auc`.

    Examples
    --------
    >>> from gnncy.evaluate import average_precision
    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
    0.8333
    """
    positive, negative = _by_class(true, scores)
    levels, found = np.unique(positive, return_counts=True)
    levels, found = levels[::-1], found[::-1]
    hits = np.cumsum(found)
    misses = len(negative) - np.searchsorted(np.sort(negative), levels, side="left")
    return float(np.sum(found * (hits / (hits + misses))) / len(positive))


def mean_reciprocal_rank(positive, negative) -> float:
    """Mean of 1 / rank of each positive among its negatives, a tie counting half a place.

    Parameters
    ----------
    positive : array_like of shape (m,)
        Scores of links.
    negative : array_like of shape (k,) or (m, k)
        Scores of pairs without a link, common to all or each positive's own.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        If shapes do not agree, or a score is not finite.

    Examples
    --------
    >>> from gnncy.evaluate import mean_reciprocal_rank
    >>> mean_reciprocal_rank([0.9, 0.5], [0.8, 0.1, 0.0])
    0.75
    """
    positive, negative = _scores(positive, "positive"), np.asarray(negative)
    if negative.ndim == 2:
        negative = check_array(negative, "negative", dtype=np.float64)
        if len(negative) != len(positive):
            raise ValueError(f"negative must have one row for each of the {len(positive)} positives, got shape "
                             f"{negative.shape}")
        above = (negative > positive[:, None]).sum(axis=1)
        ties = (negative == positive[:, None]).sum(axis=1)
    else:
        negative = np.sort(_scores(negative, "negative"))
        below, ties = _below(positive, negative)
        above = len(negative) - below - ties
    return float(np.mean(1 / (1 + above + ties / 2)))


def hits_at(positive, negative, k: int) -> float:
    """Share of the positives that score above the k-th best negative; a tie is no hit.

    Parameters
    ----------
    positive : array_like of shape (m,)
    negative : array_like of shape (l,)
    k : int
        With fewer negatives than that, all positives are hits.

    Returns
    -------
    float
        0 to 1.

    Raises
    ------
    ValueError
        If ``k`` is below 1, an argument is empty, or a score is not finite.

    References
    ----------
    W. Hu et al., "Open graph benchmark", NeurIPS 2020.

    Examples
    --------
    >>> from gnncy.evaluate import hits_at
    >>> hits_at([0.9, 0.5, 0.3], [0.8, 0.3, 0.1], 2)
    0.666...
    """
    positive, negative = _scores(positive, "positive"), _scores(negative, "negative")
    k = check_int(k, "k", 1)
    if k > len(negative):
        return 1.0
    return float(np.mean(positive > np.partition(negative, -k)[-k]))


def link_scores(positive, negative, *, k=KS) -> LinkScores:
    """ROC AUC, average precision, MRR and Hits@k of scores of links and of pairs without one.

    Parameters
    ----------
    positive : array_like of shape (m,)
    negative : array_like of shape (l,)
    k : sequence of int

    Returns
    -------
    LinkScores

    Raises
    ------
    ValueError
        If an argument is empty or a score is not finite.

    See Also
    --------
    gnncy.datasets.split_edges : what to score.

    Notes
    -----
    AUC and average precision depend on how the negatives were drawn (here as many as positives, uniformly, is usual);
    Hits@k and MRR also on their number. Compare under one protocol only.

    Examples
    --------
    >>> from gnncy.evaluate import link_scores
    >>> link_scores([0.9, 0.6], [0.7, 0.1], k=[1])
    LinkScores(auc=0.75, average_precision=0.8333..., mrr=0.75, hits={1: 0.5})
    """
    positive, negative = _scores(positive, "positive"), _scores(negative, "negative")
    true = np.repeat([1, 0], [len(positive), len(negative)])
    both = np.concatenate([positive, negative])
    return LinkScores(roc_auc(true, both), average_precision(true, both), mean_reciprocal_rank(positive, negative),
                      {int(each): hits_at(positive, negative, each) for each in k})


def _scores(values, name: str) -> np.ndarray:
    return check_array(values, name, ndim=1, dtype=np.float64)


def _by_class(true, scores) -> tuple[np.ndarray, np.ndarray]:
    true, scores = np.asarray(true), _scores(scores, "scores")
    if true.shape != scores.shape:
        raise ValueError(f"true and scores must have the same length, got shapes {true.shape} and {scores.shape}")
    if not np.isin(true, (0, 1)).all() or len(np.unique(true)) < 2:
        raise ValueError(f"true must hold both 0 and 1 and nothing else, got {np.unique(true)[:5].tolist()}")
    return scores[true == 1], scores[true == 0]


def _below(values: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each value how many of ``ascending`` are below it, and how many equal."""
    below = np.searchsorted(ascending, values, side="left")
    return below, np.searchsorted(ascending, values, side="right") - below
