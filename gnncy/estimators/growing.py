"""What holds an encoder near what it gave before, while it learns a graph that grew."""
import copy

import numpy as np

from gnncy._random import derive

_CHUNK = 1 << 22  # bytes of an embedding that are read at a time


def successor(encoder, number: int):
    """A copy of a fitted encoder to be trained on, with random draws of its own; the copied one does not change."""
    reducer = getattr(encoder, "reducer_", None)  # may be mapped from a file: shared
    twin = copy.deepcopy(encoder, {id(reducer): reducer})
    twin.seed = derive(encoder.seed, "grown", number)
    if hasattr(twin, "_sizes"):
        twin._sizes = None  # of minibatches of the smaller graph
    return twin


class KeepClose:
    r"""Draws nodes to the embedding that they had: a term for ``Trainer(continual=...)``.

    .. math:: c \; \frac{\sum_i \|z_i - z^*_i\|^2}{\sum_i \|z^*_i\|^2}

    over the minibatch's nodes that had one, :math:`z^*`; the denominator by the mean over all of these.

    Parameters
    ----------
    encoder
        With ``embed_batch(batch)``.
    embedding : array, shape (n, k)
        Row i belongs to node i; later nodes have none.
    closeness : float
        :math:`c`.
    """

    def __init__(self, encoder, embedding: np.ndarray, closeness: float):
        self.encoder, self.embedding, self.closeness = encoder, embedding, closeness
        step = max(1, _CHUNK // (8 * embedding.shape[1]))
        total = sum(float(np.square(embedding[start:start + step], dtype=np.float64).sum())
                    for start in range(0, len(embedding), step))
        self._mean_square = total / len(embedding) or 1.0

    def __call__(self, batch, key: int) -> float:
        """The term, whose gradient is added to the parameters'."""
        nodes, z = self.encoder.embed_batch(batch)
        known = np.flatnonzero(nodes < len(self.embedding))
        if len(known) == 0 or self.closeness == 0:
            return 0.0
        apart = z[known] - self.embedding[nodes[known]]
        loss = (apart * apart).sum() * (self.closeness / (len(known) * self._mean_square))
        loss.backward()
        return loss.item()
