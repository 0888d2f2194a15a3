"""Layer-wise inference: embeddings of all nodes by whole neighbourhoods, features and embeddings on disk."""
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gnncy._linalg import matmul
from gnncy._memory import format_bytes, map_large, parse_bytes
from gnncy._threads import working_threads
from gnncy.errors import MemoryLimitError
from gnncy.graph import Block
from gnncy.nn import modules
from gnncy.nn.attention import GATConv, GATv2Conv, NeighborAttention
from gnncy.nn.conv import APPNP, GCNConv, GINConv, GraphModule, ResGCNBlock, SAGEConv, SGConv, add_self_loops, gcn_norm
from gnncy.nn.encoders import Projected
from gnncy.nn.ops._pieces import add_product, add_row
from gnncy.nn.ops.graphs import _multiplies_first, as_block
from gnncy.nn.tensor import Tensor, no_grad
from gnncy.storage import FeatureStorage
from gnncy.storage._blocks import IOStatistics, ahead, direct_empty
from gnncy.storage.passes.direct import Result, Scratch, ScratchRows, Source, result
from gnncy.storage.passes.smoothing import Smoothing
from gnncy.storage.passes.stream import OVERHEAD, dense_source, goes_past_cache, in_order, plan_pass, smoothed_rows
from gnncy.storage.passes.windows import Costs, plan_windows, windows
from gnncy.storage.plans.disk import known_disk

__all__ = ["infer"]

log = logging.getLogger("gnncy")

_ROWS = 2048  # rows that modules of single rows are given at a time: whole pieces of a product
_NORMALISING = 48  # bytes an arc that gcn_norm takes
_FIXED = 4096  # rows of a window for layers that are called as they are
Rows = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Stage:
    """One layer over all nodes, in steps that each see a few rows.

    ``message`` makes of every node's row the one that is read for each of its neighbours. What is heard is smoothed
    (``smoothing``, by columns or windows) or combined from a window's rows (``combine(block, rows, own)``).
    ``finish(heard, own)`` does the rest; ``own`` are the targets' rows before ``message``.
    """

    graph: Block
    message: Rows | None = None
    smoothing: Smoothing | None = None
    combine: Callable[[Block, np.ndarray, np.ndarray], np.ndarray] | None = None
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda heard, own: heard
    needs_own: bool = True
    heads: int = 1
    fixed: bool = False


