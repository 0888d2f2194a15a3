"""The memory that a plan takes is what was predicted, and a window ends where it does."""
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from epoch_plans import DIM, DISK, KINDS, N, check, run
from gnncy._kernels.storage import repack as kernels
from gnncy.errors import MemoryLimitError
from gnncy.storage import FeatureStorage
from gnncy.storage.plans import peak_memory
from gnncy.storage.plans.execution.repack import RepackBuffers, code_bytes


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
