import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import breadth_first_order, reverse_cuthill_mckee, shortest_path

from gnncy._kernels.graph import traversal
from gnncy._threads import working_threads
from gnncy.graph import (
    as_csr,
    bfs_order,
    degree_order,
    degrees,
    inverse_order,
    permute,
    rcm_order,
    undirected,
    vip_order,
)


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


def bandwidth(graph, order):
    coo = permute(graph, order).tocoo()
    return int(np.abs(coo.row - coo.col).max(initial=0))


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
    """S0-17: the search begins at the node of highest degree, not at node 0."""
    pair, star = np.ones((2, 2)) - np.eye(2), np.zeros((4, 4))
    star[3, :3] = star[:3, 3] = 1
    graph = sp.block_diag([sp.csr_array(part) for part in ([[0]], pair, star, pair)], format="csr")
    assert bfs_order(graph).tolist() == [6, 3, 4, 5, 1, 2, 7, 8, 0]


def test_bfs_brings_neighbours_together(make_graph):
    n = 2000
    ring = undirected(sp.diags_array([np.ones(n - 1), np.ones(1)], offsets=[1, n - 1], format="csr"))
    rng = np.random.default_rng(0)
    shuffled = permute(ring, rng.permutation(n))
    assert bandwidth(shuffled, np.arange(n)) > n // 2
    assert bandwidth(shuffled, bfs_order(shuffled)) == 2


@pytest.mark.parametrize("start, error, text", [
    (-1, ValueError, r"start must be in 0\.\.59"), (60, ValueError, r"in 0\.\.59, got 60"),
    (1.5, TypeError, "integer")])
def test_bad_start(make_graph, start, error, text):
    with pytest.raises(error, match=text):
        bfs_order(make_graph(), start)


# Reverse Cuthill-McKee

def reference_cm(csr, begin):
    """Cuthill-McKee of one component from a node, neighbours by rising degree, ties by falling id."""
    degree = np.diff(csr.indptr)
    seen, queue = {begin}, [begin]
    for u in queue:
        new = [v for v in csr.indices[csr.indptr[u]:csr.indptr[u + 1]].tolist() if v not in seen]
        new.sort(key=lambda v: (degree[v], -v))
        seen.update(new)
        queue += new
    return queue


def test_rcm_is_cuthill_mckee_from_where_it_begins(graph):
    csr = as_csr(undirected(graph))
    order = rcm_order(csr)
    n = csr.shape[0]
    assert_permutation(order, n)
    forward = order[::-1].tolist()
    done = 0
    while done < n:
        part = reference_cm(csr, forward[done])
        assert forward[done:done + len(part)] == part
        done += len(part)


def grid(*sides):
    cells = np.arange(np.prod(sides)).reshape(sides)
    ends = [(np.take(cells, range(side - 1), axis).ravel(), np.take(cells, range(1, side), axis).ravel())
            for axis, side in enumerate(sides)]
    left, right = (np.concatenate(end) for end in zip(*ends, strict=True))
    return undirected(sp.coo_array((np.ones(len(left), np.float32), (left, right)), shape=(cells.size,) * 2))


