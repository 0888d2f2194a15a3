"""GraphLoader: what its minibatches hold, and that they depend on seed, epoch and number alone."""
import functools
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy import losses, nn, storage
from gnncy.datasets import make_sbm
from gnncy.graph import as_csr
from gnncy.losses import GraphHardNegativeMiner, HardNegativeMiner, drop_blocks
from gnncy.training import GraphLoader, neighbor_difficulty

DATA = make_sbm(300, 3, n_features=12, seed=1)
LINKED = sp.diags_array(np.isin(np.arange(300), [5, 77], invert=True).astype(np.float32))
A, X = as_csr(LINKED @ DATA.adjacency @ LINKED), DATA.features  # 5 and 77 have no neighbours
AUGMENT = functools.partial(drop_blocks, block=1, rate=0.3)


def epoch(loader, number=0, **options):
    return [(result.batch, result.features) for result in loader.batches(number, **options)]


class Sage(nn.Module):
    def __init__(self, *dims, dtype=np.float32):
        self.convolutions = [nn.SAGEConv(a, b, rng=i, dtype=dtype) for i, (a, b) in enumerate(pairwise(dims))]

    def forward(self, blocks, x):
        for convolution, block in zip(self.convolutions, blocks, strict=True):
            x = convolution(block, x)
        return x


@pytest.mark.parametrize("size, sizes", [(64, [60] * 5), (70, [60] * 5), (128, [100] * 3), (300, [300]), (1000, [300]),
                                         (299, [150] * 2)])
def test_each_epoch_trains_every_anchor_once(size, sizes):
    loader = GraphLoader(A, X, batch_size=size)
    batches = epoch(loader)
    assert [len(batch.anchors) for batch, _ in batches] == sizes and loader.steps() == len(sizes)
    order = np.concatenate([batch.anchor_ids for batch, _ in batches])
    assert np.array_equal(np.sort(order), np.arange(300))
    again, other = (np.concatenate([b.anchor_ids for b, _ in epoch(loader, e)]) for e in (0, 1))
    assert np.array_equal(order, again) and not np.array_equal(order, other)


def test_chosen_anchors():
    mask = np.arange(300) % 3 == 0
    for anchors in (mask, np.flatnonzero(mask), np.flatnonzero(mask)[::-1]):
        batches = epoch(GraphLoader(A, X, batch_size=30, anchors=anchors))
        assert np.array_equal(np.sort(np.concatenate([b.anchor_ids for b, _ in batches])), np.flatnonzero(mask))


@pytest.mark.parametrize("options", [{}, {"fanouts": (3, 2)}, {"positives": "walks"},
                                     {"positives": "views", "augment": AUGMENT, "fanouts": (4,)},
                                     {"negatives": HardNegativeMiner(), "candidates": 20}])
@pytest.mark.parametrize("prefetch", [True, False])
def test_an_epoch_goes_on_where_it_was_left_on_disk_as_in_memory(options, prefetch, tmp_path):
    whole = epoch(GraphLoader(A, X, batch_size=50, seed=3, **options), 2)
    with storage.FeatureStorage.from_array(X, tmp_path / "x.npy") as store:
        rest = epoch(GraphLoader(A, store, batch_size=50, seed=3, prefetch=prefetch, **options), 2, first=4)
    assert len(whole) == 6 and len(rest) == 2
    for (a, x), (b, y) in zip(whole[4:], rest, strict=True):
        assert np.array_equal(x, y) and np.array_equal(x, X[a.nodes])
        for name in ("seeds", "anchors", "positives", "nodes"):
            assert np.array_equal(getattr(a, name), getattr(b, name))


def test_neighbours_are_positives():
    batches = epoch(GraphLoader(A, X))
    (batch, _), = batches
    linked = np.diff(A.indptr)[batch.anchor_ids] > 0
    assert (A[batch.anchor_ids, batch.positive_ids] > 0)[linked].all() and 0.9 < linked.mean() < 1
    assert np.array_equal(batch.anchor_ids[~linked], batch.positive_ids[~linked])


def test_walks_reach_farther_and_never_end_at_their_anchor():
    path = sp.diags_array([np.ones(99), np.ones(99)], offsets=[-1, 1]).tocsr()
    distances = []
    for e in range(20):
        for batch, _ in epoch(GraphLoader(path, X[:100], positives="walks", walk_length=3), e):
            distances.append(np.abs(batch.anchor_ids - batch.positive_ids))
    counts = np.bincount(np.concatenate(distances)) / 2000
    # One step; two steps of which half come back, and are the first node then; three steps, 1 or 3 away by 3 to 1.
    assert counts == pytest.approx([0, 1 / 3 + 1 / 6 + 1 / 4, 1 / 6, 1 / 12], abs=0.04)


