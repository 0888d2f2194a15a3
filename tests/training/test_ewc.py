"""EWC: the Fisher information against closed forms and explicit loops, penalties, tasks, and the state on disk."""
import json
import tracemalloc

import numpy as np
import pytest

from gnncy import nn, optim
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage, HyperbatchIterator
from gnncy.training import SnapshotFolder, Trainer
from gnncy.training.continual import ColdTierEWC, ElasticWeightConsolidation, fisher_diagonal
from gnncy.training.continual import cold_tier as cold_tier_module

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 5))
Y = RNG.integers(0, 3, 23)


def mlp(seed=0, dtype=np.float64):
    model = nn.MLP([5, 7, 3], "elu", rng=seed, dtype=dtype)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.bias.data[...] = np.random.default_rng(seed).normal(size=layer.bias.shape)
    return model


def softmax(z):
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def sample_gradients(model, x, y):
    """The gradient of log p(y|x) of one sample by each parameter, through the tape's own log_softmax."""
    model.zero_grad()
    nn.log_softmax(model(nn.Tensor(x[None])))[0, int(y)].backward()
    return {name: p.grad.copy() for name, p in model.named_parameters()}


def explicit(model, x, weights):
    """The mean over samples of squares, each label by its weight; weights of shape (n, classes)."""
    total = {name: np.zeros(p.shape) for name, p in model.named_parameters()}
    for row, of_labels in zip(x, weights, strict=True):
        for label, weight in enumerate(of_labels):
            if weight:
                for name, grad in sample_gradients(model, row, label).items():
                    total[name] += weight * grad**2 / len(x)
    return total


def assert_close(found, expected, tolerance=1e-6):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.max() > 0
        np.testing.assert_allclose(found[name], value, rtol=tolerance, atol=tolerance * value.max())


# -- Fisher information


@pytest.mark.parametrize("one_by_one", [False, True])
def test_exact_fisher_is_the_explicit_one(one_by_one):
    model = mlp()
    logits = (lambda rows: model(nn.Tensor(rows))) if one_by_one else None
    expected = explicit(model, X, softmax(model(nn.Tensor(X)).data))
    assert_close(fisher_diagonal(model, X, logits=logits, method="exact"), expected, 1e-12)
    assert_close(fisher_diagonal(mlp(dtype=np.float32), X.astype(np.float32), logits=None), expected, 1e-4)


def test_empirical_fisher_is_the_explicit_one_of_the_targets():
    model = mlp()
    assert_close(fisher_diagonal(model, X, method="empirical", targets=Y), explicit(model, X, np.eye(3)[Y]), 1e-12)


def test_fisher_of_many_samples_does_not_depend_on_the_vectorised_chunk(monkeypatch):
    whole = fisher_diagonal(mlp(), X, method="sampled", seed=3)
    monkeypatch.setattr("gnncy.training.continual.fisher._CHUNK", 4)
    assert_close(fisher_diagonal(mlp(), X, method="sampled", seed=3), whole, 1e-12)


def test_fisher_has_the_same_bits_on_any_number_of_threads():
    model, x = nn.MLP([300, 300, 3], rng=0), np.random.default_rng(0).normal(size=(700, 300)).astype(np.float32)
    one, *others = (fisher_diagonal(model, x, n_jobs=n_jobs) for n_jobs in (1, 2, 4))
    for other in others:
        assert all((other[name] == value).all() for name, value in one.items())


def test_sampled_fisher_comes_to_the_exact_one():
    model, many = mlp(), np.tile(X, (2000, 1))
    exact, sampled = fisher_diagonal(model, X), fisher_diagonal(model, many, method="sampled", seed=1)
    for name, value in exact.items():
        np.testing.assert_allclose(sampled[name], value, rtol=0.1, atol=0.02 * value.max())
    other = fisher_diagonal(model, many, method="sampled", seed=2)
    assert any((other[name] != sampled[name]).any() for name in exact)


def test_logistic_model_has_its_closed_form():
    model = nn.Linear(5, 2, bias=False, rng=0, dtype=np.float64)
    p = softmax(X @ model.weight.data)[:, 0]
    expected = (p * (1 - p)) @ X**2 / len(X)
    np.testing.assert_allclose(fisher_diagonal(model, X)["weight"], np.stack([expected, expected], axis=1), rtol=1e-12)


