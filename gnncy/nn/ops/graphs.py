"""Operations over the arcs of a graph: sums over neighbours, and what attention is made of.

``adjacency`` is a ``csr_array`` or a :class:`~gnncy.graph.Block` of shape (targets, sources); give a Block where a
whole graph is used more than once, because it keeps its transpose. Values of arcs stand in the order of the block's
``indices``.
"""
import math

import numpy as np

from gnncy import graph
from gnncy._check import check_float, check_int
from gnncy._kernels import arcs
from gnncy._linalg import matmul, matmul_rows
from gnncy._threads import run_pieces
from gnncy.graph import Block
from gnncy.nn.ops._pieces import add_product, add_row, column_sums, shape_of
from gnncy.nn.tensor import Operation, Tensor

_ROWS = 1024


def as_block(adjacency) -> Block:
    return adjacency if isinstance(adjacency, Block) else Block.from_csr(adjacency)


def _run(kernel, out: np.ndarray, n: int, *arguments) -> np.ndarray:
    run_pieces(lambda start, stop: kernel(*arguments, start, stop, out), n, _ROWS)
    return out


def _straight(block: Block) -> np.ndarray:
    """Stands for places where arcs come in their own order."""
    return np.empty(0, block.indptr.dtype)


def _check_nodes(x, name: str, n: int, ndim: int) -> None:
    shape = shape_of(x)
    if len(shape) != ndim or shape[0] != n:
        form = ", heads" if ndim == 2 else ", heads, channels"
        raise ValueError(f"{name} must have shape ({n}{form}), got {shape}")


def _check_pair(left, right) -> None:
    if shape_of(left)[1:] != shape_of(right)[1:]:
        raise ValueError(f"left and right must agree but for their number of rows, got shapes {shape_of(left)} "
                         f"and {shape_of(right)}")


# -- sums over neighbours ----------------------------------------------------------------------------------------------

class Aggregate(Operation):
    def forward(self, x, block, reduce, weighted):
        out = graph.aggregate(block, x, reduce=reduce, weighted=weighted)
        self.save(*((x, out) if reduce == "max" else (None, None)))
        return out

    def backward(self, grad):
        x, out = self.saved
        how = self.options
        return graph.aggregate_grad(how["block"], grad, reduce=how["reduce"], weighted=how["weighted"], x=x,
                                    result=out),


def aggregate(adjacency, x, reduce: str = "mean", weighted: bool = False) -> Tensor:
    """Sum, mean or maximum of the neighbours' rows; 0 without neighbours. See :func:`gnncy.graph.aggregate`."""
    return Aggregate.apply(x, block=as_block(adjacency), reduce=reduce, weighted=weighted)


def spmm(adjacency, x) -> Tensor:
    """Sparse times dense, ``adjacency @ x``; the gradient goes to ``x`` alone."""
    return Aggregate.apply(x, block=as_block(adjacency), reduce="sum", weighted=True)


class GraphLinear(Operation):
    def forward(self, x, weight, *others, block, reduce, weighted, with_self):
        own, (weight_self, *bias) = x[:block.n_dst], others if with_self else (None, *others)
        first = _multiplies_first(block, weight.shape[0], weight.shape[1], reduce)
        if first:
            inner = None
            out = graph.aggregate(block, matmul(x, weight), reduce=reduce, weighted=weighted)
        else:
            inner = graph.aggregate(block, x, reduce=reduce, weighted=weighted)
            out = matmul(inner, weight)
        if with_self:
            add_product(own, weight_self, out)
        if bias:
            add_row(bias[0], out)
        # Of the sources' rows only what some gradient asks for is kept.
        whole = (first and self.needs[1]) or (reduce == "max" and self.needs[0])
        own = own if with_self and self.needs[2] else None
        self.save(x if whole else None, own, inner, weight, weight_self)
        return out

    def backward(self, grad):
        x, own, inner, weight, weight_self = self.saved
        block, reduce, weighted, with_self = (self.options[k] for k in ("block", "reduce", "weighted", "with_self"))
        by_x = by_weight = None
        if inner is None:
            back = graph.aggregate_grad(block, grad, reduce=reduce, weighted=weighted)
            by_weight = matmul_rows(x, back) if self.needs[1] else None
            by_x = matmul(back, weight.T) if self.needs[0] else None
        else:
            by_weight = matmul_rows(inner, grad) if self.needs[1] else None
            if self.needs[0]:
                by_x = graph.aggregate_grad(block, matmul(grad, weight.T), reduce=reduce, weighted=weighted, x=x,
                                            result=inner)
        others = [matmul_rows(own, grad) if self.needs[2] else None] if with_self else []
        if with_self and by_x is not None:
            add_product(grad, weight_self.T, by_x[:block.n_dst])
        if len(self.needs) > 2 + with_self:
            others.append(column_sums(grad))
        return by_x, by_weight, *others