def test_views_are_two_of_the_same_nodes():
    loader = GraphLoader(A, X, batch_size=100, positives="views", augment=AUGMENT)
    batch, x = epoch(loader)[0]
    z = loader.encode(nn.Linear(12, 12, rng=0), batch, x, key=5)
    assert batch.views == 2 and z.shape == (200, 12)
    assert np.array_equal(batch.anchor_ids, batch.positive_ids) and np.array_equal(batch.positives, batch.anchors + 100)
    assert np.isclose(z.data[:100], z.data[100:]).all(axis=1).mean() < 0.1
    assert np.array_equal(loader.encode(nn.Linear(12, 12, rng=0), batch, x, key=5).data, z.data)
    assert not np.array_equal(loader.encode(nn.Linear(12, 12, rng=0), batch, x, key=6).data, z.data)
    sampled = GraphLoader(A, X, batch_size=100, positives="views", augment=AUGMENT, fanouts=(3,))
    batch, x = epoch(sampled)[0]
    first, second = (sample.nodes for sample in batch.samples)
    assert sampled.encode(Sage(12, 4), batch, x, key=1).shape == (200, 4) and not np.array_equal(first, second)


def test_neighbourhoods_are_encoded_as_the_whole_graph_is():
    model = Sage(12, 9, 5)
    loader = GraphLoader(A, X, batch_size=40, fanouts=(-1, -1))
    whole = model((A, A), nn.Tensor(X)).data
    for batch, x in epoch(loader):
        np.testing.assert_allclose(loader.encode(model, batch, x).data, whole[batch.seeds], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loader.embed(model), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loader.embed(model, [7, 3]), whole[[7, 3]], rtol=1e-4, atol=1e-5)
    assert model.training


def test_edges_are_those_between_the_seeds():
    for batch, _ in epoch(GraphLoader(A, X, batch_size=50)):
        assert np.array_equal(batch.edges.toarray(), A.toarray()[np.ix_(batch.seeds, batch.seeds)])


@pytest.mark.parametrize("positives", ["neighbors", "views"])
def test_false_negatives_are_neighbours_and_the_same_nodes(positives):
    batch, _ = epoch(GraphLoader(A, X, batch_size=150, positives=positives, augment=AUGMENT))[0]
    near = A.toarray() > 0
    for i, anchor in enumerate(batch.anchor_ids):
        expected = [near[anchor, other] or other in (anchor, batch.positive_ids[i]) for other in batch.positive_ids]
        assert np.array_equal(batch.false_negatives[i], expected)


# -- negatives

@pytest.mark.parametrize("positives", ["neighbors", "views"])
@pytest.mark.parametrize("exclude", [True, False])
def test_mined_negatives_are_the_hardest_of_the_minibatch(positives, exclude):
    # S4-24: rows, not copies; S4-25: with a mask.
    loader = GraphLoader(A, X, batch_size=60, positives=positives, augment=AUGMENT, exclude_neighbors=exclude,
                         negatives=HardNegativeMiner("hardest", 4), candidates=25, seed=2)
    near = A.toarray() > 0
    for batch, x in epoch(loader):
        z = loader.encode(nn.Linear(12, 6, rng=0), batch, x, key=1).data
        unit = z / np.linalg.norm(z, axis=1, keepdims=True)
        mined = loader.mine(batch, z)
        assert mined.indices.shape == (60, 4) and mined.mask.all() and (mined.indices >= batch.last_view).all()
        for i, anchor in enumerate(batch.anchors):
            cosines = unit[batch.last_view:] @ unit[anchor]
            left_out = np.isin(batch.seeds, [batch.anchor_ids[i], batch.positive_ids[i]])
            if exclude:
                left_out |= near[batch.anchor_ids[i], batch.seeds]
            cosines[left_out] = -2
            np.testing.assert_allclose(np.sort(cosines)[-4:][::-1], mined.similarities[i], rtol=1e-4, atol=1e-6)


def test_candidates_come_to_the_minibatch():
    few, many = (epoch(GraphLoader(A, X, batch_size=30, negatives=HardNegativeMiner(), candidates=k))[0][0]
                 for k in (0, 100))
    assert np.array_equal(few.anchor_ids, many.anchor_ids) and len(many.seeds) > len(few.seeds) + 50


@pytest.mark.parametrize("positives", ["neighbors", "views"])
def test_ring_negatives_lie_in_the_ring(positives):
    graph = sp.diags_array([np.ones(199), np.ones(199)], offsets=[-1, 1]).tocsr()
    loader = GraphLoader(graph, X[:200], batch_size=20, positives=positives, augment=AUGMENT, candidates=200,
                         negatives=GraphHardNegativeMiner(graph, "hardest", 2, min_distance=2, max_distance=3))
    found = 0
    for e in range(2):
        for batch, x in epoch(loader, e):
            mined = loader.mine(batch, loader.encode(nn.Linear(12, 6, rng=0), batch, x, key=1).data)
            ids = batch.seeds[np.maximum(mined.indices - batch.last_view, 0)]
            distance = np.abs(ids - batch.anchor_ids[:, None])
            assert ((distance >= 2) & (distance <= 3))[mined.mask].all() and (mined.indices[~mined.mask] == -1).all()
            assert (ids != batch.positive_ids[:, None])[mined.mask].all()
            found += mined.mask.sum()
    assert found > 400  # of 800


