"""What phase training is told: checked when it is made, never changed afterwards."""
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from gnncy._check import check_choice, check_float, check_int

METHODS = ("last", "momentum", "least_squares", "low_rank")


class Compressor(Protocol):
    """What gradients may be passed through: a compressor of :mod:`gnncy.optim`, or one of your own."""

    def compress(self, gradients: Mapping[str, np.ndarray]) -> Any:
        """A message that has ``nbytes``."""

    def decompress(self, message: Any) -> Mapping[str, np.ndarray]:
        """The gradients of a message."""

    def state_dict(self) -> dict:
        """Arrays and numbers; dicts in it may be nested."""

    def load_state_dict(self, state: dict) -> None:
        """Go on from a :meth:`state_dict`."""


class Accumulator(Protocol):
    """What may hold the sum of several minibatches' gradients in fewer bytes."""

    def accumulate(self, gradients: Mapping[str, np.ndarray]) -> None:
        """Add one minibatch's."""

    def get_accumulated(self) -> Mapping[str, np.ndarray]:
        """The mean of what was added."""

    def reset(self) -> None:
        """Forget what was added."""

    def state_dict(self) -> dict:
        """Arrays and numbers; dicts in it may be nested."""

    def load_state_dict(self, state: dict) -> None:
        """Go on from a :meth:`state_dict`."""


@dataclass(frozen=True)
class PredictionConfig:
    """How gradients are predicted, and when a prediction is trusted.

    Parameters
    ----------
    method : {"least_squares", "momentum", "last", "low_rank"}
        See :class:`GradientPredictor`.
    history_size : int
        True gradients kept; ``"momentum"`` needs two and keeps no more, ``"last"`` one.
    momentum : float
        Of ``"momentum"``: share of the last change that goes on.
    decay : float
        Of ``"least_squares"``: weight of a gradient per step of its age, in 0..1 and above 0.
    ridge : float
        Of ``"least_squares"``: added to the sum of squared times, draws the slope to 0 (against noise). Of
        ``"low_rank"``: added to the eigenvalues, as a share of the largest.
    rank : int
        Of ``"low_rank"``: directions of the features that are used, at most.
    correction_weight : float
        Weight of the newest measurement in the trust that scales predictions, 0..1; 0 never scales them.
    min_correlation : float or None
        The gate: steps are predicted only while the measured cosine between predicted and true gradient is at least
        this. None predicts always.
    horizon : int, optional
        Steps after the last true gradient that may be predicted. Default: as the phases say.

    Raises
    ------
    TypeError, ValueError
        If a value is not of its type or range.

    Examples
    --------
    >>> from gnncy.training.phases import PredictionConfig
    >>> PredictionConfig("momentum", min_correlation=0.9).momentum
    0.9
    """

    method: str = "least_squares"
    history_size: int = 8
    momentum: float = 0.9
    decay: float = 0.95
    ridge: float = 0.0
    rank: int = 8
    correction_weight: float = 0.1
    min_correlation: float | None = 0.8
    horizon: int | None = None

    def __post_init__(self):
        check_choice(self.method, "method", METHODS)
        check_int(self.history_size, "history_size", 1)
        check_float(self.momentum, "momentum", 0)
        check_float(self.decay, "decay", high=1.0, above=0)
        check_float(self.ridge, "ridge", 0)
        check_int(self.rank, "rank", 1)
        check_float(self.correction_weight, "correction_weight", 0, 1)
        if self.min_correlation is not None:
            check_float(self.min_correlation, "min_correlation", -1, 1)
        if self.horizon is not None:
            check_int(self.horizon, "horizon", 1)

    @property
    def capacity(self) -> int:
        """True gradients that the method needs."""
        return min(self.history_size, {"last": 1, "momentum": 2}.get(self.method, self.history_size))


