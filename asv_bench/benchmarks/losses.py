"""InfoNCE: time beside the bare products it cannot do without, and memory that must not grow with the batch squared."""
import time

import numpy as np

from gnncy._threads import working_threads
from gnncy.losses import info_nce

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


class LargeBatch:
    timeout = 300

    def setup(self):
        self.anchors, self.positives = rows(2, sized(32_768, 4_096), 64)

    def peakmem_in_batch(self):
        info_nce(self.anchors, self.positives)
