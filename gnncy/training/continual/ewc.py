"""Elastic weight consolidation: parameters that mattered to earlier tasks are held where they were."""
from collections.abc import Mapping
from typing import Any

import numpy as np

from gnncy._check import check_array, check_float
from gnncy.nn import Module, Operation, Parameter, Tensor
from gnncy.training.continual.fisher import fisher_diagonal


def merged(fisher: np.ndarray, anchor: np.ndarray, new: np.ndarray, weights: np.ndarray, decay: float | None
           ) -> tuple[np.ndarray, np.ndarray, float]:
    """Fisher information and anchor with one more task, and by how much the sum's least value rises; float64.

    A sum of quadratics is a quadratic: that of the summed information about the weighted mean of the anchors.
    """
    fisher, anchor, new, weights = (np.asarray(x, np.float64) for x in (fisher, anchor, new, weights))
    if decay is not None:
        return decay * fisher + new, weights.copy(), 0.0
    total = fisher + new
    share = np.divide(new, total, out=np.ones_like(total), where=total > 0)
    apart = weights - anchor
    mean = np.where(share == 1, weights, anchor + share * apart)
    return total, mean, float((fisher * share * apart * apart).sum())


def quadratic(fisher: np.ndarray, anchor: np.ndarray, weights: np.ndarray) -> float:
    """``sum F (w - w*)^2`` in float64."""
    apart = weights.astype(np.float64) - anchor
    return float((fisher * apart * apart).sum())


