"""Adam and AdamW: value by value against an independent formula, state, refusals, threads, every SIMD level."""
import importlib
import math

import numpy as np
import pytest

from gnncy import _kernels, nn
from gnncy._threads import working_threads
from gnncy.optim import Adam, AdamW

SHAPES = [(3, 5), (7,)]


def formula(params, gradients, lr, betas, eps, weight_decay, decoupled):
    """FORMULAS' Adam in float64: bias-corrected moments written out, one parameter after the other."""
    out = []
    for index, start in enumerate(params):
        theta, m, v = start.astype(np.float64), 0.0, 0.0
        for t, grads in enumerate(gradients, 1):
            g = grads[index].astype(np.float64)
            if decoupled:
                theta = theta - lr * weight_decay * theta
            else:
                g = g + weight_decay * theta
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g**2
            m_hat, v_hat = m / (1 - betas[0]**t), v / (1 - betas[1]**t)
            theta = theta - lr * m_hat / (np.sqrt(v_hat) + eps)
        out.append(theta)
    return out


def problem(steps=50, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    params = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
    gradients = [[rng.normal(size=shape).astype(dtype) for shape in SHAPES] for _ in range(steps)]
    return params, gradients


@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize("kind, options", [
    (Adam, {}), (Adam, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.05}), (Adam, {"betas": (0, 0)}),
    (AdamW, {}), (AdamW, {"lr": 0.05, "weight_decay": 0.3}), (AdamW, {"weight_decay": 0.0, "eps": 1e-6})], ids=str)
def test_fifty_steps_against_the_formula(kind, options, dtype, rtol):
    # S4-28: weight_decay of the reference's Adam does nothing, its eps stands outside the bias correction.
    params, gradients = problem(dtype=dtype)
    full = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2 if kind is AdamW else 0.0} | options
    expected = formula(params, gradients, **full, decoupled=kind is AdamW)
    optimizer = kind(params, **options)
    for grads in gradients:
        optimizer.step(grads)
    for param, theta in zip(params, expected, strict=True):
        assert param.dtype == dtype
        np.testing.assert_allclose(param, theta, rtol=rtol, atol=rtol)


def test_first_step_of_a_tiny_gradient_uses_eps_inside_the_correction():
    # S4-28: at |g| = 1e-8 and t = 1 the step is lr / 2; the reference's is 0.061 of that formula's.
    w = np.zeros(1)
    Adam([w], lr=1.0).step([np.array([1e-8])])
    assert w[0] == pytest.approx(-0.5, rel=1e-9)


def test_bias_correction_is_exact_at_large_step_numbers():
    # S4-29: a float32 step number is exact only to 2**24.
    w = np.zeros(2, np.float32)
    optimizer = Adam([w], lr=1.0, betas=(0.9, 0.99999999))
    optimizer.steps = 2**24
    optimizer.state["exp_avg"][0][:] = 1
    optimizer.state["exp_avg_sq"][0][:] = 1
    optimizer.step([np.ones(2, np.float32)])
    expected = math.sqrt(-math.expm1((2**24 + 1) * math.log(0.99999999)))
    np.testing.assert_allclose(w, -expected, rtol=1e-6)


def test_tensors_carry_their_gradients():
    model = nn.MLP([4, 3, 2], rng=0)
    twin = nn.MLP([4, 3, 2], rng=0)
    optimizer = AdamW(model.parameters(), lr=0.1)
    data, grad = nn.flatten_parameters(twin)
    flat = AdamW(data, lr=0.1)
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    losses = []
    for _ in range(20):
        for m in (model, twin):
            m.zero_grad()
            loss = (m(x) * m(x)).mean()
            loss.backward()
        losses.append(loss.item())
        optimizer.step()
        flat.step(grad)
    assert losses[-1] < 0.2 * losses[0]
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)  # one flat pass gives the same bits
    optimizer.zero_grad()  # S4-31: the reference's clears nothing
    assert all(not p.grad.any() for p in model.parameters())


def test_a_parameter_without_gradient_is_left_alone():
    a, b = nn.Tensor(np.ones(2), requires_grad=True), nn.Tensor(np.ones(2), requires_grad=True)
    optimizer = AdamW([a, b])
    (a * 2).sum().backward()
    optimizer.step()
    assert (a.data != 1).all() and (b.data == 1).all()
    w = np.ones(2)
    Adam([w]).step([None])
    assert (w == 1).all()


def test_resume_is_bit_exact():
    params, gradients = problem(20, np.float32)
    straight = [p.copy() for p in params]
    one = Adam(straight, lr=0.01, weight_decay=0.1)
    for grads in gradients:
        one.step(grads)
    first = Adam(params, lr=0.01, weight_decay=0.1)
    for grads in gradients[:9]:
        first.step(grads)
    state = first.state_dict()
    first.step(gradients[9])  # what comes after the snapshot does not reach into it
    second_params = formula_free_copy(straight, params, gradients)
    second = Adam(second_params)
    second.load_state_dict(state)
    assert repr(second) == repr(first) and second.steps == 9
    for grads in gradients[9:]:
        second.step(grads)
    for a, b in zip(second_params, straight, strict=True):
        np.testing.assert_array_equal(a, b)


