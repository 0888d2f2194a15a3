"""Pairs of linked nodes, window by window of a table on disk, and skip-gram steps on them in lanes."""
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from gnncy._kernels import skipgram
from gnncy._kernels.storage import tables as kernels
from gnncy._random import derive, mix64
from gnncy._threads import run_pieces
from gnncy.graph import RandomWalks
from gnncy.storage import GraphStorage
from gnncy.storage._blocks import ahead
from gnncy.storage.tables import EmbeddingTable
from gnncy.storage.tables.table import EPS
from gnncy.storage.tables.windows import LANES, EpochWindows, Window

if TYPE_CHECKING:
    from gnncy.estimators.node_embedding import NodeEmbedding

GROUP = 16  # pairs that share their negatives
POWER = 0.75  # of the degree, for the odds to be a negative
_BLOCKS = 8  # blocks whose arcs one thread takes at a time

Odds = tuple[np.ndarray, np.ndarray, np.ndarray]  # blocks, the sums of their nodes' odds, and the guide to these


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
        total, count = 0.0, 0
        odds: list[Odds] = []
        for t, (window, ends) in enumerate(zip(order.windows, self._ends(order), strict=True)):
            if not table.resident:
                self._bring(order, t)
            if window.own:
                odds = self._odds(order.chunks[window.chunk], odds if window.held else None)
            for part, (u, v) in enumerate(self._drawn(order, window, epoch, ends)):
                total += self.meet(u, v, order.lane_of, odds, window.own, derive(self.seed, "pairs", epoch, t, part))
                count += len(u)
            table.changed(order.blocks(t), 1)
        return total / max(count, 1), count

    def meet(self, u, v, lane_of, odds: list[Odds], own: bool, key: int) -> float:
        """Train on pairs of nodes by the lanes of their blocks, many lanes at a time; the sum of their losses.

        What is trained on at the same time has no row in common: in a turn lane i of the nodes ``u`` meets lane
        i ^ turn of the nodes ``v``. Where these may be of the same chunk (``own``), the pairs of two lanes are trained
        on one after the other.
        """
        a, b = np.empty((2, len(u)), np.int64)
        begin = np.empty(LANES * LANES + 1, np.int64)
        kernels.deal(u, v, lane_of, self.bits, LANES, begin, a, b)
        losses = np.zeros(LANES * LANES)
        for turn in range(LANES):
            meetings = [[(i, i ^ turn)] for i in range(LANES)]
            if own and turn:
                meetings = [[(i, j), (j, i)] for ((i, j),) in meetings if i < j]

            def work(start, stop, meetings=meetings):
                for lane, cells in enumerate(meetings[start:stop], start):
                    for i, j in cells:
                        cell = i * LANES + j
                        some = slice(begin[cell], begin[cell + 1])
                        losses[cell] = self._lanes[lane].train(a[some], b[some], odds[j], mix64(key ^ cell))

            run_pieces(work, len(meetings), 1)
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

    def _odds(self, blocks: np.ndarray, lanes: list[Odds] | None = None) -> list[Odds]:
        """For each lane what negatives are drawn from, its share of some blocks added."""
        lanes = [(blocks[:0], np.empty(0), np.empty(0, np.int32))] * LANES if lanes is None else lanes
        for lane, (before, sums, guide) in enumerate(lanes):
            more = blocks[lane::LANES]
            first = np.minimum((more[:, None] << self.bits) + np.arange(1 << self.bits), self.n)
            last = np.minimum(first + 1, self.n)  # places beyond the last node have no odds
            odds = ((self.indptr[last] - self.indptr[first]) ** POWER).reshape(-1)
            odds[:1] += 1e-9 + sums[-1:].sum()  # never 0 in all, where there are no arcs
            sums = np.concatenate([sums, np.cumsum(odds)])
            guide = np.empty(len(sums), np.int32)
            kernels.guide(sums, guide)
            lanes[lane] = np.concatenate([before, more]), sums, guide
        return lanes

    def _drawn(self, order: EpochWindows, window: Window, epoch: int, ends):
        """The pairs of the chunk's nodes with nodes that are there, in parts."""
        blocks = order.chunks[window.chunk]
        there = np.zeros(len(order.chunks), np.uint8)
        there[list(window.held)] = 1
        chunk = window.chunk if window.own else -1
        key = derive(self.seed, "lot", epoch)
        if self.model.method == "edges":
            yield self._arcs(blocks, ends, order.chunk_of, there, chunk, key)
            return
        nodes = self._nodes(blocks)
        for draw in range(self.model.n_walks):
            walks = self.walker.sample(nodes, epoch=epoch, batch=draw)
            u, v = np.empty((2, walks.shape[0] * (walks.shape[1] - 1)), np.int64)
            count = kernels.walk_pairs(walks, order.chunk_of, there, self.bits, chunk, key + draw, u, v)
            yield u[:count], v[:count]

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
        longest = max(int(self._spans(blocks)[3].sum()) for blocks in order.chunks)
        memory = np.empty((2, longest), self.adjacency.ends_dtype)

        def read(t):
            _, _, arc, arcs = self._spans(order.chunks[order.windows[t].chunk])
            return self.adjacency.read_spans(arc, arcs, memory[t % 2]), np.cumsum(arcs) - arcs

        return ahead(read, len(order), 1)

    def _arcs(self, blocks, ends, chunk_of, there, chunk, key):
        first, last, _, arcs = self._spans(blocks)
        arcs = np.concatenate([[0], np.cumsum(arcs)])
        u, v = np.empty((2, arcs[-1]), np.int64)
        found: dict[int, slice] = {}

        def piece(start, stop):
            some = slice(arcs[start], arcs[stop])
            count = kernels.arc_pairs(self.indptr, ends[0], start, stop, first, last, ends[1], chunk_of, there,
                                      self.bits, chunk, key, u[some], v[some])
            found[start] = slice(arcs[start], arcs[start] + count)

        run_pieces(piece, len(blocks), _BLOCKS)
        parts = [found[start] for start in sorted(found)]
        return np.concatenate([u[part] for part in parts]), np.concatenate([v[part] for part in parts])


class Lane:
    """Steps on pairs, one after the other, on rows that no other lane has at the time."""

    def __init__(self, table: EmbeddingTable, model: "NodeEmbedding"):
        batch, k, d = -(-model.batch_size // LANES), model.n_negatives, model.n_components
        places = 2 * batch + -(-batch // GROUP) * k
        self._table, self._vectors = table, model._vectors
        self._scratch = np.empty((4, places + 1), np.int64)
        self._loss, self._factor = np.empty(batch), np.empty((batch, k + 1), np.float32)
        self._gradient = np.empty((places, d), np.float32)

    def train(self, u: np.ndarray, v: np.ndarray, odds: Odds, key: int) -> float:
        """Train on pairs in the random order that the key names, which they are put in; the sum of their losses."""
        table = self._table
        kernels.shuffle(u, v, key)
        return skipgram.train(u, v, self._vectors, *odds, mix64(key), GROUP, *table.places, table.marks, self._scratch,
                              self._loss, self._factor, self._gradient, table.lr, EPS[table.optimizer], table.records)
