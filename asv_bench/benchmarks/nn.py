"""Layers: forward and backward of an encoder's dense part, activations, dropout."""
import numpy as np

from gnncy import graph, nn
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


class Convolution:
    """Forward and backward of a layer on a whole graph, its transpose made beforehand."""

    params = [[1, 2], ["gcn", "sage", "sage_max", "gin", "gat", "gatv2", "dot", "gated", "appnp"]]
    param_names = ["threads", "layer"]

    def setup(self, threads, layer):
        rng, n, degree = np.random.default_rng(0), sized(50_000, 1_000), 10
        indptr, indices = degree * np.arange(n + 1), rng.integers(0, n, degree * n)
        self.graph = nn.gcn_norm(graph.Block(indptr, indices, n, n))
        self.graph.places()
        self.x = nn.Tensor(rng.standard_normal((n, 64), np.float32), requires_grad=True)
        self.layer = {
            "gcn": lambda: nn.GCNConv(64, 64, normalize=False, rng=0), "sage": lambda: nn.SAGEConv(64, 64, rng=0),
            "sage_max": lambda: nn.SAGEConv(64, 64, "max", rng=0), "gin": lambda: nn.GINConv(nn.Linear(64, 64, rng=0)),
            "gat": lambda: nn.GATConv(64, 16, 4, self_loops=False, rng=0),
            "gatv2": lambda: nn.GATv2Conv(64, 16, 4, self_loops=False, rng=0),
            "dot": lambda: nn.NeighborAttention(64, 4, rng=0), "gated": lambda: nn.GatedAttentionConv(64, 64, 4, rng=0),
            "appnp": lambda: nn.APPNP(5, normalize=False)}[layer]()
        self.grad = np.ones((n, 64), np.float32)

    def step(self, threads):
        with working_threads(threads):
            self.layer(self.graph, self.x).backward(self.grad)

    def time_forward_backward(self, threads, layer):
        self.step(threads)

    def peakmem_forward_backward(self, threads, layer):
        self.step(threads)
