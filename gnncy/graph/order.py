"""Orders of the nodes, and graphs renumbered by them."""
import numpy as np
import scipy.sparse as sp

from gnncy._check import check_array, check_ids, check_int
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
    order = np.empty(n + 1, adjacency.indices.dtype)
    traversal.bfs(adjacency.indptr, adjacency.indices, roots, np.zeros(n, np.uint8), order)
    return order[:n].astype(np.int64)


def rcm_order(adjacency) -> np.ndarray:
    """Nodes in reverse Cuthill-McKee order: the entries of the matrix come to lie near its diagonal.

    Each component is searched breadth-first from a node at its rim, the new neighbours of a node by rising degree,
    ties by falling id; the whole order is then reversed. The rim is found by going from the node of least degree to one
    of least degree in the last level, as long as the number of levels rises; in a graph that is shallow (fewer levels
    than the cube root of its nodes) only once.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        Meant for symmetric graphs: make another one so with :func:`undirected`. Arcs are followed in their direction.

    Returns
    -------
    ndarray of int64, shape (n,)
        A permutation: ``order[k]`` is the k-th node.

    See Also
    --------
    permute : the graph renumbered by an order.

    References
    ----------
    Cuthill and McKee, Reducing the bandwidth of sparse symmetric matrices, ACM 1969; the start: George and Liu, An
    implementation of a pseudoperipheral node finder, ACM Transactions on Mathematical Software 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import coo_array
    >>> from gnncy.graph import rcm_order, undirected
    >>> path = coo_array((np.ones(4), ([0, 3, 1, 4], [3, 1, 4, 2])), shape=(5, 5))
    >>> rcm_order(undirected(path))
    array([0, 3, 1, 4, 2])
    """
    adjacency = as_csr(adjacency)
    n, dtype = adjacency.shape[0], adjacency.indices.dtype
    rising = np.ascontiguousarray(_by_degree(adjacency)[::-1], dtype)
    rank = np.empty(n, dtype)
    rank[rising] = np.arange(n, dtype=dtype)
    order = np.empty(n + 1, dtype)
    traversal.cuthill_mckee(adjacency.indptr, adjacency.indices, rising, rank, np.zeros(n, np.uint8),
                            np.empty(n, dtype), order)
    return order[:n][::-1].astype(np.int64)


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


def vip_order(probabilities, within=None) -> np.ndarray:
    """Nodes that are used often first, in bins by the power of two of their probability.

    The hot rows of a store in this order are its first ones: they are read in one piece, and whether a row is hot is
    a comparison. Inside a bin, whose probabilities differ by less than a factor of two, another order may have its way.

    Parameters
    ----------
    probabilities : array of float, shape (n,)
        How often each node is used: probabilities of inclusion in a minibatch, access counts, degrees. At least 0.
    within : array of int, shape (n,), optional
        A permutation of the nodes to keep inside the bins, such as :func:`community_order` gives; by default that of
        the ids.

    Returns
    -------
    ndarray of int64, shape (n,)
        A permutation. Nodes of probability 0 come last.

    Raises
    ------
    ValueError
        If a probability is negative, nan or infinite, or ``within`` does not hold every node once.

    References
    ----------
    Kaler et al., Communication-efficient graph neural networks with probabilistic neighborhood expansion analysis and
    caching (SALIENT++, vertex-wise inclusion probabilities), MLSys 2023.

    Examples
    --------
    >>> from gnncy.graph import vip_order
    >>> vip_order([0.3, 0.0, 0.9, 0.4, 0.6], within=[4, 3, 2, 1, 0])
    array([4, 2, 3, 0, 1])
    """
    probabilities = check_array(probabilities, "probabilities", ndim=1, allow_empty=True)
    if probabilities.size and probabilities.min() < 0:
        node = int(probabilities.argmin())
        raise ValueError(f"probabilities must be at least 0, got {probabilities[node]:g} at node {node}")
    n = len(probabilities)
    order = np.arange(n) if within is None else inverse_order(inverse_order(within))
    if len(order) != n:
        raise ValueError(f"within must hold the {n} nodes that probabilities are of, got {len(order)}")
    exponent = np.frexp(probabilities)[1]
    exponent[probabilities == 0] = np.iinfo(exponent.dtype).min
    return order[np.argsort(-exponent[order].astype(np.int64), kind="stable")]


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
