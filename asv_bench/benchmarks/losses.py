"""Losses with their gradients: time beside the bare products, and memory that must not grow with the batch squared."""
import time

import numpy as np
import scipy.sparse as sp

from gnncy._threads import working_threads
from gnncy.graph import eigenvalues, undirected
from gnncy.losses import LocalContrastiveLoss, Pairs, ReconstructionLoss, SpectralRegularization, info_nce

from . import sized


def rows(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class InBatch:
    params = [[1, 2], [False, True], [(2048, 128), (4096, 256)]]
    param_names = ["threads", "symmetric", "shape"]
    timeout = 120

    def setup(self, threads, symmetric, shape):
        n, d = shape
        self.anchors, self.positives = rows(2, sized(n, n // 8), d)

    def time_loss_and_gradients(self, threads, symmetric, shape):
        with working_threads(threads):
            info_nce(self.anchors, self.positives, symmetric=symmetric)

    def track_ratio_to_bare_products(self, threads, symmetric, shape):
        """Time divided by that of the three matrix products alone, medians of interleaved runs."""
        a, p = self.anchors, self.positives
        logits, out = np.empty((len(a), len(a)), np.float32), np.empty_like(a)
        times = np.empty((7, 2))
        with working_threads(threads):
            for i in range(len(times)):
                start = time.perf_counter()
                info_nce(a, p, symmetric=symmetric)
                middle = time.perf_counter()
                np.matmul(a, p.T, out=logits)
                np.matmul(logits, p, out=out)
                np.matmul(logits.T, a, out=out)
                times[i] = middle - start, time.perf_counter() - middle
        loss, bare = np.median(times, axis=0)
        return loss / bare


class PerAnchor:
    params = [[1, 2], [(256, 64, 128), (1024, 128, 128)]]
    param_names = ["threads", "shape"]

    def setup(self, threads, shape):
        n, k, d = shape
        n = sized(n, n // 4)
        self.arguments = rows(n, d), rows(n, d)[::-1], rows(n, k, d)

    def time_loss_and_gradients(self, threads, shape):
        with working_threads(threads):
            info_nce(*self.arguments)


class Listed:
    """Negatives by index into a table, plain, debiased and hard."""
    params = [[1, 2], [0.0, 0.1], [0.0, 1.0]]
    param_names = ["threads", "prior", "hardness"]

    def setup(self, threads, prior, hardness):
        rng = np.random.default_rng(0)
        self.table = rows(sized(100_000, 10_000), 128)
        chosen = rng.integers(0, len(self.table), (sized(1024, 256), 65))
        self.anchors, self.positives, self.negatives = self.table[chosen[:, 0]], chosen[:, 0], chosen[:, 1:]

    def time_loss_and_gradients(self, threads, prior, hardness):
        with working_threads(threads):
            info_nce(self.anchors, self.positives, self.negatives, table=self.table, prior=prior, hardness=hardness)


class LargeBatch:
    params = [False, True]
    param_names = ["symmetric"]
    timeout = 300

    def setup(self, symmetric):
        self.anchors, self.positives = rows(2, sized(32_768, 4_096), 64)

    def peakmem_in_batch(self, symmetric):
        info_nce(self.anchors, self.positives, symmetric=symmetric)


class OnEdges:
    """Losses whose terms are pairs of nodes, on a random graph."""
    params = [[1, 2]]
    param_names = ["threads"]

    def setup(self, threads):
        n, count = sized(200_000, 20_000), sized(1_000_000, 100_000)
        rng = np.random.default_rng(0)
        self.pairs = rng.integers(0, n, (2, count))
        self.labels = rng.random(count) < 0.5
        ones = np.ones(count, np.float32)
        self.graph = undirected(sp.csr_array((ones, tuple(self.pairs)), shape=(n, n)))
        self.z = rows(n, 64)
        self.prepared = Pairs(*self.pairs, self.labels, n_nodes=n)

    def time_margin(self, threads):
        with working_threads(threads):
            LocalContrastiveLoss()(self.z, tuple(self.pairs), self.labels)

    def time_margin_of_prepared_pairs(self, threads):
        with working_threads(threads):
            LocalContrastiveLoss()(self.z, self.prepared)

    def time_margin_with_drawn_pairs(self, threads):
        with working_threads(threads):
            LocalContrastiveLoss(negatives=1)(self.z, self.graph, key=0)

    def time_adjacency(self, threads):
        with working_threads(threads):
            ReconstructionLoss("adjacency")(self.z, self.graph, key=0)

    def time_laplacian(self, threads):
        with working_threads(threads):
            SpectralRegularization()(self.z, self.graph)

    def peakmem_laplacian(self, threads):
        SpectralRegularization()(self.z, self.graph)


class OfRows:
    params = ["mse", "sce"]
    param_names = ["kind"]

    def setup(self, kind):
        self.output, self.target = rows(2, sized(100_000, 10_000), 64)

    def time_loss_and_gradient(self, kind):
        ReconstructionLoss(kind)(self.output, self.target)


class Eigenvalues:
    params = ["arpack", "lobpcg"]
    param_names = ["method"]

    def setup(self, method):
        n = sized(20_000, 2_000)
        rng = np.random.default_rng(0)
        ends = rng.integers(0, n, (2, 5 * n))
        self.graph = undirected(sp.csr_array((np.ones(5 * n, np.float32), ends), shape=(n, n)))

    def time_ten_smallest(self, method):
        eigenvalues(self.graph, 10, method=method)
