"""Optimizers on flat memory and on tables: streams of reads and writes, bound by memory."""
import numpy as np

from gnncy import optim
from gnncy._threads import working_threads

from . import sized

KINDS = {"SGD": (optim.SGD, {}), "momentum": (optim.SGD, {"momentum": 0.9}), "Adam": (optim.Adam, {}),
         "Adam, unchecked": (optim.Adam, {"nonfinite": "ignore"}), "Adam, max_norm": (optim.Adam, {"max_norm": 1.0}),
         "AMSGrad": (optim.Adam, {"amsgrad": True})}
ROW_KINDS = {"RowAdagrad": optim.RowAdagrad, "SparseAdam": optim.SparseAdam}


class Step:
    params = [list(KINDS), [1, 2], [100_000, 10_000_000]]
    param_names = ["kind", "threads", "parameters"]

    def setup(self, kind, threads, parameters):
        n = sized(parameters, parameters // 20)
        self.weights, self.grad = np.random.default_rng(0).standard_normal((2, n), np.float32)
        optimizer, options = KINDS[kind]
        self.optimizer = optimizer(self.weights, **options)
        self.optimizer.step([self.grad])  # makes the state

    def time_step(self, kind, threads, parameters):
        with working_threads(threads):
            self.optimizer.step([self.grad])


class ManySmall:
    """A hundred parameters of a thousand elements: what a call costs beside its work."""

    def setup(self):
        rng = np.random.default_rng(0)
        self.params, self.grads = ([rng.standard_normal(1000, np.float32) for _ in range(100)] for _ in range(2))
        self.optimizer = optim.Adam(self.params)

    def time_step(self):
        self.optimizer.step(self.grads)

    def time_clip_grad_norm(self):
        optim.clip_grad_norm_(self.grads, 1.0)


class Rows:
    params = [list(ROW_KINDS), [1, 2], ["distinct", "drawn"]]
    param_names = ["kind", "threads", "rows"]

    def setup(self, kind, threads, rows):
        n, k = sized(1_000_000, 50_000), sized(50_000, 2500)
        rng = np.random.default_rng(0)
        self.table = rng.standard_normal((n, 64), np.float32)
        self.rows = rng.permutation(n)[:k] if rows == "distinct" else rng.integers(0, n // 20, k)
        self.grads = rng.standard_normal((k, 64), np.float32)
        self.optimizer = ROW_KINDS[kind](self.table)
        self.optimizer.step(self.rows, self.grads)

    def time_step(self, kind, threads, rows):
        with working_threads(threads):
            self.optimizer.step(self.rows, self.grads)
