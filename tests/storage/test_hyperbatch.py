"""HyperbatchIterator: the same minibatches whatever the buffers, and no thread left behind."""
import gc
import os
import threading
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gnncy._threads import current_threads, working_threads
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.storage import (
    AdaptiveHotset,
    ArrayStorage,
    FeatureStorage,
    HyperbatchConfig,
    HyperbatchIterator,
    SparseFeatureStorage,
    as_storage,
)

N, DIM = 500, 6
ROW = DIM * 4 + 8 + 48 + 24  # what a buffer takes for a row


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    left = [t for t in set(threading.enumerate()) - before if t.name == "gnncy-prefetch"]
    if left:
        gc.collect()
        assert not [t for t in left if t.is_alive()]


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


@pytest.fixture
def store(x, tmp_path):
    with FeatureStorage.from_array(x, tmp_path / "x.npy", order=np.random.default_rng(1).permutation(N)) as store:
        yield store


def minibatches(count=20, size=40, seed=2):
    rng = np.random.default_rng(seed)
    return [rng.zipf(1.3, rng.integers(0, size)) % N for _ in range(count)]


def loader_threads():
    return [t for t in threading.enumerate() if t.name == "gnncy-prefetch"]


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("buffers", [1, 2, 3])
@pytest.mark.parametrize("rows", [40, 100, 10_000])
@pytest.mark.parametrize("capacity", [None, 0, 3, 60])
def test_the_same_rows_whatever_the_buffers(store, x, prefetch, buffers, rows, capacity):
    hotset = None if capacity is None else AdaptiveHotset(capacity, DIM)
    batches = minibatches()
    loader = HyperbatchIterator(store, batches, buffer_bytes=rows * ROW * buffers, num_buffers=buffers,
                                prefetch=prefetch,
                                hotset=hotset)
    for _ in range(2):
        results = list(loader)
        assert [r.batch_index for r in results] == list(range(len(batches)))
        for result, ids in zip(results, batches, strict=True):
            assert result.batch is ids
            np.testing.assert_array_equal(result.node_ids, ids)
            assert result.features.tobytes() == x[ids].tobytes() and result.features.dtype == np.float32
        stats = loader.statistics
        assert stats.minibatches == len(batches) and stats.rows_used == sum(map(len, batches))
        assert stats.hyperbatches == 1 if rows == 10_000 else stats.hyperbatches > 1
        assert stats.rows_read == stats.lookups - stats.hits if hotset else stats.rows_read <= stats.rows_used
        assert stats.bytes_read >= stats.rows_read and stats.wait_seconds > 0 and stats.read_seconds > 0
    if capacity == 60:
        assert stats.hit_rate > 0.1 and stats.hit_rate == hotset.hit_rate


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_batches(data):
    x = np.arange(40, dtype=np.float64).reshape(20, 2)
    batches = data.draw(st.lists(st.lists(st.integers(0, 19), max_size=10), max_size=12))
    hotset = AdaptiveHotset(data.draw(st.integers(0, 5)), 2, dtype=np.float64) if data.draw(st.booleans()) else None
    loader = HyperbatchIterator(x, batches, buffer_bytes=(16 + 80) * data.draw(st.integers(20, 50)), hotset=hotset,
                                prefetch=data.draw(st.booleans()), max_batches=data.draw(st.none() | st.integers(1, 4)))
    for result, ids in zip(loader, batches, strict=True):
        np.testing.assert_array_equal(result.features, x[np.array(ids, np.int64)])


def test_minibatches_share_one_read(store):
    ids = np.arange(100)
    loader = HyperbatchIterator(store, [ids, ids[::-1], ids], buffer_bytes="1MB")
    assert len(list(loader)) == 3
    assert loader.statistics.rows_read == 100 and loader.statistics.rows_used == 300
    loader = HyperbatchIterator(store, [ids] * 5, buffer_bytes="1MB", max_batches=2)
    assert len(list(loader)) == 5 and loader.statistics.hyperbatches == 3


def test_objects_with_nodes_are_passed_through(x):
    @dataclass
    class Sample:
        nodes: np.ndarray
        label: str
    samples = [Sample(np.array([3, 1]), "a"), Sample(np.array([], np.int64), "b")]
    results = list(HyperbatchIterator(x, iter(samples), buffer_bytes="1MB"))
    assert [r.batch for r in results] == samples and results[1].features.shape == (0, DIM)


def test_features_are_the_callers_to_keep(x):
    batches = minibatches()
    kept = []
    for result in HyperbatchIterator(x, batches, buffer_bytes=80 * ROW):
        kept.append(result.features.copy())
        result.features[:] = -1
    for got, ids in zip(kept, batches, strict=True):
        np.testing.assert_array_equal(got, x[ids])


