"""Sums and means over neighbours, their gradients, and sparse times dense."""
import numpy as np

from gnncy._check import check_array, check_choice, check_out
from gnncy._kernels import spmm as kernels
from gnncy._threads import run_pieces
from gnncy.graph.sampler import Block

_ROWS = 2048  # rows of a piece
_REDUCES = ("sum", "mean", "max")


def aggregate(graph, x, *, reduce: str = "mean", weighted: bool = False, out=None) -> np.ndarray:
    r"""Sum, mean or maximum of each node's neighbours: :math:`y_i = c_i \sum_{j \in N(i)} w_{ij} x_j`.

    Parameters
    ----------
    graph : sparse or dense array, shape (n_dst, n_src), or Block
        Row i holds the weights of i's neighbours; a whole graph is square, n_dst = n_src = n.
    x : array, shape (n_src, d)
        float64 is kept, everything else is computed in float32. Values are not checked to be finite.
    reduce : {"sum", "mean", "max"}
        ``"sum"``: c = 1. ``"mean"``: c = 1 / (sum of w over the neighbours), or 0 where that sum is 0, so
        that a mean over no neighbours is 0. ``"max"``: the largest x of each column, 0 without neighbours.
    weighted : bool
        Weigh neighbours by the graph's weights; otherwise every w is 1. Not with ``"max"``.
    out : ndarray, shape (n_dst, d), optional
        Where to write the result: C-contiguous, of the type of the result, apart from ``x``.

    Returns
    -------
    ndarray, shape (n_dst, d)
        A column's bits depend on that column of ``x`` alone: columns may be aggregated tile by tile.

    See Also
    --------
    aggregate_grad : the gradient with respect to ``x``.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.graph import aggregate
    >>> path = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> aggregate(path, [[1.], [2.], [4.]]).ravel()
    array([2. , 2.5, 2. ])
    """
    block = _as_block(graph)
    x = _rows(x, "x", block.n_src)
    _check_reduce(reduce, weighted)
    if reduce == "max":
        return _run_rows(kernels.maximum, block, x, out=_result(block.n_dst, out, x))
    weights = _weights(block, x.dtype) if weighted else None
    return _product(block, weights, x, _scale(block, reduce, weights, x.dtype), out)


def aggregate_grad(graph, grad, *, reduce: str = "mean", weighted: bool = False, x=None, result=None,
                   out=None) -> np.ndarray:
    r"""Gradient of :func:`aggregate` with respect to ``x``: :math:`\bar x_j = \sum_i c_i w_{ij} \bar y_i`.

    That of a maximum is shared equally by all neighbours that reach it.

    Parameters
    ----------
    graph : sparse or dense array, shape (n_dst, n_src), or Block
        What :func:`aggregate` was given. Its transpose is needed: a Block keeps it, so give
        ``Block.from_csr(graph)`` to both where this is called more than once.
    grad : array, shape (n_dst, d)
        Gradient with respect to the result of :func:`aggregate`.
    reduce, weighted
        As given to :func:`aggregate`.
    x, result : array, shape (n_src, d) and (n_dst, d)
        What :func:`aggregate` was given and returned; needed for ``"max"`` alone.
    out : ndarray, shape (n_src, d), optional
        Where to write the result: C-contiguous, of the type of the result, apart from ``grad``.

    Returns
    -------
    ndarray, shape (n_src, d)

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.graph import aggregate_grad
    >>> path = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    >>> aggregate_grad(path, np.ones((3, 1))).ravel()
    array([0.5, 2. , 0.5])
    """
    block = _as_block(graph)
    grad = _rows(grad, "grad", block.n_dst)
    _check_reduce(reduce, weighted)
    back = block.transposed()
    if reduce == "max":
        if x is None or result is None:
            raise ValueError("the gradient of a maximum needs x and result: what aggregate was given and returned")
        x, result = _rows(x, "x", block.n_src), _rows(result, "result", block.n_dst)
        shares = _run_rows(kernels.share, block, x, result, grad, out=np.empty_like(grad))
        return _run_rows(kernels.maximum_grad, back, x, result, shares, out=_result(block.n_src, out, grad))
    weights = _weights(back, grad.dtype) if weighted else None
    if reduce == "mean":
        forward = _weights(block, grad.dtype) if weighted else None
        scale = _scale(block, reduce, forward, grad.dtype)[back.indices]
        weights = scale if weights is None else weights * scale
    return _product(back, weights, grad, np.ones(back.n_dst, grad.dtype), out)


def spmm(adjacency, x, out=None) -> np.ndarray:
    """Sparse times dense, ``adjacency @ x``, on the threads at hand and in the type of ``x``.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, m)
        Not necessarily square.
    x : array, shape (m, d)
        float64 is kept, everything else is computed in float32. Values are not checked to be finite.
    out : ndarray, shape (n, d), optional
        Where to write the result: C-contiguous, of the type of the result, apart from ``x``.

    Returns
    -------
    ndarray, shape (n, d)
        A column's bits depend on that column of ``x`` alone.

    Examples
    --------
    >>> from gnncy.graph import spmm
    >>> spmm([[0, 2], [3, 0]], [[1.], [10.]])
    array([[20.],
           [ 3.]])
    """
    block = _as_block(adjacency)
    x = _rows(x, "x", block.n_src)
    return _product(block, _weights(block, x.dtype), x, np.ones(block.n_dst, x.dtype), out)


def _as_block(graph) -> Block:
    return graph if isinstance(graph, Block) else Block.from_csr(graph)


def _weights(block: Block, dtype) -> np.ndarray:
    if block.weights is None:
        raise ValueError("weighted=True needs a block with weights; sample it with NeighborSampler(..., weighted=True)")
    return block.weights.astype(dtype, copy=False)


def _rows(value, name: str, n: int) -> np.ndarray:
    array = check_array(value, name, finite=False, allow_empty=True)
    if len(array) != n:
        raise ValueError(f"{name} must have {n} rows, one for each node on its side of the graph, "
                         f"got shape {array.shape}")
    return array


def _scale(block: Block, reduce: str, weights: np.ndarray | None, dtype) -> np.ndarray:
    if reduce == "sum":
        return np.ones(block.n_dst, dtype)
    if weights is None:
        total = np.diff(block.indptr).astype(dtype)
    else:
        total = _product(block, weights, np.ones((block.n_src, 1), dtype), np.ones(block.n_dst, dtype)).ravel()
    return np.divide(1, total, out=np.zeros_like(total), where=total != 0)


def _check_reduce(reduce: str, weighted: bool) -> None:
    check_choice(reduce, "reduce", _REDUCES)
    if reduce == "max" and weighted:
        raise ValueError("a maximum takes no weights; give weighted=False or another reduce")


def _result(n: int, out, x: np.ndarray) -> np.ndarray:
    """The array to write n rows to: ``out``, if it is given and fits."""
    return check_out(out, (n, x.shape[1]), x.dtype, x)


def _product(block: Block, weights, x: np.ndarray, scale: np.ndarray, out=None) -> np.ndarray:
    out = _result(block.n_dst, out, x)
    if weights is None:
        return _run_rows(kernels.gather_sum, block, x, scale, out=out)
    return _run_rows(kernels.weighted_sum, block, weights, x, scale, out=out)


def _run_rows(kernel, block: Block, *arrays, out: np.ndarray) -> np.ndarray:
    if out.size:
        run_pieces(lambda start, stop: kernel(block.indptr, block.indices, *arrays, start, stop, out), len(out), _ROWS)
    return out
