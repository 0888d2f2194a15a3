"""Predictions of gradients, their measured quality, and control variates."""
import numpy as np
import pytest

from gnncy._threads import working_threads
from gnncy.training.phases import GradientPredictor, PredictionConfig, break_even, control_variate

RNG = np.random.default_rng(0)
SHAPES = {"a": (3, 2), "b": (4,)}
FREE = {"min_correlation": None, "correction_weight": 0.0}


def gradients(values):
    values = np.asarray(values, np.float64)
    return {"a": values[:6].reshape(3, 2), "b": values[6:]}


def flat(found):
    return np.concatenate([x.ravel() for x in found.values()])


def predictor(method="least_squares", **options):
    return GradientPredictor(SHAPES, PredictionConfig(method, **FREE | options), np.float64)


def weighted_line(times, values, at, decay):
    """b + v h by numpy's least squares."""
    times = np.asarray(times, float)
    root = np.sqrt(decay ** (times[-1] - times))
    design = np.stack([np.ones(len(times)), times - times[-1]], axis=1)
    b, v = np.linalg.lstsq(design * root[:, None], np.asarray(values) * root[:, None], rcond=None)[0]
    return b + v * (at - times[-1])


@pytest.mark.parametrize("method", ["momentum", "least_squares"])
def test_the_prediction_moves_on_with_its_step(method):
    """S2-5: the reference gave the same vector until the next true gradient."""
    p = predictor(method)
    start, slope = RNG.standard_normal((2, 10))
    for time in range(4):
        p.record(gradients(start + time * slope), time)
    first, second = (flat(p.predict(time)) for time in (4, 5))
    share = 0.9 if method == "momentum" else 1.0
    np.testing.assert_allclose(second - first, share * slope, atol=1e-12)


@pytest.mark.parametrize("gap", [1, 2, 10])
def test_momentum_knows_how_far_apart_its_gradients_are(gap):
    """S2-6: the reference extrapolated a difference over ten steps as if it were of one."""
    p = predictor("momentum", momentum=1.0)
    slope = RNG.standard_normal(10)
    p.record(gradients(0 * slope), 0)
    p.record(gradients(gap * slope), gap)
    np.testing.assert_allclose(flat(p.predict(gap + 3)), (gap + 3) * slope, atol=1e-12)


def test_least_squares_gains_less_noise_than_the_difference_of_two():
    """S2-7: variance 4.42 of the reference, 0.61 of a line over eight, one ahead; the sum of squared weights."""
    p = predictor(decay=1.0)
    for time in range(8):
        p.record(gradients(RNG.standard_normal(10)), time)
    weights = p.coefficients(8)
    assert weights.sum() == pytest.approx(1)
    assert (weights**2).sum() == pytest.approx(0.607, abs=1e-3)
    q = predictor("momentum", momentum=0.9)
    for time in range(2):
        q.record(gradients(RNG.standard_normal(10)), time)
    assert (q.coefficients(2)**2).sum() == pytest.approx(1.9**2 + 0.9**2)


def test_the_line_is_that_of_weighted_least_squares():
    """S2-27: weights fall with time, so that gaps between the records count."""
    times = [0, 1, 2, 13, 14, 27.5]
    values = RNG.standard_normal((6, 10))
    p = predictor(decay=0.8)
    for time, value in zip(times, values, strict=True):
        p.record(gradients(value), time)
    np.testing.assert_allclose(flat(p.predict(31)), weighted_line(times, values, 31, 0.8), rtol=1e-9)


def test_records_too_old_to_count_leave_the_last():
    p = predictor(decay=0.5)
    values = RNG.standard_normal((3, 10))
    for time, value in zip((0, 1, 5000), values, strict=True):
        p.record(gradients(value), time)
    np.testing.assert_array_equal(flat(p.predict(5001)), values[2])


def test_ridge_draws_the_slope_to_nothing():
    p = predictor(ridge=1e12, decay=1.0)
    values = RNG.standard_normal((5, 10))
    for time, value in enumerate(values):
        p.record(gradients(value), time)
    assert np.ptp(p.coefficients(9)) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(flat(p.predict(9)), values.mean(axis=0), atol=1e-9)


