"""Graphs on disk: what is written and read, and samples that are those of a graph in memory, bit for bit."""
import gc
import json
import os
import pickle
import time
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy import _memory
from gnncy._random import derive, mix64
from gnncy._threads import working_threads
from gnncy.datasets import ingest_edges, make_rmat, make_sbm, read_graph, write_rmat
from gnncy.errors import GraphFormatError, MemoryLimitError, StorageError
from gnncy.graph import NeighborSampler, as_csr, degrees, inclusion_probabilities
from gnncy.storage import ColdTierLoader, FeatureStorage, GraphStorage, StorageSampler
from gnncy.storage._blocks import npy_header
from gnncy.storage.plans import DiskModel
from gnncy.storage.topology import sweep
from gnncy.training import GraphLoader

DISK = DiskModel(20e-6, 2e9, 2e9, threads=4)
SLOW = DiskModel(1e-7, 1e9, 1e9, threads=4)  # operations cost next to nothing: arcs are read one by one


def random_graph(n=300, density=0.05, seed=0, weighted=True, dtype=np.float32):
    rng = np.random.default_rng(seed)
    graph = rng.random((n, n), dtype) * (rng.random((n, n)) < density)
    graph[7] = 1.5  # a hub, and a node without arcs
    graph[3] = 0
    graph = as_csr(graph)
    if not weighted:
        graph.data[:] = 1
    return graph


