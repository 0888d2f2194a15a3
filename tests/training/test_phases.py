"""FULL, PREDICT and CORRECT: the order of steps, the protocol, corrections, the gate, adaptation and statistics."""
import dataclasses
import json
import math

import numpy as np
import pytest

from gnncy.training.phases import PhaseConfig, PhaseTrainer, PredictionConfig
from gnncy.training.phases.steps import Phase
from phase_loop import FREE, config, sequence, take, trainer

# -- the order of steps


@pytest.mark.parametrize(("lengths", "cycle"), [
    ((10, 40, 10), "F" * 10 + ("P" * 10 + "C") * 3 + "P" * 10),
    ((2, 4, 2), "FFPPCPP"),
    ((2, 5, 2), "FFPPCPPCP"),
    ((3, 2, 2), "FFFPP"),
    ((1, 3, 1), "FPCPCP"),
    ((2, 3, None), "FFPPP"),
])
def test_a_cycle_has_its_predicted_steps_and_no_correction_at_its_end(lengths, cycle):
    """S2-1 (of 40 predicted steps the reference took 37) and S2-2 (it corrected right before FULL)."""
    phases = trainer(*lengths)
    assert sequence(phases, 3 * len(cycle)) == 3 * cycle
    assert phases.cycle_count == 2
    phases.begin_step()
    assert phases.cycle_count == 3


def test_no_predicted_steps_is_plain_training():
    """S2-3: the reference predicted one step a cycle."""
    assert sequence(trainer(2, 0, 2), 9) == "F" * 9


@pytest.mark.parametrize(("options", "error"), [
    ({"full_steps": 0}, ValueError), ({"predict_steps": -1}, ValueError), ({"correct_every": 0}, ValueError),
    ({"full_steps": 1.5}, TypeError), ({"gradient_accumulation": 0}, ValueError), ({"max_grad_norm": 0}, ValueError),
    ({"loss_threshold": -0.1}, ValueError), ({"loss_threshold": math.nan}, ValueError),
    ({"prediction": "momentum"}, TypeError), ({"full_range": (3, 9)}, ValueError), ({"full_range": (0, 9)}, ValueError),
    ({"predict_range": 5}, TypeError), ({"predict_range": (3, 9)}, ValueError), ({"accumulator": dict}, ValueError),
])
def test_numbers_that_make_no_sense_are_refused(options, error):
    """S2-3: correct_every=0 divided by zero, full_steps=0 predicted from nothing."""
    with pytest.raises(error, match=next(iter(options))):
        PhaseConfig(**options)


def test_what_a_step_is_told():
    phases, found = trainer(2, 2, None), []
    for _ in range(5):
        found.append(phases.begin_step())
        phases._ready = True
        phases.predictor._times = [0.0]
        phases.end_step(1.0)
    assert [tuple(info) for info in found] == [
        ("full", 0, 0, 0, False), ("full", 1, 1, 0, False), ("predict", 0, 2, 0, True), ("predict", 1, 3, 0, False),
        ("full", 0, 4, 1, True)]


# -- the protocol


def test_calls_out_of_turn_raise():
    """S2-4: nothing was checked, and a second begin_step lost a correction."""
    phases = trainer(1, 2, 1)
    for call, message in ((phases.end_step, "outside a step"), (phases.get_predicted_gradients, "outside a step"),
                          (lambda: phases.record_full_gradients({"w": np.ones(5)}), "outside a step"),
                          (lambda: phases.apply_correction({}), "outside a step")):
        with pytest.raises(RuntimeError, match=message):
            call()
    phases.begin_step()
    for call, message in ((phases.begin_step, "called twice"), (phases.end_step, "a FULL step that waits"),
                          (phases.get_predicted_gradients, "a FULL step"),
                          (lambda: phases.apply_correction({}), "a FULL step")):
        with pytest.raises(RuntimeError, match=message):
            call()
    phases.record_full_gradients({"w": np.ones(5)})
    with pytest.raises(RuntimeError, match="with its gradients"):
        phases.record_full_gradients({"w": np.ones(5)})
    with pytest.raises(ValueError, match="needs its loss"):
        phases.end_step()
    phases.end_step(1.0)
    assert phases.begin_step().phase is Phase.PREDICT
    with pytest.raises(RuntimeError, match="a PREDICT step"):
        phases.record_full_gradients({"w": np.ones(5)})
    phases.get_predicted_gradients()
    with pytest.raises(RuntimeError, match="with its gradients"):
        phases.get_predicted_gradients()
    phases.end_step()  # needs no loss
    assert phases.begin_step().phase is Phase.CORRECT


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_training(loss):
    """S2-14: the reference's comparison ignored nan."""
    phases = trainer()
    phases.begin_step()
    phases.record_full_gradients({"w": np.ones(5)})
    with pytest.raises(FloatingPointError, match="in step 1"):
        phases.end_step(loss)


