"""Estimators with scikit-learn's manners; scikit-learn is not needed."""
from gnncy.estimators.graph_encoder import GraphEncoder

__all__ = ["GraphEncoder"]
