"""Continual learning: what was learned earlier is kept while a model learns more."""
from gnncy.training.continual.cold_tier import ColdTierEWC
from gnncy.training.continual.ewc import ElasticWeightConsolidation
from gnncy.training.continual.fisher import fisher_diagonal
from gnncy.training.continual.replay import Rehearsal, Replayed, ReplayMemory
from gnncy.training.continual.shift import DistributionShift

__all__ = ["ColdTierEWC", "DistributionShift", "ElasticWeightConsolidation", "Rehearsal", "ReplayMemory", "Replayed",
           "fisher_diagonal"]