def infer(model, adjacency, features, *, out, memory_limit: int | str = "1GB", dtype=None, overwrite: bool = False,
          disk=None, n_jobs: int | None = None) -> FeatureStorage:
    """Embeddings of all nodes by all their neighbours, layer by layer, when not even one layer fits in memory.

    A sampled minibatch computes a node's first layers again for everyone who hears it; layer by layer each is computed
    once and written to a scratch file, from which the next reads it.

    Parameters
    ----------
    model : Module or sequence of Module
        :class:`GraphSequential`, :class:`Projected`, a single layer, or layers one after the other. Layers that take no
        graph must treat every row by itself. The model is used as after ``eval()``.
    adjacency : sparse array, shape (n, n), or Block
        As the model takes it.
    features : storage, path-like or array, shape (n, d)
        Dense rows.
    out : path-like
        File of the embeddings; whole or absent. Scratch files lie beside it while the call lasts.
    memory_limit : int or str
        Bytes to hold beside ``adjacency`` and the model's weights.
    dtype : float16, float32 or float64, optional
        Of the file; that of the arithmetic by default.
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
        If ``memory_limit`` is too small.
    FileExistsError, StorageError
        As :func:`gnncy.storage.passes.propagate`.
    ValueError, TypeError
        If the model, the graph and the features do not fit each other.

    Notes
    -----
    For features in the order of the ids, :class:`GCNConv`, :class:`SAGEConv`, :class:`GINConv`, :class:`SGConv`,
    :class:`APPNP`, :class:`GATConv`, :class:`GATv2Conv`, :class:`NeighborAttention` and :class:`ResGCNBlock` of these
    give the bits of ``model(adjacency, x)`` in memory. For features in another order a product may round the last bit
    of some rows differently, as it also may in layers of other kinds, which are called on windows of 4096 rows as they
    are. The bits never depend on ``memory_limit`` or ``n_jobs``.

    :class:`GCNConv` with ``normalize=True`` takes 48 bytes an arc for a moment; give it ``normalize=False`` and
    :func:`gcn_norm` of the graph, and it does not.

    Sums, means and maxima over neighbours are done by columns or by windows, whichever the disk does sooner, see
    :class:`~gnncy.storage.passes.PassPlan`; attention by windows. A layer that narrows its rows does so before they are
    read for every neighbour. From the call on, the process gives the memory of arrays of 1 MiB and more back to the
    system when they are freed.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import graph, nn
    >>> model = nn.GraphSequential(nn.SAGEConv(3, 8, rng=0), nn.ReLU(), nn.SAGEConv(8, 2, rng=1))
    >>> ring, x = graph.as_csr(np.roll(np.eye(6), 1, axis=1)), np.ones((6, 3), np.float32)
    >>> with nn.infer(model, ring, x, out="embedding.npy") as embedding:
    ...     np.array_equal(embedding[:], model(ring, x).data)
    True
    """
    map_large()
    source = dense_source(features)
    out = Path(out)
    given = [model] if isinstance(model, modules.Module) else list(model)
    training = [module for part in given for module in part.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with working_threads(n_jobs), no_grad():
            job = _Job(adjacency, source, parse_bytes(memory_limit), out.parent, disk or known_disk(out.parent))
            return job.run(_layers(given), out, dtype, overwrite)
    finally:
        for module in training:
            module.training = True
        if isinstance(features, (str, Path)):
            source.features.close()


def _layers(given: Sequence) -> list[modules.Module]:
    """Modules one after the other."""
    found: list[modules.Module] = []
    for module in given:
        if isinstance(module, modules.Sequential):
            found += _layers(module.layers)
        elif isinstance(module, Projected):
            found += _layers([module.encoder, module.head])
        elif not isinstance(module, modules.Dropout):
            found.append(module)
    return found


class _Job:
    """A model over all nodes, within one limit."""

    def __init__(self, adjacency, source: Source, limit: int, folder: Path, disk):
        n = source.shape[0]
        self.source, self.limit, self.folder, self.disk = source, limit, folder, disk
        self.stats = IOStatistics()
        self.given = as_block(adjacency)
        if (self.given.n_dst, self.given.n_src) != (n, n):
            raise ValueError(f"adjacency must have shape ({n}, {n}), one node for each row of the features, got "
                             f"({self.given.n_dst}, {self.given.n_src})")
        self.graphs: dict[tuple, Block] = {}
        self.held = 0 if source.order is None else 8 * n

    def graph(self, *loops: bool) -> Block:
        """The graph in storage order; with an argument that of :func:`gcn_norm`, with or without self-loops."""
        if loops not in self.graphs:
            block = self.given
            if loops:
                need = self.held + OVERHEAD + _NORMALISING * block.n_arcs
                if need > self.limit:
                    raise MemoryLimitError(
                        f"normalising the graph takes {format_bytes(need)} for a moment, more than memory_limit="
                        f"{format_bytes(self.limit)}; give GCNConv(normalize=False) and nn.gcn_norm(adjacency)")
                block = gcn_norm(block, *loops)
            if self.source.order is not None:
                block = in_order(block, self.source.order)
            if block is not self.given:
                self.held += block.indices.nbytes + block.indptr.nbytes
                self.held += 0 if block.weights is None else block.weights.nbytes
            self.graphs[loops] = block
        return self.graphs[loops]

    def run(self, layers: list[modules.Module], out: Path, dtype, overwrite: bool) -> FeatureStorage:
        """Each layer's rows written to a scratch file, the last one's to ``out``."""
        stages: list[tuple[_Stage | None, list[modules.Module]]] = [(None, [])]
        for layer in layers:
            if isinstance(layer, GraphModule):
                stages.append((self.stage(layer), []))
            else:
                stages[-1][1].append(layer)
        if len(stages) > 1 and not stages[0][1]:
            del stages[0]
        source = self.source
        direct = goes_past_cache(source, 0)
        with ExitStack() as stack:
            for k, (stage, after) in enumerate(stages):
                with ExitStack() as own:
                    blocks = own.enter_context(closing(self.rows(stage, after, source, direct, own)))
                    first = next(blocks)
                    shape, final = (source.shape[0], first.shape[1]), k == len(stages) - 1
                    target: Result | ScratchRows
                    if final:
                        target = own.enter_context(result(out, shape, first.dtype if dtype is None else dtype,
                                                          source.order, overwrite, direct, self.stats))
                    else:
                        target = self.scratch(shape, first.dtype, direct)
                        stack.callback(target.close)
                    target.append(first)
                    for rows in blocks:
                        target.append(rows)
                if isinstance(source, ScratchRows):
                    source.close()
                if isinstance(target, ScratchRows):
                    source = target
        return FeatureStorage(out)

    def scratch(self, shape: tuple[int, int], dtype: np.dtype, direct: bool) -> ScratchRows:
        file = Scratch(self.folder, shape[0] * shape[1] * dtype.itemsize, direct, self.disk, self.stats)
        return ScratchRows(file, shape, dtype, self.source.order)

    def rows(self, stage: _Stage | None, after: list[modules.Module], source: Source, direct: bool,
             stack: ExitStack) -> Generator[np.ndarray, None, None]:
        """A layer's rows, in storage order, after what follows it."""
        if stage is None:
            for _, x in self.chunks(source):
                yield _through(after, x)
            return
        heard = source
        if stage.message is not None:
            for start, x in self.chunks(source):
                rows = stage.message(x)
                if start == 0:
                    heard = self.scratch((source.shape[0], rows.shape[1]), rows.dtype, direct)
                    stack.callback(heard.close)
                heard.append(rows)  # type: ignore[attr-defined]
        if stage.smoothing is not None:
            yield from self.smoothed(stage, after, source, heard, direct)
        else:
            yield from self.combined(stage, after, source, heard)

    def chunks(self, source: Source) -> Iterator[tuple[int, np.ndarray]]:
        """All rows, a few at a time; the next are read meanwhile."""
        n, width = source.shape

        def read(k: int) -> tuple[int, np.ndarray]:
            start, stop = k * _ROWS, min(n, (k + 1) * _ROWS)
            return start, source.range(start, stop, direct_empty((stop - start, width), source.dtype))

        return ahead(read, -(-n // _ROWS), 1)

    def smoothed(self, stage: _Stage, after, source: Source, heard: Source, direct: bool) -> Iterator[np.ndarray]:
        assert stage.smoothing is not None
        weights = stage.graph.weights
        smoothing = stage.smoothing
        if smoothing.weighted and weights is not None and weights.dtype != heard.dtype:
            smoothing = replace(smoothing, graph=replace(stage.graph, weights=weights.astype(heard.dtype)))
        working = 8 * _ROWS * max(heard.shape[1], source.shape[1]) * heard.dtype.itemsize
        plan = plan_pass(heard, smoothing, self.limit, self.held + working, self.disk)
        log.info("a layer %s", plan)
        start = 0
        with closing(smoothed_rows(heard, smoothing, plan, self.folder, direct, self.disk, self.stats)) as blocks:
            for block in blocks:
                for low in range(0, len(block), _ROWS):
                    part = block[low:low + _ROWS]
                    yield _through(after, stage.finish(part, self.own(stage, source, start, start + len(part))))
                    start += len(part)

    def combined(self, stage: _Stage, after, source: Source, heard: Source) -> Iterator[np.ndarray]:
        assert stage.combine is not None
        (n, width), itemsize = heard.shape, heard.dtype.itemsize
        costs = Costs((2 if stage.fixed else 1) * width * itemsize,
                      4 * stage.graph.indices.itemsize + 6 * stage.heads * itemsize,
                      6 * max(width, source.shape[1]) * itemsize)
        memory = self.limit - self.held - OVERHEAD
        if stage.fixed:
            spans = [(start, min(n, start + _FIXED)) for start in range(0, n, _FIXED)]
            cut = [plan_windows(stage.graph, True, width * itemsize, costs, memory, 0, span) for span in spans]
            whole = all(one is not None and len(one.ranges) == 1 for one in cut)
            plan = replace(cut[0], ranges=spans) if whole and cut[0] is not None else None
        else:
            plan = plan_windows(stage.graph, True, width * itemsize, costs, memory, self.disk.break_even_gap)
        if plan is None:
            raise MemoryLimitError(f"memory_limit={format_bytes(self.limit)} is too small: the neighbours of "
                                   f"{_FIXED if stage.fixed else 256} rows of {width} columns do not fit; raise it, or "
                                   f"store the features in an order that keeps neighbours together, such as that of "
                                   f"graph.community_order")
        for window in windows(heard, stage.graph, True, plan):
            own = self.own(stage, source, window.start, window.stop)
            rows = stage.finish(stage.combine(window.block, window.rows, own), own)
            yield np.concatenate([_through(after, rows[low:low + _ROWS]) for low in range(0, len(rows), _ROWS)])

    def own(self, stage: _Stage, source: Source, start: int, stop: int) -> np.ndarray:
        width = source.shape[1] if stage.needs_own else 0
        rows = direct_empty((stop - start, width), source.dtype)
        return source.range(start, stop, rows) if width else rows

    # What each kind of layer is made of

    def stage(self, layer: GraphModule) -> _Stage:
        """A layer as steps; its graph in storage order."""
        if isinstance(layer, (GCNConv, SAGEConv)):
            return self.linear(layer)
        if isinstance(layer, GINConv):
            return self.isomorphism(layer)
        if isinstance(layer, (SGConv, APPNP)):
            graph = self.graph(layer.self_loops) if layer.normalize else self.graph()
            alpha = (layer.alpha or None) if isinstance(layer, APPNP) else None
            after = _rowwise(layer.linear) if isinstance(layer, SGConv) else _same
            return _Stage(graph, smoothing=Smoothing(graph, layer.steps, alpha, (layer.steps,)),
                          finish=lambda heard, own: after(heard), needs_own=False)
        if isinstance(layer, (GATConv, GATv2Conv, NeighborAttention)):
            return self.attention(layer)
        if isinstance(layer, ResGCNBlock):
            return self.residual(layer)
        for module in layer.modules():
            if isinstance(module, (SGConv, APPNP)) or isinstance(module, GCNConv) and module.normalize:
                raise TypeError(f"{type(layer).__name__} holds a {type(module).__name__}, which needs the whole graph; "
                                f"give infer the layers one after the other")
        return _Stage(self.graph(), combine=lambda block, rows, own: layer(block, Tensor(rows)).data, needs_own=False,
                      fixed=True)

    def linear(self, layer) -> _Stage:
        """``aggregate(x) @ weight`` and what is added to it: the steps of ``ops.graph_linear``."""
        if isinstance(layer, GCNConv):
            graph = self.graph(layer.self_loops) if layer.normalize else self.graph()
            weight, weight_self, reduce, weighted = layer.weight.data, None, "sum", True
        else:
            graph, weight, weight_self = self.graph(), layer.weight_neigh.data, layer.weight_self.data
            reduce, weighted = layer.reduce, layer.weighted
        first = _multiplies_first(graph, weight.shape[0], weight.shape[1], reduce)

        def finish(heard: np.ndarray, own: np.ndarray) -> np.ndarray:
            heard = heard.copy() if first else matmul(heard, weight)
            if weight_self is not None:
                add_product(own, weight_self, heard)
            if layer.bias is not None:
                add_row(layer.bias.data, heard)
            return heard

        return _Stage(graph, message=(lambda x: matmul(x, weight)) if first else None, finish=finish,
                      smoothing=Smoothing(graph, reduce=reduce, weighted=weighted), needs_own=weight_self is not None)

    def isomorphism(self, layer: GINConv) -> _Stage:
        def finish(heard: np.ndarray, own: np.ndarray) -> np.ndarray:
            x = Tensor(own)
            if layer.eps.requires_grad or layer.eps.data[0]:
                x = x * (layer.eps + 1.0)
            return layer.network(x + Tensor(heard)).data

        graph = self.graph()
        return _Stage(graph, smoothing=Smoothing(graph, weighted=False), finish=finish)

    def attention(self, layer) -> _Stage:
        """Scores and sums over a window; the products before them once for each node."""
        if getattr(layer, "edge_features", 0):
            raise TypeError("infer takes no features of arcs, and this GATConv was made with edge_features="
                            f"{layer.edge_features}; call the layer on sampled neighbourhoods instead")
        looped = getattr(layer, "self_loops", False)
        if isinstance(layer, GATConv):
            message = _rowwise(layer.linear)
        elif isinstance(layer, GATv2Conv):
            message = _rowwise(layer.source)
        else:
            def message(x: np.ndarray) -> np.ndarray:
                return np.concatenate([layer.key(Tensor(x)).data, layer.value(Tensor(x)).data], axis=1)

        def combine(block: Block, rows: np.ndarray, own: np.ndarray) -> np.ndarray:
            if looped:
                block = add_self_loops(block, "mean")
            if isinstance(layer, NeighborAttention):
                key, value = (Tensor(np.ascontiguousarray(part)) for part in np.hsplit(rows, 2))
                return layer.attend(block, layer.query(Tensor(own)), key, value).data
            if isinstance(layer, GATv2Conv):
                return layer.attend(block, layer.target(Tensor(own)), Tensor(rows)).data
            return layer.attend(block, Tensor(rows)).data

        return _Stage(self.graph(), message, combine=combine, heads=layer.heads,
                      needs_own=not isinstance(layer, GATConv))

    def residual(self, layer: ResGCNBlock) -> _Stage:
        inner = self.stage(layer.conv)  # type: ignore[arg-type]
        before = _rowwise(layer.norm, layer.activation)
        inner_message, inner_combine = inner.message, inner.combine
        message = before if inner_message is None else lambda x: inner_message(before(x))

        def finish(heard: np.ndarray, own: np.ndarray) -> np.ndarray:
            return (Tensor(own) + Tensor(inner.finish(heard, before(own) if inner.needs_own else own))).data

        def combine(block: Block, rows: np.ndarray, own: np.ndarray) -> np.ndarray:
            assert inner_combine is not None
            return inner_combine(block, rows, before(own) if inner.needs_own else own)

        return replace(inner, message=message, combine=None if inner_combine is None else combine, finish=finish,
                       needs_own=True)


def _same(rows: np.ndarray) -> np.ndarray:
    return rows


def _rowwise(*layers: modules.Module) -> Rows:
    """Modules of single rows as one function of arrays."""
    return lambda x: _through(list(layers), x)


def _through(layers: list[modules.Module], x: np.ndarray) -> np.ndarray:
    if not layers:
        return x
    z = Tensor(x)
    for layer in layers:
        z = layer(z)
    return z.data
