"""GraphEncoder on a block model: time and memory of a fit, and the accuracy that a faster one must not lose."""
from gnncy import GraphEncoder
from gnncy.datasets import make_sbm
from gnncy.evaluate import linear_probe

from . import sized


class Fit:
    params = [["propagate", "sage"], ["96MB", "256MB"]]
    param_names = ["encoder", "memory_limit"]
    timeout = 300

    def setup(self, encoder, memory_limit):
        self.data = make_sbm(sized(20_000, 2_000), 8, homophily=0.5, n_features=32, feature_noise=3.0)
        self.encoder = GraphEncoder(32, encoder=encoder, n_neighbors=(10, 5), hidden=64, max_epochs=sized(5, 1),
                                    memory_limit=memory_limit, n_jobs=-1, random_state=0)

    def fit(self):
        return self.encoder.fit(self.data.adjacency, features=self.data.features)

    def time_fit(self, encoder, memory_limit):
        self.fit()

    def peakmem_fit(self, encoder, memory_limit):
        self.fit()

    def track_accuracy(self, encoder, memory_limit):
        return linear_probe(self.fit().embedding_, self.data.labels, self.data.split).accuracy


class Transform:
    params = [["propagate", "sage"]]
    param_names = ["encoder"]

    def setup(self, encoder):
        self.data = make_sbm(sized(20_000, 2_000), 8, n_features=32)
        self.encoder = GraphEncoder(32, encoder=encoder, max_epochs=1, n_jobs=-1, random_state=0)
        self.encoder.fit(self.data.adjacency, features=self.data.features)

    def time_transform(self, encoder):
        self.encoder.transform(self.data.adjacency, features=self.data.features)