@pytest.mark.parametrize("history", [1, 2, 3, 12])
@pytest.mark.parametrize("method", ["last", "momentum", "least_squares"])
def test_it_is_ready_after_one_record_whatever_the_window(method, history):
    """S2-24: with a long warm-up and a short window the reference never began."""
    p = predictor(method, history_size=history)
    with pytest.raises(ValueError, match="no recorded gradient"):
        p.predict(0)
    values = RNG.standard_normal((20, 10))
    for time, value in enumerate(values):
        p.record(gradients(value), time)
        assert np.isfinite(flat(p.predict(time + 1))).all()
        assert not p.should_compute_full(time + 1)
    assert p.recorded == 20


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("method", ["last", "momentum", "least_squares"])
def test_quality_compares_like_with_like_in_relative_units(method, scale):
    """S2-8 and S2-10: the prediction for that very step against its true gradient, whatever the scale."""
    p = predictor(method, correction_weight=0.3)
    for time in (0, 1, 3, 7, 8):
        true = scale * RNG.standard_normal(10)
        if p.recorded:
            trust = p.trust
            predicted = flat(p.predict(time))
        found = p.record(gradients(true), time)
        if found is None:
            continue
        lengths = np.linalg.norm(predicted) * np.linalg.norm(true)
        assert found.correlation == pytest.approx(predicted @ true / lengths, abs=1e-9)
        assert found.relative_error == pytest.approx(np.linalg.norm(predicted - true) / np.linalg.norm(true))
        ideal = np.clip(predicted @ true / (predicted @ predicted) * trust, 0, 1)
        assert p.trust == pytest.approx(trust + 0.3 * (ideal - trust))
    assert p.quality[-2].horizon == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_parameters_are_compared_by_a_sample(dtype):
    size = 300_000
    p = GradientPredictor({"w": (size,)}, PredictionConfig("last", **FREE), dtype)
    a, b = RNG.standard_normal((2, size)).astype(dtype)
    p.record({"w": a}, 0)
    found = p.record({"w": a + b}, 1)
    assert found.correlation == pytest.approx(np.sqrt(0.5), abs=0.02)
    np.testing.assert_array_equal(p.predict(2)["w"], a + b)


def test_the_gate_shuts_on_measured_cosines():
    """S2-11, and S2-25 (one matrix among the parameters was enough to silence the reference's test)."""
    p = predictor("last", min_correlation=0.8)
    base = RNG.standard_normal(10)
    assert p.should_compute_full(0)
    p.record(gradients(base), 0)
    assert p.should_compute_full(1)  # nothing was measured
    p.record(gradients(base), 1)
    assert p.correlation == pytest.approx(1) and not p.should_compute_full(2)
    p.record(gradients(-base), 2)  # all of it turns, the matrix too
    assert p.correlation == pytest.approx(-1) and p.should_compute_full(3)
    for time in range(3, 9):
        p.record(gradients(-base), time)
    assert not p.should_compute_full(9)  # what was bad is forgotten after five


def test_a_prediction_too_far_ahead_asks_for_the_truth():
    p = predictor(horizon=3)
    p.record(gradients(np.ones(10)), 5)
    assert [p.should_compute_full(time) for time in (6, 8, 9)] == [False, False, True]


def test_a_true_gradient_counts_once():
    """S2-26: the reference added a residual to a line refitted on the same gradient."""
    values = RNG.standard_normal((6, 10))
    p, q = predictor(correction_weight=0.0), predictor(correction_weight=0.0)
    for time, value in enumerate(values):
        if time:
            q.predict(time)  # to have predicted changes nothing
        for each in (p, q):
            each.record(gradients(value), time)
    np.testing.assert_array_equal(flat(p.predict(7)), flat(q.predict(7)))
    np.testing.assert_allclose(flat(p.predict(7)), weighted_line(range(6), values, 7, 0.95), rtol=1e-9)


def test_trust_scales_what_is_too_long():
    p = predictor("last", correction_weight=1.0)
    base = RNG.standard_normal(10)
    for time, factor in enumerate((1.0, 0.5, 0.25)):
        p.record(gradients(factor * base), time)
    assert p.trust == pytest.approx(0.5)
    np.testing.assert_allclose(flat(p.predict(3)), 0.125 * base)


# -- low rank and control variates


