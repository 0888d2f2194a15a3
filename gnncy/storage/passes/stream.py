"""Features smoothed over a graph, from disk to disk, when neither they nor the result fit in memory."""
import logging
import os
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, issparse

from gnncy._check import check_choice, check_float, check_int
from gnncy._memory import available, format_bytes, parse_bytes
from gnncy._threads import working_threads
from gnncy.errors import MemoryLimitError
from gnncy.graph import Block, normalize
from gnncy.storage._blocks import IOStatistics, direct_empty
from gnncy.storage._sidecar import invert
from gnncy.storage.features import FeatureStorage
from gnncy.storage.passes.columns import ColumnPlan, column_rows, least_memory, plan_columns
from gnncy.storage.passes.direct import OPEN_FILES, Result, Scratch, ScratchRows, Source, result
from gnncy.storage.passes.smoothing import Smoothing
from gnncy.storage.passes.windows import Costs, WindowPlan, plan_windows, windows
from gnncy.storage.plans.disk import DiskModel, known_disk
from gnncy.storage.sources import as_storage

log = logging.getLogger("gnncy")

OVERHEAD = 24_000_000
"""Bytes set aside for the threads' read buffers and what cannot be counted."""


@dataclass(frozen=True)
class PassPlan:
    """How a pass over all nodes is done, and what that is expected to cost.

    Attributes
    ----------
    method : {"columns", "windows"}
        ``"columns"``: a few columns of all rows in memory at a time, any number of steps over them; rows are turned
        into columns and back in the result's own file, or through a scratch file where they do not fit into its
        rows. ``"windows"``: some consecutive rows at a time, computed from their neighbours' rows, gathered from the
        file; a file for every step.
    bytes_read, bytes_written, operations : int
        Of the disk, source, scratch and result together.
    seconds : float
        That the disk takes for them.
    memory : int
        Bytes held at most, the graph's copies included.
    scratch : int
        Bytes of scratch files.
    """

    method: str
    bytes_read: int
    bytes_written: int
    operations: int
    seconds: float
    memory: int
    scratch: int
    layout: ColumnPlan | WindowPlan

    def __str__(self) -> str:
        return (f"by {self.method}: {format_bytes(self.bytes_read)} read, {format_bytes(self.bytes_written)} written, "
                f"{self.operations} operations, {self.seconds:.3g} s of the disk, {format_bytes(self.memory)} of "
                f"memory, {format_bytes(self.scratch)} of scratch")


