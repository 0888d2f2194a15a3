"""Schedules: a number that changes during training, such as the learning rate.

A schedule is a pure function of time, ``schedule(t)``; t counts steps, epochs or the share of the training that is
done, whichever the schedule's own lengths are given in. :class:`LRScheduler` moves an optimizer along one.
"""
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gnncy._check import check_choice, check_float, check_int


class Schedule(ABC):
    """Base of the schedules: ``schedule(t)`` is the value at time t, which is 0 at the first step."""

    @abstractmethod
    def __call__(self, t: float) -> float:
        """The value at time t."""


@dataclass(frozen=True)
class ConstantSchedule(Schedule):
    """The same value at any time.

    Parameters
    ----------
    value : float
        The value.

    Examples
    --------
    >>> from gnncy.optim import ConstantSchedule
    >>> ConstantSchedule(0.5)(100)
    0.5
    """

    value: float

    def __post_init__(self):
        _set(self, value=check_float(self.value, "value"))

    def __call__(self, t: float) -> float:
        return self.value


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From ``start`` at time 0 to ``end`` at time ``length``, and ``end`` after."""

    start: float
    end: float
    length: float

    def __post_init__(self):
        _set(self, start=check_float(self.start, "start"), end=check_float(self.end, "end"),
             length=check_float(self.length, "length", 0))

    def _progress(self, t: float) -> float:
        return 1.0 if t >= self.length else max(t, 0) / self.length


@dataclass(frozen=True)
class LinearSchedule(_Ramp):
    """On a line from ``start`` to ``end``, and ``end`` after.

    Parameters
    ----------
    start, end : float
        The values at time 0 and at ``length``.
    length : float
        How long it takes; with 0 it is at its end at once.

    Examples
    --------
    >>> from gnncy.optim import LinearSchedule
    >>> [round(LinearSchedule(1.0, 0.1, 10)(t), 3) for t in (0, 5, 10, 20)]
    [1.0, 0.55, 0.1, 0.1]
    """

    def __call__(self, t: float) -> float:
        return self.start + (self.end - self.start) * p if (p := self._progress(t)) < 1 else self.end


@dataclass(frozen=True)
class ExponentialSchedule(_Ramp):
    """From ``start`` to ``end`` by the same factor in equal times, and ``end`` after.

    Parameters
    ----------
    start, end : float
        The values at time 0 and at ``length``, above 0.
    length : float
        How long it takes; with 0 it is at its end at once.

    Examples
    --------
    >>> from gnncy.optim import ExponentialSchedule
    >>> [round(ExponentialSchedule(1.0, 0.01, 10)(t), 3) for t in (0, 5, 10)]
    [1.0, 0.1, 0.01]
    """

    def __post_init__(self):
        super().__post_init__()
        check_float(self.start, "start", above=0)
        check_float(self.end, "end", above=0)

    def __call__(self, t: float) -> float:
        return self.start * (self.end / self.start) ** p if (p := self._progress(t)) < 1 else self.end


@dataclass(frozen=True)
class CosineSchedule(_Ramp):
    """Along half a cosine from ``start`` to ``end``; then ``end``, or again from the start.

    Parameters
    ----------
    start, end : float
        The values at time 0 and at ``length``.
    length : float
        How long it takes, above 0 with restarts.
    restart : float, optional
        Begin anew after each period, which is this many times as long as the one before (1: all alike).

    References
    ----------
    Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017.

    Examples
    --------
    >>> from gnncy.optim import CosineSchedule
    >>> [CosineSchedule(1.0, 0.0, 10)(t) for t in (0, 5, 10, 15)]
    [1.0, 0.5, 0.0, 0.0]
    >>> [CosineSchedule(1.0, 0.0, 10, restart=2)(t) for t in (0, 5, 10, 20, 30)]
    [1.0, 0.5, 1.0, 0.5, 1.0]
    """

    restart: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.restart is not None:
            _set(self, restart=check_float(self.restart, "restart", 1))
            check_float(self.length, "length", above=0)

    def __call__(self, t: float) -> float:
        p = self._progress(t) if self.restart is None else self._periodic(max(t, 0))
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * p)) / 2

    def _periodic(self, t: float) -> float:
        if self.restart == 1:
            return t % self.length / self.length
        length, factor = self.length, self.restart
        assert factor is not None
        # Period k begins after length (factor^k - 1) / (factor - 1); the loop mends the rounding of the logarithm.
        k = max(0, int(math.log1p(t / length * (factor - 1)) / math.log(factor)) - 1)
        begin = length * (factor ** k - 1) / (factor - 1)
        while t >= begin + length * factor ** k:
            begin += length * factor ** k
            k += 1
        return max(0.0, t - begin) / (length * factor ** k)


@dataclass(frozen=True)
class StepSchedule(Schedule):
    """One value after the other, each for the same time; the last one stays.

    Parameters
    ----------
    values : sequence of float
        At least one.
    every : float
        How long each holds, above 0.

    Examples
    --------
    >>> from gnncy.optim import StepSchedule
    >>> [StepSchedule((0.5, 0.3, 0.1), every=10)(t) for t in (0, 9, 10, 25, 99)]
    [0.5, 0.5, 0.3, 0.1, 0.1]
    """

    values: Sequence[float]
    every: float

    def __post_init__(self):
        values = tuple(check_float(value, f"values[{i}]") for i, value in enumerate(self.values))
        if not values:
            raise ValueError("values is empty: a StepSchedule needs at least one value")
        _set(self, values=values, every=check_float(self.every, "every", above=0))

    def __call__(self, t: float) -> float:
        return self.values[min(int(max(t, 0) // self.every), len(self.values) - 1)]


@dataclass(frozen=True)
class DecaySchedule(Schedule):
    r"""Without end: :math:`a\gamma^t`, or :math:`a\gamma^{\lfloor t/s \rfloor}` in steps of length s.

    Parameters
    ----------
    start : float
        a, the value at time 0.
    gamma : float
        γ, in 0..1.
    every : float, optional
        s, above 0: hold each value for so long. Default: decay smoothly.

    Examples
    --------
    >>> from gnncy.optim import DecaySchedule
    >>> [round(DecaySchedule(1.0, 0.9)(t), 3) for t in (0, 1, 2)]
    [1.0, 0.9, 0.81]
    >>> [DecaySchedule(1.0, 0.5, every=30)(t) for t in (0, 29, 30, 60)]
    [1.0, 1.0, 0.5, 0.25]
    """

    start: float
    gamma: float
    every: float | None = None

    def __post_init__(self):
        _set(self, start=check_float(self.start, "start"), gamma=check_float(self.gamma, "gamma", 0, 1))
        if self.every is not None:
            _set(self, every=check_float(self.every, "every", above=0))

    def __call__(self, t: float) -> float:
        t = max(t, 0)
        return self.start * self.gamma ** (t if self.every is None else t // self.every)


@dataclass(frozen=True)
class WarmupSchedule(Schedule):
    """A linear warm-up to the first value of another schedule, which begins when it ends.

    Parameters
    ----------
    schedule : callable or float
        What follows.
    length : float
        How long the warm-up takes; with 0 there is none.
    start : float
        The share of the first value that the warm-up begins with, in 0..1.

    References
    ----------
    Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017.

    Examples
    --------
    >>> from gnncy.optim import LinearSchedule, WarmupSchedule
    >>> schedule = WarmupSchedule(LinearSchedule(1.0, 0.0, 10), length=5)
    >>> [schedule(t) for t in (0, 1, 5, 10, 15)]
    [0.0, 0.2, 1.0, 0.5, 0.0]
    """

    schedule: Callable[[float], float]
    length: float
    start: float = 0.0

    def __post_init__(self):
        _set(self, schedule=as_schedule(self.schedule, "schedule"), length=check_float(self.length, "length", 0),
             start=check_float(self.start, "start", 0, 1))

    def __call__(self, t: float) -> float:
        if t >= self.length:
            return self.schedule(t - self.length)
        return (self.start + (1 - self.start) * max(t, 0) / self.length) * self.schedule(0)


class Scheduler:
    """A schedule and the time it has reached, for loops that call ``step()``.

    All schedulers of gnncy hold to one convention: ``value`` is what is in force now, from the start on; ``step()``
    moves on by one and returns what is in force from then on; ``at(t)`` is what is in force at time t, whatever the
    time is now.

    Parameters
    ----------
    schedule : callable or float
        A function of time.

    Examples
    --------
    >>> from gnncy.optim import LinearSchedule, Scheduler
    >>> scheduler = Scheduler(LinearSchedule(1.0, 0.0, 4))
    >>> scheduler.value, scheduler.step(), scheduler.value, scheduler.at(2)
    (1.0, 0.75, 0.75, 0.5)
    """

    def __init__(self, schedule):
        self.schedule = as_schedule(schedule, "schedule")
        self._time = 0
        self._apply()

    def at(self, t: float) -> Any:
        """What is in force at a time.

        Parameters
        ----------
        t : float
            The time, 0 at first.

        Returns
        -------
        float
            The schedule's value.
        """
        return self.schedule(t)

    @property
    def time(self) -> int:
        """How often :meth:`step` was called."""
        return self._time

    @property
    def value(self) -> Any:
        """What is in force now."""
        return self.at(self._time)

    def step(self) -> Any:
        """Move on by one.

        Returns
        -------
        float
            What is in force from now on.
        """
        self._time += 1
        return self._apply()

    def reset(self) -> None:
        """Begin anew."""
        self._time = 0
        self._apply()

    def state_dict(self) -> dict:
        """How far it is; what it was made with is the caller's.

        Returns
        -------
        dict
            Ready for JSON.
        """
        return {"time": self._time}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where a :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict`.
        """
        self._time = check_int(state["time"], "time", 0)
        self._apply()

    def _apply(self) -> Any:
        """Hand the present value to whom it concerns."""
        return self.value


