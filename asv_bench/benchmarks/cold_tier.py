"""Planning an epoch from disk, and feeding it by each plan."""
import os
import shutil
import tempfile

import numpy as np

from gnncy.datasets import make_sbm
from gnncy.graph import as_csr, inclusion_probabilities
from gnncy.storage import ColdTierLoader, FeatureStorage
from gnncy.storage.plans import Planner
from gnncy.storage.plans.disk import DEFAULT

from . import sized

NODES = sized(400_000, 50_000)
LIMIT = sized("96MB", "60MB")


def graph():
    return as_csr(make_sbm(NODES, NODES // 1000, degree=20, n_features=1, seed=0).adjacency)


class Planning:
    """What comes before the first row: probabilities, and the choice among plans."""

    params = [[(10,), (10, 10), (10, 10, 10)]]
    param_names = ["fanouts"]

    def setup(self, fanouts):
        self.graph = graph()
        self.seeds = np.arange(0, NODES, 50)
        self.inclusion = inclusion_probabilities(self.graph, self.seeds, fanouts, 64)
        self.rows = OnDisk((NODES, 128))

    def time_inclusion(self, fanouts):
        inclusion_probabilities(self.graph, self.seeds, fanouts, 64)

    def peakmem_inclusion(self, fanouts):
        inclusion_probabilities(self.graph, self.seeds, fanouts, 64)

    def time_planner(self, fanouts):
        Planner(self.rows, self.inclusion, 200, LIMIT, disk=DEFAULT).choose()


class OnDisk:
    """The form of a storage; a planner looks at nothing else."""

    dtype = file_dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, shape):
        self.shape, self.path = shape, os.path.join(tempfile.gettempdir(), "features.npy")

    def read_batch(self, ids, out=None):
        raise NotImplementedError


class Feeding:
    """An epoch of minibatches by each plan, past the page cache."""

    params = ["A", "B", "C", "D", "auto"]
    param_names = ["plan"]
    timeout = 300

    def setup(self, plan):
        self.folder = tempfile.mkdtemp()
        path = os.path.join(self.folder, "features.npy")
        blocks = (np.random.default_rng(k).random((1000, 128), np.float32) for k in range(NODES // 1000))
        FeatureStorage.from_blocks(path, (NODES, 128), blocks).close()
        self.store = FeatureStorage(path, direct=True)
        self.loader = ColdTierLoader(self.store, graph(), np.arange(0, NODES, 50), fanouts=(10, 10), batch_size=100,
                                     memory_limit="1GB" if plan == "A" else LIMIT, plan=plan)

    def teardown(self, plan):
        self.loader.close()
        self.store.close()
        shutil.rmtree(self.folder)

    def epoch(self):
        for _ in self.loader.epoch(0):
            pass

    def time_epoch(self, plan):
        self.epoch()

    def peakmem_epoch(self, plan):
        self.epoch()

    def track_bytes_read(self, plan):
        self.epoch()
        return self.loader.report()[-1]["bytes_read"]

    def track_prediction_error(self, plan):
        self.epoch()
        return self.loader.report()[-1]["prediction_error"]
