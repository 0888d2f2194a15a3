"""Encoders of single rows trained for any objective: smoothed features, or features alone."""
import numpy as np

from gnncy import nn
from gnncy._random import derive, stream
from gnncy.estimators.encoders.smoothed import OWN, SmoothedEncoder
from gnncy.losses.joint_embedding.objective import OBJECTIVES, JointEmbedding, Size
from gnncy.nn import Tensor
from gnncy.storage.passes import is_sparse


class RowEncoder(SmoothedEncoder):
    """:class:`SmoothedEncoder` trained for the objectives given, by their weights.

    With ``hops=False`` a row is the node's own features and nothing else: the graph does not count.
    """

    auto_steps, auto_rate = 150, 3e-4

    def __init__(self, *, objectives: dict[str, float], hops: bool = True, **common) -> None:
        super().__init__(**common)
        self.objectives = objectives
        self.hops = hops
        if not hops:
            self.n_place, self.basis_diffusion, self.given = 0, None, "even"
            self.smoothings = ((OWN, 1.0),)

    def plan(self, adjacency, features, buffer: int) -> dict[str, dict[str, int]]:
        """What each stage holds for a graph and features."""
        stages = super().plan(adjacency, features, buffer)
        n, d = features.shape
        size = Size(self.n_components, self.store_columns(n, d, is_sparse(features)))
        weights = size.columns * (size.width + self.hidden) + self.hidden * (size.width + 1)
        stages["train"] |= joint_plan(self.objectives, size, weights, self.batch_size)
        return stages

    def _structure(self, adjacency, both_ways, features, folder, *, fit: bool) -> np.ndarray:
        if self.hops:
            return super()._structure(adjacency, both_ways, features, folder, fit=fit)
        self.structure_ = np.empty((0, 0, 0), np.float32)
        return np.empty((features.shape[0], 1, 0), np.float32)

    def build(self, store) -> None:
        """The untrained encoder for a store of rows, under the heads of its objectives."""
        super().build(store)
        self.model_ = JointEmbedding(self.model_.encoder, self.objectives, width=self.n_components,
                                     columns=store.shape[1], temperature=self.temperature,
                                     rng=stream(self.seed, "heads"))

    def step(self, batch, key: int) -> tuple[float, int, dict[str, float]]:
        """Loss and gradients of one minibatch of rows, and each objective's loss."""
        total, parts = self.model_(RowViews(self, batch.features, key))
        total.backward()
        return total.item(), len(batch.features), parts


class RowViews:
    """Random views of rows: whole blocks and single columns dropped, as :class:`SmoothedEncoder` draws them."""

    def __init__(self, encoder: RowEncoder, x: np.ndarray, key: int) -> None:
        self._encoder, self._x, self._key = encoder, x, key
        self._pair = np.concatenate([self._view(x, i) for i in range(2)])

    def _view(self, x: np.ndarray, number: int) -> np.ndarray:
        return self._encoder._view(x, derive(self._key, "view", number))

    @property
    def targets(self) -> np.ndarray:
        return np.concatenate([self._x, self._x])

    def pair(self, encoder: nn.Module) -> Tensor:
        return encoder(Tensor(self._pair))

    def corrupted(self, encoder: nn.Module) -> Tensor:
        """Rows whose blocks (of a single block, columns) come from different nodes of the minibatch."""
        n, columns = self._x.shape
        blocks = self._encoder.n_blocks
        part = np.arange(columns) // (columns // blocks if blocks > 1 else 1)
        offsets = stream(self._key, "corrupted").integers(0, n, part[-1] + 1)
        rows = (np.arange(n)[:, None] + offsets[part]) % n
        return encoder(Tensor(self._view(np.take_along_axis(self._x, rows, axis=0), 0)))


def joint_plan(objectives: dict[str, float], size: Size, encoder: int, pairs: int) -> dict[str, int]:
    """Bytes of weights and of heads in training, for an encoder of so many parameters and minibatches of pairs."""
    learned = encoder + sum(OBJECTIVES[name].learned(size) for name in objectives)
    held = {"weights, gradients, Adam": 16 * learned,
            "heads": 4 * sum(OBJECTIVES[name].work(size, pairs) for name in objectives)}
    return held | ({"target network": 4 * encoder} if "bgrl" in objectives else {})
