"""What changes while training: temperature, weights of losses, difficulty; stages from easy to hard."""
from gnncy.training.schedules.annealing import LossWeightScheduler, Schedules, Settings, TemperatureScheduler
from gnncy.training.schedules.curriculum import CurriculumScheduler, CurriculumStage, neighbor_difficulty

__all__ = ["CurriculumScheduler", "CurriculumStage", "LossWeightScheduler", "Schedules", "Settings",
           "TemperatureScheduler", "neighbor_difficulty"]
