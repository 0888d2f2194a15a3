"""Elastic weight consolidation: penalties and their gradients, tasks, states, and in a training."""
import numpy as np
import pytest

from gnncy import nn, optim
from gnncy.errors import StorageError
from gnncy.storage import HyperbatchIterator
from gnncy.training import SnapshotFolder, Trainer
from gnncy.training.continual import ColdTierEWC, ElasticWeightConsolidation, fisher_diagonal

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 5))
Y = RNG.integers(0, 3, 23)


def mlp(seed=0, dtype=np.float64):
    return nn.MLP([5, 7, 3], "elu", rng=seed, dtype=dtype)


def consolidated(strength=3.0, decay=None, tasks=1):
    model = mlp()
    ewc = ElasticWeightConsolidation(model, strength, decay=decay)
    kept = []
    for task in range(tasks):
        for p in model.parameters():
            p.data += np.random.default_rng(task).normal(size=p.shape)
        ewc.compute_fisher(X + task)
        kept.append((fisher_diagonal(model, X + task), model.state_dict()))
        ewc.consolidate()
    return model, ewc, kept


def test_penalty_and_gradient_of_one_task():
    model, ewc, [(fisher, anchor)] = consolidated()
    assert ewc.is_active and ewc.penalty() == 0
    assert all((g == 0).all() for g in ewc.gradient().values())
    weights = {name: value + 1 for name, value in anchor.items()}
    assert ewc.penalty(weights) == pytest.approx(1.5 * sum(f.sum() for f in fisher.values()))
    for name, grad in ewc.gradient(weights).items():
        np.testing.assert_allclose(grad, 3 * fisher[name])


@pytest.mark.parametrize("tasks", [2, 4])
def test_s0_30_the_penalty_of_several_tasks_is_the_sum_of_their_penalties(tasks):
    """S0-30: a second consolidation keeps the first."""
    model, ewc, kept = consolidated(tasks=tasks)
    for p in model.parameters():
        p.data += 0.3
    expected = sum(1.5 * (f[name] * (p.data - anchor[name])**2).sum()
                   for f, anchor in kept for name, p in model.named_parameters())
    assert ewc.n_tasks == tasks and ewc.penalty() == pytest.approx(expected, rel=1e-12)
    for name, grad in ewc.gradient().items():
        slope = sum(3 * f[name] * (dict(model.named_parameters())[name].data - a[name]) for f, a in kept)
        np.testing.assert_allclose(grad, slope, rtol=1e-9, atol=1e-12)


def test_s0_30_consolidation_needs_a_fisher():
    """S0-30: no silent penalty of 0."""
    ewc = ElasticWeightConsolidation(mlp())
    with pytest.raises(RuntimeError, match="call compute_fisher"):
        ewc.consolidate()
    ewc.compute_fisher(X)
    ewc.consolidate()
    with pytest.raises(RuntimeError, match="call compute_fisher"):  # one Fisher serves one task
        ewc.consolidate()
    assert ewc.n_tasks == 1


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_online_consolidation_decays_and_has_one_anchor(decay):
    model, ewc, kept = consolidated(decay=decay, tasks=3)
    for name, p in model.named_parameters():
        expected = sum(decay**(2 - t) * f[name] for t, (f, _) in enumerate(kept))
        np.testing.assert_allclose(ewc.fisher[name], expected, rtol=1e-12)
        assert (ewc.anchor[name] == p.data).all()
    assert ewc.penalty() == 0


def test_gradient_is_the_derivative_of_the_penalty():
    model, ewc, _ = consolidated(tasks=2)
    for p in model.parameters():
        p.data += 0.5
    weights, step = model.state_dict(), 1e-5
    for name, grad in ewc.gradient().items():
        for at in np.ndindex(grad.shape):
            ends = []
            for sign in (1, -1):
                moved = weights[name].copy()
                moved[at] += sign * step
                ends.append(ewc.penalty(weights | {name: moved}))
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(grad[at], rel=1e-6, abs=1e-9)
    model.zero_grad()
    loss = ewc.loss() * 2.0
    loss.backward()
    assert loss.item() == pytest.approx(2 * ewc.penalty())
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.grad, 2 * ewc.gradient()[name], rtol=1e-12)


def test_called_it_adds_its_gradient():
    model, ewc, _ = consolidated()
    for p in model.parameters():
        p.data += 0.5
        p.grad = np.ones(p.shape)
    next(iter(model.parameters())).grad = None
    penalty = ewc(None, key=1)
    assert penalty == ewc.penalty() > 0
    for i, (name, p) in enumerate(model.named_parameters()):
        np.testing.assert_array_equal(p.grad, ewc.gradient()[name] + (i > 0))


def test_float32_is_kept():
    model = mlp(dtype=np.float32)
    ewc = ElasticWeightConsolidation(model)
    assert ewc.penalty() == 0 and ewc.loss().item() == 0 and not ewc.is_active
    ewc.compute_fisher(X.astype(np.float32))
    ewc.consolidate()
    for p in model.parameters():
        p.data += np.float32(0.1)
    assert all(a.dtype == np.float32 for a in (*ewc.fisher.values(), *ewc.anchor.values(), *ewc.gradient().values()))
    assert ewc.loss().dtype == np.float32 and ewc.penalty() > 0


