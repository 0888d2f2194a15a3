"""Sampling an epoch from a graph on disk, past the page cache, beside the same from memory; sorting edges to disk.

The scratch folder is ``GNNCY_BENCH_FOLDER``, the temporary directory by default; about 3 GB of it are used, and freed.
"""
import hashlib
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from asv_bench.peers import table

SHARE = 0.2  # of the bytes of the arcs, as memory
SIZE = 1024  # seeds of a minibatch


def digest(batch):
    """A checksum of all that a sample holds."""
    sums = hashlib.sha256(batch.nodes.tobytes())
    for block in batch.blocks:
        for array in (block.indptr, block.indices, block.edges):
            sums.update(array.tobytes())
    return sums.digest()


def timed(batches):
    """Seconds to go through minibatches: on the clock, and of the processor."""
    begun, worked = time.perf_counter(), time.process_time()
    count = sum(1 for _ in batches)
    assert count, "no minibatches"
    return time.perf_counter() - begun, time.process_time() - worked


def row(setting, ours, peer, value, asked, unit="s", more=False):
    """A row of the table; ``more`` where more is better."""
    ratio = ours / value if more else value / ours
    return {"setting": setting, "ours": float(f"{ours:.4g}"), "peer": peer, "peer_value": float(f"{value:.4g}"),
            "unit": unit, "ratio": float(f"{ratio:.3g}"), "asked": asked}


@table
def topology(quick, threads):
    from gnncy import _memory
    from gnncy._threads import working_threads
    from gnncy.datasets import write_rmat
    from gnncy.graph import NeighborSampler
    from gnncy.storage import GraphStorage, StorageSampler
    from gnncy.storage.plans import calibrate
    _memory.map_large()
    folder = tempfile.mkdtemp(dir=os.environ.get("GNNCY_BENCH_FOLDER"), prefix="topology-")
    with tempfile.TemporaryDirectory(dir=folder) as scratch, working_threads(threads):
        path = Path(scratch, "graph")
        write_rmat(path, 15 if quick else 21, 16, n_features=1, memory_limit="1GB")
        os.sync()
        disk = calibrate(path)
        with GraphStorage(path, direct=True, disk=disk) as graph:
            assert graph.direct, f"{path} is on a file system without O_DIRECT; set TMPDIR to a disk"
            edges = graph.nnz * 4
            limit = max(int(SHARE * edges), 24_000_000 if quick else 0)
            ids = np.random.default_rng(0).permutation(np.flatnonzero(graph.degrees()))
            what = (f"R-MAT, {graph.n_nodes / 1e6:.2g} M nodes, {graph.nnz / 1e6:.3g} M arcs of {edges / 1e6:.0f} MB, "
                    f"memory {limit / 1e6:.0f} MB")
            for fanouts, count in (((10, 10), 200), ((15, 10, 5), 40)):
                count = min(count, len(ids) // SIZE)
                seeds = ids[:count * SIZE].reshape(-1, SIZE)
                yield from sampling(graph, seeds, fanouts, limit, f"{what}: {count} x {SIZE} seeds, fan-outs {fanouts}",
                                    NeighborSampler, StorageSampler, _memory)
        yield from sorting(Path(scratch), quick)
    os.rmdir(folder)


def sampling(graph, seeds, fanouts, limit, what, in_memory, on_disk, memory):
    """Rows of one epoch."""
    memory.trim()
    memory.reset_peak()
    before = memory.rss()
    sampler = on_disk(graph, fanouts, seed=1, memory_limit=limit, prefetch=False)
    timed(sampler.sample_many(seeds))
    peak = memory.peak_rss() - before
    whole = in_memory(graph.to_csr(), fanouts, seed=1)
    read = graph.stats.snapshot()  # of an epoch that knows how large minibatches are
    for number, batch in enumerate(sampler.sample_many(seeds)):
        if number % 7 == 0:
            assert digest(batch) == digest(whole.sample(seeds[number], batch=number)), "samples differ"
    passes = (graph.stats.snapshot() - read).bytes_read / (graph.nnz * 4)
    ahead = on_disk(graph, fanouts, seed=1, memory_limit=limit, prefetch=True)
    sides = {"memory": lambda: (whole.sample(some, batch=k) for k, some in enumerate(seeds)),
             "disk": lambda: sampler.sample_many(seeds), "ahead": lambda: ahead.sample_many(seeds)}
    rounds = [{name: timed(call()) for name, call in sides.items()} for _ in range(3)]
    wall, cpu = ({name: statistics.median(each[name][k] for each in rounds) for name in sides} for k in (0, 1))
    yield row(f"{what}, {passes:.1f} passes", wall["disk"], "in memory", wall["memory"], 0.33)
    yield row(f"{what}, reading ahead", wall["ahead"], "in memory", wall["memory"], None)
    yield row(f"{what}, processor time", cpu["disk"], "in memory", cpu["memory"], None)
    some = min(10, len(seeds))
    single, _ = timed(sampler.sample(seeds[k], batch=k) for k in range(some))
    yield row(what, wall["disk"], f"minibatch by minibatch ({some}, scaled)", single * len(seeds) / some, None)
    yield row(f"{what}, peak memory", peak / 1e6, "limit + 10 %", 1.1 * limit / 1e6, 1, "MB")


def sorting(folder, quick):
    """Edges in any order to disk, and the same in memory."""
    import scipy.sparse as sp

    from gnncy.storage import GraphStorage
    n, m = (20_000, 200_000) if quick else (2_000_000, 20_000_000)
    edges = np.random.default_rng(0).integers(0, n, (m, 2))
    np.save(folder / "edges.npy", edges)
    begun = time.perf_counter()
    source, target = np.concatenate([edges, edges[:, ::-1]]).T
    matrix = sp.coo_array((np.ones(2 * m, np.float32), (source, target)), shape=(n, n)).tocsr()
    matrix.sum_duplicates()
    theirs = time.perf_counter() - begun
    del edges, source, target
    begun = time.perf_counter()
    with GraphStorage.from_edges(folder / "sorted", folder / "edges.npy", n, memory_limit="64MB") as graph:
        ours = time.perf_counter() - begun
        for start, rows in islice(graph.iter_rows(), 4):
            same = matrix[start:start + rows.shape[0]]
            assert np.array_equal(rows.indices, same.indices) and np.array_equal(rows.indptr, same.indptr)
    yield row(f"{m / 1e6:.3g} M edges in any order to disk, memory 64 MB", m / 1e6 / ours, "scipy, in memory, 1 GB",
              m / 1e6 / theirs, None, "M edges/s", more=True)