@pytest.mark.parametrize("sides", [(2000,), (40, 30), (8, 200), (9, 10, 11), (300, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_rcm_is_as_narrow_as_scipys(sides, seed):
    mesh = grid(*sides)
    shuffled = permute(mesh, np.random.default_rng(seed).permutation(mesh.shape[0]))
    ours, theirs = rcm_order(shuffled), reverse_cuthill_mckee(shuffled, symmetric_mode=True)
    # Equal but for ties.
    assert bandwidth(shuffled, ours) <= bandwidth(shuffled, theirs) + 1 < mesh.shape[0] // 8 + 8


def test_rcm_finds_the_rim_where_the_least_degree_is_in_the_middle():
    # A long ladder with a dead end in its middle: the node of least degree is the wrong place to begin.
    ladder = sp.block_diag([grid(2, 200), [[0]]], format="lil")
    ladder[100, 400] = ladder[400, 100] = 1
    mesh = as_csr(ladder)
    ours, theirs = rcm_order(mesh), reverse_cuthill_mckee(mesh, symmetric_mode=True)
    assert bandwidth(mesh, ours) <= 3 < bandwidth(mesh, theirs)


@pytest.mark.parametrize("seed", range(4))
def test_rcm_of_arcs_that_go_one_way(make_graph, seed):
    for density in (0.002, 0.01, 0.05):
        graph = make_graph(200, density, seed)
        assert_permutation(rcm_order(graph), 200)
    chain = sp.diags_array([np.ones(9_999, np.float32)], offsets=[1], shape=(10_000, 10_000), format="csr")
    assert_permutation(rcm_order(chain), 10_000)  # and not in quadratic time
    star = as_csr(sp.coo_array((np.ones(9_999), (np.zeros(9_999, int), np.arange(1, 10_000))), shape=(10_000,) * 2))
    assert_permutation(rcm_order(star), 10_000)


def test_rcm_sorts_many_children():
    rng = np.random.default_rng(0)
    n = 5000
    hub = np.zeros(n - 1, int), np.arange(1, n)
    more = rng.integers(1, n, (2, 3 * n))
    ends = np.concatenate([hub, more], axis=1)
    csr = as_csr(undirected(sp.coo_array((np.ones(ends.shape[1]), tuple(ends)), shape=(n, n))))
    forward = rcm_order(csr)[::-1].tolist()
    assert forward == reference_cm(csr, forward[0])


# By probability

def test_vip_order_puts_hot_rows_first():
    rng = np.random.default_rng(0)
    p = rng.random(5000) ** 6
    p[rng.choice(5000, 300, replace=False)] = 0
    within = rng.permutation(5000)
    order = vip_order(p, within)
    assert_permutation(order, 5000)
    bins = np.full(5000, -(1 << 20))
    bins[p > 0] = np.floor(np.log2(p[p > 0]))
    assert (np.diff(bins[order]) <= 0).all() and (p[order[-300:]] == 0).all()
    place = inverse_order(within)
    for value in np.unique(bins):
        assert (np.diff(place[order[bins[order] == value]]) > 0).all()
    np.testing.assert_array_equal(vip_order(p), vip_order(p, np.arange(5000)))
    np.testing.assert_array_equal(vip_order(p.astype(np.float32)), vip_order(p.astype(np.float32) * 8))
    assert vip_order([]).tolist() == [] and vip_order([3, 5, 1, 0]).tolist() == [1, 0, 2, 3]


@pytest.mark.parametrize("p, within, error, text", [
    ([0.5, -1.0], None, ValueError, "at least 0, got -1 at node 1"), ([np.nan], None, ValueError, "inf or nan"),
    ([0.5, 1.0], [0], ValueError, "must hold the 2 nodes"), ([0.5, 1.0], [0, 0], ValueError, "node 1 is missing"),
    ([[0.5]], None, ValueError, "1-dimensional")])
def test_bad_probabilities(p, within, error, text):
    with pytest.raises(error, match=text):
        vip_order(p, within)


def test_edges_that_leave_the_graph_are_refused(make_graph):
    """S0-34: an end out of range is an error, not an arc the less."""
    graph = make_graph(50, 0.1)
    graph.indices[3] = 50
    for order in (bfs_order, rcm_order, degree_order):
        with pytest.raises(ValueError, match=r"outside 0\.\.49"):
            order(graph)


@pytest.mark.parametrize("order", [bfs_order, rcm_order, degree_order])
def test_an_order_is_made_once_and_is_always_the_same(make_graph, order):
    """S0-16: an order depends on the graph alone."""
    graph = make_graph(300, 0.02)
    before = graph.copy()
    first = order(graph)
    with working_threads(2):
        np.testing.assert_array_equal(order(graph), first)
    assert (graph != before).nnz == 0


def test_memory_mapped_graphs(make_graph, tmp_path):
    graph = as_csr(make_graph(400, 0.02))
    for name in ("indptr", "indices", "data"):
        np.save(tmp_path / name, getattr(graph, name))
    mapped = sp.csr_array(tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r")
                                for name in ("data", "indices", "indptr")), shape=graph.shape)
    assert not mapped.indices.flags.writeable
    for order in (bfs_order, rcm_order, degree_order):
        np.testing.assert_array_equal(order(mapped), order(graph))


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
        hubs, visited = np.empty(n, np.int64), np.empty(n + 1, width)
        traversal.by_degree(indptr, np.zeros(n + 2, np.int64), hubs)
        traversal.bfs(indptr, indices, hubs, np.zeros(n, np.uint8), visited)
        narrow = np.empty(n + 1, width)
        traversal.cuthill_mckee(indptr, indices, hubs[::-1].astype(width), inverse_order(hubs[::-1]).astype(width),
                                np.zeros(n, np.uint8), np.empty(n, width), narrow)
        back = np.zeros_like(indptr), np.empty_like(indices), np.empty_like(indices)
        traversal.transpose(indptr, indices, *back)
        counts = np.diff(indptr)[order]
        starts, columns, data = np.append(0, np.cumsum(counts)).astype(width), np.empty_like(indices), graph.data * 0
        traversal.permute(indptr, indices, graph.data, order, inverse_order(order).astype(width), 0, n,
                          np.empty(counts.max(), width), np.empty(counts.max(), data.dtype), starts, columns, data)
        assert counts.max() > 80  # so both ways of sorting are taken somewhere in these tests
        results.append([hubs, visited[:n], narrow[:n], *back, columns, data])
    for narrow, wide in zip(*results, strict=True):
        np.testing.assert_array_equal(narrow, wide)
    np.testing.assert_array_equal(results[1][-2], permute(graph, order).indices)
