"""Stochastic gradient descent."""
from gnncy._check import check_float
from gnncy._kernels import optimizer as kernels
from gnncy.optim.optimizer import DenseOptimizer


class SGD(DenseOptimizer):
    r"""Gradient descent, with PyTorch's momentum.

    .. math::
        d = g + \lambda\theta, \quad v \leftarrow \mu v + (1 - \delta) d \;\; (v = d \text{ at the first step}), \quad
        \theta \leftarrow \theta - \eta \, (v, \text{ or } d + \mu v \text{ with Nesterov})

    Without momentum the step is :math:`\eta d` and there is no state.

    Parameters
    ----------
    params : Tensor, array or an iterable of them, or of dicts
        Changed in place: float32 or float64, C-contiguous, writable. Dicts are parameter groups.
    lr : float
        η.
    momentum : float
        μ.
    dampening : float
        δ; does not act on the first step of a parameter.
    weight_decay : float
        λ.
    nesterov : bool
        Look ahead along the momentum; needs momentum, and no dampening.
    nonfinite : {"raise", "skip", "ignore"}
        What :meth:`step` does about a gradient with nan or infinity: refuse it before anything is changed, leave
        the step out, or not look (saves one pass over the gradients).
    max_norm : float, optional
        Clip the gradients of all groups together to this Euclidean norm, as
        :func:`~gnncy.optim.clip_grad_norm_` would, without changing them. ``grad_norm`` holds the norm before.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, On the importance of initialization and momentum in deep learning, ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim import SGD
    >>> weights = np.ones(2)
    >>> optimizer = SGD(weights, lr=0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     optimizer.step([np.ones(2)])
    >>> weights
    array([0.71, 0.71])
    """

    slots = ("momentum_buffer",)

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
                 weight_decay: float = 0.0, nesterov: bool = False, *, nonfinite: str = "raise",
                 max_norm: float | None = None):
        super().__init__(params, {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay,
                                  "nesterov": nesterov}, nonfinite, max_norm)

    @staticmethod
    def _check_options(options: dict) -> dict:
        out: dict = {name: check_float(options[name], name, 0) for name in ("lr", "momentum")}
        out |= {"dampening": check_float(options["dampening"], "dampening"),
                "weight_decay": check_float(options["weight_decay"], "weight_decay", 0),
                "nesterov": bool(options["nesterov"])}
        if out["nesterov"] and (out["momentum"] == 0 or out["dampening"] != 0):
            raise ValueError(f"nesterov needs momentum above 0 and dampening 0, got momentum={out['momentum']} and "
                             f"dampening={out['dampening']}")
        return out

    def _call(self, i, group, grad, scale, param):
        lr, decay, mu = group["lr"], group["weight_decay"], group["momentum"]
        if mu == 0:
            return kernels.sgd, (grad, scale, lr, decay, param)
        first = self.counts[i] == 0 or self.state["momentum_buffer"][i].size == 0
        velocity = self._slot("momentum_buffer", i).reshape(-1)
        keep, fresh = (0.0, 1.0) if first else (mu, 1 - group["dampening"])
        direct, along = (1.0, mu) if group["nesterov"] else (0.0, 1.0)
        return kernels.momentum, (grad, scale, lr, decay, keep, fresh, direct, along, param, velocity)
