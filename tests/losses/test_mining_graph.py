"""GraphHardNegativeMiner: negatives at given distances in the graph (S4-26)."""
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy._kernels.graph import hops
from gnncy._threads import working_threads
from gnncy.losses import GraphHardNegativeMiner
from mining_reference import STRATEGIES, check, cosine, data, hardest, same


def distances(graph):
    """Of every pair, by powers of the dense pattern."""
    step = np.asarray(graph.toarray() != 0)
    reach, result = np.eye(len(step), dtype=bool), np.full(step.shape, 99)
    for hop in range(6):
        result[reach & (result == 99)] = hop
        reach = reach @ step
    return result


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(3)
    return sp.csr_array(rng.random((300, 300)) < 0.008)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("nearest, farthest", [(0, 0), (0, 2), (1, 1), (1, 3), (2, 2), (2, 3), (3, 5), (5, 5)])
def test_ring_kernel(graph, nearest, farthest, dtype):
    expected = distances(graph)
    seen, reached = np.zeros(300, np.uint8), np.empty(301, np.int64)
    for start in range(300):
        begin, end = hops.ring(graph.indptr.astype(dtype), graph.indices.astype(dtype), start, nearest, farthest, seen,
                               reached)
        wanted = np.flatnonzero((expected[start] >= nearest) & (expected[start] <= farthest))
        np.testing.assert_array_equal(np.sort(reached[begin:end]), wanted)
    assert not seen.any()


@pytest.mark.parametrize("nearest, farthest", [(1, 1), (2, 2), (2, 3), (3, 4)])
def test_s4_26_ring_negatives_are_those_at_the_distances(graph, nearest, farthest):
    x, nodes = data(300, 5), np.arange(0, 300, 2)
    mined = GraphHardNegativeMiner(graph, n_negatives=6, min_distance=nearest, max_distance=farthest).mine(x, nodes)
    s, d = cosine(x[nodes], x), distances(graph)[nodes]
    np.testing.assert_array_equal(check(mined, s, 6).indices, hardest(s, 6, (d >= nearest) & (d <= farthest)))
    assert mined.mask.any(), "the graph must have such nodes"
    assert not mined.mask.all(), "and anchors with too few"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ring_strategies_labels_and_positives(graph, strategy):
    x, nodes = data(300, 5), np.arange(300)
    rng = np.random.default_rng(0)
    labels, positives = rng.integers(0, 3, 300), rng.integers(0, 300, 300)
    d = distances(graph)
    for i in range(150):  # positives inside the ring, where there is one
        ring = np.flatnonzero((d[i] >= 2) & (d[i] <= 3))
        positives[i] = ring[0] if len(ring) else positives[i]
    miner = GraphHardNegativeMiner(graph, strategy, 5, seed=1)
    mined = miner.mine(x, nodes, positive_ids=positives, labels=labels, key=2)
    check(mined, cosine(x, x), 5)
    allowed = (d >= 2) & (d <= 3) & (labels != labels[:, None]) & (np.arange(300) != positives[:, None])
    assert np.take_along_axis(allowed, mined.indices, 1)[mined.mask].all()
    if strategy in ("hardest", "weighted", "mixed", "random"):
        np.testing.assert_array_equal(mined.mask.sum(axis=1), np.minimum(allowed.sum(axis=1), 5))


def test_s4_26_an_anchors_cost_is_that_of_its_ring():
    # A path of a million nodes: a search that looked at all of them could not do ten thousand anchors in a moment.
    n = 1_000_000
    ends = np.arange(n - 1)
    path = sp.csr_array((np.ones(2 * n - 2, np.float32), (np.r_[ends, ends + 1], np.r_[ends + 1, ends])), shape=(n, n))
    miner = GraphHardNegativeMiner(path, n_negatives=4, min_distance=2, max_distance=3)
    x = np.ones((n, 1), np.float32)
    nodes = np.random.default_rng(0).integers(3, n - 3, 3000)
    mined = miner.mine(x, nodes)
    assert (np.sort(mined.indices - nodes[:, None], axis=1) == [-3, -2, 2, 3]).all()
    tracemalloc.start()
    miner.mine(x, nodes[:50])
    assert tracemalloc.get_traced_memory()[1] < n / 4
    tracemalloc.stop()


def test_ring_threads_and_batch_mates_do_not_matter(graph):
    x, nodes = data(300, 5, dtype=np.float32), np.random.default_rng(0).permutation(300)[:100]
    miner = GraphHardNegativeMiner(graph, "weighted", 4)
    with working_threads(1):
        one = miner.mine(x, nodes, key=3)
    with working_threads(3):
        assert same(one, miner.mine(x, nodes, key=3))
    alone = miner.mine(x, nodes[7:8], key=3)
    np.testing.assert_array_equal(alone.indices[0], one.indices[7])


def test_ring_passes_over_rows_that_are_not_finite(graph):
    x = data(300, 5)
    x[40:60] = np.nan
    mined = GraphHardNegativeMiner(graph, n_negatives=50).mine(x, np.arange(40))
    assert mined.mask.any() and not np.isin(mined.indices[mined.mask], np.arange(40, 60)).any()
    with pytest.raises(ValueError, match="embeddings contains inf or nan"):
        GraphHardNegativeMiner(graph).mine(x, [40])


@pytest.mark.parametrize("kwargs, error, text", [
    ({"min_distance": 0}, ValueError, "min_distance must be at least 1"),
    ({"min_distance": 3, "max_distance": 2}, ValueError, "max_distance must be at least 3, got 2")])
def test_s4_26_empty_rings_are_refused(graph, kwargs, error, text):
    with pytest.raises(error, match=text):
        GraphHardNegativeMiner(graph, **kwargs)


@pytest.mark.parametrize("arguments, kwargs, error, text", [
    ((np.ones((4, 2)), [0]), {}, ValueError, r"embeddings must have a row for each of 300 nodes, got shape \(4, 2\)"),
    ((np.ones((300, 2)), [300]), {}, IndexError, r"anchor_ids must lie in 0\.\.299, got 300"),
    ((np.ones((300, 2)), [0]), {"labels": [1]}, ValueError, r"labels must have shape \(300,\)"),
    ((np.ones((300, 2)), [0]), {"positive_ids": [300]}, IndexError, "positive_ids must lie in")])
def test_bad_ring_input(graph, arguments, kwargs, error, text):
    with pytest.raises(error, match=text):
        GraphHardNegativeMiner(graph).mine(*arguments, **kwargs)
    with pytest.raises(ValueError, match="pass positive_ids"):
        GraphHardNegativeMiner(graph, "semi_hard").mine(np.ones((300, 2)), [0])
