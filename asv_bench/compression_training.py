"""``python -m asv_bench.compression_training``: what compressors keep of gradients, and SGD with them.

The first table is the cosine between gradients and what comes back, against bytes; the second the steps until a
held-out loss is within 1 % of where SGD with full gradients ends, relative to those that SGD needs for the same. Graphs
are read as by ``python -m asv_bench.ablation``; one whose file is missing is left out.
"""
import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from asv_bench.ablation import Graph, load
from asv_bench.graphs import rst_table
from gnncy import nn, optim
from gnncy._threads import working_threads
from gnncy.losses import InfoNCELoss
from gnncy.optim.compression import (
    Compressor,
    CountSketchCompressor,
    Mod3VSACompressor,
    PowerSGDCompressor,
    SignCompressor,
    TernaryCompressor,
    TopKCompressor,
    VSAGradientCompressor,
    similarity,
)

Gradients = dict[str, np.ndarray]
STEPS, BATCH, EVERY = 150, 256, 5
LIMIT = 3  # times STEPS, after which a run is given up

CURVES: dict[str, list[Callable[[], Compressor]]] = {
    "reference VSA": [partial(Mod3VSACompressor, d) for d in (1024, 2048, 4096, 8192)],
    "VSA": [partial(VSAGradientCompressor, r) for r in (0.05, 0.1, 0.25, 0.5, 0.8, 1.0)],
    "VSA, sparse": [partial(VSAGradientCompressor, r, projection="sparse") for r in (0.1, 0.25, 0.5, 0.8, 1.0)],
    "ternary": [TernaryCompressor],
    "TernGrad": [partial(TernaryCompressor, "terngrad")],
    "sign": [SignCompressor],
    "top-k": [partial(TopKCompressor, r) for r in (0.002, 0.005, 0.01, 0.025, 0.05)],
    "count sketch": [partial(CountSketchCompressor, r) for r in (0.01, 0.025, 0.05, 0.1)],
    "PowerSGD": [partial(PowerSGDCompressor, r) for r in (1, 2, 4, 8)],
}
TRAINED: dict[str, Callable[[], Compressor]] = {
    "ternary": TernaryCompressor,
    "ternary, no feedback": partial(TernaryCompressor, error_feedback=False),
    "TernGrad": partial(TernaryCompressor, "terngrad"),
    "sign": SignCompressor,
    "VSA 0.8": partial(VSAGradientCompressor, 0.8),
    "VSA 0.25": partial(VSAGradientCompressor, 0.25),
    "VSA 0.8, sparse": partial(VSAGradientCompressor, 0.8, projection="sparse"),
    "top-k 5 %": partial(TopKCompressor, 0.05),
    "top-k 1 %": partial(TopKCompressor, 0.01),
    "count sketch 10 %": partial(CountSketchCompressor, 0.1),
    "PowerSGD 4": partial(PowerSGDCompressor, 4),
    "PowerSGD 1": partial(PowerSGDCompressor, 1),
}  # without the reference's VSA: its projection of one layer has half a gigabyte, and a step takes seconds


class Training:
    """An encoder of smoothed features, a neighbour as the positive; batches depend on the step alone."""

    def __init__(self, data: Graph, hidden: int = 64, columns: int = 32):
        self.x = data.smoothed
        self.edges = np.column_stack(data.adjacency.nonzero())
        self.model = nn.MLP((self.x.shape[1], hidden, columns), rng=0)
        self.parameters = dict(self.model.named_parameters())
        self.loss = InfoNCELoss(0.5, symmetric=True)
        self.held_out = [self._pairs(-1 - i) for i in range(4)]

    def _pairs(self, step: int) -> np.ndarray:
        rng = np.random.default_rng([7, step + 1000])
        return self.edges[rng.choice(len(self.edges), min(BATCH, len(self.edges)), replace=False)]

    def _forward(self, pairs):
        return self.loss(self.model(self.x[pairs[:, 0]]), self.model(self.x[pairs[:, 1]]))

    def gradients(self, step: int) -> Gradients:
        """Those of the minibatch of a step."""
        self.model.zero_grad()
        self._forward(self._pairs(step)).backward()
        return {name: parameter.grad for name, parameter in self.parameters.items()}

    def evaluate(self) -> float:
        """The held-out loss."""
        with nn.no_grad():
            return float(np.mean([self._forward(pairs).item() for pairs in self.held_out]))

    def run(self, lr: float, momentum: float, compressor: Compressor | None,
            target: float | None) -> tuple[list[float], int]:
        """Held-out losses every few steps, until the target is met; and the bytes of a message.

        Momentum is added up before it is compressed: what error feedback sends late would be multiplied after.
        """
        optimizer = optim.SGD(list(self.parameters.values()), lr=lr)
        found, size = [self.evaluate()], 0
        velocity = {name: np.zeros_like(parameter.data) for name, parameter in self.parameters.items()}
        for step in range(STEPS if target is None else LIMIT * STEPS):
            gradients = self.gradients(step)
            for name, gradient in gradients.items():
                velocity[name] *= momentum
                velocity[name] += gradient
            gradients = velocity
            if compressor is not None:
                message = compressor.compress(gradients)
                size, gradients = message.nbytes, compressor.decompress(message)
            optimizer.step([gradients[name] for name in self.parameters])
            if (step + 1) % EVERY == 0:
                found.append(self.evaluate())
                if target is not None and found[-1] <= target:
                    break
        return found, size


