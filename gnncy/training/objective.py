"""What a minibatch of a graph is trained for: one or several losses of the embeddings of its nodes."""
import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gnncy._random import derive
from gnncy.losses import (
    InfoNCELoss,
    LocalContrastiveLoss,
    MultiObjectiveLoss,
    ReconstructionLoss,
    SpectralRegularization,
)
from gnncy.nn import Module, Tensor
from gnncy.training.loader import GraphBatch, GraphLoader
from gnncy.training.schedules import Settings

NOTHING_SAID = Settings(None, None, None, None)


class Embedded(NamedTuple):
    """What a loss of one's own is given, see :class:`Objective`.

    Attributes
    ----------
    embeddings : Tensor
        Row i belongs to node ``batch.seeds[i]``; with two views the rows of the second follow.
    batch : GraphBatch
    features : array
        Rows of the seeds' own features.
    loader : GraphLoader
    key : int
        Of the loss's random draws.
    """

    embeddings: Tensor
    batch: GraphBatch
    features: np.ndarray
    loader: GraphLoader
    key: int


class Evaluation(NamedTuple):
    """What :class:`Objective` gives for a minibatch.

    Attributes
    ----------
    total : float
    gradient : array or None
        Of ``total`` by the embeddings.
    parts : dict of str to float
        Each loss by itself, not weighted.
    """

    total: float
    gradient: np.ndarray | None
    parts: dict[str, float]


