"""Neighbour sampling from a graph on disk: many minibatches hop by hop, so that one ascending pass serves them all."""
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gnncy._check import check_ids, check_int
from gnncy._kernels.graph import sampling
from gnncy._kernels.topology import draws
from gnncy._memory import format_bytes, parse_bytes
from gnncy._random import derive, seed_from
from gnncy.errors import MemoryLimitError
from gnncy.graph import Block, SampledBatch
from gnncy.graph.sampler import check_fanouts
from gnncy.storage._blocks import one_ahead
from gnncy.storage.topology.graph import GraphStorage

_SCRATCH = 3_700_000  # bytes for planning reads, and for what cannot be counted
_MARGIN = 1.1  # by which a minibatch may be larger than those before it
_INT32_MAX = np.iinfo(np.int32).max
_NONE = np.zeros(0, np.int64)


class _Draft:
    """A minibatch on its way: what it has reached, and the arcs that it draws at the present hop."""

    def __init__(self, number: int, seeds: np.ndarray):
        self.number, self.seeds, self.nodes = number, seeds, seeds
        self.blocks: list[Block] = []
        self.close()

    def close(self) -> None:
        """Let go of the hop."""
        self.arcs = 0  # that it draws
        self.first = self.degree = self.ends = _NONE
        self.weights: np.ndarray | None = None

    @property
    def hop(self) -> int:
        """Number of the present hop."""
        return len(self.blocks)

    @property
    def nbytes(self) -> int:
        """What it holds when its arcs are drawn."""
        arrays = [self.nodes, self.first, self.degree,
                  *(a for b in self.blocks for a in (b.indptr, b.indices, b.edges, b.weights))]
        return sum(array.nbytes for array in arrays if array is not None)


