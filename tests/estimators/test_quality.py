"""The default embedding on graphs of every kind: finite, the same twice, and better than what is simple."""
import numpy as np
import pytest
import scipy.sparse as sp

import gnncy
from gnncy import graph
from gnncy.estimators.encoders import signals
from gnncy.estimators.encoders.smoothed import VARIANCE_POWER, principal_directions
from gnncy.evaluate import linear_probe
from gnncy.storage import FeatureStorage


@pytest.fixture(scope="module")
def data():
    return gnncy.datasets.make_sbm(900, 4, n_features=24, feature_noise=4.0, degree=8.0, seed=0)


def embed(adjacency, features=None, columns=16, **settings):
    settings = {"max_epochs": 4, "hidden": 32, "batch_size": 256, "random_state": 0, "reduced_width": 32} | settings
    z = gnncy.GraphEncoder(columns, **settings).fit_transform(adjacency, features=features)
    assert z.shape == (adjacency.shape[0], columns) and np.isfinite(z).all()
    return z


def one_way(adjacency, seed=0):
    """Each edge as an arc in one direction only."""
    upper = sp.triu(adjacency, 1).tocoo()
    swap = np.random.default_rng(seed).random(upper.nnz) < 0.5
    row, column = np.where(swap, upper.col, upper.row), np.where(swap, upper.row, upper.col)
    return sp.csr_array((upper.data, (row, column)), shape=adjacency.shape)


def isolated(adjacency):
    kept = np.arange(adjacency.shape[0]) % 5 > 0
    keep = sp.diags_array(kept.astype(np.float32))
    return sp.csr_array(keep @ adjacency @ keep)


def weighted(adjacency):
    """Weights in 0.5..2, the same both ways."""
    i, j = adjacency.tocoo().coords
    return sp.csr_array((0.5 + 1.5 * ((i + j) % 7) / 6, (i, j)), shape=adjacency.shape)


KINDS = {"as it is": lambda a: a, "directed": one_way, "isolated nodes": isolated, "weighted": weighted}


@pytest.mark.parametrize("kind", KINDS)
def test_better_than_the_features_and_the_same_twice(data, kind):
    adjacency = KINDS[kind](data.adjacency)
    z = embed(adjacency, data.features)
    raw = linear_probe(data.features, data.labels, data.split).accuracy
    assert linear_probe(z, data.labels, data.split).accuracy > raw + 0.05
    assert np.array_equal(z, embed(adjacency, data.features))


@pytest.mark.parametrize("kind", KINDS)
def test_without_features_communities_are_found(data, kind):
    adjacency = KINDS[kind](data.adjacency)
    linked = np.flatnonzero(np.diff(graph.undirected(adjacency).indptr))
    split = tuple(np.intersect1d(part, linked) for part in data.split)
    found = linear_probe(embed(adjacency), data.labels, split).accuracy
    assert found > gnncy.evaluate.majority_baseline(data.labels, split).accuracy + 0.3


def test_parts_and_bipartite_graphs():
    rng = np.random.default_rng(0)
    two = sp.csr_array(sp.block_diag([gnncy.datasets.make_sbm(200, 2, seed=s).adjacency for s in (0, 1)]))
    labels = np.repeat([0, 1], 200)
    assert linear_probe(embed(two), labels).accuracy > 0.9
    people, group = 240, np.arange(240) % 3
    likes = (rng.random((people, 60)) < np.where(group[:, None] == np.arange(60) % 3, 0.3, 0.03)).astype(np.float32)
    bipartite = sp.csr_array(sp.block_array([[None, sp.csr_array(likes)], [sp.csr_array(likes.T), None]]))
    labels = np.concatenate([group, np.arange(60) % 3])
    assert linear_probe(embed(bipartite), labels).accuracy > 0.8


def test_fewer_features_than_columns(data):
    x = data.features[:, :3]
    z = embed(data.adjacency, x, columns=64)
    assert linear_probe(z, data.labels, data.split).accuracy > linear_probe(x, data.labels, data.split).accuracy
    assert np.array_equal(z, embed(data.adjacency, x, columns=64, memory_limit="1GB", n_jobs=2))
    assert (z.std(axis=0) > 0).all()


def test_arcs_both_ways_are_a_directed_graphs_neighbours(data):
    arcs = one_way(data.adjacency)
    undirected = linear_probe(embed(data.adjacency, data.features), data.labels, data.split).accuracy
    assert linear_probe(embed(arcs, data.features), data.labels, data.split).accuracy > undirected - 0.05


def test_what_unit_rows_lose_is_kept():
    rng = np.random.default_rng(0)
    n = 800
    long, busy = rng.integers(0, 2, n), rng.integers(0, 2, n)
    x = rng.standard_normal((n, 20)) * np.where(long, 3.0, 1.0)[:, None]
    degree = np.where(busy, 12, 3)
    rows = np.repeat(np.arange(n), degree)
    a = graph.undirected(sp.csr_array((np.ones(len(rows)), (rows, rng.integers(0, n, len(rows)))), shape=(n, n)))
    z = embed(a, x)
    assert linear_probe(z, long).accuracy > 0.8
    assert linear_probe(z, busy).accuracy > 0.8


