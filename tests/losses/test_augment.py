import numpy as np
import pytest
import scipy.sparse as sp

from gnncy._random import derive, mix64
from gnncy.graph import NeighborSampler, as_csr, is_symmetric, undirected
from gnncy.losses import drop_blocks, drop_edges, edge_drop_rates, feature_drop_rates, mask_features


def test_whole_blocks_go_and_one_stays():
    x = np.ones((4000, 12), np.float32)
    view = drop_blocks(x, 3, 0.6, key=5).reshape(4000, 4, 3)
    assert np.array_equal(view.min(axis=2), view.max(axis=2))
    kept = (view[:, :, 0] > 0).sum(axis=1)
    assert kept.min() == 1 and kept.max() == 4
    np.testing.assert_allclose(view[:, :, 0].sum(axis=1), 4, rtol=1e-6)  # scaled so that the row's sum stays
    assert abs(view.mean() - 1) < 1e-3
    assert np.array_equal(x, np.ones_like(x))


def test_the_key_is_the_draw():
    x = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    assert np.array_equal(drop_blocks(x, 2, 0.5, key=1), drop_blocks(x, 2, 0.5, key=1))
    assert not np.array_equal(drop_blocks(x, 2, 0.5, key=1), drop_blocks(x, 2, 0.5, key=2))
    assert drop_blocks(x.astype(np.float64), 2, 0.5, key=1).dtype == np.float64


@pytest.mark.parametrize("block, rate, message", [(3, 0.5, "multiple of block=3"), (0, 0.5, "block"), (2, 1.5, "rate")])
def test_bad_arguments(block, rate, message):
    with pytest.raises(ValueError, match=message):
        drop_blocks(np.ones((2, 8), np.float32), block, rate, key=0)


def graph(n=60, density=0.08, seed=0):
    return sp.random_array((n, n), density=density, random_state=np.random.default_rng(seed), dtype=np.float32).tocsr()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_are_masked_in_all_rows_alike(dtype):
    x = np.random.default_rng(0).standard_normal((30, 400)).astype(dtype)
    x.flags.writeable = False
    view = mask_features(x, 0.3, key=4)
    masked = ~view.any(axis=0)
    assert view.dtype == dtype and 0.2 < masked.mean() < 0.4
    assert np.array_equal(view[:, ~masked], x[:, ~masked])
    assert np.array_equal(mask_features(x[:7], 0.3, key=4), view[:7])
    assert not np.array_equal(mask_features(x, 0.3, key=5), view)
    rates = np.repeat([0.0, 1.0], 200)
    assert np.array_equal(mask_features(x, rates, key=4), x * (rates == 0).astype(dtype))


def test_both_directions_of_an_edge_go_together_and_others_independently():
    adjacency = undirected(graph(300, 0.1))
    kept = drop_edges(adjacency, 0.4, key=1)
    assert is_symmetric(kept) and 0.57 < kept.nnz / adjacency.nnz < 0.63
    assert (kept != adjacency.multiply(kept != 0)).nnz == 0
    both = drop_edges(adjacency, 0.4, key=2).multiply(kept).nnz / adjacency.nnz
    assert abs(both - 0.36) < 0.03
    assert drop_edges(adjacency, 0.0, key=1).nnz == adjacency.nnz and drop_edges(adjacency, 1.0, key=1).nnz == 0
    by_rate = drop_edges(adjacency, np.where(adjacency.data > np.median(adjacency.data), 0.0, 1.0), key=1)
    assert by_rate.data.min() > np.median(adjacency.data)


def test_the_draw_is_a_hash_of_key_and_ends():
    adjacency = as_csr(graph())
    start = derive(9, "edges")
    rows = np.repeat(np.arange(60), np.diff(adjacency.indptr))
    kept = [(mix64(mix64(start ^ min(i, j)) ^ max(i, j)) >> 11) * 2.0**-53 >= 0.5
            for i, j in zip(rows.tolist(), adjacency.indices.tolist(), strict=True)]
    assert np.array_equal(drop_edges(adjacency, 0.5, key=9).data, adjacency.data[kept])


