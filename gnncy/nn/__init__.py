"""Tape autograd over numpy arrays, and the layers of encoders."""
from gnncy.nn.attention import *  # noqa: F403
from gnncy.nn.attention import __all__ as _attention
from gnncy.nn.checkpointing import RecomputationPolicy, checkpoint, checkpoint_sequential
from gnncy.nn.conv import *  # noqa: F403
from gnncy.nn.conv import __all__ as _conv
from gnncy.nn.encoders import Projected, ResidualMLP
from gnncy.nn.gradcheck import check_gradient
from gnncy.nn.inference import infer
from gnncy.nn.layers import *  # noqa: F403
from gnncy.nn.layers import __all__ as _layers
from gnncy.nn.modules import *  # noqa: F403
from gnncy.nn.modules import __all__ as _modules
from gnncy.nn.ops import *  # noqa: F403
from gnncy.nn.ops import __all__ as _ops
from gnncy.nn.tensor import Operation, Parameter, Tensor, no_grad

__all__ = ["Operation", "Parameter", "Projected", "RecomputationPolicy", "ResidualMLP", "Tensor", "check_gradient",
           "checkpoint", "checkpoint_sequential", "infer", "no_grad", *_attention, *_conv, *_layers, *_modules, *_ops]
