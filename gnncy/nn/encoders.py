"""Encoders of single rows."""
import numpy as np

from gnncy.nn import ops
from gnncy.nn.layers import Linear
from gnncy.nn.modules import Module
from gnncy.nn.tensor import Tensor

_FIRST_SCALE = 0.1


class ResidualMLP(Module):
    """A linear map plus a two-layer perceptron: ``x S + relu(x A + b) B``.

    Parameters
    ----------
    in_features, hidden_features, out_features : int
    rng : int, Generator or None

    Attributes
    ----------
    skip : Linear
        The linear path. Set its weight to start from a known projection; ``B`` begins small, so that training
        begins near it.

    Notes
    -----
    Shapes: input (n, in_features), output (n, out_features).

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> nn.ResidualMLP(6, 8, 2, rng=0)(np.zeros((4, 6), np.float32)).shape
    (4, 2)
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, *, rng=None, dtype=np.float32):
        rng = np.random.default_rng(rng)
        self.skip = Linear(in_features, out_features, bias=False, rng=rng, dtype=dtype)
        self.first = Linear(in_features, hidden_features, rng=rng, dtype=dtype)
        self.second = Linear(hidden_features, out_features, bias=False, rng=rng, dtype=dtype)
        np.multiply(self.second.weight.data, dtype(_FIRST_SCALE), out=self.second.weight.data)

    def forward(self, x) -> Tensor:
        return ops.add(self.skip(x), self.second(ops.relu(self.first(x))))


class Projected(Module):
    """An encoder under a projection head that only training sees: ``encoder`` gives the embedding.

    A contrastive loss discards what views do not share; behind a head, the embedding keeps more of it
    (Chen et al., SimCLR, ICML 2020).
    """

    def __init__(self, encoder: Module, head: Module):
        self.encoder, self.head = encoder, head

    def forward(self, *inputs) -> Tensor:
        return self.head(self.encoder(*inputs))
