"""Layers that know no graph: linear maps, activations, normalisation, tables, gates."""
import math
from collections.abc import Callable, Sequence

import numpy as np

from gnncy._check import check_choice, check_float, check_ids, check_int
from gnncy.nn import ops
from gnncy.nn.modules import Dropout, Module, Sequential
from gnncy.nn.tensor import Parameter, Tensor

__all__ = ["ELU", "GELU", "MLP", "BatchNorm", "Embedding", "GRUCell", "LayerNorm", "LeakyReLU", "Linear", "PReLU",
           "ProjectionHead", "ReLU", "Sigmoid", "Tanh", "glorot_uniform"]


def glorot_uniform(fan_in: int, fan_out: int, rng, dtype=np.float32) -> np.ndarray:
    """Weights of shape (fan_in, fan_out), uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010)."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    return np.random.default_rng(rng).uniform(-bound, bound, (fan_in, fan_out)).astype(dtype)


class Linear(Module):
    """``x W + b``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    rng : int, Generator or None
        Source of the first weights, Glorot uniform; the bias begins at 0.
    dtype : dtype

    Notes
    -----
    Shapes: input (n, in_features), output (n, out_features). The weight has shape (in_features, out_features),
    the transpose of PyTorch's.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> nn.Linear(3, 2, rng=0)(np.zeros((4, 3), np.float32)).shape
    (4, 2)
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, rng=None, dtype=np.float32):
        self.in_features = check_int(in_features, "in_features", 1)
        self.out_features = check_int(out_features, "out_features", 1)
        self.weight = Parameter(glorot_uniform(in_features, out_features, rng, dtype))
        self.bias = Parameter(np.zeros(out_features, dtype)) if bias else None

    def forward(self, x) -> Tensor:
        return ops.matmul(x, self.weight) if self.bias is None else ops.affine(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}" + ("" if self.bias is not None else ", bias=False")


class LayerNorm(Module):
    """Rows of mean 0 and variance 1, times a weight, plus a bias, both learned (Ba et al., 2016)."""

    def __init__(self, features: int, eps: float = 1e-5, *, dtype=np.float32):
        self.features = check_int(features, "features", 1)
        self.eps = check_float(eps, "eps", above=0)
        self.weight = Parameter(np.ones(features, dtype))
        self.bias = Parameter(np.zeros(features, dtype))

    def forward(self, x) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.features}, eps={self.eps}"


class BatchNorm(Module):
    """Columns of mean 0 and variance 1, times a weight, plus a bias, both learned (Ioffe and Szegedy, ICML 2015).

    Parameters
    ----------
    features : int
    eps : float
        Added to the variance.
    momentum : float
        Share of a batch in the running mean and variance, which stand in for the batch's own after :meth:`eval`.

    Notes
    -----
    As ``torch.nn.BatchNorm1d``: every forward pass while training moves the running statistics (but not one that is
    repeated by checkpointing), and their variance is the unbiased one.
    """

    _buffers = ("running_mean", "running_var")

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1, *, dtype=np.float32):
        self.features = check_int(features, "features", 1)
        self.eps = check_float(eps, "eps", above=0)
        self.momentum = check_float(momentum, "momentum", 0, 1)
        self.weight = Parameter(np.ones(features, dtype))
        self.bias = Parameter(np.zeros(features, dtype))
        self.running_mean = np.zeros(features, dtype)
        self.running_var = np.ones(features, dtype)

    def forward(self, x) -> Tensor:
        return ops.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, training=self.training,
                              momentum=self.momentum, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.features}, eps={self.eps}, momentum={self.momentum}"


class PReLU(Module):
    """Leaky ReLU with learned slopes: one, or one per column (``features`` of them) (He et al., 2015)."""

    def __init__(self, features: int = 1, slope: float = 0.25, *, dtype=np.float32):
        self.weight = Parameter(np.full(check_int(features, "features", 1), slope, dtype))

    def forward(self, x) -> Tensor:
        return ops.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return str(self.weight.size)


class ReLU(Module):
    """``max(x, 0)``."""

    def forward(self, x) -> Tensor:
        return ops.relu(x)


class ELU(Module):
    """``x`` where positive, else ``alpha (exp(x) - 1)``."""

    def __init__(self, alpha: float = 1.0):
        self.alpha = check_float(alpha, "alpha", above=0)

    def forward(self, x) -> Tensor:
        return ops.elu(x, self.alpha)


class LeakyReLU(Module):
    """``x`` where positive, else ``slope x``."""

    def __init__(self, slope: float = 0.01):
        self.slope = check_float(slope, "slope", above=0)

    def forward(self, x) -> Tensor:
        return ops.leaky_relu(x, self.slope)

    def extra_repr(self) -> str:
        return str(self.slope)


class GELU(Module):
    """``x`` times the probability that a standard normal number is below ``x``."""

    def forward(self, x) -> Tensor:
        return ops.gelu(x)


class Sigmoid(Module):
    """``1 / (1 + exp(-x))``."""

    def forward(self, x) -> Tensor:
        return ops.sigmoid(x)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x) -> Tensor:
        return ops.tanh(x)


_ACTIVATIONS: dict[str, Callable[[], Module]] = {"relu": ReLU, "elu": ELU, "gelu": GELU, "prelu": PReLU,
                                              "tanh": Tanh}


