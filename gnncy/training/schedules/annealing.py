"""What changes during training beside the learning rate: temperature, weights of losses, and all of it together."""
from typing import Any, NamedTuple

from gnncy._check import check_float, check_int
from gnncy.optim import LinearSchedule, Scheduler
from gnncy.optim.schedules import as_schedule
from gnncy.training.schedules.curriculum import CurriculumScheduler, check_weights


class TemperatureScheduler(Scheduler):
    """Moves the temperature of a contrastive loss along a schedule.

    Parameters
    ----------
    schedule : callable or float
        Such as :class:`~gnncy.optim.LinearSchedule`, :class:`~gnncy.optim.ExponentialSchedule`,
        :class:`~gnncy.optim.CosineSchedule` or :class:`~gnncy.optim.StepSchedule`. Its values must be above 0.

    Examples
    --------
    >>> from gnncy.optim import LinearSchedule
    >>> from gnncy.training import TemperatureScheduler
    >>> temperature = TemperatureScheduler(LinearSchedule(1.0, 0.1, 10))
    >>> temperature.value
    1.0
    >>> for epoch in range(5):
    ...     now = temperature.step()
    >>> round(now, 3)
    0.55
    """

    def at(self, t: float) -> float:
        """The temperature at a time.

        Parameters
        ----------
        t : float
            The time, 0 at first.

        Returns
        -------
        float
            Above 0.
        """
        return check_float(self.schedule(t), "temperature", above=0)


class LossWeightScheduler(Scheduler):
    """Moves the weights of several losses evenly from one set to another.

    Parameters
    ----------
    initial, target : dict of str to float
        A weight for each loss by name, at least 0; the names are the same.
    length : float
        How long it takes; with 0 the target is in force at once.

    Examples
    --------
    >>> from gnncy.training import LossWeightScheduler
    >>> weights = LossWeightScheduler({"infonce": 1.0, "local": 0.0}, {"infonce": 1.0, "local": 0.5}, length=5)
    >>> weights.value
    {'infonce': 1.0, 'local': 0.0}
    >>> weights.step()
    {'infonce': 1.0, 'local': 0.1}
    """

    def __init__(self, initial, target, length: float):
        initial, target = check_weights(initial, "initial"), check_weights(target, "target")
        if not initial:
            raise ValueError("initial is empty: at least one loss needs a weight")
        if initial.keys() != target.keys():
            raise ValueError(f"initial and target must have the same names, got {sorted(initial)} and {sorted(target)}")
        self.schedules = {name: LinearSchedule(initial[name], target[name], length) for name in initial}
        super().__init__(self.at)

    def at(self, t: float) -> dict[str, float]:
        """The weights at a time.

        Parameters
        ----------
        t : float
            The time, 0 at first.

        Returns
        -------
        dict of str to float
            A weight for each loss by name.
        """
        return {name: schedule(t) for name, schedule in self.schedules.items()}


class Settings(NamedTuple):
    """What :class:`Schedules` gives for one step; None where nothing says."""

    temperature: float | None
    n_negatives: int | None
    loss_weights: dict[str, float] | None
    difficulty: float | None


class Schedules:
    """Temperature, number of negatives, weights of losses and difficulty, as functions of epoch and step.

    It has no state: what holds in a step follows from its number, so a run that is resumed goes on as it would have.
    Time is counted in epochs, of which a step is a fraction.

    **Which one wins:** what is given by itself wins over the curriculum.

    Parameters
    ----------
    curriculum : CurriculumScheduler, optional
        Says what nothing else says.
    temperature, n_negatives : float, callable or Scheduler, optional
        A number or a function of the epoch.
    loss_weights : dict, callable or LossWeightScheduler, optional
        Weights by the names of losses: a dict of numbers and schedules, or a function of the epoch that gives a dict.
    difficulty : float, callable or Scheduler, optional
        Samples up to this difficulty are trained; 0 is the easiest, 1 the hardest.

    Examples
    --------
    >>> from gnncy.optim import CosineSchedule
    >>> from gnncy.training import CurriculumScheduler, Schedules
    >>> schedules = Schedules(CurriculumScheduler(), temperature=CosineSchedule(0.5, 0.1, length=40))
    >>> now = schedules.at(epoch=20)
    >>> round(now.temperature, 3), now.n_negatives
    (0.3, 10)
    >>> round(schedules.at(epoch=0, step=50, steps_per_epoch=100).temperature, 4)
    0.4998
    """

    def __init__(self, curriculum: CurriculumScheduler | None = None, *, temperature=None, n_negatives=None,
                 loss_weights=None, difficulty=None):
        if curriculum is not None and not isinstance(curriculum, CurriculumScheduler):
            raise TypeError(f"curriculum must be a CurriculumScheduler, got {type(curriculum).__name__}")
        self.curriculum = curriculum
        numbers = {"temperature": temperature, "n_negatives": n_negatives, "difficulty": difficulty}
        self._functions = {name: _function(value, name) for name, value in numbers.items() if value is not None}
        self._weights = {} if not isinstance(loss_weights, dict) else {
            str(key): _function(value, f"loss_weights[{key!r}]") for key, value in loss_weights.items()}
        if loss_weights == {}:
            raise ValueError("loss_weights is empty: at least one loss needs a weight")
        if loss_weights is not None and not self._weights:
            self._functions["loss_weights"] = _function(loss_weights, "loss_weights")
        self.at(0)  # values that cannot be are refused now rather than in the first step

    def at(self, epoch: int, step: int = 0, steps_per_epoch: int = 1) -> Settings:
        """What holds in one step.

        Parameters
        ----------
        epoch, step : int
            Numbers of the epoch and of the step in it, both from 0.
        steps_per_epoch : int
            Steps in an epoch.

        Returns
        -------
        Settings
            ``temperature``, ``n_negatives``, ``loss_weights``, ``difficulty``; None where nothing says.
        """
        t = epoch + step / check_int(steps_per_epoch, "steps_per_epoch", 1)
        stage = None if self.curriculum is None else self.curriculum.at(t)
        now: dict[str, Any] = {name: getattr(stage, name, None) for name in Settings._fields}
        now |= {name: function(t) for name, function in self._functions.items()}
        if self._weights:
            now["loss_weights"] = {name: function(t) for name, function in self._weights.items()}
        if now["temperature"] is not None:
            now["temperature"] = check_float(now["temperature"], "temperature", above=0)
        if now["n_negatives"] is not None:
            now["n_negatives"] = check_int(round(now["n_negatives"]), "n_negatives", 1)
        if now["loss_weights"] is not None:
            now["loss_weights"] = check_weights(now["loss_weights"], "loss_weights")
        if now["difficulty"] is not None:
            now["difficulty"] = check_float(now["difficulty"], "difficulty", 0, 1)
        return Settings(**now)


def _function(value, name: str):
    return value.at if isinstance(value, Scheduler) else as_schedule(value, name)
