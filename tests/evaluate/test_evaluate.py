import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from gnncy.datasets import make_sbm
from gnncy.evaluate import CollapseWarning, accuracy, embedding_health, linear_probe, macro_f1, majority_baseline
from gnncy.optim.logistic import Logistic


@pytest.fixture(scope="module")
def data():
    return make_sbm(1500, 4, n_features=12, feature_noise=2.5)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# The model

@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_gradient_and_hessian_match_central_differences(kind):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 5)) * (rng.random((30, 5)) < 0.6)
    labels = np.arange(30) % 3
    model = Logistic(kind(rows), labels, 3)
    model.centred += rng.normal(size=model.centred.shape)
    point, direction = model.centred.copy(), rng.normal(size=model.centred.shape)

    def at(parameters):
        model.centred = parameters
        value = model._forward(2.0)
        return value, model._gradient(2.0)

    step = 1e-5
    (above, gradient_above), (below, gradient_below) = at(point + step * direction), at(point - step * direction)
    _, gradient = at(point)
    slope = np.vdot(gradient, direction)
    assert abs((above - below) / (2 * step) - slope) < 1e-6 * abs(slope)
    product = model._hessian_product(direction, 2.0, np.empty_like(point))
    expected = (gradient_above - gradient_below) / (2 * step)
    assert np.linalg.norm(product - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_diagonal_is_that_of_the_hessian(kind):
    rng = np.random.default_rng(1)
    model = Logistic(kind(rng.normal(size=(40, 70))), np.arange(40) % 2, 2)
    diagonal = model._diagonal(3.0)
    for i, j in ((0, 0), (64, 1), (69, 0), (70, 1)):
        basis = np.zeros_like(model.centred)
        basis[i, j] = 1
        assert np.isclose(model._hessian_product(basis, 3.0, np.empty_like(basis))[i, j], diagonal[i, j])


@pytest.mark.parametrize("C", [0.1, 10, 1000])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_minimum_is_that_of_scikit_learn(data, C, kind):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, labels = unit(data.features.astype(np.float64)), data.labels
    reference = linear_model.LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(rows[data.split.train],
                                                                                     labels[data.split.train])
    model = Logistic(kind(rows[data.split.train]), labels[data.split.train], 4)
    model.fit(C, 100, tolerance=1e-9)
    assert np.allclose(model.parameters[:-1].T, reference.coef_, atol=1e-4 * np.abs(reference.coef_).max())
    result = linear_probe(kind(data.features), labels, data.split, C=C)
    assert abs(result.accuracy - reference.score(rows[data.split.test], labels[data.split.test])) < 0.01


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_rows_that_are_much_alike_take_no_more_steps(data, kind, monkeypatch):
    train = data.split.train
    found, products = [], []
    product = Logistic._hessian_product
    monkeypatch.setattr(Logistic, "_hessian_product", lambda *a: products.append(1) or product(*a))
    for shift in (0.0, 10.0):
        model = Logistic(kind(data.features[train] + np.float64(shift)), data.labels[train], 4)
        products.clear()
        model.fit(10, 100, tolerance=1e-6)
        found.append((model.parameters[:-1], len(products)))
    (weights, steps), (shifted, shifted_steps) = found
    np.testing.assert_allclose(shifted, weights, atol=1e-6)
    assert shifted_steps <= 1.2 * steps


# The probe

def test_result(data):
    result = linear_probe(data.features, data.labels, data.split)
    assert result.n_classes == 4 and result.C in (1, 10, 100, 1000)
    assert result.accuracy > 0.6 > 0.3 > majority_baseline(data.labels, data.split).accuracy
    assert result.accuracy == accuracy(data.labels[data.split.test], result.predictions)
    assert result.macro_f1 == macro_f1(data.labels[data.split.test], result.predictions)
    assert "predictions" not in repr(result)


def test_chosen_C_is_the_best_on_validation(data):
    single = {C: linear_probe(data.features, data.labels, data.split, C=C) for C in (0.01, 1, 100)}
    chosen = linear_probe(data.features, data.labels, data.split, C=(100, 0.01, 1))
    assert chosen.val_accuracy >= single[0.01].val_accuracy
    assert abs(chosen.val_accuracy - single[chosen.C].val_accuracy) < 0.01  # warm start, other last bits


class Store:
    """Like a feature store: a shape, and rows taken by an array of ids; notes the most taken at a time."""

    def __init__(self, array):
        self._array, self.shape, self.most = array, array.shape, 0

    def __getitem__(self, ids):
        assert isinstance(ids, np.ndarray)
        self.most = max(self.most, len(ids))
        return self._array[ids]


def test_any_kind_of_matrix_gives_the_same(data, tmp_path, monkeypatch):
    monkeypatch.setattr("gnncy.evaluate.probe.ROWS", 200)
    expected = linear_probe(data.features, data.labels, data.split)
    np.save(tmp_path / "z.npy", data.features)
    store, frozen = Store(data.features), data.features.copy()
    frozen.flags.writeable = False
    for embedding in (store, np.load(tmp_path / "z.npy", mmap_mode="r"), np.asfortranarray(data.features), frozen,
                      data.features.astype(">f4"), data.features.astype(np.float64), data.features.tolist()):
        result = linear_probe(embedding, data.labels, data.split)
        assert np.array_equal(result.predictions, expected.predictions) and result.C == expected.C
    assert store.most == 200  # 150 training and validation rows, tests in blocks
    for embedding in (sparse.csr_array(data.features), sparse.coo_matrix(data.features)):
        result = linear_probe(embedding, data.labels, data.split)
        assert np.mean(result.predictions == expected.predictions) > 0.995


def test_arguments_are_left_alone(data):
    features, matrix = data.features.astype(np.float64), sparse.csr_array(data.features)
    before = features.copy(), matrix.data.copy()
    linear_probe(features, data.labels, data.split)
    linear_probe(matrix, data.labels, data.split)
    assert np.array_equal(features, before[0]) and np.array_equal(matrix.data, before[1])


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_same_bits_for_any_number_of_threads(data, kind):
    one, two = (linear_probe(kind(data.features), data.labels, data.split, n_jobs=n) for n in (1, 2))
    assert np.array_equal(one.predictions, two.predictions)
    assert (one.accuracy, one.val_accuracy, one.C) == (two.accuracy, two.val_accuracy, two.C)


def test_forms_of_the_split(data):
    expected = linear_probe(data.features, data.labels, data.split)
    train, val, test = data.split
    masks = [np.isin(np.arange(data.n_nodes), part) for part in data.split]
    for split in ((train, val, test), {"train": train, "val": val, "test": test}, masks,
                  SimpleNamespace(train=train.astype(np.int32), val=val.tolist(), test=test)):
        assert linear_probe(data.features, data.labels, split).accuracy == expected.accuracy


def test_random_split_is_seeded_and_leaves_out_unlabelled(data):
    one, again, other = (linear_probe(data.features, data.labels, random_state=s) for s in (0, 0, 1))
    assert np.array_equal(one.predictions, again.predictions)
    assert not np.array_equal(one.predictions, other.predictions)
    assert len(one.predictions) == 1200
    labels = data.labels.copy()
    labels[:500] = -1
    partly = linear_probe(data.features, labels)
    assert len(partly.predictions) == 800 and partly.n_classes == 4


def test_labels_may_be_strings_or_have_gaps(data):
    names = np.array(["ant", "bee", "cat", "dog"])[data.labels]
    expected = linear_probe(data.features, data.labels, data.split)
    result = linear_probe(data.features, names, data.split)
    assert result.accuracy == expected.accuracy and result.predictions.dtype == names.dtype
    assert linear_probe(data.features, 7 * data.labels, data.split).accuracy == expected.accuracy


def test_zero_rows_and_unseen_classes(data):
    features, labels = data.features.copy(), data.labels.copy()
    features[data.split.test[:5]] = 0
    features[data.split.train[0]] = 0
    labels[data.split.test[:3]] = 9
    for embedding in (features, sparse.csr_array(features)):
        result = linear_probe(embedding, labels, data.split)
        assert result.n_classes == 4 and 9 not in result.predictions


def test_constant_embedding_is_a_majority_guess(data):
    labels = np.minimum(data.labels, 1)  # one class is three times the other
    for embedding in (np.ones((data.n_nodes, 3)), np.zeros((data.n_nodes, 3)), sparse.csr_array((data.n_nodes, 3))):
        result = linear_probe(embedding, labels, data.split)
        assert (result.accuracy, result.macro_f1) == majority_baseline(labels, data.split)


def test_separable_classes_and_no_normalisation():
    embedding = np.repeat([[-1e3], [1e3]], 50, axis=0) * np.linspace(0.5, 1, 100)[:, None]
    labels = np.repeat([0, 1], 50)
    assert linear_probe(embedding, labels, normalize=None).accuracy == 1


def test_wordnet_words_within_time_and_memory():
    code = """
import time
from gnncy import _memory, datasets, evaluate
data = datasets.load_wordnet()
_memory.reset_peak()
start, begin = _memory.rss(), time.process_time()
result = evaluate.linear_probe(data.features, data.labels, data.split)
print(result.accuracy, result.macro_f1, time.process_time() - begin, (_memory.peak_rss() - start) / 1e6)
print(*evaluate.majority_baseline(data.labels, data.split))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    accuracy, f1, seconds, megabytes, *majority = map(float, run.stdout.split())
    assert abs(accuracy - 0.611) < 0.005 and abs(f1 - 0.411) < 0.005
    assert seconds < 10 and megabytes < 60
    assert majority == pytest.approx([0.1227, 0.00486], abs=1e-4)


@pytest.mark.parametrize("change, error, message", [
    ({"embedding": np.ones(5)}, ValueError, r"embedding must be 2-dimensional, got shape \(5,\)"),
    ({"embedding": np.ones((9, 2))}, ValueError, "embedding has 9 rows, labels 10"),
    ({"embedding": np.full((10, 2), np.nan)}, ValueError, "embedding contains inf or nan"),
    ({"embedding": sparse.csr_array(np.full((10, 2), np.inf))}, ValueError, "embedding contains inf or nan"),
    ({"embedding": np.ones((10, 2), complex)}, ValueError, "Complex data not supported"),
    ({"labels": np.ones((10, 1))}, ValueError, "labels must be 1-dimensional"),
    ({"labels": np.linspace(0, 1, 10)}, TypeError, "labels must be integers or strings, got dtype float64"),
    ({"labels": np.zeros(10, int)}, ValueError, "all 4 training nodes have label .*0.*; two classes"),
    ({"labels": -np.ones(10, int)}, ValueError, r"10 of its nodes have no label \(-1\), first 0"),
    ({"split": ([0, 1], [2])}, TypeError, "split must be None, three arrays"),
    ({"split": 3}, TypeError, "split must be None, three arrays"),
    ({"split": {"train": [0], "test": [1]}}, ValueError, "split lacks val"),
    ({"split": ([0, 1], [2], [1])}, ValueError, "node 1 occurs 2 times"),
    ({"split": ([0, 1], [2], [10])}, IndexError, "split test must lie in 0..9, got 10"),
    ({"split": ([0, 1], [], [2])}, ValueError, "there are no validation nodes"),
    ({"split": ([0.5], [1], [2])}, TypeError, "split train must be integers"),
    ({"C": 0}, ValueError, "C must be greater than 0"),
    ({"C": ()}, ValueError, "C is empty"),
    ({"normalize": "l1"}, ValueError, "normalize must be one of 'l2', got 'l1'"),
    ({"max_iter": 0}, ValueError, "max_iter must be at least 1"),
    ({"n_jobs": 0}, ValueError, "n_jobs must not be 0"),
])
def test_refusals(change, error, message):
    arguments = {"embedding": np.random.default_rng(0).normal(size=(10, 2)), "labels": np.arange(10) % 2,
                 "split": (np.arange(4), np.arange(4, 6), np.arange(6, 10)), **change}
    with pytest.raises(error, match=message):
        linear_probe(**arguments)


# Scores

def test_scores_match_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 6, 500), rng.integers(1, 8, 500)  # classes only in one of them, too
    assert accuracy(true, predicted) == metrics.accuracy_score(true, predicted)
    assert macro_f1(true, predicted) == pytest.approx(metrics.f1_score(true, predicted, average="macro"))


def test_scores_refuse():
    with pytest.raises(ValueError, match="same length, got 2 and 3"):
        accuracy([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="true is empty"):
        macro_f1(np.array([], int), np.array([], int))


def test_majority_refuses_an_empty_part():
    with pytest.raises(ValueError, match="training and test nodes are needed, got 0 and 2"):
        majority_baseline([0, 1], ([], [], [0, 1]))


# Health

def test_health_tells_spread_from_collapse(monkeypatch):
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(3000, 20))
    healthy = embedding_health(spread)
    assert healthy.effective_rank > 19.5 and healthy.uniformity < -3 and healthy.dead_columns == 0
    assert not healthy.collapsed
    with pytest.warns(CollapseWarning, match="effective rank 1.00 of 20"):
        line = embedding_health(np.outer(rng.normal(size=3000), np.ones(20)))
    assert line.effective_rank == pytest.approx(1, abs=1e-4)
    spread[:, :5] = 7.0
    assert embedding_health(spread).dead_columns == 0.25
    with pytest.warns(CollapseWarning, match=r"uniformity (-)?0\.00"):
        point = embedding_health(np.ones((100, 4)))
    assert point.uniformity == pytest.approx(0) and point.dead_columns == 1
    monkeypatch.setattr("gnncy.evaluate.health.ROWS", 128)
    blocks = embedding_health(Store(spread))
    monkeypatch.setattr("gnncy.evaluate.health.ROWS", 8192)
    assert np.allclose(blocks, embedding_health(sparse.csr_array(spread)), equal_nan=True)


def test_health_matches_its_formulas():
    rows = np.random.default_rng(0).normal(size=(60, 7)) * np.arange(1, 8)
    health = embedding_health(rows.astype(np.float32))
    singular = np.linalg.svd(rows, compute_uv=False)
    share = singular / singular.sum()
    assert health.effective_rank == pytest.approx(np.exp(-np.sum(share * np.log(share))), rel=1e-5)
    u = unit(rows)
    distance = ((u[:, None] - u[None]) ** 2).sum(-1)[np.triu_indices(60, 1)]
    assert health.uniformity == pytest.approx(np.log(np.exp(-2 * distance).mean()), rel=1e-5)


@pytest.mark.parametrize("value, message", [(np.ones((1, 3)), "at least two rows"), (np.ones(3), "2-dimensional"),
                                            (np.full((4, 2), np.inf), "inf or nan")])
def test_health_refuses(value, message):
    with pytest.raises(ValueError, match=message):
        embedding_health(value)


def test_sparse_features_on_disk_are_probed_as_those_in_memory(data, tmp_path):
    from scipy.sparse import csr_array

    from gnncy.storage import SparseFeatureStorage
    words = csr_array(np.maximum(data.features, 0))
    with SparseFeatureStorage.from_csr(words, tmp_path / "words") as store:
        on_disk = linear_probe(store, data.labels, data.split)
    assert np.array_equal(on_disk.predictions, linear_probe(words, data.labels, data.split).predictions)
