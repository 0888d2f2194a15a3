"""FULL, PREDICT and CORRECT: the order of steps, the protocol, adaptation, what passes through, and exact resume."""
import dataclasses
import functools
import json
import math

import numpy as np
import pytest

import gnncy
from gnncy import nn, optim
from gnncy.datasets import make_sbm
from gnncy.errors import StorageError
from gnncy.training import GraphLoader, SnapshotFolder, Trainer
from gnncy.training.phases import PhaseConfig, PhaseTrainer, PredictionConfig
from gnncy.training.phases.phase_trainer import Phase

FREE = PredictionConfig("last", min_correlation=None, correction_weight=0.0)
DATA = make_sbm(240, 3, n_features=10, seed=1)


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


# -- what passes through


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


# -- in the Trainer and in GraphEncoder

OPEN = config(2, 3, 2, prediction=PredictionConfig(min_correlation=None))


class Stop(Exception):
    pass


class StopAfter:
    def __init__(self, steps):
        self.left = steps

    def on_batch_end(self, trainer, info):
        self.left -= 1
        if self.left == 0:
            raise Stop


def fit(phases, folder=None, *, stop=None, epochs=4, n_jobs=1, **options):
    model = nn.MLP([10, 16, 4], rng=0)
    made = Trainer(model, optim.Adam(model.parameters(), lr=1e-3), seed=0, max_epochs=epochs,
                   snapshots=None if folder is None else SnapshotFolder(folder), phases=phases,
                   callbacks=[] if stop is None else [StopAfter(stop)], **options)
    try:
        made.fit(GraphLoader(DATA.adjacency, DATA.features, batch_size=40), n_jobs=n_jobs)
    except Stop:
        return None, made
    return np.concatenate([p.data.ravel() for p in model.parameters()]).tobytes(), made


def test_the_trainer_predicts_between_minibatches():
    bits, made = fit(OPEN)
    stats = made.phases.get_stats()
    assert made.total_steps == 24 == stats.backward_passes
    assert stats.predict_steps > 20 and made.history[-1]["predicted_steps"] == stats.predict_steps
    assert set(made.optimizer.counts) == {stats.total_steps}
    assert stats.forward_seconds > 0 and stats.backward_seconds > 0
    assert bits != fit(None)[0]


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}])
def test_behind_a_shut_gate_nothing_is_changed(options):
    shut = PhaseConfig(prediction=PredictionConfig(min_correlation=1.0))
    bits, made = fit(shut, **options)
    assert made.phases.get_stats().predict_steps == 0
    assert bits == fit(None, **options)[0]


def test_predicted_steps_are_clipped_as_true_ones_are():
    _, made = fit(OPEN, clip_value=1e-9)
    assert all(np.abs(p.grad).max() <= 1e-9 for p in made.optimizer.params)


def test_bits_do_not_depend_on_threads():
    assert fit(OPEN, n_jobs=1)[0] == fit(OPEN, n_jobs=3)[0]


@pytest.mark.parametrize("stop", [7, 13])  # a snapshot an epoch, of six minibatches
@pytest.mark.parametrize("extra", [{}, {"gradient_accumulation": 4}, {"gradient_accumulation": 4, "accumulator": Sum}])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path, stop, extra):
    phases = dataclasses.replace(OPEN, **extra)
    assert fit(phases, tmp_path, stop=stop, epochs=3)[0] is None
    assert fit(phases, tmp_path, epochs=3)[0] == fit(phases, epochs=3)[0]


def test_a_checkpoint_without_phases_is_refused(tmp_path):
    fit(None, tmp_path, stop=7)
    with pytest.raises(StorageError, match="no state of phases"):
        fit(OPEN, tmp_path)


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda p: optim.Adam([p.data]), ValueError, "an optimizer of Tensors"),
    (lambda p: optim.Adam([p, nn.Tensor(np.ones(3), requires_grad=True)]), ValueError, "of one dtype"),
])
def test_optimizers_that_cannot_be_phased(make, error, message):
    model = nn.Linear(2, 2, rng=0)
    with pytest.raises(error, match=message):
        Trainer(model, make(next(iter(model.parameters()))), seed=0, max_epochs=1, phases=OPEN)


