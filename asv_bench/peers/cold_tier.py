"""Seconds to feed one epoch of minibatches from disk: the plans of the cold tier beside memory maps and row reads.

Every side runs in a process of its own. Ours and the row reads go past the page cache (``O_DIRECT``); the memory maps
run in a memory cgroup of the same memory where one can be made. The minibatches are the same for all.

The scratch folder is ``GNNCY_BENCH_FOLDER``, the temporary directory by default; up to 16 GB of it are
used, and freed.
"""
import contextlib
import hashlib
import json
import mmap
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from asv_bench.peers import table

PAGE = 4096
FANOUTS = (10, 10, 10)
CHECKED = 5  # every so many minibatches are compared with rows in memory
BATCHES = 44  # minibatches that the others are given; three quarters of them warm their caches
ROW_READS = "4 KiB reads of rows, SIEVE"
MAPPED, RANDOM = "np.memmap, take", "np.memmap, MADV_RANDOM, take"


@dataclass(frozen=True)
class Cell:
    """One setting: a graph of ``nodes`` with rows of ``row_bytes``, and memory as a share of the features."""

    nodes: int
    row_bytes: int
    share: float = 0.1
    batches: int = 200
    part: float = 0.01
    degree: float = 5.0
    threads: int = 2

    @property
    def features(self):
        return self.nodes * self.row_bytes

    @property
    def limit(self):
        return int(self.features * self.share)

    @property
    def batch_size(self):
        """Seeds of a minibatch that reaches about ``part`` of the nodes."""
        return max(4, int(self.nodes * self.part / 440))

    def __str__(self):
        return (f"{self.nodes / 1e6:.3g} M nodes, rows of {self.row_bytes} B, {self.features / 2**30:.3g} GiB, memory "
                f"{100 * self.share:g} %")


# Data

