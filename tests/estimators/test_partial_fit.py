"""A graph that grew: partial_fit goes on, keeps old embeddings close, and leaves the encoder whole if it fails."""
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.sparse import csr_array

import gnncy
from gnncy.estimators.growing import KeepClose
from gnncy.storage import FeatureStorage, SparseFeatureStorage

ENCODERS = ("propagate", "sage")
OLD = 600


@pytest.fixture(scope="module")
def data():
    return gnncy.datasets.make_sbm(800, 4, n_features=24, feature_noise=3.0, seed=0)


def old(data):
    return csr_array(data.adjacency[:OLD][:, :OLD]), data.features[:OLD]


def make(encoder="propagate", **changes):
    settings = {"encoder": encoder, "batch_size": 256, "max_epochs": 4, "random_state": 0, "hidden": 32,
                "memory_limit": "200MB", "n_neighbors": (5, 3), "learning_rate": 3e-3}
    return gnncy.GraphEncoder(8, **(settings | changes))


def fitted(data, encoder="propagate", **changes):
    adjacency, features = old(data)
    return make(encoder, **changes).fit(adjacency, features=features)


def drift(z, before):
    return np.linalg.norm(z[:len(before)] - before) / np.linalg.norm(before)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_embedding_is_extended_and_old_rows_stay_close(data, encoder):
    drifts = {}
    for closeness in (0.0, 1.0, 30.0):
        model = fitted(data, encoder)
        before, weights = model.embedding_, [p.data.copy() for p in model._encoder.model_.parameters()]
        untrained = drift(model.transform(data.adjacency, features=data.features), before)  # of the growth alone
        grown = model.partial_fit(data.adjacency, features=data.features, max_epochs=8, closeness=closeness)
        assert grown is model and model.embedding_.shape == (800, 8) and model.n_nodes_in_ == 800
        assert model.n_iter_ == len(model.history_) == 8 and np.isfinite(model.embedding_).all()
        assert any((p.data != w).any() for p, w in zip(model._encoder.model_.parameters(), weights, strict=True))
        np.testing.assert_allclose(model.transform(data.adjacency, features=data.features), model.embedding_,
                                   rtol=1e-4, atol=1e-4)
        drifts[closeness] = drift(model.embedding_, before)
    assert drifts[30.0] < drifts[1.0] < drifts[0.0]
    assert drifts[30.0] < 1.1 * untrained < drifts[0.0]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_same_bits_however_it_is_run(data, encoder, tmp_path):
    adjacency, features = old(data)
    first = None
    for i, changes in enumerate(({}, {"n_jobs": 2, "prefetch": False}, {"checkpoint_dir": tmp_path / "run"})):
        model = make(encoder, **changes).fit(adjacency, features=features)
        if i == 0:
            z = model.partial_fit(data.adjacency, features=data.features, max_epochs=2).embedding_
            first = z
        else:
            with FeatureStorage.from_array(data.features, tmp_path / f"{i}.npy") as store:
                z = model.partial_fit(data.adjacency, features=store, max_epochs=2).embedding_
        assert np.array_equal(z, first)
    again = fitted(data, encoder, checkpoint_dir=tmp_path / "run")  # both calls go on from what is there
    again.partial_fit(data.adjacency, features=data.features, max_epochs=2)
    assert np.array_equal(again.embedding_, first)
    assert (tmp_path / "run" / "grown-1" / "embedding.npy").exists()


def test_it_may_grow_again_and_with_arcs_alone(data):
    model = fitted(data)
    model.partial_fit(data.adjacency[:700][:, :700], features=data.features[:700], max_epochs=1)
    middle = model.embedding_
    model.partial_fit(data.adjacency, features=data.features, max_epochs=1)
    assert model.embedding_.shape == (800, 8) and drift(model.embedding_, middle) < 0.5
    denser = csr_array(data.adjacency @ data.adjacency)
    last = model.embedding_
    assert not np.array_equal(model.partial_fit(denser, features=data.features, max_epochs=1).embedding_, last)


def test_no_epochs_transform(data):
    model = fitted(data)
    expected = model.transform(data.adjacency, features=data.features)
    model.partial_fit(data.adjacency, features=data.features, max_epochs=0)
    np.testing.assert_allclose(model.embedding_, expected, rtol=1e-5, atol=1e-5)


def test_an_encoder_that_is_not_fitted_is_fitted(data):
    adjacency, features = old(data)
    assert np.array_equal(make().partial_fit(adjacency, features=features).embedding_, fitted(data).embedding_)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_sparse_features_in_memory_and_on_disk(data, encoder, tmp_path):
    words = csr_array(np.maximum(data.features - 1, 0))
    adjacency, _ = old(data)
    found = []
    for on_disk in (False, True):
        model = make(encoder, reduced_width=16).fit(adjacency, features=words[:OLD])
        if on_disk:
            with SparseFeatureStorage.from_csr(words, tmp_path / "words") as store:
                model.partial_fit(data.adjacency, features=store, max_epochs=1)
        else:
            model.partial_fit(data.adjacency, features=words, max_epochs=1)
        found.append(model.embedding_)
    assert np.array_equal(*found)


