"""Neighbour sampling: the part of a graph that a few layers of message passing over some seed nodes need."""
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gnncy._check import check_ids, check_int
from gnncy._kernels.graph import sampling, traversal
from gnncy._random import derive, seed_from
from gnncy.graph.csr import as_csr


@dataclass(slots=True, eq=False)
class Block:
    """Arcs from some destination nodes to their chosen neighbours, the source nodes: a rectangular CSR pattern.

    Nodes are local positions. The destinations are the first ``n_dst`` of the ``n_src`` sources where the
    block was sampled. Made by :class:`NeighborSampler` and :meth:`from_csr`; arrays given by hand are trusted.

    Attributes
    ----------
    indptr : ndarray, shape (n_dst + 1,)
        Row starts.
    indices : ndarray, shape (n_arcs,)
        Sources of each destination in turn; int32 or int64, as ``indptr``.
    n_src, n_dst : int
    edges : ndarray, shape (n_arcs,), optional
        Where each arc lies in the ``data`` of the graph's canonical form.
    weights : ndarray, shape (n_arcs,), optional
        Weight of each arc.
    """

    indptr: np.ndarray
    indices: np.ndarray
    n_src: int
    n_dst: int
    edges: np.ndarray | None = None
    weights: np.ndarray | None = None
    _transposed: "Block | None" = field(default=None, init=False, repr=False)
    _places: np.ndarray | None = field(default=None, init=False, repr=False)

    @classmethod
    def from_csr(cls, adjacency) -> "Block":
        """The whole graph as one block; keep it where a gradient is taken more than once.

        Parameters
        ----------
        adjacency : sparse or dense array, shape (n_dst, n_src)
        """
        adjacency = as_csr(adjacency, square=False)
        return cls(adjacency.indptr, adjacency.indices, adjacency.shape[1], adjacency.shape[0],
                   weights=adjacency.data)

    @property
    def n_arcs(self) -> int:
        """Number of arcs."""
        return len(self.indices)

    def transposed(self) -> "Block":
        """The block with every arc reversed, sources in rising order; computed once and kept."""
        if self._transposed is None:
            self._reverse()
        assert self._transposed is not None
        return self._transposed

    def places(self) -> np.ndarray:
        """Where each arc of :meth:`transposed` stands in this block; computed once and kept."""
        if self._places is None:
            self._places = self._reverse()
        return self._places

    def _reverse(self) -> np.ndarray:
        indptr = np.zeros(self.n_src + 1, self.indptr.dtype)
        indices, places = np.empty_like(self.indices), np.empty_like(self.indices)
        traversal.transpose(self.indptr, self.indices, indptr, indices, places)
        self._transposed = Block(indptr, indices, self.n_dst, self.n_src,
                                 None if self.edges is None else self.edges[places],
                                 None if self.weights is None else self.weights[places])
        return places


@dataclass(slots=True, eq=False)
class SampledBatch:
    """What :meth:`NeighborSampler.sample` returns.

    Attributes
    ----------
    nodes : ndarray of int64
        Ids of the sources of ``blocks[0]``: the nodes whose features are needed. Seeds come first, then
        each hop's new nodes; the sources of every block are a first part of ``nodes``.
    blocks : list of Block
        One a layer, in the order in which layers are applied: the outermost hop first. The destinations of
        a block are the sources of the next, those of the last are the seeds.
    """

    nodes: np.ndarray
    blocks: list[Block]

    @property
    def seeds(self) -> np.ndarray:
        """Ids of the seeds, as they were given."""
        return self.nodes[:self.blocks[-1].n_dst]


