"""What passes through a PhaseTrainer (compressor, accumulator, clipping), and its state."""
import dataclasses
import json

import numpy as np
import pytest

from gnncy.training.phases import PhaseTrainer, PredictionConfig
from phase_loop import Sum, config, take, trainer


class Halves:
    """Sends every second element, the others with the next message; what it holds is part of its state."""

    def __init__(self):
        self.turn, self.rest = 0, {}

    def compress(self, gradients):
        rest = {name: self.rest.get(name, 0) + x for name, x in gradients.items()}
        sent = {name: np.where(np.arange(x.size) % 2 == self.turn, x, 0) for name, x in rest.items()}
        self.turn, self.rest = 1 - self.turn, {name: rest[name] - sent[name] for name in rest}
        return Message(sent)

    def decompress(self, message):
        return message.sent

    def state_dict(self):
        return {"turn": self.turn, "rest": {name: x.copy() for name, x in self.rest.items()}}

    def load_state_dict(self, state):
        self.turn, self.rest = state["turn"], {name: np.array(x) for name, x in state.get("rest", {}).items()}


class Message:
    def __init__(self, sent):
        self.sent = sent
        self.nbytes = sum(x.nbytes for x in sent.values()) // 2


def test_gradients_pass_through_the_compressor():
    """S2-P1: the reference built a compressor and an accumulator and used neither."""
    given = Halves()
    phases = trainer(2, 1, None, compressor=given)
    np.testing.assert_array_equal(take(phases)[1], [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(take(phases)[1], [0, 2, 0, 2, 0])
    np.testing.assert_array_equal(take(phases)[1], [0, 2, 0, 2, 0])  # predicted from what was used
    stats = phases.get_stats()
    assert (stats.bytes_full, stats.bytes_compressed) == (80, 40)
    assert given.turn == 0 and not given.rest
    phases.reset()
    np.testing.assert_array_equal(take(phases)[1], [1, 0, 1, 0, 1])


@pytest.mark.parametrize("accumulator", [None, Sum])
def test_accumulation_takes_the_mean(accumulator):
    """S2-P2: gradient_accumulation was never read."""
    phases = trainer(1, 1, None, gradient_accumulation=3, accumulator=accumulator)
    for cycle in range(2):
        phases.begin_step()
        first = np.full(5, 3.0 + cycle)
        assert phases.record_full_gradients({"w": first}) is None
        with pytest.raises(RuntimeError, match="waits for gradients"):
            phases.end_step(1.0)
        assert phases.record_full_gradients({"w": np.zeros(5)}) is None
        np.testing.assert_allclose(phases.record_full_gradients({"w": np.zeros(5)})["w"], 1 + cycle / 3)
        np.testing.assert_array_equal(first, 3.0 + cycle)
        phases.end_step(1.0)
        assert take(phases)[0] == "P"
    assert phases.get_stats().backward_passes == 6


def test_true_and_predicted_gradients_are_clipped():
    """S2-P2: max_grad_norm was never read."""
    phases = trainer(1, 1, None, max_grad_norm=1.0)
    given = np.full(5, 3.0)
    for letter in "FP":
        found, used = take(phases, given)
        assert found == letter
        assert np.linalg.norm(used) == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_array_equal(given, 3.0)


# -- state


@pytest.mark.parametrize("at", range(1, 14))
@pytest.mark.parametrize("extra", [{}, {"compressor": Halves()}, {"gradient_accumulation": 2},
                                   {"gradient_accumulation": 2, "accumulator": Sum}])
def test_a_loaded_trainer_goes_on_with_the_same_bits(at, extra):
    """S2-30: there was no state to save. Taken in the midst of a step and of an accumulation too."""
    options = config(2, 4, 2, prediction=PredictionConfig(min_correlation=0.2), adaptive_phases=True, **extra)

    def new():
        return PhaseTrainer({"w": (5,)}, options, np.float64)

    def calls(seed=3):
        rng = np.random.default_rng(seed)
        for _ in range(40):
            noise = rng.standard_normal(5)
            yield np.ones(5) + 0.3 * noise, float(np.exp(noise[0]))

    def advance(phases, gradient, loss):
        """One call of the protocol: as little as can lie between two snapshots."""
        if not phases._open:
            phases.begin_step()
        elif phases._ready:
            phases.end_step(loss)
        elif phases.should_compute_full():
            used = phases.record_full_gradients({"w": gradient})
            return b"" if used is None else used["w"].tobytes()
        else:
            return phases.get_predicted_gradients()["w"].tobytes()
        return b""

    whole, cut, out = new(), new(), ([], [])
    for number, call in enumerate(calls()):
        if number == at:
            state = cut.state_dict()
            arrays = {k: v for k, v in state.items() if isinstance(v, np.ndarray)}
            state = json.loads(json.dumps({k: v for k, v in state.items() if k not in arrays})) | arrays
            cut = new()
            cut.load_state_dict(state)
        for phases, found in zip((whole, cut), out, strict=True):
            found.append(advance(phases, *call))
    assert out[0] == out[1]
    ours, theirs = ({k: v for k, v in dataclasses.asdict(p.get_stats()).items() if "seconds" not in k}
                    for p in (whole, cut))
    assert ours == theirs


def test_names_may_hold_anything():
    names = ("layers/0/weight", "~1", "w")
    for extra in ({"gradient_accumulation": 2}, {"compressor": Halves()}):
        phases = [PhaseTrainer(dict.fromkeys(names, (2,)), config(**extra)) for _ in range(2)]
        phases[0].begin_step()
        phases[0].record_full_gradients({name: np.ones(2, np.float32) for name in names})
        phases[1].load_state_dict(phases[0].state_dict())
        np.testing.assert_equal(phases[1].state_dict(), phases[0].state_dict())


def test_a_state_of_another_configuration_is_refused():
    with pytest.raises(ValueError, match="with a compressor"):
        trainer().load_state_dict(trainer(compressor=Halves()).state_dict())
