"""Losses on plain arrays (loss and analytic gradients) and on the tape, views, and miners of hard negatives."""
from gnncy.losses.augment import drop_blocks, drop_edges, edge_drop_rates, feature_drop_rates, mask_features
from gnncy.losses.infonce import InfoNCEGradients, InfoNCELoss, info_nce
from gnncy.losses.joint_embedding import (
    BarlowTwinsLoss,
    BootstrapLoss,
    CCALoss,
    GroupDiscriminationLoss,
    JointEmbedding,
    TargetNetwork,
    VICRegLoss,
)
from gnncy.losses.local import LocalContrastiveLoss, Pairs
from gnncy.losses.mining import GraphHardNegativeMiner, HardNegativeMiner, MinedNegatives
from gnncy.losses.multi import MultiObjectiveLoss
from gnncy.losses.reconstruction import ReconstructionLoss
from gnncy.losses.spectral import SpectralRegularization

__all__ = [
    "mask_features",
    "feature_drop_rates",
    "edge_drop_rates",
    "drop_edges",
    "VICRegLoss",
    "TargetNetwork",
    "JointEmbedding",
    "GroupDiscriminationLoss",
    "CCALoss",
    "BootstrapLoss",
    "BarlowTwinsLoss",
    "GraphHardNegativeMiner",
    "HardNegativeMiner",
    "InfoNCEGradients",
    "InfoNCELoss",
    "LocalContrastiveLoss",
    "MinedNegatives",
    "MultiObjectiveLoss",
    "Pairs",
    "ReconstructionLoss",
    "SpectralRegularization",
    "drop_blocks",
    "info_nce",
]
