"""Plans as they are run: passes over the minibatches, and what stays between them."""
from collections.abc import Iterable, Iterator

from gnncy._check import check_ids
from gnncy.storage.hyperbatch import HyperbatchResult, HyperbatchStatistics
from gnncy.storage.plans.disk import DiskModel, known_disk
from gnncy.storage.plans.execution.passes import Pass
from gnncy.storage.plans.execution.rows import HotRows, RowFile
from gnncy.storage.plans.execution.spill import SpillFile
from gnncy.storage.plans.plan import EpochPlan


def run_plan(plan: EpochPlan, storage, batches: Iterable, *, hot=None, disk: DiskModel | None = None, spill_folder=None,
             prefetch: bool = True) -> "PlanRun":
    """Feed minibatches in the way that a plan says.

    Every plan gives the same minibatches in the same order, bit for bit.

    Parameters
    ----------
    plan : EpochPlan
        ``hot_rows`` and ``window`` are taken from it, and ``peak_memory`` is what buffers have to fit into: a window
        that would take more ends before.
    storage : storage or array-like, shape (n_nodes, dim)
        Anything that :func:`as_storage` takes whose rows are dense; plan D needs a :class:`FeatureStorage`.
    batches : iterable
        For each minibatch an array of node ids, or an object with such an array as ``nodes``. Plans B, C and D draw
        each minibatch twice, once to plan the reading and once to use it, so that sampled minibatches need not be kept;
        what cannot be iterated twice (a generator) is kept for a window.
    hot : HotRows or array of int, optional
        Rows that are held in memory, or the nodes they belong to, the first ``plan.hot_rows`` of which are. A
        :class:`HotRows` is shared with other runs, so that it is read once. By default the first rows of the file;
        plan A holds all.
    disk : DiskModel, optional
        What the disk costs; by default that of an earlier calibration.
    spill_folder : path-like, optional
        Where plan D puts its temporary file; the folder of the storage by default.
    prefetch : bool
        Read ahead in threads; False reads when a minibatch is asked for.

    Returns
    -------
    PlanRun

    Raises
    ------
    MemoryLimitError
        While it is iterated, if a minibatch does not fit into ``plan.peak_memory``.
    StorageError
        If the storage cannot be read, or the temporary file does not fit on the disk.
    ValueError
        If a minibatch is another one when it is drawn again.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage.plans import EpochPlan, run_plan
    >>> x = np.arange(8, dtype=np.float32).reshape(4, 2)
    >>> plan = EpochPlan("C", hot_rows=1, window=2, seconds=0, bytes_read=0, bytes_written=0, operations=0,
    ...                  peak_memory=10_000_000)
    >>> [result.features.tolist() for result in run_plan(plan, x, [[3, 0], [1]])]
    [[[6.0, 7.0], [0.0, 1.0]], [[2.0, 3.0]]]
    """
    return PlanRun(plan, storage, batches, hot=hot, disk=disk, spill_folder=spill_folder, prefetch=prefetch)


class PlanRun:
    """Minibatches with their features, in order; made by :func:`run_plan`. Each ``iter()`` makes one pass.

    Leaving the loop, an error or :meth:`close` ends all threads and removes temporary files before it returns. After a
    whole pass plan D's files stay for the next one, which writes to them twice as fast as to new ones. Errors in
    threads are raised in the loop, after the minibatches that were read before them.

    Attributes
    ----------
    plan : EpochPlan
    hot : HotRows
        Rows held in memory, over passes.
    statistics : HyperbatchStatistics
        Of the current or last pass.
    """

    def __init__(self, plan: EpochPlan, storage, batches: Iterable, *, hot=None, disk: DiskModel | None = None,
                 spill_folder=None, prefetch: bool = True):
        self.plan, self.batches, self.prefetch = plan, batches, bool(prefetch)
        self.file = RowFile(storage, disk)
        if plan.name == "D" and not self.file.is_file:
            raise TypeError(f"plan D scans a file, the storage is of type {type(self.file.storage).__name__}; write "
                            f"one with FeatureStorage.from_array, or take another plan")
        self.disk = disk or known_disk(self.file.path if self.file.is_file else ".")
        self.spill_folder = spill_folder
        if not isinstance(hot, HotRows):
            if plan.name == "A":
                hot = None
            elif hot is None:
                hot = plan.hot_rows
            else:
                hot = check_ids(hot, self.file.n, "hot")[:plan.hot_rows]
            hot = HotRows(self.file, hot)
        elif hot.rows.shape[1:] != (self.file.dim,) or len(hot.words) != -(-self.file.n // 64):
            raise ValueError("hot holds rows of another storage")
        self.hot = hot
        if plan.name == "A" and len(hot) != self.file.n:
            raise ValueError(f"plan A holds all {self.file.n} rows in memory, hot holds {len(hot)}")
        self.statistics = HyperbatchStatistics()
        self.spills: list[SpillFile] = []
        self._pass: Pass | None = None

    def __iter__(self) -> Iterator[HyperbatchResult]:
        self._end_pass()
        self.statistics = HyperbatchStatistics()
        self._pass = Pass(self)
        return self._pass.results()

    def _end_pass(self) -> None:
        current, self._pass = self._pass, None
        if current is not None:
            current.close()

    def free(self) -> None:
        """Give back the disk space of temporary files."""
        while self.spills:
            self.spills.pop().close()

    def close(self) -> None:
        """End the current pass with its threads, and remove temporary files.

        Closing twice does nothing; a new pass may follow.
        """
        self._end_pass()
        self.free()

    def __enter__(self) -> "PlanRun":
        return self

    def __exit__(self, *exc) -> None:
        self.close()
