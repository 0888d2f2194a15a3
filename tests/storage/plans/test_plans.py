"""The plans of an epoch: the same minibatches from each, read while the consumer works."""
import time
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from epoch_plans import DIM, KINDS, N, check, minibatches, run
from gnncy._threads import working_threads
from gnncy.storage import ArrayStorage, FeatureStorage
from gnncy.storage.plans import HotRows, peak_memory


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("hot", [0, 50, N])
@pytest.mark.parametrize("name, window", KINDS)
def test_every_plan_gives_the_same_minibatches(store, x, name, window, hot, prefetch):
    batches = minibatches()
    nodes = np.random.default_rng(3).permutation(N)
    with run(name, store, batches, window, hot, hot=nodes, prefetch=prefetch) as feed, working_threads(2):
        for _ in range(2):
            check(feed, x, batches)
            stats = feed.statistics
            accesses = sum(map(len, batches))
            assert stats.minibatches == len(batches) and stats.rows_used == stats.lookups == accesses
            held = N if name == "A" else hot
            np.testing.assert_equal(stats.hits, sum(np.isin(ids, nodes[:held]).sum() for ids in batches))
            cold = [np.setdiff1d(ids, nodes[:held]) for ids in batches]
            if name == "D":
                assert stats.rows_read == sum(map(len, cold))
                assert stats.hyperbatches == -(-len(batches) // window)
            elif name != "A":
                groups = [np.concatenate(cold[k:k + window]) for k in range(0, len(batches), window)]
                assert stats.rows_read == sum(len(np.unique(group)) for group in groups)
            if held < N:
                assert stats.bytes_read > 0 and stats.io.operations > 0 and stats.io.seconds > 0
                assert stats.read_seconds > 0 and stats.wait_seconds > 0
                assert (stats.bytes_written > 0) == (stats.spill_bytes > 0) == (name == "D")


@pytest.mark.parametrize("order, direct", [("ids", False), ("shuffled", True)])
@pytest.mark.parametrize("dim", [1, 100, 1024, 1500])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_widths_and_orders(tmp_path, dtype, dim, order, direct):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((300, dim)).astype(dtype)
    order = None if order == "ids" else rng.permutation(300)
    FeatureStorage.from_array(x, tmp_path / "x.npy", order=order).close()
    batches = minibatches(n=300)
    wide = x.astype(np.float32) if dtype == np.float16 else x
    with FeatureStorage(tmp_path / "x.npy", direct=direct) as store:
        for name, window in (("A", 1), ("B", 1), ("C", 5), ("D", 5)):
            check(run(name, store, batches, window, 40), wide, batches)


@pytest.mark.parametrize("dtype", [">f4", "<f8"])
def test_a_plain_npy_file(tmp_path, dtype):
    x = np.random.default_rng(5).standard_normal((200, 9)).astype(dtype)
    np.save(tmp_path / "x.npy", x)  # rows begin at byte 128
    batches = minibatches(n=200)
    with FeatureStorage(tmp_path / "x.npy") as store:
        for name, window in (("A", 1), ("C", 5), ("D", 5)):
            check(run(name, store, batches, window, 40), x.astype(x.dtype.newbyteorder("=")), batches)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_minibatches(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.npy"
    x = np.arange(70 * 3, dtype=np.float64).reshape(70, 3)
    if not path.exists():
        FeatureStorage.from_array(x, path).close()
    batches = data.draw(st.lists(st.lists(st.integers(0, 69), max_size=30), max_size=9))
    hot = data.draw(st.lists(st.integers(0, 69), max_size=20))
    with FeatureStorage(path) as store:
        for name in "BCD":
            feed = run(name, store, batches, data.draw(st.integers(1, 10)), len(hot), hot=hot,
                       prefetch=data.draw(st.booleans()))
            for result, ids in zip(feed, batches, strict=True):
                np.testing.assert_array_equal(result.features, x[np.array(ids, np.int64)])
            feed.close()


def test_arrays_in_memory(x):
    batches = minibatches()
    for name, window in KINDS[:5]:
        check(run(name, x, batches, window, 30), x, batches)
    integers = (x * 10).astype(np.int64)
    check(run("C", integers, batches, 5, 30), integers.astype(np.float32), batches)
    assert HotRows(x).rows is x and HotRows(ArrayStorage(x), np.arange(N)).rows is x
    assert HotRows(x[:, :3]).rows.tobytes() == x[:, :3].tobytes()
    with pytest.raises(TypeError, match="plan D scans a file.*ArrayStorage"):
        run("D", x, batches)
    with pytest.raises(TypeError, match="dense rows"):
        run("C", sp.csr_array(x), batches)


def test_objects_with_nodes_and_generators(store, x):
    @dataclass
    class Sample:
        nodes: np.ndarray
    samples = [Sample(ids) for ids in minibatches()]
    for name, window in KINDS:
        for source in (samples, iter(samples)):  # a generator's minibatches are kept until they are used
            results = list(run(name, store, source, window, 20))
            assert [r.batch for r in results] == samples
            for result in results:
                np.testing.assert_array_equal(result.features, x[result.batch.nodes])
        assert list(run(name, store, [], window)) == []


def test_large_minibatches_split_pieces_and_extents(tmp_path):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((30_000, 37)).astype(np.float32)
    FeatureStorage.from_array(x, tmp_path / "x.npy", order=rng.permutation(30_000)).close()
    batches = [rng.integers(0, 30_000, 20_000) for _ in range(6)]
    least = peak_memory("D", n_nodes=30_000, row_bytes=148, batch_rows=20_000, window=6,
                        list_bytes=6 * 20_000) + 200_000
    with FeatureStorage(tmp_path / "x.npy", direct=True) as store:
        for memory in (least, 4 * least):
            feed = run("D", store, batches, 6, memory=memory)
            check(feed, x, batches)
            assert feed.statistics.hyperbatches == 1
            feed.close()
        few = [np.array([5, 29_999, 5]), np.array([15_000])]
        feed = run("D", store, few, 2)
        check(feed, x, few)
        assert feed.statistics.bytes_read < 100_000  # pages that nobody needs are not read
        feed.close()


def test_hot_rows(store, x):
    hot = HotRows(store, [3, 7, 3, 599])
    assert len(hot) == 3 and hot.nbytes == 3 * DIM * 4 + 160 and repr(hot) == "HotRows(3 rows, 244 B)"
    np.testing.assert_array_equal(np.sort(hot.rows, 0), np.sort(x[[3, 7, 599]], 0))
    first = HotRows(store, 5)
    np.testing.assert_array_equal(first.rows, x[store.order[:5]])
    mask = np.zeros(N, bool)
    mask[10:20] = True
    assert len(HotRows(store, mask)) == 10 and len(HotRows(store, 10 * N)) == N and len(HotRows(store, 0)) == 0
    batches = minibatches()
    before = store.stats.snapshot()
    shared = HotRows(store, np.arange(N))
    reads = (store.stats - before).bytes_read
    for name, window in KINDS:
        check(run(name, store, batches, window, hot=shared), x, batches)
    assert (store.stats - before).bytes_read == reads == x.nbytes
    with pytest.raises(ValueError, match="plan A holds all 600 rows.*hot holds 3"):
        run("A", store, batches, hot=hot)
    for other in (x[:, :3], x[:100]):
        with pytest.raises(ValueError, match="another storage"):
            run("C", store, batches, hot=HotRows(other))
    with pytest.raises(IndexError, match="hot must lie in"):
        run("C", store, batches, hot_rows=1, hot=[N])


def test_a_pass_that_is_drawn_differently_is_an_error(store):
    class Fickle:
        def __init__(self):
            self.rng = np.random.default_rng(0)

        def __iter__(self):
            return iter([self.rng.integers(0, N, 20) for _ in range(6)])

    class Shrinking(list):
        def __iter__(self):
            items = super().__iter__()
            self.pop()
            return items

    for name in "BCD":
        for source in (Fickle(), Shrinking([[1]] * 6)):
            with pytest.raises(ValueError, match="other minibatches when it is iterated a second time"):
                list(run(name, store, source, 3))
    assert len(list(run("A", store, Fickle()))) == 6


@pytest.mark.parametrize("name, window", [("A", 1), ("B", 1), ("C", 2), ("D", 2)])
def test_windows_are_drawn_at_most_one_ahead(store, name, window):
    drawn = []

    class Source:
        def __iter__(self):
            for k in range(40):
                drawn.append(k)
                yield [k]
    feed = run(name, store, Source(), window)
    results = iter(feed)
    next(results)
    time.sleep(0.1)
    # each minibatch is drawn twice; three in use or made ahead, two windows in the reading thread, and one drawn to see
    assert max(drawn) <= 3 + 2 * window
    feed.close()


def test_reading_overlaps_with_the_consumer(x):
    class Slow(ArrayStorage):
        def read_batch(self, ids, out=None):
            time.sleep(0.03)
            return super().read_batch(ids, out)

    seconds = {}
    for prefetch in (False, True):
        feed = run("B", Slow(x), [np.arange(40)] * 8, prefetch=prefetch)
        for _ in feed:
            time.sleep(0.03)
        seconds[prefetch] = feed.statistics.wait_seconds
    assert seconds[False] > 8 * 0.03 and seconds[True] < 0.6 * seconds[False]