def test_without_a_miner_negatives_are_uniform():
    loader = GraphLoader(A, X, batch_size=100)
    batch, x = epoch(loader)[0]
    first, again, other = (loader.mine(batch, X[batch.seeds], n_negatives=7, key=key).indices for key in (1, 1, 2))
    assert first.shape == (100, 7) and np.array_equal(first, again) and not np.array_equal(first, other)
    near = A.toarray() > 0
    assert not near[batch.anchor_ids[:, None], batch.seeds[first]].any()


def test_the_number_of_negatives_wins_over_the_miners():
    loader = GraphLoader(A, X, batch_size=100, negatives=HardNegativeMiner("hardest", 4))
    batch, _ = epoch(loader)[0]
    assert loader.mine(batch, X[batch.seeds], n_negatives=9).indices.shape == (100, 9)
    assert loader.negatives.n_negatives == 4


def test_a_ring_may_be_empty():
    pair = sp.block_diag([sp.csr_array(np.array([[0, 1], [1, 0]]))] * 20, "csr")
    loader = GraphLoader(pair, X[:40], negatives=GraphHardNegativeMiner(pair, n_negatives=3), candidates=10)
    batch, x = epoch(loader)[0]
    z = nn.Tensor(X[batch.seeds], requires_grad=True)
    mined = loader.mine(batch, z.data)
    assert not mined.mask.any()
    loss = losses.InfoNCELoss()(z[batch.anchors], z[batch.positives], mined.indices, table=z)
    loss.backward()
    assert loss.item() == 0 and not z.grad.any()


# -- difficulty

def test_difficulty_selects_anchors():
    difficulty = np.random.default_rng(0).random(300)
    loader = GraphLoader(A, X, batch_size=50, difficulty=difficulty)
    for limit in (0.1, 0.5, 1.0):
        ids = np.sort(np.concatenate([b.anchor_ids for b, _ in epoch(loader, difficulty=limit)]))
        assert np.array_equal(ids, np.flatnonzero(difficulty <= limit))
        assert loader.steps(limit) == -(-len(ids) // 50)
    assert np.array_equal(loader.included(0.0), np.sort(np.argsort(difficulty)[:2]))  # a loss needs two
    some = GraphLoader(A, X, difficulty=difficulty, anchors=np.arange(100))
    assert np.array_equal(some.included(0.5), np.flatnonzero(difficulty[:100] <= 0.5))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array, sp.csc_array])
def test_nodes_like_their_neighbours_are_easy(form):
    ranks = neighbor_difficulty(A, form(X))
    assert np.array_equal(np.sort(ranks), np.arange(1, 301) / 300)
    degree = np.diff(A.indptr)
    mean = (A @ X) / np.maximum(degree, 1)[:, None]
    cosine = (mean * X).sum(axis=1) / np.maximum(np.linalg.norm(mean, axis=1) * np.linalg.norm(X, axis=1), 1e-12)
    cosine[degree == 0] = -1
    assert np.corrcoef(np.argsort(np.argsort(-cosine)), ranks)[0, 1] > 0.9999
    assert np.array_equal(ranks[degree == 0] * 300, [299, 300])


# -- bad input

@pytest.mark.parametrize("options, error, text", [
    ({"batch_size": 1}, ValueError, "batch_size must be at least 2"),
    ({"positives": "friends"}, ValueError, "positives must be one of 'neighbors', 'walks', 'views'"),
    ({"positives": "views"}, ValueError, "positives='views' needs augment"),
    ({"positives": "walks", "walk_length": 0}, ValueError, "walk_length must be at least 1"),
    ({"negatives": "hardest"}, TypeError, "negatives must be a HardNegativeMiner or GraphHardNegativeMiner, got str"),
    ({"candidates": 5}, ValueError, "candidates are for a miner to choose from"),
    ({"anchors": [1]}, ValueError, "anchors must be at least 2 nodes, got 1"),
    ({"anchors": [1, 300]}, IndexError, r"anchors must lie in 0\.\.299, got 300"),
    ({"difficulty": np.ones(3)}, ValueError, r"difficulty must have one number in 0..1 for each of the 300 nodes"),
    ({"difficulty": np.full(300, 2)}, ValueError, "with 2 to 2; scale it"),
    ({"fanouts": (0,)}, ValueError, "fanouts must be at least 1"),
])
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        GraphLoader(A, X, **options)


def test_bad_features():
    with pytest.raises(ValueError, match=r"features must have one row for each of the 300 nodes, got shape \(9, 12\)"):
        GraphLoader(A, X[:9])
    with pytest.raises(TypeError, match="reduce sparse features"):
        GraphLoader(A, sp.csr_array(X)).batches(0)
