"""Passes over all nodes out of core: smoothing, layer-wise inference, and rows of few bytes.

``streaming``: A²X of 8 GiB of features within 1 GiB, beside the time in which the disk reads and writes the bytes that
the method needs, measured in the same run. ``streaming_inference``: a GraphSAGE encoder of two layers over all nodes,
beside the same model in memory. ``streaming_formats``: float32, float16 and int8, their bytes, the time to gather
rows, and what a linear probe finds. Files are read and written past the page cache (``O_DIRECT``), every pass in a
process of its own.

The scratch folder is ``GNNCY_BENCH_FOLDER``, the temporary directory by default; up to 18 GB of it are used, and freed.
``GNNCY_BENCH_GIB`` asks for another size of features. ``coauthor_physics.npz`` is read from ``GNNCY_BENCH_DATA``.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from asv_bench.graphs import read_graph
from asv_bench.peers import table

WIDTH = 768  # columns, those of MAG240M
DEGREE = 10
HIDDEN = (256, 128)
SAMPLE = 1 << 30  # bytes that are read and written to measure the disk
FORMATS = ("float32", "float16", "int8")


def make_graph(n, seed=0):
    """A graph of uniformly random arcs, symmetric: no order of the rows helps."""
    import scipy.sparse as sp
    rng = np.random.default_rng(seed)
    ends = [rng.integers(0, n, n * DEGREE // 2, dtype=np.int32) for _ in range(2)]
    graph = sp.coo_array((np.ones(len(ends[0]), np.float32), ends), shape=(n, n)).tocsr()
    graph = (graph + graph.T).tocsr()
    graph.data[:] = 1
    return graph


def prepare(folder, n):
    """Write the graph and the features."""
    import scipy.sparse as sp

    from gnncy import FeatureStorage
    sp.save_npz(folder / "graph.npz", make_graph(n), compressed=False)
    base = np.random.default_rng(1).standard_normal((8209, WIDTH), dtype=np.float32)

    def blocks():
        for start in range(0, n, 8192):
            ids = np.arange(start, min(start + 8192, n))
            rows = base[ids % len(base)]
            rows[:, 0] = ids % 1021
            yield rows

    FeatureStorage.from_blocks(folder / "x.npy", (n, WIDTH), blocks()).close()
    return {}


def load_graph(folder):
    import scipy.sparse as sp
    return sp.csr_array(sp.load_npz(folder / "graph.npz"))


def disk(folder):
    """Bytes a second that one sequential pass reads and writes, many requests in flight and nothing computed."""
    from gnncy.storage._blocks import BlockFile, IOStatistics, direct_empty
    from gnncy.storage.passes.direct import Scratch
    buffer, rates = direct_empty(64 << 20), []
    buffer[:] = np.random.default_rng(0).integers(0, 256, len(buffer), dtype=np.uint8)
    with BlockFile(folder / "x.npy", direct=True) as file:
        size = min(SAMPLE, (folder / "x.npy").stat().st_size // len(buffer) * len(buffer))
        begun = time.perf_counter()
        for start in range(0, size, len(buffer)):
            file.read_range(start, buffer)
        rates.append(size / (time.perf_counter() - begun))
    scratch = Scratch(folder, size, True, None, IOStatistics())
    begun = time.perf_counter()
    for start in range(0, size, len(buffer)):
        scratch.write(buffer, start)
    rates.append(size / (time.perf_counter() - begun))
    scratch.close()
    return {"read": rates[0], "write": rates[1]}


def measured(call):
    """Seconds, those of the processor, and bytes of memory held at most beside those at the beginning."""
    from gnncy._memory import peak_rss, reset_peak, rss
    reset_peak()
    before, begun, worked = rss(), time.perf_counter(), time.process_time()
    call()
    return {"seconds": time.perf_counter() - begun, "processor": time.process_time() - worked,
            "peak": peak_rss() - before}


def smooth(folder, limit, threads):
    """A²X from disk to disk; the plan's bytes, and whether some columns are those of the product in memory."""
    from gnncy import FeatureStorage
    from gnncy.graph import normalize, spmm
    from gnncy.storage._blocks import IOStatistics
    from gnncy.storage.passes import propagate, stream
    from gnncy.storage.plans import calibrate
    model, kept, plans = calibrate(folder, refresh=True), [], []

    class Kept(IOStatistics):
        def __init__(self, *counts):
            super().__init__(*counts)
            kept.append(self)

    planned = stream.plan_pass

    def plan_pass(*arguments, **options):
        plans.append(planned(*arguments, **options))
        return plans[-1]

    graph = load_graph(folder)
    with FeatureStorage(folder / "x.npy", direct=True) as store:
        stream.IOStatistics, stream.plan_pass = Kept, plan_pass
        out = measured(lambda: propagate(graph, store, 2, out=folder / "y.npy", memory_limit=limit, disk=model,
                                         n_jobs=threads).close())
        stream.IOStatistics, stream.plan_pass = IOStatistics, planned
        moved, plan = kept[0].as_dict(), plans[0]
        columns = [0, WIDTH - 1]
        x = np.concatenate([rows[:, columns] for rows in store.iter_rows(8192)])
    matrix = normalize(graph)
    expected = spmm(matrix, spmm(matrix, x))
    with FeatureStorage(folder / "y.npy", direct=True) as found:
        same = all(np.array_equal(rows[:, columns], expected[8192 * k:8192 * k + len(rows)])
                   for k, rows in enumerate(found.iter_rows(8192)))
    assert same, "A²X differs from the product in memory"
    source = 4 * WIDTH * matrix.shape[0]
    return out | {"method": plan.method, "read": plan.bytes_read, "written": plan.bytes_written,
                  "moved": moved["bytes_written"] + moved["bytes_requested"] + source * (plan.method == "columns")}


