"""Adam and AdamW."""
import math

import numpy as np

from gnncy._check import check_float
from gnncy._kernels import optimizer as kernels
from gnncy.optim.optimizer import Optimizer, run_flat


class Adam(Optimizer):
    r"""Adam, with PyTorch's semantics, one fused pass over each parameter.

    .. math::
        d &= g + \lambda\theta, \quad m = \beta_1 m + (1-\beta_1) d, \quad v = \beta_2 v + (1-\beta_2) d^2 \\
        \theta &\leftarrow \theta - \frac{\eta}{1-\beta_1^t} \cdot \frac{m}{\sqrt{v}/\sqrt{1-\beta_2^t} + \epsilon}

    The corrections are computed in float64. For many small parameters, :func:`gnncy.nn.flatten_parameters` makes the
    pass a single one.

    Parameters
    ----------
    params : Tensor, array or an iterable of them
        Changed in place: float32 or float64, C-contiguous, writable.
    lr : float
        η.
    betas : (float, float)
    eps : float
    weight_decay : float
        λ, added to the gradient (L2); :class:`AdamW` decays apart from it.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.

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

    slots = ("exp_avg", "exp_avg_sq")
    options = ("lr", "betas", "eps", "weight_decay")
    _decoupled = False

    def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.0):
        super().__init__(params, lr)
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {betas!r}")
        self.betas = (check_float(betas[0], "betas[0]", 0), check_float(betas[1], "betas[1]", 0))
        if max(self.betas) >= 1:
            raise ValueError(f"betas must be below 1, got {self.betas}")
        self.eps = check_float(eps, "eps", 0)
        self.weight_decay = check_float(weight_decay, "weight_decay", 0)

    def _update(self, grad: np.ndarray, param: np.ndarray, *state: np.ndarray) -> None:
        beta1, beta2 = self.betas
        rate = self.lr / (1 - beta1 ** self.steps)
        root_correction = 1 / math.sqrt(1 - beta2 ** self.steps)
        l2, keep = (0.0, 1 - self.lr * self.weight_decay) if self._decoupled else (self.weight_decay, 1.0)
        run_flat(kernels.adam, grad, (rate, beta1, beta2, root_correction, self.eps, l2, keep), param, *state)


class AdamW(Adam):
    r"""Adam with decoupled weight decay: :math:`\theta \leftarrow (1 - \eta\lambda)\,\theta`, then Adam's step.

    Parameters
    ----------
    params, lr, betas, eps
        As in :class:`Adam`.
    weight_decay : float
        λ.

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
                 weight_decay: float = 1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)
