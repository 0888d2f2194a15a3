"""NodeEmbedding: the same bits at any memory and number of threads, killed or not; and it learns."""
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import scipy.sparse as sp

import gnncy
from gnncy import _kernels
from gnncy._kernels.storage import tables as kernels
from gnncy._random import mix64
from gnncy.errors import GraphFormatError, MemoryLimitError, NotFittedError, StorageError
from gnncy.estimators import NodeEmbedding
from gnncy.estimators import pairs as pairs_module
from gnncy.graph import RandomWalks
from gnncy.storage import GraphStorage
from gnncy.storage.tables import EmbeddingTable
from gnncy.storage.tables.windows import LANES

METHODS = ("edges", "walks")


@pytest.fixture(scope="module")
def graph():
    return gnncy.datasets.make_sbm(12_000, 8, degree=8.0, homophily=0.9, seed=0)


def small(method, **options):
    return NodeEmbedding(**{"n_components": 12, "method": method, "epochs": 2, "n_walks": 1, "walk_length": 4,
                            "random_state": 0, "memory_limit": "100MB", **options})


@pytest.mark.parametrize("method", METHODS)
def test_same_bits_at_any_memory_and_threads(graph, method, tmp_path):
    model = small(method).fit(graph.adjacency)
    least = model.plan_.needed
    assert model.history_[0]["bytes_read"] < 2e6 and model.history_[1]["bytes_read"] == 0
    for k, options in enumerate([{"n_jobs": 2}, {"memory_limit": least, "direct": True},
                                 {"memory_limit": least, "n_jobs": 2, "direct": False, "folder": tmp_path / "run"},
                                 {"memory_limit": least + 400_000}]):
        other = small(method, **options).fit(graph.adjacency)
        np.testing.assert_array_equal(other.embedding_, model.embedding_)
        assert [h["loss"] for h in other.history_] == [h["loss"] for h in model.history_]
        assert k == 0 or other.history_[1]["bytes_read"] > 0
    with EmbeddingTable(tmp_path / "run" / "table.npy") as table:
        np.testing.assert_array_equal(table.gather([0, 7 * table.n_rows // 12_000])[1], model.embedding_[7])
    with pytest.raises(MemoryLimitError, match="raise memory_limit to"):
        small(method, memory_limit=least - 1_000_000).fit(graph.adjacency)


@pytest.mark.parametrize("direct", [True, False])
def test_arcs_on_disk_give_the_same_bits(graph, tmp_path, direct):
    want = small("edges").fit(graph.adjacency)
    GraphStorage.create(tmp_path / "graph", graph.adjacency).close()
    with GraphStorage(tmp_path / "graph", direct=direct) as stored:
        least = small("edges").estimate(stored).needed
        before = stored.stats.snapshot()
        for options in {}, {"memory_limit": least, "n_jobs": 2, "folder": tmp_path / "run"}:
            model = small("edges", **options).fit(stored)
            np.testing.assert_array_equal(model.embedding_, want.embedding_)
            assert [h["loss"] for h in model.history_] == [h["loss"] for h in want.history_]
        assert (stored.stats.snapshot() - before).bytes_read > 4 * graph.adjacency.nnz
        nodes = np.array([3, 7, 8, 11_999])
        np.testing.assert_array_equal(stored.read_spans(*stored.spans(nodes)), graph.adjacency[nodes].indices)
        with pytest.raises(ValueError, match="to_csr"):
            small("walks").fit(stored)
    with pytest.raises(ValueError, match="closed"):
        small("edges").fit(stored)


def test_arcs_on_disk_that_lead_one_way(tmp_path):
    for name, edges in ("one", [[0, 1], [1, 2]]), ("weighted", [[0, 1], [1, 0]]):
        weights = [-1.0, -1.0]
        piece = (np.array(edges)[:, 0], np.array(edges)[:, 1]) + ((weights,) if name == "weighted" else ())
        GraphStorage.from_edges(tmp_path / name, iter([piece]), 3, directed=True).close()
    with GraphStorage(tmp_path / "one") as graph, pytest.raises(GraphFormatError, match="directed=False"):
        small("edges").fit(graph)
    with GraphStorage(tmp_path / "weighted") as graph, pytest.raises(GraphFormatError, match="weights down to -1"):
        small("edges").fit(graph)
    GraphStorage.create(tmp_path / "lone", np.zeros((1, 1))).close()
    with GraphStorage(tmp_path / "lone") as graph, pytest.raises(GraphFormatError, match="at least 2 nodes"):
        small("edges").fit(graph)


CHILD = """
    import sys
    import gnncy
    data = gnncy.datasets.make_sbm(12_000, 8, degree=8.0, homophily=0.9, seed=0)
    options = {"epochs": 12, "random_state": 0, "memory_limit": int(sys.argv[2]), "folder": sys.argv[1]}
    gnncy.NodeEmbedding(12, **options).fit(data.adjacency)
"""


def test_killed_and_resumed_to_the_same_bits(graph, tmp_path):
    whole = NodeEmbedding(12, epochs=12, random_state=0).fit(graph.adjacency)
    least = whole.plan_.needed
    sidecar, begun = tmp_path / "run" / "table.npy.json", 0
    for epochs in (1, 5):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path / "run"), str(least)])
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            if sidecar.exists() and f'"generation": {epochs}' in sidecar.read_text():
                break
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        begun += child.wait() == -signal.SIGKILL
    assert begun
    resumed = NodeEmbedding(12, epochs=12, random_state=0, memory_limit=least, folder=tmp_path / "run")
    resumed.fit(graph.adjacency)
    np.testing.assert_array_equal(resumed.embedding_, whole.embedding_)
    assert resumed.history_ and [h["loss"] for h in resumed.history_] == [h["loss"] for h in whole.history_]
    with pytest.raises(StorageError, match="holds another run"):
        NodeEmbedding(12, epochs=3, random_state=0, folder=tmp_path / "run").fit(graph.adjacency)