# -- corrections


def test_a_correction_is_applied_and_never_to_a_true_gradient():
    """S2-9: the reference collected corrections without end, and nothing applied them."""
    options = PredictionConfig("last", min_correlation=None, correction_weight=1.0)
    phases, base = trainer(1, 4, 2, prediction=options), np.arange(1.0, 6.0)
    used = [take(phases, gradient)[1] for gradient in (base, None, None, base / 2, None)]
    np.testing.assert_array_equal(used[1], base)
    np.testing.assert_array_equal(used[3], base / 2)  # the true one, as it is
    assert phases.predictor.trust == 0.5
    np.testing.assert_allclose(used[4], base / 4)
    phases.begin_step()
    own = {"w": base.copy()}
    phases.apply_correction(own)
    np.testing.assert_allclose(own["w"], base / 2)


def test_a_correction_looks_at_its_own_step():
    """S2-8: the prediction that is measured is the one for the step of the true gradient."""
    options = PredictionConfig("momentum", momentum=1.0, min_correlation=None)
    phases = trainer(2, 4, 2, prediction=options)
    slope = np.arange(1.0, 6.0)
    for step in range(5):
        letter, _ = take(phases, (step + 1) * slope)
    assert letter == "C"
    assert phases.predictor.quality[-1].relative_error < 1e-6
    assert phases.predictor.quality[-1].horizon == 3


# -- the gate


def test_a_shut_gate_is_plain_training():
    """S2-11: min_correlation was never read."""
    rng = np.random.default_rng(0)
    phases = trainer(2, 4, 2, prediction=PredictionConfig(min_correlation=0.8))
    letters = "".join(take(phases, rng.standard_normal(5))[0] for _ in range(30))
    assert letters == "F" * 30


def test_behind_a_shut_gate_few_gradients_are_looked_at_and_it_opens_again():
    rng = np.random.default_rng(0)
    phases = trainer(2, 2, None, prediction=PredictionConfig("last", history_size=1, min_correlation=0.8))
    assert "P" not in "".join(take(phases, rng.standard_normal(5))[0] for _ in range(700))
    assert phases.predictor.recorded < 60
    letters = sequence(phases, 500)
    assert "P" in letters[:300] and letters[-60:].count("P") == 30


def test_a_correction_that_finds_the_gate_shut_ends_the_cycle():
    phases = trainer(2, 8, 2, prediction=PredictionConfig("last", min_correlation=0.8), adaptive_phases=True)
    letters = "".join(take(phases, np.ones(5) * (-1 if step >= 4 else 1))[0] for step in range(6))
    assert letters == "FFPPCF"
    stats = phases.get_stats()
    assert (stats.current_full_steps, stats.current_predict_steps) == (3, 4)


def test_the_horizon_is_never_passed():
    phases = trainer(2, 6, None, prediction=dataclasses.replace(FREE, horizon=2))
    assert sequence(phases, 10) == "FFPPCPPCPP"


# -- adaptation


