"""Learnable tables past the limit of memory: beside memory, beside partitions that are swapped whole, beside word2vec.

The table goes past the page cache, so that it helps no side. gensim runs in its own interpreter: set
``GNNCY_GENSIM_PYTHON`` to one that has it. Rates are per second of wall time, beside gensim per second of CPU time.
"""
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from asv_bench.peers import table
from gnncy._threads import working_threads

DIM = 128
SHARE = 8  # of the table by the limit


def clubs(n, degree, seed=0, size=64):
    """A graph of n nodes: four fifths of the edges of a node lead into its club; a tenth of all is kept apart."""
    rng = np.random.default_rng(seed)
    m = n * degree // 2
    name = rng.permutation(n).astype(np.int32)  # so that a club lies anywhere
    u = rng.integers(0, n, m)
    v = np.where(rng.random(m) < 0.8, u // size * size + rng.integers(0, size, m), rng.integers(0, n, m)) % n
    u, v = name[u], name[v]
    keep = u != v
    u, v = u[keep], v[keep]
    apart = slice(0, len(u) // 10) if n <= 200_000 else slice(0, 20_000)
    test = np.stack([u[apart], v[apart]])
    u, v = np.delete(u, apart), np.delete(v, apart)
    graph = csr_array((np.ones(2 * len(u), np.float32), (np.concatenate([u, v]), np.concatenate([v, u]))), shape=(n, n))
    graph.sum_duplicates()
    graph.data[:] = 1
    return graph, test


def auc(z, test, seed=1):
    """How often a pair that is an edge has a greater product than one that is none."""
    other = np.random.default_rng(seed).integers(0, len(z), test.shape)
    true, false = (np.einsum("ij,ij->i", z[pairs[0]], z[pairs[1]]) for pairs in (test, other))
    rank = np.searchsorted(np.sort(false), true, "left") + np.searchsorted(np.sort(false), true, "right")
    return float(rank.mean() / (2 * len(false)))


def row(setting, ours, peer, theirs, unit, asked=None, ratio=None):
    digits = [float(f"{x:.4g}") for x in (ours, theirs)]
    return {"setting": setting, "ours": digits[0], "peer": peer, "peer_value": digits[1], "unit": unit,
            "ratio": float(f"{ours / theirs if ratio is None else ratio:.3g}"), "asked": asked}


def swapped(graph, folder, capacity, threads):
    """PyTorch-BigGraph's way: two partitions in memory, the edges by pairs of them, each swapped whole before its turn.

    The steps are ours, by the same kernels in the same lanes; negatives come from the second partition. Edges per
    second of an epoch, and what was moved.
    """
    from gnncy.estimators.node_embedding import NodeEmbedding
    from gnncy.estimators.pairs import PairTraining, deal
    from gnncy.storage.tables import EmbeddingTable
    from gnncy.storage.tables.windows import LANES
    n = graph.shape[0]
    with EmbeddingTable.create(folder / "swapped.npy", n, DIM, lr=0.02, scale=0.5 / DIM, journal=False,
                               memory_limit=capacity, direct=True) as table, working_threads(threads):
        size = table.capacity // 2
        partitions = [np.arange(k, min(k + size, table.n_blocks)) for k in range(0, table.n_blocks, size)]
        parts, part_rows = len(partitions), size * table.block_rows
        lane_of = (np.arange(table.n_blocks) % size % LANES).astype(np.uint8)
        u = np.repeat(np.arange(n, dtype=np.int32), np.diff(graph.indptr))
        keep = u < graph.indices  # so the partition of u comes first
        u, v = u[keep], graph.indices[keep]
        cell = u // part_rows * parts + v // part_rows
        order = np.argsort(cell.astype(np.int16) if parts < 180 else cell, kind="stable")
        u, v = u[order], v[order]
        begin = np.searchsorted(cell[order], np.arange(parts * parts + 1))
        del cell, order, keep
        work = PairTraining(graph, table, NodeEmbedding(DIM), 0)
        room = np.zeros((2, np.diff(begin).max()), np.int64)
        begun = time.perf_counter()
        for j in range(parts):  # inside out: the next pair shares a partition with this one
            odds = work._odds(partitions[j])
            for i in range(j + 1) if j % 2 == 0 else range(j, -1, -1):
                blocks = np.union1d(partitions[i], partitions[j])
                table.hold(blocks)
                some = slice(begin[i * parts + j], begin[i * parts + j + 1])
                dealt = deal(u[some].astype(np.int64), v[some].astype(np.int64), lane_of, work.bits, room)
                work.meet(dealt, odds, i == j, i * parts + j)
                table.changed(blocks, 1)
        table.checkpoint()
        seconds = time.perf_counter() - begun
        moved = table.stats
    return len(u) / seconds, moved


CHILD = """
    import sys
    import numpy as np
    import gnncy
    from scipy.sparse import csr_array
    indptr, indices = np.load(sys.argv[1]), np.load(sys.argv[2])
    graph = csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=(len(indptr) - 1,) * 2)
    gnncy.NodeEmbedding(128, epochs=3, random_state=0, memory_limit=int(sys.argv[3]), direct=True,
                        n_jobs=int(sys.argv[4]), folder=sys.argv[5]).fit(graph)
"""


@table
def tables(quick, threads):
    """Edges per second of a table eight times the limit, the same after a kill, and beside swapped partitions."""
    import gnncy
    from gnncy.estimators.node_embedding import _window
    n, degree = (200_000, 20) if quick else (2_000_000, 10)
    graph, test = clubs(n, degree)
    edges = graph.nnz // 2
    size = n * 4 * (DIM + 4)
    limit = size // SHARE
    folder = Path(tempfile.mkdtemp(prefix="gnncy-tables-"))
    try:
        options = {"random_state": 0, "n_jobs": threads}
        if quick:  # what a run needs beside the table does not shrink with it
            limit = gnncy.NodeEmbedding(DIM, memory_limit="1GB", epochs=1).estimate(graph).needed
        setting = f"{n / 1e6:g} M nodes, {edges / 1e6:.1f} M edges, table of {size / 1e6:.0f} MB"
        rates, kept = {}, {}
        for name, given in (("memory", size + (400 << 20)), ("disk", limit)):
            model = gnncy.NodeEmbedding(DIM, epochs=1, memory_limit=given, direct=True, **options).fit(graph)
            rates[name] = edges / model.history_[-1]["seconds"]
            kept[name] = model.embedding_[::17].copy()
            moved, last = model.history_[-1], model.plan_
        np.testing.assert_array_equal(kept["memory"], kept["disk"])
        setting += f", limit {limit / 1e6:.0f} MB"
        yield row(f"{setting}; an epoch reads {moved['bytes_read'] / 1e9:.1f} GB", rates["disk"],
                  "the same in memory, to the same bits", rates["memory"], "edges/s", 0.5)
        theirs, moved = swapped(graph, folder, _window(last), threads)
        yield row(f"the same; they read {moved.bytes_read / 1e9:.1f} GB", rates["disk"],
                  "partitions swapped whole (PyTorch-BigGraph's way)", theirs, "edges/s", 2)
        del graph
        yield from resumed(folder, threads)
        yield from word2vec(quick)
        yield from quality()
    finally:
        shutil.rmtree(folder)


def resumed(folder, threads):
    """A run with a journal, killed in its second epoch and resumed."""
    import gnncy
    graph, _ = clubs(200_000, 20)
    limit = gnncy.NodeEmbedding(DIM, memory_limit="1GB", epochs=3).estimate(graph).needed
    np.save(folder / "indptr.npy", graph.indptr)
    np.save(folder / "indices.npy", graph.indices)
    run = folder / "run"
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder / "indptr.npy"), str(folder / "indices.npy"),
               str(limit), str(threads), str(run)]
    child = subprocess.Popen(command)
    sidecar = run / "table.npy.json"
    while child.poll() is None and not (sidecar.exists() and '"generation": 1' in sidecar.read_text()):
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    code = child.wait()
    options = {"random_state": 0, "n_jobs": threads, "epochs": 3}
    model = gnncy.NodeEmbedding(DIM, memory_limit=limit, direct=True, folder=run, **options).fit(graph)
    whole = gnncy.NodeEmbedding(DIM, memory_limit=graph.shape[0] * 4 * (DIM + 4) + (400 << 20), direct=True, **options)
    whole.fit(graph)
    np.testing.assert_array_equal(model.embedding_[::17], whole.embedding_[::17])
    last = [edges["pairs"] / edges["seconds"] for edges in (model.history_[-1], whole.history_[-1])]
    yield row(f"with a journal, killed in epoch 2 (status {code}) and resumed to the same bits", last[0],
              "in memory, never killed", last[1], "edges/s", 0.5)


