"""How good an embedding is: linear probe, scores, links, signs of collapse."""
from gnncy.evaluate.health import EmbeddingHealth, embedding_health
from gnncy.evaluate.metrics import Scores, accuracy, macro_f1
from gnncy.evaluate.probe import ProbeResult, linear_probe, majority_baseline

__all__ = ["EmbeddingHealth", "ProbeResult", "Scores", "accuracy", "embedding_health", "linear_probe", "macro_f1",
           "majority_baseline"]