def test_arguments_of_phases():
    model = nn.Linear(2, 2, rng=0)
    new = functools.partial(Trainer, model, optim.Adam(model.parameters()), seed=0, max_epochs=1)
    with pytest.raises(TypeError, match="phases must be a PhaseConfig, got dict"):
        new(phases={})
    with pytest.raises(ValueError, match="loop of your own"):
        new(phases=PhaseConfig(prediction=PredictionConfig("low_rank")))
    with pytest.raises(TypeError, match="phases must be None or a PhaseConfig"):
        gnncy.GraphEncoder(4, phases=3).fit(DATA.adjacency, features=DATA.features)


def test_graph_encoder_takes_phases(tmp_path):
    def embed(phases, **options):
        encoder = gnncy.GraphEncoder(4, max_epochs=6, random_state=0, phases=phases, **options)
        return encoder.fit_transform(DATA.adjacency, features=DATA.features).tobytes(), encoder

    plain, _ = embed(None)
    opened, encoder = embed(OPEN)
    assert opened != plain and encoder.history_[-1]["predicted_steps"] > 0
    assert "gradient history" in encoder.plan_.stages["train"]
    assert embed(PhaseConfig(prediction=PredictionConfig(min_correlation=1.0)))[0] == plain
    with pytest.raises(Stop):
        embed(OPEN, checkpoint_dir=tmp_path, callbacks=[StopAfter(3)])
    with pytest.raises(StorageError, match="another run"):
        embed(None, checkpoint_dir=tmp_path)
    assert embed(OPEN, checkpoint_dir=tmp_path)[0] == opened
    assert json.dumps(OPEN.describe())


def test_predictable_gradients_need_fewer_backward_passes():
    """S2-5: with short phases and a line through eight gradients, a quadratic at low noise: 27 where plain takes 33."""
    eigenvalues, target = np.geomspace(0.01, 1, 60), 0.021

    def passes(settings, rate, seed):
        rng = np.random.default_rng(seed)
        start = rng.standard_normal(60)
        x = nn.Tensor(start / np.linalg.norm(start) * np.sqrt(60), requires_grad=True)
        optimizer = optim.SGD([x], lr=rate)
        phases, below = None if settings is None else PhaseTrainer.of(optimizer, settings), []

        def update():
            optimizer.step()
            below.append(0.5 * eigenvalues @ x.data**2 <= target)

        for count in range(1, 200):
            x.grad = eigenvalues * x.data + 0.01 * rng.standard_normal(60)
            if phases is None:
                update()
            else:
                phases.drive([x], 0.0, update)
            if any(below):
                return count
        return 200

    def best(settings):
        return min(np.mean([passes(settings, rate, seed) for seed in range(5)]) for rate in (1.0, 1.3, 1.5, 1.7, 1.9))

    ours = PhaseConfig(2, 2, 2, PredictionConfig(min_correlation=None, correction_weight=0.0))
    plain, predicted, gated = best(None), best(ours), best(PhaseConfig())
    assert predicted <= 27 / 33 * plain
    assert predicted <= 27
    assert gated <= 1.05 * plain


# -- with the compressors of optim


@pytest.fixture
def compression():
    from gnncy.optim import compression
    return compression


@pytest.mark.parametrize("name", ["TernaryCompressor", "TopKCompressor", "SignCompressor", "PowerSGDCompressor",
                                  "CountSketchCompressor", "VSAGradientCompressor"])
def test_compressors_serve_in_the_loop_and_resume(tmp_path, compression, name):
    """S2-P1."""
    phases = dataclasses.replace(OPEN, compressor=getattr(compression, name)())
    expected, made = fit(phases, epochs=2)
    stats = made.phases.get_stats()
    assert 0 < stats.bytes_compressed < stats.bytes_full
    assert fit(phases, tmp_path, stop=7, epochs=2)[0] is None
    assert fit(phases, tmp_path, epochs=2)[0] == expected


def test_the_ternary_accumulator_serves_in_the_loop_and_resumes(tmp_path, compression):
    phases = dataclasses.replace(OPEN, gradient_accumulation=4, accumulator=compression.TernaryGradientAccumulator)
    expected, made = fit(phases)
    assert made.phases.get_stats().backward_passes == 24 and made.phases.accumulator.bits > 1
    assert fit(phases, tmp_path, stop=13)[0] is None
    assert fit(phases, tmp_path)[0] == expected
