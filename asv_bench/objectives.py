"""``python -m asv_bench.objectives``: what each objective does with each encoder, by the accuracy of a linear probe.

Every run is a ``GraphEncoder`` with its defaults but for the encoder, the objective and, for encoders over sampled
neighbourhoods, ``SAMPLED``. "untrained" is ``max_epochs=0``. Graphs are read from ``NAME.npz`` in the folder
``--data``, see :mod:`asv_bench.graphs`; one without a split has a random one of 10/10/80 per cent.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from asv_bench.graphs import read_graph, rst_table
from gnncy import GraphEncoder
from gnncy.evaluate import linear_probe
from gnncy.graph import undirected

GRAPHS = ("cora", "cora_ml_directed", "dblp", "amazon_computers")
ENCODERS = ("propagate", "mlp", "sage", "gcn", "gat")
OBJECTIVES = ("untrained", "infonce", "vicreg", "cca", "bgrl", "ggd", "reconstruction")
SAMPLED = {"learning_rate": 3e-3, "n_neighbors": (10, 5), "batch_size": 512, "hidden": 128}


def load(name: str, folder: Path):
    """Adjacency, made undirected, features, labels and split of a graph."""
    data = read_graph(name, folder)
    if data is None:
        raise SystemExit(f"{name}: no {name}.npz in {folder}")
    return undirected(data.adjacency), data.features, data.labels, data.splits[0] if data.splits else None


def run(data, encoder: str, objective: str, seed: int, **changes) -> tuple[float, float]:
    """Accuracy of the probe, and CPU seconds of the fit."""
    adjacency, features, labels, split = data
    settings: dict = {"encoder": encoder, "n_jobs": -1, "random_state": seed}
    if encoder not in ("propagate", "mlp"):
        settings |= SAMPLED
    settings |= {"max_epochs": 0} if objective == "untrained" else {"objective": objective}
    model = GraphEncoder(**(settings | changes))
    began = time.process_time()
    z = model.fit_transform(adjacency, features=features)
    seconds = time.process_time() - began
    return linear_probe(z, labels, split, n_jobs=-1).accuracy, seconds


def table(cells: dict, graphs: list[str]) -> list[str]:
    """Accuracy in per cent, mean ± standard deviation over seeds, and CPU seconds a fit, in reStructuredText."""
    lines = [["encoder", "objective", *graphs, "mean", "CPU s"]]
    for (encoder, objective), row in cells.items():
        means = [100 * np.mean(row[name]["accuracy"]) for name in graphs]
        seconds = np.mean([row[name]["seconds"] for name in graphs])
        lines.append([encoder, objective, *(f"{mean:.1f} ± {100 * np.std(row[name]['accuracy']):.1f}"
                                            for mean, name in zip(means, graphs, strict=True)),
                      f"{np.mean(means):.1f}", f"{seconds:.1f}"])
    return rst_table(lines)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.objectives", description=__doc__.split("\n")[0])
    parser.add_argument("--graphs", nargs="+", default=GRAPHS, metavar="NAME")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS, choices=ENCODERS, metavar="NAME")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, metavar="NAME",
                        help="names of GraphEncoder's objectives, several joined by +, or 'untrained'")
    parser.add_argument("--seeds", type=int, default=2, metavar="N")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the .npz files")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all accuracies and seconds there")
    options = parser.parse_args(arguments)
    cells: dict = {(encoder, objective): {} for encoder in options.encoders for objective in options.objectives}
    for name in options.graphs:
        data = load(name, options.data)
        for (encoder, objective), row in cells.items():
            chosen = objective.split("+") if "+" in objective else objective
            found = [run(data, encoder, chosen, seed) for seed in range(options.seeds)]
            row[name] = dict(zip(("accuracy", "seconds"), zip(*found, strict=True), strict=True))
            print(f"{name}  {encoder}  {objective}  {100 * np.mean(row[name]['accuracy']):.1f}  "
                  f"{np.mean(row[name]['seconds']):.1f} s", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps([{"encoder": key[0], "objective": key[1], **row}
                                                for key, row in cells.items()], indent=1) + "\n")
    print(*table(cells, list(options.graphs)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
