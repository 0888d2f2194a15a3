"""Phase training against plain training: time, and backward passes, to the same loss, the learning rate tuned for each.

A learning problem is a function that trains once and returns its curve. ``cora.npz`` is read from the folder that
``GNNCY_BENCH_DATA`` names, in the form that ``asv_bench.ablation`` describes, and left out without one.
"""
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asv_bench.peers import table

SEEDS = 5


class ReferenceScheme:
    """The scheme of vsa-optim-rs: 10 FULL, 40 PREDICT, a CORRECT after every tenth, one vector for all predictions.

    Corrections count as predicted steps, the prediction is g + 0.9 (g - g_before) whatever the distance, the
    correction is collected but not applied, and there is no gate.
    """

    def __init__(self, full=10, predict=40, every=10, momentum=0.9):
        self.full, self.predict, self.every, self.momentum = full, predict, every, momentum
        self.phase, self.step, self.history = "full", 0, []

    def next_phase(self):
        if self.phase == "full":
            return "predict" if self.step >= self.full else "full"
        if self.phase == "predict" and self.step > 0 and self.step % self.every == 0:
            return "correct"
        return "full" if self.step >= self.predict else "predict"

    def begin(self):
        phase = self.next_phase()
        if "full" in (phase, self.phase) and phase != self.phase:
            self.step = 0
        self.phase = phase

    def drive(self, params, loss, update):
        self.begin()
        self.history = [*self.history, [p.grad.copy() for p in params]][-2:]
        update()
        self.step += 1
        while self.next_phase() == "predict":
            self.begin()
            for p, last, before in zip(params, self.history[-1], self.history[0], strict=True):
                p.grad[...] = last + self.momentum * (last - before)
            update()
            self.step += 1

    def add_seconds(self, what, seconds):
        """The Trainer tells its clocks; this scheme has none."""

    def get_stats(self):
        from types import SimpleNamespace
        return SimpleNamespace(predict_steps=0)

    def state_dict(self):
        raise NotImplementedError("the reference keeps nothing")


@dataclass
class Scheme:
    """A way to train; ``asked`` is the least ratio of plain training's time, or passes, to its own."""

    name: str
    make: object  # of (parameters) -> what has ``drive``, or None
    asked: float | None = None
    momentum: float = 0.0  # of the quadratic's optimizer


def schemes(predictable=False):
    from gnncy.training.phases import PhaseConfig, PhaseTrainer, PredictionConfig

    def ours(method, full=2, predict=2, every=2, **options):
        options = {"min_correlation": None, "correction_weight": 0.0} | options
        config = PhaseConfig(full, predict, every, PredictionConfig(method, **options), adaptive_phases=False)
        return lambda params: PhaseTrainer({str(i): p.shape for i, p in enumerate(params)}, config, params[0].dtype)

    gated = PhaseConfig()
    yield Scheme("plain", lambda params: None)
    yield Scheme("plain, momentum 0.6", lambda params: None, momentum=0.6)
    yield Scheme("default: least squares 2/2/2, gate 0.8",
                 lambda params: PhaseTrainer({str(i): p.shape for i, p in enumerate(params)}, gated, params[0].dtype),
                 1 / 1.05)
    yield Scheme("least squares 2/2/2", ours("least_squares"), 33 / 27 if predictable else None)
    yield Scheme("least squares 2/2/2, trust", ours("least_squares", correction_weight=0.5))
    yield Scheme("momentum 2/2/2", ours("momentum"))
    yield Scheme("last 2/2/2", ours("last"))
    yield Scheme("least squares 10/40/10", ours("least_squares", 10, 40, 10))
    yield Scheme("least squares 10/40/10, gate 0.8", ours("least_squares", 10, 40, 10, min_correlation=0.8), 1 / 1.05)
    yield Scheme("reference 10/40/10", lambda params: ReferenceScheme())


class Curve:
    """Loss against backward passes and against seconds of the processor that training took."""

    def __init__(self):
        self.points = []  # (backward passes, seconds, loss)
        self.own = 0.0  # seconds that went into phases, and not into the steps of the optimizer

    def reach(self, target):
        """Backward passes and seconds at which the loss was first at most ``target``; infinite if never."""
        return next(((passes, seconds) for passes, seconds, loss in self.points if loss <= target), (np.inf, np.inf))


def quadratic(noise, target, passes):
    """60 dimensions, eigenvalues 0.01 to 1 in even ratios, gradients with Gaussian noise; the loss without noise."""
    from gnncy import nn
    from gnncy.optim import SGD
    eigenvalues = np.geomspace(0.01, 1, 60)

    def run(scheme, rate, seed):
        rng = np.random.default_rng(seed)
        start = rng.standard_normal(60)
        x = nn.Tensor(start / np.linalg.norm(start) * np.sqrt(60), requires_grad=True)
        optimizer, phases = SGD([x], lr=rate, momentum=scheme.momentum), scheme.make([x])
        curve, count, spent = Curve(), 0, 0.0

        def update():
            optimizer.step()
            with np.errstate(over="ignore"):
                curve.points.append((count, spent, float(0.5 * eigenvalues @ x.data**2)))

        while count < passes:
            began = time.process_time()
            x.grad = eigenvalues * x.data + noise * rng.standard_normal(60)
            count += 1
            if phases is None:
                update()
            else:
                phases.drive([x], 0.0, update)
            spent += time.process_time() - began
            if not target < curve.points[-1][2] < 1e6:
                break
        return curve

    return run


