"""Pairs of linked nodes, window by window of a table on disk, and skip-gram steps on them in lanes."""
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gnncy._kernels import skipgram
from gnncy._kernels.storage import tables as kernels
from gnncy._random import derive
from gnncy._threads import current_threads, run_pieces
from gnncy.graph import RandomWalks
from gnncy.storage import GraphStorage
from gnncy.storage._blocks import ahead, one_ahead
from gnncy.storage.tables import EmbeddingTable
from gnncy.storage.tables.table import EPS
from gnncy.storage.tables.windows import LANES, EpochWindows, Window

if TYPE_CHECKING:
    from gnncy.estimators.node_embedding import NodeEmbedding

GROUP = 16  # pairs that share their negatives
POWER = 0.75  # of the degree, for the odds to be a negative


class Pairs(NamedTuple):
    """Pairs of nodes by cells: those of lane i and lane j are ``u, v[begin[k]:begin[k + 1]]``, k = i LANES + j."""

    begin: np.ndarray
    u: np.ndarray
    v: np.ndarray


class Odds(NamedTuple):
    """What the negatives of lane j are drawn from: the nodes of its blocks, which begin at node ``first[j]`` of all."""

    first: np.ndarray
    blocks: np.ndarray
    sums: np.ndarray  # of the odds of the lane's nodes
    guide: np.ndarray  # to the sums


NO_ODDS = Odds(np.zeros(LANES + 1, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, np.int32))


