"""Prediction of gradients: what a record and a prediction cost, and a training in phases."""
import numpy as np

from gnncy import nn
from gnncy._threads import working_threads
from gnncy.datasets import make_sbm
from gnncy.optim import Adam
from gnncy.training import GraphLoader, Trainer
from gnncy.training.phases import GradientPredictor, PhaseConfig, PhaseTrainer, PredictionConfig

from . import sized

SIZE = sized(1_000_000, 50_000)


class Predictor:
    """One true gradient recorded and measured, one predicted."""

    params = [["last", "momentum", "least_squares", "low_rank"], [1, 2]]
    param_names = ["method", "threads"]

    def setup(self, method, threads):
        rng = np.random.default_rng(0)
        self.gradients = {"w": rng.standard_normal(SIZE, dtype=np.float32)}
        self.features = rng.standard_normal(256, dtype=np.float32) if method == "low_rank" else None
        self.predictor = GradientPredictor({"w": (SIZE,)}, PredictionConfig(method))
        self.time = 0.0
        for _ in range(10):
            self.time_record(method, 1)

    def time_record(self, method, threads):
        self.time += 1
        with working_threads(threads):
            self.predictor.record(self.gradients, self.time, self.features)

    def time_predict(self, method, threads):
        with working_threads(threads):
            self.predictor.predict(self.time + 1, self.features)

    def track_bytes_a_parameter(self, method, threads):
        return sum(x.nbytes for x in self.predictor.state_dict().values() if isinstance(x, np.ndarray)) / SIZE


class Training:
    """An epoch without phases, behind a shut gate, and with all predictions taken."""

    params = ["plain", "shut", "open"]
    param_names = ["gate"]

    def setup(self, gate):
        self.data = make_sbm(sized(4_000, 500), 4, n_features=64, seed=0)
        self.phases = {"plain": None, "shut": PhaseConfig(prediction=PredictionConfig(min_correlation=1.0)),
                       "open": PhaseConfig(prediction=PredictionConfig(min_correlation=None))}[gate]

    def time_epoch(self, gate):
        model = nn.MLP([64, 256, 64], rng=0)
        trainer = Trainer(model, Adam(model.parameters(), lr=1e-3), seed=0, max_epochs=1, phases=self.phases)
        trainer.fit(GraphLoader(self.data.adjacency, self.data.features, batch_size=500, prefetch=False))

    peakmem_epoch = time_epoch


class Quadratic:
    """Backward passes to a loss, by phases without a gate, where gradients are predictable."""

    params = [0, 2]
    param_names = ["predict_steps"]

    def track_backward_passes(self, predict_steps):
        eigenvalues, counts = np.geomspace(0.01, 1, 60), []
        config = PhaseConfig(2, predict_steps, 2, PredictionConfig(min_correlation=None, correction_weight=0.0))
        for seed in range(5):
            rng = np.random.default_rng(seed)
            x = rng.standard_normal(60)
            x *= np.sqrt(60) / np.linalg.norm(x)
            phases = PhaseTrainer({"x": (60,)}, config, np.float64)
            while 0.5 * eigenvalues @ x**2 > 0.021 and phases.total_step < 1000:
                phases.begin_step()
                if phases.should_compute_full():
                    gradient = eigenvalues * x + 0.01 * rng.standard_normal(60)
                    x = x - 1.5 * phases.record_full_gradients({"x": gradient})["x"]
                else:
                    x = x - 1.5 * phases.get_predicted_gradients()["x"]
                phases.end_step(0.0)
            counts.append(phases.get_stats().backward_passes)
        return float(np.mean(counts))
