"""Training: the loop, its snapshots and the memory plan; curricula and what else changes from epoch to epoch."""
from gnncy.training.annealing import LossWeightScheduler, Schedules, TemperatureScheduler
from gnncy.training.curriculum import CurriculumScheduler, CurriculumStage
from gnncy.training.planner import MemoryPlan, resolve_limit
from gnncy.training.snapshot import SnapshotFolder, read_snapshot
from gnncy.training.trainer import Trainer

__all__ = ["CurriculumScheduler", "CurriculumStage", "LossWeightScheduler", "MemoryPlan", "Schedules",
           "SnapshotFolder", "TemperatureScheduler", "Trainer", "read_snapshot", "resolve_limit"]