class NeighborSampler:
    """Draws neighbours hop by hop, uniformly without replacement.

    A node's draw depends on the seed, the epoch, the batch, the hop and the node alone: the same call gives
    the same sample on any number of threads and in any order of calls, and a node's neighbours do not depend
    on which other nodes are in the batch.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        A node's neighbours are the ends of its arcs. Weights do not change the odds.
    fanouts : sequence of int
        Most neighbours of a node at each hop, the seeds' first; -1 takes all.
    seed : int or Generator
        Seed of the draws.
    weighted : bool
        Also give the arcs' weights in each block.

    Notes
    -----
    Of a node with more neighbours than the fan-out every subset of that size is equally likely (Floyd's
    algorithm); one with fewer gives all, in the graph's order. Nodes reached again are expanded again, with
    fresh draws, as in DGL. Every thread that samples at a time keeps four (or, in graphs beyond int32, eight)
    bytes a node.

    References
    ----------
    Hamilton, Ying and Leskovec, Inductive representation learning on large graphs, NeurIPS 2017.
    Bentley and Floyd, A sample of brilliance, Communications of the ACM 30(9), 1987.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.graph import NeighborSampler
    >>> ring = np.roll(np.eye(6), 1, axis=1) + np.roll(np.eye(6), -1, axis=1)
    >>> batch = NeighborSampler(ring, fanouts=(-1, 1), seed=0).sample([3])
    >>> batch.nodes[:3], [(block.n_dst, block.n_src) for block in batch.blocks][-1]
    (array([3, 2, 4]), (1, 3))
    """

    def __init__(self, adjacency, fanouts: Sequence[int] = (15, 10), *, seed=0, weighted: bool = False):
        self.adjacency = as_csr(adjacency)
        self.fanouts = check_fanouts(fanouts)
        self.seed = seed_from(seed)
        self.weighted = bool(weighted)
        longest = int(np.diff(self.adjacency.indptr).max(initial=0))
        self._taken = longest // 64 + 1
        self._scratch: list[tuple[np.ndarray, np.ndarray]] = []  # one a thread at work, lent and given back

    def sample(self, seeds, *, epoch: int = 0, batch: int = 0) -> SampledBatch:
        """The neighbourhood of the seeds.

        Parameters
        ----------
        seeds : array of int, shape (n_seeds,), or boolean mask, shape (n,)
            Distinct node ids.
        epoch, batch : int
            Keys of the draw.

        Returns
        -------
        SampledBatch

        Raises
        ------
        IndexError
            If a seed is not a node.
        ValueError
            If a seed is given twice.
        """
        nodes = check_ids(seeds, self.adjacency.shape[0], "seeds")
        epoch, batch = check_int(epoch, "epoch", low=0), check_int(batch, "batch", low=0)
        try:
            place, taken = self._scratch.pop()
        except IndexError:
            place = np.full(self.adjacency.shape[0], -1, self.adjacency.indices.dtype)
            taken = np.zeros(self._taken, np.uint64)
        repeated = sampling.enter(nodes, place)
        if repeated >= 0:
            raise ValueError(f"seeds must be distinct, got node {nodes[repeated]} twice; "
                             f"sample np.unique(seeds, return_inverse=True) and index the result with the inverse")
        blocks = []
        for hop, fanout in enumerate(self.fanouts):
            block, nodes = self._hop(nodes, fanout, derive(self.seed, epoch, batch, hop), place, taken)
            blocks.append(block)
        sampling.leave(nodes, place)
        # Not given back after an error: it may hold marks.
        self._scratch.append((place, taken))
        return SampledBatch(nodes, blocks[::-1])

    def _hop(self, nodes, fanout, key, place, taken):
        graph, dtype = self.adjacency, self.adjacency.indices.dtype
        indptr = np.empty(len(nodes) + 1, dtype)
        sampling.spans(graph.indptr, nodes, fanout, indptr)
        arcs = int(indptr[-1])
        edges, indices = np.empty(arcs, dtype), np.empty(arcs, dtype)
        sampling.choose(graph.indptr, nodes, indptr, key, taken, edges)
        reached = np.empty(min(graph.shape[0], len(nodes) + arcs) + 1, np.int64)
        reached[:len(nodes)] = nodes
        count = sampling.relabel(graph.indices, edges, len(nodes), place, reached, indices)
        weights = graph.data[edges] if self.weighted else None
        return Block(indptr, indices, count, len(nodes), edges, weights), reached[:count]


def check_fanouts(fanouts) -> tuple[int, ...]:
    """Most neighbours of a node at each hop."""
    if isinstance(fanouts, (str, bytes)) or not hasattr(fanouts, "__len__") or len(fanouts) == 0:
        raise TypeError(f"fanouts must be a sequence of integers, one a hop, got {fanouts!r}")
    checked = tuple(check_int(k, f"fanouts[{hop}]", low=-1) for hop, k in enumerate(fanouts))
    if 0 in checked:
        raise ValueError(f"fanouts must be at least 1, or -1 for all neighbours, got {checked}")
    return checked
