"""BGRL: an online network foretells what a slowly following target network makes of another view."""
import copy
import math

import numpy as np

from gnncy._check import check_choice, check_float
from gnncy.losses.loss import REDUCTIONS
from gnncy.losses.reconstruction import ReconstructionLoss
from gnncy.nn import Module


class BootstrapLoss:
    r"""One minus the cosine between predictions and the target network's embeddings, which are held fixed.

    .. math:: \ell_i = 1 - \frac{q_i \cdot y_i}{\|q_i\| \, \|y_i\|}

    BGRL adds this loss of both directions: the predictions of each view against the targets of the other.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}

    See Also
    --------
    TargetNetwork : what makes the targets.

    References
    ----------
    Grill et al., Bootstrap Your Own Latent, NeurIPS 2020.
    Thakoor et al., Large-Scale Representation Learning on Graphs via Bootstrapping (BGRL), ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import BootstrapLoss
    >>> loss, grad = BootstrapLoss()(np.array([[1., 0.]]), np.array([[0., 2.]]))
    >>> loss, grad
    (1.0, array([[ 0., -1.]]))
    """

    def __init__(self, reduction: str = "mean"):
        self.reduction = check_choice(reduction, "reduction", REDUCTIONS)
        self._error = ReconstructionLoss("sce", reduction, gamma=1.0)

    def __call__(self, predictions, targets):
        """The loss and its gradient by the predictions.

        Parameters
        ----------
        predictions : array_like or Tensor, shape (n, d)
        targets : array_like, shape (n, d)
            Get no gradient.

        Returns
        -------
        loss : float, or ndarray, shape (n,), for ``reduction="none"``
        grad : ndarray, shape (n, d)

        Of a Tensor the loss alone comes back, as a Tensor on the tape.
        """
        return self._error(predictions, targets)

    def __repr__(self) -> str:
        return f"BootstrapLoss(reduction={self.reduction!r})"


def momentum_at(progress: float, first: float = 0.99) -> float:
    r"""BGRL's momentum of the target network: from ``first`` to 1 along half a cosine.

    .. math:: m = 1 - (1 - m_0) \, \frac{1 + \cos(\pi p)}{2}

    Parameters
    ----------
    progress : float
        Share *p* of the training that is done, 0..1.
    first : float
        m0, 0..1.

    Returns
    -------
    float

    Examples
    --------
    >>> from gnncy.losses.joint_embedding import momentum_at
    >>> momentum_at(0.0), momentum_at(0.5), momentum_at(1.0)
    (0.99, 0.995, 1.0)
    """
    progress, first = check_float(progress, "progress", 0, 1), check_float(first, "first", 0, 1)
    return 1 - (1 - first) * (1 + math.cos(math.pi * progress)) / 2


class TargetNetwork(Module):
    r"""A copy of a network that follows it slowly: :math:`\theta' \leftarrow m \theta' + (1 - m) \theta`.

    Its parameters take no gradient: give an optimizer those with ``requires_grad``. They are part of its state, and so
    of a training run's snapshots.

    Parameters
    ----------
    online : Module
        Copied.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> from gnncy.losses import TargetNetwork
    >>> online = nn.Linear(2, 2, rng=0)
    >>> target = TargetNetwork(online)
    >>> online.weight.data += 1
    >>> target.follow(online, 0.9)
    >>> (online.weight.data - target.network.weight.data).round(4)
    array([[0.9, 0.9],
           [0.9, 0.9]], dtype=float32)
    """

    def __init__(self, online: Module):
        self.network = copy.deepcopy(online).requires_grad_(False)

    def forward(self, *inputs):
        return self.network(*inputs)

    def follow(self, online: Module, momentum: float) -> None:
        """Move towards ``online``: parameters by ``momentum``, buffers such as running means to its values.

        Parameters
        ----------
        online : Module
            Of the form of the one that was copied.
        momentum : float
            m, in 0..1: the share of its own that a parameter keeps.
        """
        momentum = check_float(momentum, "momentum", 0, 1)
        for own, other in zip(self.network.parameters(), online.parameters(), strict=True):
            np.copyto(own.data, own.data + own.dtype.type(1 - momentum) * np.subtract(other.data, own.data))
        for (_, mine), (_, theirs) in zip(self.network.named_buffers(), online.named_buffers(), strict=True):
            np.copyto(mine, theirs)
