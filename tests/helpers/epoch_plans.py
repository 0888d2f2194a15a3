"""Epochs that are run by a plan, and what they may leave behind."""
import os
import threading

import numpy as np

from gnncy.storage.plans import DiskModel, EpochPlan, run_plan

N, DIM = 600, 7
DISK = DiskModel(20e-6, 2e9, 2e9, threads=4)
KINDS = [("A", 1), ("B", 1), ("C", 1), ("C", 4), ("C", 99), ("D", 1), ("D", 4), ("D", 99)]


def own_threads():
    return [t for t in threading.enumerate() if t.name.startswith(("gnncy-prefetch", "gnncy-plan"))]


def descriptors():
    return set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()


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
