"""What all optimizers share: parameters, gradients and their checks, state."""
from collections.abc import Iterable, Sequence

import numpy as np

from gnncy._check import check_float
from gnncy._kernels import optimizer as kernels
from gnncy._memory import aligned_empty
from gnncy._threads import run_pieces
from gnncy.nn import Tensor

_PIECE = 1 << 16  # elements that one thread takes at a time


class Optimizer:
    """Base of the optimizers. A subclass names its ``slots`` and ``options`` and writes ``_update``.

    Parameters
    ----------
    params : Tensor, array or an iterable of them
        Changed in place by :meth:`step`: float32 or float64, C-contiguous, writable.
    lr : float
        Learning rate; ``optimizer.lr`` may be set between steps.

    Examples
    --------
    Gradient descent in two lines; ``grad`` and ``param`` are flat and of one type:

    >>> import numpy as np
    >>> from gnncy.optim import Optimizer
    >>> class Descent(Optimizer):
    ...     def _update(self, grad, param):
    ...         param -= self.lr * grad
    >>> weights = np.ones((2, 2))
    >>> Descent([weights], lr=0.25).step([2 * weights])
    >>> weights
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """

    slots: tuple[str, ...] = ()  # arrays of state kept for every parameter
    options: tuple[str, ...] = ("lr",)  # attributes that state_dict keeps

    def __init__(self, params, lr: float):
        if isinstance(params, (Tensor, np.ndarray)):
            params = [params]
        self.params: list[Tensor | np.ndarray] = list(params)
        if not self.params:
            raise ValueError("params is empty: an optimizer needs at least one parameter")
        for i, param in enumerate(self.params):
            array = self._data(i)
            if not isinstance(param, (Tensor, np.ndarray)):
                raise TypeError(f"params[{i}] must be a Tensor or an array, got {type(param).__name__}")
            native = array.dtype in (np.float32, np.float64) and array.dtype.isnative
            if not (native and array.flags.c_contiguous and array.flags.writeable):
                raise ValueError(f"params[{i}] is changed in place and must be a writable, C-contiguous float32 or "
                                 f"float64 array; got {array.dtype} of shape {array.shape}; pass "
                                 "np.ascontiguousarray(array, np.float32)")
        self.lr = check_float(lr, "lr", 0)
        self.steps = 0
        self.state: dict[str, list[np.ndarray]] = {slot: [self._zeros(i) for i in range(len(self.params))]
                                                   for slot in self.slots}

    def _data(self, i: int) -> np.ndarray:
        param = self.params[i]
        return param.data if isinstance(param, Tensor) else np.asarray(param)

    def _zeros(self, i: int) -> np.ndarray:
        data = self._data(i)
        zeros = aligned_empty(data.shape, data.dtype)
        zeros.fill(0)
        return zeros

    def zero_grad(self) -> None:
        """Fill the gradients of all Tensors with zeros."""
        for param in self.params:
            if isinstance(param, Tensor):
                param.zero_grad()

    def step(self, grads: Sequence | None = None) -> None:
        """Change the parameters once.

        Parameters
        ----------
        grads : sequence of array_like, optional
            One per parameter, of its shape; None in place of one leaves its parameter alone. Default: the Tensors'
            ``grad``. A Tensor without a gradient is left alone.

        Raises
        ------
        ValueError
            If the number or a shape of the gradients is wrong or one is not finite; nothing is changed then.
        """
        arrays = self._gradients(grads)
        self.steps += 1
        for i, grad in enumerate(arrays):
            if grad is None:
                continue
            flat = [x.reshape(-1) for x in (grad, self._data(i), *(self.state[slot][i] for slot in self.slots))]
            self._update(*flat)

    def _update(self, grad: np.ndarray, param: np.ndarray, *state: np.ndarray) -> None:
        raise NotImplementedError

    def _gradients(self, grads: Iterable | None) -> list[np.ndarray | None]:
        if grads is None:
            for i, param in enumerate(self.params):
                if not isinstance(param, Tensor):
                    raise ValueError(f"params[{i}] is a plain array and carries no gradient: call step(grads)")
            grads = [param.grad for param in self.params if isinstance(param, Tensor)]
        else:
            grads = [grads] if isinstance(grads, np.ndarray) and len(self.params) == 1 and grads.shape == \
                self._data(0).shape else list(grads)
        if len(grads) != len(self.params):
            raise ValueError(f"grads must have one entry per parameter, {len(self.params)}, got {len(grads)}")
        out: list[np.ndarray | None] = []
        for i, grad in enumerate(grads):
            if grad is None:
                out.append(None)
                continue
            data = self._data(i)
            if np.shape(grad) != data.shape:
                raise ValueError(f"gradient of params[{i}] must have shape {data.shape}, got {np.shape(grad)}")
            array = np.ascontiguousarray(grad, data.dtype)
            if not _all_finite(array.reshape(-1)):
                raise ValueError(f"gradient of params[{i}] (shape {data.shape}) contains inf or nan values; nothing "
                                 "was changed. Lower the learning rate, or skip this step")
            out.append(array)
        return out

    def numbers(self) -> dict:
        """What :meth:`state_dict` holds beside arrays, ready for JSON."""
        return {"kind": type(self).__name__, "steps": self.steps,
                **{name: getattr(self, name) for name in self.options}}

    def state_dict(self) -> dict:
        """A copy of everything that the next step depends on, apart from the parameters."""
        return self.numbers() | {slot: [x.copy() for x in self.state[slot]] for slot in self.slots}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken; refused whole if it belongs to other parameters."""
        if state.get("kind") != type(self).__name__:
            raise ValueError(f"the state of a {state.get('kind')} cannot be loaded into {type(self).__name__}")
        for slot in self.slots:
            shapes = [x.shape for x in self.state[slot]]
            given = [np.shape(x) for x in state[slot]]
            if shapes != given:
                raise ValueError(f"{slot} must have shapes {shapes}, got {given}")
        self.steps = int(state["steps"])
        for name in self.options:
            value = state[name]
            setattr(self, name, tuple(map(float, value)) if isinstance(getattr(self, name), tuple) else float(value))
        for slot in self.slots:
            for own, given in zip(self.state[slot], state[slot], strict=True):
                own[...] = given

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)}" for name in self.options)
        return f"{type(self).__name__}({len(self.params)} parameters, {options})"


def _all_finite(flat: np.ndarray) -> bool:
    bits = flat.view(np.uint32 if flat.dtype == np.float32 else np.uint64)
    found: list[bool] = []
    run_pieces(lambda a, b: found.append(kernels.all_finite(bits[a:b])), bits.size, _PIECE)
    return all(found)


def run_flat(kernel, grad: np.ndarray, scalars: tuple, *arrays: np.ndarray) -> None:
    """Run ``kernel(grad, *scalars, *arrays)`` over fixed pieces of flat arrays."""
    run_pieces(lambda a, b: kernel(grad[a:b], *scalars, *(x[a:b] for x in arrays)), grad.size, _PIECE)
