"""Gradient prediction, and training in phases of true and predicted gradients: off by default, measured, gated."""
from gnncy.training.phases.config import PhaseConfig, PredictionConfig
from gnncy.training.phases.control import break_even, control_variate
from gnncy.training.phases.phase_trainer import PhaseTrainer
from gnncy.training.phases.predictor import GradientPredictor, Quality
from gnncy.training.phases.steps import PhaseStatistics, StepInfo

__all__ = ["GradientPredictor", "PhaseConfig", "PhaseStatistics", "PhaseTrainer", "PredictionConfig", "Quality",
           "StepInfo", "break_even", "control_variate"]
