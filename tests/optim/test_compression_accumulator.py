"""Ternary sums: what they add up to, what they hold, and the optimizer that steps once in several."""
import numpy as np
import pytest

from gnncy import _kernels, nn
from gnncy._threads import working_threads
from gnncy.optim import SGD, Adam, RowAdagrad
from gnncy.optim.compression import TernaryGradientAccumulator, TernaryOptimizerWrapper


def summed(gradients, steps=None, **options):
    accumulator = TernaryGradientAccumulator({"w": gradients[0].shape}, steps or len(gradients), **options)
    for gradient in gradients:
        accumulator.accumulate({"w": gradient})
    return accumulator


def error(accumulator, gradients):
    total = np.sum(gradients, axis=0, dtype=np.float64)
    return np.linalg.norm(accumulator.get_accumulated("sum")["w"] - total) / np.linalg.norm(total)


SEQUENCES = {
    "constant": lambda rng, signal: [signal] * 8,
    "independent": lambda rng, signal: list(rng.normal(size=(8, signal.size))),
    "signal and noise": lambda rng, signal: [signal + x for x in rng.normal(size=(8, signal.size))],
    "laplace": lambda rng, signal: list(rng.laplace(size=(8, signal.size))),
    "growing": lambda rng, signal: [signal * 3.0**k for k in range(8)],
    "small": lambda rng, signal: [1e-3 * x for x in rng.normal(size=(8, signal.size))],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_s3_13_relative_error_after_eight_steps(name):
    rng = np.random.default_rng(0)
    gradients = SEQUENCES[name](rng, rng.normal(size=20_000))
    accumulator = summed(gradients)
    assert error(accumulator, gradients) < 0.25
    without = summed(gradients, error_feedback=False)
    assert error(accumulator, gradients) < error(without, gradients)


def test_s3_1_bytes_are_those_allocated():
    accumulator = TernaryGradientAccumulator({"a": (1000, 1000), "b": (5,)}, 8)
    held = accumulator.state_dict()
    assert accumulator.nbytes == sum(x.nbytes for kind in ("planes", "scales") for x in held[kind].values())
    assert accumulator.memory_savings() == 1 - accumulator.nbytes / (4 * 1_000_005)
    assert accumulator.nbytes < 1_000_005  # a quarter of float32
    assert all(x.dtype != np.float32 or x.size < 1000 for kind in ("planes", "scales") for x in held[kind].values())
    assert TernaryGradientAccumulator({"b": (5,)}, 8).memory_savings() < 0  # said, not hidden


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 16, 100])
def test_s3_2_counters_hold_the_sum_of_all_steps(steps):
    # Constant gradients of one size are the worst case: every counter goes to its end.
    gradient = np.full(500, 0.7, np.float32)
    gradient[::2] *= -1
    for options, tolerance in (({}, 0.25 * 0.7 * max(1, steps / 8)), ({"error_feedback": False}, 1e-4 * steps),
                               ({"rule": "terngrad"}, 6.5 * 0.25 * np.sqrt(steps))):  # a tenth is left out
        accumulator = summed([gradient] * steps, **options)
        np.testing.assert_allclose(accumulator.get_accumulated("sum")["w"], steps * gradient, atol=tolerance)


def test_s3_3_each_step_keeps_its_own_scale():
    left, right = np.zeros(8192), np.zeros(8192)
    left[:4096], right[4096:] = 1.0, 0.01
    mean = summed([left, right]).get_accumulated()["w"]
    np.testing.assert_allclose(mean[:4096], 0.5, rtol=1e-6)
    np.testing.assert_allclose(mean[4096:], 0.005, rtol=1e-6)
    # In one block: small steps on places of their own are not lifted by the large one.
    left, right = np.zeros(4096), np.zeros(4096)
    left[:2048], right[2048:] = 1.0, 0.1
    total = summed([left, right]).get_accumulated("sum")["w"]
    np.testing.assert_allclose(total[:2048], 1.0, atol=0.1)
    assert abs(total[2048:].mean() - 0.1) < 0.05


