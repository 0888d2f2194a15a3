"""Gradient checkpointing: activations kept, recomputed or spilled, so that training fits a stated number of bytes."""
from gnncy.nn.checkpointing.backprop import EfficientBackprop
from gnncy.nn.checkpointing.manager import ActivationCheckpoint, CheckpointStatistics, GradientCheckpointManager
from gnncy.nn.checkpointing.measure import Estimate, LayerProfile, Profile, estimate, measure_chain, profile
from gnncy.nn.checkpointing.meter import ActivationMeter
from gnncy.nn.checkpointing.policy import RecomputationPolicy as RecomputationPolicy
from gnncy.nn.checkpointing.recompute import checkpoint as checkpoint
from gnncy.nn.checkpointing.recompute import checkpoint_sequential as checkpoint_sequential
from gnncy.nn.checkpointing.schedule import Chain, Cost, Spill, least_memory, optimal, revolve, simulate
from gnncy.nn.checkpointing.store import ActivationStore, SpillFile

# RecomputationPolicy, checkpoint and checkpoint_sequential are names of gnncy.nn.
__all__ = ["ActivationCheckpoint", "ActivationMeter", "ActivationStore", "Chain", "CheckpointStatistics", "Cost",
           "EfficientBackprop", "Estimate", "GradientCheckpointManager", "LayerProfile", "Profile", "Spill",
           "SpillFile", "estimate", "least_memory", "measure_chain", "optimal", "profile", "revolve", "simulate"]
