"""Curricula, temperature and weights: their values, their one convention, and that they reach the loss."""
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from gnncy import losses, nn, optim, storage, training
from gnncy._random import derive, stream
from gnncy.optim import CosineSchedule, ExponentialSchedule, LinearSchedule, StepSchedule
from gnncy.training import CurriculumScheduler, CurriculumStage, LossWeightScheduler, Schedules, TemperatureScheduler


def test_default_stages():
    curriculum = CurriculumScheduler()
    assert curriculum.value.temperature == 0.5
    for _ in range(9):
        assert curriculum.step().name == "easy"
    stage = curriculum.step()
    assert (stage.name, stage.temperature, stage.n_negatives, stage.difficulty) == ("medium", 0.3, 10, 0.5)
    assert stage.loss_weights == {"infonce": 1.0, "local": 0.3, "spectral": 0.05, "reconstruction": 0.3}
    assert [curriculum.at(e).name for e in (29, 30, 59, 60, 1000)] == ["medium", *["hard"] * 4]
    assert curriculum.at(1000).temperature == 0.1 and curriculum.at(1000).n_negatives == 20


def test_every_sample_is_trained_in_the_end():
    # S4-17: the reference leaves out what is harder than 0.7 for ever.
    curriculum = CurriculumScheduler()
    difficulties = np.arange(101) / 100
    trained = np.zeros(101, bool)
    shares = []
    for epoch in range(60):
        included = curriculum.at(epoch).include(difficulties)
        shares.append(included.mean())
        trained |= included
    assert trained.all() and shares[-1] == 1 and curriculum.at(500).include(difficulties).all()
    assert all(a <= b for a, b in zip(shares, shares[1:], strict=False))  # never fewer than before
    np.testing.assert_allclose([shares[0], shares[10], shares[30]], np.array([31, 51, 71]) / 101)
    single = CurriculumScheduler([CurriculumStage("all", 1, 0.5, 5, difficulty=0.2)])
    assert single.value.include(difficulties).all()


def test_refusals():
    # S4-19: the reference panics on an empty list of stages.
    stage = {"name": "s", "epochs": 1, "temperature": 0.5, "n_negatives": 5}
    with pytest.raises(ValueError, match="stages is empty"):
        CurriculumScheduler([])
    with pytest.raises(TypeError, match=r"stages\[0\] must be a CurriculumStage, got str"):
        CurriculumScheduler(["easy"])
    for change, message in [({"epochs": 0}, "epochs must be"), ({"temperature": 0}, "temperature must be greater"),
                            ({"n_negatives": 0}, "n_negatives must be"), ({"difficulty": 1.5}, "difficulty must be in"),
                            ({"loss_weights": {"infonce": -1}}, r"loss_weights\['infonce'\] must be")]:
        with pytest.raises(ValueError, match=message):
            CurriculumStage(**stage | change)
    with pytest.raises(TypeError, match="loss_weights must be a dict"):
        CurriculumStage(**stage, loss_weights=[1.0])
    for bad in ([2.0], [-0.1], [np.nan]):
        with pytest.raises(ValueError, match="difficulties must lie in 0..1"):
            CurriculumStage(**stage).include(bad)


