"""Neighbour sampling from a graph on disk: many minibatches hop by hop, so that one ascending pass serves them all."""
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gnncy._check import check_ids, check_int
from gnncy._kernels.topology import draws
from gnncy._memory import format_bytes, parse_bytes
from gnncy._random import derive, seed_from
from gnncy._threads import current_threads, effective_n_jobs, run_pieces
from gnncy.errors import MemoryLimitError
from gnncy.graph import Block, SampledBatch
from gnncy.graph.sampler import check_fanouts
from gnncy.storage._blocks import ARENA, STREAMS, one_ahead
from gnncy.storage.topology.graph import GraphStorage
from gnncy.storage.topology.sweep import Lists

_SCRATCH = 3_700_000  # bytes for planning reads, and for what cannot be counted
_BESIDE = STREAMS * ARENA  # bytes that more threads come to read through, where a pass is made beside other work
_STEP = 2  # bytes by which a node is arranged
_TOGETHER = 2  # minibatches whose nodes are numbered at a time, between hops
_INT32_MAX = np.iinfo(np.int32).max
_NONE = np.zeros(0, np.int32)


class _Draft:
    """A minibatch on its way: what it has reached, and where the arcs lead that it draws at the present hop."""

    def __init__(self, number: int, seeds: np.ndarray, nodes: np.ndarray):
        self.number, self.seeds, self.nodes = number, seeds, nodes
        self.known: list[int] = []  # nodes before each hop that is done
        self.indices: list[np.ndarray] = []  # of the blocks of those hops
        self.weights: list[np.ndarray] = []
        self.spans = _NONE  # where nodes' lists begin and end, unless all row starts are in memory
        self.arcs = 0  # that it draws at the present hop
        self.ends = _NONE  # where they lead
        self.own_weights: np.ndarray | None = None

    @property
    def hop(self) -> int:
        """Number of the present hop."""
        return len(self.indices)

    @property
    def nbytes(self) -> int:
        """What it holds before its arcs are drawn."""
        return sum(array.nbytes for array in (self.nodes, self.spans, *self.indices, *self.weights))


