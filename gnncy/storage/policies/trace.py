"""What is accessed: traces of minibatches, and the ids that are accessed most."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gnncy._check import check_array, check_ids, check_int
from gnncy._random import stream
from gnncy.graph import NeighborSampler
from gnncy.storage.policies.policy import MOST_IDS


@dataclass(slots=True, eq=False)
class Trace:
    """Accesses of node ids, minibatch by minibatch.

    Attributes
    ----------
    ids : ndarray of int64
        Of all minibatches, one after the other.
    starts : ndarray of int64, shape (n_minibatches + 1,)
        Where each minibatch begins; at last, where the last one ends.

    Examples
    --------
    >>> from gnncy.storage.policies import Trace
    >>> trace = Trace.of([[3, 1], [1, 2, 3]])
    >>> trace, trace.counts()
    (Trace(5 accesses in 2 minibatches), array([0, 2, 1, 2]))
    """

    ids: np.ndarray
    starts: np.ndarray

    def __post_init__(self):
        self.ids = check_ids(self.ids, MOST_IDS, "ids")
        self.starts = check_ids(self.starts, len(self.ids) + 1, "starts")
        starts = self.starts
        if not len(starts) or starts[0] or starts[-1] != len(self.ids) or (np.diff(starts) < 0).any():
            raise ValueError(f"starts must rise from 0 to the {len(self.ids)} ids")

    @classmethod
    def of(cls, minibatches: Iterable) -> "Trace":
        """A trace of arrays of ids, or of objects with ``nodes`` (:class:`~gnncy.graph.SampledBatch`)."""
        parts = [check_ids(getattr(batch, "nodes", batch), MOST_IDS, "minibatches") for batch in minibatches]
        return cls(np.concatenate([np.empty(0, np.int64), *parts]), np.cumsum([0, *map(len, parts)]))

    @classmethod
    def sample(cls, adjacency, seeds, fanouts: Sequence[int], batch_size: int, *, seed=0, epoch: int = 0) -> "Trace":
        """What one epoch of neighbour sampling reads.

        Parameters
        ----------
        adjacency : sparse or dense array, shape (n, n)
        seeds : array of int, shape (k,), or boolean mask, shape (n,)
        fanouts : sequence of int
        batch_size : int
            Seeds in a minibatch, taken in a random order.
        seed : int or Generator
        epoch : int
            Another epoch is another order and other neighbours.
        """
        sampler = NeighborSampler(adjacency, fanouts, seed=seed)
        seeds = check_ids(seeds, sampler.adjacency.shape[0], "seeds")
        batch_size, epoch = check_int(batch_size, "batch_size", 1), check_int(epoch, "epoch", 0)
        order = stream(sampler.seed, "order", epoch).permutation(seeds)
        return cls.of(sampler.sample(order[first:first + batch_size], epoch=epoch, batch=k)
                      for k, first in enumerate(range(0, len(order), batch_size)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __repr__(self) -> str:
        return f"Trace({len(self.ids)} accesses in {len(self)} minibatches)"

    def minibatch(self, k: int) -> np.ndarray:
        """Ids of minibatch ``k``."""
        return self.ids[self.starts[k]:self.starts[k + 1]]

    def counts(self, n: int | None = None) -> np.ndarray:
        """How often each of the ids 0 .. n-1 is accessed; up to the greatest id by default."""
        return np.bincount(self.ids, minlength=0 if n is None else check_int(n, "n", 0))


def hottest(scores, k: int) -> np.ndarray:
    """The ``k`` ids with the greatest scores, greatest first; of equal ones the lowest.

    Parameters
    ----------
    scores : array, shape (n,)
        One a node: probabilities of inclusion, degrees, or counts of a sampled epoch.
    k : int

    Returns
    -------
    ndarray of int64, shape (min(k, n),)

    Examples
    --------
    >>> from gnncy.storage.policies import hottest
    >>> hottest([0.5, 2.0, 0.5, 0.5], 3)
    array([1, 0, 2])
    """
    scores = check_array(scores, "scores", ndim=1, dtype=np.float64, allow_empty=True)
    return np.argsort(-scores, kind="stable")[:check_int(k, "k", 0)]
