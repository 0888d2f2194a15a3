"""Plans for feeding minibatches from disk under a memory limit: what the disk costs, and how an epoch is read."""
from gnncy.storage.plans.disk import DiskModel, calibrate, known_disk
from gnncy.storage.plans.execution import HotRows, PlanRun, peak_memory, run_plan
from gnncy.storage.plans.loader import ColdTierLoader as ColdTierLoader  # a name of gnncy.storage
from gnncy.storage.plans.plan import EpochPlan
from gnncy.storage.plans.planner import Planner

__all__ = ["DiskModel", "EpochPlan", "HotRows", "PlanRun", "Planner", "calibrate", "known_disk", "peak_memory",
           "run_plan"]