def test_the_memory_limit_is_kept(graph, tmp_path):
    # in a process of its own, whose peak is that of the fit
    code = """
        import sys
        import numpy as np
        import gnncy
        from gnncy import _memory
        n = 60_000
        ring = np.arange(n)
        from scipy.sparse import csr_array
        ends = np.tile(ring, 2), np.concatenate([(ring + 1) % n, (ring - 1) % n])
        a = csr_array((np.ones(2 * n, np.float32), ends), shape=(n, n))
        gnncy.NodeEmbedding(128, epochs=1, random_state=0, memory_limit="40MB").fit(a[:200, :200])
        before = _memory.rss()
        _memory.reset_peak()
        model = gnncy.NodeEmbedding(128, epochs=1, random_state=0, memory_limit="40MB", direct=True).fit(a)
        assert model.history_[0]["bytes_read"] > 40e6
        print(_memory.peak_rss() - before)
    """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 40e6


@pytest.mark.parametrize("method, options, least", [("edges", {"epochs": 40, "learning_rate": 0.03}, 0.9),
                                                    ("walks", {"epochs": 6, "n_walks": 6, "walk_length": 6}, 0.9)])
def test_it_finds_the_classes(method, options, least):
    data = gnncy.datasets.make_sbm(2000, 4, degree=16.0, homophily=0.9, seed=1)
    model = NodeEmbedding(32, method=method, random_state=0, **options)
    z = model.fit_transform(data.adjacency)
    assert model.history_[-1]["loss"] < model.history_[0]["loss"]
    assert gnncy.evaluate.linear_probe(z, data.labels).accuracy > least


def test_each_edge_once_an_epoch(graph):
    arcs = sp.triu(graph.adjacency, 1).nnz
    model = small("edges", epochs=2).fit(graph.adjacency)
    assert [h["pairs"] for h in model.history_] == [arcs, arcs]
    one_way = sp.csr_array(sp.triu(graph.adjacency, 1))
    np.testing.assert_array_equal(small("edges", epochs=2).fit(one_way).embedding_, model.embedding_)


def test_half_of_a_walk_s_pairs(graph):
    model = small("walks", epochs=3, n_walks=2).fit(graph.adjacency)
    walks = RandomWalks(graph.adjacency, 4, 2, seed=0).sample(np.arange(12_000))
    expected = (walks[:, 1:] != walks[:, :1]).sum() / 2
    for record in model.history_:
        assert record["pairs"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("level", _kernels.AVAILABLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d, negatives", [(1, 1), (3, 2), (4, 3), (7, 4), (8, 5), (9, 5), (15, 6), (16, 7), (17, 8),
                                          (31, 5), (32, 5), (33, 600)])
