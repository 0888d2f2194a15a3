"""``python -m asv_bench.quality``: the default embedding against what a careful user would try first, on real graphs.

One probe for all: logistic regression on rows of unit length, its strength chosen on validation nodes, scored on test
nodes by accuracy and macro-F1, or by the area under the ROC curve where there are two classes. Each embedding has a
process of its own with one thread, so that processor time and peak memory (beyond what the process holds before) are
those of the one method. Graphs are read from ``NAME.npz`` in the folder ``--data``, see
:mod:`asv_bench.graphs`; one whose file is missing is left out; wordnet comes with the package. A name may go on
with ``:random``, for 10, 10 and 80 % of the nodes drawn by the seed in place of the split in the file, with a number
of columns in place of 128, or with ``:links``, for the prediction of links held out. The method "out of core" is the
default from a store, with a limit of a quarter of the features' dense size (or the least that the plan allows), and
tells whether the bits are those of the default in memory.
"""
import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

import gnncy
from asv_bench.graphs import read_graph, rst_table
from gnncy import _files, _kernels, _memory, graph
from gnncy._threads import usable_cpus, working_threads
from gnncy.datasets import split_edges
from gnncy.evaluate import linear_probe, link_scores
from gnncy.storage.passes import Diffusion, FeatureReducer, unit_rows

COLUMNS = 128
BY_AUC = ("musae_github", "musae_twitch_de", "tolokers", "minesweeper")
BASELINES = ("features (LR)", "SGC", "diffused SVD")
OUT_OF_CORE = "out of core"

Asked = dict[str, float | tuple[tuple[str, ...], float]]
ASKED: Asked = {
    "cora": 84.0, "cora:random": 85.3, "acm:random": (("SGC",), 1.0), "dblp:random": (("SGC",), 1.0),
    "amazon_computers:random": 89.5, "coauthor_physics:random": 96.0, "cora_ml_directed:random": (("SGC",), 1.0),
    "wordnet": 76.0, "wordnet:256": 78.0, "debian_packages": 77.0,
    "actor": (("features (LR)",), 0.5), "blogcatalog:random": (("features (LR)",), 0.5),
    "musae_github:random": (BASELINES, 0.5), "musae_twitch_de:random": (BASELINES, 0.5),
    "tolokers": (BASELINES, 0.5), "minesweeper": (BASELINES, 0.5),
}
"""What the project asks of the default: per cent, or points beyond the best of some methods in the same row."""
ASKED_F1: Asked = {"wordnet": 59.0, "wordnet:256": 62.0}
ASKED_LINKS: dict[str, Asked] = {"auc": {"cora:links": 95.0}, "average_precision": {"cora:links": 95.0}}
GRAPHS = (*ASKED, "squirrel", "polblogs:random", "cora:links")


class Task(NamedTuple):
    """One method on one graph: an embedding, and the seeds of the splits that it is probed on."""

    graph: str
    method: str
    seeds: tuple[int, ...]


def options(name: str) -> tuple[str, bool, int]:
    """The graph, whether its split is random, and the columns of the embedding that a name stands for."""
    source, *words = name.split(":")
    return source, "random" in words, next((int(word) for word in words if word.isdigit()), COLUMNS)


