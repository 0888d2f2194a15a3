"""FULL, PREDICT and CORRECT steps in turn, as a protocol that is checked."""
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from gnncy._check import check_choice, check_float
from gnncy.nn import Tensor
from gnncy.optim import Optimizer, clip_grad_norm_
from gnncy.training.phases.config import PhaseConfig
from gnncy.training.phases.predictor import GradientPredictor
from gnncy.training.phases.steps import Phase, PhaseStatistics, StepInfo

KEPT_LOSSES = 100
LOOKS = 6  # true gradients that are recorded before a shut gate is believed
RESTS = (16, 128)  # true steps that are then not recorded: at first, and at most
IMPROVED = 0.05  # share by which a cycle's loss has to fall before fewer true gradients are taken
CLOCKS = ("forward", "backward", "predict", "overhead")


class PhaseTrainer:
    """Says of each step whether it needs a true gradient, and predicts those of the others.

    A cycle is ``full_steps`` true gradients (FULL), then ``predict_steps`` predicted ones (PREDICT), with a single true
    one after every ``correct_every`` of them (CORRECT), but not where the cycle ends anyway. Predictions begin when the
    predictor's gate allows it and not before; a CORRECT step that finds it shut ends the cycle. With
    ``adaptive_phases``, a cycle ended so, or one whose loss rose, makes the next one's FULL phase longer and its
    PREDICT phase shorter; one whose loss fell brings them back. While the gate stays shut, the predictor looks at ever
    fewer of the gradients, so that it costs little where it has nothing to give.

    Each step is :meth:`begin_step`; then, by its phase, :meth:`record_full_gradients` or
    :meth:`get_predicted_gradients`; then :meth:`end_step`. A call out of turn raises. :meth:`drive` does all that for
    the Tensors of an optimizer.

    Parameters
    ----------
    shapes : dict of tuple
        Shape of each parameter, by name.
    config : PhaseConfig, optional
    dtype : {float32, float64}
        Of the gradients.

    Attributes
    ----------
    config : PhaseConfig
        As given: what is adapted stands elsewhere.
    predictor : GradientPredictor
    compressor, accumulator : object or None
        A copy of the configuration's compressor, and what its ``accumulator`` made.

    Notes
    -----
    Whether this trains faster is for the clock to say, at equal loss: a predicted step is cheap, and worth less than a
    true one. A larger learning rate is cheaper still, so tune it first.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training.phases import PhaseConfig, PhaseTrainer
    >>> phases = PhaseTrainer({"w": (2,)}, PhaseConfig(full_steps=2, predict_steps=2, correct_every=None))
    >>> w, seen = np.array([1.0, -1.0], np.float32), ""
    >>> for _ in range(8):
    ...     info = phases.begin_step()
    ...     if phases.should_compute_full():
    ...         gradients, loss = phases.record_full_gradients({"w": w}), float(w @ w) / 2
    ...     else:
    ...         gradients, loss = phases.get_predicted_gradients(), None
    ...     w = w - 0.1 * gradients["w"]
    ...     phases.end_step(loss)
    ...     seen += info.phase[0].upper()
    >>> seen
    'FFPPFFPP'
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], config: PhaseConfig | None = None, dtype=np.float32):
        self.config = PhaseConfig() if config is None else config
        self.predictor = GradientPredictor(shapes, self.config.prediction, dtype)
        self.reset()

    @classmethod
    def of(cls, optimizer: Optimizer, config: PhaseConfig) -> "PhaseTrainer":
        """For the parameters of an optimizer, which must be Tensors of one dtype.

        Parameters
        ----------
        optimizer : Optimizer
            One that takes dense gradients.
        config : PhaseConfig

        Returns
        -------
        PhaseTrainer
            Parameters have their numbers for names.
        """
        if not isinstance(config, PhaseConfig):
            raise TypeError(f"phases must be a PhaseConfig, got {type(config).__name__}")
        if config.prediction.method == "low_rank":
            raise ValueError("method='low_rank' predicts from features of a minibatch, which only you know: use a "
                             "PhaseTrainer in a loop of your own, or another method")
        params = optimizer.params
        if not all(isinstance(param, Tensor) for param in params) or len({param.dtype for param in params}) > 1:
            raise ValueError("phases need an optimizer of Tensors of one dtype, and dense gradients; leave phases out")
        return cls({str(i): param.shape for i, param in enumerate(params)}, config, params[0].dtype)

    def reset(self) -> None:
        """Begin anew, with the lengths of the phases and the compressor as they were configured."""
        config = self.config
        self.predictor.reset()
        self.compressor = copy.deepcopy(config.compressor)
        self.accumulator = None if config.accumulator is None else config.accumulator(self.predictor.shapes)
        self._full_steps, self._predict_steps = config.full_steps, config.predict_steps
        self._phase, self._phase_step = Phase.FULL, 0
        self._predicted, self._since_true = 0, 0  # steps predicted in this cycle, and since its last true gradient
        self._cycle, self._total = 0, 0
        self._counts = dict.fromkeys(Phase, 0)
        self._losses: dict[Phase, list[float]] = {phase: [] for phase in Phase}
        self._cycle_loss, self._cycle_count = 0.0, 0
        self._last_cycle: float | None = None
        self._looked, self._rest, self._next_rest = 0, 0, RESTS[0]
        self._failed = False  # the last CORRECT step found the gate shut
        self._open = False  # between begin_step and end_step
        self._ready = False  # the open step has its gradients
        self._sum: dict[str, np.ndarray] = {}
        self._added, self._added_loss, self._passes = 0, 0.0, 0
        self._seconds = dict.fromkeys(CLOCKS, 0.0)
        self._bytes = [0, 0]

    # -- the protocol

    @property
    def current_phase(self) -> Phase:
        """Of the step that is open, or else of the last."""
        return self._phase

    @property
    def next_phase(self) -> Phase:
        """Of the step that :meth:`begin_step` will open; of the open one, if there is one."""
        if self._open:
            return self._phase
        if self._phase is Phase.FULL:
            begin = self._phase_step >= self._full_steps and self._predict_steps > 0
            return Phase.PREDICT if begin and not self._needs_true() else Phase.FULL
        if self._predicted >= self._predict_steps or (self._phase is Phase.CORRECT and self._needs_true()):
            return Phase.FULL
        every = self.config.correct_every
        due = every is not None and self._since_true >= every
        return Phase.CORRECT if due or self._needs_true() else Phase.PREDICT

    @property
    def total_step(self) -> int:
        """Steps done."""
        return self._total

    @property
    def cycle_count(self) -> int:
        """Cycles done."""
        return self._cycle

    def should_compute_full(self) -> bool:
        """Whether the next step, or the open one, needs a true gradient."""
        return self.next_phase is not Phase.PREDICT

    def begin_step(self) -> StepInfo:
        """Open a step; says what it needs.

        Returns
        -------
        StepInfo
        """
        if self._open:
            raise RuntimeError("begin_step was called twice: end the step before with end_step")
        phase, before = self.next_phase, self._phase
        if phase is not before:
            self._enter(phase)
        self._open, self._ready = True, False
        return StepInfo(phase, self._phase_step, self._total, self._cycle, phase is not before)

    def record_full_gradients(self, gradients: Mapping[str, np.ndarray], features=None
                              ) -> Mapping[str, np.ndarray] | None:
        """Take the true gradients of a FULL or CORRECT step; gives those to be used.

        Parameters
        ----------
        gradients : dict of array
            Of all parameters; not changed.
        features : array, optional
            For ``method="low_rank"``: see :meth:`GradientPredictor.record`.

        Returns
        -------
        dict of array or None
            The gradients given, or new ones if they were accumulated, compressed or clipped. None as long as
            ``gradient_accumulation`` asks for another minibatch's.
        """
        if not self._open or self._phase is Phase.PREDICT or self._ready:
            raise RuntimeError(f"record_full_gradients is for a FULL or CORRECT step without gradients, this is "
                               f"{self._where()}")
        with self.timed("overhead"):
            self._passes += 1
            mean = self._accumulate(gradients)
            if mean is None:
                return None
            used = self._compress(mean)
            if self._rest:
                self._rest -= 1
            else:
                self.predictor.record(used, self._total, features)
                self._failed = self._phase is Phase.CORRECT and self._needs_true()
                self._look_less_often()
            self._ready = True
            return self._clip(used, own=used is not gradients)

    def get_predicted_gradients(self, features=None, control: tuple | None = None) -> dict[str, np.ndarray]:
        """The predicted gradients of a PREDICT step, corrected and clipped.

        Parameters
        ----------
        features, control
            For ``method="low_rank"``: see :meth:`GradientPredictor.predict`.

        Returns
        -------
        dict of array
        """
        if not self._open or self._phase is not Phase.PREDICT or self._ready:
            raise RuntimeError(f"get_predicted_gradients is for a PREDICT step without gradients, this is "
                               f"{self._where()}")
        with self.timed("predict"):
            predicted = self.predictor.predict(self._total, features, control)
            self._ready = True
            return dict(self._clip(predicted, own=True))

    def apply_correction(self, gradients: Mapping[str, np.ndarray]) -> None:
        """Scale predicted gradients, in place, by what earlier predictions proved to be worth.

        :meth:`get_predicted_gradients` has done so already; this is for gradients that were predicted by other means.
        A true gradient is never changed.

        Parameters
        ----------
        gradients : dict of array
        """
        if not self._open or self._phase is not Phase.PREDICT:
            raise RuntimeError(f"apply_correction is for predicted gradients, in a PREDICT step, this is "
                               f"{self._where()}")
        for gradient in gradients.values():
            gradient *= gradient.dtype.type(self.predictor.trust)

    def end_step(self, loss: float | None = None) -> None:
        """Close the step.

        Parameters
        ----------
        loss : float, optional
            Needed of FULL and CORRECT steps; PREDICT steps need no forward pass and often have none.

        Raises
        ------
        FloatingPointError
            If the loss is nan or infinite.
        """
        if not self._ready:
            raise RuntimeError(f"end_step is for a step that has its gradients, this is {self._where()}")
        if loss is None and self._phase is not Phase.PREDICT:
            raise ValueError(f"a {self._phase.name} step needs its loss: end_step(loss)")
        if loss is not None:
            loss = float(loss)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss became {loss} in step {self._total + 1}; lower the learning rate")
            self._losses[self._phase] = [*self._losses[self._phase], loss][-KEPT_LOSSES:]
            if self._phase is Phase.FULL:
                self._cycle_loss, self._cycle_count = self._cycle_loss + loss, self._cycle_count + 1
        self._open = self._ready = False
        self._counts[self._phase] += 1
        self._phase_step += 1
        self._total += 1
        if self._phase is Phase.PREDICT:
            self._predicted += 1
            self._since_true += 1
        else:
            self._since_true = 0

    def drive(self, params: Sequence, loss: float, update: Callable[[], Any]) -> None:
        """The step of a minibatch whose gradients stand in Tensors, and the predicted steps that follow it.

        Parameters
        ----------
        params : sequence of Tensor
            In the order of ``shapes``. One without a gradient counts as zeros, and stays without one.
        loss : float
            Of the minibatch.
        update : callable
            Changes the parameters by the gradients that then stand in the Tensors.
        """
        if not self._open:
            self.begin_step()
        given = dict(zip(self.predictor.shapes, params, strict=True))
        gradients = {name: np.zeros(p.shape, p.dtype) if p.grad is None else p.grad for name, p in given.items()}
        present = {name: p for name, p in given.items() if p.grad is not None}
        self._added_loss += loss
        used = self.record_full_gradients(gradients)
        if used is None:
            return
        mean_loss, self._added_loss = self._added_loss / self.config.gradient_accumulation, 0.0
        _replace(present, used)
        update()
        self.end_step(mean_loss)
        while self.next_phase is Phase.PREDICT:
            self.begin_step()
            _replace(present, self.get_predicted_gradients())
            update()
            self.end_step()

    # -- what it tells

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time spent inside to a clock: ``with phases.timed("backward"): loss.backward()``.

        Parameters
        ----------
        what : {"forward", "backward", "predict", "overhead"}
        """
        check_choice(what, "what", CLOCKS)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - began

    def add_seconds(self, what: str, seconds: float) -> None:
        """Add time that was measured elsewhere to a clock.

        Parameters
        ----------
        what : {"forward", "backward", "predict", "overhead"}
        seconds : float
        """
        self._seconds[check_choice(what, "what", CLOCKS)] += check_float(seconds, "seconds", 0)

    def get_stats(self) -> PhaseStatistics:
        """Counts, losses and times so far.

        Returns
        -------
        PhaseStatistics
        """
        def mean(phase: Phase) -> float | None:
            losses = self._losses[phase]
            return sum(losses) / len(losses) if losses else None

        measured: dict[str, Any] = {f"{phase}_steps": self._counts[phase] for phase in Phase}
        measured |= {f"{phase}_loss": mean(phase) for phase in Phase}
        measured |= {f"{clock}_seconds": spent for clock, spent in self._seconds.items()}
        return PhaseStatistics(
            total_steps=self._total, cycles=self._cycle, backward_passes=self._passes,
            current_full_steps=self._full_steps, current_predict_steps=self._predict_steps,
            correlation=self.predictor.correlation, relative_error=self.predictor.relative_error,
            trust=self.predictor.trust, bytes_full=self._bytes[0], bytes_compressed=self._bytes[1],
            **measured)

    # -- persistence

    def state_dict(self) -> dict:
        """All that the next steps depend on, in the midst of a step too.

        Returns
        -------
        dict
            Of arrays, and of numbers ready for JSON; names hold slashes.
        """
        numbers = {name: getattr(self, f"_{name}") for name in _NUMBERS}
        numbers |= {"phase": str(self._phase), "counts": list(self._counts.values()), "bytes": list(self._bytes),
                    "losses": [list(losses) for losses in self._losses.values()], "seconds": dict(self._seconds)}
        parts = {"predictor": self.predictor, "compressor": self.compressor, "accumulator": self.accumulator}
        nested = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return numbers | _flatten(nested | {"sum": {name: x.copy() for name, x in self._sum.items()}})

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where a :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            Of a trainer with the same shapes and configuration.
        """
        nested = _nest(state)
        for name in ("compressor", "accumulator"):
            if (name in nested) != (getattr(self, name) is not None):
                raise ValueError(f"the state was taken {'with' if name in nested else 'without'} a {name}, other than "
                                 "this trainer; use the same configuration")
        self.reset()
        self.predictor.load_state_dict(nested["predictor"])
        for name in ("compressor", "accumulator"):
            if name in nested:
                getattr(self, name).load_state_dict(nested[name])
        for name in _NUMBERS:
            setattr(self, f"_{name}", state[name])
        self._phase = Phase(state["phase"])
        self._counts = dict(zip(Phase, state["counts"], strict=True))
        self._losses = {phase: list(losses) for phase, losses in zip(Phase, state["losses"], strict=True)}
        self._bytes, self._seconds = list(state["bytes"]), dict(nested["seconds"])
        self._sum = {name: np.array(x) for name, x in nested.get("sum", {}).items()}

    # -- the parts

    def _needs_true(self) -> bool:
        return self.predictor.should_compute_full(self._total)

    def _look_less_often(self) -> None:
        """While the gate stays shut, rest after each look at a few gradients."""
        self._looked += 1
        if self._phase is Phase.FULL and self._looked >= LOOKS and self._needs_true():
            self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, RESTS[1])
            self._looked = 0

    def _enter(self, phase: Phase) -> None:
        self._looked, self._next_rest = 0, RESTS[0]
        if phase is Phase.FULL:
            self._cycle += 1
            self._adapt()
        if self._phase is Phase.FULL:
            self._predicted = self._since_true = 0
        self._phase, self._phase_step = phase, 0

    def _adapt(self) -> None:
        """Fit the lengths of the phases at the end of a cycle."""
        mean = self._cycle_loss / self._cycle_count if self._cycle_count else None
        last, self._last_cycle = self._last_cycle, mean
        self._cycle_loss, self._cycle_count = 0.0, 0
        failed, self._failed = self._failed, False
        if not self.config.adaptive_phases:
            return
        (least_full, most_full), (least_predict, most_predict) = self._ranges()
        rise = 0.0 if mean is None or last is None else mean - last
        if failed or rise > self.config.loss_threshold * abs(last or 0.0):
            self._full_steps = min(self._full_steps + max(1, self._full_steps // 2), most_full)
            self._predict_steps = max(self._predict_steps // 2, least_predict)
        elif -rise > IMPROVED * abs(last or 0.0):
            self._full_steps = max(self._full_steps - max(1, self._full_steps // 5), least_full)
            self._predict_steps = min(self._predict_steps + max(1, self._predict_steps // 8), most_predict)

    def _ranges(self) -> tuple[tuple[int, int], tuple[int, int]]:
        full, predict = self.config.full_range, self.config.predict_range
        assert full is not None and predict is not None  # the configuration has filled them in
        return full, predict

    def _accumulate(self, gradients: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray] | None:
        count = self.config.gradient_accumulation
        if count == 1:
            return gradients
        if self.accumulator is not None:
            self.accumulator.accumulate(gradients)
        elif self._added == 0:
            self._sum = {name: np.array(x) for name, x in gradients.items()}
        else:
            for name, total in self._sum.items():
                total += gradients[name]
        self._added += 1
        if self._added < count:
            return None
        self._added = 0
        if self.accumulator is not None:
            mean = self.accumulator.get_accumulated()
            self.accumulator.reset()
            return mean
        added, self._sum = self._sum, {}
        return {name: x / x.dtype.type(count) for name, x in added.items()}

    def _compress(self, gradients: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if self.compressor is None:
            return gradients
        message = self.compressor.compress(gradients)
        self._bytes[0] += sum(x.nbytes for x in gradients.values())
        self._bytes[1] += int(message.nbytes)
        return self.compressor.decompress(message)

    def _clip(self, gradients: Mapping[str, np.ndarray], *, own: bool) -> Mapping[str, np.ndarray]:
        if self.config.max_grad_norm is None:
            return gradients
        clipped = dict(gradients) if own else {name: x.copy() for name, x in gradients.items()}
        clip_grad_norm_(clipped.values(), self.config.max_grad_norm)
        return clipped

    def _where(self) -> str:
        if not self._open:
            return "outside a step: call begin_step first"
        return f"a {self._phase.name} step {'with its gradients' if self._ready else 'that waits for gradients'}"


_NUMBERS = ("full_steps", "predict_steps", "phase_step", "predicted", "since_true", "cycle", "total", "cycle_loss",
            "cycle_count", "last_cycle", "looked", "rest", "next_rest", "failed", "open", "ready", "added",
            "added_loss", "passes")


def _replace(params: Mapping[str, Any], gradients: Mapping[str, np.ndarray]) -> None:
    for name, param in params.items():
        if gradients[name] is not param.grad:
            param.grad[...] = gradients[name]


def _flatten(nested: Mapping, prefix: str = "") -> dict:
    """Nested dicts as one, by paths as in JSON pointers."""
    flat: dict = {}
    for name, value in nested.items():
        path = prefix + str(name).replace("~", "~0").replace("/", "~1")
        flat |= _flatten(value, f"{path}/") if isinstance(value, dict) and value else {path: value}
    return flat


def _nest(flat: Mapping) -> dict:
    nested: dict = {}
    for path, value in flat.items():
        *outer, last = (name.replace("~1", "/").replace("~0", "~") for name in path.split("/"))
        inner = nested
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return nested