def cycles(phases, losses):
    """Run a cycle for each loss, and begin the next; the lengths that then hold."""
    lengths = []
    for loss in losses:
        take(phases, loss=loss)
        while phases.next_phase is not Phase.FULL or phases.current_phase is Phase.FULL:
            take(phases, loss=None if phases.next_phase is Phase.PREDICT else loss)
        phases.begin_step()
        stats = phases.get_stats()
        lengths.append((stats.current_full_steps, stats.current_predict_steps))
        phases.record_full_gradients({"w": np.ones(5)})
        phases.end_step(loss)
    return lengths


def test_adaptation_keeps_to_the_ranges_and_gives_back():
    """S2-12 (it changed the user's configuration, for good) and S2-13 (100 full steps became 50, 4 predicted 10)."""
    given = config(4, 8, None, adaptive_phases=True, full_range=(4, 7), predict_range=(3, 8))
    phases = PhaseTrainer({"w": (5,)}, given, np.float64)
    assert cycles(phases, [1, 2, 4, 8, 16])[-1] == (7, 3)
    assert given == config(4, 8, None, adaptive_phases=True, full_range=(4, 7), predict_range=(3, 8))
    assert phases.config is given
    phases.reset()
    assert (phases.get_stats().current_full_steps, phases.get_stats().current_predict_steps) == (4, 8)
    assert sequence(phases, 12) == "FFFFPPPPPPPP"


def test_lengths_come_back_when_the_loss_falls():
    phases = trainer(4, 8, None, adaptive_phases=True)
    worse = cycles(phases, [1, 2, 4])[-1]
    assert worse[0] > 4 and worse[1] < 8
    assert cycles(phases, [1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001])[-1] == (4, 8)


@pytest.mark.parametrize(("losses", "longer"), [([-2.0, -1.0], True), ([-1.0, -2.0], False), ([0.0, 0.0], False)])
def test_the_sign_of_the_loss_does_not_matter(losses, longer):
    """S2-14: a falling negative loss counted as rising."""
    phases = trainer(4, 8, None, adaptive_phases=True)
    assert (cycles(phases, [losses[0]] * 2 + [losses[1]] * 2)[-1][0] > 4) is longer


def test_losses_of_predicted_steps_do_not_count():
    """S2-14: FULL and PREDICT losses were mixed."""
    phases, lengths = trainer(2, 2, None, adaptive_phases=True), set()
    for _ in range(24):
        take(phases, loss=1000.0 if phases.next_phase is Phase.PREDICT else 1.0)
        lengths.add(phases.get_stats().current_full_steps)
    assert lengths == {2}
    assert phases.get_stats().predict_loss == 1000.0


def test_memory_does_not_grow():
    """S2-15: losses were kept for ever."""
    phases = trainer(1, 1, None)
    sequence(phases, 50)
    before = len(json.dumps({k: v for k, v in phases.state_dict().items() if not isinstance(v, np.ndarray)}))
    sequence(phases, 600)
    after = len(json.dumps({k: v for k, v in phases.state_dict().items() if not isinstance(v, np.ndarray)}))
    assert after < before + 1500


# -- statistics


def test_statistics_count_and_time_and_claim_no_speed():
    """S2-16 and S2-28: steps over backward passes was called a speed-up; corrections were left out of the sum."""
    phases = trainer(5, 20, 5)
    letters = sequence(phases, 280)
    stats = phases.get_stats()
    assert (stats.full_steps, stats.predict_steps, stats.correct_steps) == tuple(map(letters.count, "FPC"))
    assert stats.total_steps == 280 and stats.backward_passes == stats.full_steps + stats.correct_steps == 80
    assert stats.predict_seconds > 0 and stats.overhead_seconds > 0 and stats.forward_seconds == 0
    with phases.timed("backward"):
        pass
    phases.add_seconds("forward", 2.0)
    stats = phases.get_stats()
    assert stats.forward_seconds == 2.0 and 0 < stats.backward_seconds < 1
    assert not any("speed" in field.name for field in dataclasses.fields(stats))
    with pytest.raises(ValueError, match="what must be one of"):
        phases.add_seconds("sleep", 1.0)
