"""Optimizers: in place, one fused pass over flat memory, PyTorch's semantics. Schedules of the learning rate."""
from gnncy.optim.adam import Adam, AdamW
from gnncy.optim.clip import clip_grad_norm_, clip_grad_value_
from gnncy.optim.optimizer import Optimizer
from gnncy.optim.rows import RowAdagrad, SparseAdam
from gnncy.optim.schedules import (
    ConstantSchedule,
    CosineSchedule,
    DecaySchedule,
    ExponentialSchedule,
    LinearSchedule,
    LRScheduler,
    ReduceOnPlateau,
    Scheduler,
    StepSchedule,
    WarmupSchedule,
)
from gnncy.optim.sgd import SGD

__all__ = ["Adam", "AdamW", "ConstantSchedule", "CosineSchedule", "DecaySchedule", "ExponentialSchedule", "LRScheduler",
           "LinearSchedule", "Optimizer", "ReduceOnPlateau", "RowAdagrad", "SGD", "Scheduler", "SparseAdam",
           "StepSchedule", "WarmupSchedule", "clip_grad_norm_", "clip_grad_value_"]