def make_graph(nodes, degree, seed=0, community=1500, mixing=0.3, power=0.23):
    """A degree-corrected block model: communities, degrees by a power law, ids in no order."""
    import scipy.sparse as sp
    rng = np.random.default_rng(seed)
    many = int(nodes * degree)
    n_communities = max(nodes // community, 1)
    community = nodes // n_communities
    low, high = 5.0 ** power, (community + 5.0) ** power

    def rank(n):
        return np.minimum((rng.random(n) * (high - low) + low) ** (1 / power) - 5, community - 1).astype(np.int64)

    own = rng.integers(0, n_communities, many)
    other = np.where(rng.random(many) < mixing, rng.integers(0, n_communities, many), own)
    number = rng.permutation(nodes).astype(np.int32)
    source, target = number[own * community + rank(many)], number[other * community + rank(many)]
    del own, other
    graph = sp.coo_array((np.ones(many, np.int8), (source, target)), shape=(nodes, nodes)).tocsr()
    del source, target
    graph = graph + graph.T.tocsr()
    graph.setdiag(0)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph.indptr, graph.indices


def rows_of(ids, base):
    """What row of the features each node has: a row of ``base`` with the node's number in it."""
    rows = base[ids % len(base)]
    rows[:, 0] = ids & 0xFFFF
    rows[:, 1] = ids >> 16
    return rows


def base_rows(row_bytes):
    return np.random.default_rng(1).random((4099, row_bytes // 4), np.float32)


def prepare(folder, cell):
    """Write the graph, its probabilities, some minibatches and the features of a cell, unless they are there.

    The disk is calibrated anew.
    """
    from gnncy import FeatureStorage
    from gnncy.storage.plans import calibrate
    graph = folder / f"graph-{cell.nodes}-{cell.degree:g}"
    if not graph.exists():
        graph.mkdir()
        indptr, indices = make_graph(cell.nodes, cell.degree)
        np.save(graph / "indptr.npy", indptr)
        np.save(graph / "indices.npy", indices)
    features = folder / f"features-{cell.nodes}-{cell.row_bytes}.npy"
    if not features.exists():
        for old in folder.glob("features-*"):
            old.unlink()
        base, step = base_rows(cell.row_bytes), max(1, (8 << 20) // cell.row_bytes)
        blocks = (rows_of(np.arange(k, min(k + step, cell.nodes)), base)
                  for k in range(0, cell.nodes, step))
        FeatureStorage.from_blocks(features, (cell.nodes, cell.row_bytes // 4), blocks).close()
        forget(features)
    inclusion_of(folder, cell)
    draw(folder, cell)
    calibrate(folder, refresh=True)


def forget(path):
    """Write a file to the disk and drop it from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(folder, cell):
    import scipy.sparse as sp
    graph = folder / f"graph-{cell.nodes}-{cell.degree:g}"
    indptr, indices = np.load(graph / "indptr.npy"), np.load(graph / "indices.npy")
    adjacency = sp.csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=(cell.nodes, cell.nodes))
    seeds = np.random.default_rng(2).choice(cell.nodes, cell.batches * cell.batch_size, replace=False)
    return adjacency, seeds


# Ours, in a process of its own

def feed(folder, cell, plan, batches):
    """One epoch, or its first minibatches, by one plan."""
    from gnncy.errors import MemoryLimitError
    try:
        return measured(folder, cell, plan, batches)
    except MemoryLimitError as error:
        return {"refused": str(error)}


def measured(folder, cell, plan, batches):
    from gnncy import _memory
    from gnncy._threads import working_threads
    from gnncy.storage import ColdTierLoader, FeatureStorage
    adjacency, seeds = load(folder, cell)
    base = base_rows(cell.row_bytes)
    inclusion = inclusion_of(folder, cell)
    features = folder / f"features-{cell.nodes}-{cell.row_bytes}.npy"
    with FeatureStorage(features, direct=True) as store, working_threads(cell.threads):
        _memory.trim()
        _memory.reset_peak()
        start, begun = _memory.rss(), time.perf_counter()
        with ColdTierLoader(store, adjacency, seeds, fanouts=FANOUTS, batch_size=cell.batch_size,
                            memory_limit=cell.limit, plan=plan, inclusion=inclusion, spill_folder=folder) as loader:
            planned, chosen = time.perf_counter() - begun, loader.plan
            shown, accesses = str(loader.planner), round(loader.planner.accesses.per_batch * cell.batches)
            model = max(loader.planner.io_seconds(chosen), loader.planner.compute_seconds(chosen))
            digests, done = [], 0
            begun, checking = time.perf_counter(), 0.0
            for result in loader.epoch(0):
                if result.batch_index % CHECKED == 0:
                    paused = time.perf_counter()
                    some = slice(None, None, 7)
                    ids, rows = result.node_ids, result.features[some]
                    assert rows.tobytes() == rows_of(ids[some], base).tobytes(), "rows differ from those in memory"
                    digests.append(hashlib.sha256(ids.tobytes() + rows.tobytes()).hexdigest()[:16])
                    del rows
                    checking += time.perf_counter() - paused
                done += 1
                del result
                if done == batches:
                    break
            seconds = time.perf_counter() - begun - checking
        peak = _memory.peak_rss() - start
    scale = cell.batches / done
    return {"plan": chosen.name, "hot": chosen.hot_rows, "window": chosen.window, "seconds": seconds * scale,
            "rows": accesses, "predicted": chosen.seconds, "model": model, "peak": peak, "planned": planned,
            "done": done, "digests": digests, "table": shown}


def inclusion_of(folder, cell):
    """The probabilities, once for each graph: part of what is there before the epoch, as the graph is."""
    from gnncy.graph import inclusion_probabilities
    path = folder / f"inclusion-{cell.nodes}-{cell.degree:g}-{cell.batches}-{cell.batch_size}.npy"
    if not path.exists():
        adjacency, seeds = load(folder, cell)
        np.save(path, inclusion_probabilities(adjacency, seeds, FANOUTS, cell.batch_size))
    return np.load(path)


# The others, each in a process of its own

def draw(folder, cell):
    """Node ids of the first minibatches, those that ours reads."""
    from gnncy._random import derive, stream
    from gnncy.graph import NeighborSampler
    path = folder / f"batches-{cell.nodes}-{cell.degree:g}-{cell.batches}-{cell.batch_size}"
    if not path.exists():
        path.mkdir()
        adjacency, seeds = load(folder, cell)
        sampler = NeighborSampler(adjacency, FANOUTS, seed=derive(0, "sample"))
        order = stream(0, "order", 0).permutation(seeds)
        for k in range(min(BATCHES, cell.batches)):
            nodes = sampler.sample(order[k * cell.batch_size:(k + 1) * cell.batch_size], epoch=0, batch=k).nodes
            np.save(path / f"{k}.npy", nodes)
    return [np.load(path / f"{k}.npy") for k in range(min(BATCHES, cell.batches))]


def mapped(folder, cell, random, seconds):
    """Seconds a row that ``np.take`` from a memory map needs, once its cache is warm."""
    features = folder / f"features-{cell.nodes}-{cell.row_bytes}.npy"
    rows = np.load(features, mmap_mode="r")
    if random:
        rows._mmap.madvise(mmap.MADV_RANDOM)
    batches = draw(folder, cell)
    out = np.ones((256, rows.shape[1]), np.float32)
    forget(features)  # pages that are cached count for whoever read them first
    with limited(cell.limit) as confined:
        # Warm: as many rows as the memory has pages, but no longer than half the time.
        done, begun, spent, measured, started = 0, time.perf_counter(), 0.0, 0, None
        for ids in batches:
            for k in range(0, len(ids), len(out)):
                some = ids[k:k + len(out)]
                start = time.perf_counter()
                np.take(rows, some, axis=0, out=out[:len(some)], mode="clip")
                done += len(some)
                if started is None and (done > cell.limit / PAGE or start - begun > seconds / 2):
                    started = time.perf_counter()
                elif started is not None:
                    spent, measured = time.perf_counter() - started, measured + len(some)
                    if spent > seconds / 2:
                        return {"row_seconds": spent / measured, "rows": measured, "confined": confined}
    return {"row_seconds": spent / measured, "rows": measured, "confined": confined}


def row_reads(folder, cell, seconds):
    """Seconds a row of a SIEVE cache over 4 KiB ``O_DIRECT`` reads, 16 in flight, each missed page once a minibatch.

    It is warm: the policy has seen three quarters of the minibatches before.
    """
    from gnncy._kernels.storage import blockio
    from gnncy._memory import aligned_empty
    from gnncy.storage._blocks import open_direct, together
    from gnncy.storage.policies import Sieve
    size, features = cell.row_bytes, folder / f"features-{cell.nodes}-{cell.row_bytes}.npy"
    fd = open_direct(features)
    if fd is None:
        raise OSError(f"{features}: the file system takes no O_DIRECT")
    batches = draw(folder, cell)
    policy, warm = Sieve(cell.limit // size), len(batches) * 3 // 4
    for ids in batches[:warm]:
        policy.replay(ids)
    cache = np.ones((policy.capacity, size), np.uint8)
    each = max(size // PAGE, 1)  # pages of a row; rows of the benchmark do not straddle pages

    def gather(ids):
        slots = policy.lookup(ids)
        out = np.empty((len(ids), size), np.uint8)
        missed = slots < 0
        out[~missed] = cache[slots[~missed]]
        rows = ids[missed]
        pages, place = np.unique(rows * size // (PAGE * each), return_inverse=True)
        buffer = aligned_empty((len(pages), PAGE * each), np.uint8, PAGE)
        ticket, first = np.zeros(1, np.int64), np.arange(len(pages) + 1)
        start, length = (pages * each + 1) * PAGE, np.full(len(pages), PAGE * each)
        failed = []

        def work():
            report = np.zeros(3, np.int64)
            status = blockio.read_runs(fd, True, start, length, pages_place, first, len(pages), ticket, 1, 1 << 30,
                                       aligned_empty(PAGE, np.uint8, PAGE), buffer.reshape(-1), report)
            if status:
                failed.append(status)

        pages_place = np.arange(len(pages)) * (PAGE * each)
        together(work, 16, lambda: None)
        if failed:
            raise OSError(failed[0], os.strerror(failed[0]))
        got = buffer.reshape(-1, size)[place * (PAGE * each // size) + rows % (PAGE * each // size)]
        out[missed] = got
        slots = policy.admit(rows)
        cache[slots[slots >= 0]] = got[slots >= 0]
        return rows, got

    base, spent, done, missed = base_rows(size), 0.0, 0, 0
    for ids in batches[warm:]:
        start = time.perf_counter()
        rows, got = gather(ids)
        spent += time.perf_counter() - start
        if done == 0:
            assert got.tobytes() == rows_of(rows, base).tobytes(), "rows differ from those in memory"
        done, missed = done + len(ids), missed + len(rows)
        if spent > seconds:
            break
    os.close(fd)
    return {"row_seconds": spent / done, "rows": done, "hits": 1 - missed / done, "confined": True}


@contextlib.contextmanager
def limited(memory):
    """Hold this process and its page cache to what it has now and ``memory`` bytes; False where that is refused."""
    from gnncy import _memory
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, file = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    group = root / f"gnncy-bench-{os.getpid()}"
    home = None
    try:
        group.mkdir()
        (group / file).write_text(str(_memory.rss() + memory))
        home = next((line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()
                     if ("memory" in line.split(":")[1].split(",")) == v1.is_dir()), "/")
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield False
        return
    try:
        yield True
    finally:
        (root / home.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


# The grid

def in_process(kind, folder, cell, **options):
    """What a function of this module returns, called in a process of its own."""
    call = json.dumps({"kind": kind, "folder": str(folder), "cell": asdict(cell), **options})
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (Path(__file__).parents[2], *sys.path[1:]))))
    done = subprocess.run([sys.executable, "-c", f"from {__name__} import child; child()", call],
                          stdout=subprocess.PIPE, env=environment, text=True)
    if done.returncode:
        raise RuntimeError(f"{kind} {options} of {cell} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def grid(cell, folder, plans, peers, asked, seconds):
    """Rows of one cell: each plan beside each of the others, and beside what was promised."""
    in_process("prepare", folder, cell)
    fed = {plan: in_process("feed", folder, cell, plan=plan, batches=batches) for plan, batches in plans.items()}
    for plan in [plan for plan, got in fed.items() if "refused" in got]:
        print(f"{cell}: plan {plan}: {fed.pop(plan)['refused']}", file=sys.stderr)
    rows_of_epoch = fed["auto"]["rows"]
    others = {}
    for peer in peers:
        kind, options = {ROW_READS: ("row_reads", {}), MAPPED: ("mapped", {"random": False}),
                         RANDOM: ("mapped", {"random": True})}[peer]
        got = in_process(kind, folder, cell, seconds=seconds, **options)
        how = f"{got['rows'] / 1e3:.0f} k rows, warm, scaled" + ("" if got["confined"] else ", no cgroup")
        others[peer] = got["row_seconds"] * rows_of_epoch, f"{peer} ({how})"

    def row(setting, ours, peer, value, ratio, least, unit="s"):
        numbers = {"ours": f"{ours:.4g}", "peer_value": f"{value:.4g}", "ratio": f"{ratio:.3g}"}
        return {"setting": f"{cell}: {setting}", "peer": peer, "unit": unit, "asked": least,
                **{key: float(text) for key, text in numbers.items()}}

    for plan, got in fed.items():
        what = f"auto, {got['plan']}" if plan == "auto" else plan
        print(got["table"] if plan == "auto" else "", file=sys.stderr)
        sample = "" if got["done"] == cell.batches else f", {got['done']} minibatches, scaled"
        setting = f"plan {what}, {got['hot']} hot rows, window {got['window']}{sample}"
        for peer, (value, text) in others.items():
            least = asked.get(peer) if plan in ("D", "auto") else None
            yield row(setting, got["seconds"], text, value, value / got["seconds"], least)
        yield row(f"plan {what}, seconds and prediction", got["seconds"], "predicted", got["predicted"],
                  min(got["predicted"] / got["seconds"], got["seconds"] / got["predicted"]), 0.8)
        yield row(f"plan {what}, seconds and limit", got["seconds"], "max(disk, processor) of the model", got["model"],
                  got["model"] / got["seconds"], 0.77)
        yield row(f"plan {what}, peak memory", got["peak"] / 1e6, "limit + 10 %", 1.1 * cell.limit / 1e6,
                  1.1 * cell.limit / got["peak"], 1, "MB")
    for same in zip(*(got["digests"] for got in fed.values()), strict=False):  # as far as the shortest sample goes
        assert len(set(same)) == 1, "plans gave different rows"
    best = min(got["seconds"] for got in fed.values())
    chosen = fed["auto"]["seconds"]
    yield row(f"choice of {fed['auto']['plan']}", chosen, "best plan", best, best / chosen, 0.91)


@contextlib.contextmanager
def scratch():
    """The folder that is named, or a temporary one; the files in it are for this run only."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("GNNCY_BENCH_FOLDER"), prefix="cold-tier-") as folder:
        yield Path(folder)


def cells(quick, threads, *others):
    """The cells to measure; small ones, where they are only to be seen to run."""
    for cell in others:
        if quick:
            cell = replace(cell, nodes=cell.nodes // 32, batches=12, part=0.002)
            cell = replace(cell, share=max(0.5, 48e6 / cell.features))
        yield replace(cell, threads=threads)


@table
def cold_tier(quick, threads):
    with scratch() as folder:
        for cell in cells(quick, threads, Cell(8_388_608, 512)):
            yield from grid(cell, folder, {"D": None, "auto": None, "C": 60, "B": 60}, (ROW_READS, RANDOM, MAPPED),
                            {ROW_READS: 10, MAPPED: 50}, 2 if quick else 24)


@table
def cold_tier_memory(quick, threads):
    with scratch() as folder:
        for cell in cells(quick, threads, *(Cell(8_388_608, 512, share, 400, 0.005) for share in (0.05, 0.2, 0.3))):
            yield from grid(cell, folder, {"auto": None, "C": 40}, (ROW_READS,), {ROW_READS: 10}, 2 if quick else 10)


@table
def cold_tier_rows(quick, threads):
    with scratch() as folder:
        for cell in cells(quick, threads, Cell(8_388_608, 128, batches=800, part=0.0025), Cell(1_048_576, 2048)):
            asked = {ROW_READS: 10 if cell.row_bytes < 2048 else 4}
            yield from grid(cell, folder, {"auto": None, "C": cell.batches // 5}, (ROW_READS,), asked,
                            2 if quick else 10)


KINDS = {"prepare": prepare, "feed": feed, "mapped": mapped, "row_reads": row_reads}


def child():
    """Make the call that the command line describes, and print what it returns."""
    options = json.loads(sys.argv[1])
    cell = Cell(**options.pop("cell"))
    print(json.dumps(KINDS[options.pop("kind")](Path(options.pop("folder")), cell, **options)))
