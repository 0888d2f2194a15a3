"""Schedules as pure functions of time, and what moves along them."""
import json
import math
import pickle

import numpy as np
import pytest

from gnncy.optim import (
    SGD,
    Adam,
    ConstantSchedule,
    CosineSchedule,
    DecaySchedule,
    ExponentialSchedule,
    LinearSchedule,
    LRScheduler,
    ReduceOnPlateau,
    Scheduler,
    StepSchedule,
    WarmupSchedule,
)

ALL = [ConstantSchedule(0.3), LinearSchedule(1.0, 0.1, 10), ExponentialSchedule(1.0, 0.01, 10),
       CosineSchedule(1.0, 0.1, 10), CosineSchedule(1.0, 0.1, 3, restart=2.0), StepSchedule([3, 2, 1], 4),
       DecaySchedule(1.0, 0.9), DecaySchedule(1.0, 0.5, every=3),
       WarmupSchedule(CosineSchedule(1.0, 0.0, 6), length=4, start=0.1)]
each = pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)


def test_values():
    assert [LinearSchedule(1.0, 0.1, 10)(t) for t in (0, 10, 11, 1000)] == [1.0, 0.1, 0.1, 0.1]
    assert LinearSchedule(1.0, 0.1, 10)(5) == pytest.approx(0.55)
    assert ExponentialSchedule(1.0, 0.01, 10)(2.5) == pytest.approx(10**-0.5)
    assert ExponentialSchedule(1.0, 0.01, 10)(10) == 0.01
    for t in range(11):
        assert CosineSchedule(0.5, 0.1, 10)(t) == pytest.approx(0.1 + 0.4 * (1 + math.cos(math.pi * t / 10)) / 2)
    assert [StepSchedule([3, 2, 1], 4)(t) for t in (0, 3.9, 4, 8, 12, 10**9)] == [3, 3, 2, 1, 1, 1]
    assert DecaySchedule(2.0, 0.5)(3) == 0.25
    assert [DecaySchedule(1.0, 0.5, every=3)(t) for t in (0, 2, 3, 6)] == [1, 1, 0.5, 0.25]


