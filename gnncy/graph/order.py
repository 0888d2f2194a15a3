"""Orders of the nodes, and graphs renumbered by them."""
import numpy as np
import scipy.sparse as sp

from gnncy._check import check_ids, check_int
from gnncy._kernels.graph import traversal
from gnncy._threads import run_pieces
from gnncy.graph.csr import as_csr

_ROWS = 16384  # rows of a piece


def bfs_order(adjacency, start: int | None = None) -> np.ndarray:
    """Nodes in breadth-first order: neighbours come to lie near each other, in one pass over the arcs.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        Arcs are followed in their direction; pass ``undirected(adjacency)`` to follow them both ways.
    start : int, optional
        First node. The search goes on from the node of highest out-degree that it has not reached, ties to
        the lowest id, until all are; it begins there too if no ``start`` is given. On an undirected graph
        this visits the components one by one, each from its hub.

    Returns
    -------
    ndarray of int64, shape (n,)
        A permutation: ``order[k]`` is the k-th node visited. The arcs of a node are followed by rising id.

    See Also
    --------
    permute : the graph renumbered by an order.

    Examples
    --------
    >>> from gnncy.graph import bfs_order
    >>> bfs_order([[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    array([2, 0, 1, 3])
    """
    adjacency = as_csr(adjacency)
    n = adjacency.shape[0]
    roots = _by_degree(adjacency)
    if start is not None:
        roots = np.concatenate([[check_int(start, "start", 0, n - 1)], roots])
    order = np.empty(n + 1, np.int64)
    traversal.bfs(adjacency.indptr, adjacency.indices, roots, np.zeros(n, np.uint8), order)
    return order[:n]


def degree_order(adjacency) -> np.ndarray:
    """Nodes by falling out-degree, ties by rising id: hubs, which most neighbourhoods share, come first.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)

    Returns
    -------
    ndarray of int64, shape (n,)
        A permutation: ``order[k]`` is the node of k-th highest degree.

    Examples
    --------
    >>> from gnncy.graph import degree_order
    >>> degree_order([[0, 0, 1], [0, 0, 1], [1, 1, 0]])
    array([2, 0, 1])
    """
    return _by_degree(as_csr(adjacency))


def _by_degree(adjacency: sp.csr_array) -> np.ndarray:
    n = adjacency.shape[0]
    order = np.empty(n, np.int64)
    traversal.by_degree(adjacency.indptr, np.zeros(n + 2, np.int64), order)
    return order


def inverse_order(order) -> np.ndarray:
    """Where each node stands in an order: ``inverse[order[k]] == k``.

    Parameters
    ----------
    order : array of int, shape (n,)
        A permutation of 0..n-1.

    Returns
    -------
    ndarray of int64, shape (n,)

    Raises
    ------
    ValueError
        If a node is missing, and so another stands twice.

    Examples
    --------
    >>> from gnncy.graph import inverse_order
    >>> inverse_order([2, 0, 1])
    array([1, 2, 0])
    """
    order = np.asarray(order)
    order = check_ids(order, order.size, "order")
    inverse = np.full(len(order), -1, np.int64)
    inverse[order] = np.arange(len(order))
    if len(order) and inverse.min() < 0:
        raise ValueError(f"order must hold every node 0..{len(order) - 1} once, "
                         f"but node {int(inverse.argmin())} is missing")
    return inverse


def permute(adjacency, order) -> sp.csr_array:
    """The graph renumbered: its node k is node ``order[k]`` of ``adjacency``.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
    order : array of int, shape (n,)
        A permutation of the nodes, such as :func:`bfs_order` gives.

    Returns
    -------
    csr_array, shape (n, n)
        ``adjacency[order][:, order]``. Renumber rows of features with ``features[order]``; with
        ``inverse = inverse_order(order)``, ``permute(result, inverse)`` is ``adjacency`` again.

    Examples
    --------
    >>> from gnncy.graph import permute
    >>> permute([[0, 1, 0], [0, 0, 2], [0, 0, 0]], [2, 0, 1]).toarray()
    array([[0., 0., 0.],
           [0., 0., 1.],
           [2., 0., 0.]], dtype=float32)
    """
    adjacency = as_csr(adjacency)
    n = adjacency.shape[0]
    order = np.asarray(order)
    if order.shape != (n,) or order.dtype == bool:
        raise ValueError(f"order must hold the {n} nodes of the graph, got {order.dtype} of shape {order.shape}")
    order = check_ids(order, n, "order")
    inverse = inverse_order(order).astype(adjacency.indices.dtype)
    counts = np.diff(adjacency.indptr)[order]
    indptr = np.zeros_like(adjacency.indptr)
    np.cumsum(counts, out=indptr[1:])
    indices, data = np.empty_like(adjacency.indices), np.empty_like(adjacency.data)

    def work(start: int, stop: int) -> None:
        longest = counts[start:stop].max()
        traversal.permute(adjacency.indptr, adjacency.indices, adjacency.data, order, inverse, start, stop,
                          np.empty(longest, indices.dtype), np.empty(longest, data.dtype), indptr, indices, data)

    run_pieces(work, n, _ROWS)
    return sp.csr_array((data, indices, indptr), shape=(n, n))