def test_unseen_nodes_and_another_graph_are_embedded_without_training(data):
    model = fitted(data)
    before = model.embedding_.copy()
    z = model.transform(data.adjacency, features=data.features)
    classes = np.stack([z[:OLD][data.labels[:OLD] == c].mean(axis=0) for c in range(4)])
    nearest = np.linalg.norm(z[OLD:, None] - classes, axis=2).argmin(axis=1)
    assert (nearest == data.labels[OLD:]).mean() > 0.6  # a quarter by chance
    one = gnncy.datasets.make_sbm(50, 4, n_features=24, feature_noise=3.0, seed=9)
    assert model.transform(one.adjacency, features=one.features).shape == (50, 8)
    assert np.array_equal(model.embedding_, before)


def test_what_is_no_grown_graph_is_refused_and_nothing_changes(data, tmp_path):
    model = fitted(data)
    before, weights = model.embedding_.copy(), [p.data.copy() for p in model._encoder.model_.parameters()]

    def refused(error, message, X=data.adjacency, features=data.features, **options):
        with pytest.raises(error, match=message):
            model.partial_fit(X, features=features, **options)

    refused(ValueError, "599 nodes, but a graph that grew has at least the 600", data.adjacency[:599][:, :599],
            data.features[:599])
    refused(ValueError, "X has 23 features, but GraphEncoder is expecting 24", features=data.features[:, :23])
    refused(ValueError, "X has 800 features", features=None)
    refused(ValueError, "one row per node", features=data.features[:700])
    refused(ValueError, "closeness must be at least 0", closeness=-1.0)
    refused(ValueError, "max_epochs must be at least 0", max_epochs=-1)
    model.set_params(memory_limit="1MB")
    refused(gnncy.MemoryLimitError, "memory_limit")
    model.set_params(memory_limit="200MB", callbacks=[Failing()])
    refused(RuntimeError, "in the middle")
    assert np.array_equal(model.embedding_, before) and model.n_nodes_in_ == OLD
    assert all((p.data == w).all() for p, w in zip(model._encoder.model_.parameters(), weights, strict=True))
    np.testing.assert_allclose(model.transform(*old(data)[:1], features=old(data)[1]), before, rtol=1e-5, atol=1e-5)


class Failing:
    def on_batch_end(self, trainer, info):
        raise RuntimeError("in the middle")


def test_keep_close_is_the_relative_square_of_the_drift_of_known_nodes():
    known = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)

    class Encoder:
        def embed_batch(self, batch):
            self.z = gnncy.nn.Tensor(np.ones((4, 3), np.float32), requires_grad=True)
            return np.array([7, 2, 0, 5]), self.z * 1.0

    encoder = Encoder()
    value = KeepClose(encoder, known, 2.0)(None, 0)
    apart = 1 - known[[2, 0]]
    assert value == pytest.approx(2 * (apart**2).sum() / 2 / ((known**2).sum() / 5), rel=1e-5)
    assert (encoder.z.grad[[0, 3]] == 0).all() and (encoder.z.grad[[1, 2]] != 0).all()
    assert KeepClose(encoder, known, 0.0)(None, 0) == 0


KILLED = """
import sys, gnncy
from scipy.sparse import csr_array
data = gnncy.datasets.make_sbm(800, 4, n_features=24, feature_noise=3.0, seed=0)
model = gnncy.GraphEncoder(8, batch_size=256, max_epochs=4, random_state=0, hidden=32, checkpoint_dir=sys.argv[1])
model.fit(csr_array(data.adjacency[:600][:, :600]), features=data.features[:600])
model.partial_fit(data.adjacency, features=data.features, max_epochs=50)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    def command(folder):
        return [sys.executable, "-c", KILLED, str(folder)]

    subprocess.run(command(tmp_path / "whole"), check=True)
    expected = (tmp_path / "whole" / "grown-1" / "embedding.npy").read_bytes()
    process = subprocess.Popen(command(tmp_path / "cut"))
    while process.poll() is None and not (tmp_path / "cut" / "grown-1" / "latest").exists():
        time.sleep(0.01)
    assert process.poll() is None
    process.kill()
    process.wait()
    subprocess.run(command(tmp_path / "cut"), check=True)
    assert (tmp_path / "cut" / "grown-1" / "embedding.npy").read_bytes() == expected
