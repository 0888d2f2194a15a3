import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import breadth_first_order, shortest_path

from gnncy._kernels.graph import traversal
from gnncy._threads import working_threads
from gnncy.graph import as_csr, bfs_order, degree_order, degrees, inverse_order, permute, undirected


def assert_permutation(order, n):
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def reference_bfs(csr, roots):
    seen, order = set(), []
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        queue = [root]
        for u in queue:
            for v in csr.indices[csr.indptr[u]:csr.indptr[u + 1]].tolist():
                if v not in seen:
                    seen.add(v)
                    queue.append(v)
        order += queue
    return order


def hubs_first(graph):
    return np.argsort(-degrees(graph), kind="stable").tolist()


def test_bfs_visits_as_the_textbook_does(graph):
    csr = as_csr(graph)
    order = bfs_order(graph)
    assert_permutation(order, csr.shape[0])
    assert order.tolist() == reference_bfs(csr, hubs_first(graph))


def test_bfs_from_a_start(graph):
    csr = as_csr(graph)
    for start in range(0, csr.shape[0], 13):
        assert bfs_order(graph, start).tolist() == reference_bfs(csr, [start, *hubs_first(graph)])


@pytest.mark.parametrize("seed", range(3))
def test_bfs_levels_agree_with_scipy(make_graph, seed):
    graph = undirected(make_graph(300, 0.01, seed) + sp.diags_array([np.ones(299, np.float32)], offsets=[1]))
    start = 17
    ours, theirs = bfs_order(graph, start), breadth_first_order(graph, start, return_predecessors=False)
    level = shortest_path(graph, unweighted=True, indices=start)
    assert level.max() > 2
    np.testing.assert_array_equal(level[ours], level[theirs])
    assert (np.diff(level[ours]) >= 0).all()


def test_components_come_by_their_hubs():
    pair, star = np.ones((2, 2)) - np.eye(2), np.zeros((4, 4))
    star[3, :3] = star[:3, 3] = 1
    graph = sp.block_diag([sp.csr_array(part) for part in ([[0]], pair, star, pair)], format="csr")
    assert bfs_order(graph).tolist() == [6, 3, 4, 5, 1, 2, 7, 8, 0]


def test_bfs_brings_neighbours_together(make_graph):
    n = 2000
    ring = undirected(sp.diags_array([np.ones(n - 1), np.ones(1)], offsets=[1, n - 1], format="csr"))
    rng = np.random.default_rng(0)
    shuffled = permute(ring, rng.permutation(n))

    def bandwidth(graph):
        coo = graph.tocoo()
        return np.abs(coo.row - coo.col).max()

    assert bandwidth(shuffled) > n // 2
    assert bandwidth(permute(shuffled, bfs_order(shuffled))) == 2


@pytest.mark.parametrize("start, error, text", [
    (-1, ValueError, r"start must be in 0\.\.59"), (60, ValueError, r"in 0\.\.59, got 60"),
    (1.5, TypeError, "integer")])
def test_bad_start(make_graph, start, error, text):
    with pytest.raises(error, match=text):
        bfs_order(make_graph(), start)


def test_degree_order(graph):
    order = degree_order(graph)
    assert_permutation(order, as_csr(graph).shape[0])
    assert order.tolist() == hubs_first(graph)


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(12)))
def test_inverse_order(order):
    inverse = inverse_order(order)
    assert inverse.dtype == np.int64
    np.testing.assert_array_equal(np.array(order)[inverse], np.arange(12))
    np.testing.assert_array_equal(inverse_order(inverse), order)


@pytest.mark.parametrize("order, error, text", [
    ([0, 0, 1], ValueError, "node 2 is missing"), ([0, 3, 1], IndexError, r"0\.\.2, got 3"),
    ([0.0, 1.0], TypeError, "integers"), ([[0], [1]], ValueError, "1-dimensional")])
def test_no_permutation(order, error, text):
    with pytest.raises(error, match=text):
        inverse_order(order)


