"""Miners of hard negatives: time, time beside the bare product, and memory that must not hold all pairs."""
import time

import numpy as np

from gnncy._threads import working_threads
from gnncy.losses import GraphHardNegativeMiner, HardNegativeMiner

from . import sized


def rows(n, d=128, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d), np.float32)


class AllCandidates:
    params = [[1, 2], ["hardest", "semi_hard", "weighted", "mixed", "random"]]
    param_names = ["threads", "strategy"]
    timeout = 120

    def setup(self, threads, strategy):
        self.anchors, self.candidates = rows(1024), rows(sized(100_000, 5_000), seed=1)
        self.miner = HardNegativeMiner(strategy, 20)

    def time_mine(self, threads, strategy):
        with working_threads(threads):
            self.miner.mine(self.anchors, self.anchors, self.candidates)

    def track_ratio_to_bare_product(self, threads, strategy):
        """Time divided by that of all cosines' product alone, medians of interleaved runs."""
        out = np.empty((len(self.anchors), len(self.candidates)), np.float32)
        times = np.empty((5, 2))
        with working_threads(threads):
            for i in range(len(times)):
                start = time.perf_counter()
                self.miner.mine(self.anchors, self.anchors, self.candidates)
                middle = time.perf_counter()
                np.matmul(self.anchors, self.candidates.T, out=out)
                times[i] = middle - start, time.perf_counter() - middle
        mining, bare = np.median(times, axis=0)
        return mining / bare


class ManyAnchors:
    timeout = 300

    def setup(self):
        self.anchors, self.candidates = rows(sized(16_384, 2_048), 16), rows(sized(200_000, 20_000), 16, seed=1)

    def peakmem_hardest(self):
        HardNegativeMiner("hardest", 10).mine(self.anchors, None, self.candidates)


class Ring:
    params = [[1, 2], [2, 3]]
    param_names = ["threads", "max_distance"]

    def setup(self, threads, max_distance):
        from gnncy.datasets import make_sbm
        n = sized(100_000, 5_000)
        graph = make_sbm(n, degree=10, n_features=1, seed=0).adjacency
        self.embeddings = rows(n, 64)
        self.anchors = np.random.default_rng(0).choice(n, 1024, replace=False)
        self.miner = GraphHardNegativeMiner(graph, n_negatives=20, max_distance=max_distance)

    def time_mine(self, threads, max_distance):
        with working_threads(threads):
            self.miner.mine(self.embeddings, self.anchors)
