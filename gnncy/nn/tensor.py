"""A small tape autograd: arrays that remember how they were computed."""
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_state = threading.local()
_serial = itertools.count()


@contextmanager
def no_grad() -> Iterator[None]:
    """Inside the block nothing is recorded: results need no gradient and keep nothing alive.

    Examples
    --------
    >>> from gnncy import nn
    >>> x = nn.Tensor([1.0, 2.0], requires_grad=True)
    >>> with nn.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """
    before = grad_enabled()
    _state.enabled = False
    try:
        yield
    finally:
        _state.enabled = before


def grad_enabled() -> bool:
    """Whether operations on this thread are recorded."""
    return getattr(_state, "enabled", True)


@contextmanager
def recording(*, forget: bool, repeated: bool | None = None) -> Iterator[None]:
    """Record operations; with ``forget`` nothing is kept, yet results say whether they need a gradient.

    ``repeated`` says that the pass was made before, or is made to be measured: see :func:`repeated_pass`.
    """
    before = grad_enabled(), forgetting(), repeated_pass()
    _state.enabled, _state.forget = True, forget
    _state.repeated = before[2] if repeated is None else repeated
    try:
        yield
    finally:
        _state.enabled, _state.forget, _state.repeated = before


def forgetting() -> bool:
    """Whether operations on this thread leave nothing on the tape though gradients are enabled."""
    return getattr(_state, "forget", False)


def repeated_pass() -> bool:
    """Whether this forward pass repeats another: what counts passes, such as running means, shall leave it out."""
    return getattr(_state, "repeated", False)


