"""``python -m asv_bench.ablation``: what each optional technique of training does to the accuracy of a linear probe.

Every variant trains the same encoder from the same weights through ``Trainer.fit`` for the same number of epochs,
changes one thing, and is scored on the same split. Graphs are read from ``NAME.npz`` in the folder ``--data``, see
:mod:`asv_bench.graphs`; one whose file is missing is left out.
``wordnet`` is a part of the embedded data set.
"""
import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from asv_bench.graphs import read_graph, rst_table
from gnncy import graph, nn, optim
from gnncy._threads import working_threads
from gnncy.evaluate import linear_probe
from gnncy.losses import (
    GraphHardNegativeMiner,
    HardNegativeMiner,
    InfoNCELoss,
    LocalContrastiveLoss,
    MultiObjectiveLoss,
    SpectralRegularization,
)
from gnncy.optim import CosineSchedule, LinearSchedule
from gnncy.optim.compression import TernaryCompressor
from gnncy.storage.passes import FeatureReducer, unit_rows
from gnncy.training import (
    CurriculumScheduler,
    CurriculumStage,
    GraphLoader,
    Objective,
    Schedules,
    Trainer,
    neighbor_difficulty,
)
from gnncy.training.phases import PhaseConfig, PredictionConfig

WIDTH, HIDDEN, COLUMNS = 256, 256, 64
STEPS, BATCH = 120, 512
WORDNET_NODES = 15_000
GRAPHS = ("cora", "acm", "dblp", "amazon_computers", "actor", "wordnet", "cora:sage")
TEMPERATURE = 0.5


@dataclass
class Graph:
    """What the variants are trained on and scored by."""

    name: str
    adjacency: sp.csr_array
    features: np.ndarray  # reduced, not smoothed
    smoothed: np.ndarray
    labels: np.ndarray
    split: tuple[np.ndarray, ...]
    difficulty: np.ndarray


@dataclass
class Variant:
    """One change: arguments of the loader, the objective and the schedules, made for a graph and a number of epochs."""

    name: str
    loader: Callable[[Graph], dict] = lambda data: {}
    objective: Callable[[], Objective | None] = lambda: None
    schedules: Callable[[int], Schedules | None] = lambda epochs: None
    phases: Callable[[], PhaseConfig | None] = lambda: None
    against: str = "in-batch InfoNCE"


def _mined(strategy: str, **options) -> Callable[[Graph], dict]:
    return lambda data: {"negatives": HardNegativeMiner(strategy, 32, **options), "candidates": BATCH}


def _ring(data: Graph) -> dict:
    return {"negatives": GraphHardNegativeMiner(data.adjacency, "random", 32, max_distance=2), "candidates": 4 * BATCH}


def _ordered(data: Graph) -> dict:
    return {"difficulty": data.difficulty}


