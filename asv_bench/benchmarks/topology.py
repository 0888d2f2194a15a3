"""Graphs on disk: sampling minibatches from them, sorting edges to them, reading rows."""
import os
import shutil
import tempfile

import numpy as np

from gnncy.datasets import write_rmat
from gnncy.storage import GraphStorage, StorageSampler

from . import sized

SCALE = sized(18, 12)
BATCHES = sized(40, 4)


class OnDisk:
    """An R-MAT graph in ``GNNCY_BENCH_FOLDER`` (a folder on the disk to measure)."""

    timeout = 600
    number, repeat = 1, 3

    def setup(self, *params):
        self.folder = tempfile.mkdtemp(dir=os.environ.get("GNNCY_BENCH_FOLDER"))
        write_rmat(os.path.join(self.folder, "graph"), SCALE, n_features=1)
        self.graph = GraphStorage(os.path.join(self.folder, "graph"), direct=True)
        self.seeds = np.random.default_rng(0).permutation(2**SCALE)[:BATCHES * 512].reshape(BATCHES, 512)

    def teardown(self, *params):
        self.graph.close()
        shutil.rmtree(self.folder)


class Sampling(OnDisk):
    """Minibatches of 512 seeds, fan-outs (10, 10)."""

    params = [["16MB", "64MB"], [False, True]]
    param_names = ["memory_limit", "prefetch"]

    def run(self, limit, prefetch):
        for _ in StorageSampler(self.graph, (10, 10), memory_limit=limit, prefetch=prefetch).sample_many(self.seeds):
            pass

    def time_epoch(self, limit, prefetch):
        self.run(limit, prefetch)

    def peakmem_epoch(self, limit, prefetch):
        self.run(limit, prefetch)

    def track_bytes_read(self, limit, prefetch):
        before = self.graph.stats.snapshot()
        self.run(limit, prefetch)
        return (self.graph.stats.snapshot() - before).bytes_read

    track_bytes_read.unit = "bytes"


class Ingest(OnDisk):
    """Edges in any order to disk, rows back."""

    def setup(self):
        super().setup()
        self.edges = np.random.default_rng(0).integers(0, 2**SCALE, (2**SCALE * 8, 2))

    def time_from_edges(self):
        path = os.path.join(self.folder, "sorted")
        GraphStorage.from_edges(path, self.edges, memory_limit="16MB", overwrite=True).close()

    def time_iter_rows(self):
        for _ in self.graph.iter_rows():
            pass