@pytest.mark.parametrize("strength", [-1.0, np.nan, np.inf])
def test_s0_32_strength_is_checked(tmp_path, strength):
    """S0-32: no negative or nan strength."""
    with pytest.raises(ValueError, match="strength must be"):
        ElasticWeightConsolidation(mlp(), strength)
    with pytest.raises(ValueError, match="strength must be"):
        ColdTierEWC.create(tmp_path, 3, 2, strength)
    assert not (tmp_path / "ewc.json").exists()
    with ColdTierEWC.create(tmp_path, 3, 2) as ewc, pytest.raises(ValueError, match="strength must be"):
        ewc.strength = strength


@pytest.mark.parametrize("decay", [-0.1, 1.1])
def test_decay_is_checked(tmp_path, decay):
    with pytest.raises(ValueError, match=r"decay must be in 0\.\.1"):
        ElasticWeightConsolidation(mlp(), decay=decay)
    with pytest.raises(ValueError, match=r"decay must be in 0\.\.1"):
        ColdTierEWC.create(tmp_path, 3, 2, decay=decay)


def test_s0_31_shapes_and_names_are_checked():
    """S0-31: neither too few nor too many weights, nor of another shape."""
    _, ewc, [(fisher, weights)] = consolidated()
    for broken, message in (({}, "missing"), (weights | {"more": np.zeros(2)}, "unknown \\['more'\\]"),
                            (weights | {"layers.0.bias": np.zeros(6)}, "must have shape \\(7,\\), got \\(6,\\)"),
                            (weights | {"layers.0.bias": np.zeros((7, 1))}, "1-dimensional"),
                            (weights | {"layers.0.bias": np.full(7, np.nan)}, "nan")):
        for call in (ewc.penalty, ewc.gradient, ewc.consolidate):
            with pytest.raises(ValueError, match=message):
                call(broken)
    with pytest.raises(ValueError, match="at least 0"):
        ewc.consolidate({name: -f for name, f in fisher.items()})
    assert ewc.n_tasks == 1


def test_a_state_goes_on_in_another_object():
    model, ewc, _ = consolidated(tasks=2)
    ewc.compute_fisher(X - 1)
    other = ElasticWeightConsolidation(model)
    other.load_state_dict(ewc.state_dict())
    for one in (ewc, other):
        one.consolidate()
    for p in model.parameters():
        p.data += 0.2
    assert other.n_tasks == 3 and other.strength == 3.0 and other.penalty() == ewc.penalty()
    assert all((g == other.gradient()[name]).all() for name, g in ewc.gradient().items())
    with pytest.raises(ValueError, match="missing"):
        ElasticWeightConsolidation(nn.Linear(5, 3, rng=0)).load_state_dict(ewc.state_dict())
    with pytest.raises(ValueError, match="anchors"):
        other.load_state_dict({k: v for k, v in ewc.state_dict().items() if not k.startswith("anchor")})


# -- in a training


class Stop(Exception):
    pass


def train(model, ewc, folder=None, stop=None, epochs=4):
    def batches(epoch, first):
        order = np.random.default_rng(epoch).permutation(20).reshape(4, 5)
        return HyperbatchIterator(X[:20] + 2, list(order[first:]), buffer_bytes=10**6)

    def step(batch, key):
        loss = -nn.log_softmax(model(nn.Tensor(batch.features)))[np.arange(5), Y[batch.batch]].mean()
        loss.backward()
        return loss.item(), 5

    class Stopping:
        def on_batch_end(self, trainer, info):
            if trainer.total_steps == stop:
                raise Stop

    trainer = Trainer(model, optim.Adam(model.parameters(), lr=0.05), seed=0, max_epochs=epochs, continual=ewc,
                      snapshots=None if folder is None else SnapshotFolder(folder), snapshot_seconds=0.0,
                      callbacks=[Stopping()])
    return trainer.run(batches, step, 4)


def test_a_trainer_holds_what_is_consolidated():
    moved = {}
    for strength in (0.0, 1.0, 1e4):
        model, ewc, [(fisher, anchor)] = consolidated(strength)
        history = train(model, ewc)
        moved[strength] = sum((fisher[name] * (p.data - anchor[name])**2).sum() for name, p in model.named_parameters())
        assert history[0]["continual_loss"] > 0 or strength == 0
    assert moved[1e4] < 0.1 * moved[0.0] and moved[1.0] < moved[0.0]
    model, _, _ = consolidated()
    assert "continual_loss" not in train(model, ())[0]


@pytest.mark.parametrize("stop", [3, 8])
def test_a_training_that_was_cut_off_ends_with_the_same_bits(tmp_path, stop):
    whole, ewc, _ = consolidated(10.0, tasks=2)
    train(whole, ewc)
    model, ewc, _ = consolidated(10.0, tasks=2)
    with pytest.raises(Stop):
        train(model, ewc, tmp_path, stop)
    fresh = mlp(5)
    resumed = ElasticWeightConsolidation(fresh)  # what it holds is in the snapshot
    train(fresh, resumed, tmp_path)
    assert resumed.n_tasks == 2 and resumed.strength == 10.0
    assert all((p.data == q.data).all() for p, q in zip(whole.parameters(), fresh.parameters(), strict=True))
    with pytest.raises(StorageError, match="no state of continual 1"):
        train(mlp(), (resumed, resumed), tmp_path)
