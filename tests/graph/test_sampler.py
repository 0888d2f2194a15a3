import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import chisquare

from gnncy.graph import NeighborSampler, as_csr


def same(a, b):
    assert np.array_equal(a.nodes, b.nodes) and len(a.blocks) == len(b.blocks)
    for x, y in zip(a.blocks, b.blocks, strict=True):
        assert (x.n_src, x.n_dst) == (y.n_src, y.n_dst)
        for name in ("indptr", "indices", "edges"):
            assert np.array_equal(getattr(x, name), getattr(y, name))
    return True


def neighbours(batch, block, i):
    return batch.nodes[block.indices[block.indptr[i]:block.indptr[i + 1]]]


@pytest.mark.parametrize("fanouts", [(3,), (2, 3), (-1, 2), (4, -1, 1)])
def test_shape_of_a_sample(graph, fanouts):
    csr = as_csr(graph)
    n = csr.shape[0]
    rng = np.random.default_rng(0)
    seeds = rng.permutation(n)[:9]
    batch = NeighborSampler(graph, fanouts, seed=5, weighted=True).sample(seeds, epoch=1, batch=2)
    np.testing.assert_array_equal(batch.seeds, seeds)
    assert batch.nodes.dtype == np.int64 and len(np.unique(batch.nodes)) == len(batch.nodes)
    assert len(batch.blocks) == len(fanouts)
    assert batch.blocks[0].n_src == len(batch.nodes) and batch.blocks[-1].n_dst == len(seeds)
    for outer, inner in zip(batch.blocks, batch.blocks[1:], strict=False):
        assert outer.n_dst == inner.n_src
    for block, fanout in zip(batch.blocks, fanouts[::-1], strict=True):
        assert block.n_arcs == block.indptr[-1] == len(block.edges)
        np.testing.assert_array_equal(batch.nodes[block.indices], csr.indices[block.edges])
        np.testing.assert_array_equal(block.weights, csr.data[block.edges])
        # Every source is a destination or the end of some arc.
        assert set(range(block.n_dst, block.n_src)) <= set(block.indices.tolist())
        for i in range(block.n_dst):
            ends = csr.indices[csr.indptr[batch.nodes[i]]:csr.indptr[batch.nodes[i] + 1]]
            drawn = neighbours(batch, block, i)
            if fanout == -1 or len(ends) <= fanout:
                np.testing.assert_array_equal(drawn, ends)
            else:
                assert len(drawn) == fanout == len(set(drawn.tolist())) and set(drawn.tolist()) <= set(ends.tolist())


def complete(n):
    return sp.csr_array(np.ones((n, n), np.float32))


@pytest.mark.parametrize("n, fanout", [(12, 1), (12, 5), (12, 11), (200, 7)])
def test_every_neighbour_is_equally_likely(n, fanout):
    sampler = NeighborSampler(complete(n), (fanout,), seed=1)
    counts = np.zeros(n)
    for batch in range(3000 // n + 1):
        drawn = sampler.sample(np.arange(n), batch=batch)
        counts += np.bincount(drawn.nodes[drawn.blocks[0].indices], minlength=n)
    # Without replacement counts spread less than the multinomial: only the upper tail would be wrong.
    assert chisquare(counts).pvalue > 1e-4
    assert counts.std() > 0 or fanout == n


def test_every_subset_is_equally_likely():
    sampler = NeighborSampler(complete(6), (3,), seed=2)
    counts = {}
    for batch in range(1000):
        drawn = sampler.sample([0, 1, 2, 3], batch=batch)
        for i in range(4):
            subset = tuple(sorted(neighbours(drawn, drawn.blocks[0], i).tolist()))
            counts[subset] = counts.get(subset, 0) + 1
    assert len(counts) == 20
    assert 1e-4 < chisquare(list(counts.values())).pvalue < 1 - 1e-4


def test_draws_of_different_nodes_hops_batches_and_epochs_differ():
    n = 400
    sampler = NeighborSampler(complete(n), (20, 20), seed=0)
    a, b = sampler.sample([1, 2]), sampler.sample([1, 2], batch=1)
    c, d = sampler.sample([1, 2], epoch=1), NeighborSampler(complete(n), (20, 20), seed=1).sample([1, 2])
    # Seed 0 in epoch 1 and seed 1 in epoch 0 are among them: keys must not commute.
    sets = [frozenset(neighbours(x, block, i).tolist()) for x in (a, b, c, d) for block in x.blocks for i in (0, 1)]
    assert len(set(sets)) == len(sets)
    # Two independent draws of 20 of 400 share about one.
    assert np.mean([len(s & t) for s in sets for t in sets if s is not t]) < 3


def test_a_draw_does_not_depend_on_batch_mates(make_graph):
    graph = make_graph(300, 0.1)
    sampler = NeighborSampler(graph, (4, 3), seed=3)
    together = sampler.sample(np.arange(299, -1, -1), batch=7)
    for node in (0, 5, 299):
        alone = sampler.sample([node], batch=7)
        for hop in (0, 1):
            np.testing.assert_array_equal(neighbours(alone, alone.blocks[hop], 0),
                                          neighbours(together, together.blocks[hop], 299 - node))


def test_threads_and_order_of_calls_do_not_matter(make_graph):
    graph = make_graph(2000, 0.01)
    rng = np.random.default_rng(0)
    seeds = [rng.choice(2000, 50, replace=False) for _ in range(24)]
    alone = [NeighborSampler(graph, (5, 4), seed=9).sample(s, batch=i) for i, s in enumerate(seeds)]
    shared = NeighborSampler(graph, (5, 4), seed=9)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(shared.sample, s, batch=i) for i, s in reversed(list(enumerate(seeds)))]
        threaded = [f.result() for f in futures][::-1]
    assert all(same(a, b) for a, b in zip(alone, threaded, strict=True))
    assert 1 <= len(shared._scratch) <= 4


