"""What a step is, and what is told of those done."""
import enum
from dataclasses import dataclass
from typing import NamedTuple


class Phase(enum.StrEnum):
    """What a step takes its gradients from."""

    FULL = "full"
    PREDICT = "predict"
    CORRECT = "correct"


class StepInfo(NamedTuple):
    """What a step is.

    Attributes
    ----------
    phase : {"full", "predict", "correct"}
    phase_step : int
        Steps of this phase before it, since the phase began.
    total_step, cycle : int
        Steps and cycles before it.
    phase_changed : bool
        Whether the step before was in another phase.
    """

    phase: Phase
    phase_step: int
    total_step: int
    cycle: int
    phase_changed: bool


@dataclass(frozen=True)
class PhaseStatistics:
    """What :meth:`PhaseTrainer.get_stats` tells.

    Attributes
    ----------
    total_steps, cycles, full_steps, predict_steps, correct_steps : int
        Done so far.
    backward_passes : int
        Minibatches that went backward, ``gradient_accumulation`` of them a true step.
    current_full_steps, current_predict_steps : int
        Lengths of the phases as they are adapted.
    correlation, relative_error, trust : float or None
        Of the predictor.
    full_loss, predict_loss, correct_loss : float or None
        Mean of the last 100 of each phase, where losses were told.
    forward_seconds, backward_seconds, predict_seconds, overhead_seconds : float
        Where time went; overhead is recording, compressing and clipping. Forward and backward are what was timed
        with :meth:`PhaseTrainer.timed`.
    bytes_full, bytes_compressed : int
        Of all true gradients, before and after the compressor; 0 without one.
    """

    total_steps: int
    cycles: int
    full_steps: int
    predict_steps: int
    correct_steps: int
    backward_passes: int
    current_full_steps: int
    current_predict_steps: int
    correlation: float | None
    relative_error: float | None
    trust: float
    full_loss: float | None
    predict_loss: float | None
    correct_loss: float | None
    forward_seconds: float
    backward_seconds: float
    predict_seconds: float
    overhead_seconds: float
    bytes_full: int
    bytes_compressed: int