class LRScheduler(Scheduler):
    """Moves an optimizer's learning rate along a schedule.

    The rate of the first step is set at once; call ``step()`` after each step of the optimizer, or after each epoch.
    Parameter groups with a rate of their own keep their proportion.

    Parameters
    ----------
    optimizer : Optimizer
        Whose ``lr`` is set.
    schedule : callable or float
        The learning rate as a function of time.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import optim
    >>> weights = np.ones(1)
    >>> optimizer = optim.SGD(weights, lr=0.1)
    >>> scheduler = optim.LRScheduler(optimizer, optim.CosineSchedule(0.1, 0.0, length=2))
    >>> for _ in range(3):
    ...     optimizer.step([np.ones(1)])
    ...     print(round(optimizer.lr, 3), weights.round(3), round(scheduler.step(), 3))
    0.1 [0.9] 0.05
    0.05 [0.85] 0.0
    0.0 [0.85] 0.0
    """

    def __init__(self, optimizer, schedule):
        self.optimizer = optimizer
        super().__init__(schedule)

    def _apply(self) -> float:
        self.optimizer.lr = value = self.value
        return value


class ReduceOnPlateau:
    """Lowers a value, such as the learning rate, when a metric no longer improves.

    It holds to the convention of :class:`Scheduler`; being driven by a metric, it is no function of time.

    Parameters
    ----------
    value : float or Optimizer
        Where to begin, above 0; of an optimizer, the ``lr`` is lowered.
    factor : float
        What the value is multiplied by, in 0..1.
    patience : int
        So many steps in a row without improvement are borne; the next lowers the value.
    least : float
        The value is not lowered below.
    margin : float
        An improvement by less than this is none.
    mode : {"min", "max"}
        Whether lower or higher metrics are better.

    Examples
    --------
    >>> from gnncy.optim import ReduceOnPlateau
    >>> plateau = ReduceOnPlateau(0.1, factor=0.5, patience=1)
    >>> [plateau.step(loss) for loss in (1.0, 0.9, 0.9, 0.9, 0.8)]
    [0.1, 0.1, 0.1, 0.05, 0.05]
    """

    def __init__(self, value, factor: float = 0.1, patience: int = 10, least: float = 0.0, margin: float = 1e-8,
                 mode: str = "min"):
        self.optimizer = value if hasattr(value, "lr") else None
        self._value = check_float(self.optimizer.lr if self.optimizer else value, "value", above=0)
        self.factor = check_float(factor, "factor", 0, 1)
        if self.factor == 1:
            raise ValueError("factor must be below 1: the value would not change")
        self.patience = check_int(patience, "patience", 0)
        self.least = check_float(least, "least", 0)
        self.margin = check_float(margin, "margin", 0)
        self.mode = check_choice(mode, "mode", ("min", "max"))
        self.reset()

    @property
    def value(self) -> float:
        """What is in force now."""
        return self._value

    def reset(self) -> None:
        """Forget the metrics; the value stays."""
        self.best: float | None = None
        self.waited = 0

    def step(self, metric: float) -> float:
        """Move on by one.

        Parameters
        ----------
        metric : float
            What was measured; nan is no improvement.

        Returns
        -------
        float
            What is in force from now on.
        """
        metric = float(metric)
        sign = 1 if self.mode == "min" else -1
        if not math.isnan(metric) and (self.best is None or sign * metric < sign * self.best - self.margin):
            self.best, self.waited = metric, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.waited = 0
            self._value = min(self._value, max(self._value * self.factor, self.least))
            self._apply()
        return self._value

    def state_dict(self) -> dict:
        """The value, the best metric and the steps since.

        Returns
        -------
        dict
            Ready for JSON.
        """
        return {"value": self._value, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where a :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict`.
        """
        value = check_float(state["value"], "value", 0)
        best = None if state["best"] is None else float(state["best"])
        self.waited = check_int(state["waited"], "waited", 0)
        self._value, self.best = value, best
        self._apply()

    def _apply(self) -> None:
        if self.optimizer is not None:
            self.optimizer.lr = self._value


def as_schedule(value, name: str) -> Callable[[float], float]:
    """A schedule as it is, or a constant one."""
    if callable(value):
        return value
    return ConstantSchedule(check_float(value, name))


def _set(self, **values) -> None:
    for name, value in values.items():
        object.__setattr__(self, name, value)
