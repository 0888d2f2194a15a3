"""How an epoch's minibatches are fed from disk: four ways that give the same minibatches, bit for bit."""
from gnncy.storage.plans.execution.memory import peak_memory
from gnncy.storage.plans.execution.rows import HotRows, RowFile
from gnncy.storage.plans.execution.run import PlanRun, run_plan

__all__ = ["HotRows", "PlanRun", "RowFile", "peak_memory", "run_plan"]
