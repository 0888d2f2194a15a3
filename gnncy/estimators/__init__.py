"""Estimators with scikit-learn's manners; scikit-learn is not needed."""
from gnncy.estimators.graph_encoder import GraphEncoder
from gnncy.estimators.link_predictor import LinkPredictor
from gnncy.estimators.node_classifier import NodeClassifier
from gnncy.estimators.node_embedding import NodeEmbedding

__all__ = ["GraphEncoder", "LinkPredictor", "NodeClassifier", "NodeEmbedding"]