@pytest.mark.parametrize("prefetch", [False, True])
def test_memory_stays_within_the_buffers(tmp_path, prefetch):
    rng = np.random.default_rng(4)
    FeatureStorage.from_array(rng.random((20_000, 128), dtype=np.float32), tmp_path / "x.npy").close()
    batches = [rng.integers(0, 20_000, 500) for _ in range(60)]
    buffers, copies, reading = 3_000_000, 2 * 500 * 512, 1 << 20
    with FeatureStorage(tmp_path / "x.npy") as store:
        tracemalloc.start()
        try:
            loader = HyperbatchIterator(store, batches, buffer_bytes=buffers, prefetch=prefetch)
            for _ in range(2):
                assert sum(len(result.node_ids) for result in loader) == 30_000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert loader.statistics.bytes_read > 2 * buffers
    assert peak < buffers + copies + reading + 300_000


def test_a_minibatch_that_does_not_fit_names_what_would(x):
    ids = np.array([5, 6, 7, 7, 7, 8])
    for prefetch in (False, True):
        loader = HyperbatchIterator(x, [ids[:1], ids], buffer_bytes=3 * ROW * 2, prefetch=prefetch)
        results = iter(loader)
        assert next(results).batch_index == 0
        with pytest.raises(MemoryLimitError, match=f"minibatch 1 has 4 distinct rows.*at least {4 * ROW * 2} "):
            next(results)
        assert len(list(HyperbatchIterator(x, [ids[:1], ids], buffer_bytes=4 * ROW * 2, prefetch=prefetch))) == 2


def test_reading_overlaps_with_the_consumer(x):
    class Slow(ArrayStorage):
        def read_batch(self, ids, out=None):
            time.sleep(0.03)
            return super().read_batch(ids, out)

    seconds = {}
    for prefetch in (False, True):
        loader = HyperbatchIterator(Slow(x), [np.arange(40)] * 8, buffer_bytes="1MB", prefetch=prefetch, max_batches=1)
        for _ in loader:
            time.sleep(0.03)
        seconds[prefetch] = loader.statistics.wait_seconds
        assert loader.statistics.read_seconds > 8 * 0.03
    assert seconds[False] > 8 * 0.03 and seconds[True] < 0.6 * seconds[False]


def test_at_most_as_many_hyperbatches_as_buffers_are_read_ahead(x):
    drawn = []

    def source():
        for i in range(20):
            drawn.append(i)
            yield np.arange(5)

    loader = HyperbatchIterator(x, source(), buffer_bytes="1MB", num_buffers=3, max_batches=1)
    results = iter(loader)
    next(results)
    time.sleep(0.05)
    assert len(drawn) == 3 and len(loader._arenas) == 3
    assert len(HyperbatchIterator(x, [], buffer_bytes="1MB", num_buffers=3, prefetch=False)._arenas) == 1
    loader.close()


@pytest.mark.parametrize("prefetch", [False, True])
def test_errors_of_the_source_come_after_the_minibatches_before_them(x, prefetch):
    def source():
        yield np.arange(3)
        yield np.arange(4)
        raise KeyError("the sampler broke")
    loader = HyperbatchIterator(x, source(), buffer_bytes="1MB", prefetch=prefetch, max_batches=1)
    results = iter(loader)
    assert [len(next(results).node_ids) for _ in range(2)] == [3, 4]
    with pytest.raises(KeyError, match="sampler broke"):
        next(results)
    assert not loader_threads()


@pytest.mark.parametrize("prefetch", [False, True])
def test_errors_of_the_storage_are_raised(store, prefetch):
    loader = HyperbatchIterator(store, [np.arange(N)] * 3, buffer_bytes="1MB", prefetch=prefetch)
    os.truncate(store.path, 4096 + 400)
    with pytest.raises(StorageError, match="cut short"):
        list(loader)
    assert not loader_threads()


@pytest.mark.parametrize("ids, error, text", [
    ([0, N], IndexError, f"node ids of minibatch 1 must lie in 0..{N - 1}"), ([-1], IndexError, "minibatch 1"),
    ([0.5], TypeError, "must be integers"), ([[1]], ValueError, "1-dimensional")])
def test_bad_ids_are_named(x, ids, error, text):
    with pytest.raises(error, match=text):
        list(HyperbatchIterator(x, [[1], ids], buffer_bytes="1MB"))


def test_leaving_early_leaves_no_thread(x):
    def endless():
        while True:
            yield np.arange(10)

    loader = HyperbatchIterator(x, endless(), buffer_bytes="1MB", max_batches=2)
    for _ in loader:
        assert len(loader_threads()) == 1
        break
    gc.collect()
    assert not loader_threads()
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            raise ZeroDivisionError
    assert not loader_threads()
    with loader:
        next(iter(loader))
    loader.close()
    loader.close()
    iter(loader)  # never started
    assert not loader_threads()


def test_a_pass_that_was_closed_does_not_look_finished(x):
    loader = HyperbatchIterator(x, [np.arange(3)] * 4, buffer_bytes="1MB")
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(ValueError, match="closed, or ended by a newer one"):
        next(first)
    assert len(list(second)) == 4
    for started in (False, True):
        results = iter(loader)
        if started:
            next(results)
        loader.close()
        with pytest.raises(ValueError, match="closed"):
            next(results)


