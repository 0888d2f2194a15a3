"""The reference surface of the cold tier: every name, its acceptance facts, and that its faults are absent here."""
import fcntl
import itertools
import mmap
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy.datasets import make_sbm
from gnncy.errors import StorageError
from gnncy.graph import as_csr, bfs_order
from gnncy.storage import AdaptiveHotset, FeatureStorage, HyperbatchConfig, HyperbatchIterator, HyperbatchResult
from gnncy.training import ColdTierEpochResult, ColdTierTrainer, GraphLoader

DATA = make_sbm(2000, n_features=32, seed=0)
X = DATA.features
PATH_GRAPH = sp.diags_array([np.ones(4), np.ones(4)], offsets=[1, -1], shape=(5, 5))

SURFACE = {  # ours where it has another name or is Python's idiom
    FeatureStorage: {"create": "create", "open": "open", "write_features": "write_features", "flush": "flush",
                     "read_features": "read_features", "read_batch": "read_batch", "dim": "dim",
                     "num_nodes": "n_nodes"},
    HyperbatchIterator: {"next_batch": "__iter__", "reset": "__iter__"},
    AdaptiveHotset: {"get": "get", "insert": "insert", "record_access": "record_access", "evict_cold": "evict_cold",
                     "hit_rate": "hit_rate", "decay_counts": "decay_counts", "len": "__len__",
                     "is_empty": "is_empty"},
    ColdTierTrainer: {"train_epoch": "train_epoch", "get_features": "get_features",
                      "save_checkpoint": "save_checkpoint", "load_checkpoint": "load_checkpoint"},
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.npy"


@pytest.fixture
def store(path):
    with FeatureStorage.from_array(X, path) as store:
        yield store


@pytest.mark.parametrize("owner, name", [(owner, name) for owner, names in SURFACE.items() for name in names.values()],
                         ids=str)
def test_every_name_is_there_and_documented(owner, name):
    assert name.startswith("__") or (getattr(owner, name).__doc__ or "").strip()
    assert hasattr(owner, name)


def test_next_batch_and_reset_are_next_and_iter():
    read = HyperbatchIterator(X, [[3, 0], [1]], buffer_bytes="1MB")
    batches = iter(read)
    assert next(batches).node_ids.tolist() == [3, 0] and next(batches).batch_index == 1
    assert next(batches, None) is None
    assert next(iter(read)).node_ids.tolist() == [3, 0]


def test_fields_and_defaults():
    defaults = {field.name: field.default for field in fields(HyperbatchConfig)}
    assert {"batch_size": 4096, "prefetch_factor": 2, "block_align": 4096, "num_buffers": 2,
            "hotset_fraction": 0.05}.items() <= defaults.items()
    assert {"node_ids", "features", "batch_index"} <= {field.name for field in fields(HyperbatchResult)}
    assert {"epoch", "avg_loss", "batches", "hotset_hit_rate", "io_time", "compute_time"} <= {
        field.name for field in fields(ColdTierEpochResult)}
    assert AdaptiveHotset(1, 1).decay == 0.95


# Acceptance facts


def test_a_round_trip_of_ten_rows_after_reopening(path):
    rows = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    with FeatureStorage.create(path, n_nodes=10, dim=8) as store:
        for node, row in enumerate(rows):
            store.write_features(node, row)
        store.flush()
    with FeatureStorage.open(path) as store:
        assert (store.n_nodes, store.dim, store.path) == (10, 8, path)
        for node, row in enumerate(rows):
            np.testing.assert_array_equal(store.read_features(node), row)


def test_breadth_first_orders():
    np.testing.assert_array_equal(bfs_order(PATH_GRAPH, start=0), np.arange(5))
    star = np.zeros((5, 5))
    star[0, 1:] = star[1:, 0] = 1
    order = bfs_order(star)
    assert order[0] == 0 and len(order) == 5


def test_a_full_hotset_lets_the_least_used_go():
    hot = AdaptiveHotset(capacity=3, dim=1)
    hot.insert([1, 2, 3], [[1.0], [2.0], [3.0]])
    hot.record_access([1, 1, 3, 3, 4, 4])
    hot.insert(4, [4.0])
    assert 2 not in hot and all(node in hot for node in (1, 3, 4))


# Layout (S0-1 .. S0-3, S0-9, S0-11 .. S0-13)


def test_s0_1_s0_2_rows_are_packed_from_a_page_boundary_on(path, store):
    assert path.stat().st_size == 4096 + X.nbytes
    np.testing.assert_array_equal(np.fromfile(path, "<f4", offset=4096).reshape(X.shape), X)


def test_s0_3_the_order_is_that_of_the_file(path, tmp_path):
    order = bfs_order(DATA.adjacency)
    with FeatureStorage.from_array(X, path, order=order) as ordered, \
            FeatureStorage.from_array(X, tmp_path / "plain.npy") as plain:
        np.testing.assert_array_equal(np.load(path), X[order])
        for store in (ordered, plain):
            np.testing.assert_array_equal(store.read_batch(order[700:740]), X[order[700:740]])
        assert ordered.stats.bytes_read < plain.stats.bytes_read / 4


def test_s0_9_the_file_is_little_endian_whatever_comes(path):
    with FeatureStorage.from_array(X.astype(">f4"), path) as store:
        assert np.load(path).dtype.str == "<f4"
        np.testing.assert_array_equal(store[:], X)


def test_s0_11_sizes_that_overflow_are_refused(path):
    for n, dim in ((2**62, 2**10), (2**63 - 1, 1), (1, 2**62)):
        with pytest.raises((StorageError, ValueError, OSError)):
            FeatureStorage.create(path, n, dim)
        assert not list(path.parent.iterdir())


def test_s0_12_reading_opens_for_reading(store):
    flags = fcntl.fcntl(store._opened().fd, fcntl.F_GETFL)
    assert flags & os.O_ACCMODE == os.O_RDONLY


def test_s0_13_the_page_size_of_the_machine_does_not_matter(path, store, tmp_path, monkeypatch):
    monkeypatch.setattr(mmap, "PAGESIZE", 16384)
    monkeypatch.setattr(os, "sysconf", lambda name: 16384)
    FeatureStorage.from_array(X, tmp_path / "other.npy").close()
    assert (tmp_path / "other.npy").read_bytes() == path.read_bytes()


# Reading (S0-4 .. S0-6, S0-8, S0-10, S0-14, S0-15, S0-27)


def test_s0_4_a_batch_takes_few_system_calls(store):
    store.read_batch(np.random.default_rng(0).permutation(2000)[:1000])
    assert store.stats.operations < 10


def test_s0_5_many_read_at_a_time(store):
    rng = np.random.default_rng(0)
    asked = [rng.integers(0, 2000, 300) for _ in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for ids, rows in zip(asked, pool.map(store.read_batch, asked), strict=True):
            np.testing.assert_array_equal(rows, X[ids])


@pytest.mark.parametrize("prefetch", [True, False])
def test_s0_6_an_error_is_not_the_end_of_an_epoch(path, store, prefetch):
    batches = np.arange(2000).reshape(20, 100)
    os.truncate(path, 4096 + X[:1000].nbytes)
    seen = 0
    with pytest.raises(StorageError), HyperbatchIterator(store, batches, buffer_bytes="60kB",
                                                         prefetch=prefetch) as read:
        for _ in read:
            seen += 1
    assert seen <= 10


def test_s0_8_flush_syncs(path, monkeypatch):
    synced = []
    with FeatureStorage.create(path, 4, 2) as store:
        store.write_features(1, [1, 2])
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
        monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_ino))
        store.flush()
        assert os.stat(path).st_ino in synced


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:100], lambda data: b"",
                                    lambda data: np.zeros(4000, np.uint8).tobytes(),
                                    lambda data: data.replace(b"(2000, 32)", b"(2000, 00)"),
                                    lambda data: data.replace(b"(2000, 32)", b"(9000, 32)")],
                         ids=["short", "header", "empty", "zeros", "no columns", "more rows"])
