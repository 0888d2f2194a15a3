"""Losses on plain arrays (loss and analytic gradients) and on the tape."""
from gnncy.losses.augment import drop_blocks
from gnncy.losses.infonce import InfoNCEGradients, InfoNCELoss, info_nce

__all__ = ["InfoNCEGradients", "InfoNCELoss", "drop_blocks", "info_nce"]
