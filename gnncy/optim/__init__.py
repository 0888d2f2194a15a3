"""Optimizers: in place, one fused pass over flat memory."""
from gnncy.optim.adam import Adam, AdamW
from gnncy.optim.optimizer import Optimizer

__all__ = ["Adam", "AdamW", "Optimizer"]
