"""Orders of the nodes, and stores that are rewritten in one and verified."""
import os
import shutil
import tempfile

import numpy as np

from asv_bench.locality import inside
from gnncy.datasets import make_sbm
from gnncy.graph import bfs_order, community_order, degree_order, permute, rcm_order, vip_order
from gnncy.storage import FeatureStorage

from . import sized

ORDERS = {"bfs": bfs_order, "community": community_order, "degree": degree_order, "rcm": rcm_order}


class Orders:
    """Orders of a block model, and how much of it they bring together."""

    params = [sorted(ORDERS)]
    param_names = ["order"]

    def setup(self, order):
        n = sized(100_000, 2_000)
        graph = make_sbm(n, n // 500, n_features=1, seed=0).adjacency
        self.graph = permute(graph, np.random.default_rng(0).permutation(n))

    def time_order(self, order):
        ORDERS[order](self.graph)

    def peakmem_order(self, order):
        ORDERS[order](self.graph)

    def track_arcs_inside_batches(self, order):
        return inside(self.graph, ORDERS[order](self.graph), 0.01)

    def time_vip_within(self, order):
        vip_order(np.diff(self.graph.indptr), within=np.arange(self.graph.shape[0]))


class Rewrite:
    """A store written in a random order within a limit, and held against its checksums."""

    params = [["16MB", "256MB"]]
    param_names = ["memory_limit"]

    def setup(self, memory_limit):
        n = sized(400_000, 20_000)
        self.folder = tempfile.mkdtemp()
        x = np.random.default_rng(0).random((n, 64), np.float32)
        self.order = np.random.default_rng(1).permutation(n)
        self.store = FeatureStorage.from_array(x, os.path.join(self.folder, "x.npy"))

    def teardown(self, memory_limit):
        self.store.close()
        shutil.rmtree(self.folder)

    def time_reorder(self, memory_limit):
        self.store.reorder(self.order, memory_limit=memory_limit)

    def peakmem_reorder(self, memory_limit):
        self.store.reorder(self.order, memory_limit=memory_limit)

    def time_verify(self, memory_limit):
        self.store.verify()