class StorageSampler:
    """Draws neighbours of nodes from a graph on disk, the same samples as :class:`~gnncy.graph.NeighborSampler`.

    Which of its arcs a node takes depends on the seed, the epoch, the batch, the hop, the node and its number of arcs,
    not on where they lead. So lists of neighbours are drawn from in the order of the file, in one ascending pass for as
    many minibatches as the memory holds: of a hub's list only the blocks that are drawn from are read, and of many
    minibatches each block once. Row starts are held in memory where they take no more than half of the limit, else read
    too.

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
    n_jobs : int, optional
        Threads that draw, at most four; None is as many as the surrounding call works with (1 outside of any), -1 all
        usable CPUs. Samples do not depend on it.

    Raises
    ------
    MemoryLimitError
        If a single minibatch needs more; the message names the least that would do.

    Notes
    -----
    Every byte of memory that holds minibatches at work makes passes over the arcs fewer in proportion. A byte that held
    arcs instead would save but its share of the file in each pass. So while memory is smaller than the arcs, all of it
    goes to minibatches, there is no cache of lists, and nothing is held that can be drawn again. (Of a symmetric graph
    hubs would not even be the lists to keep: a draw takes as few of their arcs as of others', out of many more.)

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
                 memory_limit: int | float | str = "256MB", prefetch: bool = True, n_jobs: int | None = None):
        if not isinstance(graph, GraphStorage):
            raise TypeError(f"graph must be a GraphStorage, got {type(graph).__name__}; for a graph in memory use "
                            f"gnncy.graph.NeighborSampler")
        self.graph, self.fanouts = graph, check_fanouts(fanouts)
        self.seed, self.weighted = seed_from(seed), bool(weighted)
        self.memory_limit, self.prefetch = parse_bytes(memory_limit), bool(prefetch)
        self.n_jobs = None if n_jobs is None else effective_n_jobs(n_jobs)
        self._room = self.memory_limit - _SCRATCH
        self._indptr = graph.load_indptr() if graph.indptr_nbytes <= self.memory_limit // 2 else None
        if self._indptr is not None:
            self._room -= graph.indptr_nbytes
        self._arc_bytes = graph.width("indices") + (graph.dtype.itemsize if self.weighted else 0)
        self._costs = [0] * len(self.fanouts)  # bytes that a minibatch took at each hop, at most, so far
        self._closing = 0  # bytes to put one together, at most, so far

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
            again.extendleft(self._draft(draft.number, draft.seeds) for draft in reversed(active[fits:]))
            del active[fits:]
            self._read(active, epoch)
            # All that a pass brought is in use as long as some of it is.
            ready = sum(map(self._need, active)) + self._closing + _BESIDE if self.prefetch else 0
            last = [draft for draft in active if draft.hop == len(self.fanouts) - 1]
            del active[:len(last)]
            self._close_all(active)
            if last:
                yield last

    def _beginners(self, nodes: int) -> int:
        """Minibatches of so many seeds to begin: as many as fit if as many are at every hop."""
        each, mean = 0, self.graph.nnz / max(self.graph.n_nodes, 1)
        size = self._dtype.itemsize
        held = nodes * size
        for known, fanout in zip(self._costs, self.fanouts, strict=True):
            arcs = int(nodes * (mean if fanout < 0 else min(fanout, mean)))
            each += known or held + 2 * size * nodes + self._arc_bytes * arcs  # before any was seen
            nodes = min(nodes + arcs, self.graph.n_nodes)
            held += size * arcs
        # Those that are ready may be in use while the next pass is made.
        room = self._room - max(self._closing, self.graph.pass_nbytes)
        if self.prefetch:
            each, room = 2 * each, room - self._closing - _BESIDE
        return max(1, int(room / each)) if each else 1

    def _draft(self, number: int, seeds) -> _Draft:
        seeds = check_ids(seeds, self.graph.n_nodes, "seeds").copy()  # kept while the caller may fill them anew
        nodes = seeds.astype(self._dtype)
        repeated = draws.enter(nodes, self._table(len(nodes)))
        if repeated >= 0:
            raise ValueError(f"seeds must be distinct, got node {seeds[repeated]} twice; "
                             f"sample np.unique(seeds, return_inverse=True) and index the result with the inverse")
        return _Draft(number, seeds, nodes)

    def _open(self, drafts: list[_Draft]) -> None:
        """Look up how many arcs each draws."""
        if self._indptr is None and drafts:
            first, degree = self.graph.spans(np.concatenate([draft.nodes for draft in drafts]))
            spans = np.stack([first, first + degree], axis=1).astype(self._dtype).ravel()
            low = 0
            for draft in drafts:
                draft.spans = spans[low:low + 2 * len(draft.nodes)].copy()
                low += len(draft.spans)
        for draft in drafts:
            draft.arcs = draws.total(*self._lists(draft.nodes, draft.spans), self.fanouts[draft.hop])
            self._costs[draft.hop] = max(self._costs[draft.hop], self._need(draft))
            self._closing = max(self._closing, self._closing_of(draft))

    def _lists(self, nodes: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the lists of nodes are: row starts, and the number of each one's row."""
        if self._indptr is not None:
            return self._indptr, nodes
        return spans, np.arange(0, len(spans), 2, dtype=self._dtype)

    def _need(self, draft: _Draft) -> int:
        """Bytes that it takes at its present hop: what it holds, its arcs, and how these are arranged."""
        rows = self._dtype.itemsize if self._indptr is not None else 4 * self._dtype.itemsize
        return draft.nbytes + self._arc_bytes * draft.arcs + (rows + _STEP) * len(draft.nodes)

    def _closing_of(self, draft: _Draft) -> int:
        """Bytes to number what it has reached, and to make its blocks."""
        size, most = self._dtype.itemsize, min(self.graph.n_nodes, len(draft.nodes) + draft.arcs)
        edges = draft.arcs + sum(map(len, draft.indices))
        one = size * (most + draft.arcs + edges) + max(8 * most, size * _table_size(most))
        return one if draft.hop == len(self.fanouts) - 1 else _TOGETHER * one

    def _fitting(self, drafts: list[_Draft], ready: int) -> int:
        """How many of the minibatches, from the first on, can take their present hops together."""
        closing = np.maximum.accumulate([self._closing_of(draft) for draft in drafts])
        total = np.cumsum([self._need(draft) for draft in drafts]) + np.maximum(closing, self.graph.pass_nbytes)
        places = np.cumsum([max(draft.arcs, len(draft.nodes)) for draft in drafts])
        if total[0] > self._room or places[0] > _INT32_MAX:
            least = int(total[0]) + self.memory_limit - self._room
            raise MemoryLimitError(f"memory_limit={format_bytes(self.memory_limit)} is too small: minibatch "
                                   f"{drafts[0].number} of {len(drafts[0].seeds)} seeds draws {drafts[0].arcs} arcs "
                                   f"and needs {-(-least // 10**6)}MB; raise the limit, or make minibatches or "
                                   f"fanouts smaller")
        return max(1, int(((total <= self._room - ready) & (places <= _INT32_MAX)).sum()))

    def _read(self, drafts: list[_Draft], epoch: int) -> None:
        """Draw arcs, and bring what is at their places."""
        stops = np.cumsum([len(draft.nodes) for draft in drafts])
        own = [slice(stop - len(draft.nodes), stop) for draft, stop in zip(drafts, stops.tolist(), strict=True)]
        nodes = np.concatenate([draft.nodes for draft in drafts])
        for draft, part in zip(drafts, own, strict=True):
            draft.nodes = nodes[part]
        starts, rows = self._lists(nodes, np.concatenate([draft.spans for draft in drafts]))
        indptr = np.zeros(len(nodes) + 1, self._dtype)
        for draft, part in zip(drafts, own, strict=True):
            draws.spans(starts, rows[part], self.fanouts[draft.hop], indptr[part.start:part.stop + 1])
        keys = np.array([self._key(draft, draft.hop, epoch) for draft in drafts], np.uint64)
        lists = Lists(starts, rows, nodes, indptr, stops, keys, self._longest(starts), max(self.fanouts))
        arrays = self.graph._arrays
        ends, weights = arrays.draw("indices", lists, self.n_jobs), None
        if self.weighted and self.graph.weighted:
            weights = arrays.draw("data", lists, self.n_jobs)
        elif self.weighted:
            weights = np.ones(len(ends), self.graph.dtype)
        for draft, part in zip(drafts, own, strict=True):
            arcs = slice(int(indptr[part.start]), int(indptr[part.stop]))
            draft.ends = ends[arcs]
            draft.own_weights = None if weights is None else weights[arcs]

    def _key(self, draft: _Draft, hop: int, epoch: int) -> int:
        return derive(self.seed, epoch, draft.number, hop)

    def _longest(self, starts: np.ndarray) -> int:
        """Arcs of a list, at most."""
        if self._indptr is not None:
            return self.graph.longest_list()
        return int((starts[1::2] - starts[::2]).max(initial=0))

    def _close_all(self, drafts: list[_Draft]) -> None:
        """Number the nodes that a hop reached that is not the last one."""
        run_pieces(lambda k, _: self._close(drafts[k], held=True), len(drafts), 1,
                   min(self.n_jobs or current_threads(), _TOGETHER))

    def _close(self, draft: _Draft, held: bool) -> None:
        """Number the nodes that the present hop reached; in few bytes, if they are held for the hops to come."""
        known, n = len(draft.nodes), self.graph.n_nodes
        most = min(n, known + draft.arcs)
        table = self._table(most)
        reached = np.empty(most, self._dtype)
        reached[:known] = draft.nodes
        draws.enter(draft.nodes, table)
        indices = np.empty(draft.arcs, self._dtype)
        count = draws.relabel(draft.ends, n, known, table, reached, indices)
        if count < 0:
            raise self.graph.broken_ends()
        if draft.own_weights is not None:
            draft.weights.append(draft.own_weights.copy())
        draft.known.append(known)
        draft.indices.append(indices.astype(np.min_scalar_type(count)) if held else indices)
        draft.nodes = reached[:count].copy() if held else reached[:count]
        draft.ends, draft.own_weights = _NONE, None

    def _finish(self, draft: _Draft, epoch: int) -> SampledBatch:
        """Number the nodes that the last hop reached, and meanwhile draw all arcs again: they are not held."""
        nodes, sizes = draft.nodes, [*draft.known, len(draft.nodes)]  # of each hop the first ones are the destinations
        starts, rows = self._lists(nodes, draft.spans)
        drawn: list[tuple[np.ndarray, np.ndarray]] = []

        def work(part: int, _: int) -> None:
            if part == 0:
                self._close(draft, held=False)
                return
            taken = np.zeros(self._longest(starts) // 64 + 1, np.uint64)
            for hop, (size, fanout) in enumerate(zip(sizes, self.fanouts, strict=True)):
                indptr = np.zeros(size + 1, self._dtype)
                draws.spans(starts, rows[:size], fanout, indptr)
                edges = np.empty(int(indptr[-1]), self._dtype)
                draws.choose(starts, rows[:size], nodes, indptr, self._key(draft, hop, epoch), taken, edges)
                drawn.append((indptr, edges))

        run_pieces(work, 2, 1, self.n_jobs)
        sizes.append(len(draft.nodes))
        blocks = [Block(drawn[hop][0], draft.indices[hop].astype(self._dtype, copy=False), sizes[hop + 1], sizes[hop],
                        drawn[hop][1], draft.weights[hop] if self.weighted else None)
                  for hop in reversed(range(len(self.fanouts)))]
        return SampledBatch(draft.nodes.astype(np.int64), blocks)

    @property
    def _dtype(self) -> np.dtype:
        return self.graph.index_dtype

    def _table(self, nodes: int) -> np.ndarray:
        """An empty table with room for some nodes."""
        return np.full(_table_size(nodes), -1, self._dtype)


def _table_size(nodes: int) -> int:
    return nodes * 3 // 2 + 1
