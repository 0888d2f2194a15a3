"""Minibatches of a graph for contrastive training: anchors, their positives, negatives, edges and features."""
import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from threading import Lock

import numpy as np
from scipy.sparse import csr_array

from gnncy._check import check_array, check_choice, check_ids, check_int
from gnncy._random import derive, seed_from, stream
from gnncy._threads import working_threads
from gnncy.graph import NeighborSampler, RandomWalks, SampledBatch, as_csr
from gnncy.losses import GraphHardNegativeMiner, HardNegativeMiner, MinedNegatives
from gnncy.nn import Module, Tensor, no_grad
from gnncy.nn.ops import concatenate
from gnncy.storage import (
    AdaptiveHotset,
    ColdTierLoader,
    FeatureStorage,
    HyperbatchConfig,
    HyperbatchIterator,
    HyperbatchStatistics,
    as_storage,
)
from gnncy.storage.plans import DiskModel
from gnncy.storage.plans.loader import Epoch

POSITIVES = ("neighbors", "walks", "views")
PROBES = 8  # minibatches that are drawn to see how many rows they need, and which


@dataclass(eq=False)
class GraphBatch:
    """One minibatch of :class:`GraphLoader`; positions in it are rows of what :meth:`GraphLoader.encode` gives.

    Attributes
    ----------
    seeds : ndarray of int64, shape (s,)
        The nodes to be embedded, ascending; row i of the embeddings is node ``seeds[i]``. With two views there are
        2 s rows: the first view of all seeds, then the second.
    anchors, positives : ndarray of int64, shape (b,)
        Rows of the anchors and of their positives.
    samples : tuple of SampledBatch
        Neighbourhoods of the seeds, one a view; empty for encoders of single rows.
    nodes : ndarray of int64
        Whose features are needed.
    adjacency : csr_array
        The whole graph.
    views : int
        1 or 2.
    """

    seeds: np.ndarray
    anchors: np.ndarray
    positives: np.ndarray
    samples: tuple[SampledBatch, ...]
    nodes: np.ndarray
    adjacency: csr_array
    views: int = 1

    @property
    def last_view(self) -> int:
        """The first row of the last view, which holds the positives and what negatives are mined from."""
        return (self.views - 1) * len(self.seeds)

    @property
    def anchor_ids(self) -> np.ndarray:
        """Node ids of the anchors."""
        return self.seeds[self.anchors]

    @property
    def positive_ids(self) -> np.ndarray:
        """Node ids of the positives."""
        return self.seeds[self.positives - self.last_view]

    @property
    def nbytes(self) -> int:
        """Bytes of the minibatch, without features and what is computed when asked for."""
        blocks = [block for sample in self.samples for block in sample.blocks]
        arrays = [self.seeds, self.anchors, self.positives, self.nodes, *(sample.nodes for sample in self.samples),
                  *(array for block in blocks for array in (block.indptr, block.indices, block.edges))]
        return sum(array.nbytes for array in arrays if array is not None)

    @cached_property
    def edges(self) -> csr_array:
        """The part of the graph that lies between the seeds, of shape (s, s)."""
        return csr_array(self.adjacency[self.seeds][:, self.seeds])

    @cached_property
    def false_negatives(self) -> np.ndarray:
        """True where the positive of anchor k is known to be near anchor i; bool of shape (b, b).

        It is a neighbour of the anchor, the anchor itself, or its positive.
        """
        count, positives = len(self.anchors), self.positives - self.last_view
        near, each = self.edges[self.anchors], np.arange(count)
        rows = np.concatenate([np.repeat(each, np.diff(near.indptr)), each, each])
        columns = np.concatenate([near.indices, self.anchors, positives])
        seeds = csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=(count, len(self.seeds)))
        whose = csr_array((np.ones(count, np.float32), (positives, each)), shape=(len(self.seeds), count))
        mask = np.zeros((count, count), bool)
        mask[(seeds @ whose).nonzero()] = True
        return mask