def encoder():
    from gnncy import nn
    a, b = HIDDEN
    return nn.GraphSequential(nn.SAGEConv(WIDTH, a, rng=0), nn.ReLU(), nn.SAGEConv(a, b, rng=1)).eval()


def infer(folder, limit, threads):
    """Layer by layer from disk to disk."""
    from gnncy import FeatureStorage, nn
    graph = load_graph(folder)
    with FeatureStorage(folder / "x.npy", direct=True) as store:
        found = measured(lambda: nn.infer(encoder(), graph, store, out=folder / "z.npy", memory_limit=limit,
                                          n_jobs=threads).close())
    return found


def infer_in_memory(folder, threads):
    """The same model on the whole graph, features and all layers in memory; whether the results are the same."""
    from gnncy import FeatureStorage, nn
    from gnncy._threads import working_threads
    graph, kept = load_graph(folder), []

    def whole():
        with FeatureStorage(folder / "x.npy", direct=True) as store, nn.no_grad(), working_threads(threads):
            kept.append(encoder()(graph, store[:]).data)

    found = measured(whole)
    with FeatureStorage(folder / "z.npy") as embedding:
        assert np.array_equal(embedding[:], kept[0]), "layer-wise inference differs from the model in memory"
    return found


def formats(folder, name):
    """Bytes, gathered rows a second, and the linear probe of A²X, for features stored in each format."""
    from gnncy.evaluate import linear_probe
    from gnncy.storage import FeatureStorage, QuantizedFeatureStorage
    from gnncy.storage.passes import FeatureReducer, propagate
    graph, features, labels, split = problem(name)
    x = FeatureReducer(256, seed=0).fit(features).transform(features)
    picks = np.random.default_rng(0).integers(0, len(x), (20, min(20_000, len(x))))
    found = {}
    for format in FORMATS:
        path = folder / f"{name}-{format}.npy"
        store = (QuantizedFeatureStorage.from_array(x, path) if format == "int8"
                 else FeatureStorage.from_array(x, path, dtype=format))
        with store:
            store.read_batch(picks[0])
            begun = time.perf_counter()
            for ids in picks:
                store.read_batch(ids)
            seconds = (time.perf_counter() - begun) / len(picks)
            error = float(np.abs(store[:] - x).max() / np.abs(x).max())
            with propagate(graph, store, 2, out=folder / f"{name}-{format}-smooth.npy") as smooth:
                accuracy = linear_probe(smooth[:], labels, split).accuracy
            found[format] = {"bytes": store.nbytes, "seconds": seconds, "error": error, "accuracy": accuracy}
    return found


def problem(name):
    """Graph, features, labels and split."""
    data = read_graph(name, Path(os.environ["GNNCY_BENCH_DATA"]) if "GNNCY_BENCH_DATA" in os.environ else None)
    if data is None:
        raise SystemExit(f"{name}: no {name}.npz in the folder that GNNCY_BENCH_DATA names")
    return data.adjacency, data.features, data.labels, data.splits[0]


def row(setting, ours, peer, value, unit="s", ratio=None, asked=None):
    return {"setting": setting, "ours": float(f"{ours:.4g}"), "peer": peer,
            "peer_value": None if value is None else float(f"{value:.4g}"), "unit": unit,
            "ratio": None if ratio is None else float(f"{ratio:.3g}"), "asked": asked}


