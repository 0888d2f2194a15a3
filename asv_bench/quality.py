"""``python -m asv_bench.quality``: the default embedding against what a careful user would try first, on real graphs.

One probe for all: logistic regression on rows of unit length, its strength chosen on validation nodes, scored on test
nodes by accuracy and macro-F1, or by the area under the ROC curve where there are two classes. Each run has a process
of its own, so that processor time and peak memory (beyond what the process holds before) are those of the one method.
Graphs are read from ``NAME.npz`` in the folder ``--data``, in the form that ``asv_bench.ablation`` names; one whose
file is missing is left out. A name with ``:random`` draws 10, 10 and 80 % of the nodes by the seed, in place of the
split in the file. ``--out-of-core`` embeds each graph again from a store with a limit of a quarter of its features'
dense size (or the least that the plan allows) and tells whether the bits are the same.
"""
import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

import gnncy
from gnncy import _memory, graph
from gnncy._threads import working_threads
from gnncy.evaluate import linear_probe, macro_f1
from gnncy.storage.passes import Diffusion, FeatureReducer, unit_rows

ASKED = {
    "cora": "84.0", "cora:random": "85.3", "acm:random": "92.1", "dblp:random": "84.1",
    "amazon_computers:random": "89.5", "coauthor_physics:random": "96.0", "cora_ml_directed:random": "85.8",
    "wordnet": "76 / 59", "debian_packages": "77",
    "actor": "LR + 0.5", "blogcatalog:random": "LR + 0.5", "musae_github:random": "best + 0.5",
    "musae_twitch_de:random": "best + 0.5", "tolokers": "best + 0.5", "minesweeper": "best + 0.5",
}
"""What the project asks of the default: per cent, or beyond the baselines of the same row."""
BY_AUC = ("musae_github", "musae_twitch_de", "tolokers", "minesweeper")
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
SIZE = 128