def test_permute(graph, to_dense):
    dense = to_dense(graph)
    order = np.random.default_rng(0).permutation(len(dense))
    result = permute(graph, order)
    assert result.has_canonical_format and result.dtype == as_csr(graph).dtype
    np.testing.assert_array_equal(result.toarray(), dense[order][:, order])
    np.testing.assert_array_equal(permute(result, inverse_order(order)).toarray(), dense)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 64, 79, 80, 81, 255, 256, 257, 900])
def test_permute_sorts_rows_of_every_length(length, dtype):
    # Above 65536 nodes a radix pass more is needed.
    for n in (1000, 70_000):
        rng = np.random.default_rng(length)
        columns = rng.choice(n, length, replace=False)
        weights = rng.random(length).astype(dtype) + 1
        graph = as_csr(sp.coo_array((weights, (np.full(length, 3), columns)), shape=(n, n)))
        order = rng.permutation(n)
        inverse = inverse_order(order)
        result = permute(graph, order)
        low, high = result.indptr[inverse[3]], result.indptr[inverse[3] + 1]
        expected = np.sort(inverse[graph.indices])
        np.testing.assert_array_equal(result.indices[low:high], expected)
        weight_of = dict(zip(inverse[graph.indices].tolist(), graph.data.tolist(), strict=True))
        assert result.data[low:high].tolist() == [weight_of[v] for v in expected.tolist()]


def test_permute_on_threads(make_graph, monkeypatch):
    from gnncy.graph import order as module
    graph = make_graph(500, 0.1)
    order = np.random.default_rng(1).permutation(500)
    one = permute(graph, order)
    monkeypatch.setattr(module, "_ROWS", 64)
    with working_threads(3):
        three = permute(graph, order)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))


@pytest.mark.parametrize("order, error, text", [
    (np.arange(5), ValueError, "order must hold the 60 nodes"),
    (np.ones(60, bool), ValueError, "order must hold the 60 nodes"),
    (np.zeros(60, int), ValueError, "node 1 is missing"), (np.arange(60) + 1, IndexError, "got 60"),
    (np.arange(60.0), TypeError, "integers")])
def test_permute_bad_order(make_graph, order, error, text):
    with pytest.raises(error, match=text):
        permute(make_graph(), order)


@pytest.mark.parametrize("directed", [True, False])
def test_wide_indices_give_the_same(make_graph, directed):
    # The gate narrows what fits int32, so the wide kernels are called here.
    graph, n = as_csr(make_graph(300, 0.5, directed=directed)), 300
    order = np.random.default_rng(0).permutation(n)
    results = []
    for width in (np.int32, np.int64):
        indptr, indices = graph.indptr.astype(width), graph.indices.astype(width)
        assert traversal.form(indptr, indices, n) == 0
        assert traversal.form(indptr, indices[::-1].copy(), n) == 1
        assert traversal.form(indptr, indices, n - 1) == -2
        assert traversal.form(indptr[::-1].copy(), indices, n) == -1
        hubs, visited = np.empty(n, np.int64), np.empty(n + 1, np.int64)
        traversal.by_degree(indptr, np.zeros(n + 2, np.int64), hubs)
        traversal.bfs(indptr, indices, hubs, np.zeros(n, np.uint8), visited)
        back = np.zeros_like(indptr), np.empty_like(indices), np.empty_like(indices)
        traversal.transpose(indptr, indices, *back)
        counts = np.diff(indptr)[order]
        starts, columns, data = np.append(0, np.cumsum(counts)).astype(width), np.empty_like(indices), graph.data * 0
        traversal.permute(indptr, indices, graph.data, order, inverse_order(order).astype(width), 0, n,
                          np.empty(counts.max(), width), np.empty(counts.max(), data.dtype), starts, columns, data)
        assert counts.max() > 80  # so both ways of sorting are taken somewhere in these tests
        results.append([hubs, visited[:n], *back, columns, data])
    for narrow, wide in zip(*results, strict=True):
        np.testing.assert_array_equal(narrow, wide)
    np.testing.assert_array_equal(results[1][-2], permute(graph, order).indices)
