"""``python -m asv_bench.continual``: what a classifier forgets while it learns one group of classes after the other.

The classes of a graph are split into tasks, which are learned one after the other by an MLP on smoothed features. In
the task-incremental setting the task of a node is known and its classes alone are told apart; in the class-incremental
one all classes seen so far are. Graphs are those of :mod:`asv_bench.ablation`; of ``wordnet`` the classes with enough
training nodes. With ``--growing`` in place of that: what ``GraphEncoder.partial_fit`` does on a graph of which the
first nodes were there before.
"""
import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gnncy import GraphEncoder, nn, optim
from gnncy._random import derive, stream
from gnncy._threads import working_threads
from gnncy.evaluate import linear_probe
from gnncy.storage import HyperbatchIterator
from gnncy.training import Trainer
from gnncy.training.continual import ElasticWeightConsolidation, Rehearsal, ReplayMemory

from .ablation import load
from .graphs import rst_table

GRAPHS = {"wordnet": 5, "coauthor_physics": 2}  # tasks
LEAST_NODES = 50  # of a class, for training
HIDDEN, BATCH, STEPS, RATE = (64, 64, 64), 128, 200, 1e-2
FISHER_SAMPLES, REPLAYED = 500, 20  # REPLAYED nodes of each class in the memory
SETTINGS = ("task", "class")
STRENGTH, DECAY = 1e4, 0.9
GROWING = ("cora_ml_directed", "cora_ml_directed:sage")
OLD = 0.7  # share of the nodes that are there before
METHODS = ("fine-tuning", "EWC", "online EWC", "replay", "joint training")


@dataclass
class Tasks:
    """Features, labels 0, 1, ... in the order of the tasks, and of each task its classes and nodes."""

    x: np.ndarray
    labels: np.ndarray
    classes: list[np.ndarray]
    train: list[np.ndarray]
    test: list[np.ndarray]


def split(data, n_tasks: int, seed: int) -> Tasks:
    """The classes with enough nodes, in a random order, cut into tasks."""
    kept = np.flatnonzero(np.bincount(data.labels[data.split[0]]) >= LEAST_NODES)
    order = stream(seed, "classes").permutation(kept)
    labels = np.full(data.labels.max() + 1, -1)
    labels[order] = np.arange(len(order))
    labels = labels[data.labels]
    classes = np.array_split(np.arange(len(order)), n_tasks)
    train, _, test = ([part[np.isin(labels[part], own)] for own in classes] for part in data.split)
    return Tasks(data.smoothed, labels, classes, train, test)


def masks(tasks: Tasks, setting: str, seen: int) -> np.ndarray:
    """For each label what is added to the logits: far below 0 where a class is not to be chosen."""
    count = sum(map(len, tasks.classes))
    out = np.full((count, count), -1e4, np.float32)
    for own in tasks.classes[:seen]:
        out[np.ix_(own, own if setting == "task" else np.concatenate(tasks.classes[:seen]))] = 0
    return out


def learn(tasks: Tasks, setting: str, method: str, seed: int, strength: float = STRENGTH) -> np.ndarray:
    """The accuracy on each task (columns) after each task (rows)."""
    count = sum(map(len, tasks.classes))
    model = nn.MLP([tasks.x.shape[1], *HIDDEN, count], rng=seed)
    ewc = ElasticWeightConsolidation(model, strength, decay=DECAY if method == "online EWC" else None)
    memory = ReplayMemory(REPLAYED * count, balance="class", seed=seed)
    accuracy = np.zeros((len(tasks.train), len(tasks.train)))
    for task in range(len(tasks.train)):
        mask = masks(tasks, setting, task + 1)
        nodes = np.concatenate(tasks.train[:task + 1]) if method == "joint training" else tasks.train[task]

        def batches(epoch, first, nodes=nodes, task=task):
            drawn = stream(seed, "batches", task).choice(nodes, (STEPS, BATCH))
            return HyperbatchIterator(tasks.x, list(drawn[first:]), buffer_bytes="16MB", prefetch=False)

        def step_of(ids, rows, mask=mask):
            log_p = nn.log_softmax(model(nn.Tensor(rows)) + mask[tasks.labels[ids]])
            loss = -log_p[np.arange(len(ids)), tasks.labels[ids]].mean()
            loss.backward()
            return loss.item()

        terms = {"EWC": ewc, "online EWC": ewc, "replay": Rehearsal(
            memory, lambda replayed, key: step_of(replayed.nodes, tasks.x[replayed.nodes]), BATCH)}
        Trainer(model, optim.Adam(model.parameters(), lr=RATE), seed=derive(seed, task), max_epochs=1,
                continual=terms.get(method, ())).run(
            batches, lambda batch, key: (step_of(batch.batch, batch.features), BATCH), STEPS)
        if method.endswith("EWC"):
            drawn = stream(seed, "fisher", task).permutation(nodes)[:FISHER_SAMPLES]
            ewc.compute_fisher(tasks.x[drawn], classes=np.concatenate(tasks.classes[:task + 1]) if setting == "class"
                               else tasks.classes[task])
            ewc.consolidate()
        memory.add(nodes, labels=tasks.labels[nodes])
        for other in range(task + 1):
            ids = tasks.test[other]
            with nn.no_grad():
                chosen = (model(nn.Tensor(tasks.x[ids])).data + mask[tasks.labels[ids]]).argmax(axis=1)
            accuracy[task, other] = (chosen == tasks.labels[ids]).mean()
    return accuracy