class Objective:
    """Several losses of a minibatch's embeddings, and the gradient of their weighted sum.

    Parameters
    ----------
    losses : dict, optional
        By names of your own, any of :class:`~gnncy.losses.InfoNCELoss` (anchors against positives and negatives),
        :class:`~gnncy.losses.LocalContrastiveLoss` and :class:`~gnncy.losses.SpectralRegularization` (the edges between
        the minibatch's nodes), :class:`~gnncy.losses.ReconstructionLoss` (the nodes' features, or these edges), or a
        function of an :class:`Embedded` that gives a Tensor of one number. Default: InfoNCE, symmetric, as "infonce".
    weights : dict of float or MultiObjectiveLoss, optional
        How much each loss counts, or how that is learned; 1 by default.
    decoder : Module, optional
        From embeddings to features, for their reconstruction. Its parameters must be among the optimizer's.

    Notes
    -----
    Temperature, number of negatives and weights of :class:`Schedules` win over what is given here. Weights scheduled
    for losses that are not here are left out. Where negatives are mined, InfoNCE has one direction. Of a minibatch
    without edges the losses of edges are 0.

    Examples
    --------
    >>> from gnncy import losses
    >>> from gnncy.training import Objective
    >>> Objective({"infonce": losses.InfoNCELoss(0.5), "spectral": losses.SpectralRegularization()},
    ...           weights={"infonce": 1.0, "spectral": 0.1})
    Objective(infonce, spectral; MultiObjectiveLoss({'infonce': 1.0, 'spectral': 0.1}, method='fixed'))
    """

    def __init__(self, losses: Mapping[str, Callable] | None = None,
                 weights: Mapping[str, float] | MultiObjectiveLoss | None = None, *, decoder: Module | None = None):
        self.losses: dict[str, Any] = {"infonce": InfoNCELoss(symmetric=True)} if losses is None else dict(losses)
        for name, loss in self.losses.items():
            if not callable(loss):
                raise TypeError(f"losses[{name!r}] must be a loss or a function of an Embedded, got "
                                f"{type(loss).__name__}")
            if getattr(loss, "reduction", "mean") == "none":
                raise ValueError(f"losses[{name!r}] must be one number: use reduction='mean' or 'sum'")
        if not isinstance(weights, MultiObjectiveLoss):
            weights = MultiObjectiveLoss(dict.fromkeys(self.losses, 1.0) if weights is None else weights)
        if set(weights.names) != set(self.losses):
            raise ValueError(f"weights must have the names of the losses, {', '.join(self.losses)}, got "
                             f"{', '.join(weights.names)}")
        self.balance, self._given = weights, dict(weights.weights)
        self.decoder = decoder
        decoded = [name for name, loss in self.losses.items() if _of_features(loss)]
        if len(decoded) > 1:
            raise ValueError(f"there is one decoder, but {' and '.join(decoded)} both reconstruct features")
        if decoded and decoder is None:
            raise ValueError(f"{decoded[0]} reconstructs features by a decoder: pass decoder=, for instance "
                             "nn.Linear(width of the embedding, width of the features)")
        if decoder is not None and not decoded:
            raise ValueError("a decoder is for a ReconstructionLoss of features, but losses has none")
        self._decoded = decoded[0] if decoded else None

    def __call__(self, embedded: Embedded, settings: Settings = NOTHING_SAID) -> Evaluation:
        """The losses of a minibatch and their gradient; that of the decoder is added to its parameters'.

        Parameters
        ----------
        embedded : Embedded
        settings : Settings
            From :meth:`Schedules.at`; what is None is as it was given.

        Returns
        -------
        Evaluation
        """
        self._weigh(settings.loss_weights)
        found = self._losses(embedded, settings)
        if self._decoded is not None and self.decoder is not None:
            factor = self.balance.factors[self._decoded]
            for parameter in self.decoder.parameters():
                if parameter.grad is not None:
                    parameter.grad *= parameter.dtype.type(factor)
        total, gradient = self.balance(found)
        return Evaluation(total, gradient, {name: value for name, (value, _) in found.items()})

    def held_out(self, embedded: Embedded) -> float:
        """The sum of the losses by the weights that were given, whatever has been scheduled or learned since."""
        return sum(self._given[name] * value for name, (value, _) in self._losses(embedded, NOTHING_SAID).items())

    def learn(self) -> None:
        """Learn the weights, where they are learned, from the last call."""
        self.balance.step()

    def _weigh(self, weights: Mapping[str, float] | None) -> None:
        if not weights:
            return
        if self.balance.method == "gradnorm":
            raise ValueError("GradNorm learns the weights of the losses: leave loss_weights out of the schedules and "
                             "of the curriculum's stages, or use another method")
        self.balance.weights = {name: weights.get(name, given) for name, given in self._given.items()}

    def _losses(self, embedded: Embedded, settings: Settings) -> dict[str, tuple[float, np.ndarray | None]]:
        """Each loss and its gradient by the embeddings."""
        found: dict[str, tuple[float, np.ndarray | None]] = {}
        for name, loss in self.losses.items():
            leaf = Tensor(embedded.embeddings.data, requires_grad=embedded.embeddings.requires_grad)
            value = self._value(loss, embedded._replace(embeddings=leaf, key=derive(embedded.key, name)), settings)
            if value is None:
                found[name] = 0.0, None
                continue
            if value.requires_grad:
                value.backward()
            found[name] = value.item(), leaf.grad
        return found

    def _value(self, loss, embedded: Embedded, settings: Settings) -> Tensor | None:
        if isinstance(loss, InfoNCELoss):
            return _contrast(loss, embedded, settings)
        seeds = embedded.embeddings[:len(embedded.batch.seeds)]
        if self.decoder is not None and _of_features(loss):
            return loss(self.decoder(seeds), embedded.features)
        if not isinstance(loss, (LocalContrastiveLoss, ReconstructionLoss, SpectralRegularization)):
            return loss(embedded)
        edges = embedded.batch.edges
        if edges.nnz == np.count_nonzero(edges.diagonal()):
            return None
        return loss(seeds, edges) if isinstance(loss, SpectralRegularization) else loss(seeds, edges, key=embedded.key)

    def state_dict(self) -> dict:
        """A copy of what is learned beside the model: weights and decoder."""
        decoder = {} if self.decoder is None else self.decoder.state_dict()
        return self.balance.state_dict() | {f"decoder/{name}": value for name, value in decoder.items()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where a :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict`.
        """
        self.balance.load_state_dict(state)
        if self.decoder is not None:
            self.decoder.load_state_dict({name.removeprefix("decoder/"): value for name, value in state.items()
                                          if name.startswith("decoder/")})

    def __repr__(self) -> str:
        return f"Objective({', '.join(self.losses)}; {self.balance!r})"


def _of_features(loss) -> bool:
    return isinstance(loss, ReconstructionLoss) and loss.kind != "adjacency"


def _contrast(loss: InfoNCELoss, embedded: Embedded, settings: Settings) -> Tensor:
    z, batch, loader = embedded.embeddings, embedded.batch, embedded.loader
    loss = copy.copy(loss)
    if settings.temperature is not None:
        loss.temperature = settings.temperature
    anchors, positives = z[batch.anchors], z[batch.positives]
    if loader.negatives is None and settings.n_negatives is None:
        return loss(anchors, positives, false_negatives=batch.false_negatives if loader.exclude_neighbors else None)
    mined = loader.mine(batch, z.data, n_negatives=settings.n_negatives, key=embedded.key)
    loss.symmetric = False
    return loss(anchors, positives, mined.indices, table=z)
