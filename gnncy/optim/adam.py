"""Adam and AdamW."""
import math

from gnncy._check import check_float
from gnncy._kernels import optimizer as kernels
from gnncy.optim.optimizer import DenseOptimizer


class Adam(DenseOptimizer):
    r"""Adam, with PyTorch's semantics, one fused pass over each parameter.

    .. math::
        d = g + \lambda\theta, \quad m \leftarrow \beta_1 m + (1-\beta_1) d, \quad
        v \leftarrow \beta_2 v + (1-\beta_2) d^2 \\
        \theta \leftarrow \theta - \frac{\eta}{1-\beta_1^t} \cdot \frac{m}{\sqrt{v}/\sqrt{1-\beta_2^t} + \epsilon}

    The corrections are computed in float64. With ``amsgrad``, the largest v so far stands in place of v. For many small
    parameters, :func:`gnncy.nn.flatten_parameters` makes the pass a single one.

    Parameters
    ----------
    params : Tensor, array or an iterable of them, or of dicts
        Changed in place: float32 or float64, C-contiguous, writable. Dicts are parameter groups.
    lr : float
        η.
    betas : (float, float)
        Shares of the old means that are kept at each step, each in 0..1.
    eps : float
        ε, added to the corrected root.
    weight_decay : float
        λ, added to the gradient (L2); :class:`AdamW` decays apart from it.
    amsgrad : bool
        Never let a step grow because v shrank; one more array of state.
    nonfinite : {"raise", "skip", "ignore"}
        What :meth:`step` does about a gradient with nan or infinity: refuse it before anything is changed, leave
        the step out, or not look (saves one pass over the gradients).
    max_norm : float, optional
        Clip the gradients of all groups together to this Euclidean norm, as
        :func:`~gnncy.optim.clip_grad_norm_` would, without changing them. ``grad_norm`` holds the norm before.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.
    Reddi, Kale and Kumar, On the Convergence of Adam and Beyond, ICLR 2018 (AMSGrad).

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim import Adam
    >>> weights = np.ones(3)
    >>> optimizer = Adam([weights], lr=0.1)
    >>> optimizer.step([2 * weights])
    >>> weights
    array([0.9, 0.9, 0.9])
    """

    slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    _decoupled = False

    def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0, amsgrad: bool = False, *, nonfinite: str = "raise",
                 max_norm: float | None = None):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
                                  "amsgrad": amsgrad}, nonfinite, max_norm)

    @staticmethod
    def _check_options(options: dict) -> dict:
        return check_adam(options) | {"weight_decay": check_float(options["weight_decay"], "weight_decay", 0),
                                      "amsgrad": bool(options["amsgrad"])}

    def _call(self, i, group, grad, scale, param):
        lr, decay = group["lr"], group["weight_decay"]
        rate, *moments, root_correction = adam_scalars(lr, group["betas"], self.counts[i] + 1)
        l2, keep = (0.0, 1 - lr * decay) if self._decoupled else (decay, 1.0)
        slots = self.slots if group["amsgrad"] else self.slots[:2]
        state = [self._slot(slot, i).reshape(-1) for slot in slots]
        kernel = kernels.amsgrad if group["amsgrad"] else kernels.adam
        return kernel, (grad, scale, rate, *moments, root_correction, group["eps"], l2, keep, param, *state)


class AdamW(Adam):
    r"""Adam with decoupled weight decay: :math:`\theta \leftarrow (1 - \eta\lambda)\,\theta`, then Adam's step.

    Parameters
    ----------
    params, lr, betas, eps
        As for :class:`Adam`.
    weight_decay : float
        λ; does not pass through the moments.
    amsgrad, nonfinite, max_norm
        As for :class:`Adam`.

    References
    ----------
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim import AdamW
    >>> weights = np.ones(2)
    >>> AdamW([weights], lr=0.1).step([np.zeros(2)])
    >>> weights
    array([0.999, 0.999])
    """

    _decoupled = True

    def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 1e-2, amsgrad: bool = False, *, nonfinite: str = "raise",
                 max_norm: float | None = None):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, nonfinite=nonfinite, max_norm=max_norm)


def check_adam(options: dict) -> dict:
    """The options that all forms of Adam have, checked."""
    betas = options["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas!r}")
    checked = tuple(check_float(beta, f"betas[{i}]", 0) for i, beta in enumerate(betas))
    if max(checked) >= 1:
        raise ValueError(f"betas must be below 1, got {checked}")
    return {"lr": check_float(options["lr"], "lr", 0), "betas": checked, "eps": check_float(options["eps"], "eps", 0)}


def adam_scalars(lr: float, betas: tuple[float, float], count: int) -> tuple[float, ...]:
    """What the kernels take at step ``count``: rate, beta1, 1 - beta1, beta2, 1 - beta2, root correction."""
    beta1, beta2 = betas
    return lr / (1 - beta1 ** count), beta1, 1 - beta1, beta2, 1 - beta2, 1 / math.sqrt(1 - beta2 ** count)
