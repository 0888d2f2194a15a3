"""Several losses as one: fixed weights, Kendall's uncertainties, GradNorm, and every fault of the reference."""
import numpy as np
import pytest

from gnncy import nn
from gnncy.losses import InfoNCELoss, MultiObjectiveLoss, SpectralRegularization, info_nce
from gnncy.optim import Adam

WEIGHTS = {"a": 1.0, "b": 0.5, "c": 2.0}


def parts(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return {name: (scale * (i + 1.0), scale * rng.normal(size=(3, 2))) for i, name in enumerate(WEIGHTS)}


def test_fixed_weights_reach_loss_and_gradients():
    losses = parts()
    total, grad = MultiObjectiveLoss(WEIGHTS)(losses)
    assert total == pytest.approx(1 + 0.5 * 2 + 2 * 3)
    np.testing.assert_allclose(grad, losses["a"][1] + 0.5 * losses["b"][1] + 2 * losses["c"][1], rtol=1e-14)
    narrow = {name: (value, g.astype(np.float32)) for name, (value, g) in losses.items()}
    assert MultiObjectiveLoss(WEIGHTS)(narrow)[1].dtype == np.float32


def test_gradients_of_any_form():
    x, y = np.ones(2), np.full((2, 2), 3.0)
    objective = MultiObjectiveLoss({"a": 2.0, "b": 1.0})
    for form in (lambda x, y: [x, y], lambda x, y: (x, y)):
        got = objective({"a": (1.0, form(x, y)), "b": (1.0, form(x, None))})[1]
        assert type(got) is type(form(x, y))
        np.testing.assert_array_equal(got[0], 3 * x)
        np.testing.assert_array_equal(got[1], 2 * y)
    got = objective({"a": (1.0, {"w": x, "v": y}), "b": (1.0, {"v": y, "w": x})})[1]
    np.testing.assert_array_equal(got["v"], 3 * y)
    z = np.random.default_rng(0).normal(size=(2, 5, 3))
    one = info_nce(*z, temperature=0.2)
    got = objective({"a": one, "b": info_nce(*z, temperature=0.4)})[1]
    assert type(got) is type(one[1]) and got.negatives is None
    assert objective({"a": (1.0, None), "b": (2.0, None)}) == (4.0, None)


def test_uncertainty_is_the_formula_and_its_gradient_is_right():
    objective = MultiObjectiveLoss(WEIGHTS, "uncertainty")
    objective.log_variances.data[:] = [0.3, -0.7, 1.1]
    losses = parts()
    total, grad = objective(losses)
    s, c, values = objective.log_variances.data, np.array([1, 0.5, 2]), np.array([1.0, 2, 3])
    assert total == pytest.approx((c * (0.5 * np.exp(-s) * values + 0.5 * s)).sum())
    np.testing.assert_allclose(grad, sum(f * losses[n][1] for n, f in zip(WEIGHTS, c * np.exp(-s) / 2, strict=True)))
    by_variance = objective.log_variances.grad.copy()
    for i in range(3):
        sides = []
        for sign in (1, -1):
            s[i] += sign * 1e-4
            sides.append(objective(losses)[0])
            s[i] -= sign * 1e-4
        assert (sides[0] - sides[1]) / 2e-4 == pytest.approx(by_variance[i], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("method", ["fixed", "uncertainty"])
def test_arrays_and_tape_agree(method):
    rng = np.random.default_rng(0)
    z, graph = rng.normal(size=(6, 3)), np.triu(rng.random((6, 6)) < 0.5, 1)
    positives = rng.normal(size=(6, 3))
    first, second = InfoNCELoss(), SpectralRegularization()
    objective = MultiObjectiveLoss({"infonce": 1.0, "spectral": 0.3}, method)
    objective.log_variances.data[:] = [0.2, -0.4]
    loss, grads = first(z, positives)
    total, grad = objective({"infonce": (loss, grads.anchors), "spectral": second(z, graph)})
    by_variance, objective.log_variances.grad = objective.log_variances.grad, None
    x = nn.Tensor(z, requires_grad=True)
    out = objective({"infonce": first(x, positives), "spectral": second(x, graph)})
    out.backward()
    assert out.item() == pytest.approx(total, rel=1e-13)
    np.testing.assert_allclose(x.grad, grad, rtol=1e-12)
    if method == "uncertainty":
        np.testing.assert_allclose(objective.log_variances.grad, by_variance, rtol=1e-12)


def test_s4_12_uncertainty_weights_come_to_rest_and_heed_the_configured_ones():
    """S4-12: the reference's adaptive weights are 1/L (2.6e8 for a loss of 0), ignore the configured, never rest."""
    values = {"a": 1.5, "b": 30.0}
    effects = []
    for scale in (1.0, 10.0):
        objective = MultiObjectiveLoss({"a": 2.0, "b": 1.0}, "uncertainty", lr=0.1)
        for _ in range(2000):
            objective({name: (scale * value, None) for name, value in values.items()})
            objective.step()
        np.testing.assert_allclose(np.exp(objective.log_variances.data), scale * np.array([1.5, 30]), rtol=1e-3)
        effects.append([objective.factors[name] * scale * value for name, value in values.items()])
    np.testing.assert_allclose(effects, [[1, 0.5], [1, 0.5]], rtol=1e-3)  # each at half its weight, at any scale
    objective = MultiObjectiveLoss({"a": 1.0, "b": 1.0}, "uncertainty", lr=0.5, limit=3.0)
    for _ in range(200):
        objective({"a": (0.0, None), "b": (1.0, None)})
        objective.step()
    assert objective.factors["a"] == pytest.approx(np.exp(3) / 2)


def test_log_variances_can_be_given_to_an_optimizer():
    objective = MultiObjectiveLoss({"a": 1.0, "b": 1.0}, "uncertainty")
    optimizer = Adam([objective.log_variances], lr=0.05)
    for _ in range(500):
        objective({"a": (4.0, None), "b": (0.5, None)})
        optimizer.step()
    np.testing.assert_allclose(np.exp(objective.log_variances.data), [4, 0.5], rtol=0.02)


def gradnorm_step(weights, first, values, sizes, lr, alpha):
    """One update by the paper, with central differences of its loss, whose targets are constants."""
    ratio = values / first
    target = (weights * sizes).mean() * (ratio / ratio.mean()) ** alpha
    grad = np.array([(np.abs((weights + h) * sizes - target) - np.abs((weights - h) * sizes - target)).sum() / 2e-6
                     for h in 1e-6 * np.eye(len(weights))])
    new = np.maximum(weights - lr * grad, 1e-3)
    return new * len(new) / new.sum()


def test_gradnorm_is_the_papers_rule():
    rng = np.random.default_rng(0)
    names = ("a", "b", "c")
    objective = MultiObjectiveLoss(dict.fromkeys(names, 1.0), "gradnorm", lr=0.02, alpha=1.5)
    weights = np.ones(3)
    first = None
    for _ in range(20):
        values = rng.uniform(0.5, 2, 3)
        grads = rng.normal(size=(3, 4)) * [[1], [5], [0.3]]
        first = values if first is None else first
        total, grad = objective({name: (v, g) for name, v, g in zip(names, values, grads, strict=True)})
        assert total == pytest.approx(weights @ values, rel=1e-6)
        np.testing.assert_allclose(grad, weights @ grads, rtol=1e-5)
        weights = gradnorm_step(weights, first, values, np.linalg.norm(grads, axis=1), 0.02, 1.5)
        objective.step()
        np.testing.assert_allclose(list(objective.factors.values()), weights, rtol=1e-6)
    assert sum(objective.factors.values()) == pytest.approx(3)


def test_s4_13_gradnorm_lowers_the_weight_of_the_largest_gradient():
    """S4-13: the reference's rule raises it, without a rate of training, without scaling back."""
    objective = MultiObjectiveLoss({"large": 1.0, "small": 1.0}, "gradnorm", lr=0.001, alpha=0.0)
    for _ in range(500):
        objective({"large": (1.0, np.array([10.0])), "small": (1.0, np.array([1.0]))})
        objective.step()
    factors = objective.factors
    assert factors["large"] * 10 == pytest.approx(factors["small"] * 1, abs=0.1)
    assert sum(factors.values()) == pytest.approx(2)
    slow = MultiObjectiveLoss({"slow": 1.0, "fast": 1.0}, "gradnorm", lr=0.002)
    for step in range(300):
        slow({"slow": (1.0, np.ones(1)), "fast": (0.98**step, np.ones(1))})
        slow.step()
    assert slow.factors["slow"] > 1.5 > 0.5 > slow.factors["fast"]
    with pytest.raises(TypeError, match="a weight for each loss"):
        MultiObjectiveLoss({}, "gradnorm")


def test_gradnorm_with_given_norms_on_the_tape():
    x = nn.Tensor([2.0, 1.0], requires_grad=True)
    objective = MultiObjectiveLoss({"a": 1.0, "b": 1.0}, "gradnorm", lr=0.1)
    losses = {"a": (x * x).sum(), "b": x.sum()}
    with pytest.raises(ValueError, match="give norms="):
        objective(losses)
    objective(losses, norms={"a": 4.0, "b": 1.0}).backward()
    np.testing.assert_allclose(x.grad, [5, 3])
    objective.step()
    assert objective.factors["a"] < 1 < objective.factors["b"]
    with pytest.raises(RuntimeError, match="there was none"):
        objective.step()


@pytest.mark.parametrize("method", ["fixed", "uncertainty", "gradnorm"])
def test_state_goes_on_exactly(method):
    def run(objective, steps, begin=0):
        for step in range(begin, begin + steps):
            objective(parts(seed=step))
            objective.step()
        return list(objective.factors.values())

    through = run(MultiObjectiveLoss(WEIGHTS, method), 10)
    half = MultiObjectiveLoss(WEIGHTS, method)
    run(half, 5)
    state = half.state_dict()
    run(half, 1)  # the state is a copy
    resumed = MultiObjectiveLoss(dict.fromkeys(WEIGHTS, 1.0), method)
    resumed.load_state_dict(state)
    assert run(resumed, 5, begin=5) == through
    with pytest.raises(ValueError, match="the state is of"):
        MultiObjectiveLoss({"x": 1.0}, method).load_state_dict(state)


def test_losses_that_the_method_cannot_weigh_are_refused():
    for method in ("uncertainty", "gradnorm"):
        with pytest.raises(ValueError, match="loss a is -1, but method=.*add a constant"):
            MultiObjectiveLoss({"a": 1.0}, method)({"a": (-1.0, np.ones(1))})
    with pytest.raises(ValueError, match="first values, but one is 0"):
        MultiObjectiveLoss({"a": 1.0}, "gradnorm")({"a": (0.0, np.ones(1))})
    assert MultiObjectiveLoss({"a": 2.0})({"a": (-1.0, np.ones(1))})[0] == -2
    zero = MultiObjectiveLoss({"a": 1.0, "b": 1.0}, "gradnorm")
    zero.first_losses = np.ones(2)
    assert zero({"a": (0.0, np.zeros(1)), "b": (0.0, np.zeros(1))})[0] == 0
    zero.step()
    assert zero.factors == {"a": 1.0, "b": 1.0}


def test_bad_input():
    objective = MultiObjectiveLoss({"a": 1.0, "b": 0.0})
    for call, kind, message in [
        (lambda: MultiObjectiveLoss([1.0]), TypeError, "weights must be a dict"),
        (lambda: MultiObjectiveLoss({"a": -1.0}), ValueError, r"weights\['a'\] must be at least 0"),
        (lambda: MultiObjectiveLoss({"a": 0.0}), ValueError, "must not all be 0"),
        (lambda: MultiObjectiveLoss({"a": 1.0}, "adaptive"), ValueError, "method must be one of"),
        (lambda: MultiObjectiveLoss({"a": 1.0}, limit=0), ValueError, "limit must be greater than 0"),
        (lambda: objective({"a": (1.0, None)}), ValueError, "losses must be a dict with a, b, got a"),
        (lambda: objective([1.0, 2.0]), ValueError, "losses must be a dict with a, b, got list"),
        (lambda: objective({"a": (1.0, None), "b": 2.0}), ValueError, r"must all be \(loss, grads\), or all Tensors"),
        (lambda: objective({"a": (1.0, None), "b": nn.Tensor(2.0)}), ValueError, "must all be Tensors"),
        (lambda: objective({"a": (np.nan, None), "b": (1.0, None)}), ValueError, "loss a must be finite"),
        (lambda: objective({"a": nn.Tensor(np.nan), "b": nn.Tensor(1.0)}), ValueError, "loss a must be finite"),
        (lambda: objective({"a": (1.0, np.ones(2)), "b": (1.0, np.ones(3))}), ValueError, r"one shape, got \(2,\)"),
        (lambda: objective({"a": (1.0, [np.ones(2)]), "b": (1.0, np.ones(2))}), ValueError, "one form"),
        (lambda: MultiObjectiveLoss({"a": 1.0}, "uncertainty").step(), RuntimeError, "there was none"),
    ]:
        with pytest.raises(kind, match=message):
            call()


def test_repr():
    assert repr(MultiObjectiveLoss({"a": 1.0})) == "MultiObjectiveLoss({'a': 1.0}, method='fixed')"