def test_a_sampled_block_loses_what_the_graph_loses():
    adjacency = as_csr(graph(200, 0.1))
    sample = NeighborSampler(adjacency, (5, -1), seed=0, weighted=True).sample(np.arange(0, 100, 7))
    whole = drop_edges(adjacency, 0.5, key=3)
    rates = np.linspace(0, 1, adjacency.nnz)
    by_rates = drop_edges(adjacency, rates, key=3)
    for block in sample.blocks:
        nodes = sample.nodes[:block.n_src]
        for less, rate in ((whole, 0.5), (by_rates, rates[block.edges])):
            some = drop_edges(block, rate, key=3, nodes=nodes)
            rows = np.repeat(np.arange(block.n_dst), np.diff(block.indptr))
            stays = np.array([less[nodes[i], nodes[j]] != 0 for i, j in zip(rows, block.indices, strict=True)])
            assert (some.n_src, some.n_dst) == (block.n_src, block.n_dst)
            assert np.array_equal(some.edges, block.edges[stays]) and np.array_equal(some.weights, block.weights[stays])
            assert np.array_equal(some.indices, block.indices[stays])
            assert np.array_equal(np.diff(some.indptr), np.bincount(rows[stays], minlength=block.n_dst))
            assert some.indptr.dtype == block.indptr.dtype
    assert len(block.edges) == block.n_arcs  # the block that was given stays as it was


def test_rates_of_edges_are_gcas():
    adjacency = as_csr(undirected(graph()))
    degree = np.diff(adjacency.indptr)
    rows = np.repeat(np.arange(60), degree)
    score = np.log((degree[rows] + degree[adjacency.indices]) / 2)
    expected = np.minimum((score.max() - score) / (score.max() - score.mean()) * 0.3, 0.7)
    rates = edge_drop_rates(adjacency, 0.3)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert rates.mean() == pytest.approx(0.3, abs=0.01) and edge_drop_rates(adjacency, 0.3, most=0.2).max() == 0.2
    ring = np.roll(np.eye(6), 1, axis=1)
    for kind in ("degree", "pagerank", "eigenvector"):
        np.testing.assert_allclose(edge_drop_rates(ring, 0.3, kind), 0.3)
        assert edge_drop_rates(np.zeros((4, 4)), 0.3, kind).shape == (0,)


def test_centralities_are_those_of_their_names():
    adjacency = as_csr(undirected(graph(40, 0.2)))
    pattern = (adjacency.toarray() != 0).astype(float)
    walk = pattern / pattern.sum(axis=1, keepdims=True)
    pagerank = np.linalg.solve(np.eye(40) - 0.85 * walk.T, np.full(40, 0.15 / 40))
    eigenvector = np.abs(np.linalg.eigh(pattern)[1][:, -1])
    for kind, phi in (("pagerank", pagerank), ("eigenvector", eigenvector)):
        score = np.log(phi)
        expected = np.minimum((score.max() - score) / (score.max() - score.mean()) * 0.2, 0.7)
        np.testing.assert_allclose(feature_drop_rates(np.eye(40), adjacency, 0.2, kind), expected, atol=1e-3)


def test_rates_of_features():
    adjacency = undirected(graph())
    x = np.random.default_rng(0).standard_normal((60, 8))
    x[:, 3] = 0
    score = np.log(np.abs(x).T @ np.diff(as_csr(adjacency).indptr) + (np.arange(8) == 3))
    score[3] = np.delete(score, 3).min()
    expected = np.minimum((score.max() - score) / (score.max() - score.mean()) * 0.3, 0.7)
    for given in (x, sp.csr_array(x)):
        np.testing.assert_allclose(feature_drop_rates(given, adjacency, 0.3), expected, rtol=1e-6)


@pytest.mark.parametrize("call, error, message", [
    (lambda a, x: mask_features(x, 1.5, key=0), ValueError, "rate must be in 0.0..1.0"),
    (lambda a, x: mask_features(x, np.zeros(3), key=0), ValueError, "one for each of the 8 columns of x, got 3"),
    (lambda a, x: mask_features(x, np.full(8, 2.0), key=0), ValueError, r"rate must lie in 0..1, got 2 to 2"),
    (lambda a, x: drop_edges(a, np.zeros(3), key=0), ValueError, "arcs of the graph, got 3"),
    (lambda a, x: drop_edges(a, 0.5, key=0.5), TypeError, "key must be an integer"),
    (lambda a, x: drop_edges(a, 0.5, key=0, nodes=[1, 2]), ValueError, "ids of the 60 sources"),
    (lambda a, x: edge_drop_rates(a, 0.5, "closeness"), ValueError, "centrality must be one of 'degree', 'pagerank'"),
    (lambda a, x: feature_drop_rates(x[:5], a, 0.5), ValueError, "the graph has 60 nodes, features have shape"),
])
def test_bad_arguments_of_views(call, error, message):
    with pytest.raises(error, match=message):
        call(graph(), np.ones((60, 8)))
