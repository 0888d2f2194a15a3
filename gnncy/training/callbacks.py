"""What is told of a training run as it goes on: scikit-learn's callback protocol, driven without scikit-learn."""
import csv
import inspect
import logging
import math
import os
import signal
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gnncy import _files
from gnncy._check import check_choice, check_float, check_int

log = logging.getLogger("gnncy")

SAVED = os.EX_TEMPFAIL
"""Status, 75, with which a process ends that is to be started again: what it did is saved."""


@dataclass(eq=False)
class Task:
    """What a callback is told of: the whole fit, or one epoch of it; the context of scikit-learn's protocol.

    Attributes
    ----------
    task_name : str
        "fit" or "epoch".
    task_id : int
        The number of the epoch, from 0.
    max_subtasks : int
        Epochs of a fit; 0 of an epoch.
    parent : Task or None
        The fit of an epoch.
    """

    task_name: str
    task_id: int
    max_subtasks: int
    parent: "Task | None" = None
    estimator_name: str = "Trainer"
    sequential_subtasks: bool = True
    source_task_name: str | None = None
    source_estimator_name: str | None = None
    root_uuid: uuid.UUID = field(default_factory=uuid.uuid4)


class Callback:
    """Does nothing; a subclass overrides what it wants to be told. An object with any of these methods serves as well.

    The first four are scikit-learn's protocol (``sklearn.callback.FitCallback``, from its version 1.9). The hooks of
    tasks may have any of the keyword-only parameters ``X``, ``y``, ``metadata`` and ``fitted_estimator``; the last is
    the model as it is, the others are None. A callback with ``state_dict()`` and ``load_state_dict(state)`` is part of
    the snapshots; a state is a dict of arrays and of what JSON can hold.

    Examples
    --------
    >>> from gnncy.training import Callback
    >>> class Enough(Callback):
    ...     def on_fit_task_end(self, estimator, context):
    ...         return context.task_name == "epoch" and estimator.history[-1]["loss"] < 0.5
    """

    def setup(self, estimator, context) -> None:
        """Called first, with the Trainer and the :class:`Task` of the fit; before a snapshot is loaded."""

    def on_fit_task_begin(self, estimator, context) -> None:
        """Called at the beginning of the fit and of each epoch."""

    def on_fit_task_end(self, estimator, context) -> bool | None:
        """Called at the end of each epoch, after its record was added, and of the fit; True ends the training."""

    def teardown(self, estimator, context) -> None:
        """Called last, after an error too."""

    def on_backward_end(self, estimator, info: dict) -> None:
        """Called in each step when the parameters have their gradients, before these are clipped and used."""

    def on_batch_end(self, estimator, info: dict) -> None:
        """Called after each step, with the numbers of epoch (from 0) and step (from 1), the steps, and the loss."""

    def on_epoch_end(self, estimator, record: dict) -> bool | None:
        """Called after ``on_fit_task_end`` of an epoch, with its record; True ends the training."""


class EarlyStopping(Callback):
    """Ends the training when a metric no longer improves, and takes back the best weights.

    Parameters
    ----------
    monitor : str, optional
        Entry of the epoch's record. Default: ``"validation"`` where there is one, else ``"loss"``.
    patience : int
        So many epochs in a row without improvement are borne; the next ends the training.
    min_delta : float
        An improvement by less than this is none.
    mode : {"min", "max"}
        Whether lower or higher is better.
    restore_best : bool
        At the end set the model's parameters to those after the best epoch.

    Attributes
    ----------
    best : float or None
        The best metric.
    best_epoch : int or None
        Its epoch, from 1 as in the records.
    waited : int
        Epochs since.

    Examples
    --------
    >>> from gnncy.training import EarlyStopping
    >>> EarlyStopping(patience=5, mode="max")
    EarlyStopping(monitor=None, patience=5, min_delta=0.0, mode='max', restore_best=True)
    """

    def __init__(self, monitor: str | None = None, *, patience: int = 5, min_delta: float = 0.0, mode: str = "min",
                 restore_best: bool = True):
        self.monitor = monitor
        self.patience = check_int(patience, "patience", 0)
        self.min_delta = check_float(min_delta, "min_delta", 0)
        self.mode = check_choice(mode, "mode", ("min", "max"))
        self.restore_best = bool(restore_best)
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0
        self._weights: dict[str, np.ndarray] = {}

    def setup(self, estimator, context) -> None:
        """Forget an earlier run."""
        self._forget()

    def on_fit_task_end(self, estimator, context) -> bool:
        """Compare the epoch with the best; at the end of the fit take back the best weights."""
        if context.parent is None:
            if self._weights:
                estimator.model.load_state_dict(self._weights)
            return False
        record = estimator.history[-1]
        name = self.monitor or ("validation" if "validation" in record else "loss")
        if name not in record:
            raise ValueError(f"monitor must be an entry of the record, one of {', '.join(record)}; got {name!r}")
        if record[name] is None:
            return False
        value, sign = float(record[name]), 1 if self.mode == "min" else -1
        if not math.isnan(value) and (self.best is None or sign * value < sign * self.best - self.min_delta):
            self.best, self.best_epoch, self.waited = value, record["epoch"], 0
            if self.restore_best:
                self._weights = estimator.model.state_dict()
        else:
            self.waited += 1
        return self.waited > self.patience

    def state_dict(self) -> dict:
        """The best metric, its epoch and weights, and the epochs since.

        Returns
        -------
        dict
            Of arrays, and of numbers ready for JSON.
        """
        weights = {f"weights/{name}": value for name, value in self._weights.items()}
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited} | weights

    def load_state_dict(self, state: dict) -> None:
        """Go on from where a :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict`.
        """
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
        self._weights = {name.removeprefix("weights/"): np.array(value) for name, value in state.items()
                         if name.startswith("weights/")}

    def __repr__(self) -> str:
        return (f"EarlyStopping(monitor={self.monitor!r}, patience={self.patience}, min_delta={self.min_delta}, "
                f"mode={self.mode!r}, restore_best={self.restore_best})")