def test_gradient_of_skip_gram(level, dtype, d, negatives):
    module = _kernels.at_level(level, "skipgram")
    rng = np.random.default_rng(d)
    m, group = 11, 4
    groups = -(-m // group)
    records = rng.standard_normal((30, d + 3)).astype(dtype)
    records.flags.writeable = False
    where = rng.integers(0, 30, 2 * m + groups * negatives)

    def loss(rows):
        u, v = rows[where[:m]], rows[where[m:2 * m]]
        drawn = rows[where[2 * m:]].reshape(groups, negatives, -1)[np.arange(m) // group]
        s = np.einsum("id,ikd->ik", u, drawn)
        return np.logaddexp(0, -(u * v).sum(1)) + np.logaddexp(0, s).sum(1)

    factor, losses = np.empty((m, negatives + 1), dtype), np.empty(groups)
    grad = np.full((len(where), d), np.nan, dtype)
    module.gradient(0, 1, records, where, group, factor, losses, grad)
    module.gradient(1, groups, records, where, group, factor, losses, grad)
    rows = records[:, :d].astype(float)
    by_group = np.add.reduceat(loss(rows), np.arange(0, m, group))
    np.testing.assert_allclose(losses, by_group, rtol=1e-5 if dtype == np.float32 else 1e-12)
    total = np.zeros((30, d))
    np.add.at(total, where, grad.astype(float))
    if dtype == np.float64:
        h = 1e-5
        for i in range(0, 30, 7):
            for j in {0, d - 1}:
                step = np.zeros_like(rows)
                step[i, j] = h
                slope = (loss(rows + step).sum() - loss(rows - step).sum()) / (2 * h)
                assert total[i, j] == pytest.approx(slope, rel=1e-6, abs=1e-6)
    else:
        exact = np.empty((len(where), d))
        module.gradient(0, groups, records.astype(float), where, group, np.empty((m, negatives + 1)), losses, exact)
        np.testing.assert_allclose(grad, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", _kernels.AVAILABLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d, vectors, batch", [(1, 1, 3), (7, 2, 16), (8, 1, 100), (17, 2, 8)])
def test_training_is_gradient_after_gradient(level, dtype, d, vectors, batch):
    skipgram, steps = _kernels.at_level(level, "skipgram"), _kernels.at_level(level, "records")
    rng = np.random.default_rng(d)
    bits, group, negatives, m, key = 3, 4, 5, 41, 2**63 + 5
    slot_of = rng.permutation(8)  # of 64 rows
    blocks = np.array([6, 1, 4])
    u, v = rng.integers(0, 64 // vectors, (2, m))
    cell, begin = 3, np.array([0, 0, 0, 2, m - 1])  # of 2 x 2, this the last one: its negatives are of lane 1
    own = slice(2, m - 1)
    nodes = np.array([0, 8 // vectors, 3 * 8 // vectors])
    sums, guide = np.empty(nodes[-1]), np.empty(nodes[-1], np.int32)
    for lane in (slice(nodes[0], nodes[1]), slice(nodes[1], nodes[2])):
        sums[lane] = np.cumsum(rng.random(lane.stop - lane.start))
        kernels.guide(sums[lane], guide[lane])
    records = rng.standard_normal((64, d + 2)).astype(dtype)
    records[:, d] = 0.5
    want, loss = records.copy(), 0.0
    lots_key = mix64(key ^ cell)
    a_all, b_all = u[own].copy(), v[own].copy()
    kernels.shuffle(a_all, b_all, lots_key)
    for first in range(0, len(a_all), batch):
        a, b = a_all[first:first + batch], b_all[first:first + batch]
        groups = -(-len(a) // group)
        lots_key = mix64(lots_key)
        lots = np.array([(mix64(lots_key + e) >> 11) * 2.0**-53 for e in range(groups * negatives)])
        drawn = np.empty(len(lots), np.int64)
        kernels.draw(sums[nodes[1]:], guide[nodes[1]:], lots, drawn)
        row = (nodes[1] + drawn) * vectors + vectors - 1
        rows = np.concatenate([a * vectors, b * vectors + vectors - 1, blocks[row // 8] * 8 + row % 8])
        where, grad, losses = np.empty(len(rows), np.int64), np.empty((len(rows), d), dtype), np.empty(groups)
        kernels.locate(rows, slot_of, bits, where)
        skipgram.gradient(0, groups, want, where, group, np.empty((len(a), negatives + 1), dtype), losses, grad)
        distinct, start, order = np.empty((3, len(rows) + 1), np.int64)
        count = kernels.group(where, np.full(64, -1, np.int32), distinct, start, order)
        steps.rowwise_adagrad(0, count, distinct, order, start, grad, 0.1, 1e-8, want)
        loss += losses.sum()
    places = 2 * batch + -(-batch // group) * negatives
    mark = np.full(64, -1, np.int32)
    for array in (begin, nodes, blocks, sums, guide, slot_of):
        array.flags.writeable = False
    out = np.full(4, np.nan)
    rest = np.delete(np.stack([u, v]), np.arange(2, m - 1), axis=1)
    skipgram.train(np.array([cell, 0]), begin, u, v, vectors, nodes, blocks, sums, guide, key, group, slot_of, bits,
                   mark, np.empty((4, places + 1), np.int64), np.empty(-(-batch // group)),
                   np.empty((batch, negatives + 1), dtype), np.empty((places, d), dtype), 0.1, 1e-8, records, out)
    np.testing.assert_array_equal(np.delete(np.stack([u, v]), np.arange(2, m - 1), axis=1), rest)
    np.testing.assert_array_equal([u[own], v[own]], [a_all, b_all])
    np.testing.assert_array_equal(records, want)
    assert out[3] == pytest.approx(loss, rel=1e-12) and out[0] == 0 and np.isnan(out[1:3]).all() and (mark == -1).all()


def test_pairs_are_dealt_and_shuffled_together():
    rng = np.random.default_rng(0)
    u, v = rng.integers(0, 80, (2, 500))
    lane_of = rng.integers(0, 4, 10).astype(np.uint8)
    a, b, begin = np.empty(500, np.int64), np.empty(500, np.int64), np.empty(17, np.int64)
    kernels.deal(u, v, lane_of, 3, 4, begin, a, b)
    cell = lane_of[u // 8] * 4 + lane_of[v // 8]
    assert begin.tolist() == [0, *np.cumsum(np.bincount(cell, minlength=16))]
    by_cell = np.argsort(cell, kind="stable")
    np.testing.assert_array_equal([a, b], [u[by_cell], v[by_cell]])
    orders = []
    for key in (1, 2, 1):
        x, y = np.arange(500), np.arange(500) + 1000
        kernels.shuffle(x, y, key)
        np.testing.assert_array_equal(y, x + 1000)
        np.testing.assert_array_equal(np.sort(x), np.arange(500))
        orders.append(x)
    assert (orders[0] == orders[2]).all() and (orders[0] != orders[1]).mean() > 0.9
    first = []
    for key in range(4000):
        x, y = np.arange(4), np.arange(4)
        kernels.shuffle(x, y, mix64(key))
        first.append(x[0])
    np.testing.assert_allclose(np.bincount(first) / 4000, 0.25, atol=0.03)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_on_at_the_same_time_shares_no_block(graph, method, threads, monkeypatch):
    rounds = []
    pieces, train = pairs_module.run_pieces, pairs_module.Lane.train

    def watched(work, n, size):
        rounds.append([])
        pieces(work, n, size)

    def trained(lane, cells, pairs, odds, key, losses):
        vectors, bits = lane._vectors, lane._table.block_rows.bit_length() - 1
        blocks = set()
        for cell in cells.tolist():
            u, v = (x[pairs.begin[cell]:pairs.begin[cell + 1]] for x in (pairs.u, pairs.v))
            blocks.update((u * vectors >> bits).tolist(), (v * vectors + vectors - 1 >> bits).tolist())
            if len(u):
                nodes = odds.first[cell % LANES:cell % LANES + 2] * vectors >> bits
                blocks.update(odds.blocks[slice(*nodes)].tolist())
        rounds[-1].append(blocks)
        return train(lane, cells, pairs, odds, key, losses)

    monkeypatch.setattr(pairs_module, "run_pieces", watched)
    monkeypatch.setattr(pairs_module.Lane, "train", trained)
    small(method, epochs=1, n_components=128, n_jobs=threads).fit(graph.adjacency)
    most = 0
    for tasks in rounds:
        assert len(set().union(*tasks)) == sum(map(len, tasks))
        most = max(most, sum(bool(task) for task in tasks))
    assert most == (LANES if threads > 2 else 2)


@pytest.mark.parametrize("own", [False, True])
def test_cells_that_share_a_lane_keep_their_order_at_any_number_of_threads(own):
    orders = []
    for threads in (1, 2, 3, 8):
        stages = pairs_module._stages(own, threads)
        cells = [divmod(int(cell), LANES) for tasks in stages for task in tasks for cell in task]
        assert sorted(cells) == [(i, j) for i in range(LANES) for j in range(LANES)]
        sides = (("u", 0), ("v", 1)) if not own else (("u", 0), ("u", 1))  # a chunk's nodes are on both sides
        lanes = {}
        for cell in cells:
            for lane in {(side, cell[k]) for side, k in sides}:
                lanes.setdefault(lane, []).append(cell)
        orders.append(lanes)
    assert all(order == orders[0] for order in orders)


def test_large_products_do_not_overflow():
    from gnncy._kernels import skipgram
    records = np.array([[1e4], [1e4], [-1e4]], np.float32)
    for where, want in [([0, 1, 2], 0.0), ([0, 2, 1], 2e8)]:
        loss, grad = np.empty(1), np.empty((3, 1), np.float32)
        skipgram.gradient(0, 1, records, np.array(where), 16, np.empty((1, 2), np.float32), loss, grad)
        assert loss[0] == pytest.approx(want) and np.isfinite(grad).all()


def test_balance_sees_a_missing_arc(graph):
    a = sp.csr_array(graph.adjacency)
    n = a.shape[0]
    assert kernels.balance(a.indptr, a.indices, 0, n) == 0
    parts = [kernels.balance(a.indptr, a.indices, k, min(k + 1000, n)) for k in range(0, n, 1000)]
    assert sum(parts) % 2**64 == 0
    one_less = sp.csr_array(a - sp.csr_array(([a.data[0]], ([0], [a.indices[0]])), shape=a.shape))
    one_less.eliminate_zeros()
    assert kernels.balance(one_less.indptr, one_less.indices, 0, n) != 0


@pytest.mark.parametrize("form", [lambda a: sp.csc_matrix(a), lambda a: sp.coo_array(a),
                                  lambda a: a.toarray().astype(">f8"), lambda a: a.toarray(order="F")])
@pytest.mark.parametrize("method", METHODS)
def test_forms_of_the_adjacency(form, method):
    a = gnncy.datasets.make_sbm(200, 2, seed=0).adjacency
    want = small(method).fit_transform(a)
    np.testing.assert_array_equal(small(method).fit_transform(form(a)), want)


@pytest.mark.parametrize("method", METHODS)
def test_odd_graphs(method):
    lone = sp.csr_array((5, 5), dtype=np.float32)
    model = small(method).fit(lone)
    assert model.embedding_.shape == (5, 12) and model.history_[0]["pairs"] == 0
    loop = sp.csr_array(np.eye(3, dtype=np.float32))
    assert small(method).fit(loop).history_[0]["pairs"] == 0
    pair = sp.csr_array(np.array([[0, 1], [1, 0]], np.float32))
    assert np.isfinite(small(method).fit(pair).embedding_).all()


def test_bad_arguments():
    a = np.ones((4, 4), np.float32)
    for options, error, message in [({"method": "gnn"}, ValueError, "method must be one of 'edges', 'walks'"),
                                    ({"n_components": 0}, ValueError, "n_components must be at least 1"),
                                    ({"learning_rate": 0}, ValueError, "learning_rate must be greater than 0"),
                                    ({"epochs": -1}, ValueError, "epochs must be at least 0"),
                                    ({"n_negatives": 2.5}, TypeError, "n_negatives must be an integer"),
                                    ({"n_jobs": 0}, ValueError, "n_jobs must not be 0")]:
        with pytest.raises(error, match=message):
            NodeEmbedding(**options).fit(a)
    with pytest.raises(GraphFormatError, match="at least 2 nodes"):
        NodeEmbedding().fit(np.ones((1, 1)))
    with pytest.raises(GraphFormatError, match="Negative values"):
        NodeEmbedding().fit(-a)
    with pytest.raises(NotFittedError):
        NodeEmbedding().get_feature_names_out()


def test_manners_of_scikit_learn():
    a = gnncy.datasets.make_sbm(100, 2, seed=0).adjacency
    model = NodeEmbedding(4, epochs=1, random_state=0)
    assert repr(model) == "NodeEmbedding(epochs=1, n_components=4, random_state=0)"
    twin = NodeEmbedding().set_params(**model.get_params())
    np.testing.assert_array_equal(twin.fit_transform(a), model.fit(a).embedding_)
    assert model.get_feature_names_out().tolist() == [f"nodeembedding{k}" for k in range(4)]
    assert (model.n_nodes_in_, model.n_iter_, model.loss_) == (100, 1, model.history_[0]["loss"])
    assert model.estimate(a).needed == model.plan_.needed
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).embedding_, model.embedding_)
    assert not list(model.embedding_path_.parent.glob("table*"))
    assert "nodes" not in model.get_params()


def test_lines_an_epoch(capsys):
    a = gnncy.datasets.make_sbm(100, 2, seed=0).adjacency
    NodeEmbedding(4, epochs=2, random_state=0, verbose=1).fit(a)
    lines = capsys.readouterr().err
    assert "epoch 1  loss" in lines and "pairs/s" in lines


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimator NodeEmbedding does not inherit")
def test_scikit_learn_s_own_checks():
    checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="needs gnncy[sklearn]")
    checks.check_estimator(NodeEmbedding(2, epochs=1, random_state=0), expected_failed_checks={
        "check_dtype_object": "arrays of objects are refused, not converted"}, on_skip=None)