def test_cosine_begins_at_its_start_and_never_rises():
    values = [CosineSchedule(1.0, 0.1, 100)(t) for t in range(150)]
    assert values[0] == 1.0 and values[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("restart", [1, 1.5, 2, 3])
def test_restarts_begin_where_the_periods_do(restart):
    schedule = CosineSchedule(1.0, 0.0, 4, restart=restart)
    begin, length = 0.0, 4.0
    for _ in range(8):
        assert schedule(begin) == pytest.approx(1.0)
        assert schedule(begin + length / 2) == pytest.approx(0.5)
        assert schedule(begin + length * 0.999) < 1e-5
        begin, length = begin + length, length * restart
    assert 0 <= schedule(1e9 + 0.3) <= 1


def test_warmup_is_linear_and_then_the_schedule_begins():
    # The reference's schedule is at its full value before the first step.
    schedule = WarmupSchedule(LinearSchedule(0.5, 0.0, 10), length=5)
    assert [schedule(t) for t in (0, 1, 4, 5, 10, 15)] == pytest.approx([0, 0.1, 0.4, 0.5, 0.25, 0])
    assert WarmupSchedule(0.5, length=0)(0) == 0.5
    # By the share of the training that is done: a warm-up over its first twentieth, then half a cosine.
    schedule = WarmupSchedule(CosineSchedule(1.0, 0.0, 0.95), length=0.05, start=1 / 21)
    for p in np.linspace(0, 1, 50):
        expected = (p + 0.0025) / 0.0525 if p < 0.05 else 0.5 * (1 + np.cos(np.pi * (p - 0.05) / 0.95))
        assert schedule(p) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("kind", [LinearSchedule, ExponentialSchedule, CosineSchedule])
def test_no_length_means_the_end_at_once(kind):
    assert kind(1.0, 0.5, 0)(0) == 0.5  # the reference divides by 0


@each
def test_schedules_are_pure_values(schedule):
    times = [0, 1, 2.5, 7, 10, 30]
    before = [schedule(t) for t in times]
    assert [schedule(t) for t in reversed(times)] == before[::-1]  # the order of calls does not matter
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule and repr(copy) == repr(schedule) and [copy(t) for t in times] == before
    assert schedule(-3) == schedule(0)
    with pytest.raises(AttributeError):
        schedule.start = 2


def test_bad_schedules_are_refused():
    # S4-19: the reference panics on an empty list of values and on steps of length 0.
    for make, message in [
        (lambda: StepSchedule([], 10), "values is empty"),
        (lambda: StepSchedule([1.0], 0), "every must be greater than 0"),
        (lambda: LinearSchedule(1, 0, -1), "length must be at least 0"),
        (lambda: LinearSchedule(math.nan, 0, 1), "start must be finite"),
        (lambda: ExponentialSchedule(1.0, 0.0, 10), "end must be greater than 0"),
        (lambda: ExponentialSchedule(-1.0, 1.0, 10), "start must be greater than 0"),
        (lambda: CosineSchedule(1, 0, 0, restart=1), "length must be greater than 0"),
        (lambda: CosineSchedule(1, 0, 5, restart=0.5), "restart must be at least 1"),
        (lambda: DecaySchedule(1, 1.5), "gamma must be in 0..1"), (lambda: DecaySchedule(1, 0.5, 0), "every must be"),
        (lambda: WarmupSchedule(1.0, -1), "length must be"),
        (lambda: WarmupSchedule(1.0, 1, 2), "start must be in 0..1"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="schedule must be a number"):
        Scheduler("cosine")


# -- one convention for step()

@each
def test_step_returns_what_is_in_force_from_then_on(schedule):
    # S4-20: in the reference one scheduler gives the value before it advances, another the value after.
    scheduler = Scheduler(schedule)
    assert scheduler.value == schedule(0)
    for t in range(1, 15):
        assert scheduler.step() == scheduler.value == schedule(t) == scheduler.at(t)
    other = Scheduler(schedule)
    other.load_state_dict(json.loads(json.dumps(scheduler.state_dict())))
    assert other.step() == scheduler.step() and other.time == 15
    scheduler.reset()
    assert scheduler.value == schedule(0) and scheduler.time == 0


def test_the_rate_of_every_group_moves():
    a, b = np.ones(1), np.ones(1)
    optimizer = SGD([{"params": a}, {"params": b, "lr": 1.0}], lr=0.1)
    scheduler = LRScheduler(optimizer, WarmupSchedule(0.2, length=2))
    seen = []
    for _ in range(4):
        optimizer.step([np.ones(1), np.ones(1)])
        seen.append([group["lr"] for group in optimizer.param_groups])
        scheduler.step()
    np.testing.assert_allclose(seen, [[0, 0], [0.1, 1], [0.2, 2], [0.2, 2]])
    assert a[0] == pytest.approx(1 - 0.5) and b[0] == pytest.approx(1 - 5)


def test_a_scheduler_resumes_with_its_optimizer():
    optimizer = Adam(np.ones(2), lr=0.1)
    scheduler = LRScheduler(optimizer, CosineSchedule(0.1, 0.0, 10))
    for _ in range(4):
        scheduler.step()
    other = Adam(np.ones(2))
    resumed = LRScheduler(other, CosineSchedule(0.1, 0.0, 10))
    resumed.load_state_dict(scheduler.state_dict())
    assert other.lr == optimizer.lr == CosineSchedule(0.1, 0.0, 10)(4)


# -- plateau

def test_plateau_waits_and_lowers():
    plateau = ReduceOnPlateau(1.0, factor=0.5, patience=2, least=0.3)
    losses = [5, 4, 4, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3]
    assert [plateau.step(x) for x in losses] == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert plateau.value == 0.3 and plateau.best == 3


def test_plateau_margin_and_nan():
    plateau = ReduceOnPlateau(1.0, factor=0.5, patience=0)
    assert [plateau.step(x) for x in (1.0, 1.0 - 1e-9)] == [1.0, 0.5]  # an improvement by less than 1e-8 is none
    assert plateau.step(1.0 - 3e-8) == 0.5
    assert plateau.step(math.nan) == 0.25 and plateau.best == 1.0 - 3e-8
    first = ReduceOnPlateau(1.0, patience=0)
    first.step(math.nan)
    assert first.best is None and first.value == pytest.approx(0.1)


def test_plateau_upwards_with_an_optimizer_and_resumed():
    optimizer, other = SGD(np.ones(1), lr=1.0), SGD(np.ones(1), lr=1.0)
    metrics = [0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.7, 0.1, 0.1]
    plateau = ReduceOnPlateau(optimizer, factor=0.5, patience=1, mode="max")
    rates = [plateau.step(x) for x in metrics]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125] and optimizer.lr == 0.125
    resumed = ReduceOnPlateau(other, factor=0.5, patience=1, mode="max")
    half = ReduceOnPlateau(1.0, factor=0.5, patience=1, mode="max")
    for x in metrics[:6]:
        half.step(x)
    resumed.load_state_dict(json.loads(json.dumps(half.state_dict())))
    assert other.lr == 0.5 and [resumed.step(x) for x in metrics[6:]] == rates[6:] and other.lr == 0.125
    for options, message in [({"factor": 1}, "factor must be below 1"), ({"patience": -1}, "patience must be"),
                             ({"mode": "down"}, "mode must be one of"), ({"least": -1}, "least must be")]:
        with pytest.raises(ValueError, match=message):
            ReduceOnPlateau(1.0, **options)
