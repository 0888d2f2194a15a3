"""FeatureStorage: round trips, reads, writes, and what is refused."""
import os
import threading

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gnncy.errors import MemoryLimitError, StorageError
from gnncy.storage import FeatureStorage, IOStatistics, _blocks, features


@pytest.fixture
def small_runs(monkeypatch):
    """Many short runs and calls where there would be few."""
    monkeypatch.setattr(_blocks, "MAX_RUN", 512)
    monkeypatch.setattr(_blocks, "MAX_CALL", 97)
    monkeypatch.setattr(_blocks, "_local", threading.local())


# Round trips

@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 3, 128, 1025])
def test_random_ids_come_back_equal(path, dtype, ordered, dim):
    rng = np.random.default_rng(dim)
    n = 200
    x = rng.standard_normal((n, dim)).astype(dtype)
    order = rng.permutation(n) if ordered else None
    wide = x.astype(np.float64 if dtype is np.float64 else np.float32)
    with FeatureStorage.from_array(x, path, order=order, chunk_rows=33) as store:
        assert store.dtype == wide.dtype and store.file_dtype == dtype
        assert store.shape == (n, dim) and store.nbytes == x.nbytes and len(store) == n and store.ndim == 2
        for _ in range(20):
            ids = rng.integers(0, n, rng.integers(0, 2 * n))
            np.testing.assert_array_equal(store.read_batch(ids), wide[ids])
        np.testing.assert_array_equal(store[:], wide)
        np.testing.assert_array_equal(np.asarray(store), wide)
        np.testing.assert_array_equal(store.read_features(17), wide[17])
        stored = wide if order is None else wide[order]
        np.testing.assert_array_equal(np.concatenate(list(store.iter_rows(37, drop_cache=True))), stored)
        np.testing.assert_array_equal(store.read_rows(5, 50), stored[5:50])
        if ordered:
            np.testing.assert_array_equal(store.order, order)
        else:
            assert store.order is None
    for mmap_mode in (None, "r"):
        np.testing.assert_array_equal(np.load(path, mmap_mode=mmap_mode), x if order is None else x[order])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_ids_in_any_order(tmp_path_factory, data):
    n, dim = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 40))
    path = tmp_path_factory.mktemp("any") / "x.npy"
    x = np.arange(n * dim, dtype=np.float32).reshape(n, dim)
    order = data.draw(st.none() | st.permutations(range(n)))
    ids = data.draw(st.lists(st.integers(0, n - 1), max_size=100))
    with FeatureStorage.from_array(x, path, order=order) as store:
        np.testing.assert_array_equal(store.read_batch(ids), x[ids] if ids else x[:0])


def test_short_calls_and_short_runs_are_put_together(path, x, small_runs):
    ids = np.random.default_rng(1).integers(0, 300, 500)
    with FeatureStorage.from_array(x, path, order=np.arange(300)[::-1]) as store:
        np.testing.assert_array_equal(store.read_batch(ids), x[ids])
        np.testing.assert_array_equal(store.read_rows(0, 300), x[::-1])
        assert store.stats.operations > store.stats.bytes_read // 97


def test_the_header_fills_a_page_and_rows_are_packed(path, x):
    FeatureStorage.from_array(x, path).close()
    assert path.stat().st_size == 4096 + x.nbytes
    np.testing.assert_array_equal(np.frombuffer(path.read_bytes()[4096:], np.float32).reshape(x.shape), x)


def test_the_same_rows_make_the_same_file(tmp_path, x):
    files = []
    for name in "ab":
        FeatureStorage.from_array(x, tmp_path / name, order=np.arange(300)[::-1], chunk_rows=len(files) + 7).close()
        files.append([(tmp_path / (name + end)).read_bytes() for end in ("", ".order.npy")])
    assert files[0] == files[1]


@pytest.mark.parametrize("source", ["memmap", "big-endian", "fortran", "read-only", "list", "int", "storage",
                                    "strided"])