class CSVLogger(Callback):
    """Writes the history to a file after each epoch, one line an epoch; the file is whole at any moment.

    Parameters
    ----------
    path : path-like

    Examples
    --------
    >>> from gnncy.training import CSVLogger
    >>> logger = CSVLogger("history.csv")
    """

    def __init__(self, path):
        self.path = Path(path)

    def on_fit_task_end(self, estimator, context) -> None:
        """Write the history, that of a resumed run from its start."""
        names = list(dict.fromkeys(name for record in estimator.history for name in record))
        with _files.replacing(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, fieldnames=names)
            writer.writeheader()
            writer.writerows(estimator.history)


class ExitOnSignal(Callback):
    """Saves a snapshot and exits with status 75 when the process is asked to end, as batch systems do before a kill.

    The step that is going on is finished first. The same program, started again, goes on from there to the same bits.
    As a context manager it also ends what comes before or after the training, at once and with the same status.

    Parameters
    ----------
    signals : sequence of int
        By default SIGTERM, and SIGUSR1, which ``sbatch --signal=USR1@60`` sends a minute before the end.

    Raises
    ------
    ValueError
        By the trainer, if it has no ``snapshots`` or does not run in the main thread, where signals arrive.

    Examples
    --------
    >>> import gnncy
    >>> from gnncy.training import ExitOnSignal
    >>> model = gnncy.GraphEncoder(32, checkpoint_dir="run", callbacks=[ExitOnSignal()])
    """

    def __init__(self, signals: Iterable[int] = (signal.SIGTERM, signal.SIGUSR1)):
        self.signals = tuple(signal.Signals(number) for number in signals)
        self.received: signal.Signals | None = None
        self._before: list = []
        self._depth = 0
        self._trainer: Any = None

    def __enter__(self) -> "ExitOnSignal":
        if self._depth == 0:
            self.received = None
            self._before = [signal.signal(number, self._receive) for number in self.signals]
        self._depth += 1
        return self

    def __exit__(self, *exc) -> None:
        self._depth -= 1
        if self._depth == 0:
            for number, handler in zip(self.signals, self._before, strict=True):
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _receive(self, number: int, frame) -> None:
        self.received = signal.Signals(number)
        if self._trainer is not None:
            self._trainer.exit_after_step(SAVED)
            return
        log.warning("%s: this ends here; the same call goes on", self.received.name)
        raise SystemExit(SAVED)

    def setup(self, estimator, context) -> None:
        """Listen."""
        if estimator.snapshots is None:
            raise ValueError("ExitOnSignal needs somewhere to save: give the trainer snapshots=SnapshotFolder(...), or "
                             "the estimator checkpoint_dir")
        self.__enter__()
        self._trainer = estimator

    def on_fit_task_end(self, estimator, context) -> None:
        """Exit, if a signal has come after the last step."""
        if context.task_name == "fit" and self.received is not None:
            raise SystemExit(SAVED)

    def teardown(self, estimator, context) -> None:
        """Listen no longer."""
        if self._trainer is not None:
            self._trainer = None
            self.__exit__()


def call_task_hooks(callbacks: Iterable, hook: str, trainer, task: Task) -> bool:
    """Call a hook of scikit-learn's protocol with the keywords that it asks for; whether one returned True."""
    known = {"X": None, "y": None, "metadata": None, "fitted_estimator": trainer.model}
    stop = False
    for callback in callbacks:
        method = getattr(callback, hook, None)
        if method is None:
            continue
        wanted = [p.name for p in inspect.signature(method).parameters.values() if p.kind == p.KEYWORD_ONLY]
        if unknown := sorted(set(wanted) - known.keys()):
            raise TypeError(f"{type(callback).__name__}.{hook} asks for {', '.join(unknown)}; a hook may ask for "
                            f"{', '.join(known)}")
        stop |= bool(method(trainer, task, **{name: known[name] for name in wanted}))
    return stop
