"""Modules: what owns parameters, their state in memory and in files."""
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from gnncy import _files
from gnncy._check import check_float, check_int
from gnncy._memory import aligned_empty
from gnncy._random import derive
from gnncy.nn import ops
from gnncy.nn.tensor import Parameter, Tensor

__all__ = ["Dropout", "Module", "Sequential", "flatten_parameters", "load", "save"]


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
    _buffers: tuple[str, ...] = ()  # attributes that are part of the state and not trained

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

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """Arrays that belong to the state and are not trained, such as running means, with their dotted names."""
        for prefix, module in self.named_modules():
            for name in module._buffers:
                yield (f"{prefix}.{name}" if prefix else name), getattr(module, name)

    def requires_grad_(self, mode: bool = True) -> "Module":
        """Let all parameters take part in training, or with False freeze them."""
        for parameter in self.parameters():
            parameter.requires_grad = bool(mode)
        return self

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

    def _state(self) -> dict[str, np.ndarray]:
        return {name: parameter.data for name, parameter in self.named_parameters()} | dict(self.named_buffers())

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter and buffer under its dotted name; see :func:`gnncy.nn.save`."""
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Set parameters and buffers in place; names and shapes must be this module's, or nothing is changed."""
        own = self._state()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ValueError(f"state does not belong to this module: missing {missing}, unknown {unknown}")
        for name, array in own.items():
            if np.shape(state[name]) != array.shape:
                raise ValueError(f"{name} must have shape {array.shape}, got {np.shape(state[name])}")
        for name, array in own.items():
            array[...] = state[name]

    def extra_repr(self) -> str:
        """What stands in the brackets of ``repr``."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self._children()]
        body = "\n  " + "\n  ".join(lines) + "\n" if lines else self.extra_repr()
        return f"{type(self).__name__}({body})"


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


class Sequential(Module):
    """Modules, each applied to the output of the one before."""

    def __init__(self, *layers: Module):
        self.layers = list(layers)

    def forward(self, x) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


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


def save(state: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Write a ``state_dict`` to a file: safetensors if the name ends so, else numpy's npz. Whole or not at all.

    Parameters
    ----------
    state : mapping of str to ndarray
        What :meth:`Module.state_dict` returned, or any named arrays.
    path : path
        ``*.safetensors`` or ``*.npz``.

    Raises
    ------
    ValueError
        If the name ends otherwise.
    ImportError
        If safetensors is asked for and not installed.

    Examples
    --------
    >>> from gnncy import nn
    >>> layer, other = nn.Linear(3, 2, rng=0), nn.Linear(3, 2, rng=1)
    >>> nn.save(layer.state_dict(), "layer.npz")
    >>> other.load_state_dict(nn.load("layer.npz"))
    >>> bool((other.weight.data == layer.weight.data).all())
    True
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    safe = _is_safetensors(path)
    with _files.replacing(path) as temporary:
        if safe:
            _safetensors().save_file(arrays, str(temporary))
        else:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read what :func:`save` wrote; no code in the file is run.

    Parameters
    ----------
    path : path
        ``*.safetensors`` or ``*.npz``.

    Returns
    -------
    dict of str to ndarray

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> nn.save({"weight": np.ones(2)}, "state.npz")
    >>> nn.load("state.npz")
    {'weight': array([1., 1.])}
    """
    if _is_safetensors(path):
        return _safetensors().load_file(str(path))
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _is_safetensors(path: str | os.PathLike) -> bool:
    ending = Path(path).suffix
    if ending not in (".safetensors", ".npz"):
        raise ValueError(f"the name of a state file must end in .safetensors or .npz, got {os.fspath(path)!r}")
    return ending == ".safetensors"


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("files ending in .safetensors need the package of that name (pip install safetensors); "
                          "a name ending in .npz needs nothing") from error
    return safetensors.numpy