def summary(accuracy: np.ndarray) -> tuple[float, float]:
    """Mean final accuracy, and by how much tasks but the last are worse at the end than when they were learned."""
    return float(accuracy[-1].mean()), float((accuracy.diagonal() - accuracy[-1])[:-1].mean())


def spread(values) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f}"


def forgetting(options) -> list[dict]:
    """Every method in both settings on every graph."""
    found = []
    for name in options.graphs:
        data = load(name, options.data)
        if data is None:
            continue
        for setting in SETTINGS:
            for method in METHODS:
                began = time.perf_counter()
                results = [summary(learn(split(data, GRAPHS[name], seed), setting, method, seed, options.strength))
                           for seed in range(options.seeds)]
                found.append({"graph": name, "setting": setting, "method": method,
                              "accuracy": [a for a, _ in results], "forgetting": [f for _, f in results],
                              "seconds": (time.perf_counter() - began) / options.seeds})
    return found


WAYS: dict[str, Callable[[GraphEncoder, Any, dict], np.ndarray]] = {
    "transform": lambda encoder, X, features: encoder.transform(X, **features),
    "partial_fit, closeness 0": lambda encoder, X, features: encoder.partial_fit(X, **features, closeness=0).embedding_,
    "partial_fit": lambda encoder, X, features: encoder.partial_fit(X, **features).embedding_,
    "partial_fit, closeness 10": lambda encoder, X, features: encoder.partial_fit(X, **features,
                                                                                  closeness=10).embedding_,
    "fit": lambda encoder, X, features: encoder.fit(X, **features).embedding_,
}


def grow(data, kind: str, seed: int) -> dict[str, list[float]]:
    """What each way to embed the grown graph gives: accuracy of old and new nodes, drift of old ones, seconds.

    Accuracy is that of a probe which was fitted to the embedding before the graph grew, then of one fitted anew.
    """
    n = len(data.labels)
    old = int(OLD * n)
    adjacency = data.adjacency
    encoder = GraphEncoder(64, encoder=kind, random_state=seed, learning_rate=3e-4 if kind == "propagate" else 3e-3)
    before = encoder.fit_transform(adjacency[:old][:, :old], features=data.features[:old])
    train, val, test = data.split
    fit = train[train < old], val[val < old]

    def measured(z: np.ndarray, seconds: float) -> list[float]:
        found = []
        for nodes in (test[test < old], test[test >= old]):
            both = np.concatenate([before, z]), np.concatenate([data.labels[:old], data.labels])
            found += [linear_probe(*both, (*fit, old + nodes)).accuracy,
                      linear_probe(z, data.labels, (*fit, nodes)).accuracy]
        return [*found, float(np.linalg.norm(z[:old] - before) / np.linalg.norm(before)), seconds]

    grown = {"features": data.features}
    out = {}
    for name, embed in WAYS.items():
        twin = copy.deepcopy(encoder)
        began = time.perf_counter()
        z = embed(twin, adjacency, grown)
        out[name] = measured(z, time.perf_counter() - began)
    return out


def growing(options) -> list[dict]:
    """Every way on every graph."""
    found = []
    for name in GROWING:
        source, _, kind = name.partition(":")
        data = load(source, options.data)
        if data is None:
            continue
        runs = [grow(data, kind or "propagate", seed) for seed in range(options.seeds)]
        found += [{"graph": name, "way": way, **{column: [run[way][i] for run in runs] for i, column in enumerate(
            ("old nodes, old probe", "old nodes", "new nodes, old probe", "new nodes", "drift", "seconds"))}}
            for way in runs[0]]
    return found


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.continual", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the .npz files")
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), choices=list(GRAPHS))
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--strength", type=float, default=STRENGTH, help="of EWC (default: %(default)g)")
    parser.add_argument("--growing", action="store_true", help="measure GraphEncoder.partial_fit instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    options = parser.parse_args(arguments)
    with working_threads(-1):
        found = growing(options) if options.growing else forgetting(options)
    if options.growing:
        columns = [name for name in found[0] if name not in ("graph", "way", "seconds")]
        lines = [["graph", "way", *columns, "seconds"], *(
            [row["graph"], row["way"], *[spread(row[column]) for column in columns], f"{np.mean(row['seconds']):.1f}"]
            for row in found)]
    else:
        lines = [["graph", "setting", "method", "accuracy", "forgetting", "seconds"], *(
            [row["graph"], f"{row['setting']}-incremental", row["method"], spread(row["accuracy"]),
             spread(row["forgetting"]), f"{row['seconds']:.1f}"] for row in found)]
    print(*rst_table(lines), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
