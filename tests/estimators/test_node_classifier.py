import copy
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.sparse as sp

import gnncy
from gnncy.errors import GraphFormatError, MemoryLimitError, NotFittedError, StorageError
from gnncy.evaluate import linear_probe
from gnncy.storage import FeatureStorage, SparseFeatureStorage

ENCODERS = ["propagate", "sage"]


@pytest.fixture(scope="module")
def data():
    return gnncy.datasets.make_sbm(900, 4, n_features=24, feature_noise=4.0, seed=0)


@pytest.fixture(scope="module")
def y(data):
    labels = np.full(900, -1)
    labels[:300] = data.labels[:300]
    return labels


def make(encoder="propagate", **changes):
    settings = {"encoder": encoder, "batch_size": 128, "max_epochs": 4, "random_state": 0, "hidden": 32,
                "memory_limit": "200MB", "reduced_width": 24, "n_neighbors": (5, 3)}
    return gnncy.NodeClassifier(16, **(settings | changes))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_unlabelled_nodes_are_told_better_than_by_their_features(data, y, encoder):
    model = make(encoder, max_epochs=30, learning_rate=1e-2 if encoder == "sage" else 1e-3)
    model.fit(data.adjacency, y, features=data.features)
    split = np.arange(300)[::2], np.arange(300)[1::2], np.arange(300, 900)
    raw = linear_probe(data.features, data.labels, split).accuracy
    assert np.mean(model.transduction_[300:] == data.labels[300:]) > raw + 0.05
    assert 1 <= model.n_iter_ <= 30 and 0 <= model.best_epoch_ <= model.n_iter_
    assert model.validation_score_ == max([record["validation"] for record in model.history_]
                                          + [model.validation_score_])
    assert np.array_equal(model.classes_, np.arange(4))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_same_bits_however_it_is_run(data, y, encoder, tmp_path):
    path = tmp_path / "x.npy"
    FeatureStorage.from_array(data.features, path).close()
    ways = [({}, data.features), ({"n_jobs": 2}, data.features), ({"prefetch": False}, str(path)),
            ({"memory_limit": "2GB"}, path), ({"n_jobs": 3, "checkpoint_dir": tmp_path / "run"}, data.features)]
    found = [make(encoder, **changes).fit(data.adjacency, y, features=x) for changes, x in ways]
    losses = [[record["loss"] for record in model.history_] for model in found]
    assert all(other == losses[0] for other in losses)
    for other in found[1:]:
        assert np.array_equal(found[0].embedding_, other.embedding_)
        assert np.array_equal(found[0]._probabilities(found[0].embedding_), other._probabilities(other.embedding_))
    different = make(encoder, random_state=1).fit(data.adjacency, y, features=data.features)
    assert different.history_[0]["loss"] != losses[0][0]


def test_sparse_features_from_memory_and_disk(data, y, tmp_path):
    words = sp.csr_array(np.maximum(data.features - 4, 0))
    on_disk = SparseFeatureStorage.from_csr(words, tmp_path / "words")
    a, b = (make().fit(data.adjacency, y, features=x) for x in (words, on_disk))
    on_disk.close()
    assert np.array_equal(a.embedding_, b.embedding_)


def test_labels_of_every_form_mean_the_same(data, y):
    names = np.array(["ant", "bee", "cat", "dog", ""])
    expected = make().fit(data.adjacency, y, features=data.features)
    with_nan = np.where(y < 0, np.nan, y)
    found = make().fit(data.adjacency, with_nan, features=data.features)
    assert np.array_equal(found.transduction_, expected.transduction_)
    named = make().fit(data.adjacency, names[y], features=data.features, train_mask=y >= 0)
    assert set(named.classes_) == set(names)  # a string has no mark for "none": the mask says who is trained on
    for mask in (y >= 0, np.flatnonzero(y >= 0)):
        masked = make().fit(data.adjacency, data.labels, features=data.features, train_mask=mask)
        assert np.array_equal(masked.transduction_, expected.transduction_)