def _stages(epochs: int) -> Schedules:
    third = max(1, epochs // 3)
    return Schedules(CurriculumScheduler([CurriculumStage("easy", third, 0.7, 16, {}, 0.5),
                                          CurriculumStage("medium", third, 0.5, 32, {}, 0.75),
                                          CurriculumStage("hard", max(1, epochs - 2 * third), 0.4, 64, {}, 0.9)]))


def _several(method: str = "fixed", **weights: float) -> Callable[[], Objective]:
    losses: dict[str, Any] = {"infonce": InfoNCELoss(TEMPERATURE, symmetric=True),
                              "local": LocalContrastiveLoss(1.0, negatives=1, normalize=True),
                              "spectral": SpectralRegularization()}
    weights = {"infonce": 1.0} | weights
    return lambda: Objective({name: losses[name] for name in weights}, MultiObjectiveLoss(weights, method))


def _contrast(**options) -> Callable[[], Objective]:
    return lambda: Objective({"infonce": InfoNCELoss(TEMPERATURE, symmetric=True, **options)})


BOTH = {"local": 0.3, "spectral": 0.05}
VARIANTS = (
    Variant("in-batch InfoNCE"),
    Variant("neighbours count as negatives", loader=lambda data: {"exclude_neighbors": False}),
    Variant("random negatives", loader=_mined("random")),
    Variant("hardest negatives", loader=_mined("hardest"), against="random negatives"),
    Variant("semi-hard negatives", loader=_mined("semi_hard"), against="random negatives"),
    Variant("negatives two arcs away", loader=_ring, against="random negatives"),
    Variant("curriculum: easy nodes first", loader=_ordered,
            schedules=lambda epochs: Schedules(difficulty=LinearSchedule(0.4, 1.0, max(1, epochs // 2)))),
    Variant("curriculum: three stages", loader=_ordered, schedules=_stages, against="random negatives"),
    Variant("temperature 0.9 to 0.3",
            schedules=lambda epochs: Schedules(temperature=CosineSchedule(0.9, 0.3, epochs))),
    Variant("local term", objective=_several(local=0.3)),
    Variant("spectral term", objective=_several(spectral=0.05)),
    Variant("local and spectral, fixed", objective=_several(**BOTH)),
    Variant("the same, uncertainty", objective=_several("uncertainty", **BOTH), against="local and spectral, fixed"),
    Variant("the same, GradNorm", objective=_several("gradnorm", **BOTH), against="local and spectral, fixed"),
    Variant("debiased, prior 0.1", objective=_contrast(prior=0.1)),
    Variant("hardness 0.5", objective=_contrast(prior=0.01, hardness=0.5)),
    Variant("ternary gradients", phases=lambda: PhaseConfig(predict_steps=0, compressor=TernaryCompressor())),
    Variant("a third of gradients predicted", phases=lambda: PhaseConfig(
        full_steps=10, predict_steps=5, prediction=PredictionConfig(min_correlation=None))),
)


class Sage(nn.Module):
    """GraphSAGE on sampled blocks."""

    def __init__(self, dims: tuple[int, ...], rng):
        self.layers = [nn.SAGEConv(a, b, rng=rng) for a, b in pairwise(dims)]

    def forward(self, blocks, x):
        for i, (layer, block) in enumerate(zip(self.layers, blocks, strict=True)):
            x = layer(block, x if i == 0 else nn.relu(x))
        return x


def encoder(name: str, width: int, rng) -> nn.Module:
    """The encoder under a projection head; the probe sees what is before the head."""
    body = Sage((width, HIDDEN, COLUMNS), rng) if name == "sage" else nn.MLP((width, HIDDEN, COLUMNS), rng=rng)
    return nn.Projected(body, nn.ProjectionHead(COLUMNS, COLUMNS, COLUMNS, rng=rng))


def load(name: str, folder: Path | None) -> Graph | None:
    """A graph with features reduced to ``WIDTH`` columns, and smoothed; None where there is no file."""
    data = read_graph(name, None if name == "wordnet" else folder)
    if data is None:
        return None
    adjacency, features, labels, split = graph.as_csr(data.adjacency), data.features, data.labels, data.splits[0]
    if name == "wordnet":
        degree = np.diff(adjacency.indptr)
        kept = np.sort(graph.bfs_order(adjacency, start=int(degree.argmax()))[:WORDNET_NODES])
        adjacency, labels, features = sp.csr_array(adjacency[kept][:, kept]), labels[kept], features[kept]
        split = tuple(np.flatnonzero(np.isin(kept, part)) for part in split)
    if sp.issparse(features):
        reducer = FeatureReducer(min(WIDTH, *features.shape), seed=0)
        features = reducer.fit(sp.csr_array(features, dtype=np.float32)).transform(sp.csr_array(features,
                                                                                                dtype=np.float32))
    x = unit_rows(np.array(features, np.float32)) * np.float32(np.sqrt(features.shape[1]))
    step = graph.normalize(graph.as_csr(adjacency), "sym", self_loops=1.0)
    smoothed = graph.spmm(step, graph.spmm(step, x))
    smoothed = unit_rows(smoothed) * np.float32(np.sqrt(features.shape[1]))
    return Graph(name, graph.as_csr(adjacency), x, smoothed, labels, split, neighbor_difficulty(adjacency, x))


def train(data: Graph, variant: Variant, kind: str, seed: int, steps: int) -> tuple[float, float]:
    """Accuracy of the probe, and seconds of training."""
    sage = kind == "sage"
    n = data.adjacency.shape[0]
    batch = min(BATCH, n // 5)
    model = encoder(kind, data.features.shape[1], np.random.default_rng(seed))
    epochs = max(2, round(steps * batch / n))
    loader = GraphLoader(data.adjacency, data.features if sage else data.smoothed, batch_size=batch, seed=seed,
                         fanouts=(10, 10) if sage else None, **variant.loader(data))
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    trainer = Trainer(model, optimizer, seed=seed, max_epochs=epochs, schedule=CosineSchedule(1.0, 0.0, 1.0),
                      phases=variant.phases())
    began = time.perf_counter()
    trainer.fit(loader, variant.objective() or _contrast()(), schedules=variant.schedules(epochs), n_jobs=-1)
    seconds = time.perf_counter() - began
    with working_threads(-1):
        z = loader.embed(model.encoder, n_jobs=-1)
        return linear_probe(z, data.labels, data.split, n_jobs=-1).accuracy, seconds


def table(rows: list[dict], names: list[str]) -> list[str]:
    """The results in reStructuredText: accuracy in per cent, mean ± standard deviation over seeds.

    The gain is the mean over graphs of the difference from what a variant is compared with.
    """
    def mean(row, name):
        return 100 * np.mean(row["accuracy"][name])

    by_name = {row["variant"]: row for row in rows}
    lines = [["variant", *names, "gain", "over", "seconds"]]
    for row in rows:
        cells = [f"{mean(row, name):.1f} ± {100 * np.std(row['accuracy'][name]):.1f}" for name in names]
        other = by_name.get(row["against"])
        gain = "" if other in (None, row) else f"{np.mean([mean(row, n) - mean(other, n) for n in names]):+.1f}"
        lines.append([row["variant"], *cells, gain, row["against"] if gain else "", f"{np.mean(row['seconds']):.1f}"])
    return rst_table(lines)


def figure(rows: list[dict], names: list[str], file: Path) -> None:
    """A dot for each graph and variant: the difference from what the variant is compared with, in points."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("--figure needs matplotlib: pip install 'gnncy[plot]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: a quarter of the size
    from matplotlib import pyplot

    by_name = {row["variant"]: row for row in rows}
    shown = [row for row in rows if row["against"] in by_name and row["against"] != row["variant"]][::-1]
    canvas, axes = pyplot.subplots(figsize=(7.5, 0.8 + 0.28 * len(shown)), layout="constrained")
    for graph_name in names:
        gains = [100 * (np.mean(row["accuracy"][graph_name]) - np.mean(by_name[row["against"]]["accuracy"][graph_name]))
                 for row in shown]
        axes.plot(gains, range(len(shown)), "o", markersize=5, alpha=0.8, label=graph_name)
    axes.axvline(0, color="0.6", linewidth=1, zorder=0)
    axes.set_xscale("symlog", linthresh=2)
    axes.set_xticks([-20, -10, -5, -2, -1, 0, 1, 2], ["-20", "-10", "-5", "-2", "-1", "0", "1", "2"])
    axes.set_yticks(range(len(shown)), [f"{row['variant']}  (over {row['against']})" for row in shown], fontsize=7)
    axes.set_xlabel("points of accuracy gained", fontsize=8)
    axes.grid(axis="x", color="0.92")
    axes.legend(fontsize=7, loc="lower left")
    canvas.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("--graphs", nargs="+", default=GRAPHS, metavar="NAME",
                        help="NAME, or NAME:sage for GraphSAGE in place of an MLP on smoothed features "
                        f"(default: {' '.join(GRAPHS)})")
    parser.add_argument("--variants", nargs="+", metavar="WORD", help="those whose names hold one of these words")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help="minibatches of a run, about")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the .npz files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all accuracies and seconds there")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the gains (needs matplotlib)")
    options = parser.parse_args(arguments)
    chosen = [v for v in VARIANTS if not options.variants or any(word in v.name for word in options.variants)]
    rows: list[dict] = [{"variant": v.name, "against": v.against, "accuracy": {}, "seconds": []} for v in chosen]
    names = []
    for name in options.graphs:
        source, _, kind = name.partition(":")
        data = load(source, options.data)
        if data is None:
            print(f"{name}: no {source}.npz in {options.data}, left out", file=sys.stderr)
            continue
        names.append(name)
        for variant, row in zip(chosen, rows, strict=True):
            found = [train(data, variant, kind or "mlp", seed, options.steps) for seed in range(options.seeds)]
            row["accuracy"][name] = [accuracy for accuracy, _ in found]
            row["seconds"] += [seconds for _, seconds in found]
            print(f"{name}  {variant.name:<32} {100 * np.mean(row['accuracy'][name]):.1f}  "
                  f"{np.mean([seconds for _, seconds in found]):.1f} s", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if names:
        print(*table(rows, names), sep="\n")
        if options.figure:
            figure(rows, names, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