def test_terngrad_sums_are_unbiased():
    rng = np.random.default_rng(1)
    gradients = rng.uniform(-1, 1, (4, 64)) * np.array([1.0, 0.3, 1.5, 0.7])[:, None]
    totals = np.array([summed(list(gradients), rule="terngrad", seed=seed).get_accumulated("sum")["w"]
                       for seed in range(3000)], np.float64)
    spread = totals.std(axis=0) / np.sqrt(len(totals))
    assert np.abs((totals.mean(axis=0) - gradients.sum(axis=0)) / spread).max() < 4.5
    slope = totals.mean(axis=0) @ gradients.sum(axis=0) / (gradients.sum(axis=0) @ gradients.sum(axis=0))
    assert slope == pytest.approx(1, abs=0.02)


def test_s3_8_s3_14_counts_are_of_each_parameter_and_the_reduction_is_named():
    accumulator = TernaryGradientAccumulator({"a": (2,), "b": (2,), "c": (3,)}, 4)
    for step in range(4):
        accumulator.accumulate({"a": [1.0, -1.0]} | ({"b": [2.0, 2.0]} if step == 1 else {}))
    assert accumulator.counts == {"a": 4, "b": 1, "c": 0}
    mean, total = accumulator.get_accumulated(), accumulator.get_accumulated("sum")
    np.testing.assert_allclose(mean["a"], [1, -1], rtol=0.1)
    np.testing.assert_allclose(mean["b"], [2, 2], rtol=1e-6)
    np.testing.assert_array_equal(mean["c"], 0)
    np.testing.assert_allclose(total["a"], 4 * mean["a"])
    with pytest.raises(ValueError, match="reduction must be one of"):
        accumulator.get_accumulated("median")


@pytest.mark.parametrize("rule", ["twn", "terngrad"])
def test_more_steps_than_announced(rule):
    gradients = list(np.random.default_rng(0).normal(size=(20, 5000)) + 1)
    accumulator = summed(gradients, 4, rule=rule)
    assert error(accumulator, gradients) < (0.4 if rule == "twn" else 0.55)


def test_s3_9_unknown_names_and_wrong_shapes():
    accumulator = TernaryGradientAccumulator({"w": (3, 2)})
    with pytest.raises(KeyError, match="no parameter is named 'v'; there are w"):
        accumulator.accumulate({"w": np.ones((3, 2)), "v": np.ones(2)})
    with pytest.raises(ValueError, match=r"must have shape \(3, 2\), got \(2, 3\)"):
        accumulator.accumulate({"w": np.ones((2, 3))})
    assert accumulator.count == 0 and not accumulator.get_accumulated()["w"].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_s3_12_nothing_is_added_of_what_is_not_finite(bad):
    accumulator = TernaryGradientAccumulator({"a": (3,), "b": (3,)})
    with pytest.raises(ValueError, match="gradient of 'b' contains inf or nan"):
        accumulator.accumulate({"a": np.ones(3), "b": np.array([1.0, bad, 2.0])})
    assert accumulator.counts == {"a": 0, "b": 0}
    assert not accumulator.get_accumulated()["a"].any()


def test_s3_10_bad_options():
    for steps in (0, -1):
        with pytest.raises(ValueError, match="accumulation_steps must be in 1..4096"):
            TernaryGradientAccumulator({"w": (3,)}, steps)
    with pytest.raises(ValueError, match="shapes is empty"):
        TernaryGradientAccumulator({})
    with pytest.raises(ValueError, match="error feedback with rule='terngrad' diverges"):
        TernaryGradientAccumulator({"w": (3,)}, rule="terngrad", error_feedback=True)
    with pytest.raises(ValueError, match="rule must be one of 'twn', 'terngrad'"):
        TernaryGradientAccumulator({"w": (3,)}, rule="reference_deterministic")