def linear_gradients(rank=3):
    directions = RNG.standard_normal((5, rank)) @ RNG.standard_normal((rank, 10))

    def of(features):
        return gradients(features @ directions)

    return of


def test_low_rank_finds_a_linear_map():
    p, of = predictor("low_rank", history_size=8, rank=8), linear_gradients()
    for time in range(8):
        features = RNG.standard_normal(5)
        found = p.record(of(features), time, features)
    assert found.relative_error < 1e-6
    features = RNG.standard_normal(5)
    np.testing.assert_allclose(flat(p.predict(8, features)), flat(of(features)), rtol=1e-8)


def test_low_rank_keeps_the_leading_directions():
    p = predictor("low_rank", history_size=8, rank=1)
    direction = RNG.standard_normal(5)
    for time in range(8):
        features = (time + 1) * direction
        p.record(gradients(np.full(10, time + 1.0)), time, features)
    np.testing.assert_allclose(flat(p.predict(8, 3 * direction)), 3.0, rtol=1e-9)
    np.testing.assert_allclose(flat(p.predict(8, np.zeros(5))), 0.0)


@pytest.mark.parametrize("trust", [1.0, 0.4])
def test_control_variates_are_unbiased_whatever_the_prediction(trust):
    """Mean over all parts of one size, exactly: the true gradient of the minibatch, for a map that is wrong."""
    p = predictor("low_rank", history_size=4, rank=4)
    for time in range(4):
        p.record(gradients(RNG.standard_normal(10)), time, RNG.standard_normal(5))
    p.trust = trust
    rows, features = RNG.standard_normal((6, 10)), RNG.standard_normal((6, 5))
    parts = [(i, j) for i in range(6) for j in range(i)]
    estimates = []
    for part in (list(part) for part in parts):
        true = gradients(rows[part].mean(axis=0))
        found = p.predict(5, features.mean(axis=0), (true, features[part].mean(axis=0)))
        by_hand = control_variate(p.predict(5, features.mean(axis=0)), p.predict(5, features[part].mean(axis=0)), true)
        np.testing.assert_allclose(flat(found), flat(by_hand), atol=1e-10)
        estimates.append(flat(found))
    np.testing.assert_allclose(np.mean(estimates, axis=0), rows.mean(axis=0), atol=1e-10)


def test_break_even_is_cost_times_variance():
    """Against a simulation of samples whose predictions have correlation r."""
    r, n, fraction = 0.8, 40, 0.25
    g = RNG.standard_normal((20_000, n))
    h = r * (r * g + np.sqrt(1 - r**2) * RNG.standard_normal(g.shape))
    part = int(fraction * n)
    estimate = g[:, :part].mean(axis=1) + h.mean(axis=1) - h[:, :part].mean(axis=1)
    variance = estimate.var() * n
    cost = (1 + 2 * fraction + 0.1) / 3
    assert break_even(r, fraction, forward=1, backward=2, predict=0.1) == pytest.approx(variance * cost, rel=0.05)
    assert break_even(1, 1e-9, forward=0, backward=1) < 1e-8
    assert break_even(0, 1, forward=1, backward=2) == 1


# -- state, bits, arguments


@pytest.mark.parametrize("method", ["momentum", "least_squares", "low_rank"])
@pytest.mark.parametrize("size", [10, 40_000])
def test_a_loaded_predictor_goes_on_with_the_same_bits(method, size):
    options = PredictionConfig(method, history_size=4)
    features = (lambda: RNG.standard_normal(3)) if method == "low_rank" else (lambda: None)

    def new():
        return GradientPredictor({"w": (size,)}, options)

    p, q = new(), new()
    for time in range(9):
        if time == 6:
            q.load_state_dict(p.state_dict())
        record = {"w": RNG.standard_normal(size).astype(np.float32)}, time, features()
        found = p.record(*record)
        if time >= 6:
            assert q.record(*record) == found
    x = features()
    assert p.predict(11, x)["w"].tobytes() == q.predict(11, x)["w"].tobytes()
    with pytest.raises(ValueError, match=r"the state holds \d gradients of"):
        GradientPredictor({"w": (size + 1,)}, options).load_state_dict(p.state_dict())


