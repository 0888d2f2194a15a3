"""Fisher information: against closed forms, and against one sample after the other."""
import numpy as np
import pytest

from gnncy import nn
from gnncy.training.continual import fisher_diagonal

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
