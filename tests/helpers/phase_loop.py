"""A PhaseTrainer of one parameter, driven step by step."""
import numpy as np

from gnncy.training.phases import PhaseConfig, PhaseTrainer, PredictionConfig
from gnncy.training.phases.steps import Phase

FREE = PredictionConfig("last", min_correlation=None, correction_weight=0.0)


def config(full=2, predict=4, every=2, **options):
    return PhaseConfig(full, predict, every, **{"prediction": FREE, "adaptive_phases": False} | options)


def trainer(*lengths, **options):
    return PhaseTrainer({"w": (5,)}, config(*lengths, **options), np.float64)


def take(phases, gradient=None, loss=1.0):
    """One whole step: its letter, and the gradient used."""
    info = phases.begin_step()
    if info.phase is Phase.PREDICT:
        used = phases.get_predicted_gradients()
    else:
        used = phases.record_full_gradients({"w": np.ones(5) if gradient is None else gradient})
    phases.end_step(loss)
    return info.phase[0].upper(), used["w"]


def sequence(phases, steps, **options):
    return "".join(take(phases, **options)[0] for _ in range(steps))


class Sum:
    """An accumulator of one's own."""

    def __init__(self, shapes):
        self.total, self.count = {name: np.zeros(shape) for name, shape in shapes.items()}, 0

    def accumulate(self, gradients):
        self.count += 1
        for name, x in gradients.items():
            self.total[name] += x

    def get_accumulated(self):
        return {name: x / self.count for name, x in self.total.items()}

    def reset(self):
        self.count = 0
        for x in self.total.values():
            x[...] = 0

    def state_dict(self):
        return {"count": self.count, "total": {name: x.copy() for name, x in self.total.items()}}

    def load_state_dict(self, state):
        self.count, self.total = state["count"], {name: np.array(x) for name, x in state["total"].items()}
