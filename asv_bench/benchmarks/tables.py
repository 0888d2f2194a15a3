"""Learnable tables: steps on rows in memory and past its limit, checkpoints, and an epoch of NodeEmbedding."""
import tempfile
from pathlib import Path

import numpy as np

import gnncy
from gnncy.storage.tables import EmbeddingTable

from . import sized


class Table:
    params = (["memory", "disk"], ["rowwise_adagrad", "adam"])
    param_names = ("where", "optimizer")

    def setup(self, where, optimizer):
        n = sized(200_000, 20_000)
        self.folder = tempfile.TemporaryDirectory()
        bits, size = EmbeddingTable.layout(64, optimizer)
        blocks = max(4, -(-n >> bits) // 8)
        limit = blocks * (size + (4 << bits)) if where == "disk" else None
        self.table = EmbeddingTable.create(Path(self.folder.name) / "table.npy", n, 64, optimizer=optimizer,
                                           memory_limit=limit)
        rng = np.random.default_rng(0)
        self.ids, self.gradients = rng.integers(0, n, 10_000), rng.standard_normal((10_000, 64), np.float32)

    def teardown(self, where, optimizer):
        self.table.close()
        self.folder.cleanup()

    def time_update(self, where, optimizer):
        self.table.update(self.ids, self.gradients)

    def time_gather(self, where, optimizer):
        self.table.gather(self.ids)

    def time_checkpoint(self, where, optimizer):
        self.table.update(self.ids, self.gradients)
        self.table.checkpoint()


class Epoch:
    params = (["edges", "walks"], [True, False])
    param_names = ("method", "in_memory")

    def setup(self, method, in_memory):
        n = sized(100_000, 10_000)
        self.graph = gnncy.datasets.make_sbm(n, 10, degree=16.0, seed=0).adjacency
        self.model = gnncy.NodeEmbedding(64, method=method, epochs=1, n_walks=1, random_state=0, memory_limit="1GB")
        if not in_memory:
            self.model.set_params(memory_limit=self.model.estimate(self.graph).needed)

    def time_fit(self, method, in_memory):
        self.model.fit(self.graph)

    def peakmem_fit(self, method, in_memory):
        self.model.fit(self.graph)

    def track_pairs_per_second(self, method, in_memory):
        record = self.model.fit(self.graph).history_[-1]
        return record["pairs"] / record["seconds"]

    track_pairs_per_second.unit = "pairs/s"
