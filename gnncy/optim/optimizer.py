"""What all optimizers share: parameters in groups, their gradients and checks, state."""
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from gnncy._check import check_choice, check_float, check_int
from gnncy._kernels import optimizer as kernels
from gnncy._memory import aligned_empty
from gnncy._threads import run_pieces
from gnncy.nn import Tensor

_PIECE = 1 << 18  # elements that one thread takes at a time


class Optimizer:
    """Base of the optimizers: what they change, the options of each group, their state.

    A subclass names its ``slots``, gives its options to ``__init__``, checks them in ``_check_options`` and has a
    ``step``.

    Parameters
    ----------
    params : Tensor, array or an iterable of them, or of dicts
        Changed in place by ``step``: float32 or float64, C-contiguous, writable. A dict is a parameter group:
        ``{"params": ..., "lr": 1e-2}``, with options of its own.
    options : dict
        What holds for a group that does not say otherwise; ``lr`` is one of them.
    nonfinite : {"raise", "skip", "ignore"}
        What ``step`` does about a gradient with nan or infinity.

    Attributes
    ----------
    param_groups : list of dict
        One a group, with all its options; those may be changed between steps.
    params : list of Tensor or ndarray
        The parameters of all groups, one after the other.
    state : dict of str to list of ndarray
        An array for each slot and parameter; of shape (0,) until it is first needed.
    counts : list of int
        Steps that each parameter has taken.
    skipped : int
        Steps left out because of a gradient that was not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim import SGD
    >>> encoder, head = np.ones(3), np.ones(2)
    >>> optimizer = SGD([{"params": encoder}, {"params": head, "lr": 0.1}], lr=0.01)
    >>> optimizer.lr = 0.005
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.005, 0.05]
    """

    slots: tuple[str, ...] = ()

    def __init__(self, params, options: dict, nonfinite: str):
        self.nonfinite = check_choice(nonfinite, "nonfinite", ("raise", "skip", "ignore"))
        self.defaults = self._check_options(options)
        self.param_groups: list[dict] = []
        self.params: list[Tensor | np.ndarray] = []
        self.state: dict[str, list[np.ndarray]] = {slot: [] for slot in self.slots}
        self.counts: list[int] = []
        self.skipped = 0
        self._lr: float = self.defaults["lr"]
        self._shapes: list[tuple[int, ...]] = []
        groups = [params] if isinstance(params, (Tensor, np.ndarray, dict)) else list(params)
        if not groups:
            raise ValueError("params is empty: an optimizer needs at least one parameter")
        if any(isinstance(group, dict) for group in groups):
            if not all(isinstance(group, dict) for group in groups):
                raise TypeError("params must be parameters or dicts of groups, not both")
        else:
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)  # type: ignore[arg-type]

    @staticmethod
    def _check_options(options: dict) -> dict:
        raise NotImplementedError

    def add_param_group(self, group: dict) -> None:
        """Add parameters with options of their own.

        Parameters
        ----------
        group : dict
            ``params`` and any of the optimizer's options. The group's ``lr`` keeps its proportion to the
            optimizer's when that is set.
        """
        unknown = sorted(group.keys() - self.defaults.keys() - {"params", "name"})
        if unknown:
            raise ValueError(f"a parameter group has unknown options {unknown}; this optimizer has "
                             f"{', '.join(self.defaults)}")
        if "params" not in group:
            raise ValueError("a parameter group must have 'params'")
        own = group["params"]
        params = [own] if isinstance(own, (Tensor, np.ndarray)) else list(own)
        if not params:
            raise ValueError("params is empty: a parameter group needs at least one parameter")
        options = self._check_options({name: group.get(name, value) for name, value in self.defaults.items()})
        ratio = 1.0
        if options["lr"] != self.defaults["lr"]:
            if self.defaults["lr"] == 0:
                raise ValueError("a group's lr keeps its proportion to the optimizer's, which must not be 0 then")
            ratio = options["lr"] / self.defaults["lr"]
        first = len(self.params)
        for i, param in enumerate(params, first):
            _check_parameter(param, i)
        _check_apart([*self.params, *params])
        name = {"name": group["name"]} if "name" in group else {}
        self.param_groups.append({"params": params, **name, **options, "lr_ratio": ratio})
        for param in params:
            data = _data(param)
            self.params.append(param)
            self.counts.append(0)
            self._shapes.append(data.shape)
            for slot in self.slots:
                self.state[slot].append(np.empty(0, data.dtype))

    @property
    def lr(self) -> float:
        """The learning rate of groups without one of their own; setting it scales all groups alike."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = check_float(value, "lr", 0)
        for group in self.param_groups:
            group["lr"] = self._lr * group["lr_ratio"]

    def _groups(self) -> Iterable[tuple[int, dict]]:
        """The number of each parameter and its group."""
        i = 0
        for group in self.param_groups:
            for _ in group["params"]:
                yield i, group
                i += 1

    def _flat(self, i: int) -> np.ndarray:
        """Parameter ``i`` in one dimension, checked anew: a Tensor's data may have been replaced."""
        param = self.params[i]
        _check_parameter(param, i)
        data = _data(param)
        if data.shape != self._shapes[i]:
            raise ValueError(f"params[{i}] had shape {self._shapes[i]} when the optimizer was made and now has "
                             f"{data.shape}; make a new optimizer")
        return data.reshape(-1)

    def _slot(self, slot: str, i: int) -> np.ndarray:
        """The state of parameter ``i``, made of zeros when it is first needed."""
        if self.state[slot][i].size == 0:
            zeros = aligned_empty(self._slot_shape(slot, i), _data(self.params[i]).dtype)
            zeros.fill(0)
            self.state[slot][i] = zeros
        elif self.state[slot][i].dtype != _data(self.params[i]).dtype:
            raise ValueError(f"params[{i}] is now {_data(self.params[i]).dtype} and its state is "
                             f"{self.state[slot][i].dtype}; make a new optimizer")
        return self.state[slot][i]

    def _slot_shape(self, slot: str, i: int) -> tuple[int, ...]:
        return self._shapes[i]

    def numbers(self) -> dict:
        """What :meth:`state_dict` holds beside arrays.

        Returns
        -------
        dict
            Ready for JSON.
        """
        groups = [{name: group[name] for name in (*self.defaults, "lr_ratio")} | {"params": len(group["params"])}
                  for group in self.param_groups]
        return {"kind": type(self).__name__, "counts": list(self.counts), "skipped": self.skipped, "lr": self._lr,
                "groups": groups}

    def state_dict(self) -> dict:
        """A copy of what the next step depends on, apart from the parameters, ``nonfinite`` and ``max_norm``.

        Returns
        -------
        dict
            :meth:`numbers`, and a list of arrays for each slot.
        """
        return self.numbers() | {slot: [x.copy() for x in self.state[slot]] for slot in self.slots}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken; refused whole if it belongs to other parameters.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict` of an optimizer of the same kind, with groups of the same sizes.
        """
        if state.get("kind") != type(self).__name__:
            raise ValueError(f"the state of a {state.get('kind')} cannot be loaded into {type(self).__name__}")
        sizes = [len(group["params"]) for group in self.param_groups]
        given_sizes = [group["params"] for group in state["groups"]]
        if sizes != given_sizes or len(state["counts"]) != len(self.params):
            raise ValueError(f"the state belongs to parameter groups of {given_sizes} parameters, not of {sizes}")
        arrays = {slot: [np.asarray(x) for x in state[slot]] for slot in self.slots}
        for slot, given in arrays.items():
            if len(given) != len(self.params):
                raise ValueError(f"{slot} must have {len(self.params)} arrays, got {len(given)}")
            for i, array in enumerate(given):
                shape, dtype = self._slot_shape(slot, i), _data(self.params[i]).dtype
                if array.shape not in (shape, (0,)) or array.dtype != dtype:
                    raise ValueError(f"{slot} of params[{i}] must have shape {shape} and be {dtype}, got shape "
                                     f"{array.shape} and {array.dtype}")
        options = [self._check_options({name: group[name] for name in self.defaults}) | {
            "lr_ratio": check_float(group["lr_ratio"], "lr_ratio", 0)} for group in state["groups"]]
        counts = [check_int(count, "counts", 0) for count in state["counts"]]
        skipped = check_int(state["skipped"], "skipped", 0)
        lr = check_float(state["lr"], "lr", 0)
        self.counts, self.skipped, self._lr = counts, skipped, lr
        for group, loaded in zip(self.param_groups, options, strict=True):
            group.update(loaded)
        for slot, given in arrays.items():
            for i, array in enumerate(given):
                if array.size:
                    self._slot(slot, i)[...] = array
                else:
                    self.state[slot][i] = array.copy()

    def __repr__(self) -> str:
        groups = self.param_groups
        options = ", ".join(f"{name}={groups[0][name]}" for name in self.defaults)
        groups_text = f" in {len(groups)} groups" if len(groups) > 1 else ""
        return f"{type(self).__name__}({len(self.params)} parameters{groups_text}, {options})"


class DenseOptimizer(Optimizer):
    """Base of the optimizers that change all of a parameter. A subclass writes ``_call``."""

    def __init__(self, params, options: dict, nonfinite: str, max_norm: float | None):
        self.max_norm = None if max_norm is None else check_float(max_norm, "max_norm", above=0)
        self.grad_norm: float | None = None
        super().__init__(params, options, nonfinite)

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
            If the number or a shape of the gradients is wrong, or one is not finite (``nonfinite="raise"``);
            nothing is changed then.
        """
        arrays = self._gradients(grads)
        params = [self._flat(i) for i, _ in enumerate(arrays)]
        scale = self._scale(arrays)
        if scale is None:
            self.skipped += 1
            return
        calls = {i: self._call(i, group, grad, scale, params[i])
                 for i, group in self._groups() if (grad := arrays[i]) is not None}

        def work(pieces):
            for i, start, stop in pieces:
                kernel, arguments = calls[i]
                kernel(start, stop, *arguments)

        run_over(arrays, work)
        for i, grad in enumerate(arrays):
            self.counts[i] += grad is not None

    def _call(self, i: int, group: dict, grad: np.ndarray, scale: float, param: np.ndarray) -> tuple[Callable, tuple]:
        """The kernel that takes the step on parameter ``i``, and its arguments after start and stop."""
        raise NotImplementedError

    def _gradients(self, grads: Iterable | None) -> list[np.ndarray | None]:
        """The gradients in one dimension, of their parameters' dtype."""
        if grads is None:
            for i, param in enumerate(self.params):
                if not isinstance(param, Tensor):
                    raise ValueError(f"params[{i}] is a plain array and carries no gradient: call step(grads)")
            grads = [param.grad for param in self.params if isinstance(param, Tensor)]
        elif isinstance(grads, np.ndarray) and len(self.params) == 1 and grads.shape == self._shapes[0]:
            grads = [grads]
        else:
            grads = list(grads)
        if len(grads) != len(self.params):
            raise ValueError(f"grads must have one entry per parameter, {len(self.params)}, got {len(grads)}")
        out: list[np.ndarray | None] = []
        for i, grad in enumerate(grads):
            if grad is not None:
                if np.shape(grad) != self._shapes[i]:
                    raise ValueError(f"gradient of params[{i}] must have shape {self._shapes[i]}, got {np.shape(grad)}")
                grad = np.ascontiguousarray(grad, _data(self.params[i]).dtype).reshape(-1)
            out.append(grad)
        return out

    def _scale(self, grads: list[np.ndarray | None]) -> float | None:
        """The factor that clips the gradients to ``max_norm``; None if the step is to be skipped."""
        if self.max_norm is not None:
            self.grad_norm = norm(grads)
            finite = math.isfinite(self.grad_norm) or all_finite(grads)  # a norm may be too large where no element is
            scale = min(1.0, self.max_norm / (self.grad_norm + 1e-6)) if finite else 1.0
        else:
            finite = self.nonfinite == "ignore" or all_finite(grads)
            scale = 1.0
        if finite or self.nonfinite == "ignore":
            return scale
        if self.nonfinite == "skip":
            return None
        i = next(i for i, grad in enumerate(grads) if not all_finite([grad]))
        raise ValueError(f"gradient of params[{i}] (shape {self._shapes[i]}) contains inf or nan values; nothing was "
                         "changed. Lower the learning rate, or pass nonfinite='skip' to leave such steps out")


def run_over(arrays: Sequence[np.ndarray | None], work: Callable[[list[tuple[int, int, int]]], object]) -> None:
    """Call ``work([(i, start, stop), ...])`` for fixed pieces of all arrays; small arrays share a piece."""
    pieces: list[list[tuple[int, int, int]]] = []
    room = 0
    for i, array in enumerate(arrays):
        size = 0 if array is None else array.size
        for start in range(0, size, _PIECE):
            stop = min(start + _PIECE, size)
            if room <= 0:
                pieces.append([])
                room = _PIECE
            pieces[-1].append((i, start, stop))
            room -= stop - start
    run_pieces(lambda a, b: work(pieces[a]), len(pieces), 1)


def all_finite(grads: Sequence[np.ndarray | None]) -> bool:
    """Whether no flat array holds nan or infinity."""
    bits = [None if x is None else x.view(np.uint32 if x.dtype == np.float32 else np.uint64) for x in grads]
    bad: list[bool] = []

    def work(pieces):
        if not all(kernels.all_finite(start, stop, bits[i]) for i, start, stop in pieces):
            bad.append(True)

    run_over(bits, work)
    return not bad


def norm(grads: Sequence[np.ndarray | None]) -> float:
    """The Euclidean norm of all flat arrays together, summed in float64 over fixed pieces; not finite if a value is."""
    total = _sum_squares(grads, 1.0)
    if math.isfinite(total) or not all_finite(grads):
        return math.sqrt(total)
    largest = max(float(np.abs(x).max()) for x in grads if x is not None and x.size)  # float64 near its own end
    return largest * math.sqrt(_sum_squares(grads, 1 / largest))


def _sum_squares(grads, factor: float) -> float:
    sums: dict[tuple[int, int], float] = {}

    def work(pieces):
        for i, start, stop in pieces:
            sums[i, start] = kernels.sum_squares(start, stop, grads[i], factor)

    run_over(grads, work)
    return sum(sums[key] for key in sorted(sums))


def _data(param) -> np.ndarray:
    return param.data if isinstance(param, Tensor) else param


def _check_parameter(param, i: int) -> None:
    if not isinstance(param, (Tensor, np.ndarray)):
        raise TypeError(f"params[{i}] must be a Tensor or an array, got {type(param).__name__}")
    array = _data(param)
    native = array.dtype in (np.float32, np.float64) and array.dtype.isnative
    if not (native and array.flags.c_contiguous and array.flags.writeable):
        raise ValueError(f"params[{i}] is changed in place and must be a writable, C-contiguous float32 or "
                         f"float64 array; got {array.dtype} of shape {array.shape}; pass "
                         "np.ascontiguousarray(array, np.float32)")


def _check_apart(params) -> None:
    """Refuse parameters that share memory: a step would change it twice."""
    spans = sorted((_data(p).ctypes.data, _data(p).nbytes, i) for i, p in enumerate(params) if _data(p).size)
    for (start, size, i), (after, _, j) in pairwise(spans):
        if after < start + size:
            raise ValueError(f"params[{min(i, j)}] and params[{max(i, j)}] share memory and would be changed twice; "
                             "give each parameter once, in one group")
