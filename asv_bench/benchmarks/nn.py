"""Layers: forward and backward of an encoder's dense part, activations, dropout."""
import numpy as np

from gnncy import nn
from gnncy._threads import working_threads

from . import sized


class MLPStep:
    params = [[1, 2], [64, 256]]
    param_names = ["threads", "width"]

    def setup(self, threads, width):
        n = sized(50_000, 2_000)
        self.x = np.random.default_rng(0).standard_normal((n, 128)).astype(np.float32)
        self.model = nn.MLP([128, width, 128], "elu", 0.2, rng=0).set_step_key(1)
        nn.flatten_parameters(self.model)

    def step(self, threads):
        with working_threads(threads):
            self.model.zero_grad()
            self.model(self.x).mean().backward()

    def time_forward_backward(self, threads, width):
        self.step(threads)

    def peakmem_forward_backward(self, threads, width):
        self.step(threads)


class Activation:
    params = [["relu", "elu", "dropout", "l2_normalise"]]
    param_names = ["operation"]

    def setup(self, operation):
        n = sized(40_000, 2_000)
        self.x = nn.Tensor(np.random.default_rng(0).standard_normal((n, 128)).astype(np.float32), requires_grad=True)
        self.grad = np.ones_like(self.x.data)
        self.run = {"relu": nn.relu, "elu": nn.elu, "dropout": lambda x: nn.dropout(x, 0.5, key=1),
                    "l2_normalise": nn.l2_normalise}[operation]

    def time_forward_backward(self, operation):
        self.run(self.x).backward(self.grad)
