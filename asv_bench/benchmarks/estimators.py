"""Estimators on a block model: time and memory of a fit, and the accuracy that a faster one must not lose."""
import numpy as np

from gnncy import GraphEncoder, LinkPredictor, NodeClassifier
from gnncy.datasets import make_sbm, split_edges
from gnncy.evaluate import linear_probe, link_scores

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


class Classify:
    params = [["propagate", "sage"]]
    param_names = ["encoder"]
    timeout = 300

    def setup(self, encoder):
        self.data = make_sbm(sized(20_000, 1_000), 8, homophily=0.5, n_features=32, feature_noise=3.0)
        self.labels = np.where(np.arange(self.data.n_nodes) % 5 == 0, self.data.labels, -1)
        self.model = NodeClassifier(32, encoder=encoder, n_neighbors=(10, 5), hidden=64, max_epochs=sized(5, 1),
                                    n_jobs=-1, random_state=0)

    def fit(self):
        return self.model.fit(self.data.adjacency, self.labels, features=self.data.features)

    def time_fit(self, encoder):
        self.fit()

    def peakmem_fit(self, encoder):
        self.fit()

    def track_accuracy(self, encoder):
        unseen = self.labels < 0
        return (self.fit().transduction_ == self.data.labels)[unseen].mean()


class Links:
    timeout = 300

    def setup(self):
        self.data = make_sbm(sized(20_000, 1_000), 8, n_features=32)
        self.split = split_edges(self.data.adjacency)
        self.model = LinkPredictor(n_jobs=-1, random_state=0).fit(self.split.train, features=self.data.features)

    def time_fit(self):
        self.model.fit(self.split.train, features=self.data.features)

    def time_predict(self):
        self.model.decision_function(self.split.test)

    def track_auc(self):
        return link_scores(*(self.model.decision_function(pairs) for pairs in (self.split.test,
                                                                              self.split.test_negatives))).auc
