"""Losses of two views: against plain formulas and central differences, and what they are put on top of."""
import copy

import numpy as np
import pytest

from gnncy import nn, optim
from gnncy._threads import working_threads
from gnncy.losses import (
    BarlowTwinsLoss,
    BootstrapLoss,
    CCALoss,
    GroupDiscriminationLoss,
    JointEmbedding,
    TargetNetwork,
    VICRegLoss,
)
from gnncy.losses.joint_embedding import momentum_at
from gnncy.losses.joint_embedding.objective import OBJECTIVES, check_objectives

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
COLUMNS = {"vicreg": VICRegLoss(), "vicreg, near its bound": VICRegLoss(2.0, 30.0, 5.0, target=3.0),
           "cca": CCALoss(0.03), "barlow": BarlowTwinsLoss(), "barlow, images": BarlowTwinsLoss(0.005)}


def views(n=12, d=5, seed=0, dtype=np.float64):
    rng = np.random.default_rng([seed, n, d])
    first = rng.normal(size=(n, d)) + np.arange(d)
    return first.astype(dtype), (first + 0.5 * rng.normal(size=(n, d))).astype(dtype)


def vicreg(x, y, invariance=25, variance=25, covariance=1, target=1.0):
    n, d = x.shape
    total = invariance * ((x - y) ** 2).mean()
    for z in (x, y):
        matrix = np.cov(z, rowvar=False).reshape(d, d)
        total += variance / 2 * np.maximum(0, target - np.sqrt(np.diag(matrix) + 1e-4)).mean()
        total += covariance * (matrix ** 2).sum() / d - covariance * (np.diag(matrix) ** 2).sum() / d
    return total


def cca(x, y, weight):
    x, y = ((z - z.mean(axis=0)) / z.std(axis=0, ddof=1) for z in (x, y))
    n, d = x.shape
    eye = np.eye(d)
    return -np.trace(x.T @ y / n) + weight * sum(((eye - z.T @ z / n) ** 2).sum() for z in (x, y))


def barlow(x, y, weight):
    x, y = ((z - z.mean(axis=0)) / z.std(axis=0) for z in (x, y))
    c = x.T @ y / len(x)
    return ((1 - np.diag(c)) ** 2).sum() + weight * ((c ** 2).sum() - (np.diag(c) ** 2).sum())


@DTYPES
@pytest.mark.parametrize("n, d", [(2, 1), (12, 5), (40, 33)])
def test_losses_are_those_of_the_papers(n, d, dtype):
    x, y = views(n, d, dtype=dtype)
    wide = x.astype(np.float64), y.astype(np.float64)
    for loss, expected in [(VICRegLoss(), vicreg(*wide)),
                           (VICRegLoss(2, 30, 5, target=3.0), vicreg(*wide, 2, 30, 5, 3)),
                           (CCALoss(0.03), cca(*wide, 0.03)), (BarlowTwinsLoss(), barlow(*wide, 1 / d)),
                           (BarlowTwinsLoss(0.005), barlow(*wide, 0.005))]:
        value, (by_first, by_second) = loss(x, y)
        assert value == pytest.approx(expected, rel=1e-11 if dtype == np.float64 else 2e-4, abs=1e-5)
        assert by_first.shape == by_second.shape == x.shape and by_first.dtype == by_second.dtype == dtype


@pytest.mark.parametrize("loss", COLUMNS.values(), ids=COLUMNS)
def test_gradients_against_central_differences(loss):
    for n, d in ((2, 3), (12, 5)):
        assert nn.check_gradient(lambda x, y: loss(x, y) * 0.7, views(n, d)) < 1e-6
    x, y = views()
    by_arrays = loss(x, y)[1]
    tensors = [nn.Tensor(z, requires_grad=True) for z in (x, y)]
    loss(*tensors).backward()
    for tensor, grad in zip(tensors, by_arrays, strict=True):
        np.testing.assert_array_equal(tensor.grad, grad)
    with nn.no_grad():
        assert loss(nn.Tensor(x), y).item() == loss(x, y)[0]


@pytest.mark.parametrize("loss", [CCALoss(), BarlowTwinsLoss(), VICRegLoss()], ids=repr)
def test_a_constant_column_is_no_division_by_zero(loss):
    x, y = views()
    x[:, 2] = 7.0
    value, grads = loss(x, y)
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)
    if not isinstance(loss, VICRegLoss):
        assert not grads[0][:, 2].any()


