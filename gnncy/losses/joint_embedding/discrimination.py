"""GGD: which embeddings are of the true graph, and which of one whose features were shuffled."""
import numpy as np

from gnncy._check import check_array, check_choice
from gnncy.losses.loss import REDUCTIONS, Problem, evaluate


class GroupDiscriminationLoss:
    r"""Cross entropy of two groups, true and corrupted embeddings, by the sums of their rows.

    .. math::
        \ell_i = \log(1 + e^{-s_i}) \;\text{ of a true row,} \qquad \ell_i = \log(1 + e^{s_i}) \;\text{ of a corrupted
        one,} \qquad s_i = \sum_j z_{ij}

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        Of the rows' losses, those of the true ones and then of the corrupted ones. The gradients are those of the same
        mean or sum, with "none" of the sum.

    Notes
    -----
    No pair of nodes is compared, so a row costs the same in a minibatch of any size. The gradient is the same in all
    columns: put a linear map before the sum, as the authors do, or the columns will all learn the same.

    References
    ----------
    Zheng et al., Rethinking and Scaling Up Graph Contrastive Learning: An Extremely Efficient Approach with Group
    Discrimination, NeurIPS 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import GroupDiscriminationLoss
    >>> loss, (by_true, by_corrupted) = GroupDiscriminationLoss()(np.ones((3, 2)), -np.ones((3, 2)))
    >>> round(loss, 4)
    0.1269
    """

    def __init__(self, reduction: str = "mean"):
        self.reduction = check_choice(reduction, "reduction", REDUCTIONS)

    def __call__(self, true, corrupted):
        """The loss and its gradients by both groups.

        Parameters
        ----------
        true, corrupted : array_like or Tensor, shape (n, d) and (m, d)

        Returns
        -------
        loss : float, or ndarray, shape (n + m,), for ``reduction="none"``
        grads : tuple of two ndarrays, shape (n, d) and (m, d)

        Of Tensors the loss alone comes back, as a Tensor on the tape.
        """
        return evaluate(_Groups, true, corrupted, reduction=self.reduction)

    def __repr__(self) -> str:
        return f"GroupDiscriminationLoss(reduction={self.reduction!r})"


class _Groups(Problem):
    def __init__(self, true, corrupted):
        self.groups = check_array(true, "true"), check_array(corrupted, "corrupted")
        if self.groups[0].shape[1] != self.groups[1].shape[1]:
            raise ValueError(f"corrupted must have {self.groups[0].shape[1]} columns like true, got shape "
                             f"{self.groups[1].shape}")
        self.count = sum(map(len, self.groups))

    def solve(self, weight):
        signs = (-1, 1)
        logits = [sign * rows.sum(axis=1, dtype=np.float64) for sign, rows in zip(signs, self.groups, strict=True)]
        losses = np.logaddexp(0, np.concatenate(logits))
        if weight is None:
            return losses, ()
        slope = np.broadcast_to(weight, losses.shape) * np.exp(np.concatenate(logits) - losses)
        return losses, tuple(
            np.repeat((sign * part)[:, None].astype(rows.dtype), rows.shape[1], axis=1) for sign, rows, part in
            zip(signs, self.groups, np.split(slope, [len(self.groups[0])]), strict=True))
