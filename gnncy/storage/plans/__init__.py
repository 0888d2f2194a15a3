"""Plans for feeding minibatches from disk under a memory limit: what the disk costs, and how an epoch is read."""
from gnncy.storage.plans.disk import DiskModel, calibrate, known_disk
from gnncy.storage.plans.plan import EpochPlan

__all__ = ["DiskModel", "EpochPlan", "calibrate", "known_disk"]