@pytest.mark.parametrize("loss", [CCALoss(0.1), BarlowTwinsLoss()], ids=repr)
def test_standardised_losses_do_not_see_scale_and_offset_of_columns(loss):
    x, y = views()
    assert loss(x * np.arange(1, 6) - 3, y / 2 + 1)[0] == pytest.approx(loss(x, y)[0], rel=1e-10)


def test_vicreg_pushes_collapsed_rows_apart():
    rng = np.random.default_rng(0)
    z = 1e-3 * rng.normal(size=(64, 4))
    for _ in range(200):
        z -= 0.3 * sum(VICRegLoss()(z, z)[1])
    assert np.std(z, axis=0, ddof=1).min() > 0.99


@DTYPES
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_group_discrimination(reduction, dtype):
    true, corrupted = views(12, 5, dtype=dtype)[0] / 3, views(7, 5, seed=1, dtype=dtype)[0] / 3
    loss = GroupDiscriminationLoss(reduction)
    value, grads = loss(true, corrupted)
    each = np.concatenate([np.logaddexp(0, -true.sum(axis=1)), np.logaddexp(0, corrupted.sum(axis=1))])
    expected = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    np.testing.assert_allclose(value, expected, rtol=1e-11 if dtype == np.float64 else 1e-5)
    assert [grad.dtype for grad in grads] == [dtype, dtype]
    if dtype == np.float64:
        assert nn.check_gradient(loss, [true, corrupted]) < 1e-6
    far = GroupDiscriminationLoss()(np.full((1, 2), 1e4, dtype), np.full((1, 2), 1e4, dtype))
    assert far[0] == 1e4 and far[1][0].max() == 0 and far[1][1].max() == 0.5


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_bootstrap_loss(reduction):
    x, y = views()
    loss = BootstrapLoss(reduction)
    cosine = (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    expected = {"mean": np.mean(1 - cosine), "sum": np.sum(1 - cosine), "none": 1 - cosine}[reduction]
    np.testing.assert_allclose(loss(x, y)[0], expected, rtol=1e-12)
    assert nn.check_gradient(lambda x: loss(x, y), [x]) < 1e-6
    with pytest.raises(ValueError, match="held fixed"):
        loss(nn.Tensor(x), nn.Tensor(y, requires_grad=True))


def test_the_target_network_follows():
    online = nn.Sequential(nn.Linear(3, 2, rng=0), nn.BatchNorm(2))
    target = TargetNetwork(online)
    first = online.state_dict()
    for parameter in online.parameters():
        parameter.data += 1
    online.layers[1].running_mean += 5
    target.follow(online, 0.75)
    after = target.network.state_dict()
    for name, parameter in online.named_parameters():
        np.testing.assert_allclose(after[name], first[name] + 0.25, rtol=1e-6)
        assert np.array_equal(parameter.data, first[name] + 1)
    assert np.array_equal(after["layers.1.running_mean"], online.layers[1].running_mean)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    target.follow(online, 0.0)
    np.testing.assert_allclose(target.network.layers[0].weight.data, online.layers[0].weight.data, rtol=1e-6)


def test_momentum():
    assert momentum_at(0) == 0.99 and momentum_at(1, 0.9) == 1
    assert momentum_at(0.25, 0.9) == pytest.approx(1 - 0.1 * (1 + np.cos(np.pi / 4)) / 2)


class Given:
    """Rows with two noises, and shuffled."""

    def __init__(self, n=20, d=6, seed=0, dtype=np.float32):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(n, d)).astype(dtype)
        self.noise = (0.3 * rng.normal(size=(2 * n, d))).astype(dtype)
        self.order = rng.permutation(n)

    @property
    def targets(self):
        return np.concatenate([self.x, self.x])

    def pair(self, encoder):
        return encoder(nn.Tensor(self.targets + self.noise))

    def corrupted(self, encoder):
        return encoder(nn.Tensor(self.x[self.order][:, ::-1]))


def model(objectives, steps=10, seed=0):
    encoder = nn.MLP([6, 8, 4], rng=seed)
    return JointEmbedding(encoder, objectives, width=4, columns=6, total_steps=steps, rng=seed)


def trained(parameters):
    return [parameter for parameter in parameters if parameter.requires_grad]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_trains_the_encoder_and_its_head(objective):
    network, given = model(objective, steps=60), Given()
    optimizer = optim.Adam(trained(network.parameters()), lr=0.02)
    totals = []
    for _ in range(60):
        optimizer.zero_grad()
        total, parts = network(given)
        total.backward()
        assert parts == {objective: total.item()}
        assert all(parameter.grad is not None and np.isfinite(parameter.grad).all()
                   for parameter in trained(network.parameters()))
        assert all(parameter.grad is None for parameter in network.parameters() if not parameter.requires_grad)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0] - 0.05 * abs(totals[0])


