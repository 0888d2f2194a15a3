"""SGD, Adam and AdamW: value by value against PyTorch's algorithm in plain numpy, groups, state, refusals, threads."""
import json
import math

import numpy as np
import pytest

from gnncy import nn
from gnncy._threads import working_threads
from gnncy.optim import SGD, Adam, AdamW, clip_grad_norm_

SHAPES = [(3, 5), (7,), (2, 1, 4), (1,)]


def sgd_formula(theta, gradients, lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False):
    buffer = None
    for g in gradients:
        d = g + weight_decay * theta
        if momentum != 0:
            buffer = d if buffer is None else momentum * buffer + (1 - dampening) * d
            d = d + momentum * buffer if nesterov else buffer
        theta = theta - lr * d
    return theta


def adam_formula(theta, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False,
                 decoupled=False):
    m = v = top = 0.0
    for t, g in enumerate(gradients, 1):
        if decoupled:
            theta = theta * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * theta
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        top = np.maximum(top, v)
        root = np.sqrt(top if amsgrad else v) / np.sqrt(1 - betas[1]**t)
        theta = theta - lr / (1 - betas[0]**t) * m / (root + eps)
    return theta


def adamw_formula(theta, gradients, weight_decay=1e-2, **options):
    return adam_formula(theta, gradients, weight_decay=weight_decay, decoupled=True, **options)


CASES = [
    (SGD, sgd_formula, {}),
    (SGD, sgd_formula, {"lr": 0.1, "weight_decay": 0.05}),
    (SGD, sgd_formula, {"lr": 0.1, "momentum": 0.9}),
    (SGD, sgd_formula, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    (SGD, sgd_formula, {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    (Adam, adam_formula, {}),
    (Adam, adam_formula, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.05}),
    (Adam, adam_formula, {"betas": (0, 0)}),
    (Adam, adam_formula, {"lr": 0.1, "betas": (0.9, 0.5), "amsgrad": True}),
    (Adam, adam_formula, {"lr": 0.1, "betas": (0.9, 0.5), "amsgrad": True, "weight_decay": 0.1}),
    (AdamW, adamw_formula, {}),
    (AdamW, adamw_formula, {"lr": 0.05, "weight_decay": 0.3}),
    (AdamW, adamw_formula, {"weight_decay": 0.0, "eps": 1e-6}),
    (AdamW, adamw_formula, {"lr": 0.05, "betas": (0.9, 0.5), "amsgrad": True}),
]
cases = pytest.mark.parametrize("kind, formula, options", CASES, ids=lambda x: getattr(x, "__name__", str(x)))


def problem(steps=50, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    params = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
    # Sizes that change with time, so that AMSGrad's largest v is not the latest.
    gradients = [[np.exp(np.sin(t)) * rng.normal(size=shape).astype(dtype) for shape in SHAPES] for t in range(steps)]
    return params, gradients


@cases
@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-12), (np.float32, 5e-5)])
def test_fifty_steps_against_the_algorithm(kind, formula, options, dtype, rtol):
    # S4-27: dampening does not act on the first step. S4-28: weight_decay acts, eps stands inside the correction.
    params, gradients = problem(dtype=dtype)
    expected = [formula(p.astype(np.float64), [grads[i] for grads in gradients], **options)
                for i, p in enumerate(params)]
    optimizer = kind(params, **options)
    for grads in gradients:
        optimizer.step(grads)
    for param, theta in zip(params, expected, strict=True):
        assert param.dtype == dtype
        np.testing.assert_allclose(param, theta, rtol=rtol, atol=rtol)


def test_amsgrad_and_the_other_options_matter():
    _, gradients = problem()
    for option, value in [("amsgrad", True), ("weight_decay", 0.1), ("eps", 0.1), ("betas", (0.5, 0.5))]:
        plain, other = problem()[0], problem()[0]
        one, two = Adam(plain, lr=0.1), Adam(other, lr=0.1, **{option: value})
        for grads in gradients:
            one.step(grads)
            two.step(grads)
        assert np.abs(plain[0] - other[0]).max() > 1e-5, option


def test_dampening_spares_the_first_step():
    # S4-27: the reference damps the first step, too.
    w = np.zeros(1)
    SGD(w, lr=1.0, momentum=0.9, dampening=0.5).step([np.ones(1)])
    assert w[0] == -1


