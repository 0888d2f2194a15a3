import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.sparse import csr_array

from gnncy._kernels.graph import generate as kernel
from gnncy._threads import working_threads
from gnncy.datasets import make_rmat, make_sbm, open_graph, read_graph, write_rmat, write_sbm
from gnncy.errors import GraphFormatError, MemoryLimitError
from gnncy.storage.topology.sorting import distinct


def is_simple(adjacency):
    adjacency = csr_array((adjacency.data, adjacency.indices, adjacency.indptr), shape=adjacency.shape)
    assert adjacency.has_canonical_format  # looks, as the matrix is new
    assert (adjacency != adjacency.T).nnz == 0
    assert not adjacency.diagonal().any()
    assert (adjacency.data == 1).all()
    return True


def is_mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


def same(a, b):
    for name in ("indptr", "indices", "data"):
        one, two = getattr(a.adjacency, name), getattr(b.adjacency, name)
        assert one.dtype == two.dtype and np.array_equal(one, two)
    assert np.array_equal(np.asarray(a.features[np.arange(a.n_nodes)]), np.asarray(b.features[np.arange(a.n_nodes)]))
    assert np.array_equal(a.labels, b.labels)
    assert all(np.array_equal(one, two) for one, two in zip(a.split, b.split, strict=True))
    assert a.class_names == b.class_names and a.name == b.name
    return True


# Kernels

@pytest.mark.parametrize("n_nodes, n_classes", [(2, 1), (7, 3), (1000, 7), (1000, 1000)])
def test_sbm_edges_stay_in_range_and_follow_the_classes(n_nodes, n_classes):
    source, target = np.empty((2, 20_000), np.int64)
    kernel.sbm(1, 0, n_nodes, n_classes, round(0.75 * 2**32), source, target)
    for ids in (source, target):
        assert ids.min() >= 0 and ids.max() < n_nodes
        assert len(np.unique(ids)) == n_nodes
    expected = 0.75 if n_classes > 1 else 1
    assert abs((source % n_classes == target % n_classes).mean() - expected) < 0.02


def test_rmat_edges_follow_the_quadrants_at_every_level():
    source, target = np.empty((2, 100_000), np.int64)
    kernel.rmat(1, 0, 5, *(round(p * 2**32) for p in (0.5, 0.7, 0.9)), source, target)
    assert source.max() == target.max() == 31
    for level in range(5):
        quadrant = 2 * (source >> level & 1) + (target >> level & 1)
        assert np.allclose(np.bincount(quadrant) / len(source), [0.5, 0.2, 0.2, 0.1], atol=0.01)


@pytest.mark.parametrize("draw, arguments", [
    (kernel.sbm, (100, 4, 2**31)), (kernel.rmat, (9, 2**31, 2**31 + 2**30, 2**32 - 2**29))])
def test_an_edge_depends_on_its_number_alone(draw, arguments):
    whole, part = np.empty((2, 1000), np.int64), np.empty((2, 300), np.int64)
    draw(7, 0, *arguments, *whole)
    draw(7, 500, *arguments, *part)
    assert np.array_equal(whole[:, 500:800], part)
    draw(8, 500, *arguments, *part)
    assert not np.array_equal(whole[:, 500:800], part)


# Sorting

@pytest.mark.parametrize("capacity", [1, 3, 50, 1000])
@pytest.mark.parametrize("high", [1, 2, 40, 10**12])
def test_distinct_sorts_within_any_capacity(tmp_path, capacity, high):
    rng = np.random.default_rng(capacity)
    chunks = [rng.integers(0, high, size) for size in (100, 0, 1, 250)]
    chunks.append(np.full(60, high - 1))  # one key more often than the capacity
    expected = np.unique(np.concatenate(chunks))
    pieces = list(distinct(((c.copy(), None) for c in chunks), 411, 0, high, capacity, tmp_path))
    assert np.array_equal(np.concatenate([keys for keys, _ in pieces]), expected)
    assert not list(tmp_path.iterdir())


def test_distinct_of_nothing(tmp_path):
    assert not sum(len(keys) for keys, _ in distinct(iter([]), 0, 0, 10, 5, tmp_path))
    assert not sum(len(keys) for keys, _ in distinct(iter([]), 10, 0, 10, 5, tmp_path))