def test_index_width_value_width_and_pickling_do_not_matter(make_graph):
    graph = make_graph(200, 0.1)
    sampler = NeighborSampler(graph, (3, 3), seed=4)
    wide = NeighborSampler(graph, (3, 3), seed=4)
    wide.adjacency.indptr = wide.adjacency.indptr.astype(np.int64)
    wide.adjacency.indices = wide.adjacency.indices.astype(np.int64)
    a, b = sampler.sample(np.arange(40)), wide.sample(np.arange(40))
    assert b.blocks[0].indices.dtype == np.int64 and a.blocks[0].indices.dtype == np.int32
    assert same(a, b)
    assert same(a, pickle.loads(pickle.dumps(sampler)).sample(np.arange(40)))
    assert same(a, NeighborSampler(graph.astype(np.float64), (3, 3), seed=4).sample(np.arange(40)))


def test_known_sample():
    # These bits are a promise: they change only with a note in the changelog.
    batch = NeighborSampler(complete(50), (4, 2), seed=123).sample([7, 11], epoch=2, batch=3)
    assert batch.nodes.tolist() == [7, 11, 44, 31, 33, 9, 10, 16, 15, 26, 46, 24, 19, 1, 3, 17, 12, 40, 22, 0, 48]


def test_a_mask_is_taken_as_seeds(make_graph):
    mask = np.zeros(60, bool)
    mask[[3, 20]] = True
    sampler = NeighborSampler(make_graph(), (2,))
    assert same(sampler.sample(mask), sampler.sample([3, 20]))


def test_no_seeds(make_graph):
    batch = NeighborSampler(make_graph(), (2, 2)).sample([])
    assert len(batch.nodes) == 0 and [b.n_arcs for b in batch.blocks] == [0, 0]


def test_repeated_seeds_are_refused_and_leave_no_trace(make_graph):
    sampler = NeighborSampler(make_graph(), (2,))
    before = sampler.sample([1, 2, 3])
    with pytest.raises(ValueError, match=r"seeds must be distinct, got node 2 twice; sample np\.unique"):
        sampler.sample([1, 2, 2])
    assert same(before, sampler.sample([1, 2, 3]))


@pytest.mark.parametrize("seeds, error, text", [
    ([60], IndexError, r"seeds must lie in 0\.\.59, got 60"), ([-1], IndexError, "got -1"),
    ([0.5], TypeError, "integers"), ([[1]], ValueError, "1-dimensional")])
def test_bad_seeds(make_graph, seeds, error, text):
    with pytest.raises(error, match=text):
        NeighborSampler(make_graph(), (2,)).sample(seeds)


@pytest.mark.parametrize("kwargs, error, text", [
    ({"fanouts": 5}, TypeError, "sequence of integers, one a hop, got 5"), ({"fanouts": ()}, TypeError, "sequence"),
    ({"fanouts": "15,10"}, TypeError, "sequence"), ({"fanouts": (5, 0)}, ValueError, "at least 1, or -1"),
    ({"fanouts": (5, -2)}, ValueError, r"fanouts\[1\] must be at least -1"),
    ({"fanouts": (2.5,)}, TypeError, r"fanouts\[0\] must be an integer"), ({"seed": -1}, ValueError, "non-negative"),
    ({"seed": "x"}, TypeError, "random_state")])
def test_bad_options(make_graph, kwargs, error, text):
    with pytest.raises(error, match=text):
        NeighborSampler(make_graph(), **kwargs)


@pytest.mark.parametrize("key", ["epoch", "batch"])
def test_bad_keys(make_graph, key):
    with pytest.raises(ValueError, match=f"{key} must be at least 0"):
        NeighborSampler(make_graph()).sample([0], **{key: -1})


def test_global_random_state_is_not_touched(make_graph):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    NeighborSampler(make_graph()).sample([0])
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