def test_fisher_does_not_depend_on_order_or_on_copies_of_samples():
    model = mlp()
    fisher = fisher_diagonal(model, X)
    assert_close(fisher_diagonal(model, X[::-1]), fisher, 1e-12)
    assert_close(fisher_diagonal(model, np.repeat(X, 3, axis=0)), fisher, 1e-12)


def test_auto_is_exact_up_to_32_classes():
    for classes in (32, 33):
        model = nn.Linear(5, classes, rng=0, dtype=np.float64)
        exact, auto = fisher_diagonal(model, X, method="exact"), fisher_diagonal(model, X)
        assert (exact["weight"] == auto["weight"]).all() == (classes == 32)


def test_classes_of_a_task_leave_the_other_columns_alone():
    model = mlp()
    found = fisher_diagonal(model, X, classes=[2, 0])
    assert (found["layers.2.weight"][:, 1] == 0).all() and (found["layers.2.weight"][:, [0, 2]] > 0).all()
    two = mlp()
    two.layers[2].weight.data = np.ascontiguousarray(two.layers[2].weight.data[:, [0, 2]])
    two.layers[2].bias.data = np.ascontiguousarray(two.layers[2].bias.data[[0, 2]])
    np.testing.assert_allclose(fisher_diagonal(two, X)["layers.0.weight"], found["layers.0.weight"], rtol=1e-12)


def test_s0_33_squares_of_batch_means_go_by_a_name_of_their_own_and_are_too_small():
    """S0-33: at an optimum the squared gradient of a mean is F / B."""
    rng, size = np.random.default_rng(1), 8
    x = rng.normal(size=(8000, 4))
    model = nn.Linear(4, 2, rng=0, dtype=np.float64)
    y = (rng.random(8000)[:, None] > np.cumsum(softmax(model(nn.Tensor(x)).data), axis=1)[:, :1]).sum(axis=1)
    fisher = fisher_diagonal(model, x)["weight"]
    batch = fisher_diagonal(model, x, method="batch", targets=y, batch_size=size)["weight"]
    np.testing.assert_allclose(batch * size, fisher, rtol=0.2)
    assert (batch < 0.2 * fisher).all()
    one = fisher_diagonal(model, x[:50], method="batch", targets=y[:50], batch_size=1)
    assert_close(one, fisher_diagonal(model, x[:50], method="empirical", targets=y[:50]), 1e-12)


class Shared(nn.Module):
    """One layer called twice, and a weight that no layer has: squares cannot be taken layer by layer."""

    def __init__(self, twice):
        self.layer, self.twice = nn.Linear(5, 5, rng=0, dtype=np.float64), twice
        self.scale = None if twice else nn.Parameter(np.arange(1.0, 6.0))

    def forward(self, x):
        x = self.layer(x)
        return nn.tanh(self.layer(nn.tanh(x))) if self.twice else nn.tanh(x) * self.scale


@pytest.mark.parametrize("twice", [False, True])
def test_other_models_are_differentiated_one_sample_after_the_other(twice):
    model = Shared(twice)
    assert_close(fisher_diagonal(model, X), explicit(model, X, softmax(model(nn.Tensor(X)).data)), 1e-12)


def test_a_graph_model_by_node_and_infonce_as_a_classifier():
    class Contrast(nn.Module):
        def __init__(self):
            self.encoder = nn.Linear(5, 3, rng=0, dtype=np.float64)

        def forward(self, anchors):
            z = nn.l2_normalise(self.encoder(nn.Tensor(X)))
            return nn.matmul(z[anchors], z.T) * 2.0

    model = Contrast()
    found = fisher_diagonal(model, np.arange(6), logits=model, method="exact")
    p = softmax(model(np.arange(6)).data)
    total = np.zeros((5, 3))
    for anchor in range(6):
        for label in range(23):
            model.zero_grad()
            nn.log_softmax(model(np.array([anchor])))[0, label].backward()
            total += p[anchor, label] * model.encoder.weight.grad**2 / 6
    np.testing.assert_allclose(found["encoder.weight"], total, rtol=1e-10)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(5, 4, rng=0), nn.Dropout(0.5), nn.Linear(4, 3, rng=1))
    model.layers[0].weight.grad = mark = np.ones((5, 4), np.float32)
    before, x = model.state_dict(), X.astype(np.float32)
    x.setflags(write=False)
    fisher_diagonal(model, x)
    assert model.training and model.layers[0].weight.grad is mark and (mark == 1).all()
    assert model.layers[2].weight.grad is None and "forward" not in vars(model.layers[0])
    assert all((before[name] == value).all() for name, value in model.state_dict().items())