# In memory

def test_sbm_has_the_degree_and_homophily_asked_for():
    data = make_sbm(5000, 5, degree=12, homophily=0.7, n_features=4)
    assert is_simple(data.adjacency)
    assert data.adjacency.dtype == np.float32 and data.adjacency.indices.dtype == np.int32
    degree = np.diff(data.adjacency.indptr)
    assert abs(degree.mean() - 12) < 0.2
    same_class = np.repeat(data.labels, degree) == data.labels[data.adjacency.indices]
    assert abs(same_class.mean() - 0.7) < 0.01
    assert np.bincount(data.labels).tolist() == [1000] * 5
    assert [len(part) for part in data.split] == [500, 500, 4000]
    assert data.node_names is None and data.feature_names is None


def test_features_are_class_centres_and_noise():
    data = make_sbm(6000, 3, n_features=8, feature_noise=2.0)
    assert data.features.dtype == np.float32
    for label in range(3):
        rows = data.features[data.labels == label]
        assert np.allclose(rows.std(axis=0), 2.0, rtol=0.1)
    quiet = make_sbm(6000, 3, n_features=8, feature_noise=0)
    assert len(np.unique(quiet.features, axis=0)) == 3
    assert np.allclose(rows.mean(axis=0), quiet.features[2], atol=0.2)


def test_rmat_degrees_have_a_heavy_tail_and_ids_tell_nothing():
    data = make_rmat(12, n_features=4, n_classes=5)
    assert is_simple(data.adjacency) and data.n_nodes == 4096
    degree = np.diff(data.adjacency.indptr)
    assert degree.max() > 20 * degree.mean()
    halves = degree[:2048].sum() / degree.sum()
    assert 0.3 < halves < 0.7
    assert np.bincount(data.labels).min() >= 819


def test_rmat_classes_follow_the_diagonal():
    data = make_rmat(11, 8, probabilities=(0.45, 0.05, 0.05, 0.45), n_classes=2, n_features=2)
    same_class = np.repeat(data.labels, np.diff(data.adjacency.indptr)) == data.labels[data.adjacency.indices]
    assert same_class.mean() > 0.8


@pytest.mark.parametrize("make, arguments", [(make_sbm, (3000, 4)), (make_rmat, (11, 8))])
def test_seeds_and_threads(make, arguments):
    first = make(*arguments, n_features=8)
    with working_threads(2):
        assert same(make(*arguments, n_features=8), first)
    other = make(*arguments, n_features=8, seed=1)
    assert not np.array_equal(other.features, first.features)
    assert other.n_edges != first.n_edges


def test_global_random_state_is_left_alone():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make_sbm(100)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_pinned_bits():
    # Streams and kernels are the same on every machine; a change of these numbers breaks users' references.
    assert make_sbm(1000, 4).n_edges == 4910
    assert make_rmat(10).adjacency.indices[:5].tolist() == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("n_nodes, n_classes", [(2, 1), (2, 2), (3, 2)])
def test_smallest_graphs(n_nodes, n_classes):
    data = make_sbm(n_nodes, n_classes, degree=1, n_features=1)
    assert data.n_nodes == n_nodes and is_simple(data.adjacency)
    assert make_sbm(n_nodes, n_classes, degree=0).n_edges == 0
    assert make_rmat(1, 1, n_classes=1, n_features=1).n_nodes == 2


@pytest.mark.parametrize("arguments, error, message", [
    ({"n_nodes": 1}, ValueError, "n_nodes must be in 2"),
    ({"n_nodes": 2.5}, TypeError, "n_nodes must be an integer"),
    ({"n_classes": 0}, ValueError, "n_classes must be in 1..100"),
    ({"degree": 100}, ValueError, "degree must be in 0..99"),
    ({"homophily": 1.1}, ValueError, "homophily must be in 0..1"),
    ({"n_features": 0}, ValueError, "n_features must be at least 1"),
    ({"feature_noise": -1}, ValueError, "feature_noise must be at least 0"),
    ({"seed": -1}, ValueError, "must be non-negative"),
])
def test_sbm_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        make_sbm(**{"n_nodes": 100, **arguments})