SCHEDULERS = [CurriculumScheduler, lambda: TemperatureScheduler(LinearSchedule(1.0, 0.1, 10)),
              lambda: LossWeightScheduler({"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 1.0}, 10)]


@pytest.mark.parametrize("make", SCHEDULERS)
def test_one_convention(make):
    # S4-20: temperature before advancing, weights after, in the reference.
    scheduler = make()
    assert scheduler.value == scheduler.at(0)
    for t in range(1, 40):
        assert scheduler.step() == scheduler.value == scheduler.at(t)
    state = json.loads(json.dumps(scheduler.state_dict()))
    other = pickle.loads(pickle.dumps(make()))
    other.load_state_dict(state)
    assert other.value == scheduler.value and other.step() == scheduler.step()
    scheduler.reset()
    assert scheduler.value == make().value


@pytest.mark.parametrize("schedule, expected", [
    (LinearSchedule(1.0, 0.1, 10), [1, 0.55, 0.1, 0.1]), (ExponentialSchedule(1.0, 0.01, 10), [1, 0.1, 0.01, 0.01]),
    (CosineSchedule(1.0, 0.1, 10), [1, 0.55, 0.1, 0.1]), (StepSchedule([0.5, 0.2], 5), [0.5, 0.2, 0.2, 0.2])])
def test_temperature(schedule, expected):
    scheduler = TemperatureScheduler(schedule)
    assert [scheduler.at(t) for t in (0, 5, 10, 50)] == pytest.approx(expected)
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        TemperatureScheduler(LinearSchedule(1.0, 0.0, 2)).at(2)
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        TemperatureScheduler(0.0)


def test_weights():
    weights = LossWeightScheduler({"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 1.0}, 4)
    assert weights.value == {"a": 1.0, "b": 0.0}
    assert weights.at(1) == {"a": 0.875, "b": 0.25} and weights.at(9) == {"a": 0.5, "b": 1.0}
    assert LossWeightScheduler({"a": 1.0}, {"a": 0.5}, 0).value == {"a": 0.5}
    for initial, target, message in [({}, {}, "initial is empty"), ({"a": 1}, {"b": 1}, "must have the same names"),
                                     ({"a": -1}, {"a": 1}, r"initial\['a'\] must be at least 0")]:
        with pytest.raises(ValueError, match=message):
            LossWeightScheduler(initial, target, 5)


# -- all together

def test_what_is_given_by_itself_wins_over_the_curriculum():
    # S4-16: the reference has three sources of weights and two of temperature, and none reaches the loss.
    plain = Schedules(CurriculumScheduler())
    assert plain.at(12) == (0.3, 10, CurriculumScheduler().at(12).loss_weights, 0.5)
    both = Schedules(CurriculumScheduler(), temperature=TemperatureScheduler(LinearSchedule(1.0, 0.1, 10)),
                     loss_weights={"infonce": 1.0, "local": LinearSchedule(1, 0, 24)},
                     n_negatives=LinearSchedule(4, 64, 20), difficulty=0.25)
    assert both.at(12) == (0.1, 40, {"infonce": 1.0, "local": 0.5}, 0.25)
    assert Schedules(loss_weights=LossWeightScheduler({"a": 0}, {"a": 1}, 2)).at(1) == (None, None, {"a": 0.5}, None)
    assert Schedules().at(3) == (None,) * 4


def test_time_runs_within_an_epoch():
    schedules = Schedules(CurriculumScheduler(), temperature=LinearSchedule(1.0, 0.0, 100))
    assert schedules.at(2, 5, 10).temperature == pytest.approx(0.975)
    assert schedules.at(9, 99, 100).n_negatives == 5 and schedules.at(10, 0, 100).n_negatives == 10
    again = pickle.loads(pickle.dumps(schedules))
    assert again.at(3, 1, 2) == schedules.at(3, 1, 2)


def test_bad_bundles():
    for make, kind, message in [
        (lambda: Schedules("easy"), TypeError, "curriculum must be a CurriculumScheduler"),
        (lambda: Schedules(temperature=0), ValueError, "temperature must be greater than 0"),
        (lambda: Schedules(n_negatives=0), ValueError, "n_negatives must be at least 1"),
        (lambda: Schedules(difficulty=2), ValueError, "difficulty must be in 0..1"),
        (lambda: Schedules(loss_weights={}), ValueError, "loss_weights is empty"),
        (lambda: Schedules(loss_weights={"a": -1}), ValueError, r"loss_weights\['a'\] must be"),
        (lambda: Schedules(loss_weights=1.0), TypeError, "loss_weights must be a dict"),
        (lambda: Schedules().at(0, 0, 0), ValueError, "steps_per_epoch must be")]:
        with pytest.raises(kind, match=message):
            make()


ROWS = np.random.default_rng(0).standard_normal((96, 8), dtype=np.float32)
DIFFICULTY = np.linspace(0, 1, 96)
STEPS = 3


def trained(schedules, max_epochs=4, folder=None, stop_after=None):
    """A run whose loss takes everything from ``schedules``; what each step used, the weights, and the history."""
    model = nn.Linear(8, 4, rng=0)
    snapshots = None if folder is None else training.SnapshotFolder(folder)

    def stop(trainer, info):
        if stop_after is not None and trainer.total_steps == stop_after:
            raise KeyboardInterrupt
    trainer = training.Trainer(model, optim.Adam(model.parameters(), lr=1e-2), seed=1, max_epochs=max_epochs,
                               snapshots=snapshots, snapshot_seconds=0, callbacks=[SimpleNamespace(on_batch_end=stop)])
    used = []

    def batches(epoch, first):
        ids = stream(1, "order", epoch).permutation(96).reshape(STEPS, 32)[first:]
        return storage.HyperbatchIterator(ROWS, ids, buffer_bytes=10**6)

    def step(batch, key):
        now = schedules.at(trainer.epoch, trainer.step, STEPS)
        stage = CurriculumStage("now", 1, now.temperature, now.n_negatives, difficulty=now.difficulty)
        ids = batch.node_ids[stage.include(DIFFICULTY[batch.node_ids])]
        z = model(nn.Tensor(ROWS[ids]))
        negatives = model(nn.Tensor(ROWS[stream(key, "negatives").integers(0, 96, now.n_negatives)]))
        contrast = losses.info_nce(z, nn.dropout(z, 0.2, key=derive(key, "view")), negatives,
                                   temperature=now.temperature)
        loss = now.loss_weights["infonce"] * contrast + now.loss_weights["reconstruction"] * (z * z).mean()
        loss.backward()
        used.append((now.temperature, now.n_negatives, len(ids)))
        return loss.item(), len(ids)

    try:
        trainer.run(batches, step, STEPS)
    except KeyboardInterrupt:
        pass
    return used, model.weight.data.copy(), [record["loss"] for record in trainer.history]


def bundle(**own):
    stages = [CurriculumStage("easy", 1, 0.5, 5, {"infonce": 1.0, "reconstruction": 0.5}, 0.3),
              CurriculumStage("hard", 3, 0.2, 20, {"infonce": 1.0, "reconstruction": 0.1}, 0.7)]
    return Schedules(CurriculumScheduler(stages), **own)


def test_all_of_it_reaches_the_loss():
    # S4-16: in the reference temperature, number of negatives, weights and difficulty are stored and never used.
    used, weights, history = trained(bundle())
    assert [u[:2] for u in used] == [(0.5, 5)] * 3 + [(0.2, 20)] * 9
    samples = [sum(u[2] for u in used[e * STEPS:(e + 1) * STEPS]) for e in range(4)]
    assert samples == [29, 67, 81, 96]  # S4-17: all of them in the last epoch
    for own in ({"temperature": 0.4}, {"n_negatives": 7}, {"difficulty": 1.0},
                {"loss_weights": {"infonce": 1.0, "reconstruction": 0.2}}):
        _, other_weights, other_history = trained(bundle(**own))
        assert np.abs(weights - other_weights).max() > 1e-5, own  # the gradient
        assert all(abs(a - b) > 1e-6 for a, b in zip(history, other_history, strict=True)), own  # and the loss


def test_a_resumed_run_goes_on_with_the_schedule_to_the_same_bits(tmp_path):
    schedules = bundle(temperature=CosineSchedule(0.5, 0.1, 4))
    used, weights, history = trained(schedules)
    first, _, _ = trained(schedules, folder=tmp_path, stop_after=7)
    second, resumed, resumed_history = trained(schedules, folder=tmp_path)
    assert used[:7] == first and 0 < len(second) < 12 and used[12 - len(second):] == second
    np.testing.assert_array_equal(weights, resumed)
    assert history == resumed_history