@pytest.mark.parametrize("rule", ["twn", "terngrad"])
def test_s3_7_s3_15_same_bits_at_any_thread_count(rule):
    gradients = list(np.random.default_rng(0).normal(size=(3, 300_000)).astype(np.float32))
    expected = summed(gradients, rule=rule).get_accumulated()["w"]
    for threads in (2, 3):
        with working_threads(threads):
            np.testing.assert_array_equal(summed(gradients, rule=rule).get_accumulated()["w"], expected)
    if rule == "terngrad":
        assert (summed(gradients, rule=rule, seed=1).get_accumulated()["w"] != expected).mean() > 0.3


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65, 1000, 4097])
def test_levels_agree(n):
    x = np.random.default_rng(n).normal(size=(3, n)).astype(np.float32)
    results = []
    for level in _kernels.AVAILABLE:
        kernels = _kernels.at_level(level, "ternary")
        planes, scales = np.zeros((-(-n // 64), 7), np.uint64), np.zeros((-(-n // 4096), 2), np.float32)
        for step in range(3):
            kernels.accumulate(0, len(scales), 4096, x[step], 0.7, 0.0, step, 4, True, False,
                               np.empty(4096, np.float32), planes, scales)
        out = np.empty(n, np.float32)
        kernels.read_counters(0, len(scales), 4096, 4, True, planes, scales, 1.0, out)
        results.append(out)
    for out in results[1:]:
        far = ~np.isclose(out, results[0], rtol=1e-4, atol=1e-6)
        assert np.count_nonzero(far) <= 0.01 * n  # at a threshold they may part


@pytest.mark.parametrize("rule", ["twn", "terngrad"])
def test_s3_11_the_state_is_whole(rule):
    gradients = list(np.random.default_rng(0).normal(size=(6, 5000)))
    straight = summed(gradients, 8, rule=rule)
    first = summed(gradients[:3], 8, rule=rule)
    state = first.state_dict()
    first.accumulate({"w": gradients[0]})  # the state is a copy
    again = TernaryGradientAccumulator({"w": (5000,)}, 8, rule=rule)
    again.load_state_dict(state)
    for gradient in gradients[3:]:
        again.accumulate({"w": gradient})
    np.testing.assert_array_equal(again.get_accumulated()["w"], straight.get_accumulated()["w"])
    assert (again.count, again.counts) == (6, {"w": 6})


def test_states_of_others_are_refused_whole():
    accumulator = summed([np.ones(10)], 8)
    state = accumulator.state_dict()
    before = accumulator.get_accumulated()["w"]
    for other, message in [
            (TernaryGradientAccumulator({"w": (10,)}, 4), "accumulation_steps=4 and this accumulator 8"),
            (TernaryGradientAccumulator({"v": (10,)}, 8), "belongs to the parameters v, not to w"),
            (TernaryGradientAccumulator({"w": (1000,)}, 8), "planes of 'w' must be uint64 of shape")]:
        with pytest.raises(ValueError, match=message):
            accumulator.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="the state of a Adam cannot be loaded"):
        accumulator.load_state_dict(state | {"kind": "Adam"})
    np.testing.assert_array_equal(accumulator.get_accumulated()["w"], before)


def test_reset_starts_anew():
    accumulator = summed([np.random.default_rng(0).normal(size=100)] * 3)
    accumulator.reset()
    assert accumulator.count == 0 and not accumulator.ready_for_update()
    assert not accumulator.get_accumulated()["w"].any()
    accumulator.accumulate({"w": np.full(100, 2.0)})
    np.testing.assert_allclose(accumulator.get_accumulated()["w"], 2.0, rtol=1e-6)


def test_callers_arrays_stay():
    gradient = np.random.default_rng(0).normal(size=(10, 20)).astype(np.float32)
    before, gradient.flags.writeable = gradient.copy(), False
    for array in (gradient, np.asfortranarray(gradient), gradient.astype(">f4"), gradient.astype(np.float64)):
        accumulator = summed([array])
        np.testing.assert_array_equal(array, before)
        np.testing.assert_array_equal(accumulator.get_accumulated()["w"], summed([gradient]).get_accumulated()["w"])


class TestWrapper:
    def test_s3_11_steps_when_accumulated_not_by_a_modulo(self):
        weights = np.zeros(4)
        wrapper = TernaryOptimizerWrapper(SGD(weights, lr=1.0), 3)
        grad = [np.array([1.0, 1.0, -1.0, 1.0])]
        assert [wrapper.step(grad) for _ in range(2)] == [False, False]
        wrapper.flush()  # an update out of turn
        np.testing.assert_allclose(weights, [-1, -1, 1, -1], rtol=1e-6)
        assert [wrapper.step(grad) for _ in range(3)] == [False, False, True]
        np.testing.assert_allclose(weights, [-2, -2, 2, -2], rtol=1e-6)
        assert wrapper.updates == 2
        wrapper.flush()  # nothing has been added
        assert wrapper.updates == 2

    def test_resumes_bit_for_bit(self):
        grads = np.random.default_rng(0).normal(size=(7, 50)).astype(np.float32)

        def fresh():
            weights = np.ones(50, np.float32)
            return weights, TernaryOptimizerWrapper(Adam(weights, lr=0.1), 3, rule="terngrad", seed=4)

        straight, wrapper = fresh()
        for grad in grads:
            wrapper.step([grad])
        weights, first = fresh()
        for grad in grads[:4]:
            first.step([grad])
        again, second = fresh()
        again[:] = weights
        second.load_state_dict(first.state_dict())
        for grad in grads[4:]:
            second.step([grad])
        np.testing.assert_array_equal(again, straight)
        assert second.updates == wrapper.updates == 2

    def test_tensors_that_get_no_gradient_are_left_alone(self):
        used, idle = (nn.Parameter(np.ones(3, np.float32)) for _ in range(2))
        wrapper = TernaryOptimizerWrapper(SGD([used, idle], lr=0.5), 2, reduction="sum")
        for _ in range(2):
            wrapper.zero_grad()
            used.grad, idle.grad = np.ones(3, np.float32), None
            done = wrapper.step()
        assert done
        np.testing.assert_allclose(used.data, 0.0, atol=1e-6)
        np.testing.assert_array_equal(idle.data, 1.0)
        used.grad = None
        with pytest.raises(ValueError, match="no parameter carries a gradient"):
            wrapper.step()

    def test_learning_rate_and_savings_pass_through(self):
        wrapper = TernaryOptimizerWrapper(SGD(np.zeros(100_000, np.float32), lr=0.5), 8)
        wrapper.lr = 0.25
        assert wrapper.optimizer.lr == wrapper.lr == 0.25
        assert wrapper.memory_savings() > 0.75
        assert "8 gradients a step" in repr(wrapper)

    def test_bad_arguments(self):
        with pytest.raises(TypeError, match="optimizer must be an SGD, Adam or AdamW, got RowAdagrad"):
            TernaryOptimizerWrapper(RowAdagrad(np.zeros((3, 2))))
        wrapper = TernaryOptimizerWrapper(SGD(np.zeros(3), lr=1.0))
        with pytest.raises(ValueError, match="one entry per parameter, 1, got 2"):
            wrapper.step([np.zeros(3), np.zeros(3)])
        state = wrapper.state_dict()
        wrapper.step([np.ones(3)])
        before = wrapper.accumulator.state_dict()
        with pytest.raises(ValueError, match="reduction='sum' and this wrapper 'mean'"):
            wrapper.load_state_dict(state | {"reduction": "sum"})
        with pytest.raises(ValueError, match="the state of a Adam"):
            wrapper.load_state_dict(state | {"optimizer": Adam(np.zeros(3)).state_dict()})
        np.testing.assert_array_equal(wrapper.accumulator.state_dict()["planes"]["0"], before["planes"]["0"])
        assert wrapper.accumulator.count == 1
