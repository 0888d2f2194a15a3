"""Joint embedding of two views without pairs of negatives, and the networks that are trained for it."""
from gnncy.losses.joint_embedding.bootstrap import BootstrapLoss, TargetNetwork, momentum_at
from gnncy.losses.joint_embedding.cca import BarlowTwinsLoss, CCALoss
from gnncy.losses.joint_embedding.discrimination import GroupDiscriminationLoss
from gnncy.losses.joint_embedding.objective import JointEmbedding, Views
from gnncy.losses.joint_embedding.vicreg import VICRegLoss

__all__ = ["BarlowTwinsLoss", "BootstrapLoss", "CCALoss", "GroupDiscriminationLoss", "JointEmbedding", "TargetNetwork",
           "VICRegLoss", "Views", "momentum_at"]
