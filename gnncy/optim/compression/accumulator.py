"""Sums of ternary gradients in a few bits a parameter, and an optimizer that steps once in several."""
from collections.abc import Mapping, Sequence

import numpy as np

from gnncy._check import check_choice, check_float, check_int
from gnncy._kernels import ternary as kernels
from gnncy._memory import aligned_empty
from gnncy._random import derive
from gnncy.optim.compression.ternary import BLOCK, as_floats, count_blocks, over_blocks
from gnncy.optim.optimizer import DenseOptimizer, all_finite


class TernaryGradientAccumulator:
    """The sum of the gradients of several steps, each rounded to a scale times -1, 0 or 1, in 6 or 7 bits a parameter.

    Of step k each block of 4096 elements adds s_k q_k, with a scale s_k of its own. The sums are integer counters of
    ``bits`` bits, kept as bit planes, times a unit of the block. A scale that is no multiple of the unit is rounded:
    up with "terngrad", whose draws then keep less, so that the mean stays; to the nearest with "twn", where error
    feedback takes up the rest. When scales grow beyond three units, or more steps come than were announced, the unit
    doubles.

    Error feedback adds to the next gradient what rounding left of the last, and to the sum what it left at the end.
    It is kept in three bits, a sign and 0, 1, 3 or 9 times its mean; what those cannot hold is lost.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        Of the parameters.
    accumulation_steps : int
        Steps until :meth:`ready_for_update`.
    rule : {"twn", "terngrad"}
        See :func:`ternary_quantize`.
    error_feedback : bool, optional
        By default with "twn". Refused with "terngrad", whose error may exceed the gradient, so that feedback diverges.
    ratio : float
        Of the threshold to the mean of the absolute values, for "twn".
    clip : float
        In standard deviations, for "terngrad".
    seed : int
        Of the draws; with the number of the call, the parameter's name and the element's place it decides them.

    Attributes
    ----------
    count : int
        Calls of :meth:`accumulate` since the last :meth:`reset`.
    counts : dict of str to int
        How many of them had a gradient for the parameter.
    bits : int
        Of a counter.

    References
    ----------
    Li and Liu, Ternary Weight Networks, 2016. Wen et al., TernGrad, NeurIPS 2017. Karimireddy et al., Error Feedback
    Fixes SignSGD and other Gradient Compression Schemes, ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim.compression import TernaryGradientAccumulator
    >>> accumulator = TernaryGradientAccumulator({"weight": (100, 100)}, accumulation_steps=8)
    >>> gradients = np.random.default_rng(0).normal(size=(8, 100, 100)).astype(np.float32)
    >>> for gradient in gradients:
    ...     accumulator.accumulate({"weight": gradient})
    >>> accumulator.ready_for_update()
    True
    >>> total = accumulator.get_accumulated("sum")["weight"]
    >>> error = np.linalg.norm(total - gradients.sum(axis=0)) / np.linalg.norm(gradients.sum(axis=0))
    >>> bool(error < 0.3), round(accumulator.memory_savings(), 2)
    (True, 0.78)
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], accumulation_steps: int = 8, *, rule: str = "twn",
                 error_feedback: bool | None = None, ratio: float = 0.7, clip: float = 2.5, seed: int = 0):
        self.shapes = {name: tuple(check_int(n, f"shapes[{name!r}]", 0) for n in shape)
                       for name, shape in shapes.items()}
        if not self.shapes:
            raise ValueError("shapes is empty: an accumulator needs at least one parameter")
        self.accumulation_steps = check_int(accumulation_steps, "accumulation_steps", 1, 4096)
        self.rule = check_choice(rule, "rule", ("twn", "terngrad"))
        self.error_feedback = rule == "twn" if error_feedback is None else bool(error_feedback)
        if self.error_feedback and rule == "terngrad":
            raise ValueError("error feedback with rule='terngrad' diverges: its error may exceed the gradient; use "
                             "rule='twn', or error_feedback=False")
        self.ratio, self.clip = check_float(ratio, "ratio", 0, 10), check_float(clip, "clip", above=0)
        self.seed = check_int(seed, "seed", 0)
        # A scale is about one unit with error feedback, which takes up what does not fit, and at most three without.
        largest = self.accumulation_steps - 1 if self.error_feedback else 3 * self.accumulation_steps
        self.bits = max(3, 1 + largest.bit_length())
        self.count, self.counts, self._calls = 0, dict.fromkeys(self.shapes, 0), 0
        self._planes: dict[str, np.ndarray] = {}
        self._scales: dict[str, np.ndarray] = {}
        for name, shape in self.shapes.items():
            n = int(np.prod(shape, dtype=np.int64))
            self._planes[name] = aligned_empty((-(-n // 64), self.bits + 3 * self.error_feedback), np.uint64)
            self._scales[name] = np.zeros((count_blocks(n, BLOCK), 2), np.float32)
            self._planes[name].fill(0)

    def accumulate(self, gradients: Mapping[str, np.ndarray]) -> None:
        """Add the gradients of one step.

        Parameters
        ----------
        gradients : dict of str to array_like
            Of some or all of the parameters.

        Raises
        ------
        KeyError
            If a name is unknown.
        ValueError
            If a shape is wrong or a value is not finite. Nothing is added then.
        """
        flat = {}
        for name, gradient in gradients.items():
            if name not in self.shapes:
                raise KeyError(f"no parameter is named {name!r}; there are {', '.join(self.shapes)}")
            array = as_floats(gradient, name)
            if array.shape != self.shapes[name]:
                raise ValueError(f"the gradient of {name!r} must have shape {self.shapes[name]}, got {array.shape}")
            with np.errstate(over="ignore"):
                flat[name] = np.ascontiguousarray(array, np.float32).reshape(-1)
        for name, array in flat.items():
            if not all_finite([array]):
                raise ValueError(f"the gradient of {name!r} contains inf or nan values in float32; leave this step out "
                                 "(nothing was added)")
        clip = 0.0 if self.rule == "twn" else self.clip
        for name, array in flat.items():
            key = derive(self.seed, "accumulate", self._calls, name)
            planes, scales = self._planes[name], self._scales[name]
            times, rest = divmod(self.counts[name], self.accumulation_steps)
            full = times > 0 and rest == 0 and times & (times - 1) == 0

            def work(first, last, array=array, key=key, planes=planes, scales=scales, full=full):
                kernels.accumulate(first, last, BLOCK, array, self.ratio, clip, key, self.bits, self.error_feedback,
                                   full, np.empty(BLOCK, np.float32), planes, scales)

            over_blocks(array.size, BLOCK, work)
            self.counts[name] += 1
        self.count += 1
        self._calls += 1

    def get_accumulated(self, reduction: str = "mean") -> dict[str, np.ndarray]:
        """What has been added since the last :meth:`reset`.

        Parameters
        ----------
        reduction : {"mean", "sum"}
            "mean" divides by the parameter's own number of gradients.

        Returns
        -------
        dict of str to float32 array
            Zeros for a parameter without gradients.
        """
        check_choice(reduction, "reduction", ("mean", "sum"))
        out = {}
        for name, shape in self.shapes.items():
            total = out[name] = np.zeros(shape, np.float32)
            factor = 1.0 if reduction == "sum" else 1 / max(self.counts[name], 1)
            planes, scales, flat = self._planes[name], self._scales[name], total.reshape(-1)

            def work(first, last, planes=planes, scales=scales, flat=flat, factor=factor):
                kernels.read_counters(first, last, BLOCK, self.bits, self.error_feedback, planes, scales, factor, flat)

            over_blocks(flat.size, BLOCK, work)
        return out

    def reset(self) -> None:
        """Start the next sum."""
        for name in self.shapes:
            self._planes[name].fill(0)
            self._scales[name].fill(0)
            self.counts[name] = 0
        self.count = 0

    def ready_for_update(self) -> bool:
        """Whether a parameter has had ``accumulation_steps`` gradients."""
        return max(self.counts.values()) >= self.accumulation_steps

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(x.nbytes for kept in (self._planes, self._scales) for x in kept.values())

    def memory_savings(self) -> float:
        """The share of a float32 accumulator's bytes that is saved, by bytes allocated; below 0 for few parameters."""
        return 1 - self.nbytes / max(4 * sum(int(np.prod(s, dtype=np.int64)) for s in self.shapes.values()), 1)

    def state_dict(self) -> dict:
        """A copy of all that the next call depends on.

        Returns
        -------
        dict
            Numbers, and the arrays ``planes`` and ``scales`` by name.
        """
        return {"kind": type(self).__name__, **self._options(), "counts": dict(self.counts), "count": self.count,
                "calls": self._calls, "planes": {name: x.copy() for name, x in self._planes.items()},
                "scales": {name: x.copy() for name, x in self._scales.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken; refused whole if it belongs to other parameters or options.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict`.
        """
        if state.get("kind") != type(self).__name__:
            raise ValueError(f"the state of a {state.get('kind')} cannot be loaded into {type(self).__name__}")
        for option, value in self._options().items():
            if state[option] != value:
                raise ValueError(f"the state has {option}={state[option]!r} and this accumulator {value!r}; make one "
                                 "with the same options")
        arrays = []
        for kind, own in (("planes", self._planes), ("scales", self._scales)):
            if state[kind].keys() != own.keys():
                raise ValueError(f"the state belongs to the parameters {', '.join(state[kind])}, not to "
                                 f"{', '.join(own)}")
            for name, array in own.items():
                given = np.asarray(state[kind][name])
                if given.shape != array.shape or given.dtype != array.dtype:
                    raise ValueError(f"{kind} of {name!r} must be {array.dtype} of shape {array.shape}, got "
                                     f"{given.dtype} of shape {given.shape}")
                arrays.append((array, given))
        counts = {name: check_int(state["counts"][name], "counts", 0) for name in self.counts}
        self.count, self._calls = check_int(state["count"], "count", 0), check_int(state["calls"], "calls", 0)
        self.counts = counts
        for array, given in arrays:
            array[...] = given

    def _options(self) -> dict:
        return {name: getattr(self, name) for name in ("accumulation_steps", "rule", "error_feedback", "ratio", "clip",
                                                       "seed")}


class TernaryOptimizerWrapper:
    """An optimizer that steps once for several gradients, their mean held as a :class:`TernaryGradientAccumulator`.

    Parameters
    ----------
    optimizer : SGD, Adam or AdamW
    accumulation_steps : int
        Gradients for a step.
    reduction : {"mean", "sum"}
        What of the gradients the optimizer is given.
    **options
        Of the accumulator.

    Attributes
    ----------
    optimizer : Optimizer
    accumulator : TernaryGradientAccumulator
        Its parameters are named by their numbers: "0", "1", ...
    updates : int
        Steps that the optimizer has taken.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim import SGD
    >>> from gnncy.optim.compression import TernaryOptimizerWrapper
    >>> weights = np.zeros(3)
    >>> optimizer = TernaryOptimizerWrapper(SGD(weights, lr=1.0), accumulation_steps=2)
    >>> [optimizer.step([np.array([1.0, -1.0, 0.0])]) for _ in range(4)]
    [False, True, False, True]
    >>> weights
    array([-2.,  2.,  0.])
    """

    def __init__(self, optimizer: DenseOptimizer, accumulation_steps: int = 4, *, reduction: str = "mean", **options):
        if not isinstance(optimizer, DenseOptimizer):
            raise TypeError(f"optimizer must be an SGD, Adam or AdamW, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.reduction = check_choice(reduction, "reduction", ("mean", "sum"))
        self.accumulator = TernaryGradientAccumulator({str(i): np.shape(_data(p)) for i, p in
                                                       enumerate(optimizer.params)}, accumulation_steps, **options)
        self.updates = 0

    @property
    def lr(self) -> float:
        """The optimizer's learning rate, which schedules set."""
        return self.optimizer.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer.lr = value

    def zero_grad(self) -> None:
        """Fill the gradients of all Tensors with zeros."""
        self.optimizer.zero_grad()

    def step(self, grads: Sequence | None = None) -> bool:
        """Add the gradients; change the parameters if enough have been added.

        Parameters
        ----------
        grads : sequence of array_like, optional
            As for the optimizer's own ``step``; None in place of one adds nothing for its parameter.

        Returns
        -------
        bool
            Whether the parameters were changed.
        """
        params = self.optimizer.params
        if grads is None:
            grads = [getattr(param, "grad", None) for param in params]
            if all(grad is None for grad in grads):
                raise ValueError("no parameter carries a gradient: call backward first, or step(grads)")
        if len(grads) != len(params):
            raise ValueError(f"grads must have one entry per parameter, {len(params)}, got {len(grads)}")
        self.accumulator.accumulate({str(i): grad for i, grad in enumerate(grads) if grad is not None})
        if not self.accumulator.ready_for_update():
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Change the parameters by what has been added so far, at the end of an epoch for instance."""
        counts = self.accumulator.counts
        if not any(counts.values()):
            return
        total = self.accumulator.get_accumulated(self.reduction)
        self.optimizer.step([total[name] if counts[name] else None for name in counts])
        self.accumulator.reset()
        self.updates += 1

    def memory_savings(self) -> float:
        """The share of a float32 accumulator's bytes that is saved, by bytes allocated."""
        return self.accumulator.memory_savings()

    def state_dict(self) -> dict:
        """A copy of the state of optimizer and accumulator."""
        return {"kind": type(self).__name__, "reduction": self.reduction, "updates": self.updates,
                "optimizer": self.optimizer.state_dict(), "accumulator": self.accumulator.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict`.
        """
        if state.get("kind") != type(self).__name__:
            raise ValueError(f"the state of a {state.get('kind')} cannot be loaded into {type(self).__name__}")
        if state["reduction"] != self.reduction:
            raise ValueError(f"the state has reduction={state['reduction']!r} and this wrapper {self.reduction!r}")
        updates = check_int(state["updates"], "updates", 0)
        before = self.accumulator.state_dict()
        self.accumulator.load_state_dict(state["accumulator"])
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception:
            self.accumulator.load_state_dict(before)  # whole or not at all
            raise
        self.updates = updates

    def __repr__(self) -> str:
        return f"TernaryOptimizerWrapper({self.optimizer!r}, {self.accumulator.accumulation_steps} gradients a step)"


def _data(param):
    return param if isinstance(param, np.ndarray) else param.data