def test_first_step_of_a_tiny_gradient_uses_eps_inside_the_correction():
    # S4-28: at |g| = 1e-8 and t = 1 the step is lr / 2; the reference's is 0.061 of that formula's.
    w = np.zeros(1)
    Adam([w], lr=1.0).step([np.array([1e-8])])
    assert w[0] == pytest.approx(-0.5, rel=1e-9)


def test_bias_correction_is_exact_at_large_step_numbers():
    # S4-29: a float32 step number is exact only to 2**24.
    w = np.zeros(2, np.float32)
    optimizer = Adam([w], lr=1.0, betas=(0.9, 0.99999999))
    optimizer.step([np.ones(2, np.float32)])
    w[:] = 0
    optimizer.counts = [2**24]
    optimizer.state["exp_avg"][0][:] = 1
    optimizer.state["exp_avg_sq"][0][:] = 1
    optimizer.step([np.ones(2, np.float32)])
    expected = math.sqrt(-math.expm1((2**24 + 1) * math.log(0.99999999)))
    np.testing.assert_allclose(w, -expected, rtol=1e-6)


def test_amsgrad_may_be_switched_on_between_steps():
    # S4-28: the reference panics. The largest v is counted from then on.
    params, gradients = problem(3)
    optimizer = Adam(params)
    optimizer.step(gradients[0])
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step(gradients[1])
    np.testing.assert_array_equal(optimizer.state["max_exp_avg_sq"][0], optimizer.state["exp_avg_sq"][0])


def test_momentum_may_be_switched_on_between_steps():
    w = np.zeros(1)
    optimizer = SGD(w, lr=1.0)
    optimizer.step([np.ones(1)])
    optimizer.param_groups[0].update(momentum=0.5, dampening=0.5)
    optimizer.step([np.ones(1)])  # the first with momentum: not damped
    assert w[0] == -2
    optimizer.step([np.ones(1)])
    assert w[0] == -3


def test_each_parameter_counts_its_own_steps():
    """As in PyTorch, the correction of a parameter that was left alone is that of its own steps."""
    a, b = np.zeros(2), np.zeros(2)
    optimizer = Adam([a, b], lr=0.1)
    for t in range(3):
        optimizer.step([np.ones(2), np.ones(2) if t == 2 else None])
    assert optimizer.counts == [3, 1]
    np.testing.assert_allclose(b, -0.1, rtol=1e-6)


# -- groups

def test_groups_are_as_good_as_optimizers_of_their_own():
    params, gradients = problem()
    own, other = [p.copy() for p in params[:2]], [p.copy() for p in params[2:]]
    grouped = AdamW([{"params": params[:2], "lr": 0.1, "weight_decay": 0.0},
                     {"params": params[2:], "betas": (0.5, 0.6)}])
    one, two = AdamW(own, lr=0.1, weight_decay=0.0), AdamW(other, betas=(0.5, 0.6))
    for grads in gradients:
        grouped.step(grads)
        one.step(grads[:2])
        two.step(grads[2:])
    for a, b in zip(params, own + other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "4 parameters in 2 groups" in repr(grouped)


def test_setting_lr_keeps_the_proportions_of_groups():
    params, _ = problem(0)
    optimizer = SGD([{"params": params[0]}, {"params": params[1:], "lr": 0.5, "name": "head"}], lr=0.1)
    assert optimizer.lr == 0.1 and optimizer.param_groups[1]["lr"] == 0.5
    optimizer.lr = 0.0
    optimizer.lr = 0.2
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 1.0]
    assert optimizer.param_groups[1]["name"] == "head"
    with pytest.raises(ValueError, match="lr must be at least 0"):
        optimizer.lr = -1


def test_bad_groups():
    a, b = np.ones(4), np.ones(4)
    for groups, kind, message in [
        ([{"params": a}, b], TypeError, "not both"),
        ([{"params": a, "weigth_decay": 0.1}], ValueError, r"unknown options \['weigth_decay'\]"),
        ([{"lr": 0.1}], ValueError, "must have 'params'"),
        ([{"params": []}], ValueError, "params is empty"),
        ([{"params": a, "lr": -1}], ValueError, "lr must be"),
        ([{"params": a}, {"params": [b, a]}], ValueError, r"params\[0\] and params\[2\] share memory"),
        ([{"params": [a, a[1:3]]}], ValueError, r"params\[0\] and params\[1\] share memory"),
    ]:
        with pytest.raises(kind, match=message):
            Adam(groups)
    with pytest.raises(ValueError, match="must not be 0 then"):
        SGD([{"params": a, "lr": 0.1}], lr=0)
    Adam([a[:2], a[2:], np.ones(0)])  # side by side is fine


