"""How good an embedding is: linear probe, scores, links, signs of collapse."""
from gnncy.evaluate.health import CollapseWarning, EmbeddingHealth, embedding_health
from gnncy.evaluate.links import (
    LinkScores,
    average_precision,
    hits_at,
    link_scores,
    mean_reciprocal_rank,
    roc_auc,
)
from gnncy.evaluate.metrics import Scores, accuracy, macro_f1
from gnncy.evaluate.probe import ProbeResult, linear_probe, majority_baseline
from gnncy.evaluate.protocols import ProtocolResult, protocol_split, run_protocol

__all__ = ["CollapseWarning", "EmbeddingHealth", "LinkScores", "ProbeResult", "ProtocolResult", "Scores", "accuracy",
           "average_precision", "embedding_health", "hits_at", "linear_probe", "link_scores", "macro_f1",
           "majority_baseline", "mean_reciprocal_rank", "protocol_split", "roc_auc", "run_protocol"]
