"""Which way to read an epoch: the best of each plan within the memory limit, what was measured, and planning again."""
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gnncy._check import check_choice, check_float, check_int
from gnncy._memory import format_bytes, parse_bytes
from gnncy._threads import current_threads, usable_cpus
from gnncy.errors import MemoryLimitError
from gnncy.storage._blocks import MAX_RUN, PAGE, IOStatistics
from gnncy.storage.plans import model
from gnncy.storage.plans.disk import DEFAULT, DiskModel, calibrate
from gnncy.storage.plans.execution import RowFile, peak_memory
from gnncy.storage.plans.execution.repack import CHUNK, IN_FLIGHT
from gnncy.storage.plans.model import IO, Accesses, Host
from gnncy.storage.plans.plan import PLANS, EpochPlan
from gnncy.storage.sources import ArrayStorage, as_storage

WRONG = 1.5
"""Measured over predicted seconds, or the other way round, from which an epoch is planned again."""

SHORT = 0.1
"""Seconds below which a wrong prediction does not matter."""

EPOCHS = 10
"""Epochs over which the reading of the hot rows is spread when plans are compared."""

_SHARES = 16  # ways to divide memory between hot rows and a hyperbatch
_WINDOWS = 64  # windows of an epoch that plan D is tried with, at most
_EXTENTS = tuple(PAGE << k for k in range(0, 7, 2))  # bytes of one write of plan D
_TASK_SECONDS = 2e-4  # of a processor for each read or write that plan D hands to a thread
_MARGIN = 1.02  # more distinct rows than expected that a window still has room for
_FREE = 0.9  # of the free disk space that the temporary file may take


@dataclass(frozen=True)
class Observation:
    """An epoch that was measured.

    Attributes
    ----------
    plan : EpochPlan
    predicted, seconds : float
        What was expected, and what it took.
    bytes_read, bytes_written, operations : int
        What the storage counted.
    """

    plan: EpochPlan
    predicted: float
    seconds: float
    bytes_read: int
    bytes_written: int
    operations: int

    @property
    def error(self) -> float:
        """Measured over predicted seconds, less 1."""
        return self.seconds / max(self.predicted, 1e-9) - 1


class _Division(NamedTuple):
    """How a plan divides its memory; the extent matters in plan D only."""

    name: str
    hot: int
    window: int
    extent: int = PAGE