def _multiplies_first(block: Block, inputs: int, outputs: int, reduce: str) -> bool:
    """Whether rows are multiplied before they are aggregated.

    That moves fewer numbers along the arcs, but multiplies all sources, not only the targets. A number moved costs
    about as much as the 18 multiplications that a core makes in that time.
    """
    extra = (block.n_src - block.n_dst) * inputs * outputs
    return reduce != "max" and extra < 18 * block.n_arcs * (inputs - outputs)


def graph_linear(adjacency, x, weight, bias=None, weight_self=None, reduce: str = "mean",
                 weighted: bool = False) -> Tensor:
    """``aggregate(x) @ weight``, plus ``x[:targets] @ weight_self`` and ``bias`` where they are given, in one step.

    Whether rows are multiplied or aggregated first is decided by what costs less; a maximum is always taken first.
    """
    block = as_block(adjacency)
    shape, width = shape_of(x), shape_of(weight)
    if len(shape) != 2 or len(width) != 2 or shape[0] != block.n_src or shape[1] != width[0]:
        raise ValueError(f"x must have shape ({block.n_src}, {width[0]}) for an adjacency of shape ({block.n_dst}, "
                         f"{block.n_src}), whose first sources are its targets; got {shape}")
    if weight_self is not None and block.n_dst > block.n_src:
        raise ValueError(f"the first sources must be the targets, but there are {block.n_dst} targets and "
                         f"{block.n_src} sources")
    others = [t for t in (weight_self, bias) if t is not None]
    return GraphLinear.apply(x, weight, *others, block=block, reduce=reduce, weighted=weighted,
                             with_self=weight_self is not None)


class Propagate(Operation):
    # Linear in x, so nothing is saved.
    def forward(self, x, block, steps, restart):
        out, room = x, None
        for _ in range(steps):
            room = graph.aggregate(block, out, reduce="sum", weighted=True, out=room)
            if restart:
                room *= 1 - restart
                room += x.dtype.type(restart) * x
            out, room = room, None if out is x else out
        return out

    def backward(self, grad):
        block, steps, restart = (self.options[k] for k in ("block", "steps", "restart"))
        total = np.zeros_like(grad) if restart else None
        for _ in range(steps):
            if total is not None:
                total += grad.dtype.type(restart) * grad
            grad = graph.aggregate_grad(block, grad, reduce="sum", weighted=True)
            if restart:
                grad *= 1 - restart
        return grad if total is None else total + grad,


def propagate(adjacency, x, steps: int, restart: float = 0.0) -> Tensor:
    """``steps`` times ``z = (1 - restart) A z + restart x``, from ``z = x``; nothing is kept for the gradient.

    ``A`` is square and already normalised, for example by :func:`gcn_norm`.
    """
    block = as_block(adjacency)
    if block.n_dst != block.n_src:
        raise ValueError(f"propagate needs a whole graph, got a block of {block.n_dst} targets and {block.n_src} "
                         "sources")
    return Propagate.apply(x, block=block, steps=check_int(steps, "steps", 0),
                           restart=check_float(restart, "restart", 0, 1))