class GraphLoader:
    """Minibatches of a graph for :meth:`Trainer.fit`.

    Every epoch goes once through all anchors in a random order, in minibatches of nearly equal size. Each anchor comes
    with a positive:

    =============== ==================================================================================================
    ``positives``   a node's positive
    =============== ==================================================================================================
    ``"neighbors"`` one of its neighbours
    ``"walks"``     a node of a random walk from it, 1 to ``walk_length`` steps away
    ``"views"``     itself: its features changed twice by ``augment``, and with ``fanouts`` two draws of its neighbours
    =============== ==================================================================================================

    A node without neighbours is its own positive.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
    features : storage, path-like or array, shape (n, d)
        Dense rows, in memory or on disk.
    batch_size : int
        Anchors of a minibatch, at most.
    fanouts : sequence of int, optional
        For encoders of neighbourhoods: see :class:`~gnncy.graph.NeighborSampler`. The model is called as
        ``model(blocks, x)``. Default: for encoders of single rows, called as ``model(x)``.
    positives : {"neighbors", "walks", "views"}
    walk_length : int
        Of ``"walks"``.
    augment : callable, optional
        ``augment(x, key=key)`` gives a random view of rows of features; needed by ``"views"``.
    negatives : HardNegativeMiner or GraphHardNegativeMiner, optional
        Chooses negatives by the present embeddings, among the nodes of the minibatch. Default: all positives of the
        other anchors.
    candidates : int
        With ``negatives``, nodes added to each minibatch for the miner to choose from: uniformly random ones, or, for a
        :class:`~gnncy.losses.GraphHardNegativeMiner`, ends of random walks from the anchors, as long as its ring is
        away.
    exclude_neighbors : bool
        Neighbours of an anchor are no negatives of it.
    anchors : array of int or boolean mask, optional
        Nodes that are trained; all by default.
    difficulty : array of shape (n,), optional
        How hard each node is, in 0..1: see :func:`neighbor_difficulty`. A curriculum trains nodes up to a difficulty.
    buffer_bytes : int or str or HyperbatchConfig
        Memory for reading features, or how to read them in detail.
    hotset : AdaptiveHotset, optional
        Cache of rows that are read, kept over epochs.
    memory_limit : int or str, optional
        Read features by the fastest plan that holds no more than this, in place of ``buffer_bytes`` and ``hotset``:
        see :class:`~gnncy.storage.ColdTierLoader`.
    plan, disk, spill_folder
        With ``memory_limit``, as there.
    prefetch : bool
        Draw and read the next minibatches in a thread. What comes does not depend on it.
    seed : int or Generator
        Seed of all draws. What a minibatch holds depends on it, the epoch and the number of the minibatch alone.

    Notes
    -----
    With a :class:`~gnncy.losses.GraphHardNegativeMiner` the loader keeps a table with a row for each node, of the width
    of the embeddings.

    References
    ----------
    Hamilton, Ying and Leskovec, Inductive representation learning on large graphs, NeurIPS 2017.
    Perozzi, Al-Rfou and Skiena, DeepWalk: online learning of social representations, KDD 2014.
    Zhu et al., Deep graph contrastive representation learning (GRACE), 2020.

    Examples
    --------
    >>> import gnncy
    >>> from gnncy.training import GraphLoader
    >>> data = gnncy.datasets.make_sbm(300, 3, n_features=16, seed=0)
    >>> loader = GraphLoader(data.adjacency, data.features, batch_size=128)
    >>> loader.steps()
    3
    >>> for result in loader.batches(epoch=0):
    ...     batch = result.batch
    ...     arcs = data.adjacency[batch.anchor_ids, batch.positive_ids] > 0
    ...     print(len(batch.anchors), (arcs | (batch.anchor_ids == batch.positive_ids)).all())
    100 True
    100 True
    100 True
    """

    def __init__(self, adjacency, features, *, batch_size: int = 512, fanouts=None, positives: str = "neighbors",
                 walk_length: int = 5, augment: Callable | None = None,
                 negatives: HardNegativeMiner | GraphHardNegativeMiner | None = None, candidates: int = 0,
                 exclude_neighbors: bool = True, anchors=None, difficulty=None,
                 buffer_bytes: int | str | HyperbatchConfig = "64MB", hotset: AdaptiveHotset | None = None,
                 memory_limit: int | str | None = None, plan: str = "auto", disk: DiskModel | None = None,
                 spill_folder=None, prefetch: bool = True, seed=0):
        self.adjacency = as_csr(adjacency)
        n = self.adjacency.shape[0]
        self.features = as_storage(features)
        if self.features.shape[0] != n:
            raise ValueError(f"features must have one row for each of the {n} nodes, got shape {self.features.shape}")
        self.batch_size = check_int(batch_size, "batch_size", 2)
        self.positives = check_choice(positives, "positives", POSITIVES)
        if augment is None and positives == "views":
            raise ValueError("positives='views' needs augment: a function augment(x, key=key) that gives a random view "
                             "of rows, for instance functools.partial(losses.drop_blocks, block=1, rate=0.3)")
        self.augment = augment
        if negatives is not None and not isinstance(negatives, (HardNegativeMiner, GraphHardNegativeMiner)):
            raise TypeError(f"negatives must be a HardNegativeMiner or GraphHardNegativeMiner, got "
                            f"{type(negatives).__name__}")
        self.negatives = negatives
        self.candidates = check_int(candidates, "candidates", 0)
        if candidates and negatives is None:
            raise ValueError("candidates are for a miner to choose from: pass negatives")
        self.exclude_neighbors = bool(exclude_neighbors)
        self.anchors = np.arange(n) if anchors is None else np.unique(check_ids(anchors, n, "anchors"))
        if len(self.anchors) < 2:
            raise ValueError(f"anchors must be at least 2 nodes, got {len(self.anchors)}")
        self.difficulty = None if difficulty is None else _difficulty(difficulty, n)[self.anchors]
        self.config = buffer_bytes if isinstance(buffer_bytes, HyperbatchConfig) else HyperbatchConfig(
            hotset_fraction=0, buffer_bytes=buffer_bytes)
        self.hotset, self.prefetch = hotset, bool(prefetch)
        self.seed = seed_from(seed)
        self.sample_seconds = 0.0  # spent on drawing minibatches since the epoch's begin
        self._sampler = None if fanouts is None else NeighborSampler(self.adjacency, fanouts,
                                                                     seed=derive(self.seed, "neighbors"))
        steps = {"neighbors": 1, "walks": check_int(walk_length, "walk_length", 1), "views": 0}[positives]
        self._walks = RandomWalks(self.adjacency, steps, seed=derive(self.seed, "positives")) if steps else None
        self._table: np.ndarray | None = None
        self._drawing = Lock()  # each thread that draws at the same time would need a table of all nodes
        self._pass: HyperbatchIterator | Epoch | None = None
        self._planned: ColdTierLoader | None = None
        if memory_limit is not None:
            numbers = np.unique(np.linspace(0, self.steps() - 1, PROBES).astype(int))
            probes = map(_Drawn(self, 0, 0, None).draw, numbers.tolist())
            # The step to a positive is a draw of one neighbour; where long walks end hardly depends on their length.
            hops = (1,) * min(max(steps, 1), 8) + tuple(fanouts or ())
            self._planned = ColdTierLoader(
                self.features, self.adjacency, self.anchors, fanouts=hops, batch_size=self.batch_size,
                memory_limit=memory_limit, plan=plan, disk=disk, spill_folder=spill_folder, prefetch=self.prefetch,
                probes=probes)

    @property
    def planned(self) -> ColdTierLoader | None:
        """What reads features within ``memory_limit``: it has the plan, the planner and a report of each epoch."""
        return self._planned

    @property
    def statistics(self) -> HyperbatchStatistics:
        """What the present or last pass over the features did."""
        return HyperbatchStatistics() if self._pass is None else self._pass.statistics

    def close(self) -> None:
        """End the present pass and let go of the rows that are held in memory."""
        if self._pass is not None:
            self._pass.close()
        if self._planned is not None:
            self._planned.close()

    # -- what an epoch is made of

    def included(self, difficulty: float | None = None) -> np.ndarray:
        """The anchors up to a difficulty, at least two; all without one."""
        if difficulty is None or self.difficulty is None:
            return self.anchors
        easy = self.difficulty <= difficulty
        if easy.sum() < 2:
            easy[np.argsort(self.difficulty, kind="stable")[:2]] = True
        return self.anchors[easy]

    def steps(self, difficulty: float | None = None) -> int:
        """Minibatches of an epoch of the anchors up to a difficulty."""
        count = len(self.included(difficulty))
        return min(-(-count // self.batch_size), count // 2)

    def batches(self, epoch: int, first: int = 0, difficulty: float | None = None
                ) -> HyperbatchIterator | Epoch:
        """The minibatches of an epoch, with features.

        Parameters
        ----------
        epoch : int
            Key of the draws.
        first : int
            Number of the minibatch to begin with.
        difficulty : float, optional
            Of the hardest anchors.

        Returns
        -------
        HyperbatchIterator or Epoch
            Of results whose ``batch`` is a :class:`GraphBatch`, and whose ``features`` are those of its ``nodes``.
            With ``memory_limit`` one pass runs at a time: a newer one ends it.
        """
        self.sample_seconds = 0.0
        whole = first == 0 and self.steps(difficulty) == self.steps()
        return self._read(_Drawn(self, epoch, first, difficulty), epoch if whole else None)

    def minibatch(self, number: int, epoch: int = 0) -> GraphBatch:
        """One minibatch of an epoch, without features.

        Parameters
        ----------
        number : int
        epoch : int
        """
        return _Drawn(self, epoch, 0, None).draw(check_int(number, "number", 0, self.steps() - 1))

    def _read(self, batches: Iterable[GraphBatch], epoch: int | None = None) -> HyperbatchIterator | Epoch:
        """Features of minibatches; ``epoch`` if they are a whole one, as it was planned."""
        if self._planned is not None:
            self._pass = self._planned.read(batches, epoch=epoch)
        else:
            config = self.config if self.prefetch else replace(self.config, prefetch_factor=1)
            self._pass = config.iterate(self.features, batches, self.hotset)
        return self._pass

    def _batch(self, anchors: np.ndarray, epoch: int, number: int) -> GraphBatch:
        positives = anchors if self._walks is None else self._positives(self._walks, anchors, epoch, number)
        seeds, place = np.unique(np.concatenate([anchors, positives, self._candidates(anchors, epoch, number)]),
                                 return_inverse=True)
        rows, others = place[:len(anchors)], place[len(anchors):2 * len(anchors)]
        views = 2 if self._walks is None else 1
        samples = () if self._sampler is None else tuple(
            self._sampler.sample(seeds, epoch=epoch, batch=views * number + view) for view in range(views))
        nodes = np.concatenate([sample.nodes for sample in samples]) if samples else seeds
        return GraphBatch(seeds, rows, others + (views - 1) * len(seeds), samples, nodes, self.adjacency, views)

    def _positives(self, walks: RandomWalks, anchors: np.ndarray, epoch: int, number: int) -> np.ndarray:
        visited = walks.sample(anchors, epoch=epoch, batch=number)
        steps = stream(self.seed, "steps", epoch, number).integers(1, walks.length + 1, len(anchors))
        chosen = visited[np.arange(len(anchors)), steps]
        return np.where(chosen == anchors, visited[:, 1], chosen)  # a walk may come back

    def _candidates(self, anchors: np.ndarray, epoch: int, number: int) -> np.ndarray:
        if not self.candidates:
            return anchors[:0]
        draw = stream(self.seed, "candidates", epoch, number)
        if not isinstance(self.negatives, GraphHardNegativeMiner):
            return draw.integers(0, self.adjacency.shape[0], self.candidates)
        low, high = self.negatives.min_distance, self.negatives.max_distance
        walks = RandomWalks(self.adjacency, high, -(-self.candidates // len(anchors)), seed=derive(self.seed, "ring"))
        # By number, so that each anchor has its first walk before any has its second.
        visited = walks.sample(anchors, epoch=epoch, batch=number).reshape(len(anchors), walks.n_walks, high + 1)
        visited = visited.transpose(1, 0, 2).reshape(-1, high + 1)[:self.candidates]
        return visited[np.arange(len(visited)), draw.integers(low, high + 1, len(visited))]

    # -- what a step does with a minibatch

    def encode(self, model: Module, batch: GraphBatch, features: np.ndarray, key: int | None = None) -> Tensor:
        """Embeddings of a minibatch's seeds, with two views twice as many.

        Parameters
        ----------
        model : Module
        batch : GraphBatch
        features : array, shape (len(batch.nodes), d)
        key : int, optional
            Of the augmentation; without one there is none.

        Returns
        -------
        Tensor
        """
        if not batch.samples:
            return model(Tensor(np.concatenate([self._view(features, key, view) for view in range(batch.views)])))
        out, start = [], 0
        for view, sample in enumerate(batch.samples):
            rows = self._view(features[start:start + len(sample.nodes)], key, view)
            out.append(model(sample.blocks, Tensor(rows)))
            start += len(sample.nodes)
        return out[0] if len(out) == 1 else concatenate(out)

    def _view(self, rows: np.ndarray, key: int | None, view: int) -> np.ndarray:
        return rows if self.augment is None or key is None else self.augment(rows, key=derive(key, "view", view))

    def mine(self, batch: GraphBatch, embeddings: np.ndarray, *, n_negatives: int | None = None, key: int = 0
             ) -> MinedNegatives:
        """Negatives of a minibatch's anchors, by the loader's miner, else uniform among its nodes.

        Parameters
        ----------
        batch : GraphBatch
        embeddings : array
            From :meth:`encode`.
        n_negatives : int, optional
            In place of the miner's.
        key : int
            Of the draws.

        Returns
        -------
        MinedNegatives
            ``indices`` are rows of ``embeddings``.
        """
        miner = copy.copy(self.negatives) or HardNegativeMiner("random", seed=derive(self.seed, "negatives"))
        if n_negatives is not None:
            miner.n_negatives = n_negatives
        begin = batch.last_view
        rows = embeddings[begin:begin + len(batch.seeds)]
        ids = batch.anchor_ids
        if isinstance(miner, HardNegativeMiner):
            mined = miner.mine(embeddings[batch.anchors], embeddings[batch.positives], rows, anchor_ids=ids,
                               positive_ids=batch.positive_ids, candidate_ids=batch.seeds, key=key,
                               exclude=self.adjacency if self.exclude_neighbors else None)
            indices = mined.indices
        else:
            table = self._rows_by_node(rows)
            table[batch.seeds] = rows
            try:
                mined = miner.mine(table, ids, positive_ids=batch.positive_ids, key=key)
            finally:
                table[batch.seeds] = np.nan
            indices = np.searchsorted(batch.seeds, mined.indices)
        return MinedNegatives(np.where(mined.mask, indices + begin, -1), mined.mask, mined.similarities, mined.n_hard)

    def _rows_by_node(self, rows: np.ndarray) -> np.ndarray:
        """A table of nan, which the miner passes over."""
        shape = (self.adjacency.shape[0], rows.shape[1])
        if self._table is None or self._table.shape != shape or self._table.dtype != rows.dtype:
            self._table = np.full(shape, np.nan, rows.dtype)
        return self._table

    def embed(self, model: Module, nodes=None, *, path=None, n_jobs: int | None = None):
        """Embeddings of nodes, without augmentation.

        Parameters
        ----------
        model : Module
            Called as in training.
        nodes : array of int or boolean mask, optional
            Distinct nodes; all by default.
        path : path-like, optional
            Write the embeddings there, a minibatch at a time; a file that is there is replaced.
        n_jobs : int, optional
            Threads, as in :meth:`Trainer.fit`.

        Returns
        -------
        ndarray, shape (k, d), or with ``path`` a FeatureStorage
            With ``fanouts`` by one fixed draw of neighbours.
        """
        n = self.adjacency.shape[0]
        ids = np.arange(n) if nodes is None else check_ids(nodes, n, "nodes")
        if len(ids) == 0:
            raise ValueError("nodes must hold at least one node")
        training = model.training
        model.eval()
        try:
            with working_threads(n_jobs), no_grad(), closing(self._read(_Seeds(self, ids))) as read:
                parts = (self.encode(model, result.batch, result.features).data for result in read)
                if path is None:
                    return np.concatenate(list(parts))
                first = next(parts)
                return FeatureStorage.from_blocks(path, (len(ids), first.shape[1]), chain([first], parts),
                                                  dtype=first.dtype, overwrite=True)
        finally:
            model.train(training)


class _Seeds:
    """All nodes of a list in minibatches, without pairs, to be embedded."""

    def __init__(self, loader: GraphLoader, ids: np.ndarray):
        self.loader, self.ids = loader, ids

    def __iter__(self) -> Iterator[GraphBatch]:
        loader, none = self.loader, self.ids[:0]
        for number, first in enumerate(range(0, len(self.ids), loader.batch_size)):
            seeds = self.ids[first:first + loader.batch_size]
            with loader._drawing:
                samples = () if loader._sampler is None else (loader._sampler.sample(seeds, batch=number),)
            yield GraphBatch(seeds, none, none, samples, samples[0].nodes if samples else seeds, loader.adjacency)


class _Drawn:
    """The minibatches of an epoch, drawn anew, and the same, by every iteration."""

    def __init__(self, loader: GraphLoader, epoch: int, first: int, difficulty: float | None):
        self.loader, self.epoch, self.first, self.steps = loader, epoch, first, loader.steps(difficulty)
        self.order = stream(loader.seed, "order", epoch).permutation(loader.included(difficulty))

    def __iter__(self) -> Iterator[GraphBatch]:
        return map(self.draw, range(self.first, self.steps))

    def draw(self, number: int) -> GraphBatch:
        """Minibatch ``number`` of the epoch."""
        count = len(self.order)
        anchors = self.order[number * count // self.steps:(number + 1) * count // self.steps]
        with self.loader._drawing:
            began = time.perf_counter()
            batch = self.loader._batch(anchors, self.epoch, number)
            self.loader.sample_seconds += time.perf_counter() - began
        return batch


def _difficulty(difficulty, n: int) -> np.ndarray:
    array = check_array(difficulty, "difficulty", ndim=1, dtype=np.float64)
    if len(array) != n or array.min() < 0 or array.max() > 1:
        raise ValueError(f"difficulty must have one number in 0..1 for each of the {n} nodes, got shape {array.shape} "
                         f"with {array.min():g} to {array.max():g}; scale it, for example by rank: "
                         "scipy.stats.rankdata(x) / len(x)")
    return array
