"""An encoder with what each objective puts on top of it: heads, a predictor and a target network, a decoder."""
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from gnncy._check import check_choice, check_float, check_int
from gnncy.losses.infonce import InfoNCELoss
from gnncy.losses.joint_embedding.bootstrap import BootstrapLoss, TargetNetwork, momentum_at
from gnncy.losses.joint_embedding.cca import CCALoss
from gnncy.losses.joint_embedding.discrimination import GroupDiscriminationLoss
from gnncy.losses.joint_embedding.vicreg import VICRegLoss
from gnncy.losses.multi import MultiObjectiveLoss
from gnncy.losses.reconstruction import ReconstructionLoss
from gnncy.nn import (
    BatchNorm,
    Linear,
    Module,
    PReLU,
    ProjectionHead,
    Sequential,
    Tensor,
    no_grad,
)
from gnncy.nn.ops import concatenate


class Views(Protocol):
    """What a minibatch of *b* nodes offers :class:`JointEmbedding`: random views of it, embedded on request.

    Each method gives the same views however often and in whatever order it is called.
    """

    @property
    def targets(self) -> np.ndarray:
        """Features without a view's losses, a row for each of :meth:`pair`."""

    def pair(self, encoder: Module) -> Tensor:
        """Embeddings of the nodes in one view and, after these, of the same (or like) nodes in another: 2 b rows."""

    def corrupted(self, encoder: Module) -> Tensor:
        """Embeddings of the nodes where features were shuffled among them: b rows."""


class JointEmbedding(Module):
    """An encoder under the heads of one or several self-supervised objectives.

    ==================== ===================================== ========================================================
    objective            on top of the encoder                 loss
    ==================== ===================================== ========================================================
    ``"infonce"``        projection head                       :class:`~gnncy.losses.InfoNCELoss`, symmetric
    ``"vicreg"``         projection head, twice as wide        :class:`~gnncy.losses.VICRegLoss`
    ``"cca"``            nothing                               :class:`~gnncy.losses.CCALoss`
    ``"bgrl"``           predictor; a target network           :class:`~gnncy.losses.BootstrapLoss`, both directions
    ``"ggd"``            linear map                            :class:`~gnncy.losses.GroupDiscriminationLoss`
    ``"reconstruction"`` linear decoder of features            :class:`~gnncy.losses.ReconstructionLoss`, "sce"
    ==================== ===================================== ========================================================

    Parameters
    ----------
    encoder : Module
        Whatever the ``Views`` can embed with; its output is the embedding, which the heads are not part of.
    objectives : str or dict of float
        One of the names, or several with how much each counts.
    width : int
        Columns of the embedding.
    columns : int
        Columns of the features to be reconstructed.
    temperature : float
        Of InfoNCE.
    total_steps : int
        Calls that the training will make, over which the target network's momentum rises to 1; 0 keeps it at 0.99.
    rng : int, Generator or None
        Source of the heads' first weights.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> from gnncy.losses.joint_embedding import JointEmbedding
    >>> class Noisy:
    ...     targets = np.zeros((8, 3), np.float32)
    ...     def pair(self, encoder):
    ...         return encoder(np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32))
    >>> model = JointEmbedding(nn.Linear(3, 2, rng=0), {"cca": 1.0, "bgrl": 0.5}, width=2, columns=3, rng=0)
    >>> total, parts = model(Noisy())
    >>> total.shape, sorted(parts)
    ((), ['bgrl', 'cca'])
    """

    def __init__(self, encoder: Module, objectives: str | Mapping[str, float], *, width: int, columns: int,
                 temperature: float = 0.5, total_steps: int = 0, rng=None):
        self.encoder = encoder
        self.balance = MultiObjectiveLoss(check_objectives(objectives))
        self.temperature = check_float(temperature, "temperature", above=0)
        self.total_steps = check_int(total_steps, "total_steps", 0)
        size = Size(check_int(width, "width", 1), check_int(columns, "columns", 1))
        rng = np.random.default_rng(rng)
        self.heads = [OBJECTIVES[name].head(size, encoder, rng) for name in self.balance.names]

    def forward(self, views: Views) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the losses of a minibatch, and each loss by itself."""
        z = views.pair(self.encoder)
        losses = {name: OBJECTIVES[name].loss(self, head, z, views)
                  for name, head in zip(self.balance.names, self.heads, strict=True)}
        return self.balance(losses), {name: loss.item() for name, loss in losses.items()}

    def __repr__(self) -> str:
        return f"JointEmbedding({self.balance.weights}, {self.encoder!r})"


def check_objectives(objectives) -> dict[str, float]:
    """How much each objective counts: of one name, of a list of names (1 each), or of a dict of weights."""
    if isinstance(objectives, str):
        objectives = [objectives]
    if not isinstance(objectives, Mapping):
        if not isinstance(objectives, (list, tuple)) or not objectives:
            raise TypeError(f"objective must be a name, a list of names or a dict of weights, got {objectives!r}")
        objectives = dict.fromkeys(objectives, 1.0)
    if not objectives:
        raise ValueError("objective must name at least one of " + ", ".join(map(repr, OBJECTIVES)))
    return {check_choice(name, "objective", OBJECTIVES): check_float(weight, f"objective[{name!r}]", above=0)
            for name, weight in objectives.items()}


class Size(NamedTuple):
    """Columns of the embedding and of the features."""

    width: int
    columns: int


class Objective(NamedTuple):
    """How an objective is put on top of an encoder, and what it holds.

    Attributes
    ----------
    head : callable
        Of the size, the encoder and a generator.
    loss : callable
        Of the model, the head, the embeddings of both views and the views.
    learned : callable
        Numbers that the head of a size learns.
    work : callable
        Numbers that head and loss hold for so many pairs of embedded rows, at most, the encoder's own left out.
    """

    head: Callable[[Size, Module, np.random.Generator], Module]
    loss: Callable[[JointEmbedding, Module, Tensor, Views], Tensor]
    learned: Callable[[Size], int]
    work: Callable[[Size, int], int]


class _Bootstrap(Module):
    """Predictor and target network. The target follows at the beginning of a call, which is after the last update."""

    _buffers = ("calls",)

    def __init__(self, size: Size, encoder: Module, rng):
        k = size.width
        self.predictor = Sequential(Linear(k, 2 * k, rng=rng), BatchNorm(2 * k), PReLU(), Linear(2 * k, k, rng=rng))
        self.target = TargetNetwork(encoder)
        self.calls = np.zeros(1, np.int64)

    def forward(self, model: JointEmbedding, z: Tensor, views: Views) -> Tensor:
        if self.training:
            done = min(self.calls[0] / model.total_steps, 1.0) if model.total_steps else 0.0
            self.target.follow(model.encoder, momentum_at(done))
            self.calls += 1
        with no_grad():
            target = views.pair(self.target).data
        half = len(target) // 2
        return BootstrapLoss()(self.predictor(z), np.concatenate([target[half:], target[:half]])) * 2.0


def _halves(z: Tensor) -> tuple[Tensor, Tensor]:
    half = len(z) // 2
    return z[:half], z[half:]


def _discriminate(model, head, z, views):
    corrupted = views.corrupted(model.encoder)
    both = head(concatenate([z[:len(corrupted)], corrupted]))
    return GroupDiscriminationLoss()(*_halves(both))


def _projected(outputs: int) -> Callable[[Size], int]:
    """Numbers of a projection head to so many times the embedding's columns."""
    return lambda size: 2 * size.width * (size.width + 1) + outputs * size.width * (2 * size.width + 1)


