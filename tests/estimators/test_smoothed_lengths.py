"""The lengths of smoothed rows, and what they depend on: how reliable features are."""
import numpy as np
import pytest
import scipy.sparse as sp

import gnncy
from gnncy import graph
from gnncy._random import stream
from gnncy.estimators.encoders.signals import split_half_reliability
from gnncy.estimators.encoders.smoothed import SHORT, SMOOTHINGS
from gnncy.evaluate import linear_probe
from gnncy.storage import FeatureStorage, SparseFeatureStorage, as_storage
from gnncy.storage.passes import FeatureReducer

N, D = 900, 40


@pytest.fixture(scope="module")
def topics():
    """Features that are sums of four directions and some noise."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((N, 4)) @ rng.standard_normal((4, D)) + 0.3 * rng.standard_normal((N, D))).astype(
        np.float32)


def unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def test_split_half_reliability_is_what_ridge_regression_explains(topics):
    rng = stream(3, "halves")
    half = rng.random(D) < 0.5
    rng.choice(N, N, replace=False)  # all nodes, in order
    part_of = rng.permutation(N) % 2
    left, right = (unit(topics * columns).astype(np.float64) for columns in (half, ~half))
    best = 0.0
    for ridge in 10.0 ** np.arange(-3, 2):
        x, y, x_judged, y_judged = (part[part_of == k] - part[part_of == k].mean(axis=0)
                                    for k in (0, 1) for part in (left, right))
        gram = x.T @ x
        weights = np.linalg.solve(gram + ridge * np.trace(gram) / D * np.eye(D), x.T @ y)
        best = max(best, 1 - ((y_judged - x_judged @ weights)**2).sum() / (y_judged**2).sum())
    assert split_half_reliability(as_storage(topics), None, 3) == pytest.approx(best, rel=1e-4)
    assert best > 0.8


def test_nothing_is_foretold_of_noise_nor_of_what_does_not_vary():
    noise = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    assert split_half_reliability(as_storage(noise), None, 0) < 0.02
    assert split_half_reliability(as_storage(np.ones((N, D), np.float32)), None, 0) == 0
    assert split_half_reliability(as_storage(noise[:, :1]), None, 0) == 0
    assert 0 <= split_half_reliability(as_storage(noise[:3]), None, 0) <= 1


def test_split_half_reliability_of_stores_and_sparse_arrays(topics, tmp_path):
    words = sp.csr_array(np.maximum(topics - 1, 0))
    reducer = FeatureReducer(16, seed=0).fit(words)
    with FeatureStorage.from_array(topics, tmp_path / "x.npy") as store:
        assert split_half_reliability(store, None, 0) == split_half_reliability(as_storage(topics), None, 0)
    with SparseFeatureStorage.from_csr(words, tmp_path / "words") as store:
        assert split_half_reliability(store, reducer, 0) == split_half_reliability(words, reducer, 0) > 0.2


def dense_blocks(adjacency, features):
    degree = np.maximum(graph.degrees(adjacency), 1)
    matrix = adjacency.toarray() * degree**-0.5 + np.diag(degree**-0.5)
    matrix /= matrix.sum(axis=1, keepdims=True)
    x = unit(features.astype(np.float64))
    for diffusion, _ in SMOOTHINGS:
        z = x
        for _ in range(diffusion.steps):
            z = (1 - diffusion.alpha) * (matrix @ z) + diffusion.alpha * x
        yield z


@pytest.mark.parametrize("reliable", [True, False])
def test_a_block_that_is_short_beside_reliable_features_counts_less(topics, reliable):
    data = gnncy.datasets.make_sbm(N, 4, n_features=D, degree=30.0, seed=2)
    noise = np.random.default_rng(2).standard_normal((N, D)).astype(np.float32)
    features = topics if reliable else noise
    encoder = gnncy.GraphEncoder(8, max_epochs=0, random_state=0).fit(data.adjacency, features=features)._encoder
    blocks = list(dense_blocks(data.adjacency, features))
    rms = np.sqrt([((block - block.mean(axis=0))**2).sum(axis=1).mean() for block in blocks])
    lengths = np.array([length for _, length in SMOOTHINGS])
    if reliable:
        share = split_half_reliability(as_storage(features), None, encoder.seed)
        lengths *= np.minimum(rms / (SHORT * np.sqrt(share) * rms[0]), 1)
        assert lengths[1] < 0.4
    lengths *= np.sqrt(len(SMOOTHINGS) * D / (lengths**2).sum())
    assert encoder.propagation_ == "even"
    np.testing.assert_allclose(encoder.lengths_ * rms, lengths, rtol=1e-3)
    np.testing.assert_allclose(encoder.centre_, [block.mean(axis=0) for block in blocks], atol=1e-5)


def test_what_a_node_s_own_features_say_is_not_lost_among_many_unlike_neighbours():
    """Neighbours of any class: all that is known of a node is its own features."""
    data = gnncy.datasets.make_sbm(N, 4, n_features=D, feature_noise=1.5, degree=60.0, seed=3)
    unlike = graph.permute(data.adjacency, np.random.default_rng(0).permutation(N))
    z = gnncy.GraphEncoder(32, max_epochs=0, random_state=0).fit_transform(unlike, features=data.features)
    own, found = (np.mean([linear_probe(part, data.labels, random_state=seed).accuracy for seed in range(4)])
                  for part in (data.features, z))
    assert found > own - 0.01