def test_several_objectives_are_weighted():
    weights = {"cca": 0.5, "reconstruction": 2.0, "ggd": 0.25}
    total, parts = model(weights)(Given())
    assert total.item() == pytest.approx(sum(weights[name] * value for name, value in parts.items()), rel=1e-6)
    assert model(["cca", "ggd"]).balance.weights == {"cca": 1.0, "ggd": 1.0}


def test_the_target_network_is_part_of_the_state():
    network, given = model("bgrl"), Given()
    optimizer = optim.SGD(trained(network.parameters()), lr=0.5)
    other = None
    for step in range(8):
        if step == 4:
            other = model("bgrl", seed=1)
            other.load_state_dict(network.state_dict())
            others = optim.SGD(trained(other.parameters()), lr=0.5)
        for one, by in [(network, optimizer)] + ([] if other is None else [(other, others)]):
            by.zero_grad()
            one(given)[0].backward()
            by.step()
    state, restored = network.state_dict(), other.state_dict()
    assert state["heads.0.calls"] == 8 and all(np.array_equal(state[name], restored[name]) for name in state)
    assert not np.array_equal(state["encoder.layers.0.weight"], state["heads.0.target.network.layers.0.weight"])
    before = copy.deepcopy(state)
    network.eval()
    network(given)
    assert all(np.array_equal(before[name], value) for name, value in network.state_dict().items())


def test_bits_do_not_depend_on_the_number_of_threads():
    x, y = views(3000, 64, dtype=np.float32)
    for loss in (VICRegLoss(), CCALoss(), BarlowTwinsLoss(), GroupDiscriminationLoss(), BootstrapLoss()):
        results = []
        for threads in (1, 2):
            with working_threads(threads):
                results.append(loss(x, y))
        (first, grads), (second, others) = results
        assert first == second and np.array_equal(grads, others)


def test_read_only_and_foreign_input():
    x, y = views()
    expected = CCALoss()(x, y)[0]
    x.flags.writeable = False
    assert CCALoss()(x, np.asfortranarray(y).astype(">f8"))[0] == expected
    assert CCALoss()(x.tolist(), y)[0] == pytest.approx(expected)


@pytest.mark.parametrize("call, error, message", [
    (lambda x: VICRegLoss()(x, x[:3]), ValueError, r"second must have the shape of first, \(12, 5\), got \(3, 5\)"),
    (lambda x: CCALoss()(x[:1], x[:1]), ValueError, "at least 2 rows"),
    (lambda x: BarlowTwinsLoss()(x, x * np.nan), ValueError, "second contains inf or nan"),
    (lambda x: GroupDiscriminationLoss()(x, x[:, :2]), ValueError, "5 columns like true"),
    (lambda x: GroupDiscriminationLoss("all"), ValueError, "reduction must be one of"),
    (lambda x: BootstrapLoss("all"), ValueError, "reduction must be one of"),
    (lambda x: VICRegLoss(-1.0), ValueError, "invariance must be at least 0"),
    (lambda x: VICRegLoss(eps=0), ValueError, "eps must be greater than 0"),
    (lambda x: CCALoss(-1.0), ValueError, "decorrelation must be at least 0"),
    (lambda x: momentum_at(2.0), ValueError, "progress must be in 0..1"),
    (lambda x: check_objectives("dgi"), ValueError, "objective must be one of 'infonce', 'vicreg'"),
    (lambda x: check_objectives({"cca": 0}), ValueError, r"objective\['cca'\] must be greater than 0"),
    (lambda x: check_objectives(3), TypeError, "a name, a list of names or a dict of weights, got 3"),
    (lambda x: check_objectives({}), ValueError, "at least one of 'infonce'"),
])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(views()[0])


def test_repr():
    assert repr(VICRegLoss()) == "VICRegLoss(25.0, 25.0, 1.0, target=1.0)"
    assert repr(CCALoss()) == "CCALoss(decorrelation=0.001)"
    assert repr(BarlowTwinsLoss()) == "BarlowTwinsLoss(decorrelation=None)"
    assert repr(GroupDiscriminationLoss()) == "GroupDiscriminationLoss(reduction='mean')"
    assert repr(BootstrapLoss()) == "BootstrapLoss(reduction='mean')"
    assert repr(model("cca")).startswith("JointEmbedding({'cca': 1.0}, MLP(")