def quality():
    """Link prediction of a run on disk beside that of one in memory that mixes all edges."""
    import gnncy
    from gnncy.storage.tables import windows
    graph, test = clubs(40_000, 20)
    options = {"random_state": 0, "epochs": 20}
    least = gnncy.NodeEmbedding(DIM, **options).estimate(graph).needed
    ours = auc(gnncy.NodeEmbedding(DIM, memory_limit=least, **options).fit_transform(graph), test)
    before, windows.CHUNKS = windows.CHUNKS, 1
    try:
        mixed = auc(gnncy.NodeEmbedding(DIM, **options).fit_transform(graph), test)
    finally:
        windows.CHUNKS = before
    yield row(f"{graph.shape[0] / 1e3:.0f} k nodes, 20 epochs, on disk; difference {100 * (ours - mixed):+.2f} points",
              100 * ours, "in memory, all edges in one window", 100 * mixed, "AUC, %", 0.995)


GENSIM = """
    import sys, time
    import numpy as np
    from gensim.models import Word2Vec
    walks = np.load(sys.argv[1])
    sentences = [list(map(str, walk)) for walk in walks]
    model = Word2Vec(vector_size=128, window=10, min_count=0, sg=1, hs=0, negative=5, sample=0, workers=1, seed=1)
    model.build_vocab(sentences)
    begun = time.process_time()
    model.train(sentences, total_examples=len(sentences), epochs=1)
    seconds = time.process_time() - begun
    z = np.zeros((walks.max() + 1, 128), np.float32)
    z[[int(word) for word in model.wv.index_to_key]] = model.wv.vectors
    np.save(sys.argv[2], z)
    print(seconds)
"""