@pytest.mark.parametrize("arguments, message", [
    ({"scale": 32}, "scale must be in 1..31"),
    ({"probabilities": (0.5, 0.5)}, "four numbers"),
    ({"probabilities": (0.5, 0.5, 0.5, 0.5)}, "must sum to 1"),
    ({"n_classes": 17}, "n_classes must be in 1..16"),
])
def test_rmat_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_rmat(**{"scale": 4, **arguments})


# On disk

@pytest.mark.parametrize("limit", ["9.7MB", "256MB"])  # the first spills
@pytest.mark.parametrize("make, write, arguments", [
    (make_sbm, write_sbm, (20_001, 7)), (make_rmat, write_rmat, (14, 8))])
def test_written_graph_is_the_one_in_memory(tmp_path, make, write, arguments, limit):
    write(tmp_path / "g", *arguments, n_features=10, seed=5, memory_limit=limit)
    data = open_graph(tmp_path / "g")
    assert same(make(*arguments, n_features=10, seed=5), data)
    assert is_mapped(data.adjacency.indices) and is_mapped(data.adjacency.data)
    data.features.close()
    assert sorted(p.name for p in (tmp_path / "g").iterdir() if not p.name.startswith("features")) == [
        "data.npy", "indices.npy", "indptr.npy", "labels.npy", "meta.json", "split.npy"]
    assert np.load(tmp_path / "g" / "features.npy", mmap_mode="r").shape == data.features.shape
    assert is_simple(read_graph(tmp_path / "g").copy())


def test_graph_without_edges(tmp_path):
    write_sbm(tmp_path, 10, 2, degree=0, n_features=2)
    data = open_graph(tmp_path)
    assert data.n_edges == 0 and data.features.shape == (10, 2)
    data.features.close()


def test_memory_stays_within_the_limit(tmp_path):
    # 4.2 million arcs are 34 MB as keys; scipy and numpy are loaded before the count begins.
    code = f"""
from gnncy import _memory, datasets, storage
datasets.write_sbm({str(tmp_path / 'warm')!r}, 50, 2, n_features=2)
_memory.reset_peak()
start = _memory.rss()
datasets.write_rmat({str(tmp_path / 'g')!r}, 17, 16, n_features=16, memory_limit="16MB")
print((_memory.peak_rss() - start) / 1e6)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 16


def test_limit_too_small_names_the_least(tmp_path):
    with pytest.raises(MemoryLimitError, match=r"10 KB is too small .* at least (\S+ MB)") as caught:
        write_sbm(tmp_path, 1000, memory_limit="10KB")
    least = str(caught.value).split("at least ")[1].split(" are")[0]
    write_sbm(tmp_path, 1000, n_features=128, memory_limit=float(least.split()[0]) * 1.02e6)


def test_whole_folder_is_kept_and_unfinished_one_written_over(tmp_path):
    write_sbm(tmp_path, 50, 2, n_features=2)
    with pytest.raises(FileExistsError, match="holds a graph already"):
        write_sbm(tmp_path, 60, 2, n_features=2)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(GraphFormatError, match="cut short"):
        open_graph(tmp_path)
    write_sbm(tmp_path, 60, 2, n_features=2)
    data = open_graph(tmp_path)
    assert data.n_nodes == 60
    data.features.close()


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_graph(tmp_path / "missing")
    write_sbm(tmp_path, 50, 2, n_features=2)
    meta = tmp_path / "meta.json"
    good = meta.read_text()
    for text, message in (("{", "is damaged"), ("{}", "does not describe a graph folder"),
                          (json.dumps(json.loads(good) | {"version": 2}), "update gnncy"),
                          (json.dumps(json.loads(good) | {"n_nodes": 51}), r"indptr.npy must have shape \(52,\)"),
                          (json.dumps(json.loads(good) | {"n_edges": 1}), "2 entries were expected")):
        meta.write_text(text)
        with pytest.raises(GraphFormatError, match=message):
            open_graph(tmp_path)
    meta.write_text(good)
    indices = tmp_path / "indices.npy"
    indices.write_bytes(indices.read_bytes()[:-8])
    with pytest.raises(GraphFormatError, match="indices.npy is damaged or truncated"):
        open_graph(tmp_path)
