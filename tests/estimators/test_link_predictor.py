import copy
import pickle

import numpy as np
import pytest
import scipy.sparse as sp

import gnncy
from gnncy.errors import GraphFormatError, MemoryLimitError, NotFittedError, StorageError
from gnncy.estimators import link_predictor
from gnncy.evaluate import roc_auc
from gnncy.storage import FeatureStorage


@pytest.fixture(scope="module")
def data():
    return gnncy.datasets.make_sbm(600, 6, n_features=24, degree=10.0, homophily=0.9, feature_noise=2.0, seed=0)


@pytest.fixture(scope="module")
def split(data):
    return gnncy.datasets.split_edges(data.adjacency)


def make(**changes):
    return gnncy.LinkPredictor(**({"reduced_width": 24, "structure_width": 24, "random_state": 0} | changes))


def pairs_of(split):
    return np.concatenate([split.test, split.test_negatives]), np.repeat([1, 0], [len(split.test)] * 2)


def test_links_are_told_better_than_by_the_features_alone(data, split):
    pairs, linked = pairs_of(split)
    unit = data.features / np.linalg.norm(data.features, axis=1, keepdims=True)
    raw = roc_auc(linked, (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1))
    both, alone = (make().fit(split.train, features=x) for x in (data.features, None))
    assert both.score(pairs, linked) > raw + 0.05
    assert alone.score(pairs, linked) > 0.6
    assert both.score(pairs, linked) == pytest.approx(roc_auc(linked, both.decision_function(pairs)), abs=1e-12)
    assert len(both.signal_names_) == len(both.coef_) == len(alone.coef_) + 4
    probability = both.predict_proba(pairs)
    assert np.allclose(probability.sum(axis=1), 1)
    assert np.array_equal(both.predict(pairs), (probability[:, 1] > 0.5).astype(int))


def test_the_answers_are_not_read_from_the_graph(data, split):
    pairs, linked = pairs_of(split)
    shuffled = np.random.default_rng(0).permutation(600)
    noise = sp.csr_array(split.train[shuffled][:, shuffled])  # a graph that knows nothing of these pairs
    assert abs(make().fit(noise).score(pairs, linked) - 0.5) < 0.15


def test_the_same_bits_however_it_is_run(data, split, tmp_path, monkeypatch):
    pairs, _ = pairs_of(split)
    path = tmp_path / "x.npy"
    FeatureStorage.from_array(data.features, path).close()
    first = make().fit(split.train, features=data.features).decision_function(pairs)
    for changes, x in (({"n_jobs": 2}, data.features), ({"memory_limit": "300MB"}, path),
                       ({"checkpoint_dir": tmp_path / "run"}, str(path)),
                       ({"checkpoint_dir": tmp_path / "run"}, data.features)):
        assert np.array_equal(first, make(**changes).fit(split.train, features=x).decision_function(pairs))
    monkeypatch.setattr(link_predictor, "NEIGHBOURS", 40)
    assert np.array_equal(first, make().fit(split.train, features=data.features).decision_function(pairs))
    other = make(random_state=1).fit(split.train, features=data.features).decision_function(pairs)
    assert not np.array_equal(first, other)


def test_signals_of_neighbours_by_their_definitions():
    rng = np.random.default_rng(0)
    dense = np.triu(rng.random((40, 40)) < 0.2, 1)
    graph = sp.csr_array((dense + dense.T).astype(np.float32))
    pairs = rng.integers(0, 40, (200, 2))
    found = link_predictor._neighbour_signals(graph, pairs)
    a, degree = graph.toarray(), np.maximum(graph.toarray().sum(1), 1)
    for column, weight in enumerate((np.ones(40), 1 / np.log(degree + 1), 1 / degree)):
        expected = (a * weight) @ a
        assert np.allclose(found[:, column], np.log1p(10 * expected[pairs[:, 0], pairs[:, 1]]))
    left, right = np.log(degree)[pairs].T
    assert np.allclose(found[:, 3:], np.stack([left + right, abs(left - right), left * right], 1))


def test_a_pair_has_no_direction_and_weights_do_not_count(data, split):
    pairs, _ = pairs_of(split)
    model = make().fit(split.train)
    assert np.array_equal(model.decision_function(pairs), model.decision_function(pairs[:, ::-1]))
    weighted = split.train.copy()
    weighted.data *= 7
    assert np.array_equal(make().fit(weighted).decision_function(pairs), model.decision_function(pairs))
    assert np.array_equal(make().fit(sp.triu(split.train).tocsr()).decision_function(pairs),
                          model.decision_function(pairs))


def test_graphs_of_every_kind():
    rng = np.random.default_rng(0)
    path = sp.diags_array([np.ones(29), np.ones(29)], offsets=[-1, 1])
    graphs = {"path and isolated nodes": sp.block_diag([path, sp.csr_array((10, 10))]),
              "complete": np.ones((20, 20)), "star": sp.csr_array(([1.0] * 20, ([0] * 20, range(1, 21))), (21, 21)),
              "self loops": sp.csr_array(path + sp.eye_array(30)), "matrix": sp.csr_matrix(path)}
    for name, graph in graphs.items():
        n = graph.shape[0]
        for x in (None, rng.normal(size=(n, 5))):
            score = make().fit(graph, features=x).decision_function(rng.integers(0, n, (50, 2)))
            assert np.isfinite(score).all(), name


def test_bad_input_is_named(data, split, tmp_path):
    model = make()
    with pytest.raises(NotFittedError, match="call fit"):
        model.predict([[0, 1]])
    model.fit(split.train)
    with pytest.raises(ValueError, match=r"pairs must have shape \(m, 2\), two node ids a row, got \(3,\)"):
        model.predict([0, 1, 2])
    with pytest.raises(IndexError, match=r"pairs must lie in 0..599, got 600"):
        model.predict_proba([[0, 600]])
    with pytest.raises(TypeError, match="pairs must be integers"):
        model.predict([[0.5, 1.0]])
    with pytest.raises(ValueError, match="y must hold 0 or 1 for each of 2 pairs"):
        model.score([[0, 1], [1, 2]], [1, 1])
    with pytest.raises(GraphFormatError, match="at least 2 edges"):
        make().fit(sp.eye_array(5))
    with pytest.raises(ValueError, match="holdout must be in 0..0.9"):
        make(holdout=1).fit(split.train)
    with pytest.raises(ValueError, match="C must be greater than 0"):
        make(C=0).fit(split.train)
    with pytest.raises(MemoryLimitError, match="raise memory_limit"):
        make(memory_limit="13MB").fit(split.train)
    make(checkpoint_dir=tmp_path).fit(split.train)
    with pytest.raises(StorageError, match="holds another run"):
        make(checkpoint_dir=tmp_path, C=2.0).fit(split.train)


def test_results_travel_with_their_folder(split, tmp_path, monkeypatch):
    pairs, _ = pairs_of(split)
    model = make(checkpoint_dir=tmp_path / "run").fit(split.train)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(twin.decision_function(pairs), model.decision_function(pairs))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    passing = make().fit(split.train)
    place = passing._place
    assert place.exists()
    del passing
    assert not place.exists()
