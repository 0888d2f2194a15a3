"""Decorrelation: CCA-SSG and Barlow twins, losses of columns that were standardised over the minibatch."""
import numpy as np

from gnncy._check import check_float
from gnncy._linalg import matmul, matmul_rows
from gnncy.losses.joint_embedding.views import centred, check_views, deviations
from gnncy.losses.loss import Problem, evaluate

_LEAST = 1e-12  # deviation below which a column counts as constant: 0 when standardised, without gradient


class CCALoss:
    r"""Canonical correlation: the views' columns agree, and the columns of each view do not correlate.

    .. math::
        L = -\frac{1}{n} \mathrm{tr}(\tilde Z^T \tilde Z') + \lambda \Bigl( \bigl\| I - \tfrac{1}{n} \tilde Z^T \tilde Z
        \bigr\|_F^2 + \bigl\| I - \tfrac{1}{n} \tilde Z'^T \tilde Z' \bigr\|_F^2 \Bigr)

    with columns standardised over the minibatch: :math:`\tilde Z` has mean 0 and (unbiased) variance 1.

    Parameters
    ----------
    decorrelation : float
        λ, at least 0.

    See Also
    --------
    BarlowTwinsLoss : the correlations between both views in place of those within each.

    Notes
    -----
    The least value is about -d: a loss for fixed weights, not for those learned by uncertainty. A constant column
    counts as 0. The gradient goes through mean and variance.

    References
    ----------
    Zhang et al., From Canonical Correlation Analysis to Self-supervised Graph Neural Networks, NeurIPS 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import CCALoss
    >>> z = np.array([[2., 1.], [-2., 1.], [2., -1.], [-2., -1.]])
    >>> loss, (by_first, by_second) = CCALoss()(z, z)
    >>> round(loss, 4)
    -1.4998
    """

    def __init__(self, decorrelation: float = 1e-3):
        self.decorrelation = check_float(decorrelation, "decorrelation", 0)

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
        return evaluate(_CCA, first, second, reduction="mean", decorrelation=self.decorrelation)

    def __repr__(self) -> str:
        return f"CCALoss(decorrelation={self.decorrelation})"


class BarlowTwinsLoss:
    r"""Redundancy reduction: the correlations between the columns of two views are the identity.

    .. math::
        L = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2 \qquad C = \tfrac{1}{n} \tilde Z^T \tilde Z'

    with columns standardised over the minibatch, as a batch normalisation without weights does.

    Parameters
    ----------
    decorrelation : float, optional
        λ, at least 0. Default: 1/d, as for graphs (Bielak et al.); Zbontar et al. took 0.005 for images.

    References
    ----------
    Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021.
    Bielak, Kajdanowicz and Chawla, Graph Barlow Twins: A self-supervised representation learning framework for graphs,
    Knowledge-Based Systems 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import BarlowTwinsLoss
    >>> z = np.array([[2., 1.], [-2., 1.], [2., -1.], [-2., -1.]])
    >>> BarlowTwinsLoss()(z, z)[0]
    0.0
    """

    def __init__(self, decorrelation: float | None = None):
        self.decorrelation = None if decorrelation is None else check_float(decorrelation, "decorrelation", 0)

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
        return evaluate(_BarlowTwins, first, second, reduction="mean", decorrelation=self.decorrelation)

    def __repr__(self) -> str:
        return f"BarlowTwinsLoss(decorrelation={self.decorrelation})"


class _Standardised:
    """Columns of mean 0 and variance 1, and the way back of a gradient."""

    def __init__(self, x: np.ndarray, freedom: int):
        self.freedom = freedom
        x = centred(x)
        spread = deviations(x, freedom)
        self.inverse = np.divide(1, spread, out=np.zeros_like(spread), where=spread > _LEAST)
        self.columns = x * self.inverse

    def through(self, grad: np.ndarray) -> np.ndarray:
        """The gradient by what was standardised, of one by the standardised columns."""
        x = self.columns
        along = np.einsum("ij,ij->j", grad, x, dtype=np.float64) / (len(x) - self.freedom)
        return (centred(grad) - x * along.astype(x.dtype)) * self.inverse


class _Columns(Problem):
    count = 1
    freedom: int

    def __init__(self, first, second, *, decorrelation):
        views = check_views(first, second)
        self.decorrelation = 1 / views[0].shape[1] if decorrelation is None else decorrelation
        self.views = tuple(_Standardised(view, self.freedom) for view in views)

    def loss(self, a: np.ndarray, b: np.ndarray) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        """The loss of standardised columns, and its gradients by them."""
        raise NotImplementedError

    def solve(self, weight):
        total, grads = self.loss(*(view.columns for view in self.views))
        if weight is None:
            return np.array([total]), ()
        # One term: its weight is 1.
        return np.array([total]), tuple(view.through(grad) for view, grad in zip(self.views, grads, strict=True))


class _CCA(_Columns):
    freedom = 1

    def loss(self, a, b):
        n, dtype = len(a), a.dtype.type
        total = -float(np.vdot(a, b)) / n
        grads = []
        for x, other in ((a, b), (b, a)):
            excess = matmul_rows(x, x) / dtype(n)
            excess.flat[::len(excess) + 1] -= 1
            total += self.decorrelation * float(np.vdot(excess, excess))
            grads.append(matmul(x, excess * dtype(4 * self.decorrelation / n)) - other / dtype(n))
        return total, tuple(grads)


class _BarlowTwins(_Columns):
    freedom = 0

    def loss(self, a, b):
        n, dtype = len(a), a.dtype.type
        correlation = matmul_rows(a, b) / dtype(n)
        diagonal = correlation.diagonal() - 1
        np.fill_diagonal(correlation, 0)
        total = float(np.vdot(diagonal, diagonal)) + self.decorrelation * float(np.vdot(correlation, correlation))
        by_correlation = correlation * dtype(2 * self.decorrelation / n)
        np.fill_diagonal(by_correlation, diagonal * dtype(2 / n))
        return total, (matmul(b, np.ascontiguousarray(by_correlation.T)), matmul(a, by_correlation))
