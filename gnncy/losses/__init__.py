"""Losses on plain arrays (loss and analytic gradients) and on the tape."""
from gnncy.losses.augment import drop_blocks
from gnncy.losses.infonce import InfoNCEGradients, InfoNCELoss, info_nce
from gnncy.losses.mining import GraphHardNegativeMiner, HardNegativeMiner, MinedNegatives

__all__ = [
    "GraphHardNegativeMiner",
    "HardNegativeMiner",
    "InfoNCEGradients",
    "InfoNCELoss",
    "MinedNegatives",
    "drop_blocks",
    "info_nce",
]