# -- values on arcs ----------------------------------------------------------------------------------------------------

class ArcAdd(Operation):
    def forward(self, left, right, block):
        left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
        return _run(arcs.sums, np.empty((block.n_arcs, left.shape[1]), left.dtype), block.n_dst, block.indptr,
                    block.indices, left, right)

    def backward(self, grad):
        block, grad = self.options["block"], np.ascontiguousarray(grad)

        def total(side, places):
            return _run(arcs.total, np.empty((side.n_dst, grad.shape[1]), grad.dtype), side.n_dst, side.indptr, places,
                        grad)

        return (total(block, _straight(block)) if self.needs[0] else None,
                total(block.transposed(), block.places()) if self.needs[1] else None)


def arc_add(adjacency, left, right) -> Tensor:
    """``left[i] + right[j]`` for every arc, of shape (arcs, heads): i its target, j its source."""
    block = as_block(adjacency)
    _check_nodes(left, "left", block.n_dst, 2)
    _check_nodes(right, "right", block.n_src, 2)
    _check_pair(left, right)
    return ArcAdd.apply(left, right, block=block)


def _dots(block: Block, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return _run(arcs.dots, np.empty((block.n_arcs, left.shape[1]), left.dtype), block.n_dst, block.indptr,
                block.indices, left, right)


def _combine(side: Block, places: np.ndarray, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    return _run(arcs.combine, np.empty((side.n_dst, *x.shape[1:]), x.dtype), side.n_dst, side.indptr, side.indices,
                places, weights, x)


class ArcDot(Operation):
    def forward(self, left, right, block):
        left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
        self.save(left, right)
        return _dots(block, left, right)

    def backward(self, grad):
        left, right = self.saved
        block, grad = self.options["block"], np.ascontiguousarray(grad)
        return (_combine(block, _straight(block), grad, right) if self.needs[0] else None,
                _combine(block.transposed(), block.places(), grad, left) if self.needs[1] else None)


def arc_dot(adjacency, left, right) -> Tensor:
    """Dot product of ``left[i]`` and ``right[j]`` for every arc: (arcs, heads) from (nodes, heads, channels)."""
    block = as_block(adjacency)
    _check_nodes(left, "left", block.n_dst, 3)
    _check_nodes(right, "right", block.n_src, 3)
    _check_pair(left, right)
    return ArcDot.apply(left, right, block=block)


class ArcCombine(Operation):
    def forward(self, weights, x, block):
        weights, x = np.ascontiguousarray(weights), np.ascontiguousarray(x)
        self.save(weights, x)
        return _combine(block, _straight(block), weights, x)

    def backward(self, grad):
        weights, x = self.saved
        block, grad = self.options["block"], np.ascontiguousarray(grad)
        return (_dots(block, grad, x) if self.needs[0] else None,
                _combine(block.transposed(), block.places(), weights, grad) if self.needs[1] else None)


def arc_combine(adjacency, weights, x) -> Tensor:
    """Sum of the neighbours' rows, weighted by learned numbers on the arcs, each head by itself.

    ``weights`` is (arcs, heads), ``x`` (sources, heads, channels), the result (targets, heads, channels).
    """
    block = as_block(adjacency)
    _check_nodes(weights, "weights", block.n_arcs, 2)
    _check_nodes(x, "x", block.n_src, 3)
    if shape_of(weights)[1] != shape_of(x)[1]:
        raise ValueError(f"weights and x must have as many heads, got shapes {shape_of(weights)} and {shape_of(x)}")
    return ArcCombine.apply(weights, x, block=block)


class SegmentSoftmax(Operation):
    def forward(self, x, indptr):
        flat = np.ascontiguousarray(x).reshape(len(x), math.prod(x.shape[1:]))
        out = _run(arcs.softmax, np.empty_like(flat), len(indptr) - 1, indptr, flat)
        self.save(out)
        return out.reshape(x.shape)

    def backward(self, grad):
        out, = self.saved
        indptr = self.options["indptr"]
        flat = np.ascontiguousarray(grad).reshape(out.shape)
        return _run(arcs.softmax_grad, np.empty_like(out), len(indptr) - 1, indptr, out, flat).reshape(grad.shape),


def segment_softmax(x, indptr) -> Tensor:
    """Softmax within each of the segments ``x[indptr[i]:indptr[i + 1]]`` of the first axis, each column by itself."""
    indptr = np.ascontiguousarray(indptr)
    if indptr.ndim != 1 or indptr.dtype.kind not in "iu" or len(indptr) == 0:
        raise ValueError("indptr must be a vector of integers, the segments' starts and the end of the last")
    if indptr.dtype not in (np.int32, np.int64):
        indptr = indptr.astype(np.int64)
    n = shape_of(x)[0] if shape_of(x) else 0
    if indptr[0] != 0 or indptr[-1] != n or (np.diff(indptr) < 0).any():
        raise ValueError(f"indptr must rise from 0 to {n}, the length of x")
    return SegmentSoftmax.apply(x, indptr=indptr)


class ArcScores(Operation):
    def forward(self, left, right, vector, slant, block, weights, slope):
        left, right, vector, slant = (np.ascontiguousarray(a) for a in (left, right, vector, slant))
        weights = np.zeros(block.n_arcs, left.dtype) if weights is None else weights.astype(left.dtype, copy=False)
        self.save(left, right, vector, slant, weights)
        return _run(arcs.scores, np.empty((block.n_arcs, left.shape[1]), left.dtype), block.n_dst, block.indptr,
                    block.indices, weights, left, right, slant, vector, slope)

    def backward(self, grad):
        left, right, vector, slant, weights = self.saved
        block, slope, grad = self.options["block"], self.options["slope"], np.ascontiguousarray(grad)

        def by_nodes(side, places, own, other):
            return _run(arcs.scores_grad, np.empty_like(own), side.n_dst, side.indptr, side.indices, places, weights,
                        own, other, slant, vector, slope, grad)

        by_vector = by_slant = None
        if self.needs[2] or self.needs[3]:
            parts = np.zeros((2, -(-block.n_dst // _ROWS), *vector.shape), grad.dtype)
            run_pieces(lambda start, stop: arcs.scores_grad_vectors(
                block.indptr, block.indices, weights, left, right, slant, slope, grad, start, stop,
                parts[0, start // _ROWS], parts[1, start // _ROWS]), block.n_dst, _ROWS)
            by_vector, by_slant = parts.sum(axis=1)
            by_slant *= vector
        return (by_nodes(block, _straight(block), left, right) if self.needs[0] else None,
                by_nodes(block.transposed(), block.places(), right, left) if self.needs[1] else None,
                by_vector, by_slant)


def arc_scores(adjacency, left, right, vector, slant=None, slope: float = 0.2) -> Tensor:
    """Dot product of ``vector`` and ``leaky_relu(left[i] + right[j] + w slant)`` for every arc of weight w, by heads.

    The score of GATv2. ``left`` and ``right`` are (nodes, heads, channels), ``vector`` and ``slant`` (heads, channels);
    without ``slant`` the weights do not count. No array of arcs times channels is made.
    """
    block = as_block(adjacency)
    _check_nodes(left, "left", block.n_dst, 3)
    _check_nodes(right, "right", block.n_src, 3)
    _check_pair(left, right)
    heads = shape_of(left)[1:]
    for name, value in (("vector", vector), ("slant", slant)):
        if value is not None and shape_of(value) != heads:
            raise ValueError(f"{name} must have shape {heads}, (heads, channels), got {shape_of(value)}")
    weights = None if slant is None else arc_weights(block)
    return ArcScores.apply(left, right, vector, np.zeros(heads) if slant is None else slant, block=block,
                           weights=weights, slope=check_float(slope, "slope", above=0))


def arc_weights(block: Block) -> np.ndarray:
    if block.weights is None:
        raise ValueError("this needs a block with weights; sample it with NeighborSampler(..., weighted=True)")
    return block.weights

