"""Losses on plain arrays (loss and analytic gradients) and on the tape, views, and miners of hard negatives."""
from gnncy.losses.augment import drop_blocks
from gnncy.losses.infonce import InfoNCEGradients, InfoNCELoss, info_nce
from gnncy.losses.local import LocalContrastiveLoss, Pairs
from gnncy.losses.mining import GraphHardNegativeMiner, HardNegativeMiner, MinedNegatives
from gnncy.losses.multi import MultiObjectiveLoss
from gnncy.losses.reconstruction import ReconstructionLoss
from gnncy.losses.spectral import SpectralRegularization

__all__ = [
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
