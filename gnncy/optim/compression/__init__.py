"""Gradients in few bits: ternary accumulation, hypervectors, and the standard compressors behind one interface."""
from gnncy.optim.compression.accumulator import TernaryGradientAccumulator, TernaryOptimizerWrapper
from gnncy.optim.compression.ternary import TernaryVector, ternary_quantize

__all__ = ["TernaryGradientAccumulator", "TernaryOptimizerWrapper", "TernaryVector", "ternary_quantize"]