@dataclass(frozen=True)
class PhaseConfig:
    """How long the phases are, and what passes through them.

    Parameters
    ----------
    full_steps : int
        True gradients before steps are predicted, at least 1.
    predict_steps : int
        Predicted steps of a cycle; true gradients between them are not counted. 0 never predicts.
    correct_every : int or None
        After so many predicted steps, unless the cycle ends there, one true gradient. None: never.
    prediction : PredictionConfig
    gradient_accumulation : int
        Minibatches whose mean gradient makes a full step.
    max_grad_norm : float, optional
        Clip true and predicted gradients to this Euclidean norm of all together.
    adaptive_phases : bool
        Fit the lengths of the phases, within the ranges below, to how loss and predictions do.
    loss_threshold : float
        The loss has risen if its mean over a cycle's true steps exceeds the last cycle's by this share of it.
    full_range, predict_range : (int, int), optional
        Least and most of the adapted lengths; must hold ``full_steps`` and ``predict_steps``. Default: from
        ``full_steps`` to five times as many; from 1 to ``predict_steps``.
    compressor : optional
        True gradients pass through a copy of it before they are used. It has ``compress(gradients)``, which gives a
        message with ``nbytes``, ``decompress(message)``, ``state_dict`` and ``load_state_dict``.
    accumulator : callable, optional
        ``accumulator(shapes)`` makes what holds the sum for ``gradient_accumulation``: it has
        ``accumulate(gradients)``, ``get_accumulated()``, the mean, ``reset``, ``state_dict`` and ``load_state_dict``,
        as ``TernaryGradientAccumulator`` of :mod:`gnncy.optim` does. Default: a sum of the gradients' own type.

    Raises
    ------
    TypeError, ValueError
        If a value is not of its type or range.

    Examples
    --------
    >>> from gnncy.training.phases import PhaseConfig
    >>> PhaseConfig(full_steps=10, predict_steps=40).predict_range
    (1, 40)
    """

    full_steps: int = 2
    predict_steps: int = 2
    correct_every: int | None = 2
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    gradient_accumulation: int = 1
    max_grad_norm: float | None = None
    adaptive_phases: bool = True
    loss_threshold: float = 0.1
    full_range: tuple[int, int] | None = None
    predict_range: tuple[int, int] | None = None
    compressor: Compressor | None = None
    accumulator: Callable[[Mapping[str, tuple[int, ...]]], Accumulator] | None = None

    def __post_init__(self):
        check_int(self.full_steps, "full_steps", 1)
        check_int(self.predict_steps, "predict_steps", 0)
        if self.correct_every is not None:
            check_int(self.correct_every, "correct_every", 1)
        if not isinstance(self.prediction, PredictionConfig):
            raise TypeError(f"prediction must be a PredictionConfig, got {type(self.prediction).__name__}")
        check_int(self.gradient_accumulation, "gradient_accumulation", 1)
        if self.max_grad_norm is not None:
            check_float(self.max_grad_norm, "max_grad_norm", above=0)
        check_float(self.loss_threshold, "loss_threshold", 0)
        if self.accumulator is not None and self.gradient_accumulation == 1:
            raise ValueError("an accumulator needs gradient_accumulation above 1, or there is nothing to accumulate")
        for name, value, default in (("full", self.full_steps, (self.full_steps, 5 * self.full_steps)),
                                     ("predict", self.predict_steps, (min(1, self.predict_steps), self.predict_steps))):
            given = getattr(self, f"{name}_range")
            object.__setattr__(self, f"{name}_range",
                               default if given is None else _check_range(given, f"{name}_range", value))

    def describe(self) -> dict:
        """All values, compressor and accumulator by their ``repr``, ready for JSON.

        Returns
        -------
        dict
        """
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"prediction": asdict(self.prediction), "compressor": repr(self.compressor),
                        "accumulator": repr(self.accumulator)}


def _check_range(value, name: str, middle: int) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be two integers, got {value!r}")
    low, high = (check_int(end, name, 0) for end in value)
    if not low <= middle <= high or (name == "full_range" and low < 1):
        raise ValueError(f"{name} must hold the configured {name.removesuffix('_range')}_steps={middle} and begin at "
                         f"{'1' if name == 'full_range' else '0'} or above, got {value!r}")
    return low, high
