"""What the labels of nodes say, and what is trained for."""
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gnncy._check import check_choice, check_float
from gnncy._random import stream
from gnncy.nn import Tensor, ops


class Labels(NamedTuple):
    """What ``y`` says: codes of the classes (or a table of 0 and 1), and who has any."""

    codes: np.ndarray
    known: np.ndarray
    classes: np.ndarray
    many: bool

    @classmethod
    def of(cls, y) -> "Labels":
        if y is None:
            raise ValueError("NodeClassifier requires y to be passed, but the target y is None")
        y = np.asarray(y)
        if y.dtype == object:
            y = np.array([str(label) for label in y.ravel()]).reshape(y.shape)
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim not in (1, 2):
            raise ValueError(f"y must be 1- or 2-dimensional, got shape {y.shape}")
        if y.dtype.kind == "c":
            raise ValueError("Complex data not supported: y must be integers or strings")
        if y.dtype.kind not in "biufUS":
            raise ValueError(f"Unknown label type: y must be integers or strings, got dtype {y.dtype}")
        missing = unlabelled(y)
        known = np.asarray(~(missing.any(axis=1) if y.ndim == 2 else missing))
        if not known.any():
            raise ValueError("y has no labels: all are -1 or nan")
        if y.dtype.kind == "f":
            if not np.isfinite(y[known]).all():
                raise ValueError("y contains infinity; labels are integers or strings, and -1 or nan marks a node "
                                 "without one")
            if (y[known] != np.floor(y[known])).any():
                raise ValueError("Unknown label type: continuous; y must be integers or strings, one class each")
        if y.ndim == 2:
            if not np.isin(y[known], (0, 1)).all():
                raise ValueError("Unknown label type: a table y must hold 0 and 1 (and -1 or nan where a node has no "
                                 "labels)")
            codes = np.where(known[:, None], np.nan_to_num(y.astype(np.float64)), 0).astype(np.int64)
            return cls(codes, known, np.arange(y.shape[1]), True)
        classes, found = np.unique(y[known], return_inverse=True)
        codes = np.full(len(y), -1, np.int64)
        codes[known] = found
        return cls(codes, known, classes, False)

    def held_out(self, nodes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
        """A share of the nodes, of each class the same (and never all); ascending."""
        nodes = nodes[stream(seed, "validation").permutation(len(nodes))]
        if self.many:
            return np.sort(nodes[:int(fraction * len(nodes))])
        chosen = [found[:min(round(fraction * len(found)), len(found) - 1)]
                  for found in (nodes[self.codes[nodes] == c] for c in range(len(self.classes))) if len(found)]
        return np.sort(np.concatenate([*chosen, nodes[:0]]))

    def class_weights(self, given, train: np.ndarray) -> np.ndarray:
        """A weight for each node, by its class."""
        if given is None:
            return np.ones(len(self.codes), np.float32)
        if self.many:
            raise ValueError("class_weight is for one class a node; y is a table of labels")
        count = len(self.classes)
        if isinstance(given, str):
            check_choice(given, "class_weight", ("balanced",))
            sizes = np.bincount(self.codes[train], minlength=count)
            weights = len(train) / (np.count_nonzero(sizes) * np.maximum(sizes, 1))
        else:
            places = {label: i for i, label in enumerate(self.classes.tolist())}
            if unknown := [label for label in given if label not in places]:
                raise ValueError(f"class_weight names {unknown[0]!r}, which is not a class of y ({list(places)})")
            weights = np.ones(count)
            for label, weight in given.items():
                weights[places[label]] = check_float(weight, f"class_weight[{label!r}]", 0)
        return np.where(self.codes >= 0, weights[np.maximum(self.codes, 0)], 0).astype(np.float32)


def unlabelled(y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "if":
        return np.zeros(y.shape, bool)
    return (y == -1) | (np.isnan(y) if y.dtype.kind == "f" else False)


@dataclass
class Task:
    """What is trained for: nodes, targets, weights and the settings of the supervised training."""

    codes: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    train: np.ndarray = field(repr=False)
    validation: np.ndarray = field(repr=False)
    seed: int
    many: bool
    outputs: int
    dropout: float
    weight_decay: float
    patience: int
    max_epochs: int

    def fingerprint(self) -> dict:
        """What the run depends on, as JSON."""
        checksum = 0
        for part in (self.codes, self.weights, self.train, self.validation):
            checksum = zlib.crc32(np.ascontiguousarray(part).data.cast("B"), checksum)
        return {"labels": checksum, "outputs": self.outputs, "dropout": self.dropout,
                "weight_decay": self.weight_decay, "patience": self.patience, "max_epochs": self.max_epochs}

    def loss(self, scores: Tensor, ids: np.ndarray) -> Tensor:
        """The weighted mean cross-entropy of nodes."""
        weights = self.weights[ids] / max(float(self.weights[ids].sum()), np.finfo(np.float32).tiny)
        if self.many:  # each label is a choice between the scores 0 and z
            flat = scores.reshape(-1, 1)
            scores = ops.concatenate([Tensor(np.zeros(flat.shape, np.float32)), flat], axis=1)
            codes, weights = self.codes[ids].ravel(), np.repeat(weights / self.outputs, self.outputs)
        else:
            codes = self.codes[ids]
        target = np.zeros(scores.shape, np.float32)
        target[np.arange(len(codes)), codes] = -weights
        return (ops.log_softmax(scores) * target).sum()

    def right(self, scores: np.ndarray, ids: np.ndarray) -> float:
        """How many nodes are told right; of a table the share of its entries."""
        if self.many:
            return float(((scores > 0) == self.codes[ids]).mean(axis=1).sum())
        return float((scores.argmax(axis=1) == self.codes[ids]).sum())