def test_smoothing_follows_degree_assortativity(data):
    star = sp.csr_array((np.ones(60), (np.arange(1, 61), np.zeros(60, int))), shape=(80, 80))
    star = graph.undirected(star + sp.csr_array((np.ones(9), (np.arange(60, 69), np.arange(70, 79))), shape=(80, 80)))
    for name, adjacency in {"sbm": data.adjacency, "star": star}.items():
        coo = adjacency.tocoo()
        log_degree = np.log(np.maximum(np.diff(adjacency.indptr), 1))
        expected = np.corrcoef(log_degree[coo.row], log_degree[coo.col])[0, 1]
        assert signals.degree_assortativity(adjacency) == pytest.approx(expected), name
    assert signals.degree_assortativity(star) < signals.DISASSORTATIVE < signals.degree_assortativity(data.adjacency)
    ring = graph.undirected(sp.csr_array((np.ones(9), (np.arange(9), (np.arange(9) + 1) % 9)), shape=(9, 9)))
    assert signals.degree_assortativity(ring) == signals.degree_assortativity(sp.csr_array((3, 3))) == 0
    x = np.random.default_rng(0).standard_normal((80, 5))
    for adjacency, features, kind in ((star, x, "hubs"), (data.adjacency, data.features, "even")):
        model = gnncy.GraphEncoder(4, max_epochs=0, random_state=0).fit(adjacency, features=features)
        assert model._encoder.propagation_ == kind


def test_structure_against_dense_sums(data):
    arcs = graph.as_csr(one_way(data.adjacency))
    both = graph.undirected(arcs)
    lengths = np.linalg.norm(data.features, axis=1)
    dense = (both.toarray() > 0).astype(float)
    mean = dense / np.maximum(dense.sum(axis=1, keepdims=True), 1)
    out, into = (arcs.toarray() > 0).sum(axis=1), (arcs.toarray() > 0).sum(axis=0)
    own = np.stack([np.log1p(lengths), np.log1p(dense.sum(axis=1)), np.log1p(out) - np.log1p(into)], axis=1)
    expected = np.stack([np.linalg.matrix_power(mean, hop) @ own for hop in range(signals.HOPS + 1)], axis=1)
    found = signals.structure(arcs, both, lengths)
    assert found.shape == (900, signals.HOPS + 1, signals.PLACE) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_row_lengths_of_arrays_sparse_arrays_and_stores(data, tmp_path):
    expected = np.linalg.norm(data.features, axis=1)
    np.testing.assert_allclose(signals.row_lengths(data.features), expected, rtol=1e-5)
    words = sp.csr_array(np.maximum(data.features - 8, 0))
    np.testing.assert_allclose(signals.row_lengths(words), np.linalg.norm(words.toarray(), axis=1), rtol=1e-5)
    with FeatureStorage.from_array(data.features, tmp_path / "x.npy") as store:
        assert np.array_equal(signals.row_lengths(store), signals.row_lengths(data.features))


def test_directions_are_scaled_by_their_variance(data, tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 8)) * 2.0 ** -np.arange(8)).astype(np.float32)
    with FeatureStorage.from_array(x, tmp_path / "x.npy") as store:
        plain = principal_directions(store, 4, 0, 1, 0)
        scaled = principal_directions(store, 4, 0, 1, 0, power=VARIANCE_POWER)
    np.testing.assert_allclose(plain.T @ plain, np.eye(4), atol=1e-5)
    variance = ((x @ plain)**2).sum(axis=0)
    np.testing.assert_allclose(scaled, plain * (variance / variance[0])**VARIANCE_POWER, rtol=1e-4, atol=1e-6)


def test_untrained_is_linear_in_the_smoothed_rows(data):
    model = gnncy.GraphEncoder(16, max_epochs=0, hidden=32, random_state=0)
    model.fit(data.adjacency, features=data.features)
    network = model._encoder.model_.encoder
    assert network.skip.weight.data.any(axis=0).all()
    assert not network.second.weight.data.any()


@pytest.mark.parametrize("noise, degree", [(8.0, 5.0), (16.0, 30.0)])
def test_as_good_as_plain_diffused_features_where_these_are_best(noise, degree):
    """Weak directions and blocks of few hops cost nothing where far smoothing alone is what helps."""
    data = gnncy.datasets.make_sbm(900, 6, n_features=64, feature_noise=noise, degree=degree, seed=1)
    mean = graph.normalize(data.adjacency, "row", self_loops=1.0)
    x = data.features / np.linalg.norm(data.features, axis=1, keepdims=True)
    plain = x
    for _ in range(10):
        plain = 0.9 * (mean @ plain) + 0.1 * x
    z = gnncy.GraphEncoder(64, max_epochs=0, random_state=0).fit_transform(data.adjacency, features=data.features)
    z_score, plain_score = (np.mean([linear_probe(part, data.labels, random_state=seed).accuracy for seed in range(4)])
                            for part in (z, plain))
    assert z_score > plain_score - 0.02