def formula_free_copy(straight, params, gradients):
    """The parameters as they were after nine steps."""
    fresh = problem(20, np.float32)[0]
    replay = Adam(fresh, lr=0.01, weight_decay=0.1)
    for grads in gradients[:9]:
        replay.step(grads)
    return fresh


def test_state_of_others_is_refused():
    params, gradients = problem(1)
    optimizer = Adam(params)
    with pytest.raises(ValueError, match="state of a AdamW cannot be loaded into Adam"):
        optimizer.load_state_dict(AdamW(params).state_dict())
    with pytest.raises(ValueError, match=r"exp_avg must have shapes \[\(3, 5\), \(7,\)\], got \[\(7,\)\]"):
        optimizer.load_state_dict(Adam(params[1:]).state_dict())


def test_bad_gradients_are_refused_and_nothing_changes():
    # S4-30: the reference skips missing gradients in silence and panics on another shape.
    params, ((g0, g1),) = problem(1)
    before = [p.copy() for p in params]
    optimizer = Adam(params)
    for grads, message in [
        ([g0], "one entry per parameter, 2, got 1"),
        ([g0, g1[:3]], r"gradient of params\[1\] must have shape \(7,\), got \(3,\)"),
        ([g0, np.where(np.arange(7) == 6, np.nan, g1)], r"gradient of params\[1\] .* inf or nan"),
        ([g0, np.where(np.arange(7) == 0, np.inf, g1)], r"gradient of params\[1\] .* inf or nan"),
        ([g0, np.where(np.arange(7) == 3, -np.inf, g1)], r"gradient of params\[1\] .* inf or nan"),
        (None, r"params\[0\] is a plain array"),
    ]:
        with pytest.raises(ValueError, match=message):
            optimizer.step(grads)
    assert optimizer.steps == 0
    for a, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(a, b)
    big = np.full(7, 1e308)
    optimizer.step([g0, big])  # finite, though its sum is not
    assert optimizer.steps == 1


def test_bad_parameters_and_options():
    read_only = np.ones(3)
    read_only.flags.writeable = False
    for params, kind, message in [
        ([], ValueError, "params is empty"), ([np.ones(3, int)], ValueError, "writable, C-contiguous"),
        ([np.ones((3, 3)).T[:, :2]], ValueError, "writable, C-contiguous"), ([read_only], ValueError, "writable"),
        ([np.ones(3, ">f8")], ValueError, "writable, C-contiguous"), ([[1.0, 2.0]], TypeError, "Tensor or an array"),
    ]:
        with pytest.raises(kind, match=message):
            Adam(params)
    w = [np.ones(2)]
    for options, message in [({"lr": -1}, "lr must be"), ({"lr": np.inf}, "lr must be finite"),
                             ({"betas": (0.9, 1.0)}, "betas must be below 1"), ({"betas": (0.9,)}, "two numbers"),
                             ({"betas": (-0.1, 0.9)}, r"betas\[0\]"), ({"eps": -1e-8}, "eps must be"),
                             ({"weight_decay": -0.1}, "weight_decay must be")]:
        with pytest.raises(ValueError, match=message):
            Adam(w, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_the_number_of_threads(dtype):
    rng = np.random.default_rng(0)
    start, grad = rng.normal(size=(2, 200_003)).astype(dtype)

    def run():
        w = start.copy()
        optimizer = AdamW([w])
        for _ in range(3):
            optimizer.step([grad])
        return w

    with working_threads(1):
        one = run()
    with working_threads(2):
        two = run()
    np.testing.assert_array_equal(one, two)
    assert (one != start).all()


@pytest.mark.parametrize("level", _kernels.AVAILABLE)
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_at_every_level_and_length(level, n, dtype):
    kernels = importlib.import_module(f"gnncy._kernels.{level}.optimizer")
    rng = np.random.default_rng(n)
    g, p, m = rng.normal(size=(3, n)).astype(dtype)
    v = rng.random(n).astype(dtype)
    g.flags.writeable = False
    expected_m = 0.9 * m + 0.1 * (g + 0.5 * p)
    expected_v = 0.99 * v + 0.01 * (g + 0.5 * p)**2
    expected_p = p * 0.75 - 0.2 * expected_m / (np.sqrt(expected_v) * 3 + 0.01)
    kernels.adam(g, 0.2, 0.9, 0.99, 3.0, 0.01, 0.5, 0.75, p, m, v)
    rtol = 1e-12 if dtype == np.float64 else 3e-6
    np.testing.assert_allclose(m, expected_m, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(v, expected_v, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(p, expected_p, rtol=rtol, atol=rtol)
    bits = np.uint32 if dtype == np.float32 else np.uint64
    assert kernels.all_finite(g.view(bits))
    for i in range(n):
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            x = g.copy()
            x[i] = bad
            assert not kernels.all_finite(x.view(bits))
