"""The plans of an epoch: the same minibatches from each, within the memory, and nothing left behind."""
import errno
import gc
import os
import resource
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gnncy._kernels.storage import repack as kernels
from gnncy._kernels.storage import rowset
from gnncy._threads import working_threads
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.storage import ArrayStorage, FeatureStorage
from gnncy.storage.plans import DiskModel, EpochPlan, HotRows, peak_memory, run_plan
from gnncy.storage.plans.execution.repack import RepackBuffers, code_bytes
from gnncy.storage.plans.execution.spill import SpillFile

N, DIM = 600, 7
DISK = DiskModel(20e-6, 2e9, 2e9, threads=4)
KINDS = [("A", 1), ("B", 1), ("C", 1), ("C", 4), ("C", 99), ("D", 1), ("D", 4), ("D", 99)]


def own_threads():
    return [t for t in threading.enumerate() if t.name.startswith(("gnncy-prefetch", "gnncy-plan"))]


def descriptors():
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()


@pytest.fixture(autouse=True)
def nothing_stays():
    before = descriptors()
    yield
    if own_threads() or len(descriptors() - before) > 1:  # the one that lists them
        gc.collect()
        assert not own_threads() and len(descriptors() - before) <= 1


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


@pytest.fixture
def store(x, tmp_path):
    with FeatureStorage.from_array(x, tmp_path / "x.npy", order=np.random.default_rng(1).permutation(N)) as store:
        yield store


def minibatches(count=11, size=90, seed=2, n=N):
    rng = np.random.default_rng(seed)
    batches = [rng.zipf(1.3, rng.integers(0, size)) % n for _ in range(count)]
    batches[3] = batches[3][:0]
    return batches


def plan_of(name, window=1, hot=0, memory=50_000_000, spill=0):
    return EpochPlan(name, hot_rows=hot, window=window, seconds=0, bytes_read=0, bytes_written=0, operations=0,
                     peak_memory=memory, spill_bytes=spill)


def run(name, storage, batches, window=1, hot_rows=0, memory=50_000_000, spill=0, **options):
    return run_plan(plan_of(name, window, hot_rows, memory, spill), storage, batches, disk=DISK, **options)


def check(results, x, batches):
    results = list(results)
    assert [r.batch_index for r in results] == list(range(len(batches)))
    for result, ids in zip(results, batches, strict=True):
        assert result.batch is ids and result.node_ids.dtype == np.int64
        np.testing.assert_array_equal(result.node_ids, ids)
        assert result.features.dtype == x.dtype and result.features.tobytes() == x[ids].tobytes()


# The same minibatches

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


# Memory