def test_sources_of_from_array(path, tmp_path, x, source):
    np.save(tmp_path / "plain.npy", x)
    want, given_array = x, x
    opened = None
    if source == "memmap":
        given_array = np.load(tmp_path / "plain.npy", mmap_mode="r")
    elif source == "big-endian":
        given_array = x.astype(">f4")
    elif source == "fortran":
        given_array = np.asfortranarray(x)
    elif source == "read-only":
        given_array = x.copy()
        given_array.flags.writeable = False
    elif source == "list":
        given_array = x.astype(np.float64).tolist()
        want = x.astype(np.float64)
    elif source == "int":
        given_array = np.arange(20).reshape(10, 2)
        want = given_array.astype(np.float32)
    elif source == "strided":
        given_array = np.repeat(x, 2, axis=0)[::2]
    else:
        given_array = opened = FeatureStorage.from_array(x, tmp_path / "other.npy", order=np.arange(300)[::-1])
    with FeatureStorage.from_array(given_array, path) as store:
        np.testing.assert_array_equal(store[:], want)
        assert store.dtype == want.dtype and store.finite_checked
    if opened is not None:
        opened.close()


def test_from_blocks_streams_and_counts(path, x):
    order = np.random.default_rng(2).permutation(300)
    with FeatureStorage.from_blocks(path, x.shape, (x[order][i:i + 50] for i in range(0, 300, 50)),
                                    order=order) as store:
        np.testing.assert_array_equal(store[:], x)
    for blocks in ([x[:100]], [x, x[:1]]):
        with pytest.raises(ValueError, match="shape .* needs 300"):
            FeatureStorage.from_blocks(path.with_name("other.npy"), x.shape, blocks)
    assert sorted(f.name for f in path.parent.iterdir()) == ["features.npy", "features.npy.crc32.npy",
                                                             "features.npy.json", "features.npy.order.npy"]


def test_a_failed_source_leaves_nothing(tmp_path, x):
    def blocks():
        yield x[:10]
        raise RuntimeError("the source broke")
    with pytest.raises(RuntimeError, match="source broke"):
        FeatureStorage.from_blocks(tmp_path / "x.npy", x.shape, blocks())
    assert list(tmp_path.iterdir()) == []


def test_a_plain_npy_file_opens_read_only(path, x):
    np.save(path, x)
    with FeatureStorage.open(path) as store:
        np.testing.assert_array_equal(store.read_batch([5, 3, 5]), x[[5, 3, 5]])
        assert not store.finite_checked
        with pytest.raises(StorageError, match="read-only"):
            store.write_features([0], x[:1])
    with pytest.raises(StorageError, match="plain .npy file without its sidecar"):
        FeatureStorage.open(path, "r+")
    np.save(path, x.astype(">f8"))
    with FeatureStorage.open(path) as store:
        np.testing.assert_array_equal(store[:], x.astype(np.float64))


# Reading

def test_indexing_is_numpys(path, x):
    mask = np.random.default_rng(3).random(300) < 0.3
    for order in (None, np.arange(300)[::-1]):
        with FeatureStorage.from_array(x, path, order=order, overwrite=True) as store:
            for key in (0, -1, np.int64(4), slice(None), slice(3, 40), slice(40, 3), slice(None, None, -7),
                        slice(-5, None), [1, -2, 1], np.array([], np.int64), mask, np.array([2, 3], np.uint8)):
                np.testing.assert_array_equal(store[key], x[key])
            np.testing.assert_array_equal(store.take([4, 2]), x[[4, 2]])
            for key in (300, -301):
                with pytest.raises(IndexError, match="out of range"):
                    store[key]
            with pytest.raises(TypeError, match="rows only"):
                store[1, 2]
            with pytest.raises(ValueError, match="mask must have shape"):
                store[mask[:-1]]


