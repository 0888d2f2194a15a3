import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy._kernels.graph import community as kernel
from gnncy._threads import working_threads
from gnncy.graph import as_csr, bfs_order, community, community_order, permute, undirected


def assert_permutation(order, n):
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def blocks(sizes, within, between, seed=0):
    """A symmetric block model with shuffled ids, and the block of each node."""
    rng = np.random.default_rng(seed)
    block = np.repeat(np.arange(len(sizes)), sizes)
    chance = np.where(block[:, None] == block, within, between)
    dense = np.triu(rng.random(chance.shape) < chance, 1)
    shuffle = rng.permutation(len(block))
    return permute((dense | dense.T).astype(np.float32), shuffle), block[shuffle]


def inside(graph, order, batch):
    """Share of the arcs that stay inside contiguous batches."""
    coo = permute(graph, order).tocoo()
    return np.mean(coo.row // batch == coo.col // batch)


def test_any_graph_gives_a_permutation(graph):
    assert_permutation(community_order(graph), as_csr(graph).shape[0])
    assert_permutation(community_order(graph, smallest=2, growth=2, sweeps=2), as_csr(graph).shape[0])


def test_communities_lie_together():
    graph, block = blocks([50] * 12, 0.3, 0.004)
    found = block[community_order(graph)]
    assert (np.diff(found) != 0).sum() <= 20  # 11 if all were found, 550 at random
    shuffled = block[bfs_order(graph)]
    assert (np.diff(shuffled) != 0).sum() > 200


def test_it_beats_breadth_first_at_every_scale():
    graph, _ = blocks(np.random.default_rng(1).integers(20, 120, 20), 0.2, 0.005, 1)
    ours, bfs = community_order(graph), bfs_order(graph)
    for batch in (10, 60, 300):
        assert inside(graph, ours, batch) > 1.3 * inside(graph, bfs, batch)


def test_communities_nest():
    # Four pairs of blocks: those of a pair know each other better.
    graph, block = blocks([40] * 8, 0.5, 0.002)
    pairs = sp.coo_array(graph)
    rng = np.random.default_rng(2)
    extra = rng.integers(0, 320, (2, 60_000))
    extra = extra[:, (block[extra[0]] // 2 == block[extra[1]] // 2) & (rng.random(60_000) < 0.05)]
    graph = undirected(sp.coo_array((np.ones(extra.shape[1], np.float32), tuple(extra)), shape=(320, 320)) + pairs)
    found = block[community_order(graph, smallest=45, growth=2)]
    assert (np.diff(found) != 0).sum() <= 12 and (np.diff(found // 2) != 0).sum() <= 5


@pytest.mark.parametrize("most", [2, 5, 17, 64])
def test_no_community_is_larger_than_its_bound(most):
    graph, _ = blocks([40] * 5, 0.4, 0.01)
    order, first = np.arange(200, dtype=np.int32), np.arange(201, dtype=np.int32)
    label = community._propagate(graph, order, first, most, 8)
    sizes = np.bincount(label, minlength=200)
    assert sizes.max() <= most and sizes.sum() == 200 and sizes.max() > most // 2
    merged, ends = community._merge(order, first, label)
    assert ends[0] == 0 and ends[-1] == 200 and np.diff(ends).max() == sizes.max()
    for start, stop in zip(ends, ends[1:], strict=False):
        assert len(set(label[merged[start:stop]])) == 1 and (np.diff(merged[start:stop]) > 0).all()


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads, monkeypatch):
    monkeypatch.setattr(community, "_PIECE", 3)
    graph, _ = blocks([70] * 10, 0.1, 0.01)
    one = community_order(graph)
    with working_threads(threads):
        np.testing.assert_array_equal(community_order(graph), one)
    monkeypatch.setattr(community, "_PIECE", 256)
    np.testing.assert_array_equal(community_order(graph), one)


def test_wide_indices_give_the_same():
    graph, _ = blocks([50] * 4, 0.2, 0.01)
    results = []
    for width in (np.int32, np.int64):
        indptr, indices = graph.indptr.astype(width), graph.indices.astype(width)
        label, first, out = np.arange(200, dtype=width), np.arange(201, dtype=width), np.empty(200, width)
        size, count = np.ones(200, width), np.zeros(200, np.int64)
        for _ in range(3):
            kernel.propose(indptr, indices, label * 0 + np.arange(200, dtype=width), first, np.arange(200, dtype=width),
                           label, size, 20, 0, 200, count, np.empty(201, width), out)
            assert not count.any()
            kernel.settle(first, out, 20, 0, label, size)
        np.testing.assert_array_equal(size, np.bincount(label, minlength=200))
        results.append(label)
    np.testing.assert_array_equal(*results)
    assert len(set(results[0].tolist())) < 60


def test_read_only_mapped_topology_and_memory_of_some_bytes_a_node(tmp_path):
    rng = np.random.default_rng(0)
    n, m = 20_000, 1_000_000
    graph = as_csr(sp.coo_array((np.ones(m, np.float32), (rng.integers(0, n, m), rng.integers(0, n, m))), shape=(n, n)))
    for name in ("indptr", "indices", "data"):
        np.save(tmp_path / name, getattr(graph, name))
    mapped = sp.csr_array(tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r")
                                for name in ("data", "indices", "indptr")), shape=graph.shape)
    tracemalloc.start()
    found = community_order(mapped, sweeps=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120 * n  # the arcs would be 400 bytes a node
    np.testing.assert_array_equal(found, community_order(graph, sweeps=1))


@pytest.mark.parametrize("bad, error, text", [
    (dict(smallest=1), ValueError, "smallest must be at least 2"), (dict(growth=1), ValueError, "growth"),
    (dict(sweeps=0), ValueError, "sweeps"), (dict(smallest=2.5), TypeError, "integer")])
def test_bad_arguments(bad, error, text):
    with pytest.raises(error, match=text):
        community_order(sp.eye_array(4, format="csr"), **bad)
