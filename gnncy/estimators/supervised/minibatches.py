"""The minibatches of a training with labels, and the network that makes embeddings of them."""
import math
from typing import Any, NamedTuple

import numpy as np

from gnncy import nn
from gnncy._random import derive, stream
from gnncy.estimators.encoders.convolutions import CONVOLUTIONS
from gnncy.estimators.encoders.smoothed import principal_directions
from gnncy.estimators.supervised.labels import Task
from gnncy.graph import NeighborSampler
from gnncy.nn import Tensor, ops
from gnncy.optim.logistic import Logistic, class_scores
from gnncy.storage import HyperbatchIterator

PRINCIPAL = 512  # directions of the smoothed rows that the perceptron sees, at most
WARM_ROWS = 8192  # training nodes from which the first solution is computed
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C of the first solution, the best for validation or else 1
CHUNK = 4096  # rows that are embedded at a time


class RowMinibatches:
    """Single rows of the smoothed store."""

    def __init__(self, encoder, adjacency, store, dropout: float) -> None:
        k = max(encoder.n_components, min(PRINCIPAL, store.shape[1]))
        directions = principal_directions(store, k, encoder.seed, encoder.n_blocks, encoder.n_place)
        missing = max(encoder.n_components - directions.shape[1], 0)  # of rows that span fewer
        directions = np.pad(directions, ((0, 0), (0, missing)))
        self.body = PrincipalMLP(directions, encoder.hidden, encoder.n_components, stream(encoder.seed, "body"))
        encoder.model_ = nn.Projected(self.body, nn.Sequential())
        self.store, self.dropout, self.columns = store, dropout, store.shape[1]

    def least_buffer(self, batch_size: int) -> int:
        return HyperbatchIterator.buffer_bytes_for(batch_size, self.columns)

    def batch(self, ids: np.ndarray, epoch: int, number: int):
        return ids

    def encode(self, batch, key: int | None) -> tuple[np.ndarray, Tensor]:
        """The ids of a minibatch and their embeddings, with dropout where there is a key."""
        return batch.node_ids, self.body(Tensor(batch.features), self.dropout, key)

    def start(self, head, task: Task) -> None:
        """Set the head to logistic regression on the untrained embedding."""
        def rows(ids):
            with nn.no_grad():
                parts = [self.body(Tensor(self.store.read_batch(ids[i:i + CHUNK]))).data
                         for i in range(0, len(ids), CHUNK)]
            return np.concatenate(parts).astype(np.float64) / self.body.length if parts else np.empty((0, 0))

        def best(codes, wanted, classes):
            """Weights and bias for the C with the highest share of right answers, the smaller of equals."""
            model, most, found = Logistic(x, codes, classes, weights), -1.0, np.empty(0)
            for strength in STRENGTHS if len(wanted) else (1.0,):
                model.fit(strength, 100)
                right = np.mean(class_scores(other, model.parameters).argmax(axis=1) == wanted) if len(wanted) else 0.0
                if right > most:
                    most, found = right, model.parameters.copy()
            return found

        train, validation = (np.sort(stream(task.seed, name).permutation(ids)[:WARM_ROWS])
                             for name, ids in (("warm", task.train), ("warm validation", task.validation)))
        x, other, weights = rows(train), rows(validation), task.weights[train]
        if task.many:
            each = [best(task.codes[train, j], task.codes[validation, j], 2) for j in range(task.outputs)]
            parameters = np.stack([pair[:, 1] - pair[:, 0] for pair in each], axis=1)
        else:
            parameters = best(task.codes[train], task.codes[validation], task.outputs)
        head.weight.data[...] = parameters[:-1] / self.body.length
        head.bias.data[...] = parameters[-1]


class PrincipalMLP(nn.Module):
    """The leading principal components of a row, of length 1, plus a perceptron of more of them that begins at 0."""

    def __init__(self, directions: np.ndarray, hidden: int, out: int, rng) -> None:
        columns, k = directions.shape
        self.directions = nn.Linear(columns, k, bias=False, rng=rng)
        self.directions.weight.data[...] = directions
        self.directions.requires_grad_(False)
        self.first, self.second = nn.Linear(k, hidden, rng=rng), nn.Linear(hidden, out, bias=False, rng=rng)
        self.second.weight.data[...] = 0
        self.length = math.sqrt(out)  # of a row, so that its entries have mean square 1

    def forward(self, x, dropout: float = 0.0, key: int | None = None) -> Tensor:
        x = self.directions(x)
        if key is not None:
            x = nn.dropout(x, dropout, key=derive(key, "dropout"))
        own = ops.l2_normalise(x[:, :self.second.weight.shape[1]]) * self.length
        return own + self.second(ops.relu(self.first(ops.l2_normalise(x) * self.length)))


class Seeds(NamedTuple):
    """Nodes, and their sampled neighbourhoods."""

    ids: np.ndarray
    sample: Any

    @property
    def nodes(self) -> np.ndarray:
        return self.sample.nodes


class SampledMinibatches:
    """Sampled neighbourhoods of nodes, with their features."""

    def __init__(self, encoder, adjacency, store, dropout: float) -> None:
        self.body, self.scale, self.dropout = encoder.model_.encoder, encoder.scale_, dropout
        self.convolution = CONVOLUTIONS[encoder.conv](adjacency)
        self.sampler = NeighborSampler(self.convolution.graph, encoder.n_neighbors, seed=derive(encoder.seed, "sample"),
                                       weighted=self.convolution.weighted)
        self._least = encoder.least_buffer(adjacency, store.shape[1], store.dtype.itemsize)

    def least_buffer(self, batch_size: int) -> int:
        return self._least

    def start(self, head, task: Task) -> None:
        """The head begins at 0."""

    def batch(self, ids: np.ndarray, epoch: int, number: int) -> Seeds:
        ids = np.sort(ids)
        return Seeds(ids, self.sampler.sample(ids, epoch=epoch, batch=number))

    def encode(self, batch, key: int | None) -> tuple[np.ndarray, Tensor]:
        x, sample = Tensor(np.asarray(batch.features, np.float32) * self.scale), batch.batch.sample
        for i, (layer, block) in enumerate(zip(self.body.layers, sample.blocks, strict=True)):
            if key is not None:
                x = nn.dropout(x, self.dropout, key=derive(key, "dropout", i))
            x = layer(self.convolution.hear(block, sample.nodes), x if i == 0 else nn.relu(x))
        return batch.batch.ids, x