class PairTraining:
    """Pairs of nodes window by window, and the steps on them."""

    def __init__(self, adjacency, table: EmbeddingTable, model: "NodeEmbedding", seed: int):
        self.adjacency, self.table, self.model, self.seed = adjacency, table, model, seed
        self.n, self.stored = adjacency.shape[0], isinstance(adjacency, GraphStorage)
        self.indptr = adjacency.load_indptr() if self.stored else adjacency.indptr
        self.bits = table.block_rows.bit_length() - model._vectors  # a block's nodes are 2 ** bits
        if model.method == "walks":
            self.walker = RandomWalks(adjacency, model.walk_length, seed=derive(seed, "walks"))
        self._lanes = [Lane(table, model) for _ in range(LANES)]

    def train(self, epoch: int) -> tuple[float, int]:
        """One epoch; the mean loss and the number of pairs."""
        table = self.table
        order = EpochWindows(table.n_blocks, table.block_rows, self.seed, epoch)
        if table.resident:
            table.hold(np.arange(table.n_blocks))
        for chunk, blocks in enumerate(order.chunks):
            table.expect(blocks, order.due(chunk, -1))
        drawn = self._drawn(order, epoch)
        if current_threads() > 1:
            drawn = one_ahead(drawn)
        total, count = 0.0, 0
        for t, parts in groupby(drawn, itemgetter(0)):
            if not table.resident:
                self._bring(order, t)
            for part, (_, pairs, odds) in enumerate(parts):
                total += self.meet(pairs, odds, order.windows[t].own, derive(self.seed, "pairs", epoch, t, part))
                count += len(pairs.u)
            table.changed(order.blocks(t), 1)
        return total / max(count, 1), count

    def meet(self, pairs: Pairs, odds: Odds, own: bool, key: int) -> float:
        """Train on pairs, those of many lanes at a time; the sum of their losses.

        What is trained on at the same time has no row in common: in a turn lane i of the nodes ``u`` meets lane
        i ^ turn of the nodes ``v``. Where these may be of the same chunk (``own``), the pairs of two lanes are trained
        on one after the other.
        """
        losses = np.zeros(LANES * LANES)
        for tasks in _stages(own, current_threads()):
            def work(start, stop, tasks=tasks):
                for lane, cells in zip(self._lanes[start:stop], tasks[start:stop], strict=True):
                    lane.train(cells, pairs, odds, key, losses)

            run_pieces(work, len(tasks), 1)
        return float(losses.sum())

    def _bring(self, order: EpochWindows, t: int) -> None:
        """Have the blocks of window t in memory, and begin to read those of the next."""
        self.table.hold(order.blocks(t))
        for chunk in order.windows[t].chunks:
            self.table.expect(order.chunks[chunk], order.due(chunk, t))
        if t + 1 < len(order):
            self.table.read_ahead(order.blocks(t + 1))

    def _nodes(self, blocks: np.ndarray) -> np.ndarray:
        nodes = (blocks[:, None] << self.bits) + np.arange(1 << self.bits)
        return nodes.reshape(-1)[nodes.reshape(-1) < self.n]

    def _odds(self, blocks: np.ndarray, before: Odds = NO_ODDS) -> Odds:
        """The odds of the nodes of some blocks, joined to those of others before."""
        more = [blocks[lane::LANES] for lane in range(LANES)]
        first = before.first + (np.cumsum([0, *map(len, more)]) << self.bits)
        n = int(first[-1])
        odds = Odds(first, np.empty(n >> self.bits, np.int64), np.empty(n), np.empty(n, np.int32))
        for lane, added in enumerate(more):
            node = np.minimum((added[:, None] << self.bits) + np.arange(1 << self.bits), self.n)
            after = np.minimum(node + 1, self.n)  # places beyond the last node have no odds
            likely = ((self.indptr[after] - self.indptr[node]) ** POWER).reshape(-1)
            old, new = (slice(*ends[lane:lane + 2].tolist()) for ends in (before.first, first))
            sums = before.sums[old]
            likely[:1] += 1e-9 + sums[-1:].sum()  # never 0 in all, where there are no arcs
            odds.sums[new] = np.concatenate([sums, np.cumsum(likely)])
            kernels.guide(odds.sums[new], odds.guide[new])
            old, new = (slice(some.start >> self.bits, some.stop >> self.bits) for some in (old, new))
            odds.blocks[new] = np.concatenate([before.blocks[old], added])
        return odds

    def _drawn(self, order: EpochWindows, epoch: int) -> Iterator[tuple[int, Pairs, Odds]]:
        """The pairs of every window, in parts, with the odds of the negatives. They last until the next but one."""
        most = self._most(order)
        found, dealt = np.empty((2, most), np.int64), np.empty((2, 2, most), np.int64)
        odds, turn = NO_ODDS, 0
        for t, (window, ends) in enumerate(zip(order.windows, self._ends(order), strict=True)):
            if window.own:
                odds = self._odds(order.chunks[window.chunk], odds if window.held else NO_ODDS)
            for count in self._found(order, window, epoch, ends, found):
                u, v = found[:, :count]
                yield t, deal(u, v, order.lane_of, self.bits, dealt[turn % 2]), odds
                turn += 1

    def _found(self, order: EpochWindows, window: Window, epoch: int, ends, out: np.ndarray) -> Iterator[int]:
        """Write the pairs of the chunk's nodes with nodes that are there, part by part; their numbers."""
        blocks = order.chunks[window.chunk]
        taken = np.zeros(len(order.chunks), np.uint8)
        taken[list(window.held)] = 1
        taken[window.chunk] = 2 * window.own
        taken = taken[order.chunk_of]
        key = derive(self.seed, "lot", epoch)
        if self.model.method == "edges":
            first, last, _, _ = self._spans(blocks)
            yield kernels.arc_pairs(self.indptr, ends[0], first, last, ends[1], taken, self.bits, key, *out)
            return
        nodes = self._nodes(blocks)
        for draw in range(self.model.n_walks):
            walks = self.walker.sample(nodes, epoch=epoch, batch=draw)
            yield kernels.walk_pairs(walks, taken, self.bits, key + draw, *out)

    def _most(self, order: EpochWindows) -> int:
        """Pairs of a part, at most."""
        if self.model.method == "edges":
            return max(int(self._spans(blocks)[3].sum()) for blocks in order.chunks)
        return max(len(self._nodes(blocks)) for blocks in order.chunks) * self.model.walk_length

    def _spans(self, blocks: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of blocks the first node and the one after the last, and the first arc and their number."""
        first = blocks << self.bits
        last = np.minimum(first + (1 << self.bits), self.n)
        arc = self.indptr[first].astype(np.int64)
        return first, last, arc, self.indptr[last] - arc

    def _ends(self, order: EpochWindows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Where the arcs of each window's chunk end, and where those of each block begin therein."""
        if not self.stored:
            return ((self.adjacency.indices, self._spans(order.chunks[window.chunk])[2]) for window in order.windows)
        memory = np.empty((2, self._most(order)), self.adjacency.ends_dtype)

        def read(t):
            _, _, arc, arcs = self._spans(order.chunks[order.windows[t].chunk])
            return self.adjacency.read_spans(arc, arcs, memory[t % 2]), np.cumsum(arcs) - arcs

        return ahead(read, len(order), 1)


def deal(u: np.ndarray, v: np.ndarray, lane_of: np.ndarray, bits: int, out: np.ndarray) -> Pairs:
    """Pairs by the lanes of their blocks of 2 ** ``bits`` nodes, in ``out``."""
    begin = np.empty(LANES * LANES + 1, np.int64)
    a, b = out[:, :len(u)]
    kernels.deal(u, v, lane_of, bits, LANES, begin, a, b)
    return Pairs(begin, a, b)


@cache
def _stages(own: bool, threads: int) -> list[list[np.ndarray]]:
    """Tasks stage by stage: the cells that one thread trains on, in order.

    The tasks of a stage have no row in common, and cells that have are in the same order for any number of threads.
    For two threads, turns are joined by halves of the lanes, which meet two turns in a row: there is less to wait for.
    """
    turns = [[[(i, i ^ turn)] for i in range(LANES)] for turn in range(LANES)]
    if own:
        turns[1:] = [[[(i, j), (j, i)] for ((i, j),) in tasks if i < j] for tasks in turns[1:]]
    if threads <= 2:
        joined = [turns[:2]] if own else [turns[:2], turns[2:]]
        turns[:2 * len(joined)] = [[[cell for tasks in some for task in tasks if task[0][0] // 2 == half
                                     for cell in task] for half in range(2)] for some in joined]
    return [[np.array([i * LANES + j for i, j in task]) for task in tasks] for tasks in turns]


class Lane:
    """Steps on the pairs of some cells, one after the other, on rows that no other lane has at the time."""

    def __init__(self, table: EmbeddingTable, model: "NodeEmbedding"):
        batch, k, d = -(-model.batch_size // LANES), model.n_negatives, model.n_components
        places = 2 * batch + -(-batch // GROUP) * k
        self._table, self._vectors = table, model._vectors
        self._scratch = np.empty((4, places + 1), np.int64)
        self._loss, self._factor = np.empty(-(-batch // GROUP)), np.empty((batch, k + 1), np.float32)
        self._gradient = np.empty((places, d), np.float32)

    def train(self, cells: np.ndarray, pairs: Pairs, odds: Odds, key: int, losses: np.ndarray) -> None:
        """Train on the pairs of cells in random order, which they are put in; writes the sums of their losses."""
        table = self._table
        skipgram.train(cells, *pairs, self._vectors, *odds, key, GROUP, *table.places, table.marks, self._scratch,
                       self._loss, self._factor, self._gradient, table.lr, EPS[table.optimizer], table.records, losses)