def pull(fisher: np.ndarray, anchor: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """``strength F (w - w*)``, of the weights' dtype."""
    return (strength * (fisher * (weights.astype(np.float64) - anchor))).astype(weights.dtype)


class Penalty(Operation):
    """Half of ``strength`` times a sum of quadratics, on the tape."""

    def forward(self, *weights, fisher, anchor, strength, offset=0.0):
        self.save(weights, fisher, anchor, strength)
        total = offset + sum(quadratic(f, a, w) for f, a, w in zip(fisher, anchor, weights, strict=True))
        return np.asarray(strength / 2 * total, weights[0].dtype)

    def backward(self, grad):
        weights, fisher, anchor, strength = self.saved
        return tuple(pull(f, a, w, strength * float(grad)) if needed else None
                     for f, a, w, needed in zip(fisher, anchor, weights, self.needs, strict=True))


class ElasticWeightConsolidation:
    r"""A penalty for moving the parameters that earlier tasks depend on.

    .. math:: \frac{\lambda}{2} \sum_t \sum_i F_{t,i} (\theta_i - \theta^*_{t,i})^2

    with :math:`F_t` the diagonal of the Fisher information of task t (:func:`fisher_diagonal`) and :math:`\theta^*_t`
    the parameters after it. After each task call :meth:`compute_fisher` on samples of it, then :meth:`consolidate`.
    During the next, give the object to ``Trainer(continual=...)``, or add :meth:`loss` to your loss.

    Parameters
    ----------
    model : Module
        Its trained parameters are held; those that are there when the object is made.
    strength : float
        :math:`\lambda`, at least 0.
    decay : float, optional
        Online consolidation: earlier information counts ``decay`` times as much with each new task, and there is one
        anchor, the latest. 1 forgets nothing, 0 all but the last task. Default: each task keeps its own anchor.

    Attributes
    ----------
    strength, decay : float
    fisher, anchor : dict of str to ndarray
        Of all tasks together; empty before the first.
    n_tasks : int

    Notes
    -----
    The penalty of any number of tasks takes the memory of one: a sum of quadratics is the quadratic of the summed
    information about the anchors' mean weighted by it, and a constant, which :meth:`penalty` contains.

    References
    ----------
    J. Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017.
    F. Huszar, Note on the quadratic penalties in elastic weight consolidation, PNAS 2018.
    J. Schwarz et al., Progress and compress (online EWC), ICML 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> from gnncy.training.continual import ElasticWeightConsolidation
    >>> model = nn.Linear(2, 2, rng=0)
    >>> ewc = ElasticWeightConsolidation(model, strength=100.0)
    >>> ewc.compute_fisher(np.eye(2, dtype=np.float32))
    >>> ewc.consolidate()
    >>> ewc.penalty()
    0.0
    >>> model.weight.data += 1
    >>> ewc.penalty() > 0
    True
    """

    def __init__(self, model: Module, strength: float = 1.0, *, decay: float | None = None):
        self.model = model
        self.strength, self.decay = strength, None if decay is None else check_float(decay, "decay", 0, 1)
        self._parameters: dict[str, Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ValueError(f"{type(model).__name__} has no parameters that are trained")
        self.fisher: dict[str, np.ndarray] = {}
        self.anchor: dict[str, np.ndarray] = {}
        self.n_tasks = 0
        self._offset = 0.0
        self._pending: dict[str, np.ndarray] | None = None

    @property
    def strength(self) -> float:
        """How much the penalty counts."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = check_float(value, "strength", 0)

    @property
    def is_active(self) -> bool:
        """Whether a task was consolidated, so that there is a penalty."""
        return self.n_tasks > 0

    def compute_fisher(self, inputs, **options) -> None:
        """Find the Fisher information of the task that was just learned.

        Parameters
        ----------
        inputs : array, shape (n, ...)
            Samples of the task; a few hundred mostly do.
        **options
            As in :func:`fisher_diagonal`.
        """
        self._pending = self._checked(fisher_diagonal(self.model, inputs, **options), "fisher")

    def consolidate(self, fisher: Mapping[str, Any] | None = None) -> None:
        """Hold the parameters as they are now, beside what earlier tasks hold.

        Parameters
        ----------
        fisher : dict of str to array, optional
            By the names of the parameters, at least 0. Default: what :meth:`compute_fisher` found.

        Raises
        ------
        RuntimeError
            If there is no Fisher information of this task.
        """
        new = self._pending if fisher is None else self._checked(fisher, "fisher")
        if new is None:
            raise RuntimeError("there is no Fisher information of this task: call compute_fisher(inputs) before "
                               "consolidate(), or pass fisher")
        if any((f < 0).any() for f in new.values()):
            raise ValueError("fisher must be at least 0: it is a mean of squares")
        for name, parameter in self._parameters.items():
            w, f = parameter.data, new[name]
            if not self.is_active:
                self.fisher[name], self.anchor[name] = f.astype(w.dtype), w.copy()
                continue
            total, anchor, rise = merged(self.fisher[name], self.anchor[name], f, w, self.decay)
            self.fisher[name], self.anchor[name] = total.astype(w.dtype), anchor.astype(w.dtype)
            self._offset += rise
        self.n_tasks += 1
        self._pending = None

    def penalty(self, weights: Mapping[str, Any] | None = None) -> float:
        """The penalty; 0 before the first task is consolidated.

        Parameters
        ----------
        weights : dict of str to array, optional
            Default: the model's.
        """
        own = self._weights(weights)
        if not self.is_active:
            return 0.0
        total = sum(quadratic(self.fisher[name], self.anchor[name], w) for name, w in own.items())
        return self.strength / 2 * (self._offset + total)

    def gradient(self, weights: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """The gradient of :meth:`penalty` by each parameter.

        Parameters
        ----------
        weights : dict of str to array, optional
            Default: the model's.
        """
        own = self._weights(weights)
        if not self.is_active:
            return {name: np.zeros_like(w) for name, w in own.items()}
        return {name: pull(self.fisher[name], self.anchor[name], w, self.strength) for name, w in own.items()}

    def loss(self) -> Tensor:
        """The penalty as a Tensor, to be added to a loss; its gradient goes to the model's parameters."""
        if not self.is_active:
            return Tensor(0.0)
        return Penalty.apply(*self._parameters.values(), fisher=list(self.fisher.values()),
                             anchor=list(self.anchor.values()), strength=self.strength, offset=self._offset)

    def __call__(self, batch=None, key: int = 0) -> float:
        """Add the gradient to that of the model's parameters; returns the penalty: for ``Trainer(continual=...)``."""
        if self.is_active and self.strength:
            for name, grad in self.gradient().items():
                parameter = self._parameters[name]
                if parameter.grad is None:
                    parameter.grad = grad
                else:
                    parameter.grad += grad
        return self.penalty()

    def state_dict(self) -> dict:
        """All but the model: arrays, and what JSON can hold; also in the snapshots of a Trainer."""
        groups = {"fisher": self.fisher, "anchor": self.anchor, "pending": self._pending or {}}
        return {"strength": self.strength, "decay": self.decay, "n_tasks": self.n_tasks, "offset": self._offset} | {
            f"{group}/{name}": array.copy() for group, arrays in groups.items() for name, array in arrays.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a :meth:`state_dict` was taken; nothing is changed if it belongs to another model.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict`.
        """
        found = {}
        for group in ("fisher", "anchor", "pending"):
            arrays = {key.removeprefix(f"{group}/"): value for key, value in state.items()
                      if key.startswith(f"{group}/")}
            found[group] = self._checked(arrays, group, dtype=None if group == "pending" else "own") if arrays else {}
        strength = check_float(state["strength"], "strength", 0)
        decay = None if state["decay"] is None else check_float(state["decay"], "decay", 0, 1)
        if bool(state["n_tasks"]) != bool(found["fisher"]) or bool(found["fisher"]) != bool(found["anchor"]):
            raise ValueError(f"state of {state['n_tasks']} tasks must have Fisher information and anchors just if "
                             "there are any")
        self.strength, self.decay, self.n_tasks = strength, decay, int(state["n_tasks"])
        self._offset = float(state["offset"])
        self.fisher, self.anchor, self._pending = found["fisher"], found["anchor"], found["pending"] or None

    def _weights(self, weights: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        if weights is None:
            return {name: parameter.data for name, parameter in self._parameters.items()}
        return self._checked(weights, "weights", dtype="own")

    def _checked(self, arrays: Mapping[str, Any], what: str, dtype: str | None = None) -> dict[str, np.ndarray]:
        """Arrays of the parameters' names and shapes; ``dtype="own"`` of their dtypes too."""
        missing, unknown = self._parameters.keys() - arrays.keys(), arrays.keys() - self._parameters.keys()
        if missing or unknown:
            raise ValueError(f"{what} must have an array for each parameter: missing {sorted(missing)}, unknown "
                             f"{sorted(unknown)}")
        out = {}
        for name, parameter in self._parameters.items():
            array = check_array(arrays[name], f"{what}[{name!r}]", ndim=parameter.ndim,
                                dtype=parameter.dtype if dtype == "own" else np.float64)
            if array.shape != parameter.shape:
                raise ValueError(f"{what}[{name!r}] must have shape {parameter.shape}, got {array.shape}")
            out[name] = array.copy() if array is arrays[name] else array
        return out