def test_the_reading_thread_uses_the_threads_of_the_work_around_it(x):
    seen = []

    class Watched(ArrayStorage):
        def read_batch(self, ids, out=None):
            seen.append(current_threads())
            return super().read_batch(ids, out)

    with working_threads(3):
        list(HyperbatchIterator(Watched(x), [[1], [2]], buffer_bytes="1MB"))
    assert seen == [3]


def test_a_hotset_that_somebody_else_changes_gives_right_rows(store, x):
    class Meddled(AdaptiveHotset):
        def contains(self, ids):
            mask = super().contains(ids)
            self.record_access(np.repeat(np.arange(100, 110), 50))
            self.insert(np.arange(100, 110), x[100:110])  # evicts what was just said to be here
            return mask

    hotset = Meddled(10, DIM)
    hotset.insert(np.arange(10), x[:10])
    for result in HyperbatchIterator(store, [np.arange(20)] * 3, buffer_bytes="1MB", hotset=hotset):
        np.testing.assert_array_equal(result.features, x[:20])


def test_bad_arguments(x, tmp_path):
    with pytest.raises(TypeError, match="dense rows"):
        HyperbatchIterator(sp.csr_array(x), [], buffer_bytes="1MB")
    with SparseFeatureStorage.from_csr(sp.csr_array(x), tmp_path / "s") as sparse, pytest.raises(TypeError,
                                                                                                 match="dense"):
        HyperbatchIterator(sparse, [], buffer_bytes="1MB")
    for hotset in (AdaptiveHotset(3, DIM + 1), AdaptiveHotset(3, DIM, dtype=np.float64)):
        with pytest.raises(ValueError, match="hotset holds rows"):
            HyperbatchIterator(x, [], buffer_bytes="1MB", hotset=hotset)
    for options, text in ((dict(buffer_bytes="lots"), "buffer_bytes"), (dict(buffer_bytes=0), "buffer_bytes"),
                          (dict(num_buffers=0), "num_buffers"), (dict(max_batches=0), "max_batches"),
                          (dict(prefetch_factor=0), "prefetch_factor")):
        with pytest.raises(ValueError, match=text):
            HyperbatchIterator(x, [], **{"buffer_bytes": "1MB", **options})


def test_config(x):
    config = HyperbatchConfig(hotset_fraction=0.1, buffer_bytes=60 * ROW * 2)
    hotset = config.hotset(as_storage(x))
    assert hotset.capacity == 50 and HyperbatchConfig(hotset_fraction=0).hotset(as_storage(x)) is None
    loader = config.iterate(x, minibatches(), hotset)
    for result in loader:
        np.testing.assert_array_equal(result.features, x[result.node_ids])
    assert loader.hotset is hotset and loader.prefetch and loader.statistics.hits > 0
    assert not HyperbatchConfig(prefetch_factor=1).iterate(x, []).prefetch
    for options, error in ((dict(batch_size=0), ValueError), (dict(hotset_fraction=1.5), ValueError),
                           (dict(num_buffers=0), ValueError), (dict(prefetch_factor=1.5), TypeError),
                           (dict(buffer_bytes="x"), ValueError)):
        with pytest.raises(error, match=next(iter(options))):
            HyperbatchConfig(**options)


# as_storage

@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int64, bool])
def test_an_array_reads_with_the_bits_of_a_file(x, tmp_path, dtype):
    array = (x * 3).astype(dtype)
    ids = np.array([4, 4, 0, 499])
    memory = as_storage(array)
    with FeatureStorage.from_array(array, tmp_path / "f.npy") as disk:
        assert memory.shape == disk.shape and memory.dtype == disk.dtype
        assert memory.read_batch(ids).tobytes() == disk.read_batch(ids).tobytes()
        out = np.empty((4, DIM), memory.dtype)
        assert memory.read_batch(ids, out) is out and out.tobytes() == disk.take(ids).tobytes()


def test_as_storage_takes_what_people_have(x, tmp_path):
    sparse = sp.csr_array(x)
    assert as_storage(sparse) is sparse
    np.save(tmp_path / "x.npy", x)
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy")):
        with as_storage(path) as store:
            assert isinstance(store, FeatureStorage) and as_storage(store) is store
    SparseFeatureStorage.from_csr(sparse, tmp_path / "s").close()
    with as_storage(tmp_path / "s") as store:
        assert isinstance(store, SparseFeatureStorage) and as_storage(store) is store
    assert as_storage(x.tolist()).dtype == np.float64
    assert as_storage(np.load(tmp_path / "x.npy", mmap_mode="r")).array.base is not None
    memory = as_storage(x)
    assert memory.array is x and len(memory) == N and memory.nbytes == x.nbytes and as_storage(memory) is memory
    for bad, error in ((x[0], ValueError), (x[:0], ValueError), (x.astype(str), TypeError), (x.astype(complex),
                                                                                             TypeError)):
        with pytest.raises(error, match="features must"):
            as_storage(bad)
    with pytest.raises(IndexError, match="ids must lie"):
        memory.read_batch([N])