class StorageSampler:
    """Draws neighbours of nodes from a graph on disk, the same samples as :class:`~gnncy.graph.NeighborSampler`.

    Which of its arcs a node takes depends on the seed, the epoch, the batch, the hop, the node and its number of arcs,
    not on where they lead. So the places are drawn first, for as many minibatches as the memory holds, and then read in
    one ascending pass for all of them: of a hub's list only the blocks that were drawn from, and of many minibatches
    each block once. Row starts are held in memory where they take no more than half of the limit, else read too.

    Parameters
    ----------
    graph : GraphStorage
        In canonical form, as :meth:`GraphStorage.create` and :meth:`~GraphStorage.from_edges` write it.
    fanouts : sequence of int
        Most neighbours of a node at each hop, the seeds' first; -1 takes all.
    seed : int or Generator
        Seed of the draws.
    weighted : bool
        Also give the arcs' weights in each block.
    memory_limit : int or str
        Bytes that row starts and the minibatches at work may take. What the caller keeps comes on top.
    prefetch : bool
        Let :meth:`sample_many` read the next minibatches in a thread while those before are used.

    Raises
    ------
    MemoryLimitError
        If a single minibatch needs more; the message names the least that would do.

    Notes
    -----
    Every byte of memory that holds minibatches at work makes passes over the arcs fewer in proportion. A byte that held
    arcs instead would save but its share of the file in each pass. So while memory is smaller than the arcs, all of it
    goes to minibatches, and there is no cache of lists. (Of a symmetric graph hubs would not even be the lists to keep:
    a draw takes as few of their arcs as of others', out of many more.)

    References
    ----------
    Jang, Park, Ko and Kim, Accelerating storage-based training for graph neural networks (AGNES), KDD 2026.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import GraphStorage, StorageSampler
    >>> ring = np.roll(np.eye(6), 1, axis=1) + np.roll(np.eye(6), -1, axis=1)
    >>> with GraphStorage.create("ring", ring) as graph:
    ...     sampler = StorageSampler(graph, fanouts=(-1, 1), seed=0)
    ...     [batch.nodes[:3] for batch in sampler.sample_many([[3], [0]])]
    [array([3, 2, 4]), array([0, 1, 5])]
    """

    def __init__(self, graph: GraphStorage, fanouts: Sequence[int] = (15, 10), *, seed=0, weighted: bool = False,
                 memory_limit: int | float | str = "256MB", prefetch: bool = True):
        if not isinstance(graph, GraphStorage):
            raise TypeError(f"graph must be a GraphStorage, got {type(graph).__name__}; for a graph in memory use "
                            f"gnncy.graph.NeighborSampler")
        self.graph, self.fanouts = graph, check_fanouts(fanouts)
        self.seed, self.weighted = seed_from(seed), bool(weighted)
        self.memory_limit, self.prefetch = parse_bytes(memory_limit), bool(prefetch)
        self._room = self.memory_limit - graph.pass_nbytes - _SCRATCH
        self._indptr = graph.load_indptr() if graph.indptr_nbytes <= self.memory_limit // 2 else None
        if self._indptr is not None:
            self._room -= graph.indptr_nbytes
            self._longest = graph.longest_list()
        # An arc's number and end share a place; another one sorts them.
        self._arc_bytes = graph.index_dtype.itemsize + 4 + (graph.dtype.itemsize if self.weighted else 0)
        self._costs = [0] * len(self.fanouts)  # bytes that a minibatch took at each hop, at most, so far

    def sample(self, seeds, *, epoch: int = 0, batch: int = 0) -> SampledBatch:
        """The neighbourhood of the seeds, as :meth:`gnncy.graph.NeighborSampler.sample` gives it.

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
        epoch, batch = check_int(epoch, "epoch", low=0), check_int(batch, "batch", low=0)
        return self._finish(next(self._groups(iter([seeds]), epoch, batch))[0], epoch)

    def sample_many(self, seeds: Iterable, *, epoch: int = 0, first: int = 0) -> Iterator[SampledBatch]:
        """The neighbourhoods of many minibatches, one after the other, read together.

        Parameters
        ----------
        seeds : iterable of arrays of int
            Seeds of each minibatch. With ``prefetch`` it is drawn from in another thread.
        epoch : int
            Key of the draws.
        first : int
            Number of the first minibatch; the others count up from it.

        Yields
        ------
        SampledBatch
            Bit for bit what ``NeighborSampler.sample(seeds, epoch=epoch, batch=number)`` gives.
        """
        epoch, first = check_int(epoch, "epoch", low=0), check_int(first, "first", low=0)
        groups = self._groups(iter(seeds), epoch, first)
        for group in one_ahead(groups) if self.prefetch else groups:
            group.reverse()
            while group:
                yield self._finish(group.pop(), epoch)

    def _groups(self, coming: Iterator, epoch: int, number: int) -> Iterator[list[_Draft]]:
        """Minibatches whose last hop is read. Each pass serves all hops: of some the last, of others the first."""
        again: deque[_Draft] = deque()  # turned out too large, and begin anew
        ready = 0  # bytes of those that may be in use while the next pass is made
        active: list[_Draft] = []
        while True:
            # First those at work, so that what they take is known when it is decided how many begin.
            self._open(active)
            self._needs(active)
            begun: list[_Draft] = []
            while not begun or len(begun) < self._beginners(len(begun[-1].seeds)):
                if again:
                    begun.append(again.popleft())
                elif (seeds := next(coming, None)) is not None:
                    begun.append(self._draft(number, seeds))
                    number += 1
                else:
                    break
            self._open(begun)
            active += begun
            if not active:
                return
            fits = self._fitting(active, ready)
            again.extendleft(_Draft(draft.number, draft.seeds) for draft in reversed(active[fits:]))
            del active[fits:]
            self._read(active, epoch)
            last = [draft for draft in active if draft.hop == len(self.fanouts) - 1]
            del active[:len(last)]
            for draft in active:
                self._close(draft, epoch)
            ready = self._costs[-1] * len(last) if self.prefetch else 0
            if last:
                yield last

    def _beginners(self, nodes: int) -> int:
        """Minibatches of so many seeds to begin: as many as fit if as many are at every hop."""
        each, held, mean = 0, 0, self.graph.nnz / max(self.graph.n_nodes, 1)
        for cost, fanout in zip(self._costs, self.fanouts, strict=True):
            arcs = int(nodes * (mean if fanout < 0 else min(fanout, mean)))
            cost = cost or held + 8 * nodes + self._arc_bytes * arcs  # before any was seen
            each += cost
            held += (2 * arcs + nodes) * self.graph.index_dtype.itemsize
            nodes = min(nodes + arcs, self.graph.n_nodes)
        # Those that are ready may be in use while the next pass is made.
        each += cost if self.prefetch else 0
        return max(1, int(self._room / (each * _MARGIN))) if each else 1

    def _draft(self, number: int, seeds) -> _Draft:
        seeds = check_ids(seeds, self.graph.n_nodes, "seeds").copy()  # kept while the caller may fill them anew
        repeated = draws.enter(seeds, self._table(len(seeds)))
        if repeated >= 0:
            raise ValueError(f"seeds must be distinct, got node {seeds[repeated]} twice; "
                             f"sample np.unique(seeds, return_inverse=True) and index the result with the inverse")
        return _Draft(number, seeds)

    def _open(self, drafts: list[_Draft]) -> None:
        """Look up how many arcs each draws."""
        dtype = self.graph.index_dtype
        if self._indptr is not None or not drafts:
            for draft in drafts:
                draft.arcs = int(self._starts(draft)[-1])
            return
        first, degree = self.graph.spans(np.concatenate([draft.nodes for draft in drafts]))
        low = 0
        for draft in drafts:
            own = slice(low, low + len(draft.nodes))
            draft.first, draft.degree = first[own].astype(dtype), degree[own].astype(dtype)
            draft.arcs = int(self._starts(draft)[-1])
            low = own.stop

    def _starts(self, draft: _Draft) -> np.ndarray:
        """Row starts of the block of the present hop."""
        indptr, fanout = np.empty(len(draft.nodes) + 1, self.graph.index_dtype), self.fanouts[draft.hop]
        if self._indptr is not None:
            sampling.spans(self._indptr, draft.nodes, fanout, indptr)
        else:
            indptr[0] = 0
            np.cumsum(draft.degree if fanout < 0 else np.minimum(draft.degree, fanout), out=indptr[1:])
        return indptr

    def _needs(self, drafts: list[_Draft]) -> list[int]:
        """Bytes that each takes at its present hop."""
        need = [draft.nbytes + self._arc_bytes * draft.arcs for draft in drafts]
        for draft, cost in zip(drafts, need, strict=True):
            self._costs[draft.hop] = max(self._costs[draft.hop], cost)
        return need

    def _fitting(self, drafts: list[_Draft], ready: int) -> int:
        """How many of the minibatches, from the first on, can take their present hops together."""
        need = self._needs(drafts)
        # To number what one has reached takes a table, and its block.
        closing = [2 * self._table_size(len(draft.nodes) + draft.arcs) * self.graph.index_dtype.itemsize
                   + 16 * draft.arcs for draft in drafts]
        total = np.cumsum(need) + np.maximum.accumulate(closing)
        arcs = np.cumsum([draft.arcs for draft in drafts])
        if total[0] > self._room or arcs[0] > _INT32_MAX:
            least = int(total[0]) + self.memory_limit - self._room
            raise MemoryLimitError(f"memory_limit={format_bytes(self.memory_limit)} is too small: minibatch "
                                   f"{drafts[0].number} of {len(drafts[0].seeds)} seeds draws {arcs[0]} arcs and needs "
                                   f"{-(-least // 10**6)}MB; raise the limit, or make minibatches or fanouts smaller")
        return max(1, int(((total <= self._room - ready) & (arcs <= _INT32_MAX)).sum()))

    def _read(self, drafts: list[_Draft], epoch: int) -> None:
        """Draw arcs, and bring what is at their places."""
        dtype = self.graph.index_dtype
        stops = np.cumsum([draft.arcs for draft in drafts])
        arcs = np.empty(int(stops[-1]), dtype)
        own = [arcs[stop - draft.arcs:stop] for draft, stop in zip(drafts, stops.tolist(), strict=True)]
        for draft, edges in zip(drafts, own, strict=True):
            self._choose(draft, epoch, self._starts(draft), edges)
        weights = self.graph.read_weights(arcs) if self.weighted else None
        self.graph.replace_by_ends(arcs)
        for draft, ends, stop in zip(drafts, own, stops.tolist(), strict=True):
            draft.ends = ends
            draft.weights = None if weights is None else weights[stop - draft.arcs:stop].copy()

    def _choose(self, draft: _Draft, epoch: int, indptr: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Draw the arcs of the present hop, the same ones each time."""
        key = derive(self.seed, epoch, draft.number, draft.hop)
        if self._indptr is not None:
            taken = np.zeros(self._longest // 64 + 1, np.uint64)
            sampling.choose(self._indptr, draft.nodes, indptr, key, taken, edges)
        else:
            taken = np.zeros(int(draft.degree.max(initial=0)) // 64 + 1, np.uint64)
            draws.choose(draft.nodes, draft.first, draft.degree, indptr, key, taken, edges)
        return edges

    def _close(self, draft: _Draft, epoch: int) -> None:
        """Number the nodes that the present hop reached, and make its block."""
        known, n = len(draft.nodes), self.graph.n_nodes
        most = min(n, known + draft.arcs)
        table = self._table(most)
        draws.enter(draft.nodes, table)
        reached = np.empty(most, np.int64)
        reached[:known] = draft.nodes
        indices = np.empty(draft.arcs, self.graph.index_dtype)
        count = draws.relabel(draft.ends, n, known, table, reached, indices)
        if count < 0:
            raise self.graph.broken_ends()
        # Drawn a second time, which is quicker than to hold them all.
        indptr = self._starts(draft)
        edges = self._choose(draft, epoch, indptr, np.empty_like(indices))
        draft.blocks.append(Block(indptr, indices, count, known, edges, draft.weights))
        draft.nodes = reached[:count].copy()
        draft.close()

    def _finish(self, draft: _Draft, epoch: int) -> SampledBatch:
        self._close(draft, epoch)
        return SampledBatch(draft.nodes, draft.blocks[::-1])

    def _table_size(self, nodes: int) -> int:
        return 1 << (min(nodes, self.graph.n_nodes) * 3 // 2).bit_length()

    def _table(self, nodes: int) -> np.ndarray:
        """An empty table with room for some nodes."""
        return np.full((self._table_size(nodes), 2), -1, self.graph.index_dtype)
