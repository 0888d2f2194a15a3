"""Modules: parameters, and the layers that are built from them."""
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gnncy._check import check_choice, check_float, check_int
from gnncy._memory import aligned_empty
from gnncy._random import derive
from gnncy.nn import ops
from gnncy.nn.tensor import Parameter, Tensor

__all__ = ["ELU", "MLP", "Dropout", "LayerNorm", "Linear", "Module", "PReLU", "ProjectionHead", "ReLU", "Sequential",
           "Tanh", "flatten_parameters", "glorot_uniform"]


class Module:
    """Base of all layers: whatever :class:`Parameter` or :class:`Module` is set as an attribute belongs to it.

    A subclass sets its attributes in ``__init__`` and writes ``forward``. Lists and tuples of modules count too.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.ELU(), nn.Linear(4, 2, rng=1))
    >>> model(np.ones((5, 3), np.float32)).shape
    (5, 2)
    >>> [name for name, _ in model.named_parameters()]
    ['layers.0.weight', 'layers.0.bias', 'layers.2.weight', 'layers.2.bias']
    """

    training = True

    def forward(self, *args, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def _children(self) -> Iterator[tuple[str, "Module"]]:
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module and all below it, each with its dotted name, in the order of definition."""
        yield prefix, self
        for name, child in self._children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def modules(self) -> Iterator["Module"]:
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with its dotted name; one that two modules share goes by the first name."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{prefix}.{name}" if prefix else name), value

    def parameters(self) -> Iterator[Parameter]:
        return (parameter for _, parameter in self.named_parameters())

    def apply(self, function: Callable[["Module"], object]) -> "Module":
        """Call ``function`` on this module and all below it."""
        for module in self.modules():
            function(module)
        return self

    def train(self, mode: bool = True) -> "Module":
        """Training mode: dropout drops."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> "Module":
        """Evaluation mode: dropout does nothing."""
        return self.train(False)

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.zero_grad()

    def set_step_key(self, key: int) -> "Module":
        """Give every :class:`Dropout` below its own part of the random ``key`` of this training step.

        The same key gives the same masks: call it with a key derived from (seed, epoch, step) before each step.
        """
        key = check_int(key, "key", 0, 2**64 - 1)
        for i, module in enumerate(m for m in self.modules() if isinstance(m, Dropout)):
            module.key = derive(key, i)
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter under its dotted name."""
        return {name: parameter.data.copy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Set the parameters in place; names and shapes must be this module's, or nothing is changed."""
        own = dict(self.named_parameters())
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ValueError(f"state does not belong to this module: missing {missing}, unknown {unknown}")
        for name, parameter in own.items():
            if np.shape(state[name]) != parameter.shape:
                raise ValueError(f"{name} must have shape {parameter.shape}, got {np.shape(state[name])}")
        for name, parameter in own.items():
            parameter.data[...] = state[name]

    def extra_repr(self) -> str:
        """What stands in the brackets of ``repr``."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self._children()]
        body = "\n  " + "\n  ".join(lines) + "\n" if lines else self.extra_repr()
        return f"{type(self).__name__}({body})"


def flatten_parameters(module: Module) -> tuple[np.ndarray, np.ndarray]:
    """Move all parameters and gradients of ``module`` into two flat arrays, so that an optimizer makes one pass.

    Each parameter's ``data`` and ``grad`` become views, in the order of ``named_parameters``.

    Returns
    -------
    data, grad : ndarray of shape (number of parameters,)
        ``grad`` is zero at first; pass ``[data]`` to an optimizer and ``[grad]`` to its ``step``.

    Examples
    --------
    >>> from gnncy import nn
    >>> layer = nn.Linear(3, 2, rng=0)
    >>> data, grad = nn.flatten_parameters(layer)
    >>> data.shape
    (8,)
    >>> data[:] = 1
    >>> float(layer.weight.data.sum())
    6.0
    """
    parameters = list(module.parameters())
    if not parameters:
        raise ValueError(f"{type(module).__name__} has no parameters")
    dtypes = {p.dtype for p in parameters}
    if len(dtypes) > 1:
        raise ValueError(f"all parameters must have one dtype to lie in one array, got {sorted(map(str, dtypes))}")
    size = sum(p.size for p in parameters)
    data, grad = (aligned_empty(size, parameters[0].dtype) for _ in range(2))
    grad.fill(0)
    start = 0
    for p in parameters:
        place = slice(start, start + p.size)
        data[place] = p.data.reshape(-1)
        p.data = data[place].reshape(p.shape)
        p.grad = grad[place].reshape(p.shape)
        start += p.size
    return data, grad


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


class Dropout(Module):
    """Dropout of elements with probability ``p`` while training; see :func:`gnncy.nn.dropout`.

    The mask comes from a key, never from shared state: ``model.set_step_key(key)`` before each training step.
    """

    def __init__(self, p: float = 0.5):
        self.p = check_float(p, "p", 0, 1)
        self.key: int | None = None

    def forward(self, x) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.key is None:
            raise RuntimeError("Dropout has no key for this step: call model.set_step_key(key) before the forward "
                               "pass, or model.eval()")
        return ops.dropout(x, self.p, key=self.key)

    def extra_repr(self) -> str:
        return f"p={self.p}"


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


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, x) -> Tensor:
        return ops.tanh(x)


class Sequential(Module):
    """Modules, each applied to the output of the one before."""

    def __init__(self, *layers: Module):
        self.layers = list(layers)

    def forward(self, x) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


_ACTIVATIONS: dict[str, Callable[[], Module]] = {"relu": ReLU, "elu": ELU, "prelu": PReLU, "tanh": Tanh}


class MLP(Sequential):
    """Linear layers with an activation, and dropout, between them.

    Parameters
    ----------
    dims : sequence of int
        Widths from input to output, at least two.
    activation : {"relu", "elu", "prelu", "tanh"}
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
