"""Gradients in few bits: ternary accumulation, hypervectors, and the standard compressors behind one interface."""
from gnncy.optim.compression.accumulator import TernaryGradientAccumulator, TernaryOptimizerWrapper
from gnncy.optim.compression.compressor import Compressor, Message
from gnncy.optim.compression.standard import (
    CountSketchCompressor,
    PowerSGDCompressor,
    SignCompressor,
    TernaryCompressor,
    TopKCompressor,
)
from gnncy.optim.compression.ternary import TernaryVector, ternary_quantize
from gnncy.optim.compression.vsa import (
    Mod3VSACompressor,
    VSAGradientCompressor,
    bind,
    bundle,
    permute,
    random_hypervector,
    similarity,
    unbind,
)

__all__ = ["Compressor", "CountSketchCompressor", "Message", "Mod3VSACompressor", "PowerSGDCompressor",
           "SignCompressor", "TernaryCompressor", "TernaryGradientAccumulator", "TernaryOptimizerWrapper",
           "TernaryVector", "TopKCompressor", "VSAGradientCompressor", "bind", "bundle", "permute",
           "random_hypervector", "similarity", "ternary_quantize", "unbind"]