class Planner:
    """Chooses how to read an epoch of minibatches under a memory limit.

    Predicts seconds, bytes, operations and peak memory of each plan from how often rows are needed and from what the
    disk costs, before a row is read; and corrects itself by what epochs really took.

    Parameters
    ----------
    storage : storage or array-like, shape (n, dim)
        Where the rows are; only its shape, dtype and path are looked at.
    inclusion : array, shape (n,), or Accesses
        Probability of each node to be in a minibatch, from :func:`gnncy.graph.inclusion_probabilities`.
    n_batches : int
        Minibatches of an epoch.
    memory_limit : int or str
        Bytes that the plan may hold, for example ``"256MB"``.
    disk : DiskModel, optional
        Measured where the storage is if not given (see :func:`calibrate`).
    host : Host, optional
        What the processor needs.
    largest : int, optional
        Rows of the largest minibatch; a quarter more than the mean by default.
    held : int
        Bytes of the limit that the caller holds itself.
    spill_folder : path-like, optional
        Where plan D may write, beside the storage by default; it uses at most nine tenths of the free space.

    Attributes
    ----------
    accesses : Accesses
    disk : DiskModel
        As corrected by what was observed.
    history : list of Observation

    Raises
    ------
    MemoryLimitError
        If no plan keeps within the limit; the message names the least that would do.

    References
    ----------
    Liu et al., DiskGNN: bridging I/O efficiency and model accuracy for out-of-core GNN training, SIGMOD 2025 (a search
    over the division of memory). Jang et al., AGNES, KDD 2026 (many minibatches share a pass).

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage.plans import DiskModel, Planner
    >>> rng = np.random.default_rng(0)
    >>> planner = Planner(np.zeros((100_000, 32), np.float32), rng.random(100_000) ** 4 / 10, n_batches=50,
    ...                   memory_limit="48MB", disk=DiskModel(14e-6, 3.5e9, 2.6e9))
    >>> planner.choose().name
    'A'
    """

    def __init__(self, storage, inclusion, n_batches: int, memory_limit: int | str, *, disk: DiskModel | None = None,
                 host: Host | None = None, largest: int | None = None, held: int = 0, spill_folder=None):
        self.storage = as_storage(storage)
        self.n, self.dim = (int(size) for size in self.storage.shape)
        self.accesses = inclusion if isinstance(inclusion, Accesses) else Accesses.from_inclusion(inclusion)
        if round(self.accesses.rows) != self.n:
            raise ValueError(f"inclusion must hold one probability for each of the {self.n} rows, "
                             f"got {self.accesses.rows:.0f}")
        self.batches = check_int(n_batches, "n_batches", 1)
        self.limit = parse_bytes(memory_limit)
        self.in_memory = isinstance(self.storage, ArrayStorage)
        path = getattr(self.storage, "path", None)
        self.disk = disk or (DEFAULT if path is None else calibrate(path))
        self.host, self.threads = host or Host(), current_threads()
        mean = self.accesses.per_batch
        self.largest = min(self.n, int(1.25 * mean) + 1 if largest is None else check_int(largest, "largest", 1))
        self.held = check_int(held, "held", 0)
        if spill_folder is None and path is not None:
            spill_folder = Path(path).parent
        self.spill_folder = None if spill_folder is None else Path(spill_folder)
        self.free = 0 if self.spill_folder is None else int(_FREE * shutil.disk_usage(self.spill_folder).free)
        self.row_bytes = self.dim * np.dtype(getattr(self.storage, "file_dtype", self.storage.dtype)).itemsize
        self.history: list[Observation] = []
        if not self.candidates():
            raise self._too_small("ABCD")

    def candidates(self) -> list[EpochPlan]:
        """The best plan of each kind that keeps within the limit, the fastest first."""
        plans = [plan for name in PLANS if (plan := self._best(name)) is not None]
        return sorted(plans, key=self._price)

    def choose(self, name: str = "auto") -> EpochPlan:
        """The fastest plan, or the best of one kind.

        Parameters
        ----------
        name : {"auto", "A", "B", "C", "D"}

        Raises
        ------
        MemoryLimitError
            If that kind does not keep within the limit.
        """
        if check_choice(name, "name", ("auto", *PLANS)) == "auto":
            return self.candidates()[0]
        plan = self._best(name)
        if plan is None:
            raise self._too_small(name)
        return plan

    def seconds(self, plan: EpochPlan, consumer: float = 0.0) -> float:
        """Seconds of an epoch by this plan, if its consumer computes for ``consumer`` seconds beside."""
        return self._predict(self._division(plan), consumer)

    def start_seconds(self, plan: EpochPlan) -> float:
        """Seconds to read the hot rows, once before the first epoch."""
        if self.in_memory:
            return 0.0
        return model.gathered(plan.hot_rows, self.n, self.row_bytes, self.disk).seconds(self.disk)

    def io_seconds(self, plan: EpochPlan) -> float:
        """Seconds that the disk needs for an epoch by this plan."""
        return sum(self._disk_seconds(self._division(plan)))

    def compute_seconds(self, plan: EpochPlan) -> float:
        """Seconds that a processor needs to draw an epoch's minibatches and to bring their rows into place."""
        return sum(self._work(self._division(plan)))

    def observe(self, plan: EpochPlan, seconds: float, statistics=None, *, consumer: float = 0.0) -> bool:
        """Note what an epoch took; where that is far from the prediction, correct the constants.

        Parameters
        ----------
        plan : EpochPlan
            What was run, as this planner gave it.
        seconds : float
            What the epoch took.
        statistics : HyperbatchStatistics, optional
            What was read.
        consumer : float
            Seconds of them that whoever used the minibatches computed.

        Returns
        -------
        bool
            Whether the prediction was off by more than a factor of 1.5. Then the constants of the disk, or those of
            the processor where it was predicted to be the slower one, are scaled by what was measured, and
            :meth:`candidates` and :meth:`choose` plan anew.
        """
        seconds = check_float(seconds, "seconds", above=0)
        io = getattr(statistics, "io", None) or IOStatistics()
        predicted = self.seconds(plan, check_float(consumer, "consumer", 0))
        self.history.append(Observation(plan, predicted, seconds, io.bytes_read, io.bytes_written, io.operations))
        ratio = seconds / max(predicted, 1e-9)
        if 1 / WRONG <= ratio <= WRONG or abs(seconds - predicted) < SHORT:
            return False
        if self.io_seconds(plan) >= self.compute_seconds(plan):
            self.disk = replace(self.disk, operation_seconds=self.disk.operation_seconds * ratio,
                                read_bandwidth=max(self.disk.read_bandwidth / ratio, 1),
                                write_bandwidth=max(self.disk.write_bandwidth / ratio, 1))
        else:
            self.host = Host(self.host.row_seconds * ratio, self.host.copy_bandwidth / ratio,
                             self.host.batch_seconds * ratio)
        return True

    # Predicting

    def _price(self, plan: EpochPlan) -> float:
        return plan.seconds + self.start_seconds(plan) / EPOCHS

    def _best(self, name: str) -> EpochPlan | None:
        """The fastest division of memory between hot rows and a window that keeps within the limit."""
        plans = (self._plan(division) for division in self._divisions(name))
        return min(filter(None, plans), key=self._price, default=None)

    def _divisions(self, name: str) -> Iterator[_Division]:
        if self.in_memory:
            if name == "A":
                yield _Division("A", 0, self.batches)
        elif name == "A":
            yield _Division("A", self.n, self.batches)
        elif name == "B":
            yield self._hottest(_Division("B", 0, 1))
        elif name == "C":
            most = self._hottest(_Division("C", 0, 1)).hot
            for hot in sorted({min(self.n * k // _SHARES, most) for k in range(_SHARES + 1)}):
                widest = self._widest(_Division("C", hot, 1))
                # One pass for the whole epoch would leave nothing to read while it is used.
                for window in sorted({min(widest.window, -(-self.batches // k)) for k in range(1, 5)}):
                    yield widest._replace(window=window)
        else:
            for window in sorted({-(-self.batches // k) for k in range(1, min(self.batches, _WINDOWS) + 1)}):
                for extent in _EXTENTS:
                    yield self._hottest(_Division("D", 0, window, extent))

    def _hottest(self, division: _Division) -> _Division:
        """The same with as many hot rows as there is room for."""
        return division._replace(hot=_largest(lambda hot: self._fits(division._replace(hot=hot)), self.n))

    def _widest(self, division: _Division) -> _Division:
        """The same with as many minibatches in a window as there is room for."""
        return division._replace(window=_largest(lambda w: self._fits(division._replace(window=w)), self.batches))

    def _fits(self, division: _Division) -> bool:
        return self._memory(division) <= self.limit

    def _plan(self, division: _Division) -> EpochPlan | None:
        spill = self._spill(division)
        if division.window < 1 or not self._fits(division) or spill > self.free:
            return None
        passes, written, back = self._passes(division)
        io = passes + written + back
        return EpochPlan(division.name, division.hot, division.window, self._predict(division), round(io.bytes_read),
                         round(io.bytes_written), round(io.operations), self._memory(division), spill)

    def _division(self, plan: EpochPlan) -> _Division:
        """That of a plan; its memory has room for the largest extent that it writes."""
        division = _Division(plan.name, plan.hot_rows, plan.window)
        wider = (division._replace(extent=extent) for extent in _EXTENTS)
        return max((d for d in wider if self._memory(d) <= plan.peak_memory), default=division)

    def _predict(self, division: _Division, consumer: float = 0.0) -> float:
        """Seconds of two stages: what brings rows to where they are needed, and what makes minibatches of them."""
        scanning, writing, back = self._disk_seconds(division)
        drawing, listing, copying, making = self._work(division)
        if division.name == "A":
            first, second = 0.0, max(drawing, making) if self.threads > 1 else drawing + making
        else:  # minibatches are drawn once for each stage, in a thread of its own if there are any
            each = drawing / 2
            first, second = (max(each, work) if self.threads > 1 else each + work for work in (listing, making))
            first += max(scanning + writing, copying)
        seconds = model.overlap(first, max(second, back, consumer), -(-self.batches // division.window))
        return max(seconds, (drawing + listing + copying + making + consumer) / usable_cpus())

    def _work(self, division: _Division) -> tuple[float, float, float, float]:
        """Seconds of a processor: minibatches drawn, their rows listed, rows copied to extents and to minibatches."""
        host, rows = self.host, self.batches * self.accesses.per_batch
        drawing, handling = self.batches * host.batch_seconds, rows * host.row_seconds
        making = handling + host.copy_seconds(rows * self.row_bytes)
        if division.name == "A":
            return drawing, 0.0, 0.0, making
        copying = 0.0
        if division.name == "D":
            chunks = self.n * self.row_bytes / _chunk(division) * -(-self.batches // division.window)
            packed = self.batches * self._cold(division).per_batch * self.row_bytes
            pieces = packed / min(MAX_RUN, 16 * division.extent)
            copying = host.copy_seconds(packed) + (chunks + pieces) * _TASK_SECONDS
            making += pieces * _TASK_SECONDS
        return 2 * drawing, handling, copying, making

    def _cold(self, division: _Division) -> Accesses:
        return self.accesses.without(division.hot)

    def _passes(self, division: _Division) -> tuple[IO, IO, IO]:
        """Input and output of an epoch: passes over the file, rows written to extents, and read back."""
        if division.name == "A" or self.in_memory:
            return IO(), IO(), IO()
        cold, file = self._cold(division), (self.n, self.row_bytes, self.disk)
        if division.name != "D":
            return model.hyperbatches(cold, self.batches, division.window, lambda rows: model.gathered(rows, *file)), \
                IO(), IO()
        scans = model.hyperbatches(cold, self.batches, division.window,
                                   lambda rows: model.scanned(rows, *file, _chunk(division)))
        return scans, *model.repacked(cold, self.row_bytes, self.batches, division.extent)

    def _disk_seconds(self, division: _Division) -> tuple[float, float, float]:
        """Seconds of the disk for each of these."""
        passes, written, back = self._passes(division)
        disk = self.disk
        if division.name == "D":  # a scan has fewer reads in flight, which counts where it skips most of the file
            slower = max(1.0, disk.threads / IN_FLIGHT)
            disk = replace(disk, operation_seconds=disk.operation_seconds * slower)
        return passes.seconds(disk), written.seconds(self.disk), back.seconds(self.disk)

    def _spill(self, division: _Division) -> int:
        """Bytes of the temporary files: one window is written while another is read."""
        if division.name != "D":
            return 0
        at_once = 1 if division.window >= self.batches else 2
        return int(at_once * division.window * (self._cold(division).per_batch * self.row_bytes + PAGE))

    def _memory(self, division: _Division) -> int:
        if self.in_memory:
            return self.held
        name, hot, window, extent = division
        cold = self._cold(division)
        if name == "D":
            rows = cold.per_batch
        else:
            rows = self.largest if window == 1 else _MARGIN * cold.distinct(window)
        return self.held + peak_memory(name, n_nodes=self.n, row_bytes=self.row_bytes, batch_rows=self.largest,
                                       hot_rows=hot, window=window, cold_rows=int(rows), extent=extent,
                                       feature_bytes=self.dim * np.dtype(self.storage.dtype).itemsize,
                                       io_threads=RowFile(self.storage, self.disk).threads())

    def least(self, name: str) -> int:
        """The least memory limit, in bytes, that a kind of plan does with."""
        return self._memory(_Division(name, self.n, self.batches) if name == "A" else _Division(name, 0, 1))

    def _too_small(self, names: str) -> MemoryLimitError:
        if self.in_memory:
            return MemoryLimitError(f"plan {names} reads from disk, and the rows are in memory: choose plan 'A'")
        need = -(-min(self.least(name) for name in names) // 10**6)
        what = f"plan {names}" if len(names) == 1 else "every plan"
        return MemoryLimitError(f"memory_limit={format_bytes(self.limit)} is too small for {what}: minibatches of up "
                                f"to {self.largest} rows of {self.row_bytes} bytes need at least {need} MB; raise "
                                f"memory_limit to {need}MB or more, or make minibatches smaller")

    def __str__(self) -> str:
        rows = model.row_reads(self.batches * self.accesses.per_batch, self.row_bytes)
        head = (f"memory limit {format_bytes(self.limit)}, disk {self.disk}; {self.batches} minibatches of "
                f"{self.accesses.per_batch:.0f} rows (read one by one: {rows.seconds(self.disk):.3g} s)")
        table = [["plan", "", "hot rows", "window", "seconds", "disk", "cpu", "read", "written", "operations", "memory",
                  "spill"]]
        for plan in self.candidates():
            seconds = plan.seconds, self.io_seconds(plan), self.compute_seconds(plan)
            sizes = plan.peak_memory, plan.spill_bytes
            table.append([plan.name, PLANS[plan.name], str(plan.hot_rows), str(plan.window),
                          *(f"{s:.3g}" for s in seconds), format_bytes(plan.bytes_read),
                          format_bytes(plan.bytes_written), str(plan.operations), *map(format_bytes, sizes)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(text.ljust(width) if k < 2 else text.rjust(width)
                           for k, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in table]
        return "\n".join([head, *lines])


def _chunk(division: _Division) -> int:
    """Bytes that a scan reads at a time."""
    return min(CHUNK, 16 * division.extent)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 0 .. ``most`` that fits, where all smaller ones do; 0 even if it does not."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
