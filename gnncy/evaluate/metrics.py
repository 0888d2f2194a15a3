"""Scores of predicted classes."""
from typing import NamedTuple

import numpy as np


class Scores(NamedTuple):
    """Accuracy and macro-averaged F1, both 0 to 1."""

    accuracy: float
    macro_f1: float


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
    true, predicted = labels_pair(true, predicted)
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
    true, predicted = labels_pair(true, predicted)
    classes, codes = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    true, predicted = codes[:len(true)], codes[len(true):]
    count = np.bincount(true, minlength=len(classes)) + np.bincount(predicted, minlength=len(classes))
    hits = np.bincount(true[true == predicted], minlength=len(classes))
    return float(np.mean(2 * hits / count))


def labels_pair(true, predicted):
    true, predicted = check_labels(true, "true"), check_labels(predicted, "predicted")
    if true.shape != predicted.shape:
        raise ValueError(f"true and predicted must have the same length, got {len(true)} and {len(predicted)}")
    if not true.size:
        raise ValueError("true is empty")
    return true, predicted


def check_labels(labels, name="labels"):
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"{name} must be 1-dimensional, got shape {labels.shape}")
    if labels.dtype.kind == "f" and np.array_equal(labels, np.floor(labels)):
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubUS":
        raise TypeError(f"{name} must be integers or strings, got dtype {labels.dtype}")
    return labels
