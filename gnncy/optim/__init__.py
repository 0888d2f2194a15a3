"""Optimizers: in place, one fused pass over flat memory, PyTorch's semantics. Learning-rate schedules."""
from gnncy.optim.adam import Adam, AdamW
from gnncy.optim.clip import clip_grad_norm_, clip_grad_value_
from gnncy.optim.optimizer import Optimizer
from gnncy.optim.rows import RowAdagrad, SparseAdam
from gnncy.optim.sgd import SGD

__all__ = ["Adam", "AdamW", "Optimizer", "RowAdagrad", "SGD", "SparseAdam", "clip_grad_norm_", "clip_grad_value_"]
