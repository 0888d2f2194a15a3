"""Training: the loop, what it is fed and trained for, snapshots, callbacks, curricula, and the memory plan."""
from gnncy.training.callbacks import Callback, CSVLogger, EarlyStopping, ExitOnSignal, Task
from gnncy.training.cold_tier import ColdTierEpochResult, ColdTierTrainer
from gnncy.training.loader import GraphBatch, GraphLoader
from gnncy.training.objective import Embedded, Evaluation, Objective
from gnncy.training.planner import MemoryPlan, resolve_limit
from gnncy.training.schedules import (
    CurriculumScheduler,
    CurriculumStage,
    LossWeightScheduler,
    Schedules,
    TemperatureScheduler,
    neighbor_difficulty,
)
from gnncy.training.snapshot import (
    SnapshotFolder,
    pack_state,
    read_snapshot,
    unpack_state,
    write_snapshot,
)
from gnncy.training.trainer import Trainer

__all__ = ["CSVLogger", "Callback", "ColdTierEpochResult", "ColdTierTrainer", "CurriculumScheduler", "CurriculumStage",
           "EarlyStopping", "Embedded", "Evaluation", "ExitOnSignal", "GraphBatch", "GraphLoader",
           "LossWeightScheduler", "MemoryPlan", "Objective", "Schedules", "SnapshotFolder", "Task",
           "TemperatureScheduler", "Trainer", "neighbor_difficulty", "pack_state", "read_snapshot", "resolve_limit",
           "unpack_state", "write_snapshot"]
