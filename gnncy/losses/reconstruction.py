"""How far a decoder's output is from the features, or from the edges of the graph."""
import numpy as np
import scipy.sparse as sp

from gnncy._check import check_array, check_choice, check_float, check_int
from gnncy._kernels import pairs as pair_kernels
from gnncy._kernels import reconstruction as kernels
from gnncy._threads import run_pieces
from gnncy.losses.local import PairProblem, Pairs, as_pairs
from gnncy.losses.loss import REDUCTIONS, Problem, evaluate
from gnncy.nn import Tensor

_ROWS = 1024


class ReconstructionLoss:
    r"""Error of reconstructed features, or of the edges that embeddings foretell.

    =============== ============================================================================================
    kind            one term of the loss
    =============== ============================================================================================
    ``"mse"``       of each row: the mean over the columns of :math:`(x - \hat x)^2`
    ``"sce"``       of each row: the scaled cosine error :math:`(1 - \cos(x, \hat x))^\gamma`, at least 1 for γ
    ``"adjacency"`` of each edge, and of pairs drawn from those that are no edge: the cross entropy
                    :math:`\log(1 + e^{\mp z_i \cdot z_j})` of the label that :math:`\sigma(z_i \cdot z_j)` foretells
    =============== ============================================================================================

    Parameters
    ----------
    kind : {"mse", "sce", "adjacency"}
    reduction : {"mean", "sum", "none"}
        Of the terms. The gradients are those of the same mean or sum, with "none" of the sum.
    gamma : float
        γ of ``"sce"``, at least 1; larger ones heed large errors more.
    negatives : int
        ``"adjacency"`` only: pairs drawn for each edge, two different nodes that are no edge, each uniform.

    Notes
    -----
    A row shorter than 1e-12 has cosine 0: its scaled cosine error is 1 and its gradient 0.

    References
    ----------
    Kipf and Welling, Variational Graph Auto-Encoders, 2016.
    Hou et al., GraphMAE: Self-Supervised Masked Graph Autoencoders, KDD 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import ReconstructionLoss
    >>> loss, grad = ReconstructionLoss("mse")(np.array([[1., 3.]]), np.array([[1., 1.]]))
    >>> loss, grad
    (2.0, array([[0., 2.]]))
    """

    def __init__(self, kind: str = "mse", reduction: str = "mean", *, gamma: float = 2.0, negatives: int = 1):
        self.kind = check_choice(kind, "kind", ("mse", "sce", "adjacency"))
        self.reduction = check_choice(reduction, "reduction", REDUCTIONS)
        self.gamma = check_float(gamma, "gamma", 1.0)
        self.negatives = check_int(negatives, "negatives", 0)

    def __call__(self, output, target, *, key: int | None = None):
        """The loss and its gradient by the output.

        Parameters
        ----------
        output : array_like or Tensor, shape (n, d)
            Reconstructed features, or for ``"adjacency"`` embeddings.
        target : array_like, shape (n, d); for ``"adjacency"`` sparse array (n, n) or Pairs
            What the output should be. Of a graph each edge counts once, self-loops not at all, and weights are left
            out; dissimilar :class:`Pairs` are pairs that are no edge.
        key : int
            Needed with drawn pairs: what the draw depends on, for instance the number of the step.

        Returns
        -------
        loss : float, or ndarray for ``reduction="none"``
            With "none" one entry for each row, or each pair and then each drawn one. Float64.
        grad : ndarray, shape (n, d)
            In the type of the output.

        Of a Tensor the loss alone comes back, as a Tensor on the tape.
        """
        if self.kind == "adjacency":
            out = evaluate(PairProblem, output, reduction=self.reduction, kernel=pair_kernels.logistic_grad,
                           parts=self._parts(output, target, key))
        else:
            if isinstance(target, Tensor):
                if target.requires_grad:
                    raise ValueError("target is held fixed, but requires a gradient: give target.detach()")
                target = target.data
            out = evaluate(_Rows, output, reduction=self.reduction, target=target, kind=self.kind, gamma=self.gamma)
        return (out[0], out[1][0]) if isinstance(out, tuple) else out

    def _parts(self, output, target, key):
        if not isinstance(target, Pairs) and not sp.issparse(target):
            raise TypeError(f"target must be a sparse graph or Pairs for kind='adjacency', got {type(target).__name__}")
        pairs = as_pairs(target, None, len(output))
        similar = int(pairs.similar.sum())
        if not self.negatives or not similar:
            return [pairs]
        if key is None:
            raise ValueError("pairs that are no edge are drawn by a key: call with key=, for instance the number of "
                             "the step")
        return [pairs, pairs.sample_others(self.negatives * similar, check_int(key, "key"))]

    def __repr__(self) -> str:
        option = {"mse": "", "sce": f", gamma={self.gamma}", "adjacency": f", negatives={self.negatives}"}[self.kind]
        return f"ReconstructionLoss(kind={self.kind!r}, reduction={self.reduction!r}{option})"


class _Rows(Problem):
    """A term for each row."""

    def __init__(self, output, *, target, kind, gamma):
        self.output = check_array(output, "output")
        self.target = check_array(target, "target")
        if self.target.shape != self.output.shape:
            raise ValueError(f"target must have the output's shape {self.output.shape}, got {self.target.shape}")
        self.target = self.target.astype(self.output.dtype, copy=False)
        self.count = len(self.output)
        self.kernel = kernels.squared_grad if kind == "mse" else kernels.cosine_grad
        self.options = () if kind == "mse" else (gamma,)

    def solve(self, weight):
        x = self.output
        losses, grad, weights = np.empty(self.count), np.empty_like(x), np.empty(self.count, x.dtype)
        weights[:] = 0 if weight is None else weight
        run_pieces(lambda a, b: self.kernel(x, self.target, weights, *self.options, a, b, losses, grad), self.count,
                   _ROWS)
        return losses, (grad,)