class MLP(Sequential):
    """Linear layers with an activation, and dropout, between them.

    Parameters
    ----------
    dims : sequence of int
        Widths from input to output, at least two.
    activation : {"relu", "elu", "gelu", "prelu", "tanh"}
    dropout : float
        Probability of dropping an element after each activation.
    norm : bool
        Layer normalisation before each activation.
    bias : bool
    rng : int, Generator or None

    Examples
    --------
    >>> from gnncy import nn
    >>> nn.MLP([8, 16, 4], activation="elu", rng=0)
    MLP(
      (layers.0): Linear(8, 16)
      (layers.1): ELU()
      (layers.2): Linear(16, 4)
    )
    """

    def __init__(self, dims: Sequence[int], activation: str = "relu", dropout: float = 0.0, *, norm: bool = False,
                 bias: bool = True, rng=None, dtype=np.float32):
        if len(dims) < 2:
            raise ValueError(f"dims needs the widths of input and output at least, got {list(dims)}")
        check_choice(activation, "activation", _ACTIVATIONS)
        rng = np.random.default_rng(rng)
        layers: list[Module] = []
        for i, (width, after) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            if i:
                if norm:
                    layers.append(LayerNorm(width, dtype=dtype))
                layers.append(_ACTIVATIONS[activation]() if activation != "prelu" else PReLU(dtype=dtype))
                if check_float(dropout, "dropout", 0, 1):
                    layers.append(Dropout(dropout))
            layers.append(Linear(width, after, bias, rng=rng, dtype=dtype))
        super().__init__(*layers)


class ProjectionHead(Module):
    """``fc2(ELU(fc1(z)))``: the loss sees the projection, whoever uses the embedding takes ``z``.

    References
    ----------
    Zhu et al., Deep Graph Contrastive Representation Learning (GRACE), 2020.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, *, rng=None, dtype=np.float32):
        rng = np.random.default_rng(rng)
        self.fc1 = Linear(in_features, hidden_features, rng=rng, dtype=dtype)
        self.fc2 = Linear(hidden_features, out_features, rng=rng, dtype=dtype)

    def forward(self, z) -> Tensor:
        return self.fc2(ops.elu(self.fc1(z)))


class Embedding(Module):
    """A table of learned rows, looked up by number; rows looked up twice add their gradients.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
    rng : int, Generator or None
        Source of the first rows, standard normal.

    Notes
    -----
    Shapes: ids (n,), output (n, embedding_dim). The gradient has the size of the table: for one that does not fit in
    memory, see the learnable tables of :mod:`gnncy.storage`.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, rng=None, dtype=np.float32):
        shape = check_int(num_embeddings, "num_embeddings", 1), check_int(embedding_dim, "embedding_dim", 1)
        self.weight = Parameter(np.random.default_rng(rng).standard_normal(shape).astype(dtype))

    def forward(self, ids) -> Tensor:
        return ops.take(self.weight, check_ids(ids, len(self.weight), "ids"))

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.weight.shape)


class GRUCell(Module):
    r"""Gated recurrent unit: a state ``h`` moves towards a candidate that the input ``x`` proposes.

    .. math::
        r &= \sigma(x W_r + b_r + h U_r + c_r) \qquad z = \sigma(x W_z + b_z + h U_z + c_z) \\
        n &= \tanh(x W_n + b_n + r \odot (h U_n + c_n)) \qquad h' = (1 - z) \odot n + z \odot h

    Parameters
    ----------
    in_features, hidden_features : int
    reset_after : bool
        True is PyTorch's form, above. False resets the state before its product, as Cho et al. wrote it:
        :math:`n = \tanh(x W_n + b_n + (r \odot h) U_n + c_n)`.
    rng : int, Generator or None

    Notes
    -----
    Shapes: x (n, in_features), h and output (n, hidden_features). The columns of both weights hold r, z and n in turn.

    References
    ----------
    Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014.
    """

    def __init__(self, in_features: int, hidden_features: int, reset_after: bool = True, *, rng=None, dtype=np.float32):
        rng = np.random.default_rng(rng)
        self.hidden_features = check_int(hidden_features, "hidden_features", 1)
        self.reset_after = bool(reset_after)
        self.from_input = _gates(check_int(in_features, "in_features", 1), hidden_features, rng, dtype)
        self.from_state = _gates(hidden_features, hidden_features, rng, dtype)

    def forward(self, x, h) -> Tensor:
        d = self.hidden_features
        by_input = self.from_input(x)
        h = h if isinstance(h, Tensor) else Tensor(h)
        if self.reset_after:
            by_state = self.from_state(h)
            gates = ops.sigmoid(by_input[:, :2 * d] + by_state[:, :2 * d])
            candidate = ops.tanh(by_input[:, 2 * d:] + gates[:, :d] * by_state[:, 2 * d:])
        else:
            weight, bias = self.from_state.weight, self.from_state.bias
            assert bias is not None
            gates = ops.sigmoid(by_input[:, :2 * d] + ops.affine(h, weight[:, :2 * d], bias[:2 * d]))
            candidate = ops.tanh(by_input[:, 2 * d:] + ops.affine(gates[:, :d] * h, weight[:, 2 * d:], bias[2 * d:]))
        return candidate + gates[:, d:] * (h - candidate)

    def extra_repr(self) -> str:
        return f"{self.from_input.in_features}, {self.hidden_features}, reset_after={self.reset_after}"


def _gates(in_features: int, hidden_features: int, rng, dtype) -> Linear:
    """A linear map to the three gates side by side, each with the weights of one that stands alone."""
    layer = Linear(in_features, 3 * hidden_features, rng=rng, dtype=dtype)
    layer.weight = Parameter(np.concatenate([glorot_uniform(in_features, hidden_features, rng, dtype)
                                             for _ in range(3)], axis=1))
    return layer
