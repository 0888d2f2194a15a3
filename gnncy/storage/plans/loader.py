"""Minibatches of a neighbour sampler with their features, fed by the plan that suits the disk and the memory limit."""
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice

import numpy as np

from gnncy import _memory
from gnncy._check import check_choice, check_ids, check_int
from gnncy._memory import format_bytes, parse_bytes
from gnncy._random import derive, seed_from, stream
from gnncy._threads import current_threads
from gnncy.errors import MemoryLimitError
from gnncy.graph import NeighborSampler, SampledBatch, as_csr, inclusion_probabilities
from gnncy.storage.hyperbatch import HyperbatchResult, HyperbatchStatistics
from gnncy.storage.plans.disk import DEFAULT, DiskModel, calibrate, known_disk
from gnncy.storage.plans.execution import PlanRun, run_plan
from gnncy.storage.plans.model import Accesses, Host, check_inclusion, hottest
from gnncy.storage.plans.plan import PLANS, EpochPlan
from gnncy.storage.plans.planner import Planner
from gnncy.storage.sources import as_storage
from gnncy.storage.topology import GraphStorage, StorageSampler

_PROBES = 8  # minibatches that are drawn to see how many rows they need, and which
_AHEAD = 2  # minibatches that are drawn ahead, where there are threads for that
_TOPOLOGY = 0.4  # of the limit, for sampling from a graph that is on disk
_TABLES = 0.25  # of the limit, at most, for the tables of two threads that draw minibatches at a time
_OVERHEAD = 16_000_000  # bytes for what cannot be counted: objects, stacks of threads, what malloc keeps


