"""VICReg: two views agree, every column varies, no two columns say the same."""
import numpy as np

from gnncy._check import check_float
from gnncy._linalg import matmul, matmul_rows
from gnncy.losses.joint_embedding.views import centred, check_views, deviations
from gnncy.losses.loss import Problem, evaluate


class VICRegLoss:
    r"""Variance, invariance, covariance: a joint embedding that needs no negatives to stay spread out.

    .. math::
        L &= \frac{\lambda}{nd} \|Z - Z'\|_F^2 + \frac{\mu}{2} \bigl(v(Z) + v(Z')\bigr)
             + \nu \bigl(c(Z) + c(Z')\bigr) \\
        v(Z) &= \frac{1}{d} \sum_j \max\Bigl(0,\; \gamma - \sqrt{\mathrm{Var}_j(Z) + \epsilon}\Bigr) \qquad
        c(Z) = \frac{1}{d} \sum_{i \ne j} \mathrm{Cov}_{ij}(Z)^2

    with the unbiased variances and covariances of the *d* columns over the *n* rows of a minibatch.

    Parameters
    ----------
    invariance, variance, covariance : float
        λ, μ and ν, at least 0.
    target : float
        γ, the standard deviation that columns should reach.
    eps : float
        ε, above 0: keeps the slope finite where a column is constant.

    Notes
    -----
    Not invariant to the scale of the rows, unlike losses of cosines. Minibatches of 256 rows or more are of use:
    covariances of few rows are noise.

    References
    ----------
    Bardes, Ponce and LeCun, VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR
    2022.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import VICRegLoss
    >>> z = np.array([[2., 1.], [-2., 1.], [2., -1.], [-2., -1.]])
    >>> loss, (by_first, by_second) = VICRegLoss()(z, z)
    >>> loss
    0.0
    """

    def __init__(self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, *,
                 target: float = 1.0, eps: float = 1e-4):
        self.invariance = check_float(invariance, "invariance", 0)
        self.variance = check_float(variance, "variance", 0)
        self.covariance = check_float(covariance, "covariance", 0)
        self.target = check_float(target, "target", above=0)
        self.eps = check_float(eps, "eps", above=0)

    def __call__(self, first, second):
        """The loss and its gradients by both views.

        Parameters
        ----------
        first, second : array_like or Tensor, shape (n, d)
            Row i of both is the same node. At least two rows.

        Returns
        -------
        loss : float
        grads : tuple of two ndarrays, shape (n, d)

        Of Tensors the loss alone comes back, as a Tensor on the tape.
        """
        return evaluate(_VICReg, first, second, reduction="mean", loss=self)

    def __repr__(self) -> str:
        return f"VICRegLoss({self.invariance}, {self.variance}, {self.covariance}, target={self.target})"


class _VICReg(Problem):
    count = 1

    def __init__(self, first, second, *, loss: VICRegLoss):
        self.views, self.loss = check_views(first, second), loss

    def solve(self, weight):
        options, (first, second) = self.loss, self.views
        n, d = first.shape
        gap = first - second
        total = options.invariance * float(np.vdot(gap, gap)) / (n * d)
        grads = [gap * gap.dtype.type(2 * options.invariance / (n * d)), None]
        grads[1] = -grads[0]
        for grad, view in zip(grads, self.views, strict=True):
            x = centred(view)
            spread = deviations(x, 1, options.eps)
            short = np.maximum(options.target - spread, 0)
            covariance = matmul_rows(x, x) / x.dtype.type(n - 1)
            np.fill_diagonal(covariance, 0)
            total += options.variance / 2 * float(short.mean(dtype=np.float64))
            total += options.covariance / d * float(np.vdot(covariance, covariance))
            # Both are combinations of centred columns, so that the mean takes no gradient of its own.
            grad += matmul(x, covariance * x.dtype.type(4 * options.covariance / (d * (n - 1))))
            grad -= x * (options.variance / (2 * d * (n - 1)) * (short > 0) / spread).astype(x.dtype)
        return np.array([total]), () if weight is None else tuple(grads)  # one term: its weight is 1