def propagate(adjacency, features, k: int, *, out, normalization: str | None = "sym", self_loops: float = 1.0,
              alpha: float | None = None, memory_limit: int | str = "1GB", method: str = "auto", dtype=None,
              overwrite: bool = False, disk: DiskModel | None = None, n_jobs: int | None = None) -> FeatureStorage:
    r"""Features after k steps of smoothing, :math:`S^k X`, from disk to disk.

    Parameters
    ----------
    adjacency : sparse array, shape (n, n), or Block
    features : storage, path-like or array, shape (n, d)
        Dense rows.
    k : int
        Steps.
    out : path-like
        File of the result; whole or absent. A scratch file, where one is needed, has no name and ends with the call.
    normalization : {"sym", "row", "col"} or None
        S is ``graph.normalize(adjacency, normalization, self_loops)``; with None it is ``adjacency`` as it is.
    self_loops : float
        As in :func:`gnncy.graph.normalize`.
    alpha : float, optional
        Personalised PageRank instead of a power: k times :math:`Z = (1 - \alpha) S Z + \alpha X`, from
        :math:`Z = X` [2]_.
    memory_limit : int or str
        Bytes to hold beside ``adjacency``, the normalised graph included.
    method : {"auto", "columns", "windows"}
        See :class:`PassPlan`; ``"auto"`` takes what the disk does sooner. The result is the same.
    dtype : float16, float32 or float64, optional
        Of the file; by default that in which ``features`` are read, which is also that of the arithmetic.
    overwrite : bool
        Replace a file that is already there.
    disk : DiskModel, optional
        What the disk costs; by default that of an earlier :func:`~gnncy.storage.plans.calibrate`.
    n_jobs : int, optional
        Threads. The result is the same for any number of them.

    Returns
    -------
    FeatureStorage
        Open for reading, in the order of ``features``.

    Raises
    ------
    MemoryLimitError
        If ``memory_limit`` is too small; the message names the least that would do.
    FileExistsError
        If ``out`` exists and ``overwrite`` is False.
    StorageError
        If the disk is full, or reading or writing fails.
    ValueError
        If the graph and the features have different numbers of nodes, or the result is not finite.

    See Also
    --------
    sign_features : all of X, S X, ..., S^k X.

    Notes
    -----
    The bits are those of ``k`` products in memory, :func:`gnncy.graph.spmm`, whatever the limit. By columns every byte
    of X is read and written three times at most, for any k. Files are read and written past the page cache if
    ``features`` are, or if they are larger than the memory that is free.

    References
    ----------
    .. [1] F. Wu et al., "Simplifying graph convolutional networks", ICML 2019.
    .. [2] J. Gasteiger, A. Bojchevski, S. Guennemann, "Predict then propagate", ICLR 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from gnncy.storage.passes import propagate
    >>> path = csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32))  # three nodes in a row
    >>> x = np.eye(3, dtype=np.float32)
    >>> with propagate(path, x, 2, normalization="row", self_loops=0, out="smooth.npy") as smooth:
    ...     smooth[:]
    array([[0.5, 0. , 0.5],
           [0. , 1. , 0. ],
           [0.5, 0. , 0.5]], dtype=float32)
    """
    k = check_int(k, "k", 0)
    alpha = None if alpha is None else check_float(alpha, "alpha", 0, 1)
    return _to_file(adjacency, features, k, (k,), alpha or None, out, normalization, self_loops, memory_limit, method,
                    dtype, overwrite, disk, n_jobs)


def sign_features(adjacency, features, hops: int, *, out, normalization: str | None = "sym", self_loops: float = 1.0,
                  memory_limit: int | str = "1GB", method: str = "auto", dtype=None, overwrite: bool = False,
                  disk: DiskModel | None = None, n_jobs: int | None = None) -> FeatureStorage:
    r"""Features after 0 to K steps of smoothing side by side, :math:`[X \mid S X \mid \dots \mid S^K X]`.

    What :class:`gnncy.nn.SIGN` trains on, minibatch by minibatch and without a graph; the last d columns alone are
    those of :class:`gnncy.nn.SGConv`.

    Parameters
    ----------
    adjacency, features
        As in :func:`propagate`.
    hops : int
        K.
    out, normalization, self_loops, memory_limit, method, dtype, overwrite, disk, n_jobs
        As in :func:`propagate`.

    Returns
    -------
    FeatureStorage
        Of shape (n, (K + 1) d).

    Raises
    ------
    MemoryLimitError, FileExistsError, StorageError, ValueError
        As :func:`propagate`.

    References
    ----------
    F. Frasca et al., "SIGN: scalable inception graph neural networks", 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from gnncy.storage.passes import sign_features
    >>> pair = csr_array(np.array([[0, 1], [1, 0]], np.float32))
    >>> with sign_features(pair, np.array([[1.], [3.]]), 2, self_loops=0, out="sign.npy") as store:
    ...     store[:]
    array([[1., 3., 1.],
           [3., 1., 3.]])
    """
    hops = check_int(hops, "hops", 0)
    return _to_file(adjacency, features, hops, tuple(range(hops + 1)), None, out, normalization, self_loops,
                    memory_limit, method, dtype, overwrite, disk, n_jobs)


