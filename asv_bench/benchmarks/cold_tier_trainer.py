"""An epoch of ``ColdTierTrainer`` on features several times the memory limit, by each plan and without one."""
import shutil
import tempfile
from pathlib import Path

import numpy as np

from gnncy.datasets import open_graph, write_rmat
from gnncy.storage import HyperbatchConfig
from gnncy.training import ColdTierTrainer

from . import sized

SCALE, WIDTH, ANCHORS = sized(18, 12), 128, sized(8_000, 600)


class Epoch:
    """GraphSAGE on sampled neighbourhoods; the first epoch, whose hot rows were read before."""

    params = [["auto", "B", "C", "D", "no limit"]]
    param_names = ["plan"]
    timeout = 600

    def setup(self, plan):
        self.folder = Path(tempfile.mkdtemp())
        write_rmat(self.folder / "graph", SCALE, 10, n_features=WIDTH, seed=0, memory_limit="256MB")
        self.data = open_graph(self.folder / "graph")
        nodes = np.random.default_rng(0).choice(self.data.n_nodes, ANCHORS, replace=False)
        limited = plan != "no limit"
        self.trainer = ColdTierTrainer(
            self.data.features, self.data.adjacency, n_components=64, hidden=64, fanouts=(10, 5), anchors=nodes,
            config=HyperbatchConfig(batch_size=512, buffer_bytes="64MB"), plan=plan if limited else "auto",
            memory_limit="110MB" if limited else None, spill_folder=self.folder if limited else None)

    def teardown(self, plan):
        self.trainer.close()
        self.data.features.close()
        shutil.rmtree(self.folder)

    def time_epoch(self, plan):
        self.trainer.train_epoch()

    def peakmem_epoch(self, plan):
        self.trainer.train_epoch()

    def track_stall_share(self, plan):
        result = self.trainer.train_epoch()
        return result.stall_time / result.seconds

    def track_prediction_error(self, plan):
        return self.trainer.train_epoch().prediction_error or 0.0
