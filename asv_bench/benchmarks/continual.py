"""Continual learning: Fisher information, the penalty in memory and on disk, a replay memory."""
import shutil
import tempfile

import numpy as np

from gnncy import nn
from gnncy.training.continual import ColdTierEWC, ElasticWeightConsolidation, ReplayMemory, fisher_diagonal

from . import sized

SAMPLES, ROWS, NODES = sized(500, 100), sized(200_000, 5_000), sized(100_000, 5_000)


class Fisher:
    """Of an MLP of 256, 256 and 10 units: vectorised, and one sample after the other."""

    params = [["exact", "sampled"], ["vectorised", "one by one"]]
    param_names = ["method", "how"]

    def setup(self, method, how):
        self.model = nn.MLP([256, 256, 10], rng=0)
        self.x = np.random.default_rng(0).standard_normal((SAMPLES if how == "vectorised" else SAMPLES // 10, 256),
                                                          dtype=np.float32)
        self.logits = None if how == "vectorised" else lambda rows: self.model(nn.Tensor(rows))

    def time_fisher(self, method, how):
        fisher_diagonal(self.model, self.x, method=method, logits=self.logits)


class Penalty:
    """What a step of training pays for EWC."""

    def setup(self):
        self.model = nn.MLP([256, 256, 256, 10], rng=0)
        self.ewc = ElasticWeightConsolidation(self.model)
        self.ewc.consolidate({name: np.ones(p.shape) for name, p in self.model.named_parameters()})

    def time_step(self):
        self.ewc(None, 0)


class Disk:
    """A table of rows of 64 numbers: all of it, and the rows of a minibatch."""

    def setup(self):
        self.folder = tempfile.mkdtemp()
        rng = np.random.default_rng(0)
        self.table = rng.standard_normal((ROWS, 64), dtype=np.float32)
        self.ewc = ColdTierEWC.create(self.folder, ROWS, 64)
        ids = [np.unique(rng.integers(0, ROWS, 200)) for _ in range(100)]
        self.samples = [(own, rng.standard_normal((len(own), 64))) for own in ids]
        self.ewc.compute_fisher(self.samples)
        self.ewc.consolidate(self.table)
        self.ids = rng.integers(0, ROWS, 1000)

    def teardown(self):
        self.ewc.close()
        shutil.rmtree(self.folder)

    def time_fisher_of_100_samples(self):
        self.ewc.compute_fisher(self.samples)

    def time_penalty_of_all(self):
        self.ewc.penalty(self.table)

    def time_gradient_of_1000_rows(self):
        self.ewc.gradient(self.table[self.ids], self.ids)

    def peakmem_task(self):
        self.ewc.compute_fisher(self.samples)
        self.ewc.consolidate(self.table)


class Replay:
    """Nodes offered to a memory of 1,000 in parts of 1,000, and draws from it."""

    params = ["none", "class"]
    param_names = ["balance"]

    def setup(self, balance):
        self.labels = np.random.default_rng(0).integers(0, 40, NODES)
        self.memory = self.filled(balance)

    def filled(self, balance):
        memory = ReplayMemory(1000, balance=balance)
        for nodes in np.array_split(np.arange(NODES), NODES // 1000):
            memory.add(nodes, labels=self.labels[nodes])
        return memory

    def time_add(self, balance):
        self.filled(balance)

    def time_draw(self, balance):
        self.memory.draw(128, 0)