def test_ids_and_out_are_checked(path, x):
    with FeatureStorage.from_array(x, path) as store:
        for ids in ([300], [-1], [0, 1 << 40]):
            with pytest.raises(IndexError, match=r"ids must lie in 0\.\.299"):
                store.read_batch(ids)
        with pytest.raises(TypeError, match="ids must be integers"):
            store.read_batch([0.5])
        with pytest.raises(ValueError, match="1-dimensional"):
            store.read_batch([[0]])
        for start, stop in ((-1, 3), (0, 301), (5, 4)):
            with pytest.raises(ValueError, match="must be in"):
                store.read_rows(start, stop)
        out = np.empty((2, 7), np.float32)
        assert store.read_batch([8, 1], out) is out and (out == x[[8, 1]]).all()
        assert store.read_rows(3, 5, out) is out and (out == x[3:5]).all()
        locked = out.copy()
        locked.flags.writeable = False
        for bad in (np.empty((2, 8), np.float32), np.empty((2, 7)), np.empty((7, 2), np.float32).T, locked,
                    [[0.0] * 7] * 2):
            with pytest.raises(ValueError, match="out must be"):
                store.read_batch([8, 1], bad)


def test_array_conversion(path, x, monkeypatch):
    with FeatureStorage.from_array(x, path) as store:
        assert np.asarray(store, dtype=np.float64).dtype == np.float64
        with pytest.raises(ValueError, match="always a copy"):
            store.__array__(copy=False)
        monkeypatch.setattr(features, "available", lambda: 100)
        with pytest.raises(MemoryLimitError, match="read_batch or iter_rows"):
            np.asarray(store)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(path, threads, small_runs):
    x = np.random.default_rng(4).standard_normal((20_000, 16)).astype(np.float32)
    ids = np.random.default_rng(5).integers(0, 20_000, 30_000)
    with FeatureStorage.from_array(x, path) as store:
        want = store.read_batch(ids)
    with FeatureStorage(path, io_threads=threads) as store:
        assert store.read_batch(ids).tobytes() == want.tobytes() == x[ids].tobytes()


def test_reads_from_many_threads(path, x):
    errors = []
    with FeatureStorage.from_array(x, path) as store:
        def read(seed):
            rng = np.random.default_rng(seed)
            for _ in range(50):
                ids = rng.integers(0, 300, 40)
                if not np.array_equal(store.read_batch(ids), x[ids]):
                    errors.append(ids)
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert store.stats.bytes_requested == 6 * 50 * 40 * 28


def test_statistics(path, x):
    with FeatureStorage.from_array(x, path) as store:
        before = store.stats.snapshot()
        store.read_batch([1, 2, 3, 3])
        spent = store.stats - before
        assert (spent.bytes_requested, spent.bytes_read, spent.operations) == (4 * 28, 3 * 28, 1)
        assert spent.seconds > 0 and before == IOStatistics() and "1 operations" in repr(spent)


# Writing

def test_create_write_read(path):
    rng = np.random.default_rng(6)
    for order in (None, rng.permutation(50)):
        x = np.zeros((50, 3), np.float32)
        with FeatureStorage.create(path, 50, 3, order=order, overwrite=True) as store:
            assert (store[:] == 0).all() and store.mode == "r+"
            for _ in range(20):
                ids = rng.choice(50, rng.integers(0, 50), replace=False)
                x[ids] = rng.standard_normal((len(ids), 3))
                store.write_features(ids, x[ids])
                np.testing.assert_array_equal(store.read_batch(ids), x[ids])
            store.write_features(4, [1, 2, 3])
            x[4] = 1, 2, 3
            assert store.stats.bytes_written > 0
            store.flush()
        with FeatureStorage.open(path) as store:
            np.testing.assert_array_equal(store[:], x)