def test_s0_10_what_is_no_store_is_refused(path, damage):
    FeatureStorage.from_array(X, path).close()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError, match="x.npy"):
        FeatureStorage.open(path)


def test_s0_14_a_batch_size_of_zero_is_refused(store):
    with pytest.raises(ValueError, match="batch_size"):
        HyperbatchConfig(batch_size=0)
    with pytest.raises(ValueError, match="batch_size"):
        GraphLoader(DATA.adjacency, store, batch_size=0)


def test_s0_15_rows_are_held_once(tmp_path):
    """Buffers and the minibatch in use, no copies besides."""
    n, dim, size = 20_000, 128, 1000
    with FeatureStorage.from_array(np.ones((n, dim), np.float32), tmp_path / "x.npy") as store:
        tracemalloc.start()
        try:
            with HyperbatchIterator(store, np.arange(n).reshape(-1, size), buffer_bytes="3MB", prefetch=False) as read:
                for result in read:
                    assert result.features.shape == (size, dim)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 3e6 + 3 * 4 * size * dim + 2 * 2**20


def test_s0_27_one_writer_and_no_stale_handles(path):
    with FeatureStorage.create(path, 4, 2) as writer, FeatureStorage.open(path) as reader:
        with pytest.raises(StorageError, match="open for writing|locked|writer"):
            FeatureStorage.open(path, "r+")
        writer.write_features(2, [5, 6])
        np.testing.assert_array_equal(reader.read_features(2), [5, 6])


