"""How far the latest rows have moved from all before them."""
from collections.abc import Mapping
from typing import Any

import numpy as np

from gnncy._check import check_array, check_int

_ROUNDING = 1e-12  # relative; a column that varies by no more does not vary


class DistributionShift:
    r"""Compares the last rows of a stream with those before them.

    .. math:: \frac1d \sum_j \frac{|\bar r_j - \mu_j|}{\sigma_j}

    with :math:`\bar r` the mean of the last ``window`` rows, and :math:`\mu, \sigma` mean and standard deviation of all
    rows before these. Without a shift it is about :math:`0.8 / \sqrt{\text{window}}`.

    Parameters
    ----------
    window : int
        Rows that are the recent ones.

    Attributes
    ----------
    window, seen : int

    References
    ----------
    T. Chan, G. Golub, R. LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training.continual import DistributionShift
    >>> shift, rng = DistributionShift(100), np.random.default_rng(0)
    >>> shift.add(rng.normal(size=(1000, 8)))
    >>> round(shift.score(), 1)
    0.1
    >>> shift.add(rng.normal(size=(100, 8)) + 2)
    >>> round(shift.score(), 1)
    2.0
    """

    def __init__(self, window: int):
        self.window = check_int(window, "window", 1)
        self.seen = 0
        self._recent: np.ndarray | None = None
        self._mean = self._squares = np.zeros(0)

    def add(self, rows) -> None:
        """Take in the next rows, in their order.

        Parameters
        ----------
        rows : array, shape (k, d)
        """
        rows = check_array(rows, "rows", dtype=np.float64)
        if self._recent is None:
            self._recent = np.zeros((0, rows.shape[1]))
            self._mean, self._squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
        if rows.shape[1] != self._recent.shape[1]:
            raise ValueError(f"rows must have {self._recent.shape[1]} columns as before, got {rows.shape[1]}")
        both = np.concatenate([self._recent, rows])
        leaving, before = both[:-self.window], self.seen - len(self._recent)
        if len(leaving):
            mean, total = leaving.mean(axis=0), before + len(leaving)
            apart = mean - self._mean
            self._squares = (self._squares + ((leaving - mean) ** 2).sum(axis=0)
                             + apart * apart * (before * len(leaving) / total))
            self._mean = self._mean + apart * (len(leaving) / total)
        self._recent = both[-self.window:].copy()
        self.seen += len(rows)

    def score(self) -> float:
        """The shift of the window, in standard deviations; nan before two rows have left it.

        A column that never varied counts 0 if it still has its value, else the score is infinite.
        """
        if self._recent is None or self.seen - len(self._recent) < 2:
            return float("nan")
        deviation = np.sqrt(self._squares / (self.seen - len(self._recent)))
        recent = self._recent.mean(axis=0)
        apart = np.abs(recent - self._mean)
        rounding = _ROUNDING * np.maximum(np.abs(recent), np.abs(self._mean))
        moved = np.divide(apart, deviation, out=np.where(apart > rounding, np.inf, 0.0), where=deviation > rounding)
        return float(moved.mean())

    def state_dict(self) -> dict:
        """The window, and mean and squares of what came before it."""
        arrays = {} if self._recent is None else {"recent": self._recent.copy(), "mean": self._mean.copy(),
                                                  "squares": self._squares.copy()}
        return {"window": self.window, "seen": self.seen} | arrays

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict` with the same window.
        """
        if state["window"] != self.window:
            raise ValueError(f"the state has a window of {state['window']} rows, this one of {self.window}")
        self.seen = state["seen"]
        self._recent = np.array(state["recent"]) if "recent" in state else None
        self._mean, self._squares = np.array(state.get("mean", [])), np.array(state.get("squares", []))