def load(name: str, folder: Path | None):
    """Adjacency, features (or None), labels, and the split that a seed stands for: a function of it."""
    source, random, _ = options(name)
    data = read_graph(source, None if source == "wordnet" else folder)
    if data is None:
        raise FileNotFoundError(f"{name}: no {source}.npz in {folder}")
    adjacency, features, labels, splits = graph.as_csr(data.adjacency), data.features, data.labels, data.splits

    def split(seed: int):
        if not random:
            return splits[seed % len(splits)]
        known = np.random.default_rng(seed).permutation(np.flatnonzero(labels >= 0))
        return tuple(np.split(known, [len(known) // 10, len(known) // 5]))

    return adjacency, features, labels, split


def data_file(source: str, folder: Path | None) -> Path | None:
    """Where a graph is read from; None for the one that comes with the package."""
    return None if source == "wordnet" else (folder or Path()) / f"{source}.npz"


# -- the methods: (adjacency, features, columns, seed) to rows of an embedding

def _raw(adjacency, features, columns=0, seed=0):
    """Features divided by their rows' sums."""
    rows = sp.csr_array(features, dtype=np.float32)
    total = np.maximum(np.asarray(abs(rows).sum(axis=1)).ravel(), 1e-12)
    return sp.csr_array(sp.diags_array((1 / total).astype(np.float32)) @ rows)


def _hat(adjacency):
    both_ways = adjacency if graph.is_symmetric(adjacency) else graph.undirected(adjacency)
    return graph.normalize(both_ways, "sym", self_loops=1.0)


class SmoothedTwice:
    """Simplified graph convolution, two steps, all columns (Wu et al. 2019).

    Rows are computed when they are read, as all of them may fill gigabytes.
    """

    def __init__(self, adjacency, features, columns=0, seed=0):
        self._hat = _hat(adjacency)
        self._once = sp.csr_array(self._hat @ _raw(adjacency, features))
        self.shape = self._once.shape

    def read_batch(self, ids):
        return self._hat[ids] @ self._once


def _reduced(rows, columns, seed):
    if rows.shape[1] <= columns:
        return rows.toarray()
    return FeatureReducer(columns, seed=seed).fit(rows).transform(rows)


def _diffused_svd(adjacency, features, columns, seed):
    """Singular vectors of the features, then ten steps of personalised PageRank, alpha 0.1."""
    with working_threads():
        x = _reduced(_raw(adjacency, features), columns, seed)
        out, scratch = np.empty_like(x), np.empty_like(x)
        return Diffusion("appnp", 10, alpha=0.1)(_hat(adjacency), unit_rows(x), out, scratch)


def _spectral(adjacency, features, columns, seed):
    """Singular vectors of the normalised adjacency, times their values."""
    with working_threads():
        return _reduced(_hat(adjacency), columns, seed)


def _walks(adjacency, features, columns, seed):
    return gnncy.NodeEmbedding(columns, method="walks", random_state=seed).fit_transform(adjacency)


def _encoder(**settings):
    def embed(adjacency, features, columns, seed):
        encoder = gnncy.GraphEncoder(columns, random_state=seed, **settings)
        return np.array(encoder.fit_transform(adjacency, features=features))
    return embed


def _encoded_walks(adjacency, features, columns, seed):
    return _encoder()(adjacency, _walks(adjacency, None, columns, seed), columns, seed)


METHODS: dict[str, Callable] = {"features (LR)": _raw, "SGC": SmoothedTwice, "diffused SVD": _diffused_svd,
                                "untrained": _encoder(max_epochs=0), "default": _encoder()}
WITHOUT_FEATURES: dict[str, Callable] = {
    "rows of A (LR)": lambda adjacency, *_: _raw(adjacency, adjacency), "spectral": _spectral, "walks": _walks,
    "default on walks": _encoded_walks, "default": _encoder()}
UNSEEDED = ("features (LR)", "SGC", "rows of A (LR)")
"""Rows in all columns, which no seed changes: made once, probed on the splits of all seeds."""


# -- links: (adjacency without the test's edges, features, lists of pairs, seed) to the pairs' scores

def _cosine(adjacency, features, pairs, seed):
    """Cosines of rows of simplified graph convolution."""
    rows = SmoothedTwice(adjacency, features)
    scores = []
    for left, right in (part.T for part in pairs):
        a, b = rows.read_batch(left), rows.read_batch(right)
        dot, own, other = (np.asarray(x.multiply(y).sum(axis=1)).ravel() for x, y in ((a, b), (a, a), (b, b)))
        scores.append(dot / np.maximum(np.sqrt(own * other), 1e-12))
    return scores


def _predictor(adjacency, features, pairs, seed):
    model = gnncy.LinkPredictor(random_state=seed).fit(adjacency, features=features)
    return [model.decision_function(part) for part in pairs]


LINKS: dict[str, Callable] = {"cosine": _cosine, "default": _predictor}


# -- a task, in a process of its own

def measured(work: Callable[[], Any]) -> tuple[Any, dict]:
    """What ``work`` gives, and what it costs: processor seconds, and peak memory beyond the start."""
    _memory.trim()
    _memory.reset_peak()
    before, began = _memory.rss(), time.process_time()
    found = work()
    return found, {"cpu_seconds": time.process_time() - began, "peak_bytes": _memory.peak_rss() - before}


def digest(z) -> str:
    return hashlib.blake2b(np.ascontiguousarray(z).data, digest_size=8).hexdigest()


def perform(task: Task, folder: Path | None) -> list[dict]:
    """The records of a task, one a seed."""
    if task.graph.endswith(":links"):
        work = score_links(task, folder)
    elif task.method == OUT_OF_CORE:
        work = embed_out_of_core(task, folder)
    else:
        work = score_nodes(task, folder)
    made_with = f"gnncy {version('gnncy')}, numpy {np.__version__}, scipy {version('scipy')}, SIMD {_kernels.LEVEL}"
    records, before = [], 0.0
    for seed, found in zip(task.seeds, work, strict=True):
        now = time.process_time()
        records.append({"graph": task.graph, "method": task.method, "seed": seed} | found
                       | {"total_seconds": now - before, "made_with": made_with})
        before = now
    return records


def score_nodes(task: Task, folder: Path | None) -> Iterator[dict]:
    adjacency, features, labels, split = load(task.graph, folder)
    source, _, columns = options(task.graph)
    embed = (WITHOUT_FEATURES if features is None else METHODS)[task.method]
    z, cost = measured(lambda: embed(adjacency, features, columns, task.seeds[0]))
    cost |= {"digest": digest(z)} if isinstance(z, np.ndarray) else {}
    metric = "roc_auc" if source in BY_AUC else "accuracy"
    for seed in task.seeds:
        found = linear_probe(z, labels, split(seed), metric=metric)
        yield {"score": 100 * getattr(found, metric), "macro_f1": 100 * found.macro_f1} | cost


def score_links(task: Task, folder: Path | None) -> Iterator[dict]:
    adjacency, features, _, _ = load(task.graph, folder)
    for seed in task.seeds:
        split = split_edges(adjacency, random_state=seed)
        pairs = split.test, split.test_negatives
        scores, cost = measured(partial(LINKS[task.method], split.train, features, pairs, seed))
        found = link_scores(*scores)
        yield {"auc": 100 * found.auc, "average_precision": 100 * found.average_precision} | cost


def embed_out_of_core(task: Task, folder: Path | None) -> Iterator[dict]:
    adjacency, features, _, _ = load(task.graph, folder)
    dense = 4 * features.shape[0] * features.shape[1]
    with tempfile.TemporaryDirectory(prefix="gnncy-quality-") as scratch:
        place = Path(scratch) / "features"
        if sp.issparse(features):
            store = gnncy.storage.SparseFeatureStorage.from_csr(sp.csr_array(features), place)
        else:
            store = gnncy.FeatureStorage.from_array(features, place.with_suffix(".npy"))
        del features
        encoder = gnncy.GraphEncoder(options(task.graph)[2], random_state=task.seeds[0], memory_limit=1)
        limit = max(dense // 4, encoder.estimate(adjacency, features=store).needed)
        encoder.set_params(memory_limit=limit)
        z, cost = measured(lambda: encoder.fit_transform(adjacency, features=store))
        store.close()
        yield {"dense_bytes": dense, "limit_bytes": limit, "digest": digest(z)} | cost


def tasks(names: Iterable[str], methods: Iterable[str], folder: Path | None, seeds: int,
          have: Collection[tuple[str, str, int]] = ()) -> list[Task]:
    """All tasks but of records that are there, those of large files first."""
    found: list[tuple[float, Task]] = []
    for name in names:
        source, random, columns = options(name)
        links, file = name.endswith(":links"), data_file(source, folder)
        size, featured, fixed = float("inf"), True, not random
        if file is not None:
            if not file.exists():
                print(f"{name}: no {file.name} in {folder}, left out", file=sys.stderr)
                continue
            with np.load(file, allow_pickle=False) as z:
                size, featured = file.stat().st_size, "x" in z or "x_data" in z
                fixed = fixed and ("train_mask" not in z or z["train_mask"].shape[1] == 1)
        own = list(LINKS) if links else [*METHODS, OUT_OF_CORE] if featured else list(WITHOUT_FEATURES)
        if columns != COLUMNS:
            own = [method for method in own if method not in UNSEEDED]
        for method in own:
            once = method == OUT_OF_CORE or fixed and method in UNSEEDED
            todo = [seed for seed in range(1 if once else seeds) if (name, method, seed) not in have]
            if method in methods and todo:
                groups = [tuple(todo)] if method in UNSEEDED else [(seed,) for seed in todo]
                found += [(-size, Task(name, method, group)) for group in groups]
    return [task for _, task in sorted(found, key=lambda pair: pair[0])]


def perform_all(todo: list[Task], folder: Path | None, jobs: int) -> Iterator[list[dict]]:
    """Records as tasks end, ``jobs`` at a time."""
    def alone(task: Task) -> list[dict]:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(perform, task, folder).result()

    with ThreadPoolExecutor(jobs) as threads:
        futures = [threads.submit(alone, task) for task in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


# -- tables

def mean(found: list[dict], key: str) -> str:
    """Mean ± standard deviation of a sample; without it where there is one run."""
    values = [r[key] for r in found]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}" if values else "–"


def cost(found: list[dict]) -> str:
    """Processor seconds, mean over runs, and megabytes, most of any run."""
    if not found:
        return "–"
    return f"{np.mean([r['cpu_seconds'] for r in found]):.1f} s, {max(r['peak_bytes'] for r in found) / 1e6:.0f} MB"


class Results:
    """Records by graph and method; graphs in the order of ``GRAPHS``, others after."""

    def __init__(self, records: list[dict]) -> None:
        self.cells: dict[tuple[str, str], list[dict]] = {}
        for record in sorted(records, key=lambda r: r["seed"]):
            self.cells.setdefault((record["graph"], record["method"]), []).append(record)
        there = {name for name, _ in self.cells}
        self.graphs = [*(name for name in GRAPHS if name in there), *sorted(there.difference(GRAPHS))]

    def of(self, name: str, method: str) -> list[dict]:
        return self.cells.get((name, method), [])

    def with_any(self, methods: Iterable[str], *, links: bool = False) -> list[str]:
        """Graphs on which one of the methods ran."""
        return [name for name in self.graphs if name.endswith(":links") == links
                and any((name, method) in self.cells for method in methods)]

    def grid(self, names: list[str], methods: Iterable[str], cell: Callable[[list[dict]], str],
             **more: Callable[[str], str]) -> list[str]:
        """A table with graphs down and the methods that ran, then more, across; nothing without graphs."""
        methods = [method for method in methods if any(self.of(name, method) for name in names)]
        lines = [["graph", *methods, *more]]
        for name in names:
            lines.append([name, *(cell(self.of(name, method)) for method in methods),
                          *(text(name) for text in more.values())])
        return rst_table(lines) if names else []

    def best(self, name: str, methods: Iterable[str], key: str = "score") -> float | None:
        """The highest mean of some methods; None where none ran."""
        found = [self.of(name, method) for method in methods]
        return max((float(np.mean([r[key] for r in cell])) for cell in found if cell), default=None)

    def asked(self, name: str, key: str, asked: Asked) -> str:
        """What is asked of the default, in per cent."""
        goal = asked.get(name)
        if isinstance(goal, tuple):
            methods, margin = goal
            best = self.best(name, methods, key)
            goal = None if best is None else best + margin
        return "" if goal is None else f"{goal:.1f}"

    def gain(self, name: str) -> str:
        """Points of the default over the best baseline."""
        ours, theirs = self.best(name, ["default"]), self.best(name, BASELINES)
        return "" if ours is None or theirs is None else f"{ours - theirs:+.1f}"

    def same_bits(self, name: str) -> str:
        inside = {r["seed"]: r["digest"] for r in self.of(name, "default")}
        record = self.of(name, OUT_OF_CORE)[0]
        if record["seed"] not in inside:
            return "not compared"
        return "yes" if inside[record["seed"]] == record["digest"] else "NO"


def tables(records: list[dict]) -> dict[str, list[str]]:
    """Every table of which there is a row, by its name."""
    found = Results(records)
    bare = found.with_any(WITHOUT_FEATURES.keys() - METHODS.keys())
    featured = [name for name in found.with_any(METHODS) if name not in bare]
    linked, stored = found.with_any(LINKS, links=True), found.with_any([OUT_OF_CORE])
    embedders = [method for method in METHODS if method not in UNSEEDED]

    def megabytes(key: str) -> Callable[[str], str]:
        return lambda name: f"{found.of(name, OUT_OF_CORE)[0][key] / 1e6:.0f} MB"

    link_lines = [["graph", "method", "AUC", "AP", "cost"]]
    for name in linked:
        link_lines += [[name, method, mean(found.of(name, method), "auc"),
                        mean(found.of(name, method), "average_precision"), cost(found.of(name, method))]
                       for method in LINKS]
        link_lines.append([name, "asked", *(found.asked(name, key, asked) for key, asked in ASKED_LINKS.items()), ""])
    return {name: lines for name, lines in {
        "scores": found.grid(featured, METHODS, lambda cell: mean(cell, "score"), gain=found.gain,
                             asked=lambda name: found.asked(name, "score", ASKED)),
        "f1": found.grid(featured, METHODS, lambda cell: mean(cell, "macro_f1"),
                         asked=lambda name: found.asked(name, "macro_f1", ASKED_F1)),
        "cost": found.grid(featured, embedders, cost),
        "without_features": found.grid(bare, WITHOUT_FEATURES, lambda cell: mean(cell, "score")),
        "links": rst_table(link_lines) if linked else [],
        "out_of_core": found.grid(stored, [], cost, **{
            "dense features": megabytes("dense_bytes"), "limit": megabytes("limit_bytes"),
            "peak": megabytes("peak_bytes"), "same bits": found.same_bits}),
    }.items() if lines}


def about(records: list[dict]) -> str:
    """What was run, for a line under the first table."""
    total = sum(r["total_seconds"] for r in records)
    return (f"{_count(records, 'run')} with {_count({r['seed'] for r in records}, 'seed')} in {total / 60:.0f} minutes "
            f"of processor time, reading and probes included; {'; '.join(sorted({r['made_with'] for r in records}))}.")


def _count(things, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.quality", description=__doc__.split("\n")[0])
    parser.add_argument("graphs", nargs="*", default=list(GRAPHS), metavar="NAME[:random][:COLUMNS][:links]",
                        help=f"default: {' '.join(GRAPHS)}")
    every = list(dict.fromkeys((*METHODS, OUT_OF_CORE, *WITHOUT_FEATURES, *LINKS)))
    parser.add_argument("--methods", nargs="+", default=[method for method in every if method != "untrained"],
                        choices=every, metavar="METHOD", help=f"of {', '.join(every)}; default: all but untrained")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--jobs", type=int, default=usable_cpus(), metavar="N", help="processes, of one thread each")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the .npz files")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="add the runs there, and do not repeat those it has: remove it when the program changed")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="write the tables there, as quality_NAME.inc")
    chosen = parser.parse_args(arguments)
    records = json.loads(chosen.json.read_text()) if chosen.json and chosen.json.exists() else []
    have = {(r["graph"], r["method"], r["seed"]) for r in records}
    todo = tasks(chosen.graphs, chosen.methods, chosen.data, chosen.seeds, have)
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GNNCY_NUM_THREADS"):
        os.environ[variable] = "1"  # read by the processes that start
    began = time.monotonic()
    for found in perform_all(todo, chosen.data, chosen.jobs):
        records += found
        print(*map(json.dumps, found), sep="\n", file=sys.stderr, flush=True)
        if chosen.json:
            _files.write_text(chosen.json, json.dumps(records, indent=1) + "\n")
    if todo:
        count = _count([seed for task in todo for seed in task.seeds], "run")
        print(f"{count} in {time.monotonic() - began:.0f} s", file=sys.stderr)
    for name, lines in tables(records).items():
        if name == "scores":
            lines += ["", about(records)]
        print(name.replace("_", " "), *lines, "", sep="\n")
        if chosen.tables:
            _files.write_text(chosen.tables / f"quality_{name}.inc", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
