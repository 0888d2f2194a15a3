"""Training: the loop, its snapshots and the memory plan."""
from gnncy.training.planner import MemoryPlan, resolve_limit
from gnncy.training.snapshot import SnapshotFolder, read_snapshot
from gnncy.training.trainer import Trainer

__all__ = ["MemoryPlan", "SnapshotFolder", "Trainer", "read_snapshot", "resolve_limit"]