def _to_file(adjacency, features, steps, kept, alpha, out, normalization, self_loops, memory_limit, method, dtype,
             overwrite, disk, n_jobs) -> FeatureStorage:
    source = dense_source(features)
    out = Path(out)
    limit = parse_bytes(memory_limit)
    stats = IOStatistics()
    try:
        with working_threads(n_jobs):
            graph, held = operator(adjacency, source, normalization, self_loops)
            smoothing = Smoothing(graph, steps, alpha, kept)
            dtype = source.dtype if dtype is None else np.dtype(dtype)
            plan = plan_pass(source, smoothing, limit, held, disk or known_disk(out.parent), method=method,
                             written=len(kept) * graph.n_dst * source.shape[1] * dtype.itemsize,
                             inside=dtype == source.dtype and os.path.isdir(OPEN_FILES))
            log.info("propagation %s", plan)
            direct = goes_past_cache(source, plan.scratch + plan.bytes_written)
            shape = graph.n_dst, len(kept) * source.shape[1]
            with (result(out, shape, dtype, source.order, overwrite, direct, stats) as rows,
                  closing(smoothed_rows(source, smoothing, plan, out.parent, direct, disk, stats, rows)) as blocks):
                for block in blocks:
                    rows.append(block)
    finally:
        if isinstance(features, (str, Path)):
            source.features.close()
    return FeatureStorage(out)


def dense_source(features) -> Source:
    """Rows of dense features; a path is opened."""
    storage = as_storage(features)
    if issparse(storage) or hasattr(storage, "nnz"):
        raise TypeError("a pass over all nodes needs dense features, got sparse ones; reduce them first with "
                        "FeatureReducer, or write their rows with FeatureStorage.from_blocks")
    return Source(storage)


def operator(adjacency, source: Source, normalization: str | None, self_loops: float = 1.0) -> tuple[Block, int]:
    """The graph that rows in storage order are multiplied by, and the bytes of it beside the one given."""
    n = source.shape[0]
    if normalization is not None:
        check_choice(normalization, "normalization", ("sym", "row", "col"))
    graph = adjacency if isinstance(adjacency, Block) else None
    if graph is None or normalization is not None:
        given = adjacency if graph is None else csr_array((graph.weights, graph.indices, graph.indptr),
                                                          shape=(graph.n_dst, graph.n_src))
        graph = Block.from_csr(given if normalization is None else normalize(given, normalization, self_loops))
    if (graph.n_dst, graph.n_src) != (n, n):
        raise ValueError(f"adjacency must have shape ({n}, {n}), one node for each row of the features, got "
                         f"({graph.n_dst}, {graph.n_src})")
    copied = graph is not adjacency and (normalization is not None or not issparse(adjacency))
    if source.order is not None:
        graph, copied = in_order(graph, source.order), True
    if graph.weights is not None and graph.weights.dtype != source.dtype:
        graph = Block(graph.indptr, graph.indices, n, n, weights=graph.weights.astype(source.dtype))
    held = 8 * n if source.order is not None else 0
    if copied:
        held += graph.indices.nbytes + graph.indptr.nbytes + (0 if graph.weights is None else graph.weights.nbytes)
    return graph, held


def in_order(graph: Block, order: np.ndarray) -> Block:
    """The graph with node ``order[i]`` as node i; the arcs of a node stay in their order, and so do the bits."""
    ones = graph.weights if graph.weights is not None else np.zeros(graph.n_arcs, np.int8)
    rows = csr_array((ones, graph.indices, graph.indptr), shape=(graph.n_dst, graph.n_src))[order]
    indices = invert(order).astype(rows.indices.dtype, copy=False)[rows.indices]
    return Block(rows.indptr, indices, graph.n_src, graph.n_dst, weights=None if graph.weights is None else rows.data)


def goes_past_cache(source: Source, nbytes: int) -> bool:
    """Whether a pass reads and writes past the page cache."""
    return bool(getattr(source.features, "direct", False)) or nbytes > available()