def curve(gradients: Gradients) -> list[dict]:
    """Bytes, bits for each number and cosine, of every compressor and setting."""
    whole = np.concatenate([x.reshape(-1) for x in gradients.values()])
    rows = []
    for name, settings in CURVES.items():
        for make in settings:
            compressor = make()
            message = compressor.compress(gradients)
            out = compressor.decompress(message)
            given = np.concatenate([out[key].reshape(-1) for key in gradients])
            rows.append({"name": name, "setting": " ".join(map(str, make.args)) if isinstance(make, partial) else "",
                         "bytes": message.nbytes, "bits": 8 * message.nbytes / whole.size,
                         "cosine": similarity(given, whole)})
    return rows


def examples(data: Graph | None) -> dict[str, Gradients]:
    """One tensor and six of normal numbers, and an encoder's gradients after twenty steps."""
    rng = np.random.default_rng(0)
    shapes = ((64, 64), (64,), (64, 32), (32,), (64, 64), (32,))
    found = {"one tensor": {"w": rng.standard_normal(10304).astype(np.float32)},
             "six tensors": {str(i): rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}}
    if data is not None:
        training = Training(data)
        optimizer = optim.SGD(list(training.parameters.values()), lr=0.1)
        for step in range(20):
            optimizer.step(list(training.gradients(step).values()))
        found["encoder"] = {name: x.copy() for name, x in training.gradients(20).items()}
    return found


def steps(data: Graph, momentum: float) -> list[dict]:
    """Steps to the loss of full precision, of every compressor."""
    rates = [rate * (1 - momentum) for rate in (0.3, 1.0, 3.0, 10.0, 30.0)]
    ends = {lr: Training(data).run(lr, momentum, None, None)[0] for lr in rates}
    lr = min(rates, key=lambda rate: ends[rate][-1])
    target = 1.01 * ends[lr][-1]
    full = EVERY * next(i for i, loss in enumerate(ends[lr]) if loss <= target)
    rows = [{"name": "full precision", "lr": lr, "steps": full, "ratio": 1.0, "bytes": 4 * sum(
        p.data.size for p in Training(data).parameters.values())}]
    for name, make in TRAINED.items():
        found, size = Training(data).run(lr, momentum, make(), target)
        met = found[-1] <= target
        rows.append({"name": name, "lr": lr, "steps": EVERY * (len(found) - 1) if met else None, "bytes": size,
                     "ratio": EVERY * (len(found) - 1) / full if met else None,
                     "excess": None if met else found[-1] / ends[lr][-1] - 1})
        print(f"{data.name}  lr {lr:g}  {name:<22} {rows[-1]['steps']}", file=sys.stderr, flush=True)
    return rows


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.compression_training",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--graphs", nargs="+", default=("wordnet", "cora"), metavar="NAME")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the .npz files")
    parser.add_argument("--momentum", type=float, default=0.0, metavar="M", help="of SGD (default 0)")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the cosines for the encoder there")
    options = parser.parse_args(arguments)
    with working_threads(-1):
        graphs = [data for name in options.graphs if (data := load(name, options.data)) is not None]
        found = {name: curve(gradients) for name, gradients in examples(graphs[0] if graphs else None).items()}
        lines = [["compressor", "setting", *(f"{name}: bits" if part == "bits" else "cosine" for name in found
                                             for part in ("bits", "cosine"))]]
        for rows in zip(*found.values(), strict=True):
            cells = [cell for row in rows for cell in (f"{row['bits']:.2f}", f"{row['cosine']:.2f}")]
            lines.append([rows[0]["name"], rows[0]["setting"] or "-", *cells])
        print(*rst_table(lines), "", sep="\n")
        if options.figure and graphs:
            from gnncy import plot
            plot.compression(found["encoder"], save=options.figure)
        trained = {data.name: steps(data, options.momentum) for data in graphs}
    if trained:
        lines = [["compressor", *(cell for name in trained for cell in (f"{name}: bytes", "steps", "ratio"))]]
        for rows in zip(*trained.values(), strict=True):
            cells = []
            for row in rows:
                cells += [f"{row['bytes']:,}", *([str(row["steps"]), f"{row['ratio']:.2f}"] if row["ratio"] else
                                                 [f"> {LIMIT * STEPS}", f"+{100 * row['excess']:.0f} %"])]
            lines.append([rows[0]["name"], *cells])
        print(*rst_table(lines), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
