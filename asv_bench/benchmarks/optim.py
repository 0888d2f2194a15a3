"""Adam on flat memory: seven streams of reads and writes, bound by memory."""
import numpy as np

from gnncy._threads import working_threads
from gnncy.optim import Adam

from . import sized


class AdamStep:
    params = [[1, 2], [100_000, 10_000_000]]
    param_names = ["threads", "parameters"]

    def setup(self, threads, parameters):
        n = sized(parameters, parameters // 20)
        self.weights, self.grad = np.random.default_rng(0).standard_normal((2, n)).astype(np.float32)
        self.optimizer = Adam(self.weights)

    def time_step(self, threads, parameters):
        with working_threads(threads):
            self.optimizer.step([self.grad])