def in_process(kind, folder, **options):
    """What a function of this file returns, called in a process of its own."""
    root = Path(__file__).parents[2]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (root, *sys.path[1:]))))
    code = "from asv_bench.peers import streaming; streaming.child()"
    done = subprocess.run([sys.executable, "-c", code, json.dumps({"kind": kind, "folder": str(folder)} | options)],
                          check=True, stdout=subprocess.PIPE, env=environment, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def child():
    """Make the call that the command line describes, and print what it returns."""
    options = json.loads(sys.argv[1])
    print(json.dumps(KINDS[options.pop("kind")](Path(options.pop("folder")), **options)))


KINDS = {"prepare": prepare, "disk": disk, "smooth": smooth, "infer": infer, "infer_in_memory": infer_in_memory,
         "formats": formats}


def sizes(quick, gib):
    """Rows of the features and the limit: an eighth of them, and what is held whatever their size."""
    nbytes = 64 << 20 if quick else int(float(os.environ.get("GNNCY_BENCH_GIB", gib)) * 2**30)
    return nbytes // (4 * WIDTH), max(nbytes // 8, 96_000_000)


def scratch():
    return tempfile.TemporaryDirectory(dir=os.environ.get("GNNCY_BENCH_FOLDER"), prefix="streaming-")


@table
def streaming(quick, threads):
    n, limit = sizes(quick, 8)
    with scratch() as name:
        folder = Path(name)
        in_process("prepare", folder, n=n)
        before = in_process("disk", folder)
        got = in_process("smooth", folder, limit=limit, threads=threads)
        after = in_process("disk", folder)
    read, write = ((before[kind] + after[kind]) / 2 for kind in ("read", "write"))
    seconds = got["read"] / read + got["written"] / write
    what = f"A²X of {4 * WIDTH * n / 2**30:.3g} GiB by {got['method']}, limit {limit / 2**30:.3g} GiB"
    yield row(f"{what}, seconds", got["seconds"], f"disk: {got['read'] / 1e9:.3g} GB at {read / 1e9:.3g} GB/s, "
              f"{got['written'] / 1e9:.3g} GB at {write / 1e9:.3g} GB/s", seconds, "s", seconds / got["seconds"], 0.67)
    yield row(f"{what}, processor", got["processor"] / threads, "disk", seconds, "s",
              threads * seconds / got["processor"])
    yield row(f"{what}, bytes", got["moved"] / 1e9, "planned", (got["read"] + got["written"]) / 1e9, "GB",
              (got["read"] + got["written"]) / got["moved"], 0.99)
    yield row(f"{what}, peak memory", got["peak"] / 1e6, "limit", limit / 1e6, "MB", limit / got["peak"], 1)


@table
def streaming_inference(quick, threads):
    n, limit = sizes(quick, 1)
    with scratch() as name:
        folder = Path(name)
        in_process("prepare", folder, n=n)
        ours = in_process("infer", folder, limit=limit, threads=threads)
        whole = in_process("infer_in_memory", folder, threads=threads)
    what = f"2 layers of GraphSAGE, {4 * WIDTH * n / 2**30:.3g} GiB, limit {limit / 2**30:.3g} GiB"
    yield row(f"{what}, seconds", ours["seconds"], "in memory, same bits", whole["seconds"], "s",
              whole["seconds"] / ours["seconds"])
    yield row(f"{what}, peak memory", ours["peak"] / 1e6, "limit", limit / 1e6, "MB", limit / ours["peak"], 1)
    yield row(f"{what}, peak memory", ours["peak"] / 1e6, "in memory", whole["peak"] / 1e6, "MB",
              whole["peak"] / ours["peak"])


@table
def streaming_formats(quick, threads):
    names = ["wordnet"] if quick or "GNNCY_BENCH_DATA" not in os.environ else ["wordnet", "coauthor_physics"]
    if "GNNCY_BENCH_DATA" not in os.environ:
        print("streaming_formats: no coauthor_physics, set GNNCY_BENCH_DATA to a folder with coauthor_physics.npz",
              file=sys.stderr)
    with scratch() as folder:
        for name in names:
            found = in_process("formats", folder, name=name)
            wide = found["float32"]
            for format in FORMATS[1:]:
                got = found[format]
                yield row(f"{name}, {format}, bytes", got["bytes"] / 1e6, "float32", wide["bytes"] / 1e6, "MB",
                          wide["bytes"] / got["bytes"])
                yield row(f"{name}, {format}, gather", 1e3 * got["seconds"], "float32", 1e3 * wide["seconds"], "ms",
                          wide["seconds"] / got["seconds"])
                yield row(f"{name}, {format}, error", got["error"], "of the largest value", None, "")
                yield row(f"{name}, {format}, linear probe of A²X", 100 * got["accuracy"], "float32",
                          100 * wide["accuracy"], "%", got["accuracy"] / wide["accuracy"])