OBJECTIVES: dict[str, Objective] = {
    "infonce": Objective(
        head=lambda size, encoder, rng: ProjectionHead(size.width, 2 * size.width, size.width, rng=rng),
        loss=lambda model, head, z, views: InfoNCELoss(model.temperature, symmetric=True)(*_halves(head(z))),
        learned=_projected(1), work=lambda size, pairs: pairs * (24 * size.width + min(pairs, 4096))),
    "vicreg": Objective(
        head=lambda size, encoder, rng: ProjectionHead(size.width, 2 * size.width, 2 * size.width, rng=rng),
        loss=lambda model, head, z, views: VICRegLoss()(*_halves(head(z))),
        learned=_projected(2), work=lambda size, pairs: 24 * size.width * pairs + 16 * size.width**2),
    "cca": Objective(
        head=lambda size, encoder, rng: Sequential(),
        loss=lambda model, head, z, views: CCALoss()(*_halves(z)),
        learned=lambda size: 0, work=lambda size, pairs: 12 * size.width * pairs + 4 * size.width**2),
    "bgrl": Objective(
        head=_Bootstrap,
        loss=lambda model, head, z, views: head(model, z, views),
        learned=lambda size: _projected(1)(size) + 4 * size.width + 1,
        work=lambda size, pairs: 24 * size.width * pairs),
    "ggd": Objective(
        head=lambda size, encoder, rng: Linear(size.width, size.width, rng=rng),
        loss=_discriminate,
        learned=lambda size: size.width * (size.width + 1), work=lambda size, pairs: 10 * size.width * pairs),
    "reconstruction": Objective(
        head=lambda size, encoder, rng: Linear(size.width, size.columns, rng=rng),
        loss=lambda model, head, z, views: ReconstructionLoss("sce")(head(z), views.targets),
        learned=lambda size: size.columns * (size.width + 1), work=lambda size, pairs: 8 * size.columns * pairs),
}
"""What each objective puts on top of an encoder, and its loss."""
