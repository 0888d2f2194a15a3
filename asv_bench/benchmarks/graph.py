"""Graph kernels beside scipy's: the gate, orders, sampling, aggregation."""
import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import breadth_first_order

from gnncy.graph import Block, NeighborSampler, aggregate, aggregate_grad, as_csr, bfs_order, normalize, permute


def skewed(n, arcs):
    """A symmetric graph whose degrees are far apart, its nodes in no order."""
    rng = np.random.default_rng(0)
    ends = rng.permutation(n)[(n * rng.random((2, arcs // 2)) ** 3).astype(int)]
    graph = sp.coo_array((np.ones(arcs // 2, np.float32), tuple(ends)), shape=(n, n)).tocsr()
    return as_csr(graph.maximum(graph.T))


class Gate:
    params = ["canonical", "unsorted", "coo"]
    param_names = ["form"]

    def setup(self, form):
        graph = skewed(50_000, 1_000_000)
        if form == "unsorted":
            graph = sp.csr_array((graph.data, graph.indices[::-1].copy(), graph.indptr), shape=graph.shape)
        self.graph = graph.tocoo() if form == "coo" else graph

    def time_as_csr(self, form):
        as_csr(self.graph)

    def peakmem_as_csr(self, form):
        as_csr(self.graph)

    def time_normalize(self, form):
        normalize(self.graph)


class Order:
    params = ["gnncy", "scipy"]
    param_names = ["impl"]

    def setup(self, impl):
        self.graph = skewed(100_000, 2_000_000)
        self.order = np.random.default_rng(1).permutation(100_000)
        self.hub = int(np.diff(self.graph.indptr).argmax())

    def time_bfs(self, impl):
        if impl == "gnncy":
            bfs_order(self.graph)
        else:
            breadth_first_order(self.graph, self.hub)

    def time_permute(self, impl):
        if impl == "gnncy":
            permute(self.graph, self.order)
        else:
            self.graph[self.order][:, self.order].sort_indices()


class Sampling:
    params = [[(15, 10), (10, 5), (-1,)], [256, 1024]]
    param_names = ["fanouts", "seeds"]

    def setup(self, fanouts, seeds):
        self.sampler = NeighborSampler(skewed(100_000, 2_000_000), fanouts, seed=0)
        self.seeds = np.random.default_rng(1).choice(100_000, seeds, replace=False)
        self.sampler.sample(self.seeds)

    def time_sample(self, fanouts, seeds):
        self.sampler.sample(self.seeds)

    def track_arcs(self, fanouts, seeds):
        return sum(block.n_arcs for block in self.sampler.sample(self.seeds).blocks)

    track_arcs.unit = "arcs"


class Aggregate:
    params = [["gnncy", "scipy"], [16, 40, 64, 128]]
    param_names = ["impl", "width"]

    def setup(self, impl, width):
        self.graph = skewed(50_000, 1_000_000)
        self.transpose = self.graph.T.tocsr()
        self.block = Block.from_csr(self.graph)
        self.block.transposed()
        self.x = np.random.default_rng(1).standard_normal((50_000, width)).astype(np.float32)

    def time_sum(self, impl, width):
        if impl == "gnncy":
            aggregate(self.block, self.x, reduce="sum", weighted=True)
        else:
            self.graph @ self.x

    def time_gradient(self, impl, width):
        if impl == "gnncy":
            aggregate_grad(self.block, self.x, reduce="sum", weighted=True)
        else:
            self.transpose @ self.x
