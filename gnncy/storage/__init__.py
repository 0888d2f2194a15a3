"""Features on disk: stores that are read by node id, a row cache, and minibatches read ahead."""
from gnncy.storage._blocks import IOStatistics
from gnncy.storage.features import FeatureStorage

__all__ = ["FeatureStorage", "IOStatistics"]