# -- Tensors

@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_tensors_carry_their_gradients(kind):
    model = nn.MLP([4, 3, 2], rng=0)
    twin = nn.MLP([4, 3, 2], rng=0)
    optimizer = kind(model.parameters(), lr=0.1)
    data, grad = nn.flatten_parameters(twin)
    flat = kind(data, lr=0.1)
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
    assert losses[-1] < 0.5 * losses[0]
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


def test_a_parameter_that_is_replaced_is_noticed():
    # S4-30: the reference panics when a shape changes.
    a = nn.Tensor(np.ones((2, 3)), requires_grad=True)
    optimizer = Adam(a)
    optimizer.step([np.ones((2, 3))])
    a.data = np.ones((3, 3))
    with pytest.raises(ValueError, match=r"had shape \(2, 3\) when the optimizer was made and now has \(3, 3\)"):
        optimizer.step([np.ones((2, 3))])
    a.data = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="is now float32 and its state is float64"):
        optimizer.step([np.ones((2, 3))])
    a.data = np.ones((2, 6))[:, ::2]
    with pytest.raises(ValueError, match="writable, C-contiguous"):
        optimizer.step([np.ones((2, 3))])


# -- state

@cases
def test_resume_is_bit_exact(kind, formula, options):
    params, gradients = problem(20, np.float32)
    straight, resumed = [p.copy() for p in params], [p.copy() for p in params]
    one = kind(straight, **options)
    for grads in gradients:
        one.step(grads)
    first = kind(resumed, **options)
    for grads in gradients[:9]:
        first.step(grads)
    state = first.state_dict()
    numbers = json.loads(json.dumps(first.numbers()))  # as a snapshot keeps them
    resumed = [p.copy() for p in resumed]
    first.step(gradients[9])  # what comes after the snapshot does not reach into it
    second = kind(resumed)
    second.load_state_dict(numbers | {slot: state[slot] for slot in second.slots})
    assert repr(second) == repr(one) and second.counts == [9] * 4
    for grads in gradients[9:]:
        second.step(grads)
    for a, b in zip(resumed, straight, strict=True):
        np.testing.assert_array_equal(a, b)


def test_state_of_groups_and_of_a_moved_rate():
    params, gradients = problem(4)

    def grouped(params):
        return SGD([{"params": params[:1], "lr": 0.3}, {"params": params[1:], "momentum": 0.9}], lr=0.1)
    optimizer = grouped(params)
    optimizer.lr = 0.07
    optimizer.step(gradients[0])
    copy = [p.copy() for p in params]
    other = grouped(copy)
    other.load_state_dict(optimizer.state_dict())
    assert other.lr == 0.07
    optimizer.lr = other.lr = 0.05
    for grads in gradients[1:]:
        optimizer.step(grads)
        other.step(grads)
    for a, b in zip(params, copy, strict=True):
        np.testing.assert_array_equal(a, b)
    fresh = grouped([p.copy() for p in params])
    optimizer.load_state_dict(fresh.state_dict())  # back to before the first step
    assert optimizer.counts == [0] * 4 and all(x.size == 0 for x in optimizer.state["momentum_buffer"])


def test_state_of_others_is_refused():
    params, gradients = problem(1)
    optimizer = Adam(params)
    optimizer.step(gradients[0])
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match="state of a AdamW cannot be loaded into Adam"):
        optimizer.load_state_dict(AdamW(params).state_dict())
    with pytest.raises(ValueError, match=r"state belongs to parameter groups of \[3\] parameters, not of \[4\]"):
        optimizer.load_state_dict(Adam(params[1:]).state_dict())
    for wrong, message in [([x.T.copy() for x in params], r"exp_avg of params\[0\] must have shape \(3, 5\)"),
                           ([x.astype(np.float32) for x in params], "and be float64, got .* float32"),
                           (params[:2], "must have 4 arrays, got 2")]:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(before | {"exp_avg": wrong})
    for slot in optimizer.slots:
        for a, b in zip(optimizer.state[slot], before[slot], strict=True):
            np.testing.assert_array_equal(a, b)


# -- refusals