def same(a, b):
    assert a.shape == b.shape and a.dtype == b.dtype
    for name in ("indptr", "indices", "data"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and np.array_equal(x, y), name


def same_batch(a, b, weighted=False):
    assert a.nodes.dtype == b.nodes.dtype and np.array_equal(a.nodes, b.nodes)
    assert len(a.blocks) == len(b.blocks)
    for x, y in zip(a.blocks, b.blocks, strict=True):
        assert (x.n_src, x.n_dst) == (y.n_src, y.n_dst)
        for name in ("indptr", "indices", "edges", "weights"):
            u, v = getattr(x, name), getattr(y, name)
            assert (u is None) == (v is None) == (not weighted if name == "weights" else False), name
            assert u is None or u.dtype == v.dtype and np.array_equal(u, v), name


# What is written and read

@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_what_was_written_is_read(tmp_path, weighted, direct):
    graph = random_graph(weighted=weighted)
    GraphStorage.create(tmp_path / "graph", graph).close()
    with GraphStorage(tmp_path / "graph", direct=direct, disk=DISK) as stored:
        same(stored.to_csr(), graph)
        assert stored.shape == graph.shape and stored.nnz == graph.nnz and stored.weighted == weighted
        assert np.array_equal(stored.degrees(), degrees(graph)) and stored.degrees().dtype == np.int64
        assert stored.nbytes == 8 * 301 + graph.nnz * (8 if weighted else 4)
        for node in (0, 3, 7, 299):
            assert np.array_equal(stored.neighbors(node), graph.indices[graph.indptr[node]:graph.indptr[node + 1]])
        ids = np.random.default_rng(1).integers(0, 300, 500)
        assert (stored.read_batch(ids) != graph[ids]).nnz == 0
        assert (stored.read_rows(5, 100) != graph[5:100]).nnz == 0
        arcs = np.random.default_rng(2).integers(0, graph.nnz, 1000)
        assert np.array_equal(stored.read_arcs(arcs), graph.indices[arcs])
        assert np.array_equal(stored.read_weights(arcs), graph.data[arcs])
        assert stored.verify().ok


def test_blocks_of_rows_cover_the_graph(tmp_path):
    graph = random_graph()
    with GraphStorage.create(tmp_path / "graph", graph) as stored:
        for most in (1, 17, 500, 10**6):
            blocks = list(stored.iter_rows(most))
            assert [start for start, _ in blocks] == np.cumsum([0] + [b.shape[0] for _, b in blocks[:-1]]).tolist()
            assert all(block.nnz <= most or block.shape[0] == 1 for _, block in blocks)
            assert (sp.vstack([block for _, block in blocks]) != graph).nnz == 0


@pytest.mark.parametrize("loaded", [False, True])
def test_row_starts_in_memory_or_on_disk(tmp_path, loaded):
    graph = random_graph()
    with GraphStorage.create(tmp_path / "graph", graph) as stored:
        if loaded:
            assert np.array_equal(stored.load_indptr(), graph.indptr)
        nodes = np.array([299, 0, 3, 7, 0, 4, 5])
        first, degree = stored.spans(nodes)
        assert np.array_equal(first, graph.indptr[nodes]) and np.array_equal(degree, np.diff(graph.indptr)[nodes])
        assert stored.longest_list() == 300
        with pytest.raises(IndexError, match=r"nodes must lie in 0\.\.299"):
            stored.spans(np.array([300]))


def test_small_graphs(tmp_path):
    for n in (0, 1, 2):
        with GraphStorage.create(tmp_path / f"graph{n}", sp.csr_array((n, n))) as stored:
            same(stored.to_csr(), as_csr(sp.csr_array((n, n), dtype=np.float32)))
            assert stored.verify().ok
    with GraphStorage(tmp_path / "graph2") as stored:
        batch = StorageSampler(stored, (3, -1)).sample([1])
        assert batch.nodes.tolist() == [1] and batch.blocks[0].n_arcs == 0


def test_folder_of_a_generator_opens(tmp_path):
    write_rmat(tmp_path / "graph", 8, n_features=4)
    data = make_rmat(8, n_features=4)
    with GraphStorage(tmp_path / "graph") as stored:
        same(stored.to_csr(), data.adjacency)
        report = stored.verify()
        assert not report.ok and not report.damaged and report.unchecked == ((0, 256),)


def test_memory_of_the_whole_is_checked(tmp_path):
    graph = random_graph()
    with GraphStorage.create(tmp_path / "graph", graph) as stored:
        with pytest.raises(MemoryLimitError, match="arcs in memory"):
            stored.to_csr(memory_limit=1000)


def test_a_path_is_whole_or_absent(tmp_path):
    graph = random_graph()
    path = tmp_path / "graph"
    GraphStorage.create(path, graph).close()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        GraphStorage.create(path, graph)

    def broken():
        yield np.array([[0, 1]])
        raise RuntimeError("the source ends")

    with pytest.raises(RuntimeError, match="the source ends"):
        GraphStorage.from_edges(path, broken(), 5, overwrite=True)
    with GraphStorage(path) as stored:  # S0-26: what was there stays until its successor is whole
        same(stored.to_csr(), graph)
    assert os.listdir(tmp_path) == ["graph"]
    GraphStorage.create(path, graph[:5, :5], overwrite=True).close()
    with GraphStorage(path) as stored:
        assert stored.shape == (5, 5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("x")
    with pytest.raises(StorageError, match="left alone"):
        GraphStorage.create(tmp_path / "other", graph, overwrite=True)


# Damage

def test_damage_is_found_and_named(tmp_path):
    graph = random_graph()
    path = tmp_path / "graph"
    GraphStorage.create(path, graph).close()
    place = int(graph.indptr[50])
    with open(path / "indices.npy", "rb+") as file:
        file.seek(4096 + 4 * place)
        file.write(np.int32(-5).tobytes())
    with GraphStorage(path) as stored:
        report = stored.verify()
        assert not report.ok and 50 in report.damaged_nodes
        with pytest.raises(StorageError, match="ends outside"):
            stored.neighbors(50)
        with pytest.raises(StorageError, match="ends outside"):
            StorageSampler(stored, (-1,)).sample([50])


def test_rows_of_foreign_folders_are_looked_at(tmp_path):
    np.save(tmp_path / "indptr.npy", np.array([0, 2, 4]))
    np.save(tmp_path / "indices.npy", np.array([0, 1, 1, 0]))  # the second row descends
    with GraphStorage(tmp_path) as stored:
        assert stored.verify().damaged == ((1, 2),)


@pytest.mark.parametrize("change, message", [
    (lambda path: (path / "indices.npy").unlink(), "indices.npy: missing"),
    (lambda path: os.truncate(path / "indices.npy", 5000), "truncated"),
    (lambda path: (path / "topology.json").write_text("{"), "damaged or foreign"),
    (lambda path: (path / "topology.json").write_text('{"format": "x", "version": 1}'), "another program"),
    (lambda path: (path / "topology.json").write_text('{"format": "gnncy-topology", "version": 9, "n_nodes": 1, '
                                                      '"nnz": 1, "headers": {}, "extent_bytes": 1}'), "version 9"),
    (lambda path: np.save(path / "indptr.npy", np.arange(301)), "are not those that"),
    (lambda path: np.save(path / "indices.npy", np.zeros(3)), "dtype float64"),
    (lambda path: np.save(path / "data.npy", np.zeros(3, np.float32)), "do not belong together"),
])
def test_what_does_not_fit_together_is_refused(tmp_path, change, message):
    GraphStorage.create(tmp_path / "graph", random_graph()).close()
    change(tmp_path / "graph")
    with pytest.raises(StorageError, match=message):
        GraphStorage(tmp_path / "graph")


def test_row_starts_that_descend_are_refused(tmp_path):
    np.save(tmp_path / "indptr.npy", np.array([0, 3, 2, 4]))
    np.save(tmp_path / "indices.npy", np.array([0, 1, 2, 0]))
    with GraphStorage(tmp_path) as stored:
        for call in (stored.load_indptr, stored.degrees, lambda: stored.spans(np.array([1])), stored.to_csr):
            with pytest.raises(StorageError, match="do not ascend"):
                call()
    np.save(tmp_path / "indptr.npy", np.array([0, 3, 3, 5]))
    with pytest.raises(StorageError, match="go from 0 to 5"):
        GraphStorage(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        GraphStorage(tmp_path / "nothing")


def test_its_life(tmp_path):
    stored = GraphStorage.create(tmp_path / "graph", random_graph())
    with pickle.loads(pickle.dumps(stored)) as again:
        assert np.array_equal(again.neighbors(7), stored.neighbors(7))
    stored.close()
    stored.close()
    assert stored.closed and "closed" in repr(stored)
    with pytest.raises(ValueError, match="is closed"):
        stored.neighbors(1)
    stored = GraphStorage(tmp_path / "graph")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del stored
        gc.collect()
    assert any("unclosed" in str(w.message) for w in caught)


# Lists of edges

def expected_of(edges, weights, n, directed):
    source, target = edges.T
    if not directed:
        source, target, weights = np.r_[source, target], np.r_[target, source], np.r_[weights, weights]
    dense = np.full((n, n), -np.inf, np.float32)
    np.maximum.at(dense, (source, target), weights.astype(np.float32))
    dense[np.isinf(dense)] = 0
    return as_csr(dense)


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_edges_in_any_order(tmp_path, monkeypatch, directed, weighted):
    from gnncy.storage.topology import ingest
    rng = np.random.default_rng(4)
    n, m = 40, 2000
    edges = np.stack([rng.integers(0, n, m), rng.integers(0, n, m)], axis=1)
    edges[:300] = edges[0]  # one edge more often than fits in memory
    weights = rng.choice([-1.0, 0.0, 0.5, 3.0], m) if weighted else np.ones(m)
    expected = expected_of(edges, weights, n, directed)

    def pieces():
        for k in range(0, m, 100):
            ends = edges[k:k + 100].T
            yield (*ends, weights[k:k + 100]) if weighted else tuple(ends)

    for room in (7, 250, 10**6):  # keys that are sorted at a time
        monkeypatch.setattr(ingest, "_SCRATCH", 10**7 - room * (44 if weighted else 8))
        monkeypatch.setattr(ingest, "_LEAST", 1)
        path = tmp_path / f"{room}"
        with GraphStorage.from_edges(path, pieces(), n, directed=directed, memory_limit=10**7) as stored:
            same(stored.to_csr(), expected)
            assert stored.weighted == weighted and stored.verify().ok
    assert sorted(os.listdir(tmp_path)) == ["1000000", "250", "7"]


def test_edges_as_an_array_and_a_file(tmp_path):
    edges = np.random.default_rng(5).integers(0, 50, (1000, 2)).astype(np.int32)
    expected = expected_of(edges, np.ones(1000), int(edges.max()) + 1, False)
    np.save(tmp_path / "edges.npy", edges)
    for given in (edges, tmp_path / "edges.npy", np.load(tmp_path / "edges.npy", mmap_mode="r")):
        with GraphStorage.from_edges(tmp_path / "graph", given, overwrite=True) as stored:
            same(stored.to_csr(), expected)
    with GraphStorage.from_edges(tmp_path / "empty", np.zeros((0, 2), np.int64), 3) as stored:
        assert stored.nnz == 0 and stored.shape == (3, 3)


@pytest.mark.parametrize("edges, n, error, message", [
    ([([0, 3], [1, 1])], 3, IndexError, r"0\.\.2"),
    ([([0], [1], [np.nan])], 3, ValueError, "nan"),
    ([([0], [1], [1e39])], 3, ValueError, "inf"),
    ([([0], [1], [1.0]), ([0], [1])], 3, ValueError, "others have none"),
    ([([0, 1], [1])], 3, ValueError, "of one length"),
    ([np.zeros((2, 3), int)], 3, GraphFormatError, r"shape \(m, 2\)"),
    (np.zeros((2, 2)), 3, GraphFormatError, "integers"),
    ([([0], [1])], None, ValueError, "n_nodes is needed"),
    ([([0], [1])], 2**33, ValueError, r"n_nodes must be in 0\.\.3037000499"),
])
def test_bad_edges(tmp_path, edges, n, error, message):
    with pytest.raises(error, match=message):
        GraphStorage.from_edges(tmp_path / "graph", edges, n)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("weighted", [False, True])
def test_sorting_stays_within_the_limit(tmp_path, weighted):
    n, m, piece = 100_000, 600_000, 50_000
    _memory.map_large()

    def pieces():
        for k in range(0, m, piece):
            rng = np.random.default_rng(k)
            ends = rng.integers(0, n, (2, piece))
            yield (*ends, rng.random(piece)) if weighted else tuple(ends)

    _memory.trim()
    if not _memory.reset_peak():
        pytest.skip("the peak cannot be reset here")
    before = _memory.rss()
    with GraphStorage.from_edges(tmp_path / "graph", pieces(), n, memory_limit="20MB") as stored:
        assert _memory.peak_rss() - before < 20_000_000
        assert stored.nnz > 1.9 * m


def test_sorting_needs_some_memory(tmp_path):
    with pytest.raises(MemoryLimitError, match="at least 14.9 MB"):
        GraphStorage.from_edges(tmp_path / "graph", [([0], [1])], 2, memory_limit="1MB")


@pytest.mark.parametrize("n_nodes", [None, 60])
@pytest.mark.parametrize("name", ["edges.csv", "edges.txt.gz"])
def test_text_by_pieces(tmp_path, monkeypatch, n_nodes, name):
    import gzip

    from gnncy.datasets import ingest
    monkeypatch.setattr(ingest, "_LINES", 7)
    rng = np.random.default_rng(6)
    edges, weights = rng.integers(0, 60, (100, 2)), rng.integers(1, 9, 100)
    edges[0] = 59
    comma = "," if name.endswith(".csv") else " "
    lines = ["# made by nobody", comma.join(["source", "target", "weight"])]
    lines += [comma.join(map(str, (*ends, weight))) for ends, weight in zip(edges, weights, strict=True)]
    with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wt") as file:
        file.write("\n".join(lines))
    with ingest_edges(tmp_path / name, tmp_path / "graph", n_nodes=n_nodes) as stored:
        same(stored.to_csr(), as_csr(read_graph(tmp_path / name)))
    assert sorted(os.listdir(tmp_path)) == sorted([name, "graph"])


def test_text_that_is_none(tmp_path):
    (tmp_path / "edges.csv").write_text("0,1\n1,two\n")
    with pytest.raises(GraphFormatError, match="two nodes, then optionally"):
        ingest_edges(tmp_path / "edges.csv", tmp_path / "graph")
    (tmp_path / "edges.csv").write_text("0,1\n1,-2\n")
    with pytest.raises(IndexError, match="must lie in"):
        ingest_edges(tmp_path / "edges.csv", tmp_path / "graph")
    (tmp_path / "edges.csv").write_text("# nothing\n")
    with ingest_edges(tmp_path / "edges.csv", tmp_path / "graph") as stored:
        assert stored.shape == (0, 0)


# Sampling

@pytest.fixture(scope="module")
def rmat(tmp_path_factory):
    """A graph with hubs, weighted, in memory and on disk."""
    graph = make_rmat(11, 8, n_features=1).adjacency
    weights = np.random.default_rng(0).random(graph.nnz, np.float32) + 0.5
    graph = as_csr(sp.csr_array((weights, graph.indices, graph.indptr), shape=graph.shape))
    folder = tmp_path_factory.mktemp("topology") / "graph"
    GraphStorage.create(folder, graph).close()
    return graph, folder


def batches_of(n, count, size, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(n, size, replace=False) for _ in range(count)]


@pytest.mark.parametrize("fanouts", [(5,), (4, 3), (3, -1), (-1, 2), (2, 2, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_samples_are_those_of_memory(rmat, fanouts, weighted):
    graph, folder = rmat
    memory = NeighborSampler(graph, fanouts, seed=9, weighted=weighted)
    seeds = batches_of(len(graph.indptr) - 1, 12, 40)
    expected = [memory.sample(some, epoch=2, batch=k + 3) for k, some in enumerate(seeds)]
    with GraphStorage(folder, disk=DISK) as stored:
        sampler = StorageSampler(stored, fanouts, seed=9, weighted=weighted)
        for a, b in zip(sampler.sample_many(seeds, epoch=2, first=3), expected, strict=True):
            same_batch(a, b, weighted)
        same_batch(sampler.sample(seeds[4], epoch=2, batch=7), expected[4], weighted)


@pytest.mark.parametrize("piece", [12, 15, 21])  # bits of what is read whole
@pytest.mark.parametrize("disk", [DISK, SLOW])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("prefetch", [False, True])
def test_samples_do_not_depend_on_how_they_are_read(rmat, monkeypatch, piece, disk, direct, prefetch):
    graph, folder = rmat
    monkeypatch.setattr(sweep, "_PIECE_BITS", piece)
    memory = NeighborSampler(graph, (4, 4), seed=1, weighted=True)
    seeds = batches_of(len(graph.indptr) - 1, 30, 20)
    with GraphStorage(folder, direct=direct, disk=disk) as stored:
        for threads, spare in ((1, 0), (2, 2_000_000)):  # bytes above the least: few at a time, or all
            sampler = StorageSampler(stored, (4, 4), seed=1, weighted=True, prefetch=prefetch,
                                     memory_limit=(4 << max(piece, 20)) + 4_000_000 + spare)
            with working_threads(threads):
                for k, batch in enumerate(sampler.sample_many(seeds)):
                    same_batch(batch, memory.sample(seeds[k], batch=k), True)
            assert k == 29
        sampler = StorageSampler(stored, (4, 4), seed=1, weighted=True, prefetch=prefetch, n_jobs=2)
        for k, batch in enumerate(sampler.sample_many(seeds)):
            same_batch(batch, memory.sample(seeds[k], batch=k), True)


def test_entries_that_lie_far_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_PIECE_BITS", 12)
    n = 150_000
    graph = sp.csr_array((np.ones(n, np.float32), np.arange(n)[::-1].copy(), np.arange(n + 1)), shape=(n, n))
    memory = NeighborSampler(graph, (1,))
    with GraphStorage.create(tmp_path / "graph", graph) as stored:
        sampler = StorageSampler(stored, (1,), prefetch=False)
        for seeds in (np.arange(n), np.r_[n - 1, 0:n - 1]):  # of the last piece the first entry is 0 or above 2 * SKIP
            same_batch(sampler.sample(seeds), memory.sample(seeds))


def test_a_file_that_is_cut_short_while_open(rmat, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_PIECE_BITS", 12)
    with GraphStorage.create(tmp_path / "graph", rmat[0]) as stored:
        sampler = StorageSampler(stored, (4, 4))
        os.truncate(tmp_path / "graph" / "indices.npy", 10_000)
        with working_threads(2), pytest.raises(StorageError, match="cut short while open"):
            list(sampler.sample_many(batches_of(2048, 20, 40)))


def test_row_starts_stay_on_disk_where_the_limit_is_small(rmat, monkeypatch):
    from gnncy.storage.topology import sampler as module
    graph, folder = rmat
    monkeypatch.setattr(module, "_SCRATCH", 0)
    monkeypatch.setattr(GraphStorage, "pass_nbytes", 0)
    seeds = batches_of(len(graph.indptr) - 1, 30, 3)
    memory = NeighborSampler(graph, (3, 2), seed=5)
    with GraphStorage(folder, disk=DISK) as stored:
        sampler = StorageSampler(stored, (3, 2), seed=5, memory_limit=16_000, prefetch=False)
        assert stored._arrays.indptr is None
        for k, batch in enumerate(sampler.sample_many(seeds)):
            same_batch(batch, memory.sample(seeds[k], batch=k))
        assert stored._arrays.indptr is None


def test_minibatches_that_turn_out_larger_begin_anew(rmat, monkeypatch):
    from gnncy.storage.topology import sampler as module
    graph, folder = rmat
    monkeypatch.setattr(module, "_SCRATCH", 0)
    monkeypatch.setattr(GraphStorage, "pass_nbytes", 0)
    hubs = np.argsort(-np.diff(graph.indptr))
    seeds = [hubs[-(k + 1):][:1] for k in range(20)] + [hubs[k:k + 1] for k in range(10)]
    memory = NeighborSampler(graph, (-1, 4), seed=5)
    with GraphStorage(folder, disk=DISK) as stored:
        sampler = StorageSampler(stored, (-1, 4), seed=5, memory_limit=100_000, prefetch=False)
        opened = []
        monkeypatch.setattr(module.StorageSampler, "_fitting", lambda self, drafts, ready, fit=module.StorageSampler.
                            _fitting: opened.append((len(drafts), fit(self, drafts, ready))) or opened[-1][1])
        for k, batch in enumerate(sampler.sample_many(seeds)):
            same_batch(batch, memory.sample(seeds[k], batch=k))
        assert k == 29 and any(fits < given for given, fits in opened)


def test_a_pass_serves_many_minibatches(rmat):
    graph, folder = rmat
    seeds = batches_of(len(graph.indptr) - 1, 40, 50)
    with GraphStorage(folder, direct=True, disk=DISK) as stored:
        sampler = StorageSampler(stored, (5, 5), memory_limit="64MB", prefetch=False)
        before = stored.stats.snapshot()
        assert sum(1 for _ in sampler.sample_many(seeds)) == 40
        size = 4 * graph.nnz + 4096
        assert (stored.stats.snapshot() - before).bytes_read <= 3 * size


def test_of_a_hub_only_the_blocks_drawn_from_are_read(tmp_path):
    n = 400_000
    path = tmp_path / "graph"
    GraphStorage.from_edges(path, np.stack([np.zeros(n, int), np.arange(n)], axis=1), directed=True).close()
    with GraphStorage(path, direct=True, disk=SLOW) as stored:
        if not stored.direct:
            pytest.skip("no O_DIRECT here")
        before = stored.stats.snapshot()
        sampler = StorageSampler(stored, (20,), seed=3)
        batches = [sampler.sample([0], batch=k) for k in range(30)]
        read = (stored.stats.snapshot() - before).bytes_read - 8 * n
        assert read < 30 * 21 * 4096
        ends = np.concatenate([batch.nodes[1:] for batch in batches])
        assert len(np.unique(ends // (n // 10))) == 10  # over the whole length of its list


def test_memory_stays_within_the_limit(tmp_path):
    n, degree = 50_000, 40
    rng = np.random.default_rng(0)
    edges = np.stack([np.repeat(np.arange(n), degree), rng.integers(0, n, n * degree)], axis=1)
    GraphStorage.from_edges(tmp_path / "graph", edges, directed=True).close()
    seeds = batches_of(n, 120, 256)
    del edges
    _memory.map_large()
    with GraphStorage(tmp_path / "graph", direct=True, disk=DISK) as stored:
        for prefetch in (False, True):
            sampler = StorageSampler(stored, (10, 10), memory_limit="24MB", prefetch=prefetch)
            for _ in sampler.sample_many(seeds[:30]):
                pass
            _memory.trim()
            if not _memory.reset_peak():
                pytest.skip("the peak cannot be reset here")
            before = _memory.rss()
            for _ in sampler.sample_many(seeds):
                pass
            assert _memory.peak_rss() - before < 28_000_000  # and the reading threads' own buffers


def test_a_limit_too_small_names_the_least(rmat):
    graph, folder = rmat
    with GraphStorage(folder) as stored:
        with pytest.raises(MemoryLimitError, match=r"needs \d+MB; raise the limit") as caught:
            StorageSampler(stored, (-1, -1), memory_limit=7_950_000).sample(np.arange(500))
        least = int(str(caught.value).split(" needs ")[1].split("MB")[0])
        StorageSampler(stored, (-1,), memory_limit=least * 10**6).sample(np.arange(500))


def test_bad_calls(rmat):
    graph, folder = rmat
    with pytest.raises(TypeError, match="must be a GraphStorage"):
        StorageSampler(graph)
    with GraphStorage(folder) as stored:
        with pytest.raises(TypeError, match="fanouts must be a sequence"):
            StorageSampler(stored, 5)
        with pytest.raises(ValueError, match="fanouts must be at least 1"):
            StorageSampler(stored, (0,))
        sampler = StorageSampler(stored, (2,))
        with pytest.raises(ValueError, match="seeds must be distinct, got node 4 twice"):
            sampler.sample([3, 4, 4])
        with pytest.raises(IndexError, match="seeds must lie in"):
            next(sampler.sample_many([[10**6]]))
        assert list(sampler.sample_many([])) == []


def test_seeds_may_come_in_one_array_that_is_filled_anew(rmat):
    graph, folder = rmat
    seeds = batches_of(len(graph.indptr) - 1, 9, 20)
    buffer = np.empty(20, np.int64)

    def filled():
        for some in seeds:
            buffer[:] = some
            yield buffer

    memory = NeighborSampler(graph, (2, 2), seed=4)
    with GraphStorage(folder, disk=DISK) as stored:
        for k, batch in enumerate(StorageSampler(stored, (2, 2), seed=4).sample_many(filled())):
            same_batch(batch, memory.sample(seeds[k], batch=k))


def test_errors_of_the_source_come_through_the_thread(rmat):
    def broken():
        yield np.arange(5)
        raise RuntimeError("no more seeds")

    with GraphStorage(rmat[1]) as stored, pytest.raises(RuntimeError, match="no more seeds"):
        list(StorageSampler(stored, (2,)).sample_many(broken()))


def test_a_loop_that_is_left_ends_the_reading(rmat):
    with GraphStorage(rmat[1], disk=DISK) as stored:
        coming = StorageSampler(stored, (2, 2), memory_limit=8_300_000).sample_many(batches_of(2048, 50, 20))
        next(coming)
        coming.close()
        before = stored.stats.snapshot()
        time.sleep(0.05)
        assert stored.stats.snapshot() == before


# Beyond 2**31

def test_arcs_beyond_int32(tmp_path):
    nnz = 2**31 + 1000
    first = np.array([0, 10, 2**31 - 500, nnz - 3, nnz])  # node 2's list lies on both sides of 2**31
    folder = tmp_path / "graph"
    folder.mkdir()
    np.save(folder / "indptr.npy", first)
    with open(folder / "indices.npy", "wb") as file:
        file.write(npy_header((nnz,), np.dtype("<i4")))
        file.truncate(4096 + 4 * nnz)  # a file of holes: zeros
        for arc, value in ((2**31 - 1, 1), (2**31, 2), (2**31 + 1, 3), (nnz - 1, 2), (nnz - 2, 1)):
            file.seek(4096 + 4 * arc)
            file.write(np.int32(value).tobytes())
    with GraphStorage(folder, disk=DISK) as stored:
        assert stored.index_dtype == np.int64 and stored.nnz == nnz
        arcs = np.array([nnz - 1, 2**31, 5, 2**31 + 1, 2**31 - 1])
        assert stored.read_arcs(arcs).tolist() == [2, 2, 0, 3, 1]
        assert stored.neighbors(3).tolist() == [0, 1, 2]
        for loaded in (True, False):
            def draw(fanout, node, loaded=loaded):
                sampler = StorageSampler(stored, (fanout,), seed=1, memory_limit="400MB")
                if not loaded:
                    sampler._indptr = stored._arrays.indptr = None
                return sampler.sample([node]).blocks[0]

            block = draw(-1, 3)
            assert block.edges.tolist() == [nnz - 3, nnz - 2, nnz - 1] and block.edges.dtype == np.int64
            assert block.indices.tolist() == [1, 2, 3] and block.indices.dtype == np.int64
            block = draw(6, 1)
            # Floyd's draws, computed here.
            degree, key = int(first[2] - first[1]), derive(1, 0, 0, 0)
            stream, chosen = mix64(key ^ mix64(1)), []
            for t in range(6):
                last = degree - 6 + t
                place = (mix64((stream + t) & (2**64 - 1)) >> 32) * (last + 1) >> 32
                chosen.append(last if place in chosen else place)
            assert block.edges.tolist() == [10 + place for place in chosen]


def test_a_pass_over_a_large_file_takes_larger_pieces(tmp_path):
    np.save(tmp_path / "indptr.npy", np.array([0, 2**33]))
    with open(tmp_path / "indices.npy", "wb") as file:
        file.write(npy_header((2**33,), np.dtype("<i4")))
        file.truncate(4096 + 4 * 2**33)
    with GraphStorage(tmp_path, disk=DISK) as stored:
        assert stored.pass_nbytes == 4 * 2**24
        arcs = np.array([2**33 - 1, 0, 2**32 + 5])
        assert stored.read_arcs(arcs).tolist() == [0, 0, 0]
        assert StorageSampler(stored, (3,), memory_limit="2GB").sample([0]).blocks[0].edges.max() > 2**31


def test_manifest_says_what_is_there(tmp_path):
    graph = random_graph()
    GraphStorage.create(tmp_path / "graph", graph).close()
    meta = json.loads((tmp_path / "graph" / "topology.json").read_text())
    assert (meta["format"], meta["version"], meta["n_nodes"], meta["nnz"]) == ("gnncy-topology", 1, 300, graph.nnz)
    assert np.array_equal(np.load(tmp_path / "graph" / "indices.npy"), graph.indices)
    assert np.load(tmp_path / "graph" / "indptr.npy").dtype == np.int64


def test_what_needs_a_graph_in_memory_says_what_to_take(rmat):
    with GraphStorage(rmat[1]) as stored:
        for call in (NeighborSampler, as_csr, lambda graph: GraphLoader(graph, np.zeros((2048, 2), np.float32))):
            with pytest.raises(TypeError, match="got GraphStorage, .* with gnncy.storage.StorageSampler or ColdTierLo"):
                call(stored)


# Together with features on disk

def test_inclusion_probabilities_are_those_of_memory(rmat, monkeypatch):
    graph, folder = make_rmat(9, 8, n_features=1).adjacency, rmat[1].parent / "symmetric"
    with GraphStorage.create(folder, graph) as stored:
        monkeypatch.setattr(stored, "iter_rows", lambda: GraphStorage.iter_rows(stored, 500))
        for fanouts in ((3,), (4, 3), (2, -1, 2)):
            found = stored.inclusion_probabilities(np.arange(100), fanouts, 10)
            assert np.array_equal(found, inclusion_probabilities(graph, np.arange(100), fanouts, 10))
    with GraphStorage(rmat[1]) as stored:
        assert stored.symmetric is False
        with pytest.raises(GraphFormatError, match="need a symmetric graph"):
            stored.inclusion_probabilities([0], (2,), 1)


@pytest.mark.parametrize("plan", ["A", "B", "C", "D"])
def test_a_loader_takes_a_graph_on_disk(tmp_path, plan):
    data = make_rmat(10, 8, n_features=8)
    features = FeatureStorage.from_array(data.features, tmp_path / "features.npy")
    seeds = np.arange(0, 1024, 3)
    options = {"fanouts": (4, 3), "batch_size": 32, "memory_limit": "100MB", "seed": 3, "plan": plan, "disk": DISK}
    with features, GraphStorage.create(tmp_path / "graph", data.adjacency) as stored, \
            ColdTierLoader(features, stored, seeds, **options) as ours, \
            ColdTierLoader(features, data.adjacency, seeds, **options) as theirs:
        for epoch in range(2):
            for a, b in zip(ours.epoch(epoch), theirs.epoch(epoch), strict=True):
                same_batch(a.batch, b.batch)
                assert np.array_equal(a.features, b.features) and a.batch_index == b.batch_index
        last = list(ours.epoch(1, 9))
        assert len(last) == ours.n_batches - 9 and last[-1].batch_index == ours.n_batches - 1


def test_a_loader_says_which_part_of_its_limit_is_for_sampling(tmp_path):
    data = make_sbm(20_000, 3, n_features=4, degree=40.0, seed=0)
    with GraphStorage.create(tmp_path / "graph", data.adjacency) as graph, \
            pytest.raises(MemoryLimitError, match="of memory_limit=40 MB a part of 8 MB is for sampling"):
        ColdTierLoader(data.features, graph, np.arange(20_000), fanouts=(20, 20), batch_size=2000, memory_limit="40MB")