def test_validation_nodes_are_those_given_or_a_share_of_each_class(data, y):
    validation = np.arange(200, 300)
    model = make().fit(data.adjacency, y, features=data.features, validation_mask=validation)
    task = model._model._task
    assert np.array_equal(task.validation, validation) and np.array_equal(task.train, np.arange(200))
    assert model.validation_score_ == np.mean(model.transduction_[validation] == y[validation])
    task = make(validation_fraction=0.2).fit(data.adjacency, y, features=data.features)._model._task
    share = np.bincount(y[task.validation]) / np.bincount(y[:300])
    assert np.all(abs(share - 0.2) < 0.02) and not np.intersect1d(task.train, task.validation).size
    whole = make(validation_fraction=0).fit(data.adjacency, y, features=data.features)
    assert np.isnan(whole.validation_score_) and whole.n_iter_ == whole.best_epoch_ == 4


def test_training_stops_early_and_keeps_the_best_epoch(data, y):
    model = make(max_epochs=60, patience=2, learning_rate=0.05).fit(data.adjacency, y, features=data.features)
    assert model.n_iter_ < 60 and model.n_iter_ - model.best_epoch_ == 3
    validation = model._model._task.validation
    assert np.mean(model.transduction_[validation] == y[validation]) == model.validation_score_


def test_weights_of_classes_and_nodes_shift_the_decision(data, y):
    labels = np.where(y < 0, -1, (y == 0).astype(int))
    plain, heavy = (make(class_weight=w).fit(data.adjacency, labels, features=data.features)
                    for w in (None, {1: 50.0}))
    assert (heavy.transduction_ == 1).sum() > (plain.transduction_ == 1).sum()
    by_node = make().fit(data.adjacency, labels, np.where(labels == 1, 50.0, 1.0), features=data.features)
    assert np.array_equal(by_node.transduction_, heavy.transduction_)
    balanced = make(class_weight="balanced").fit(data.adjacency, labels, features=data.features)
    assert (balanced.transduction_ == 1).sum() > (plain.transduction_ == 1).sum()


