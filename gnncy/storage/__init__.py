"""Features on disk: stores that are read by node id, a row cache, and minibatches read ahead."""
from gnncy.storage._blocks import IOStatistics
from gnncy.storage.features import FeatureStorage
from gnncy.storage.hotset import AdaptiveHotset, HotsetStatistics
from gnncy.storage.hyperbatch import HyperbatchConfig, HyperbatchIterator, HyperbatchResult, HyperbatchStatistics
from gnncy.storage.layout import VerifyReport
from gnncy.storage.plans.loader import ColdTierLoader
from gnncy.storage.quantized import QuantizedFeatureStorage
from gnncy.storage.sources import ArrayStorage, as_storage
from gnncy.storage.sparse import SparseFeatureStorage
from gnncy.storage.topology import GraphStorage, StorageSampler

__all__ = ["AdaptiveHotset", "ArrayStorage", "ColdTierLoader", "FeatureStorage", "GraphStorage", "HotsetStatistics",
           "HyperbatchConfig", "HyperbatchIterator", "HyperbatchResult", "HyperbatchStatistics", "IOStatistics",
           "QuantizedFeatureStorage", "SparseFeatureStorage", "StorageSampler", "VerifyReport", "as_storage"]
