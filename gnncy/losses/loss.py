"""What every loss shares: reductions that reach the gradients, and one code for plain arrays and for the tape."""
from collections.abc import Callable
from typing import Any

import numpy as np

from gnncy._check import check_choice
from gnncy.nn import Operation, Tensor

REDUCTIONS = ("mean", "sum", "none")


class Problem:
    """Checked arguments of a loss. A subclass sets ``count`` and writes :meth:`solve`."""

    count: int  # terms that a mean is over

    def solve(self, weight: np.ndarray | float | None) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Each term of the loss in float64, and the gradients by the arrays of their sum weighted by ``weight``.

        ``weight`` is one number for all terms, an array with one for each, or None where no gradients are wanted.
        """
        raise NotImplementedError

    def reduced(self, losses: np.ndarray, reduction: str) -> np.ndarray | float:
        if reduction == "none":
            return losses
        return float(losses.sum() / (self.count if reduction == "mean" else 1))

    def weight(self, reduction: str) -> float:
        return 1 / self.count if reduction == "mean" else 1.0


def evaluate(problem: Callable[..., Problem], *inputs, reduction: str, **options):
    """The reduced loss and its gradients by ``inputs``; if one of these is a Tensor, the loss on the tape."""
    check_choice(reduction, "reduction", REDUCTIONS)
    if any(isinstance(x, Tensor) for x in inputs):
        return _Loss.apply(*inputs, problem=problem, reduction=reduction, **options)
    made = problem(*inputs, **options)
    losses, grads = made.solve(made.weight(reduction))
    return made.reduced(losses, reduction), grads


class _Loss(Operation):
    """A loss on the tape. Mean and sum keep finished gradients; none must wait for each term's weight."""

    def forward(self, *arrays, problem, reduction, **options):
        made = problem(*arrays, **options)
        later = reduction == "none" or not any(self.needs)
        losses, grads = made.solve(None if later else made.weight(reduction))
        self.save(made if later else None, grads)
        return np.asarray(made.reduced(losses, reduction))

    def backward(self, grad) -> tuple[Any, ...]:
        made, grads = self.saved
        if made is not None:
            return made.solve(grad)[1]
        return tuple(g if grad == 1 else g * g.dtype.type(grad) for g in grads)
