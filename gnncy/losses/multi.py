"""Several losses as one: fixed weights, learned uncertainties, or gradients kept in balance."""
from collections.abc import Mapping

import numpy as np

from gnncy._check import check_choice, check_float
from gnncy.nn import Parameter, Tensor

_LEAST = 1e-3  # of GradNorm's weights


class MultiObjectiveLoss:
    r"""The weighted sum of several losses, and of their gradients, with weights that are fixed or learned.

    With the losses :math:`L_t`, their gradients :math:`g_t` and the given ``weights`` :math:`c_t`

    ================= ==========================================================================================
    method            total
    ================= ==========================================================================================
    ``"fixed"``       :math:`\sum_t c_t L_t`
    ``"uncertainty"`` :math:`\sum_t c_t (\tfrac12 e^{-s_t} L_t + \tfrac12 s_t)` with learned log-variances *s*,
                      at rest where :math:`e^{s_t} = L_t`: no loss counts for more because its numbers are larger
    ``"gradnorm"``    :math:`\sum_t w_t L_t`, where the *w*, first *c*, are learned so that the norms of
                      :math:`w_t g_t` are as :math:`r_t^\alpha`: a loss that falls slowly gets more
    ================= ==========================================================================================

    *r* is a loss divided by its first value, divided by the mean of these ratios. After each step GradNorm's weights
    are at least 0.001 and scaled to the sum of the *c*.

    Parameters
    ----------
    weights : dict of float
        Names of the losses, and how much each counts; at least 0, not all 0.
    method : {"fixed", "uncertainty", "gradnorm"}
    lr : float
        Rate at which :meth:`step` learns the weights.
    alpha : float
        α of GradNorm, at least 0: how strongly slow losses are favoured; 0 asks for equal norms.
    limit : float
        :meth:`step` keeps log-variances in -limit..limit, so that the weight of a loss that reaches 0 has a bound.

    Attributes
    ----------
    log_variances : Parameter, shape (number of losses,)
        In the order of ``weights``. Their gradient stands in ``log_variances.grad`` after a call on arrays, or after
        ``backward``. Give them to an optimizer, without weight decay, or call :meth:`step`.

    Notes
    -----
    Uncertainty weighting needs losses of at least 0, GradNorm losses of at least 0 whose first values are above 0;
    others are refused. Add a constant to a loss that may be negative, or use fixed weights.

    References
    ----------
    Kendall, Gal and Cipolla, Multi-Task Learning Using Uncertainty to Weigh Losses, CVPR 2018.
    Chen et al., GradNorm: Gradient Normalization for Adaptive Loss Balancing, ICML 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import MultiObjectiveLoss
    >>> objective = MultiObjectiveLoss({"infonce": 1.0, "spectral": 0.1})
    >>> total, grad = objective({"infonce": (2.0, np.array([1.0, 0.0])), "spectral": (5.0, np.array([0.0, 3.0]))})
    >>> total, grad
    (2.5, array([1. , 0.3]))
    """

    def __init__(self, weights: Mapping[str, float], method: str = "fixed", *, lr: float = 0.025, alpha: float = 1.5,
                 limit: float = 10.0):
        if not isinstance(weights, Mapping) or not weights:
            raise TypeError(f"weights must be a dict with a weight for each loss, got {weights!r}")
        self.weights = {str(name): check_float(value, f"weights[{name!r}]", 0) for name, value in weights.items()}
        if not any(self.weights.values()):
            raise ValueError("weights must not all be 0")
        self.method = check_choice(method, "method", ("fixed", "uncertainty", "gradnorm"))
        self.lr = check_float(lr, "lr", 0)
        self.alpha = check_float(alpha, "alpha", 0)
        self.limit = check_float(limit, "limit", above=0)
        self.log_variances = Parameter(np.zeros(len(self.weights)))
        self._learned = np.array(list(self.weights.values()))  # GradNorm's weights
        self._direction: np.ndarray | None = None  # and the gradient of its loss by them
        self.first_losses: np.ndarray | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The losses, in the order of all arrays."""
        return tuple(self.weights)

    @property
    def factors(self) -> dict[str, float]:
        """What each loss and its gradient is multiplied by now."""
        values = np.array(list(self.weights.values())) if self.method != "gradnorm" else self._learned
        if self.method == "uncertainty":
            values = values * np.exp(np.negative(self.log_variances.data)) / 2
        return dict(zip(self.weights, values.tolist(), strict=True))

    def __call__(self, losses, *, norms: Mapping[str, float] | None = None):
        """The total and the combined gradients.

        Parameters
        ----------
        losses : dict
            For each name either ``(loss, grads)`` as the losses of this package return them on arrays, or a Tensor
            of one number. Gradients are an array, or a tuple, list or dict of arrays, of one form for all losses;
            None stands for no gradient.
        norms : dict of float, optional
            For GradNorm, the norm of each loss's gradient by the last shared layer. Default: that of all arrays
            given, which needs ``(loss, grads)``.

        Returns
        -------
        total : float
        grads : array, or tuple, list or dict of arrays
            In the form given; of a NamedTuple, that NamedTuple.

        Of Tensors the total alone comes back, as a Tensor on the tape.

        Raises
        ------
        ValueError
            If a loss is missing, unknown or not finite, or negative where the method does not allow it.
        """
        if not isinstance(losses, Mapping) or set(losses) != set(self.weights):
            got = ", ".join(map(str, losses)) if isinstance(losses, Mapping) else type(losses).__name__
            raise ValueError(f"losses must be a dict with {', '.join(self.weights)}, got {got}")
        parts = [losses[name] for name in self.weights]
        on_tape = any(isinstance(part, Tensor) for part in parts)
        if on_tape:
            if not all(isinstance(part, Tensor) and part.size == 1 for part in parts):
                raise ValueError("losses must all be Tensors of one number, or all (loss, grads)")
            values = np.array([part.item() for part in parts])
        else:
            if any(not isinstance(part, tuple) or len(part) != 2 for part in parts):
                raise ValueError("losses must all be (loss, grads), or all Tensors")
            values = np.array([check_float(part[0], f"loss {name}")
                               for name, part in zip(self.weights, parts, strict=True)])
        self._check(values)
        if self.method == "gradnorm":
            if norms is None:
                if on_tape:
                    raise ValueError("GradNorm needs the gradients' norms, which Tensors do not have yet: give norms=, "
                                     "or (loss, grads)")
                sizes = np.array([_norm(part[1]) for part in parts])
            else:
                sizes = np.array([check_float(norms[name], f"norms[{name!r}]", 0) for name in self.weights])
            self._balance(values, sizes)
        return self._on_tape(parts) if on_tape else self._on_arrays(values, [part[1] for part in parts])

    def _check(self, values):
        for name, value in zip(self.weights, values.tolist(), strict=True):
            if not np.isfinite(value):
                raise ValueError(f"loss {name} must be finite, got {value}")
            if value < 0 and self.method != "fixed":
                raise ValueError(f"loss {name} is {value:g}, but method={self.method!r} needs losses of at least 0: "
                                 "add a constant to it, or use method='fixed'")
        if self.method == "gradnorm" and self.first_losses is None and not values.all():
            raise ValueError("GradNorm compares losses with their first values, but one is 0: begin where all are "
                             "above 0, or set first_losses")

    def _on_arrays(self, values, grads):
        factors = np.array(list(self.factors.values()))
        total = float(factors @ values)
        if self.method == "uncertainty":
            configured = np.array(list(self.weights.values()))
            total += float(configured @ self.log_variances.data) / 2
            self.log_variances.grad = configured / 2 - factors * values
        return total, _combine(factors.tolist(), grads)

    def _on_tape(self, parts):
        total = None
        for i, (name, part) in enumerate(zip(self.weights, parts, strict=True)):
            if self.method == "uncertainty":
                s = self.log_variances[i]
                term = ((-s).exp() * part.reshape(()) + s) * (self.weights[name] / 2)
            else:
                term = part.reshape(()) * self.factors[name]
            total = term if total is None else total + term
        return total

    def _balance(self, values, sizes):
        if self.first_losses is None:
            self.first_losses = values.copy()
        rate = values / self.first_losses
        mean = rate.mean()
        rate = rate / mean if mean > 0 else np.ones_like(rate)
        norms = self._learned * sizes
        self._direction = np.sign(norms - norms.mean() * rate ** self.alpha) * sizes

    def step(self) -> None:
        """Learn from the last call: one step down the gradient of the log-variances or of GradNorm's weights."""
        if self.method == "uncertainty":
            s = self.log_variances
            if s.grad is None:
                raise RuntimeError("step() learns from a call of the loss (and its backward()), but there was none")
            s.data[:] = np.clip(s.data - self.lr * s.grad, -self.limit, self.limit)
            s.grad = None
        elif self.method == "gradnorm":
            if self._direction is None:
                raise RuntimeError("step() learns from a call of the loss, but there was none")
            learned = np.maximum(self._learned - self.lr * self._direction, _LEAST)
            self._learned = learned * (sum(self.weights.values()) / learned.sum())
            self._direction = None

    def state_dict(self) -> dict:
        """A copy of everything that the next call depends on."""
        first = self.first_losses
        return {"method": self.method, "weights": dict(self.weights), "log_variances": self.log_variances.data.copy(),
                "learned": self._learned.copy(), "first_losses": None if first is None else first.copy()}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken; refused if it belongs to other losses.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict` of an objective with the same method and names.
        """
        if state.get("method") != self.method or tuple(state.get("weights", ())) != self.names:
            raise ValueError(f"the state is of {state.get('method')!r} over {tuple(state.get('weights', ()))}, this "
                             f"objective of {self.method!r} over {self.names}")
        self.weights = dict(state["weights"])
        self.log_variances.data[:] = state["log_variances"]
        self.log_variances.grad = self._direction = None
        self._learned = np.array(state["learned"], np.float64)
        first = state["first_losses"]
        self.first_losses = None if first is None else np.array(first, np.float64)

    def __repr__(self) -> str:
        return f"MultiObjectiveLoss({self.weights}, method={self.method!r})"


def _arrays(grads) -> list:
    if grads is None:
        return []
    if isinstance(grads, Mapping):
        grads = list(grads.values())
    return [x for part in grads for x in _arrays(part)] if isinstance(grads, (tuple, list)) else [np.asarray(grads)]


def _norm(grads) -> float:
    return float(np.sqrt(sum(float(np.vdot(x, x)) for x in (x.astype(np.float64, copy=False) for x in _arrays(grads)))))


def _combine(factors: list[float], grads: list):
    """The weighted sum of gradients of one form."""
    present = [grad for grad in grads if grad is not None]
    if not present:
        return None
    form = present[0]
    if isinstance(form, (Mapping, tuple, list)):
        keys = list(form) if isinstance(form, Mapping) else range(len(form))
        for grad in present:
            same = isinstance(grad, Mapping) and set(grad) == set(keys) if isinstance(form, Mapping) else \
                isinstance(grad, (tuple, list)) and len(grad) == len(form)
            if not same:
                raise ValueError("the losses' gradients must have one form: the same keys, or as many arrays")
        parts = {key: _combine(factors, [None if grad is None else grad[key] for grad in grads]) for key in keys}
        if isinstance(form, Mapping):
            return parts
        return type(form)(*parts.values()) if hasattr(form, "_fields") else type(form)(parts.values())
    total = None
    for factor, grad in zip(factors, grads, strict=True):
        if grad is None:
            continue
        grad = np.asarray(grad)
        if total is None:
            total = grad * grad.dtype.type(factor)
        elif grad.shape != total.shape:
            raise ValueError(f"the losses' gradients must have one shape, got {total.shape} and {grad.shape}")
        else:
            total = total + grad * grad.dtype.type(factor)
    return total