@pytest.mark.parametrize("name, window", KINDS[1:])
@pytest.mark.parametrize("prefetch", [False, True])
def test_memory_as_predicted(tmp_path, name, window, prefetch):
    n, dim, rows = 20_000, 128, 500
    rng = np.random.default_rng(7)
    FeatureStorage.from_array(rng.random((n, dim), dtype=np.float32), tmp_path / "x.npy").close()
    batches = [rng.integers(0, n, rows) for _ in range(60)]
    hot = 1000
    cold = {"B": rows, "C": min(window, 60) * rows, "D": rows}[name]
    # The threads that wait for the disk keep an arena each, which this process has made long ago.
    need = peak_memory(name, n_nodes=n, row_bytes=512, batch_rows=rows, hot_rows=hot, window=min(window, 60),
                       cold_rows=cold, prefetch=prefetch, io_threads=4)
    with FeatureStorage(tmp_path / "x.npy", direct=True, disk=DISK) as store:
        store.read_batch(np.arange(0, n, 7))
        tracemalloc.start()
        try:
            with run(name, store, batches, window, hot, need, prefetch=prefetch) as feed:
                for _ in feed:
                    pass
                assert feed.statistics.hyperbatches <= -(-60 // window) + 1
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < need + 300_000


RSS = """
import sys
import numpy as np
from gnncy._memory import peak_rss, reset_peak, rss
from gnncy.storage import FeatureStorage
from gnncy.storage.plans import DiskModel, EpochPlan, run_plan
name, window, hot, limit, path = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
disk = DiskModel(2e-5, 2e9, 2e9, threads=4)
store = FeatureStorage(path, direct=True, disk=disk)
batches = [np.random.default_rng(k).integers(0, store.n_nodes, 2000) for k in range(40)]
plan = EpochPlan(name, hot_rows=hot, window=window, seconds=0, bytes_read=0, bytes_written=0, operations=0,
                 peak_memory=limit)
reset_peak()
start, total = rss(), 0
for epoch in range(2):
    feed = run_plan(plan, store, batches, disk=disk)
    total += sum(len(result.features) for result in feed)
    groups = feed.statistics.hyperbatches
    del feed
store.close()
print(peak_rss() - start, groups, total)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the system does not tell peaks of memory")
@pytest.mark.parametrize("name, window, hot, megabytes", [("B", 1, 10_000, 30), ("C", 40, 5_000, 45), ("C", 40, 0, 32),
                                                          ("D", 40, 10_000, 40), ("D", 10, 0, 24)])
def test_resident_memory_stays_within_the_limit(tmp_path_factory, name, window, hot, megabytes):
    path = tmp_path_factory.getbasetemp() / "rss.npy"
    if not path.exists():
        blocks = (np.full((20_000, 128), k, np.float32) for k in range(20))
        FeatureStorage.from_blocks(path, (400_000, 128), blocks).close()  # 205 MB
    limit = megabytes * 10**6
    answer = subprocess.run([sys.executable, "-c", RSS, name, str(window), str(hot), str(limit), str(path)],
                            capture_output=True, text=True, check=True).stdout.split()
    peak, groups, total = map(int, answer)
    assert total == 2 * 40 * 2000 and groups >= 40 // window
    assert peak < 1.1 * limit + 4_000_000  # threads, and huge pages that are not full


def test_a_window_ends_where_the_memory_does(store, x):
    batches = [np.random.default_rng(k).integers(0, N, 200) for k in range(12)]
    for name in "CD":
        need = dict(n_nodes=N, row_bytes=DIM * 4, batch_rows=200, io_threads=4)
        few = dict(cold_rows=250) if name == "C" else dict(window=3, list_bytes=700)
        feed = run(name, store, batches, 12, memory=peak_memory(name, **need, **few))
        check(feed, x, batches)
        assert 4 <= feed.statistics.hyperbatches <= 12
        least = peak_memory(name, **need, **{"cold_rows": len(np.unique(batches[0]))} if name == "C"
                            else {"window": 1, "list_bytes": len(np.unique(batches[0]))})
        with pytest.raises(MemoryLimitError, match=f"a minibatch of 200 rows.*at least {least} .*in plan {name}"):
            list(run(name, store, batches, 12, memory=least - 1))


def test_predicted_memory_and_lists():
    assert peak_memory("A", n_nodes=64, row_bytes=8, batch_rows=0, hot_rows=64) == 2 * 64 * 8 + 16
    base = dict(n_nodes=10**6, row_bytes=512, batch_rows=10**4)
    assert (peak_memory("C", **base, cold_rows=10**5) - peak_memory("C", **base, cold_rows=0)) == 2 * 10**5 * 512
    assert (peak_memory("C", **base, cold_rows=10**5, prefetch=False)
            - peak_memory("C", **base, prefetch=False)) == 10**5 * 512
    assert peak_memory("B", **{**base, "row_bytes": 256}, feature_bytes=512) > peak_memory("B", **{**base, "row_bytes":
                                                                                                   256})
    sizes = [peak_memory("D", **base, window=100, cold_rows=5000, extent=4096 * k) for k in (1, 4, 16, 64)]
    assert sizes == sorted(sizes) and sizes[-1] - sizes[-2] >= 100 * 48 * 4096
    rng = np.random.default_rng(8)
    for n, k in ((10_000, 9000), (10**6, 10**4), (10**7, 1000), (10**9, 500)):
        rows = np.unique(rng.integers(0, n, k))
        code = np.empty(10 * len(rows), np.uint8)
        assert kernels.encode(rows, code) == pytest.approx(code_bytes(len(rows), n), rel=0.03)
    for memory in (0, 3 << 20, 10 << 20, 1 << 30):
        for row_bytes in (4, 100, 512, 5000, 1 << 22):
            buffers = RepackBuffers.within(memory, 100, row_bytes)
            assert buffers.extent % 4096 == buffers.piece % 4096 == buffers.chunk % 4096 == 0
            assert buffers.chunk >= buffers.chunk_rows * row_bytes + 4096 and buffers.extents > 100
            assert buffers.nbytes <= memory or buffers == RepackBuffers.of(4096, 100, row_bytes)


# Errors, and what is left behind

@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("name, window", KINDS)
def test_leaving_early_leaves_nothing(store, x, tmp_path, name, window, prefetch):
    feed = run(name, store, minibatches() * 20, window, prefetch=prefetch)
    before = descriptors()
    for _ in feed:
        break
    gc.collect()
    assert not own_threads() and descriptors() == before
    with pytest.raises(ZeroDivisionError):
        for _ in feed:
            raise ZeroDivisionError
    assert not own_threads() and descriptors() == before
    results = iter(feed)
    next(results)
    again = iter(feed)
    with pytest.raises(ValueError, match="closed, or ended by a newer one"):
        next(results)
    next(again)
    feed.close()
    feed.close()
    with pytest.raises(ValueError, match="closed"):
        next(again)
    iter(feed)  # never started
    assert not own_threads() and descriptors() == before
    assert sorted(os.listdir(tmp_path)) == ["x.npy", "x.npy.crc32.npy", "x.npy.json", "x.npy.order.npy"]


def test_temporary_files_stay_for_the_next_pass_and_are_closed(store, x):
    batches = minibatches()
    before = descriptors()
    feed = run("D", store, batches, 4)
    for _ in range(3):
        check(feed, x, batches)
        assert [spill.nbytes for spill in feed.spills] and not own_threads()
        held = descriptors()
    assert len(held - before) == 4  # two files, each with a descriptor for its reservation
    feed.close()
    assert descriptors() == before
    feed = run("D", store, batches, 99, spill=1_000_000)
    check(feed, x, batches)
    assert feed.statistics.spill_bytes == 1_000_000 and len(feed.spills) == 1
    del feed
    gc.collect()
    assert descriptors() == before


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("name, window", KINDS)
def test_errors_of_the_source_come_after_the_minibatches_before_them(store, x, name, window, prefetch):
    class Broken:
        def __iter__(self):
            for k in range(6):
                if k == 5:
                    raise KeyError("the sampler broke")
                yield [k]
    results = iter(run(name, store, Broken(), window, prefetch=prefetch))
    for k in range(5):
        np.testing.assert_array_equal(next(results).features, x[[k]])
    with pytest.raises(KeyError, match="sampler broke"):
        next(results)
    with pytest.raises(IndexError, match="node ids of minibatch 1 must lie in"):
        list(run(name, store, [[0], [N]], window, prefetch=prefetch))


@pytest.mark.parametrize("name, window", KINDS[1:])
def test_errors_of_the_disk_are_raised(tmp_path, name, window):
    x = np.random.default_rng(9).random((4000, 64)).astype(np.float32)
    with FeatureStorage.from_array(x, tmp_path / "x.npy") as store:
        os.truncate(store.path, 4096 + 2000 * 256)
        results = iter(run(name, store, [[1], [3999]], window))
        if window == 1:
            np.testing.assert_array_equal(next(results).features, x[[1]])
        with pytest.raises(StorageError, match="cut short") as caught:
            list(results)
        assert caught.value.filename == str(store.path) and caught.value.errno == errno.EIO


def test_errors_in_writing_and_reading_back_are_raised(store, monkeypatch):
    def fails(*args):
        args[-1][2] = 4096
        return errno.EIO
    real = kernels.read
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "write", fails)
        with pytest.raises(StorageError, match="Input/output error while writing the temporary file at byte 4096"):
            list(run("D", store, minibatches(), 4))
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "read", lambda fd, first, last, base, end, *rest:
                      real(fd, first, last, base, end, *rest) if end == 4096 + N * DIM * 4 else fails(*rest))
        with pytest.raises(StorageError, match="reading the temporary file"):
            list(run("D", store, minibatches(), 4))


def test_a_file_system_that_refuses_direct_reads(tmp_path, x, monkeypatch):
    real, refused = kernels.read, []

    def refuses(fd, *args):
        if os.path.samestat(os.fstat(fd), os.stat(tmp_path / "x.npy")) and not refused:
            refused.append(fd)
            return errno.EINVAL
        return real(fd, *args)

    FeatureStorage.from_array(x, tmp_path / "x.npy").close()
    with FeatureStorage(tmp_path / "x.npy", direct=True) as store:
        if not store._opened().direct:
            pytest.skip("the file system has no O_DIRECT")
        monkeypatch.setattr(kernels, "read", refuses)
        batches = minibatches()
        check(run("D", store, batches, 4), x, batches)
        assert refused and not store._opened().direct


# The temporary file

def test_spill_file_is_private_and_nameless(tmp_path, monkeypatch):
    seen = []
    real = os.unlink

    def watch(path, **options):
        seen.append((os.stat(path).st_mode & 0o777, os.path.basename(path)))
        return real(path, **options)
    monkeypatch.setattr(os, "unlink", watch)
    with SpillFile(tmp_path, 100_000) as spill:
        assert os.listdir(tmp_path) == [] and os.fstat(spill.fd).st_size == spill.nbytes == 100_000
        assert os.fstat(spill.fd).st_blocks * 512 >= 100_000
        spill.reserve(50_000)
        spill.reserve(200_000)
        assert os.fstat(spill.fd).st_size == spill.nbytes == 200_000
    spill.close()
    assert spill.fd == -1 and seen[0][0] == 0o600 and seen[0][1].startswith(f".gnncy-spill-{os.getpid()}-")


def test_what_a_crash_left_is_removed(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True,
                           check=True).stdout.strip()
    dead, mine = tmp_path / f".gnncy-spill-{ended}-0a.tmp", tmp_path / f".gnncy-spill-{os.getpid()}-0a.tmp"
    other = [tmp_path / name for name in (".gnncy-spill-x-0a.tmp", ".gnncy-spill-1-0a.tmp", "spill")]
    for path in (dead, mine, *other):
        path.touch()
    SpillFile(tmp_path).close()
    assert sorted(tmp_path.iterdir()) == sorted([mine, *other])


CRASH = """
import os, sys
import numpy as np
from gnncy.storage import FeatureStorage
from gnncy.storage.plans import EpochPlan, run_plan
plan = EpochPlan("D", hot_rows=0, window=4, seconds=0, bytes_read=0, bytes_written=0, operations=0, peak_memory=10**8)
store = FeatureStorage(sys.argv[1])
for result in run_plan(plan, store, [np.arange(100)] * 20):
    os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_no_file(store, tmp_path):
    before = sorted(os.listdir(tmp_path))
    assert subprocess.run([sys.executable, "-c", CRASH, str(store.path)], capture_output=True).returncode == -9
    assert sorted(os.listdir(tmp_path)) == before


def test_a_full_disk_is_an_error_at_once(store, tmp_path, monkeypatch):
    batches = minibatches()
    with pytest.raises(StorageError, match=r"temporary file needs 10\+?e?.* of disk.*are free.*spill_folder") as caught:
        list(run("D", store, batches, 99, spill=10**18))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["x.npy", "x.npy.crc32.npy", "x.npy.json", "x.npy.order.npy"]

    def full(fd, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="cannot reserve 2 MB: No space left on device.*another directory"):
        list(run("D", store, batches, 99, spill=2_000_000))


def test_a_limit_on_file_sizes_is_an_error_at_once(store):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot reserve 2 MB: File too large"):
            list(run("D", store, minibatches(), 99, spill=2_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_cannot_be_written_to_is_named(store, x, tmp_path):
    with pytest.raises(StorageError, match="cannot make a temporary file.*spill_folder") as caught:
        list(run("D", store, minibatches(), 4, spill_folder=tmp_path / "nowhere"))
    assert caught.value.errno == errno.ENOENT
    other = tmp_path / "other"
    other.mkdir()
    batches = minibatches()
    check(run("D", store, batches, 4, spill_folder=other), x, batches)


# Overlap

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


# Kernels

@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 2**40), max_size=60))
def test_lists_of_rows(rows):
    rows = np.array(sorted(rows), np.int64)
    code = np.empty(10 * len(rows), np.uint8)
    n = kernels.encode(rows, code)
    extents = np.empty((2, 4096), np.uint8)
    if len(rows) and rows[-1] < 3000:
        streams = kernels.Streams(code[:n], np.array([0, n]), np.array([0]), 1, extents)
        chunk = np.arange(3000).astype(np.uint8)
        assert streams.append(chunk, 0, 3000)
        streams.finish()
        (extent, offset, size), = streams.take(9)
        np.testing.assert_array_equal(extents[extent, :len(rows)], rows.astype(np.uint8))
        assert offset == 0 and size == 4096


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 299), max_size=100), st.lists(st.integers(0, 299), max_size=100), st.integers(64, 400))
def test_sets_of_rows(hot, cold, room):
    words, none = np.zeros((2, 5, 2), np.uint64)
    hot_words = words.copy()
    fresh = np.empty(200, np.int64)
    assert rowset.mark(np.array(hot, np.int64), none, hot_words, fresh) == len(set(hot))
    n = rowset.mark(np.array(cold, np.int64), hot_words, words, fresh)
    assert n == len(set(cold) - set(hot)) and set(fresh[:n]) == set(cold) - set(hot)
    assert rowset.count(hot_words) == len(set(hot)) and rowset.count(words) == n
    found, word = [], 0
    while word < 5:
        out = np.empty(room, np.int64)
        word, some = rowset.members(words, word, out)
        found += out[:some].tolist()
    assert found == sorted(set(cold) - set(hot))
    wanted = np.array(cold + hot, np.int64)
    place = np.empty(len(wanted), np.int64)
    assert rowset.places(wanted, hot_words, words, place) == sum(row in set(hot) for row in wanted)
    ranks = {row: -1 - k for k, row in enumerate(sorted(set(hot)))} | {row: k for k, row in enumerate(found)}
    assert place.tolist() == [ranks[row] for row in wanted]
    rowset.unmark(fresh[:n // 2].copy(), words)
    assert rowset.count(words) == n - n // 2


def test_streams_wait_for_free_extents():
    x = np.random.default_rng(10).integers(0, 256, (500, 100)).astype(np.uint8)
    lists, bounds = [], [0]
    wanted = [np.arange(500), np.arange(0, 500, 3), np.arange(0), np.array([499])]
    for rows in wanted:
        code = np.empty(10 * len(rows), np.uint8)
        lists.append(code[:kernels.encode(rows, code)])
        bounds.append(bounds[-1] + len(lists[-1]))
    offsets = np.array([0, 13, 18, 18]) * 4096
    extents = np.zeros((5, 4096), np.uint8)
    streams = kernels.Streams(np.concatenate(lists), np.array(bounds), offsets, 100, extents)
    file = np.zeros(20 * 4096, np.uint8)

    def write():
        full = streams.take(1)
        for extent, offset, size in full:
            file[offset:offset + size] = extents[extent, :size]
        streams.release(full)

    stalls = 0
    for start in range(0, 500, 250):
        while not streams.append(x[start:start + 250].reshape(-1), start * 100, start + 250):
            stalls += 1
            write()
    streams.finish()
    while streams.waiting:
        write()
    assert stalls > 3
    for rows, offset in zip(wanted, offsets, strict=True):
        np.testing.assert_array_equal(file[offset:offset + 100 * len(rows)], x[rows].reshape(-1))
