"""Linear probe and collapse measures: time, memory, and the scores that must not move."""
from gnncy.datasets import load_wordnet, make_sbm
from gnncy.evaluate import embedding_health, linear_probe


class Probe:
    params = (["dense", "alike", "wordnet"],)
    param_names = ("embedding",)
    timeout = 120

    def setup(self, embedding):
        data = load_wordnet() if embedding == "wordnet" else make_sbm(50_000, 16, n_features=128)
        features = data.features + 5 if embedding == "alike" else data.features  # as smoothed rows are
        self.arguments = features, data.labels, data.split

    def time_probe(self, embedding):
        linear_probe(*self.arguments)

    def peakmem_probe(self, embedding):
        linear_probe(*self.arguments)

    def track_accuracy(self, embedding):
        return linear_probe(*self.arguments).accuracy

    def track_macro_f1(self, embedding):
        return linear_probe(*self.arguments).macro_f1


class Health:
    def setup(self):
        self.features = make_sbm(50_000, 16, n_features=128).features

    def time_health(self):
        embedding_health(self.features)