class Watcher:
    """Sees every operation of its thread inside :func:`watching`."""

    def before(self, operation: type["Operation"], options: dict) -> None:
        """Called before an operation runs; may change ``options``."""

    def after(self, node: "Operation", inputs: tuple["Tensor", ...], out: "Tensor | None") -> None:
        """Called when it has run, and, without ``inputs`` and ``out``, when what it saved was brought back."""


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let ``watcher`` see the operations of this thread inside the block, after those that watch already."""
    before = _watchers()
    _state.watchers = (*before, watcher)
    try:
        yield
    finally:
        _state.watchers = before


def _watchers() -> tuple[Watcher, ...]:
    return getattr(_state, "watchers", ())


class Operation:
    """One step on the tape. A subclass writes ``forward`` and ``backward`` side by side.

    ``forward(*arrays, **options)`` returns an array; it puts what backward needs into ``self.save(...)`` and may skip
    what no input ``needs``. ``backward(grad)`` returns one gradient per input (None where not needed), of the input's
    shape; it must not change ``grad``.
    """

    # For each input that needs a gradient the leaf, or the operation that made it: its array is not kept alive.
    inputs: "tuple[Tensor | Operation | None, ...] | None" = None
    needs: tuple[bool, ...]
    options: dict
    saved: Any = ()  # a tuple, or a callable that brings it back
    shape: tuple[int, ...]
    serial: int
    # Runs a forgotten stretch again, recorded: the operations that stand for it, each with the result it stands for.
    again: "Callable[[], list[tuple[Operation, Tensor]]] | None" = None

    def forward(self, *arrays, **options) -> np.ndarray:
        raise NotImplementedError

    def backward(self, grad: np.ndarray) -> tuple:
        raise NotImplementedError

    def save(self, *values) -> None:
        self.saved = values

    @classmethod
    def apply(cls, *inputs, **options) -> "Tensor":
        """Run the operation; record it if an input needs a gradient."""
        # Constants take the dtype of the tensors, so that 2 * x and mask * x stay float32.
        dtypes = [t.dtype for t in inputs if isinstance(t, Tensor)]
        dtype = np.result_type(*dtypes) if dtypes else None
        tensors = tuple(t if isinstance(t, Tensor) else Tensor(np.asarray(t, dtype)) for t in inputs)
        watchers = _watchers()
        for watcher in watchers:
            watcher.before(cls, options)
        node = cls()
        enabled = grad_enabled()
        node.needs = tuple(enabled and t.requires_grad for t in tensors)
        node.options = options
        out = Tensor(node.forward(*(t.data for t in tensors), **options))
        if any(node.needs):
            node.link(tensors, out)
        for watcher in watchers:
            watcher.after(node, tensors, out)
        return out

    def link(self, tensors: tuple["Tensor", ...], out: "Tensor") -> None:
        """Make this the operation that ``out`` came from."""
        out.requires_grad = True
        if forgetting():
            out._node = _FORGOTTEN
            return
        self.inputs = tuple((t if t._node is None else t._node) if needed else None
                            for t, needed in zip(tensors, self.needs, strict=True))
        self.shape = out.shape
        self.serial = next(_serial)
        out._node = self


_FORGOTTEN = Operation()  # leads nowhere: backward through it is refused


class Tensor:
    """A float32 or float64 array that can be differentiated.

    Parameters
    ----------
    data : array_like
        The values; a float array is shared, not copied. Integers and bools become float32.
    requires_grad : bool
        Whether :meth:`backward` shall leave the gradient in ``grad``.

    Attributes
    ----------
    data : ndarray
    grad : ndarray or None
        Sum of the gradients of all :meth:`backward` calls since :meth:`zero_grad`.

    Examples
    --------
    >>> from gnncy import nn
    >>> x = nn.Tensor([[1.0, -2.0]], requires_grad=True)
    >>> loss = (nn.relu(x) * 3.0).sum()
    >>> loss.backward()
    >>> x.grad
    array([[3., 0.]])
    """

    __slots__ = ("data", "grad", "requires_grad", "_node", "__weakref__")
    __array_ufunc__ = None  # numpy leaves array + Tensor to Tensor.__radd__
    grad: np.ndarray | None

    def __init__(self, data, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("data is a Tensor already; use .detach() for one that shares its values")
        array = np.asarray(data)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"a Tensor holds real numbers, got dtype {array.dtype}")
        double = array.dtype.kind == "f" and array.dtype.itemsize == 8
        self.data = np.asarray(array, np.float64 if double else np.float32)
        self.grad = None
        self.requires_grad = bool(requires_grad)
        self._node: Operation | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def is_leaf(self) -> bool:
        """True if no recorded operation made it; only leaves receive ``grad``."""
        return self._node is None

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        text = np.array2string(self.data, separator=", ", prefix="Tensor(")
        return f"Tensor({text}{', requires_grad=True' if self.requires_grad else ''})"

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("this Tensor requires a gradient; use tensor.detach() or tensor.data to leave the tape")
        array = self.data if dtype is None else self.data.astype(dtype, copy=False)
        return array.copy() if copy else array

    def numpy(self) -> np.ndarray:
        """The array itself; refused, as in PyTorch, while a gradient is required."""
        return self.__array__()

    def item(self) -> float:
        """The only element as a Python float."""
        return float(self.data.item())

    def detach(self) -> "Tensor":
        """The same values, shared, cut off from the tape."""
        return Tensor(self.data)

    def zero_grad(self) -> None:
        """Fill the gradient, if there is one, with zeros in place."""
        if self.grad is not None:
            self.grad.fill(0)

    def backward(self, grad=None) -> None:
        """Add the gradient of this tensor by every leaf to the leaf's ``grad``.

        Parameters
        ----------
        grad : array_like, optional
            The gradient by this tensor, of its shape; 1 where this tensor is a single number.

        Raises
        ------
        RuntimeError
            If nothing was recorded, or the tape was used up by an earlier call: what the operations saved is freed
            as soon as it has been used.
        """
        if not self.requires_grad:
            raise RuntimeError("backward needs a Tensor computed from one with requires_grad=True, outside no_grad()")
        if grad is None:
            if self.size != 1:
                raise RuntimeError(f"backward() needs a gradient for a Tensor of shape {self.shape}: pass grad, or "
                                   "reduce it with .sum() or .mean() first")
            seed = np.ones(self.shape, self.dtype)
        else:
            seed = np.array(grad, self.dtype)
            if seed.shape != self.shape:
                raise ValueError(f"grad must have the Tensor's shape {self.shape}, got {seed.shape}")
        if self._node is None:
            _accumulate(self, seed)
        else:
            _run(self._node, seed)

    # Operators and the methods that PyTorch's users expect; the operations stand in gnncy.nn.ops.
    def __add__(self, other):
        return ops.add(self, other)

    def __radd__(self, other):
        return ops.add(other, self)

    def __sub__(self, other):
        return ops.subtract(self, other)

    def __rsub__(self, other):
        return ops.subtract(other, self)

    def __mul__(self, other):
        return ops.multiply(self, other)

    def __rmul__(self, other):
        return ops.multiply(other, self)

    def __truediv__(self, other):
        return ops.divide(self, other)

    def __rtruediv__(self, other):
        return ops.divide(other, self)

    def __neg__(self):
        return ops.negative(self)

    def __matmul__(self, other):
        return ops.matmul(self, other)

    def __rmatmul__(self, other):
        return ops.matmul(other, self)

    def __getitem__(self, index):
        return ops.take(self, index)

    @property
    def T(self) -> "Tensor":
        """The transpose."""
        return ops.transpose(self)

    def transpose(self, *axes: int) -> "Tensor":
        return ops.transpose(self, axes or None)

    def reshape(self, *shape) -> "Tensor":
        return ops.reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def sum(self, axis=None, keepdims: bool = False) -> "Tensor":
        return ops.sum(self, axis, keepdims)

    def mean(self, axis=None, keepdims: bool = False) -> "Tensor":
        return ops.mean(self, axis, keepdims)

    def exp(self) -> "Tensor":
        return ops.exp(self)

    def log(self) -> "Tensor":
        return ops.log(self)

    def tanh(self) -> "Tensor":
        return ops.tanh(self)

    def sigmoid(self) -> "Tensor":
        return ops.sigmoid(self)

    def relu(self) -> "Tensor":
        return ops.relu(self)


class Parameter(Tensor):
    """A Tensor that a :class:`~gnncy.nn.Module` owns and an optimizer changes."""

    __slots__ = ()

    def __init__(self, data, requires_grad: bool = True):
        super().__init__(data, requires_grad)


def _accumulate(leaf: Tensor, grad: np.ndarray) -> None:
    if leaf.grad is None:
        leaf.grad = np.array(grad, leaf.dtype, order="C")  # a copy: grad may be shared between inputs
    else:
        leaf.grad += grad


def _refuse_used(root: Operation) -> None:
    """Raise before anything is done if a part of the tape below ``root`` was used up."""
    found, stack = {root}, [root]
    while stack:
        node = stack.pop()
        if node.inputs is None:
            raise RuntimeError("backward was already called through this part of the tape and what it saved is freed; "
                               "run the forward pass again, or add the losses and call backward once")
        for source in node.inputs:
            if isinstance(source, Operation) and source not in found:
                found.add(source)
                stack.append(source)


def _run(root: Operation, seed: np.ndarray) -> None:
    """Reverse the tape from ``root``, latest operation first."""
    _refuse_used(root)
    heap = [(-root.serial, root)]
    pending: dict[Operation, np.ndarray] = {root: seed}
    owned: set[Operation] = set()  # whose pending array was made here and may be added to in place

    def give(source: Tensor | Operation, grad: np.ndarray) -> None:
        assert grad.shape == source.shape, f"{type(source).__name__}: gradient of another shape"
        if isinstance(source, Tensor):
            _accumulate(source, grad)
        elif source not in pending:
            pending[source] = grad
            heapq.heappush(heap, (-source.serial, source))
        elif source in owned:
            pending[source] += grad
        else:
            pending[source] = pending[source] + grad
            owned.add(source)

    while heap:
        node = heapq.heappop(heap)[1]
        if node not in pending:
            continue  # stood for the same stretch as a later one
        if node.again is not None:
            # The stretch takes its place on the tape: later than all that is left, as it was, so sums keep their order.
            for place, result in node.again():
                place.inputs = place.again = None
                if place in pending:
                    give(result if result._node is None else result._node, pending.pop(place))
            del place, result
            continue
        grad = pending.pop(node)
        owned.discard(node)
        if callable(node.saved):
            node.saved = node.saved()
            for watcher in _watchers():
                watcher.after(node, (), None)
        inputs, grads = node.inputs, node.backward(grad)
        node.inputs, node.saved = None, ()
        assert inputs is not None and len(grads) == len(inputs), f"{type(node).__name__}: one gradient per input"
        for source, grad in zip(inputs, grads, strict=True):
            if source is not None:
                give(source, grad)
        del grad, grads  # or they would live on through the next operation


from gnncy.nn import ops  # noqa: E402  (the operations need Tensor and Operation)
