import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from gnncy.datasets import make_sbm, sample_non_edges, split_edges
from gnncy.evaluate import average_precision, hits_at, link_scores, mean_reciprocal_rank, roc_auc


@pytest.fixture(scope="module")
def graph():
    return make_sbm(400, 4, degree=6.0, seed=0).adjacency


def keys(pairs, n):
    return set((np.minimum(*pairs.T) * n + np.maximum(*pairs.T)).tolist())


def tied(seed, n=300):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 2, n)
    return true, np.round(rng.normal(size=n) + true, 1)


def test_auc_and_precision_by_their_definitions_with_ties():
    true, scores = tied(0)
    positive, negative = scores[true == 1], scores[true == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    assert roc_auc(true, scores) == pytest.approx(wins.mean(), abs=1e-15)
    total, before = 0.0, 0.0
    for level in np.unique(scores)[::-1]:
        chosen = scores >= level
        recall = true[chosen].sum() / true.sum()
        total += (recall - before) * true[chosen].mean()
        before = recall
    assert average_precision(true, scores) == pytest.approx(total, abs=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_auc_and_precision_are_scikit_learn_s(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    true, scores = tied(seed)
    assert roc_auc(true, scores) == pytest.approx(metrics.roc_auc_score(true, scores), abs=1e-14)
    assert average_precision(true, scores) == pytest.approx(metrics.average_precision_score(true, scores), abs=1e-14)


def test_constant_scores_tell_nothing():
    true = np.repeat([0, 1], [30, 10])
    assert roc_auc(true, np.zeros(40)) == 0.5
    assert average_precision(true, np.zeros(40)) == 0.25
    assert mean_reciprocal_rank(np.zeros(10), np.zeros(3)) == pytest.approx(1 / 2.5)
    assert hits_at(np.zeros(10), np.zeros(3), 1) == 0


def test_ranks_among_common_and_own_negatives():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 50).astype(float), rng.integers(0, 9, 20).astype(float)
    rank = 1 + (negative > positive[:, None]).sum(1) + 0.5 * (negative == positive[:, None]).sum(1)
    assert mean_reciprocal_rank(positive, negative) == pytest.approx(np.mean(1 / rank))
    assert mean_reciprocal_rank(positive, np.tile(negative, (50, 1))) == pytest.approx(np.mean(1 / rank))
    with pytest.raises(ValueError, match="one row for each of the 50 positives"):
        mean_reciprocal_rank(positive, np.zeros((3, 4)))


def test_hits_lose_ties_and_few_negatives_are_no_hurdle():
    assert hits_at([3, 2, 1], [2, 2, 0], 2) == pytest.approx(1 / 3)
    assert hits_at([3, 2, 1], [2, 2, 0], 3) == 1
    assert hits_at([0.0], [1.0], 2) == 1
    scores = link_scores([3, 2, 1], [2, 2, 0], k=[1, 3])
    assert scores.hits == {1: pytest.approx(1 / 3), 3: 1}


@pytest.mark.parametrize("true, scores, message", [
    ([0, 1], [1.0], "same length"), ([1, 1], [0.0, 1.0], "both 0 and 1"), ([0, 2], [0.0, 1.0], "both 0 and 1"),
    ([0, 1], [0.0, np.nan], "inf or nan"), ([], [], "scores is empty")])
def test_bad_scores_are_named(true, scores, message):
    for function in (roc_auc, average_precision):
        with pytest.raises(ValueError, match=message):
            function(true, scores)


def test_a_split_shares_nothing(graph):
    n = graph.shape[0]
    split = split_edges(graph)
    edges = graph.nnz // 2
    assert (len(split.val), len(split.test)) == (int(0.05 * edges), int(0.1 * edges))
    assert len(split.val_negatives) == len(split.val) and len(split.test_negatives) == len(split.test)
    kept = np.stack(sp.triu(split.train, 1).nonzero(), 1).astype(np.int64)
    parts = [keys(p, n) for p in (kept, split.val, split.test, split.val_negatives, split.test_negatives)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == edges + len(split.val) + len(split.test)
    assert set.union(*parts[:3]) == keys(np.stack(sp.triu(graph, 1).nonzero(), 1).astype(np.int64), n)
    assert (split.train != split.train.T).nnz == 0
    assert all((pairs[:, 0] < pairs[:, 1]).all() for pairs in split[1:])


def test_both_directions_of_a_pair_leave_a_directed_graph_together():
    rng = np.random.default_rng(0)
    graph = sp.csr_array((rng.random((80, 80)) < 0.08).astype(np.float32))
    graph.setdiag(1)
    split = split_edges(graph, 0.1, 0.2)
    assert split.train.nnz + len(split.val) + len(split.test) == graph.nnz
    assert (split.train.diagonal() == 1).all()
    for pairs in (split.val, split.test):
        assert (graph[pairs[:, 0], pairs[:, 1]] == 1).all()
        assert not (split.train[pairs[:, 0], pairs[:, 1]] + split.train[pairs[:, 1], pairs[:, 0]]).any()
    for pairs in (split.val_negatives, split.test_negatives):
        assert not (graph[pairs[:, 0], pairs[:, 1]] + graph[pairs[:, 1], pairs[:, 0]]).any()
        assert (pairs[:, 0] > pairs[:, 1]).any()


def test_a_connected_split_keeps_the_components(graph):
    before = connected_components(graph)[0]
    assert connected_components(split_edges(graph, 0.1, 0.3).train)[0] > before
    assert connected_components(split_edges(graph, 0.1, 0.3, connected=True).train)[0] == before
    tree = sp.csr_array(np.diag(np.ones(9), 1) + np.diag(np.ones(9), -1))
    with pytest.raises(ValueError, match="0 may be; lower val and test, or connected=False"):
        split_edges(tree, 0, 0.2, connected=True)


def test_splits_are_seeded(graph):
    one, again, other = (split_edges(graph, random_state=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.test, again.test) and np.array_equal(one.test_negatives, again.test_negatives)
    assert not np.array_equal(one.test, other.test)


def test_non_edges_are_uniform_and_complete():
    path = sp.csr_array(np.diag(np.ones(5), 1) + np.diag(np.ones(5), -1))
    everything = sample_non_edges(path, 10)
    assert len({tuple(pair) for pair in everything.tolist()}) == 10
    seen = np.zeros((6, 6))
    for seed in range(600):
        seen[tuple(sample_non_edges(path, 1, random_state=seed)[0])] += 1
    assert seen[seen > 0].min() > 30 and np.count_nonzero(seen) == 10
    with pytest.raises(ValueError, match="count=11 pairs without an edge are wanted, the graph has 10"):
        sample_non_edges(path, 11)


@pytest.mark.parametrize("val, test, message", [(0.001, 0.1, "is none; raise it"), (0.5, 0.5, "cannot be held out"),
                                                (-0.1, 0.1, "val must be in 0..1")])
def test_bad_shares_are_named(val, test, message):
    graph = sp.csr_array(np.diag(np.ones(20), 1) + np.diag(np.ones(20), -1))
    with pytest.raises(ValueError, match=message):
        split_edges(graph, val, test)