def test_frozen_parameters_have_no_fisher():
    model = mlp()
    model.layers[0].requires_grad_(False)
    assert set(fisher_diagonal(model, X)) == {"layers.2.weight", "layers.2.bias"}


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"method": "diagonal"}, ValueError, "method must be one of"),
    ({"method": "empirical"}, ValueError, "needs targets"),
    ({"method": "batch"}, ValueError, "needs targets"),
    ({"method": "empirical", "targets": Y[:4]}, ValueError, "one label for each of the 23"),
    ({"method": "empirical", "targets": Y, "classes": [0, 1]}, ValueError, "targets must be among classes"),
    ({"classes": [1]}, ValueError, "at least 2 classes"),
    ({"classes": [3]}, IndexError, "classes must lie in 0..2"),
    ({"logits": lambda rows: nn.Tensor(np.zeros((2, 3)))}, ValueError, "one row for each"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
])
def test_fisher_refuses(options, error, message):
    with pytest.raises(error, match=message):
        fisher_diagonal(mlp(), X, **options)


def test_fisher_needs_samples():
    with pytest.raises(ValueError, match="at least one sample"):
        fisher_diagonal(mlp(), X[:0])


# -- in memory


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


# -- in the cold tier


def samples(count=6, n=40, dim=3, seed=0):
    """Gradients of samples: some of all rows, some of a few."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(count, n, dim))
    dense[::2, rng.random(n) < 0.7] = 0
    pairs = [(np.flatnonzero(rows.any(axis=1)), rows[rows.any(axis=1)]) for rows in dense]
    return dense, pairs


@pytest.mark.parametrize("form", ["array", "list", "pairs", "generator"])
def test_disk_has_the_mean_square_of_samples(tmp_path, form, monkeypatch):
    monkeypatch.setattr(cold_tier_module, "_CHUNK_BYTES", 7 * 3 * 8)  # rows come in several parts
    dense, pairs = samples()
    given = {"array": dense, "list": list(dense), "pairs": pairs, "generator": (g for g in dense)}[form]
    with ColdTierEWC.create(tmp_path, 40, 3, strength=2.0) as ewc:
        ewc.compute_fisher(given)
        assert ewc.n_samples == 6 and not ewc.is_active
        table = np.random.default_rng(3).normal(size=(40, 3)).astype(np.float32)
        ewc.consolidate(table)
        fisher = (dense**2).mean(axis=0)
        np.testing.assert_allclose(ewc.gradient(table + 1), 2 * fisher, rtol=1e-5)
        assert ewc.penalty(table) == 0
        assert ewc.penalty(table + 1) == pytest.approx(fisher.sum(), rel=1e-5)
    assert ColdTierEWC.open(tmp_path).close() is None


def test_the_reference_facts(tmp_path):
    """One sample: F = g^2; penalty 0 at the anchor; gradient 100 F 1."""
    gradient = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    with ColdTierEWC.create(tmp_path, n_params=3, dim=2, strength=100.0) as ewc:
        ewc.compute_fisher(gradient)
        ewc.consolidate(np.zeros((3, 2)))
        assert ewc.penalty(np.zeros((3, 2))) == 0
        assert ewc.penalty(np.ones((3, 2))) == 50 * (gradient**2).sum()
        np.testing.assert_array_equal(ewc.gradient(np.ones(2), 1), 100 * gradient[0, 1]**2)


def test_disk_and_memory_agree_over_tasks_in_parts_of_any_size(tmp_path, monkeypatch):
    class Table(nn.Module):
        def __init__(self):
            self.rows = nn.Parameter(np.zeros((40, 3), np.float32))

    for decay in (None, 0.9):
        bits = []
        for rows_a_chunk in (7, 1000):
            monkeypatch.setattr(cold_tier_module, "_CHUNK_BYTES", rows_a_chunk * 3 * 8)
            model = Table()
            memory = ElasticWeightConsolidation(model, 5.0, decay=decay)
            with ColdTierEWC.create(tmp_path, 40, 3, 5.0, decay=decay, overwrite=True) as disk:
                for task in range(3):
                    dense, pairs = samples(seed=task)
                    model.rows.data[...] = np.random.default_rng(task).normal(size=(40, 3))
                    disk.compute_fisher(pairs)
                    disk.consolidate(model.rows.data)
                    memory.consolidate({"rows": (dense**2).mean(axis=0)})
                table = model.rows.data + np.float32(0.5)
                np.testing.assert_allclose(disk.gradient(table), memory.gradient({"rows": table})["rows"], rtol=1e-4,
                                           atol=1e-4)
                assert disk.penalty(table) == pytest.approx(memory.penalty({"rows": table}), rel=1e-5)
                bits.append(disk.gradient(table))
        assert all((other == bits[0]).all() for other in bits)


def test_tables_may_be_on_disk_and_rows_asked_for(tmp_path):
    dense, _ = samples()
    table = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    with (ColdTierEWC.create(tmp_path / "ewc", 40, 3, 2.0) as ewc,
          FeatureStorage.from_array(table, tmp_path / "table.npy") as store,
          FeatureStorage.from_array(table + 1, tmp_path / "later.npy") as later):
        ewc.compute_fisher(dense)
        ewc.consolidate(store)
        assert ewc.penalty(store) == 0 and ewc.penalty(later) > 0
        ids = np.array([7, 2, 7])
        np.testing.assert_array_equal(ewc.gradient(table[ids] + 1, ids), ewc.gradient(table + 1)[ids])
        parts = sum(ewc.penalty(table[[i]] + 1, [i]) for i in range(40))
        assert parts == pytest.approx(ewc.penalty(later))
        rows = (table[ids] + 1).astype(np.float64)
        assert nn.check_gradient(lambda rows: ewc.loss(rows, ids), [rows]) < 1e-6
        assert ewc.loss(nn.Tensor(rows), ids).item() == pytest.approx(ewc.penalty(rows, ids))


def test_a_table_passes_through_memory_in_small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(cold_tier_module, "_CHUNK_BYTES", 1 << 16)
    rows, dim = 30_000, 32
    table = FeatureStorage.create(tmp_path / "table.npy", rows, dim)
    rng = np.random.default_rng(0)
    with table, ColdTierEWC.create(tmp_path / "ewc", rows, dim) as ewc:
        tracemalloc.start()
        ewc.compute_fisher((rng.integers(0, rows, 1), rng.normal(size=(1, dim))) for _ in range(50))
        ewc.consolidate(table)
        assert ewc.penalty(table) == 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < rows * dim * 4 / 3, peak


@pytest.mark.parametrize(("given", "message"), [
    (np.ones((2, 39, 3)), r"shape \(samples, 40, 3\), got \(2, 39, 3\)"),
    (np.ones((80, 3)), r"shape \(samples, 40, 3\)"),
    (np.ones((0, 40, 3)), "no sample"),
    ([np.ones((40, 3)), np.ones((40, 2))], r"got \(40, 2\) for sample 1"),
    ([([1, 1], np.ones((2, 3)))], "repeat"),
    ([([1, 2], np.ones((3, 3)))], r"shape \(2, 3\), got \(3, 3\)"),
    ([([1], np.full((1, 3), np.nan))], "nan"),
])
def test_s0_29_what_is_no_row_of_samples_is_refused_and_nothing_changes(tmp_path, given, message):
    """S0-29: no remainder dropped, no row cut or filled up, no count by hand."""
    with ColdTierEWC.create(tmp_path, 40, 3) as ewc:
        ewc.compute_fisher(np.ones((2, 40, 3)))
        files = sorted(tmp_path.iterdir())
        with pytest.raises(ValueError, match=message):
            ewc.compute_fisher(given)
        assert sorted(tmp_path.iterdir()) == files and ewc.n_samples == 2


def test_s0_29_sums_are_of_float64(tmp_path):
    """S0-29: float32 would lose the small squares beside a large one."""
    with ColdTierEWC.create(tmp_path, 1, 1, strength=1.0) as ewc:
        ewc.compute_fisher(np.r_[4096.0, np.ones(1000)].reshape(-1, 1, 1))
        ewc.consolidate(np.zeros((1, 1)))
        assert ewc.gradient(np.ones((1, 1)))[0, 0] == pytest.approx((4096.0**2 + 1000) / 1001, rel=1e-7)
    with pytest.raises(ValueError, match="n_params must be at least 1"):
        ColdTierEWC.create(tmp_path / "none", 0, 1)


def test_s0_30_the_disk_needs_a_fisher_too(tmp_path):
    """S0-30."""
    with ColdTierEWC.create(tmp_path, 4, 2) as ewc:
        with pytest.raises(RuntimeError, match="call compute_fisher"):
            ewc.consolidate(np.zeros((4, 2)))
        assert ewc.penalty(np.ones((4, 2))) == 0 and (ewc.gradient(np.ones((4, 2))) == 0).all()
        assert ewc.loss(nn.Tensor(np.ones((1, 2))), [0]).item() == 0


def test_s0_31_weights_of_another_shape_are_refused(tmp_path):
    """S0-31."""
    with ColdTierEWC.create(tmp_path, 4, 2) as ewc:
        for tasks in range(2):
            for weights, ids in ((np.zeros((3, 2)), None), (np.zeros((5, 2)), None), (np.zeros((4, 1)), None),
                                 (np.zeros((2, 2)), [1])):
                for call in (ewc.penalty, ewc.gradient):
                    with pytest.raises(ValueError, match="weights must have shape"):
                        call(weights, ids)
            with pytest.raises(IndexError, match=r"0\.\.3"):
                ewc.gradient(np.zeros(2), 4)
            ewc.compute_fisher(np.ones((1, 4, 2)))
            with pytest.raises(ValueError, match="weights must have shape"):
                ewc.consolidate(np.zeros((3, 2)))
            assert ewc.n_tasks == tasks
            ewc.consolidate(np.zeros((4, 2)))


def test_s0_32_state_is_stored_and_opened_again(tmp_path):
    """S0-32: strength and tasks are kept, and making a new one does not destroy the old."""
    dense, _ = samples()
    table = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    with ColdTierEWC.create(tmp_path, 40, 3, 7.0) as ewc:
        ewc.compute_fisher(dense)
    with ColdTierEWC.open(tmp_path) as ewc:
        assert ewc.n_samples == 6 and ewc.strength == 7.0
        ewc.consolidate(table)
        ewc.compute_fisher(dense[:2])
        ewc.consolidate(table + 1)
        ewc.strength = 8.0
        penalty, gradient = ewc.penalty(table), ewc.gradient(table)
    with ColdTierEWC(tmp_path) as ewc:
        assert (ewc.strength, ewc.n_tasks, ewc.is_active) == (8.0, 2, True)
        assert ewc.penalty(table) == penalty > 0 and (ewc.gradient(table) == gradient).all()
    with pytest.raises(FileExistsError, match="open"):
        ColdTierEWC.create(tmp_path, 40, 3)
    ColdTierEWC.create(tmp_path, 4, 2, overwrite=True).close()
    assert [file.name for file in tmp_path.iterdir()] == ["ewc.json"]


@pytest.mark.parametrize("call", ["compute_fisher", "consolidate"])
def test_a_crash_leaves_the_state_before_or_after(tmp_path, monkeypatch, call):
    table = np.ones((40, 3), np.float32)
    dense, _ = samples()

    class Crash(BaseException):
        pass

    def prepared(folder):
        ewc = ColdTierEWC.create(folder, 40, 3, 2.0)
        ewc.compute_fisher(dense)
        ewc.consolidate(table)
        if call == "consolidate":
            ewc.compute_fisher(dense[:1])
        return ewc

    def change(ewc):
        ewc.compute_fisher(dense[1:]) if call == "compute_fisher" else ewc.consolidate(table + 1)

    with prepared(tmp_path / "reference") as ewc:
        before = ewc.n_tasks, ewc.n_samples, ewc.penalty(table + 2)
        change(ewc)
        after = ewc.n_tasks, ewc.n_samples, ewc.penalty(table + 2)
    assert before != after
    seen = set()
    for point, target in enumerate(["gnncy.storage.FeatureStorage.write_features",
                                    "gnncy.training.continual.cold_tier._write_state",
                                    "gnncy.training.continual.cold_tier.ColdTierEWC._attach",
                                    "gnncy.training.continual.cold_tier.ColdTierEWC._remove_others"]):
        ewc = prepared(tmp_path / str(point))
        with monkeypatch.context() as patch:
            # What a kill leaves: nothing is tidied up.
            patch.setattr(cold_tier_module, "_remove", lambda path: None)

            def crash(*arguments, **options):
                raise Crash
            patch.setattr(target, crash)
            with pytest.raises(Crash):
                change(ewc)
        ewc.close()
        with ColdTierEWC.open(tmp_path / str(point)) as ewc:
            found = ewc.n_tasks, ewc.n_samples, ewc.penalty(table + 2)
            assert found in (before, after)
            seen.add(found)
            files = {file.name.split("-")[0] for file in ewc.folder.iterdir()}
            assert files == {"ewc.json", "fisher", "anchor"} | ({"squares"} if ewc.n_samples else set())
            assert len(list(ewc.folder.iterdir())) == 1 + 3 * (len(files) - 1)
    assert seen == {before, after}


def test_damaged_and_foreign_folders_are_named(tmp_path):
    with pytest.raises(StorageError, match="missing"):
        ColdTierEWC.open(tmp_path / "none")
    with ColdTierEWC.create(tmp_path, 40, 3) as ewc:
        ewc.compute_fisher(samples()[0])
        ewc.consolidate(np.zeros((40, 3)))
    file = tmp_path / "ewc.json"
    whole = json.loads(file.read_text())
    for text, message in (("{", "damaged"), ("[]", "damaged"), ('{"format": "other"}', "not a gnncy-ewc"),
                          (json.dumps(whole | {"version": 99}), "upgrade"),
                          (json.dumps({k: v for k, v in whole.items() if k != "strength"}), "lacks strength"),
                          (json.dumps(whole | {"n_params": 41}), "belongs to another state")):
        file.write_text(text)
        with pytest.raises(StorageError, match=message):
            ColdTierEWC.open(tmp_path)
    file.write_text(json.dumps(whole))
    next(tmp_path.glob("anchor-??????.npy")).unlink()
    with pytest.raises(OSError):
        ColdTierEWC.open(tmp_path)


def test_one_writer_of_a_state_on_disk(tmp_path):
    rng = np.random.default_rng(3)
    dense, table = rng.normal(size=(3, 40, 3)), np.zeros((40, 3))
    with ColdTierEWC.create(tmp_path / "ewc", 40, 3, 2.0) as ewc:
        with ColdTierEWC.open(tmp_path / "ewc") as other:
            def gradients():  # in the midst of a change of the one, the other may look, but not change or tidy up
                yield dense[0]
                with pytest.raises(StorageError, match="being changed by another"):
                    other.compute_fisher(dense)
                with pytest.raises(StorageError, match="being changed by another"):
                    other.strength = 1.0
                with pytest.raises(StorageError, match="being changed by another"):
                    ColdTierEWC.create(tmp_path / "ewc", 40, 3, overwrite=True)
                with ColdTierEWC.open(tmp_path / "ewc") as third:
                    assert third.penalty(table) == 0
                yield dense[1]

            ewc.compute_fisher(gradients())
            assert ewc.n_samples == 2
            with pytest.raises(StorageError, match="open it again"):
                other.compute_fisher(dense)
        ewc.consolidate(table)
    with ColdTierEWC.open(tmp_path / "ewc") as again:
        assert again.n_tasks == 1 and again.strength == 2.0