class ColdTierLoader:
    """Epochs of minibatches with features, read by whatever plan is predicted to be the fastest.

    Minibatches are drawn by :class:`gnncy.graph.NeighborSampler` from the seeds; they and the rows that come with them
    depend on ``seed`` and the number of the epoch alone: every plan, any memory limit and any number of threads gives
    the same bits as features in memory. The rows that minibatches need most often stay in memory, see
    :func:`gnncy.graph.inclusion_probabilities`.

    Parameters
    ----------
    storage : storage, path-like or array-like, shape (n, dim)
        Anything that :func:`as_storage` takes whose rows are dense; a path is opened, and closed with the loader. An
        array is already in memory and is read from there.
    adjacency : sparse or dense array, shape (n, n), or GraphStorage
        A graph on disk is sampled within the limit too, for which four tenths of it are set aside. Unless it is
        symmetric, ``inclusion`` is needed.
    seeds : array of int, shape (k,), or boolean mask, shape (n,)
        Distinct node ids, each of which is in one minibatch of an epoch.
    fanouts : sequence of int
        Most neighbours of a node at each hop, the seeds' first; -1 takes all.
    batch_size : int
        Seeds in a minibatch; the last one may have fewer.
    memory_limit : int or str
        Bytes that the loader may hold, for example ``"256MB"``. The graph, and the minibatches that the caller keeps,
        come on top.
    plan : {"auto", "A", "B", "C", "D"}
        "auto" takes the fastest, and after an epoch that was predicted badly plans again; see :class:`EpochPlan`.
    seed : int or Generator
        Seed of the order of the seeds and of the draws.
    shuffle : bool
        Draw the seeds in a new order each epoch.
    disk : DiskModel, optional
        What the disk costs; measured once for each device if not given (:func:`calibrate`).
    spill_folder : path-like, optional
        Where plan D may write; beside the storage by default.
    inclusion : array, shape (n,), optional
        Probability of each node to be in a minibatch, where it is known; otherwise it is computed here.
    prefetch : bool
        Read ahead in a thread.
    probes : iterable, optional
        A few minibatches like those that :meth:`read` will be given, from which their size and the time to draw one are
        seen: objects with ``nodes`` and ``nbytes``. Default: the sampler's.

    Attributes
    ----------
    plan : EpochPlan
        What the next epoch is read by.
    planner : Planner
        ``print(loader.planner)`` shows the plans that were compared.
    n_batches : int
        Minibatches of an epoch.

    Raises
    ------
    MemoryLimitError
        If the limit is too small; the message names the least that would do.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.datasets import make_sbm
    >>> from gnncy.storage import ColdTierLoader, FeatureStorage
    >>> data = make_sbm(1000, n_features=16, seed=0)
    >>> store = FeatureStorage.from_array(data.features, "features.npy")
    >>> with store, ColdTierLoader(store, data.adjacency, np.arange(100), fanouts=(5, 5), batch_size=50,
    ...                            memory_limit="64MB") as loader:
    ...     for result in loader.epoch(0):
    ...         print(result.batch_index, result.batch.seeds.shape, result.features.shape[1])
    0 (50,) 16
    1 (50,) 16
    """

    def __init__(self, storage, adjacency, seeds, *, fanouts: Sequence[int] = (10, 10, 10), batch_size: int = 1024,
                 memory_limit: int | str = "256MB", plan: str = "auto", seed=0, shuffle: bool = True,
                 disk: DiskModel | None = None, spill_folder=None, inclusion=None, prefetch: bool = True,
                 probes: Iterable | None = None):
        started = _memory.rss()
        self._prepare(storage, adjacency, seeds, fanouts, batch_size, memory_limit, plan, seed, shuffle, disk,
                      spill_folder, inclusion, calibrate, probes)
        self.prefetch, self._started = bool(prefetch), started
        self._records: list[dict] = []
        self._run: PlanRun | None = None
        self._current: Epoch | None = None
        self._take(self.planner.choose(self._wanted))
        _memory.trim()

    @classmethod
    def estimate(cls, storage, adjacency, seeds, *, fanouts: Sequence[int] = (10, 10, 10), batch_size: int = 1024,
                 memory_limit: int | str = "256MB", plan: str = "auto", seed=0, shuffle: bool = True,
                 disk: DiskModel | None = None, spill_folder=None, inclusion=None) -> Planner:
        """What a loader with these arguments would choose from, without reading or writing a byte of disk.

        Returns
        -------
        Planner
            ``print`` it; ``choose()`` gives the plan. The disk's constants are those of an earlier calibration, or
            assumed ones.
        """
        loader = cls.__new__(cls)
        loader._prepare(storage, adjacency, seeds, fanouts, batch_size, memory_limit, plan, seed, shuffle, disk,
                        spill_folder, inclusion, known_disk)
        loader._close_own()
        return loader.planner

    def _prepare(self, storage, adjacency, seeds, fanouts, batch_size, memory_limit, plan, seed, shuffle, disk,
                 spill_folder, inclusion, measure: Callable[..., DiskModel], probes: Iterable | None = None) -> None:
        """Check the arguments, and plan."""
        on_disk = isinstance(adjacency, GraphStorage)
        self.adjacency = adjacency if on_disk else as_csr(adjacency)
        n = self.adjacency.shape[0]
        self.seeds = check_ids(seeds, n, "seeds")
        if len(self.seeds) == 0:
            raise ValueError("seeds must hold at least one node")
        self.batch_size = check_int(batch_size, "batch_size", 1)
        self.memory_limit = parse_bytes(memory_limit)
        self._wanted = check_choice(plan, "plan", ("auto", *PLANS))
        self.seed, self.shuffle = seed_from(seed), bool(shuffle)
        self.n_batches = -(-len(self.seeds) // self.batch_size)
        key = derive(self.seed, "sample")
        self.sampler: NeighborSampler | StorageSampler
        if on_disk:
            # Minibatches are drawn twice, by two iterations that each sample as many at a time as they may.
            table = int(_TOPOLOGY / 2 * self.memory_limit)
            self.sampler = StorageSampler(adjacency, fanouts, seed=key, memory_limit=table, prefetch=False)
            alone = False
        else:
            self.sampler, table = NeighborSampler(adjacency, fanouts, seed=key), self.adjacency.indices.itemsize * n
            alone = 2 * table > _TABLES * self.memory_limit
        self._held = _OVERHEAD + 24 * len(self.seeds) + (table if alone else 2 * table)
        self._source = _Batches(self.sampler, self.seeds, self.batch_size, self.seed, self.shuffle, alone)
        self._own = isinstance(storage, (str, bytes)) or hasattr(storage, "__fspath__")
        self.storage = as_storage(storage)
        if not hasattr(self.storage, "read_batch") or hasattr(self.storage, "nnz"):
            raise TypeError(f"storage must hold dense rows, got {type(self.storage).__name__}; "
                            f"reduce sparse features to a width of your choice first")
        if self.storage.shape[0] != n:
            raise ValueError(f"storage must hold a row for each of the {n} nodes of adjacency, "
                             f"got {self.storage.shape[0]}")
        self._given = None if inclusion is None else check_inclusion(inclusion)
        path = getattr(self.storage, "path", None)
        if disk is None:
            disk = DEFAULT if path is None else measure(path)
        try:
            probes, seconds = self._probe() if probes is None else _timed(probes)
        except MemoryLimitError as error:
            if not on_disk:
                raise
            raise MemoryLimitError(f"of memory_limit={format_bytes(self.memory_limit)} a part of {format_bytes(table)} "
                                   f"is for sampling, and of that it is said: {error}") from None
        sizes = np.array([len(probe.nodes) for probe in probes])
        # The largest of b draws lies some sqrt(2 log b) standard deviations above the mean.
        spread = 1 + np.sqrt(2 * np.log(self.n_batches + 1))
        largest = min(max(sizes.max(), int(sizes.mean() + spread * sizes.std()) + 1), n)
        # Minibatches without their features: those drawn ahead in both stages, made ahead, and in use.
        self._held += (10 if current_threads() > 1 else 6) * max(map(_nbytes, probes))
        accesses = Accesses.from_inclusion(self._inclusion(), [np.unique(probe.nodes) for probe in probes])
        del probes
        self.planner = Planner(self.storage, accesses, self.n_batches, self.memory_limit, disk=disk,
                               host=Host.measure(self._row_bytes, batch_seconds=seconds), largest=int(largest),
                               held=self._held, spill_folder=spill_folder)

    @property
    def _row_bytes(self) -> int:
        return self.storage.shape[1] * np.dtype(self.storage.dtype).itemsize

    def _inclusion(self) -> np.ndarray:
        if self._given is not None:
            return self._given
        need = 4 * self.adjacency.shape[0] * (len(self.sampler.fanouts) + 2) + 24 * len(self.seeds)
        if need > self.memory_limit:
            raise MemoryLimitError(
                f"memory_limit={format_bytes(self.memory_limit)} is too small: inclusion probabilities of "
                f"{self.adjacency.shape[0]} nodes over {len(self.sampler.fanouts)} hops need {-(-need // 10**6)} MB; "
                f"raise memory_limit to {-(-need // 10**6)}MB or more, or compute them elsewhere and pass inclusion=")
        if isinstance(self.adjacency, GraphStorage):
            return self.adjacency.inclusion_probabilities(self.seeds, self.sampler.fanouts, self.batch_size)
        return inclusion_probabilities(self.adjacency, self.seeds, self.sampler.fanouts, self.batch_size)

    def _probe(self) -> tuple[list[SampledBatch], float]:
        """A few of the first epoch's minibatches, and the seconds to draw one."""
        whole = max(len(self.seeds) // self.batch_size, 1)
        which = np.unique(np.linspace(0, whole - 1, _PROBES).astype(int))
        self._source.draw(0)  # the first call makes a table of all nodes
        probes, seconds = [], []
        for batch in which:
            begun = time.perf_counter()
            probes.append(self._source.draw(int(batch)))
            seconds.append(time.perf_counter() - begun)
        return probes, float(np.median(seconds))

    def _take(self, plan: EpochPlan) -> None:
        """Make ``plan`` the one that the next epochs are read by."""
        self._end_run()
        self.plan = plan
        hot = hottest(self._inclusion(), plan.hot_rows) if plan.name != "A" else None
        own = replace(plan, peak_memory=max(plan.peak_memory - self._held, 0))
        self._run = run_plan(own, self.storage, self._source, hot=hot, disk=self.planner.disk,
                             spill_folder=self.planner.spill_folder, prefetch=self.prefetch)

    def epoch(self, k: int, first: int = 0) -> "Epoch":
        """The minibatches of an epoch, from number ``first`` on.

        Parameters
        ----------
        k : int
        first : int

        Returns
        -------
        Epoch
            Iterating makes one pass and gives a :class:`HyperbatchResult` for each minibatch, whose ``batch`` is the
            :class:`~gnncy.graph.SampledBatch`. It has ``statistics`` and ``close()``. One epoch runs at a time: a newer
            one ends it.
        """
        return Epoch(self, check_int(k, "k", 0), check_int(first, "first", 0, self.n_batches))

    def read(self, batches: Iterable, *, epoch: int | None = None) -> "Epoch":
        """Minibatches of one's own, by the present plan and with its hot rows.

        Parameters
        ----------
        batches : iterable
            What :func:`~gnncy.storage.plans.run_plan` takes. The plan is the better, the more alike they are to the
            ``probes`` in size and in the nodes that they need.
        epoch : int, optional
            Note the pass in the :meth:`report` by this number, as a whole epoch.

        Returns
        -------
        Epoch
        """
        return Epoch(self, None if epoch is None else check_int(epoch, "epoch", 0), 0, batches)

    def report(self) -> list[dict]:
        """What was predicted and what was measured of each whole epoch so far.

        Returns
        -------
        list of dict
            For each epoch ``epoch``, ``plan``; ``seconds``, ``bytes_read``, ``bytes_written``, ``operations`` and
            ``peak_memory`` (above what the process held before the loader was made; never less than an earlier peak
            of the process), each also with ``predicted_`` before it; ``consumer_seconds`` between minibatches, which
            the predicted seconds include; ``stall_share`` of the seconds for which the consumer waited; ``hit_rate``
            of the hot rows; ``prediction_error``, measured over predicted seconds less 1; ``replanned``.
        """
        return [dict(record) for record in self._records]

    def close(self) -> None:
        """End the current epoch, free the hot rows, and close the storage if it was given as a path."""
        self._end_run()
        self._close_own()

    def _start(self, epoch: "Epoch", batches: Iterable) -> Iterator[HyperbatchResult]:
        """Begin the pass of an epoch."""
        if self._run is None:
            raise ValueError("the loader is closed; make a new one")
        self._current = epoch
        self._run.batches = batches
        minibatches = iter(self._run)
        epoch.statistics = self._run.statistics
        return minibatches

    def _stop(self, epoch: "Epoch | None" = None) -> None:
        """End the current pass, if it is that of ``epoch`` or whatever it is."""
        if self._run is not None and (epoch is None or epoch is self._current):
            self._run.close()
            self._source.end()

    def _end_run(self) -> None:
        self._stop()
        self._run = None

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Free the hot rows while other work needs their memory; they are read again at its end."""
        if self._run is None:
            raise ValueError("the loader is closed; make a new one")
        self._end_run()
        try:
            yield
        finally:
            self._take(self.plan)

    def _close_own(self) -> None:
        if self._own:
            self.storage.close()

    def __enter__(self) -> "ColdTierLoader":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __len__(self) -> int:
        return self.n_batches

    def _finish(self, k: int, seconds: float, consumer: float, statistics) -> None:
        """Note a whole epoch; plan again if it was predicted badly."""
        plan, io = self.plan, statistics.io
        predicted = self.planner.seconds(plan, consumer)
        replanned = self.planner.observe(plan, seconds, statistics, consumer=consumer)
        self._records.append({
            "epoch": k, "plan": plan.name, "seconds": seconds, "predicted_seconds": predicted,
            "bytes_read": io.bytes_read, "predicted_bytes_read": plan.bytes_read,
            "bytes_written": io.bytes_written, "predicted_bytes_written": plan.bytes_written,
            "operations": io.operations, "predicted_operations": plan.operations,
            "peak_memory": max(_memory.peak_rss() - self._started, 0), "predicted_peak_memory": plan.peak_memory,
            "consumer_seconds": consumer, "stall_share": statistics.wait_seconds / max(seconds, 1e-9),
            "hit_rate": statistics.hit_rate, "prediction_error": seconds / max(predicted, 1e-9) - 1,
            "replanned": replanned})
        if replanned and (plan := self.planner.choose(self._wanted)) != self.plan:
            self._take(plan)


class Epoch:
    """The minibatches of one epoch of a :class:`ColdTierLoader`; see :meth:`ColdTierLoader.epoch`.

    Attributes
    ----------
    statistics : HyperbatchStatistics
        Of the current or last pass.
    """

    def __init__(self, loader: ColdTierLoader, k: int | None, first: int, batches: Iterable | None = None):
        self._loader, self._k, self._first, self._batches = loader, k, first, batches
        self.statistics = HyperbatchStatistics()

    def close(self) -> None:
        """End the pass and its threads."""
        self._loader._stop(self)

    def __iter__(self) -> Iterator[HyperbatchResult]:
        loader = self._loader
        loader._stop()
        batches, first = self._batches, self._first
        if batches is None:
            batches = source = loader._source
            source.epoch, source.first = self._k or 0, first
        begun, consumer = time.perf_counter(), 0.0
        minibatches = loader._start(self, batches)
        try:
            for result in minibatches:
                given = time.perf_counter()
                yield HyperbatchResult(result.node_ids, result.features, result.batch_index + first, result.batch)
                del result  # not held while the next one is waited for
                consumer += time.perf_counter() - given
        finally:
            self.close()
        if self._k is not None and first == 0:
            loader._finish(self._k, time.perf_counter() - begun, consumer, self.statistics)


class _Batches:
    """The minibatches of an epoch, drawn anew, and the same, by every iteration."""

    def __init__(self, sampler: NeighborSampler | StorageSampler, seeds: np.ndarray, batch_size: int, seed: int,
                 shuffle: bool, alone: bool):
        self.guard = threading.Lock() if alone else nullcontext()  # a thread that draws keeps a table of all nodes
        self.sampler, self.seeds, self.batch_size, self.seed, self.shuffle = sampler, seeds, batch_size, seed, shuffle
        self.epoch = self.first = 0
        self._order: tuple[int, np.ndarray] = (-1, seeds)
        self._pools: list[ThreadPoolExecutor] = []

    def __len__(self) -> int:
        return -(-len(self.seeds) // self.batch_size) - self.first

    def __iter__(self) -> Iterator[SampledBatch]:
        numbers = iter(range(self.first, self.first + len(self)))
        if isinstance(self.sampler, StorageSampler):
            yield from self.sampler.sample_many(map(self.seeds_of, numbers), epoch=self.epoch, first=self.first)
            return
        if current_threads() == 1:
            yield from map(self.draw, numbers)
            return
        pool = ThreadPoolExecutor(1, "gnncy-draw")
        self._pools.append(pool)
        try:
            ahead = deque(pool.submit(self.draw, batch) for batch in islice(numbers, _AHEAD))
            while ahead:
                drawn = ahead.popleft().result()
                ahead.extend(pool.submit(self.draw, batch) for batch in islice(numbers, 1))
                yield drawn
        finally:
            pool.shutdown(cancel_futures=True)

    def end(self) -> None:
        """End the threads of iterations that were left before their end; those cannot go on."""
        while self._pools:
            self._pools.pop().shutdown(cancel_futures=True)

    def draw(self, batch: int) -> SampledBatch:
        """Minibatch number ``batch`` of the epoch."""
        seeds = self.seeds_of(batch)
        with self.guard:
            return self.sampler.sample(seeds, epoch=self.epoch, batch=batch)

    def seeds_of(self, batch: int) -> np.ndarray:
        """Its seeds."""
        if self._order[0] != self.epoch:
            order = stream(self.seed, "order", self.epoch).permutation(self.seeds) if self.shuffle else self.seeds
            self._order = self.epoch, order
        start = batch * self.batch_size
        return self._order[1][start:start + self.batch_size]


def _timed(probes: Iterable) -> tuple[list, float]:
    """Minibatches, and the seconds to draw one."""
    begun = time.perf_counter()
    drawn = list(probes)
    return drawn, (time.perf_counter() - begun) / len(drawn)


def _nbytes(batch) -> int:
    """Bytes of a minibatch without its features."""
    if not isinstance(batch, SampledBatch):
        return batch.nbytes
    arrays = [batch.nodes, *(array for block in batch.blocks for array in (block.indptr, block.indices, block.edges))]
    return sum(array.nbytes for array in arrays if array is not None)