@pytest.mark.parametrize("size", [31, 32, 33, 100_003])
def test_bits_do_not_depend_on_threads(size):
    def run(threads):
        rng = np.random.default_rng(5)
        with working_threads(threads):
            p = GradientPredictor({"w": (size,)})
            for time in range(4):
                p.record({"w": rng.standard_normal(size, np.float32)}, time)
            return p.predict(5)["w"].tobytes(), p.quality

    assert run(1) == run(3)


def test_what_was_given_is_neither_changed_nor_kept():
    p = predictor("last")
    given = {name: np.ones(shape) for name, shape in SHAPES.items()}
    for x in given.values():
        x.flags.writeable = False
    p.record(given, 0)
    found = p.predict(1)
    found["a"] += 1
    np.testing.assert_array_equal(p.predict(1)["a"], 1.0)
    p.record({"a": np.asfortranarray(given["a"]).astype(">f8"), "b": given["b"].astype(">f8")}, 1)
    np.testing.assert_array_equal(flat(p.predict(2)), 1.0)


def test_zeros_are_predicted_and_measured():
    p = predictor("last")
    assert p.record(gradients(np.zeros(10)), 0) is None
    assert p.record(gradients(np.zeros(10)), 1)[:2] == (1.0, 0.0)
    assert p.record(gradients(np.ones(10)), 2)[:2] == (0.0, 1.0)
    assert p.record(gradients(np.zeros(10)), 3)[:2] == (0.0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_are_refused_and_leave_no_trace(bad):
    p, values = predictor("last"), np.ones(10)
    p.record(gradients(values), 0)
    with pytest.raises(ValueError, match="inf or nan"):
        p.record(gradients(np.where(np.arange(10) == 7, bad, 1.0)), 1)
    np.testing.assert_array_equal(flat(p.predict(1)), values)
    assert p.recorded == 1


@pytest.mark.parametrize(("call", "message"), [
    (lambda p: p.record(gradients(np.ones(10)), 3), "later than that of the last record, 3"),
    (lambda p: p.predict(2), "not be before the last record at 3"),
    (lambda p: p.record({"a": np.ones((3, 2))}, 4), "different: b"),
    (lambda p: p.record({"a": np.ones((2, 3)), "b": np.ones(4)}, 4), r"of a must have shape \(3, 2\)"),
    (lambda p: p.record(gradients(np.ones(10)), 4, np.ones(2)), "features are for method='low_rank'"),
    (lambda p: p.predict(4, None, ({}, None)), "would cancel out"),
])
def test_calls_that_cannot_be_meant(call, message):
    p = predictor()
    p.record(gradients(np.ones(10)), 3)
    with pytest.raises(ValueError, match=message):
        call(p)


def test_low_rank_wants_features_of_one_size():
    p = predictor("low_rank")
    with pytest.raises(ValueError, match="predicts from features"):
        p.record(gradients(np.ones(10)), 0)
    p.record(gradients(np.ones(10)), 0, np.ones(3))
    with pytest.raises(ValueError, match="must have 3 elements"):
        p.predict(1, np.ones(4))


@pytest.mark.parametrize(("options", "error"), [
    ({"method": "magic"}, ValueError), ({"history_size": 0}, ValueError), ({"history_size": 2.5}, TypeError),
    ({"momentum": -1}, ValueError), ({"decay": 0}, ValueError), ({"decay": 1.1}, ValueError),
    ({"ridge": -1}, ValueError), ({"rank": 0}, ValueError), ({"correction_weight": 2}, ValueError),
    ({"min_correlation": 1.5}, ValueError),
    ({"horizon": 0}, ValueError), ({"momentum": np.nan}, ValueError)])
def test_numbers_that_make_no_sense_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        PredictionConfig(**options)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: GradientPredictor({}), "shapes is empty"),
    (lambda: GradientPredictor(SHAPES, dtype=np.int32), "float32 or float64"),
    (lambda: control_variate({"a": np.ones(1)}, {}, {}), "same names"),
    (lambda: break_even(2, 0.5, forward=1, backward=1), "correlation"),
    (lambda: break_even(0.5, 0, forward=1, backward=1), "fraction"),
    (lambda: break_even(0.5, 0.5, forward=0, backward=0), "nothing to save"),
])
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