def load(name: str, folder: Path, seed: int):
    """Adjacency, features, labels and the split that a name and a seed stand for."""
    name, _, split = name.partition(":")
    with np.load(folder / f"{name}.npz", allow_pickle=False) as z:
        labels = z["y"]
        n = len(labels)
        arcs = z["adj_indices"]
        adjacency = graph.as_csr(sp.csr_array((np.ones(len(arcs), np.float32), arcs, z["adj_indptr"]), shape=(n, n)))
        features = z["x"] if "x" in z else sp.csr_array((z["x_data"].astype(np.float32), z["x_indices"],
                                                         z["x_indptr"]), shape=tuple(z["x_shape"]))
        if split == "random":
            known = np.random.default_rng(seed).permutation(np.flatnonzero(labels >= 0))
            parts = tuple(np.split(known, [len(known) // 10, len(known) // 5]))
        elif "train_mask" in z:
            column = seed % z["train_mask"].shape[1]
            parts = tuple(np.flatnonzero(z[f"{part}_mask"][:, column]) for part in ("train", "val", "test"))
        else:
            parts = tuple(z[f"{part}_idx"] for part in ("train", "val", "test"))
    return adjacency, features, labels, parts


def _raw(adjacency, features, seed):
    """Features divided by their rows' sums."""
    rows = sp.csr_array(features, dtype=np.float32)
    total = np.maximum(np.asarray(abs(rows).sum(axis=1)).ravel(), 1e-12)
    return sp.csr_array(sp.diags_array((1 / total).astype(np.float32)) @ rows)


def _hat(adjacency):
    both_ways = adjacency if graph.is_symmetric(adjacency) else graph.undirected(adjacency)
    return graph.normalize(both_ways, "sym", self_loops=1.0)


def _sgc(adjacency, features, seed):
    """Simplified graph convolution, two steps, all columns (Wu et al. 2019)."""
    hat = _hat(adjacency)
    return sp.csr_array(hat @ (hat @ _raw(adjacency, features, seed)))


def _diffused_svd(adjacency, features, seed):
    """Singular vectors of the features, then ten steps of personalised PageRank, alpha 0.1."""
    with working_threads():
        x = _raw(adjacency, features, seed)
        if x.shape[1] > SIZE:
            x = FeatureReducer(SIZE, seed=seed).fit(x).transform(x)
        else:
            x = x.toarray()
        out, scratch = np.empty_like(x), np.empty_like(x)
        return Diffusion("appnp", 10, alpha=0.1)(_hat(adjacency), unit_rows(x), out, scratch)


def _encoder(**settings):
    def embed(adjacency, features, seed):
        encoder = gnncy.GraphEncoder(random_state=seed, **settings)
        return np.array(encoder.fit_transform(adjacency, features=features))
    return embed


METHODS = {"features (LR)": _raw, "SGC": _sgc, "diffused SVD": _diffused_svd, "untrained": _encoder(max_epochs=0),
           "default": _encoder()}
SEEDED = ("diffused SVD", "untrained", "default")  # the others are the same for all seeds, given the split


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; ties count half."""
    count = int(positive.sum())
    return (rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count))


def probe(z, labels, split, by_auc: bool) -> tuple[float, float]:
    """Per cent of accuracy (or area under the curve) and of macro-F1 on the test nodes."""
    if not by_auc:
        found = linear_probe(z, labels, split)
        return 100 * found.accuracy, 100 * found.macro_f1
    z = sp.csr_array(z, dtype=np.float64) if sp.issparse(z) else np.asarray(z, np.float64)
    length = np.maximum(np.sqrt(np.asarray((z * z).sum(axis=1)).ravel()), 1e-12)
    z = sp.csr_array(sp.diags_array(1 / length) @ z) if sp.issparse(z) else z / length[:, None]
    positive = labels == labels.max()
    train, val, test = split
    x, sign = z[train], np.where(positive[train], 1.0, -1.0)
    weights, best = np.zeros(z.shape[1] + 1), (-1.0, np.zeros(1))
    for strength in STRENGTHS:
        def objective(w, strength=strength):
            margin = sign * (x @ w[:-1] + w[-1])
            pull = -strength * sign * expit(-margin)
            return (strength * np.logaddexp(0, -margin).sum() + w[:-1] @ w[:-1] / 2,
                    np.append(x.T @ pull + w[:-1], pull.sum()))
        weights = minimize(objective, weights, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
        area = area_under_curve(z[val] @ weights[:-1], positive[val])
        if area < best[0]:
            break
        if area > best[0]:
            best = area, weights
    scores = z[test] @ best[1][:-1]
    return (100 * area_under_curve(scores, positive[test]),
            100 * macro_f1(positive[test].astype(int), (scores + best[1][-1] > 0).astype(int)))


def run(name: str, folder: Path, seed: int, method: str) -> dict:
    """One method on one graph: scores, processor seconds of the embedding, peak memory beyond the start."""
    adjacency, features, labels, split = load(name, folder, seed)
    _memory.reset_peak()
    before, began = _memory.rss(), time.process_time()
    z = METHODS[method](adjacency, features, seed)
    seconds, peak = time.process_time() - began, _memory.peak_rss() - before
    score, f1 = probe(z, labels, split, name.partition(":")[0] in BY_AUC)
    return {"graph": name, "method": method, "seed": seed, "score": score, "macro_f1": f1, "cpu_seconds": seconds,
            "peak_bytes": peak}


def run_out_of_core(name: str, folder: Path, seed: int, method: str) -> dict:
    """The default from a store within a quarter of the dense features' size; whether the bits are those in memory."""
    adjacency, features, _, _ = load(name, folder, seed)
    dense = 4 * features.shape[0] * features.shape[1]
    expected = METHODS[method](adjacency, features, seed)
    with tempfile.TemporaryDirectory(prefix="gnncy-quality-") as scratch:
        place = Path(scratch) / "features"
        if sp.issparse(features):
            store = gnncy.storage.SparseFeatureStorage.from_csr(sp.csr_array(features), place)
        else:
            store = gnncy.FeatureStorage.from_array(features, place.with_suffix(".npy"))
        del features
        encoder = gnncy.GraphEncoder(random_state=seed)
        limit = max(dense // 4, encoder.estimate(adjacency, features=store).needed)
        _memory.trim()
        _memory.reset_peak()
        before = _memory.rss()
        z = np.array(encoder.set_params(memory_limit=limit).fit_transform(adjacency, features=store))
        peak = _memory.peak_rss() - before
        store.close()
    return {"graph": name, "method": "out of core", "seed": seed, "dense_bytes": dense, "limit_bytes": limit,
            "peak_bytes": peak, "same_bits": bool(np.array_equal(z, expected))}


def _in_a_process(task, *arguments) -> dict:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(task, arguments)


def rst(lines: list[list[str]]) -> list[str]:
    """A simple table in reStructuredText; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [rule, text[0], rule, *text[1:], rule]


def table(records: list[dict]) -> list[str]:
    """Graphs down, methods across: mean ± deviation over seeds of the score, the F1 of the default, its cost."""
    def cell(found, key):
        values = [r[key] for r in found]
        return f"{np.mean(values):.1f} ± {np.std(values):.1f}"

    lines = [["graph", *METHODS, "F1 (default)", "asked", "CPU s", "peak MB"]]
    for name in dict.fromkeys(r["graph"] for r in records):
        by_method = {method: [r for r in records if (r["graph"], r["method"]) == (name, method)] for method in METHODS}
        ours = by_method["default"]
        cost = ([f"{np.mean([r['cpu_seconds'] for r in ours]):.1f}", f"{max(r['peak_bytes'] for r in ours) / 1e6:.0f}"]
                if ours else ["", ""])
        lines.append([name, *(cell(found, "score") if found else "" for found in by_method.values()),
                      cell(ours, "macro_f1") if ours else "", ASKED.get(name, ""), *cost])
    return rst(lines)


def table_out_of_core(records: list[dict]) -> list[str]:
    """Size, limit and peak in megabytes, and whether the bits are those of a run in memory."""
    return rst([["graph", "dense features", "limit", "peak", "same bits"],
                *([r["graph"], *(f"{r[key] / 1e6:.0f} MB" for key in ("dense_bytes", "limit_bytes", "peak_bytes")),
                   "yes" if r["same_bits"] else "NO"] for r in records)])


def tasks(names, folder: Path, seeds: int, methods):
    """Graph, folder, seed and method of every run; what no seed can change runs once."""
    for name in names:
        if not (folder / f"{name.partition(':')[0]}.npz").exists():
            print(f"{name}: no file in {folder}, left out", file=sys.stderr)
            continue
        with np.load(folder / f"{name.partition(':')[0]}.npz", allow_pickle=False) as z:
            fixed = not name.endswith(":random") and ("train_mask" not in z or z["train_mask"].shape[1] == 1)
        for method in methods:
            for seed in range(1 if fixed and method not in SEEDED else seeds):
                yield name, folder, seed, method


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.quality", description=__doc__.split("\n")[0])
    parser.add_argument("graphs", nargs="*", default=list(ASKED), metavar="NAME[:random]")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the .npz files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the runs there; those it has are not run again")
    parser.add_argument("--out-of-core", action="store_true", help="compare bits with a run from a store, one seed")
    options = parser.parse_args(arguments)
    records = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    have = {(r["graph"], r["seed"], r["method"]) for r in records}
    if options.out_of_core:
        todo = [(run_out_of_core, task) for task in tasks(options.graphs, options.data, 1, ["default"])]
    else:
        todo = [(run, task) for task in tasks(options.graphs, options.data, options.seeds, options.methods)]
    for work, (name, folder, seed, method) in todo:
        key = name, seed, "out of core" if options.out_of_core else method
        if key in have:
            continue
        records.append(_in_a_process(work, name, folder, seed, method))
        print(json.dumps(records[-1]), file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(records, indent=1) + "\n")
    inside = [r for r in records if r["method"] in METHODS]
    outside = [r for r in records if r["method"] == "out of core"]
    for found, form in ((inside, table), (outside, table_out_of_core)):
        if found:
            print(*form(found), "", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