def plan_pass(source: Source, smoothing: Smoothing, limit: int, held: int, disk: DiskModel, *, written: int = 0,
              inside: bool = False, method: str = "auto", costs: Costs | None = None) -> PassPlan:
    """The plan that the disk serves soonest within ``limit`` bytes, of which ``held`` are taken.

    ``written`` are the bytes of the result, ``inside`` whether its file may serve as scratch space. ``costs`` are those
    of a window where more is done than smoothing.
    """
    check_choice(method, "method", ("auto", "columns", "windows"))
    (n, dim), itemsize, kept = source.shape, source.dtype.itemsize, len(smoothing.kept)
    width = dim * itemsize
    memory = limit - held - OVERHEAD
    plans = []
    if method != "windows" or smoothing.steps == 0:
        columns = plan_columns(n, dim, itemsize, kept, smoothing.rooms, memory, 0 in smoothing.kept, inside)
        if columns is not None:
            read, wrote, operations = columns.traffic()
            plans.append(_costed("columns", read + n * source.bytes_per_row, wrote + written, operations, disk,
                                 columns.memory + held + OVERHEAD, columns.scratch_bytes, columns))
    if method != "columns" and smoothing.steps > 0:
        if costs is None:
            arc = 2 * smoothing.graph.indices.itemsize
            costs = Costs(width, arc, width * (1 + kept + (smoothing.alpha is not None)))
        again = smoothing.steps - 1
        # Windows that read more than this take longer than columns: no need to know how much more.
        most = min((plan.seconds for plan in plans), default=np.inf) * disk.read_bandwidth
        found = plan_windows(smoothing.graph, False, width, costs, memory, disk.break_even_gap,
                             most=most / (source.bytes_per_row / width + again))
        if found is not None:
            own = (again + 1) * (smoothing.alpha is not None) + kept - 1
            read = found.bytes_read // width * source.bytes_per_row + again * found.bytes_read + own * n * width
            plans.append(_costed("windows", read, written + again * n * width, (again + 1) * found.operations, disk,
                                 found.memory + held + OVERHEAD, n * width * min(again, 2 if kept == 1 else again),
                                 found))
    if not plans:
        least = held + OVERHEAD + least_memory(n, dim, itemsize, kept, smoothing.rooms)
        raise MemoryLimitError(f"memory_limit={format_bytes(limit)} is too small for {n} rows; raise it to "
                               f"{-(-least // 10**6)}MB or more (of these {format_bytes(held)} are the graph's)")
    return min(plans, key=lambda plan: plan.seconds)


def _costed(method, read, written, operations, disk, memory, scratch, layout) -> PassPlan:
    seconds = disk.read_seconds(operations, read) + disk.write_seconds(0, written)
    return PassPlan(method, int(read), int(written), int(operations), seconds, int(memory), int(scratch), layout)


def smoothed_rows(source: Source, smoothing: Smoothing, plan: PassPlan, folder, direct: bool, disk,
                  stats: IOStatistics, target: Result | None = None) -> Generator[np.ndarray, None, None]:
    """Blocks of rows of the kept results side by side, in storage order; one is overwritten after the next.

    ``target`` is what they are appended to, if the plan lies inside it.
    """
    if isinstance(plan.layout, ColumnPlan):
        return column_rows(source, smoothing, plan.layout, folder, direct, disk, stats, target)
    return _window_rows(source, smoothing, plan.layout, folder, direct, disk, stats)


def _window_rows(source: Source, smoothing: Smoothing, plan: WindowPlan, folder, direct, disk,
                 stats: IOStatistics) -> Generator[np.ndarray, None, None]:
    n, dim = source.shape
    stores: dict[int, Source] = {0: source}
    with ExitStack() as stack:
        for step in range(1, smoothing.steps + 1):
            target = None
            if step < smoothing.steps:
                scratch = Scratch(folder, n * dim * source.dtype.itemsize, direct, disk, stats)
                stack.callback(scratch.close)
                stores[step] = target = ScratchRows(scratch, source.shape, source.dtype, source.order)
            for window in windows(stores[step - 1], smoothing.graph, False, plan):
                shape = window.stop - window.start, dim

                def own(store: Source, window=window, shape=shape) -> np.ndarray:
                    return store.range(window.start, window.stop, direct_empty(shape, source.dtype))

                out = smoothing.step(window.block, window.rows, direct_empty(shape, source.dtype),
                                     own(source) if smoothing.alpha is not None else window.rows)
                if target is not None:
                    target.append(out)
                elif len(smoothing.kept) == 1:
                    yield out
                else:
                    before = [own(stores[kept]) for kept in smoothing.kept[:-1]]
                    rows = direct_empty((shape[0], len(smoothing.kept) * dim), source.dtype)
                    yield np.concatenate([*before, out], axis=1, out=rows)
            if step > 1 and step - 1 not in smoothing.kept:
                stores.pop(step - 1).scratch.close()  # type: ignore[attr-defined]