def windowed(walks, width, rng):
    """Pairs of word2vec: each place with those within a reach that is drawn anew for it, at most ``width``."""
    reach = rng.integers(1, width + 1, walks.shape)
    pairs = []
    for t in range(1, width + 1):
        pairs.append((walks[:, :-t], walks[:, t:], reach[:, :-t] >= t))
        pairs.append((walks[:, t:], walks[:, :-t], reach[:, t:] >= t))
    return (np.concatenate([pair[k][pair[2]] for pair in pairs]) for k in (0, 1))


def word2vec(quick):
    """Tokens per second of one thread on the same walks, windows and number of negatives."""
    from gnncy._kernels.storage import tables as kernels
    from gnncy.estimators.node_embedding import NodeEmbedding
    from gnncy.estimators.pairs import Lane, Odds, Pairs
    from gnncy.graph import RandomWalks
    from gnncy.storage.tables import EmbeddingTable
    python = os.environ.get("GNNCY_GENSIM_PYTHON") or (sys.executable if importlib.util.find_spec("gensim") else None)
    if python is None:
        return
    n, starts = (5_000, 1) if quick else (20_000, 5)
    graph, test = clubs(n, 20, seed=3)
    walks = RandomWalks(graph, 79, starts, seed=0).sample(np.random.default_rng(0).permutation(n))
    with tempfile.TemporaryDirectory() as folder, working_threads(1):
        np.save(Path(folder) / "walks.npy", walks)
        out = Path(folder) / "z.npy"
        done = subprocess.run([python, "-c", textwrap.dedent(GENSIM), Path(folder) / "walks.npy", out], check=True,
                              stdout=subprocess.PIPE, text=True)
        theirs, their_score = float(done.stdout), auc(np.load(out), test)
        with EmbeddingTable.create(Path(folder) / "table.npy", 2 * n, DIM, lr=0.1, scale=0.5 / DIM) as held:
            held.hold(np.arange(held.n_blocks))
            lane = Lane(held, NodeEmbedding(DIM, method="walks"))
            rng = np.random.default_rng(0)
            likely = np.zeros(held.n_blocks * held.block_rows // 2)
            likely[:n] = np.diff(graph.indptr) ** 0.75
            sums, guide = np.cumsum(likely), np.empty(len(likely), np.int32)
            kernels.guide(sums, guide)
            odds = Odds(np.array([0, len(sums)]), np.arange(held.n_blocks), sums, guide)
            cell, loss = np.zeros(1, np.int64), np.empty(1)
            begun = time.process_time()
            for first in range(0, len(walks), 128):
                u, v = windowed(walks[first:first + 128], 10, rng)
                lane.train(cell, Pairs(np.array([0, len(u)]), u, v), odds, first, loss)
            ours = time.process_time() - begun
            score = auc(held.gather(np.arange(n) * 2), test)
    yield row(f"{len(walks)} walks of 80 nodes, window 10, 5 negatives, one thread; AUC {100 * score:.1f} %",
              walks.size / ours, f"gensim; AUC {100 * their_score:.1f} %", walks.size / theirs, "tokens/s of CPU", 1)