def contrastive(data, target, minibatches, every):
    """InfoNCE of a small MLP on smoothed features; the loss is that of held-out minibatches, always the same."""
    from asv_bench.ablation import encoder
    from gnncy import optim
    from gnncy.training import GraphLoader, Objective, Trainer
    from gnncy.training.trainer import _held_out
    n = data.adjacency.shape[0]
    order = np.random.default_rng(0).permutation(n)
    held, anchors = order[:512], order[512:]

    def loader(which, seed):
        return GraphLoader(data.adjacency, data.smoothed, batch_size=512, anchors=which, seed=seed, prefetch=False)

    test = loader(held, 0)

    def run(scheme, rate, seed):
        model = encoder("mlp", data.smoothed.shape[1], np.random.default_rng(seed))
        curve, params = Curve(), list(model.parameters())

        class Watch:
            spent, began, passes = 0.0, time.process_time(), 0

            def on_batch_end(self, trainer, info):
                self.spent += time.process_time() - self.began
                self.passes += 1
                if self.passes % every == 0:
                    model.eval()
                    curve.points.append((self.passes, self.spent, _held_out(model, test, Objective())))
                    model.train()
                if self.passes == minibatches or (curve.points and curve.points[-1][2] <= target):
                    raise Done
                self.began = time.process_time()

        train = loader(anchors, seed)
        trainer = Trainer(model, optim.Adam(params, lr=rate), seed=seed, max_epochs=-(-minibatches // train.steps()),
                          callbacks=[Watch()])
        trainer.phases = scheme.make(params)
        if trainer.phases is not None:
            drive = trainer.phases.drive

            def clocked(params, loss, update):
                def timed():
                    began = time.process_time()
                    update()
                    curve.own += began - time.process_time()

                curve.own -= time.process_time()
                drive(params, loss, timed)
                curve.own += time.process_time()

            trainer.phases.drive = clocked
        try:
            trainer.fit(train)
        except Done:
            pass
        except FloatingPointError:
            curve.points.append((minibatches, np.inf, np.inf))
        return curve

    return run


class Done(Exception):
    """Enough minibatches."""


def compare(problem, run, rates, target, seeds, timed=True, predictable=False):
    """Rows of every scheme, at the learning rate that is best for it on the seeds together.

    Schemes take turns, so that all of them bear the same other work of the machine. Plain training, and what is asked
    to take no longer, run twice more at their best rates, and the shortest time counts.
    """
    every = [scheme for scheme in schemes(predictable) if not (timed and scheme.momentum)]
    found = {scheme.name: {rate: [] for rate in rates} for scheme in every}
    for rate in rates:
        for seed in range(seeds):
            for scheme in every:
                found[scheme.name][rate].append(run(scheme, rate, seed).reach(target))
    best = {name: min(rates, key=lambda rate: tuple(np.mean(by_rate[rate], axis=0)))  # noqa: B023
            for name, by_rate in found.items()}
    reached = {name: np.array(by_rate[best[name]]) for name, by_rate in found.items()}
    for seed in 2 * list(range(seeds)) if timed else ():
        for scheme in (scheme for scheme in every if scheme.name == "plain" or scheme.asked):
            again = run(scheme, best[scheme.name], seed).reach(target)
            reached[scheme.name][seed] = np.minimum(reached[scheme.name][seed], again)
    plain = reached["plain"].mean(axis=0)
    for scheme in every:
        with np.errstate(invalid="ignore"):
            mean, spread = reached[scheme.name].mean(axis=0), reached[scheme.name].std(axis=0)
        print(f"  {problem}  {scheme.name:<40} rate {best[scheme.name]:<8.3g} passes {mean[0]:6.1f} ± {spread[0]:<5.1f}"
              f" {mean[1]:.3f} ± {spread[1]:.3f} s", file=sys.stderr, flush=True)
        for k, unit in ((0, "passes"), (1, "CPU s")):
            if unit == "CPU s" and not timed:  # the quadratic, whose gradient costs nothing
                continue
            with np.errstate(invalid="ignore"):
                ratio = float(f"{plain[k] / mean[k]:.3g}")
            # What a gate costs in seconds is told by ``shares``, with less noise.
            yield {"setting": f"{problem}: {scheme.name} (± {spread[k]:.2g})", "ours": float(f"{mean[k]:.4g}"),
                   "peer": "plain", "peer_value": float(f"{plain[k]:.4g}"), "unit": unit, "ratio": ratio,
                   "asked": float(f"{scheme.asked:.3g}") if scheme.asked and unit == "passes" else None}


def shares(problem, run, rate, seeds):
    """What phases behind a gate cost: their own part of the time, in the same run, so that other work matters less."""
    for scheme in schemes():
        if scheme.asked:
            curves = [run(scheme, rate, seed) for seed in range(seeds)]
            whole = sum(curve.points[-1][1] for curve in curves)
            rest = whole - sum(curve.own for curve in curves)
            yield {"setting": f"{problem}: {scheme.name}, all", "ours": float(f"{whole:.4g}"), "peer": "without",
                   "peer_value": float(f"{rest:.4g}"), "unit": "CPU s", "ratio": float(f"{rest / whole:.3g}"),
                   "asked": float(f"{scheme.asked:.3g}")}


def control_variates(name, data, minibatches, fraction=0.25):
    """Whether control variates pay: measured variances and times of a row encoder under InfoNCE, and their product.

    The features are the gradient of the last layer, which costs little; rows outside the part go forward only.
    """
    from asv_bench.ablation import encoder
    from gnncy import nn, optim
    from gnncy.losses import InfoNCELoss
    from gnncy.training.phases import GradientPredictor, PredictionConfig, break_even
    model = encoder("mlp", data.smoothed.shape[1], np.random.default_rng(0))
    params = list(model.parameters())
    optimizer, rng, loss = optim.Adam(params, lr=3e-3), np.random.default_rng(0), InfoNCELoss(symmetric=True)
    last = [i for i, p in enumerate(params) if p.ndim == 2][-1]
    predictor = GradientPredictor({str(i): p.shape for i, p in enumerate(params)},
                                  PredictionConfig("low_rank", history_size=32, rank=16, ridge=1e-3))
    errors, spent, size = np.zeros(2), np.zeros(2), 256

    def gradients(z, upstream):
        optimizer.zero_grad()
        began = time.process_time()
        z.backward(upstream)
        spent[1] += time.process_time() - began
        return {str(i): p.grad.copy() for i, p in enumerate(params)}

    def views(rows):
        return np.concatenate([data.smoothed[rows] * (rng.random((size, data.smoothed.shape[1])) > 0.3).astype(
            np.float32) for _ in range(2)])

    for step in range(minibatches):
        x = views(rng.choice(len(data.smoothed), size, replace=False))
        part = np.tile(rng.permutation(size) < fraction * size, 2)
        began = time.process_time()
        z = model(nn.Tensor(x))
        spent[0] += time.process_time() - began
        by_row = loss(z.data[:size], z.data[size:])[1]
        upstream = np.concatenate([by_row.anchors, by_row.positives])
        true = gradients(z, upstream)
        if step > 8:
            partial = gradients(model(nn.Tensor(x)), upstream * (part[:, None] / np.float32(fraction)))
            unbiased = predictor.predict(step, true[str(last)], (partial, partial[str(last)]))
            for k, estimate in enumerate((unbiased, partial)):
                errors[k] += sum(float(((estimate[n] - g)**2).sum()) for n, g in true.items())
        predictor.record(true, step, true[str(last)])
        for i, p in enumerate(params):
            p.grad[...] = true[str(i)]
        optimizer.step()
    correlation = np.sqrt(max(1 - errors[0] / errors[1], 0.0))
    backward = spent[1] / (2 * minibatches - 9)
    value = break_even(correlation, fraction, forward=spent[0] / minibatches, backward=backward)
    return {"setting": f"{name}: control variates, {fraction:g} backward, correlation {correlation:.2f}",
            "ours": float(f"{value:.3g}"), "peer": "plain", "peer_value": 1.0, "unit": "cost x variance",
            "ratio": float(f"{1 / value:.3g}"), "asked": None}


@table
def phases(quick, threads):
    """About five minutes; seconds are the processor's, of one thread."""
    from asv_bench import ablation
    from gnncy._threads import working_threads
    seeds, steps = (1, 20) if quick else (SEEDS, 40)
    with working_threads(1):
        rates = np.geomspace(0.06, 1.9, 4 if quick else 14)
        for noise, target in ((0.01, 0.021), (0.03, 0.021)):
            run = quadratic(noise, target, 50 if quick else 300)
            yield from compare(f"quadratic, noise {noise}", run, rates, target, seeds, False, noise == 0.01)
        folder = os.environ.get("GNNCY_BENCH_DATA")
        for name in ("cora", "wordnet"):
            data = ablation.load(name, None if folder is None else Path(folder))
            if data is None:
                print(f"phases: no {name}, set GNNCY_BENCH_DATA to a folder with {name}.npz", file=sys.stderr)
                continue
            run, plain = contrastive(data, -np.inf, steps, 2), next(iter(schemes()))
            rates = (3e-3,) if quick else (2e-3, 4e-3, 8e-3)
            # What plain training reaches, at its best, in two thirds of the minibatches.
            curves = [[run(plain, rate, seed).points for seed in range(seeds)] for rate in rates]
            target = min(np.mean([c[2 * len(c) // 3][2] for c in found]) for found in curves)
            yield from shares(f"{name}, {steps} minibatches", run, rates[0], seeds)
            run = contrastive(data, target, 2 * steps, 2)
            yield from compare(f"{name}, InfoNCE {target:.3f}", run, rates, target, seeds)
            yield control_variates(name, data, 20 if quick else 60)
