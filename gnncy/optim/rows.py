"""Optimizers for embedding tables: a step changes the rows that a minibatch used, and only those."""
import numpy as np

from gnncy._check import check_array, check_float, check_ids
from gnncy._kernels import optimizer as kernels
from gnncy._threads import run_pieces
from gnncy.optim.adam import adam_scalars, check_adam
from gnncy.optim.optimizer import Optimizer, all_finite

_PIECE = 1 << 16  # elements of rows that one thread takes at a time


class RowOptimizer(Optimizer):
    """Base of the optimizers of a table. A subclass writes ``_call``."""

    def __init__(self, table, options: dict, nonfinite: str):
        super().__init__([table], options, nonfinite)
        if len(self._shapes[0]) != 2:
            raise ValueError(f"table must be 2-dimensional, got shape {self._shapes[0]}")

    def step(self, rows, grads) -> None:
        """Change some rows of the table once.

        Parameters
        ----------
        rows : array_like of int, shape (k,)
            Rows of the table, in any order. The gradients of a row that is named twice are added, in the order given.
        grads : array_like, shape (k, d)
            Their gradients.

        Raises
        ------
        ValueError, IndexError
            If shapes do not agree, a row does not exist, or a gradient is not finite (``nonfinite="raise"``);
            nothing is changed then.
        """
        n, d = self._shapes[0]
        table = self._flat(0).reshape(n, d)
        rows = check_ids(rows, n, "rows")
        grads = check_array(grads, "grads", dtype=table.dtype, finite=False, allow_empty=True)
        if grads.shape != (rows.size, d):
            raise ValueError(f"grads must have shape {(rows.size, d)}, one row for each of rows, got {grads.shape}")
        if self.nonfinite != "ignore" and not all_finite([grads.reshape(-1)]):
            if self.nonfinite == "skip":
                self.skipped += 1
                return
            bad = int(rows[~np.isfinite(grads).all(axis=1)][0])
            raise ValueError(f"grads contains inf or nan values (first for row {bad}); nothing was changed. Lower the "
                             "learning rate, or pass nonfinite='skip' to leave such steps out")
        rows, grads = _added(rows, grads)
        kernel, scalars, arrays = self._call(table)
        run_pieces(lambda a, b: kernel(a, b, rows, grads, *scalars, table, *arrays), rows.size, _rows_a_piece(d))
        self.counts[0] += 1

    def _call(self, table: np.ndarray):
        """The kernel, its numbers and the state."""
        raise NotImplementedError


class RowAdagrad(RowOptimizer):
    r"""Adagrad with one number of state a row: the sum of the mean squares of its gradients.

    .. math::
        s_r \leftarrow s_r + \tfrac{1}{d} \lVert g_r \rVert^2, \quad
        \theta_r \leftarrow \theta_r - \frac{\eta}{\sqrt{s_r} + \epsilon}\, g_r

    Parameters
    ----------
    table : Tensor or ndarray, shape (n, d)
        Changed in place: float32 or float64, C-contiguous, writable.
    lr : float
        η.
    eps : float
        ε, above 0.
    nonfinite : {"raise", "skip", "ignore"}
        What :meth:`step` does about a gradient with nan or infinity: refuse it before anything is changed, leave
        the step out, or not look.

    References
    ----------
    Lerer et al., PyTorch-BigGraph: A Large-scale Graph Embedding System, MLSys 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim import RowAdagrad
    >>> table = np.zeros((4, 2))
    >>> RowAdagrad(table, lr=0.1).step([3, 1], [[1.0, 1.0], [2.0, -2.0]])
    >>> table.round(6)
    array([[ 0. ,  0. ],
           [-0.1,  0.1],
           [ 0. ,  0. ],
           [-0.1, -0.1]])
    """

    slots = ("sum",)

    def __init__(self, table, lr: float = 1e-2, eps: float = 1e-10, *, nonfinite: str = "raise"):
        super().__init__(table, {"lr": lr, "eps": eps}, nonfinite)

    @staticmethod
    def _check_options(options: dict) -> dict:
        return {"lr": check_float(options["lr"], "lr", 0), "eps": check_float(options["eps"], "eps", above=0)}

    def _slot_shape(self, slot, i):
        return self._shapes[i][:1]

    def _call(self, table):
        group = self.param_groups[0]
        return kernels.row_adagrad, (group["lr"], group["eps"]), [self._slot("sum", 0)]


class SparseAdam(RowOptimizer):
    r"""Adam on the rows of a step alone, with the semantics of PyTorch's ``SparseAdam``.

    Moments of other rows do not decay, and t counts the steps of the table. As in PyTorch, ε stands outside the
    correction, unlike :class:`Adam`'s:

    .. math::
        \theta_r \leftarrow
        \theta_r - \eta \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \cdot \frac{m_r}{\sqrt{v_r} + \epsilon}

    Parameters
    ----------
    table : Tensor or ndarray, shape (n, d)
        Changed in place: float32 or float64, C-contiguous, writable.
    lr : float
        η.
    betas : (float, float)
        Shares of the old means that are kept at each step, each in 0..1.
    eps : float
        ε, above 0.
    nonfinite : {"raise", "skip", "ignore"}
        What :meth:`step` does about a gradient with nan or infinity: refuse it before anything is changed, leave
        the step out, or not look.

    References
    ----------
    Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim import SparseAdam
    >>> table = np.zeros((3, 2))
    >>> SparseAdam(table, lr=0.1).step([2], [[5.0, -5.0]])
    >>> table.round(6)
    array([[ 0. ,  0. ],
           [ 0. ,  0. ],
           [-0.1,  0.1]])
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(self, table, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, *,
                 nonfinite: str = "raise"):
        super().__init__(table, {"lr": lr, "betas": betas, "eps": eps}, nonfinite)

    @staticmethod
    def _check_options(options: dict) -> dict:
        check_float(options["eps"], "eps", above=0)
        return check_adam(options)

    def _call(self, table):
        group = self.param_groups[0]
        *scalars, root_correction = adam_scalars(group["lr"], group["betas"], self.counts[0] + 1)
        eps = group["eps"] * root_correction
        return kernels.row_adam, (*scalars, root_correction, eps), [self._slot(slot, 0) for slot in self.slots]


def _rows_a_piece(d: int) -> int:
    return max(1, _PIECE // max(d, 1))


def _added(rows: np.ndarray, grads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row once, ascending unless all differ, with the sum of its gradients in the order given."""
    if (rows[1:] > rows[:-1]).all():
        return rows, grads
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    begin = np.flatnonzero(np.diff(ascending, prepend=-1, append=ascending[-1] + 1))
    if begin.size == rows.size + 1:
        return rows, grads
    out = np.empty((begin.size - 1, grads.shape[1]), grads.dtype)
    run_pieces(lambda a, b: kernels.sum_rows(a, b, order, begin, grads, out), len(out), _rows_a_piece(out.shape[1]))
    return ascending[begin[:-1]], out