def test_flush_syncs_what_was_written(path, syncs):
    with FeatureStorage.create(path, 5, 2) as store:
        syncs.clear()
        store.flush()
        assert syncs == []
        store.write_features(1, [3, 4])
        store.flush()
        store.flush()
        assert syncs.count(store._opened().fd) == 1
        before = len(syncs)
        store.write_features(1, [5, 6])
    assert len(syncs) > before + 1  # closing syncs too


def test_a_file_is_synced_before_it_appears(path, x, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)))
    replace = os.replace

    def checked_replace(old, new):
        assert str(old) in synced
        synced.append(str(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", checked_replace)
    FeatureStorage.from_array(x, path, order=np.arange(300)[::-1]).close()
    assert str(path.parent) in synced


def test_of_repeated_ids_the_last_row_stays(path, small_runs):
    ids = np.random.default_rng(7).integers(0, 40, 400)
    rows = np.random.default_rng(8).standard_normal((400, 30)).astype(np.float32)
    want = np.zeros((40, 30), np.float32)
    want[ids] = rows
    with FeatureStorage.create(path, 40, 30) as store:
        store.write_features(ids, rows)
        np.testing.assert_array_equal(store[:], want)


def test_what_is_not_written(path, x):
    with FeatureStorage.create(path, 300, 7) as store:
        for ids, rows, error, text in (
                ([0, 1], x[:1], ValueError, "one row for each of the 2 ids"),
                ([0], x[:1, :6], ValueError, r"shape \(n, 7\)"),
                ([300], x[:1], IndexError, r"0\.\.299"), (0, [np.nan] * 7, ValueError, "inf or nan"),
                (0, [1e300] * 7, ValueError, "as float32, contains inf"), (0, [1j] * 7, TypeError, "real numbers")):
            with pytest.raises(error, match=text):
                store.write_features(ids, rows)
        assert (store[:] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(path, x, value):
    x[222, 3] = value
    with pytest.raises(ValueError, match="block at row 200.*inf or nan.*22, 3"):
        FeatureStorage.from_array(x, path, chunk_rows=100)
    assert list(path.parent.iterdir()) == []


def test_bad_arguments(path, x):
    for n, dim in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            FeatureStorage.create(path, n, dim)
    for dtype in (np.int32, np.complex64, np.longdouble):
        with pytest.raises(ValueError, match="float16, float32 or float64"):
            FeatureStorage.create(path, 3, 3, dtype=dtype)
    with pytest.raises(ValueError, match="more than a file can hold"):
        FeatureStorage.create(path, 1 << 60, 1 << 10)
    for array in (x[0], x[:0], x[None]):
        with pytest.raises(ValueError, match="at least one row"):
            FeatureStorage.from_array(array, path)
    with pytest.raises(TypeError, match="SparseFeatureStorage"):
        FeatureStorage.from_array(sp.csr_array(x), path)
    with pytest.raises(TypeError, match="real numbers"):
        FeatureStorage.from_array(x.astype(str), path)
    for order in ([0] * 300, np.arange(299), np.arange(301) % 300):
        with pytest.raises(ValueError, match="each of 0..299 once"):
            FeatureStorage.from_array(x, path, order=order)
    with pytest.raises(ValueError, match="mode must be one of"):
        FeatureStorage(path, "w")
    with pytest.raises(ValueError, match="chunk_rows"):
        FeatureStorage.from_array(x, path, chunk_rows=0)
    assert list(path.parent.iterdir()) == []


def test_an_existing_file_is_kept_unless_asked(path, x):
    FeatureStorage.from_array(x, path, order=np.arange(300)[::-1]).close()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        FeatureStorage.create(path, 3, 3)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        FeatureStorage.from_array(x, path)
    with FeatureStorage.open(path) as store:
        np.testing.assert_array_equal(store[:], x)
    with FeatureStorage.from_array(x[:10], path, overwrite=True) as store:
        np.testing.assert_array_equal(store[:], x[:10])
    assert not path.with_name("features.npy.order.npy").exists()