# Orders and epochs (S0-16, S0-17, S0-34)


def test_s0_16_epochs_differ_and_the_graph_is_built_once(store):
    loader = GraphLoader(DATA.adjacency, store, batch_size=500)
    graph = loader.adjacency
    first, second = (np.concatenate([r.batch.anchor_ids for r in loader.batches(k)]) for k in (0, 1))
    assert not np.array_equal(first, second) and np.array_equal(np.sort(first), np.sort(second))
    assert loader.adjacency is graph and np.shares_memory(graph.indices, as_csr(graph).indices)


def test_s0_17_the_order_begins_at_the_hub_and_brings_neighbours_together():
    degrees = np.diff(DATA.adjacency.indptr)
    order = bfs_order(DATA.adjacency)
    assert degrees[order[0]] == degrees.max()
    ring = as_csr(sp.eye_array(512, k=1) + sp.eye_array(512, k=-1))
    shuffled = np.random.default_rng(0).permutation(512)
    ring = ring[shuffled][:, shuffled]
    place = np.argsort(bfs_order(ring))
    arcs = ring.tocoo()
    assert abs(place[arcs.row] - place[arcs.col]).max() <= 2 < abs(arcs.row - arcs.col).mean()


@pytest.mark.parametrize("node", [-1, 5, 2**40])
def test_s0_34_edges_out_of_range_are_refused(node):
    indices = np.array([1, node, 2])
    graph = sp.csr_array((5, 5))
    graph.indptr, graph.indices, graph.data = np.array([0, 1, 2, 3, 3, 3]), indices, np.ones(3)
    with pytest.raises((ValueError, IndexError)):
        bfs_order(graph)


# Names without use (S0-P2 .. S0-P4)


def test_s0_p2_every_setting_is_used(store):
    batches = np.arange(2000).reshape(20, 100)
    for align in (64, 4096, 1 << 16):
        read = HyperbatchConfig(block_align=align, buffer_bytes="1MB").iterate(store, batches)
        assert all(arena.rows.ctypes.data % align == 0 for arena in read._arenas)
    with pytest.raises(ValueError, match="block_align must be a power of 2"):
        HyperbatchConfig(block_align=100)
    held = {(factor, buffers): len(HyperbatchConfig(prefetch_factor=factor, num_buffers=buffers).iterate(
        store, batches)._arenas) for factor, buffers in itertools.product((1, 2, 4), (1, 2, 4))}
    assert held == {key: min(key) for key in held}
    assert HyperbatchConfig(hotset_fraction=0.1).hotset(store).capacity == 200


def test_s0_p3_s0_p4_rows_are_read_ahead_and_the_hotset_is_asked(store):
    hotset = AdaptiveHotset(2000, 32)
    read = HyperbatchConfig(buffer_bytes="100kB").iterate(store, np.arange(2000).reshape(20, 100), hotset)
    for expected in (0.0, 1.0):
        for k, result in enumerate(read):
            np.testing.assert_array_equal(result.features, X[100 * k:100 * k + 100])
        assert read.statistics.hit_rate == hotset.hit_rate == expected
