"""Losses of two views and their gradients, views of graphs, and GraphEncoder's encoders by objectives."""
import numpy as np

from gnncy import GraphEncoder
from gnncy._threads import working_threads
from gnncy.datasets import make_sbm
from gnncy.evaluate import linear_probe
from gnncy.graph import NeighborSampler
from gnncy.losses import (
    BarlowTwinsLoss,
    BootstrapLoss,
    CCALoss,
    GroupDiscriminationLoss,
    InfoNCELoss,
    VICRegLoss,
    drop_edges,
    edge_drop_rates,
    mask_features,
)

from . import sized

LOSSES = {"infonce": InfoNCELoss(symmetric=True), "vicreg": VICRegLoss(), "cca": CCALoss(),
          "barlow": BarlowTwinsLoss(), "bgrl": BootstrapLoss(), "ggd": GroupDiscriminationLoss()}


class LossAndGradient:
    params = [list(LOSSES), [1, 2]]
    param_names = ["loss", "threads"]

    def setup(self, loss, threads):
        rng = np.random.default_rng(0)
        self.views = [rng.standard_normal((sized(1024, 256), 128), dtype=np.float32) for _ in range(2)]

    def time_call(self, loss, threads):
        with working_threads(threads):
            LOSSES[loss](*self.views)


class Views:
    def setup(self):
        data = make_sbm(sized(20_000, 2_000), 8, degree=20.0, n_features=4)
        self.graph = data.adjacency
        self.sample = NeighborSampler(self.graph, (15, 10), seed=0).sample(np.arange(512))
        self.rows = np.ones((len(self.sample.nodes), 256), np.float32)

    def time_drop_edges_of_a_graph(self):
        drop_edges(self.graph, 0.3, key=0)

    def time_drop_edges_of_a_block(self):
        drop_edges(self.sample.blocks[0], 0.3, key=0, nodes=self.sample.nodes)

    def time_mask_features(self):
        mask_features(self.rows, 0.3, key=0)

    def time_rates_by_pagerank(self):
        edge_drop_rates(self.graph, 0.3, "pagerank")


class Fit:
    params = [["propagate", "sage", "gcn", "gat"], ["infonce", "vicreg", "cca", "bgrl", "ggd", "reconstruction"]]
    param_names = ["encoder", "objective"]
    timeout = 300

    def setup(self, encoder, objective):
        self.data = make_sbm(sized(5_000, 600), 8, homophily=0.5, n_features=32, feature_noise=3.0)
        self.encoder = GraphEncoder(32, encoder=encoder, objective=objective, n_neighbors=(10, 5), hidden=64,
                                    max_epochs=sized(5, 1), n_jobs=-1, random_state=0)

    def fit(self):
        return self.encoder.fit(self.data.adjacency, features=self.data.features)

    def time_fit(self, encoder, objective):
        self.fit()

    def peakmem_fit(self, encoder, objective):
        self.fit()

    def track_accuracy(self, encoder, objective):
        return linear_probe(self.fit().embedding_, self.data.labels, self.data.split).accuracy
