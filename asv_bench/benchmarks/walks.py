"""Random walks on a skewed graph."""
import numpy as np

from gnncy._threads import working_threads
from gnncy.datasets import make_rmat
from gnncy.graph import RandomWalks

from . import sized


class Walks:
    params = [[1, 2]]
    param_names = ["threads"]

    def setup(self, threads):
        graph = make_rmat(sized(18, 12), 8, seed=0).adjacency
        self.walks = RandomWalks(graph, length=10)
        self.starts = np.random.default_rng(0).integers(0, graph.shape[0], sized(100_000, 2_000))

    def time_sample(self, threads):
        with working_threads(threads):
            self.walks.sample(self.starts)