def test_a_table_of_labels_is_told_entry_by_entry(data, y):
    table = np.stack([data.labels % 2, data.labels // 2, data.labels == 3], axis=1).astype(int)
    known = np.where((y >= 0)[:, None], table, -1)
    model = make(max_epochs=10).fit(data.adjacency, known, features=data.features)
    assert model.transduction_.shape == (900, 3)
    assert np.mean(model.transduction_[300:] == table[300:]) > 0.75
    probability = model.predict_proba(data.adjacency, features=data.features)
    assert probability.shape == (900, 3) and np.array_equal(probability > 0.5, model.transduction_ == 1)
    expected = np.mean((model.transduction_ == table)[:300].all(axis=1))
    assert model.score(data.adjacency, known, features=data.features) == pytest.approx(expected)


def test_prediction_on_the_same_and_on_another_graph(data, y):
    model = make().fit(data.adjacency, y, features=data.features)
    probability = model.predict_proba(data.adjacency, features=data.features)
    assert probability.shape == (900, 4) and np.allclose(probability.sum(axis=1), 1)
    assert np.mean(model.predict(data.adjacency, features=data.features) == model.transduction_) > 0.99
    assert model.score(data.adjacency, y, features=data.features) == pytest.approx(
        np.mean(model.transduction_[:300] == y[:300]), abs=0.01)
    other = gnncy.datasets.make_sbm(200, 4, n_features=24, seed=3)
    assert model.predict(other.adjacency, features=other.features).shape == (200,)
    with pytest.raises(ValueError, match="no labels"):
        model.score(data.adjacency, np.full(900, -1), features=data.features)
    with pytest.raises(ValueError, match="X has 7 features, but .* is expecting 24"):
        model.predict(other.adjacency, features=other.features[:, :7])


@pytest.mark.parametrize("labels, message", [
    (None, "requires y to be passed"), (np.full(900, -1), "y has no labels"),
    (np.linspace(0, 1, 900), "Unknown label type: continuous"), (np.full(900, np.inf), "contains infinity"),
    (np.zeros((900, 2, 2)), "1- or 2-dimensional"), (np.full((900, 3), 5), "must hold 0 and 1"),
    (np.arange(899) % 2, "one label per node"), (np.zeros(900, complex), "Complex data not supported")])
def test_bad_labels_are_named(data, labels, message):
    with pytest.raises(ValueError, match=message):
        make().fit(data.adjacency, labels, features=data.features)


@pytest.mark.parametrize("change, given, message", [
    ({"validation_fraction": 1.0}, {}, "validation_fraction must be in 0..0.9"),
    ({"patience": -1}, {}, "patience must be at least 0"), ({"max_epochs": 0}, {}, "max_epochs must be at least 1"),
    ({"dropout": 1.0}, {}, "dropout must be in 0..0.99"),
    ({"class_weight": "even"}, {}, "class_weight must be one of 'balanced'"),
    ({"class_weight": {9: 1.0}}, {}, "class_weight names 9"), ({"encoder": "none"}, {}, "encoder must be one of"),
    ({}, {"sample_weight": np.ones(3)}, "one weight a node"),
    ({}, {"sample_weight": -np.ones(900)}, "must not be negative"),
    ({}, {"validation_mask": [899]}, "1 of its nodes have no label"),
    ({}, {"train_mask": [899]}, "y has no training nodes")])
def test_bad_parameters_are_named_by_fit(data, y, change, given, message):
    with pytest.raises(ValueError, match=message):
        make(**change).fit(data.adjacency, y, features=data.features, **given)
    with pytest.raises(GraphFormatError, match="square"):
        make().fit(sp.csr_array((900, 901)), y)


def test_a_limit_too_small_and_a_folder_of_another_run_are_refused(data, y, tmp_path):
    with pytest.raises(MemoryLimitError, match="raise memory_limit"):
        make(memory_limit="12.1MB").fit(data.adjacency, y, features=data.features)
    make(checkpoint_dir=tmp_path).fit(data.adjacency, y, features=data.features)
    with pytest.raises(StorageError, match="task"):
        make(checkpoint_dir=tmp_path).fit(data.adjacency, np.roll(y, 1), features=data.features)
    plan = make().estimate(data.adjacency, features=data.features)
    assert plan.needed < 200_000_000


def test_results_come_with_fit_and_travel(data, y):
    model = make()
    with pytest.raises(NotFittedError, match="call fit"):
        model.predict(data.adjacency, features=data.features)
    before = y.copy()
    model.fit(data.adjacency, y, features=data.features)
    assert np.array_equal(y, before)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(twin.predict_proba(data.adjacency, features=data.features),
                              model.predict_proba(data.adjacency, features=data.features))
    assert list(model.get_feature_names_out()[:2]) == ["nodeclassifier0", "nodeclassifier1"]


def test_callbacks_of_the_user_are_called(data, y):
    seen = []

    class Count(gnncy.training.Callback):
        def on_epoch_end(self, estimator, record):
            seen.append(record["validation"])
            return len(seen) == 2

    model = make(callbacks=[Count()]).fit(data.adjacency, y, features=data.features)
    assert len(seen) == model.n_iter_ == 2


KILLED = """
import sys, numpy as np, gnncy
data = gnncy.datasets.make_sbm(900, 4, n_features=24, feature_noise=4.0, seed=0)
gnncy.NodeClassifier(16, encoder=sys.argv[1], batch_size=64, max_epochs=12, patience=60, random_state=0, hidden=32,
                     n_neighbors=(5, 3), checkpoint_dir=sys.argv[2]).fit(data.adjacency, data.labels,
                                                                        features=data.features)
"""


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_killed_run_resumes_to_the_same_bits(encoder, tmp_path):
    def command(folder):
        return [sys.executable, "-c", KILLED, encoder, str(folder)]

    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True)
    whole = time.monotonic() - began
    for share in (0.5, 0.8):
        process = subprocess.Popen(command(tmp_path / "cut"))
        time.sleep(share * whole)
        process.kill()
        process.wait()
    subprocess.run(command(tmp_path / "cut"), check=True)
    assert (tmp_path / "cut" / "embedding.npy").read_bytes() == (tmp_path / "whole" / "embedding.npy").read_bytes()


@pytest.mark.parametrize(("encoder", "least"), [("mlp", 0.42), ("gcn", 0.6), ("gat", 0.6)])
def test_the_other_encoders(encoder, least):
    data = gnncy.datasets.make_sbm(300, 3, n_features=16, seed=0)
    y = np.where(np.arange(300) < 100, data.labels, -1)
    model = gnncy.NodeClassifier(16, encoder=encoder, n_neighbors=(5, 5), learning_rate=1e-2, max_epochs=20,
                                 random_state=0)
    model.fit(data.adjacency, y, features=data.features)
    assert np.mean(model.transduction_[100:] == data.labels[100:]) > least