@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_bad_gradients_are_refused_and_nothing_changes(kind):
    # S4-30: the reference skips missing gradients in silence and panics on another shape.
    params, ((g0, g1, g2, g3),) = problem(1)
    before = [p.copy() for p in params]
    optimizer = kind(params)
    for grads, message in [
        ([g0], "one entry per parameter, 4, got 1"),
        ([g0, g1[:3], g2, g3], r"gradient of params\[1\] must have shape \(7,\), got \(3,\)"),
        ([g0, np.where(np.arange(7) == 6, np.nan, g1), g2, g3], r"gradient of params\[1\] .* inf or nan"),
        ([g0, g1, g2, np.array([np.inf])], r"gradient of params\[3\] .* inf or nan"),
        ([g0, np.where(np.arange(7) == 3, -np.inf, g1), g2, None], r"gradient of params\[1\] .* inf or nan"),
        (None, r"params\[0\] is a plain array"),
    ]:
        for clipped in (None, 1.0):
            optimizer.max_norm = clipped
            with pytest.raises(ValueError, match=message):
                optimizer.step(grads)
    assert optimizer.counts == [0] * 4
    for a, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(a, b)
    optimizer.step([g0, np.full(7, 1e308), g2, g3])  # finite, though its sum is not
    assert optimizer.counts == [1] * 4


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_steps_that_are_not_finite_are_skipped_when_asked(max_norm):
    params, gradients = problem(4)
    twin = [p.copy() for p in params]
    optimizer = Adam(params, nonfinite="skip", max_norm=max_norm)
    other = Adam(twin, max_norm=max_norm)
    for t, grads in enumerate(gradients):
        if t == 2:
            optimizer.step([*grads[:3], np.array([np.nan])])
        optimizer.step(grads)
        other.step(grads)
    assert optimizer.skipped == 1 and optimizer.counts == [4] * 4 == other.counts
    for a, b in zip(params, twin, strict=True):
        np.testing.assert_array_equal(a, b)
    restored = Adam([p.copy() for p in params])
    restored.load_state_dict(optimizer.state_dict())
    assert restored.skipped == 1


def test_ignoring_lets_them_through():
    w = np.ones(3)
    SGD(w, nonfinite="ignore").step([np.array([0, np.nan, 1])])
    assert np.isnan(w).tolist() == [False, True, False]


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
    for kind, options, message in [
        (Adam, {"lr": -1}, "lr must be"), (Adam, {"lr": np.inf}, "lr must be finite"),
        (Adam, {"betas": (0.9, 1.0)}, "betas must be below 1"), (Adam, {"betas": (0.9,)}, "two numbers"),
        (Adam, {"betas": (-0.1, 0.9)}, r"betas\[0\]"), (Adam, {"eps": -1e-8}, "eps must be"),
        (Adam, {"weight_decay": -0.1}, "weight_decay must be"),
        (Adam, {"nonfinite": "warn"}, "nonfinite must be one of"),
        (Adam, {"max_norm": 0}, "max_norm must be greater than 0"), (SGD, {"momentum": -0.1}, "momentum must be"),
        # S4-27: the reference's nesterov without momentum is silently plain.
        (SGD, {"nesterov": True}, "nesterov needs momentum above 0"),
        (SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "and dampening 0, got .* dampening=0.1"),
    ]:
        with pytest.raises(ValueError, match=message):
            kind(w, **options)


# -- clipping inside the step, and threads

@cases
def test_max_norm_is_clip_grad_norm_within_the_step(kind, formula, options):
    params, gradients = problem(10)
    twin = [p.copy() for p in params]
    optimizer, other = kind(params, max_norm=2.0, **options), kind(twin, **options)
    for grads in gradients:
        before = [g.copy() for g in grads]
        optimizer.step(grads)
        for g, b in zip(grads, before, strict=True):
            np.testing.assert_array_equal(g, b)  # the gradients are not changed
        assert optimizer.grad_norm == clip_grad_norm_(grads, 2.0)
        other.step(grads)
    for a, b in zip(params, twin, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind, options", [(SGD, {"momentum": 0.9}), (AdamW, {}), (Adam, {"amsgrad": True}), (SGD, {})])
def test_bits_do_not_depend_on_the_number_of_threads(kind, options, dtype):
    rng = np.random.default_rng(0)
    sizes = (600_003, 10, 300_001, 5)
    start = [rng.normal(size=n).astype(dtype) for n in sizes]
    grads = [rng.normal(size=n).astype(dtype) for n in sizes]

    def run(threads):
        params = [w.copy() for w in start]
        optimizer = kind(params, max_norm=10.0, **options)
        with working_threads(threads):
            for _ in range(2):
                optimizer.step(grads)
        return params, optimizer.grad_norm

    (one, norm_one), (two, norm_two) = run(1), run(2)
    assert norm_one == norm_two
    for a, b, w in zip(one, two, start, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != w).mean() > 0.5
