"""An order of the nodes by communities inside communities."""
import numpy as np

from gnncy._check import check_int
from gnncy._kernels.graph import community
from gnncy._threads import run_pieces
from gnncy.graph.csr import as_csr
from gnncy.graph.order import bfs_order

_ROUNDS = 64  # parts of a sweep: groups of one part choose at the same moment
_PIECE = 256  # groups at least that a thread takes at a time


def community_order(adjacency, *, smallest: int = 64, growth: int = 8, sweeps: int = 4) -> np.ndarray:
    """Nodes by communities inside communities: neighbours lie together at every scale.

    Label propagation with a bound on the size of a community: each node takes the label that most of its neighbours
    have and that has room. The communities found then do the same among themselves, under a bound ``growth`` times as
    large, and so on. Communities stand in the breadth-first order of their first nodes.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        Arcs are followed in their direction and count alike; pass ``undirected(adjacency)`` to follow them both ways.
        The arrays may be memory-mapped: memory of some 50 bytes a node is needed beside them.
    smallest : int
        Most nodes of the smallest communities; the bounds above it are its multiples by ``growth``.
    growth : int
        Ratio of the bounds of one scale and the next.
    sweeps : int
        Times that every community chooses at each scale, at most.

    Returns
    -------
    ndarray of int64, shape (n,)
        A permutation, the same at any number of threads.

    See Also
    --------
    vip_order : often used rows first, in this order among their like.

    References
    ----------
    Raghavan, Albert and Kumara, Near linear time algorithm to detect community structures in large-scale networks,
    Physical Review E 2007; with bounded sizes: Meyerhenke, Sanders and Schulz, Partitioning complex networks via
    size-constrained clustering, SEA 2014.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.graph import community_order
    >>> parity = np.add.outer(np.arange(6), np.arange(6)) % 2 == 0  # even nodes know each other, and odd ones
    >>> community_order(parity & ~np.eye(6, dtype=bool), smallest=3)
    array([0, 2, 4, 1, 3, 5])
    """
    adjacency = as_csr(adjacency)
    smallest, growth = check_int(smallest, "smallest", 2), check_int(growth, "growth", 2)
    sweeps = check_int(sweeps, "sweeps", 1)
    n, dtype = adjacency.shape[0], adjacency.indices.dtype
    order = bfs_order(adjacency).astype(dtype)
    first = np.arange(n + 1, dtype=dtype)
    most = smallest
    while len(first) > 2 and most < n:
        label = _propagate(adjacency, order, first, most, sweeps)
        order, first = _merge(order, first, label)
        most *= growth
    return order.astype(np.int64)


def _propagate(adjacency, order: np.ndarray, first: np.ndarray, most: int, sweeps: int) -> np.ndarray:
    """A label for each group, shared by those that belong together; no more than ``most`` nodes of one label."""
    groups = len(first) - 1
    group = np.empty_like(order)
    group[order] = np.repeat(np.arange(groups, dtype=order.dtype), np.diff(first))
    label, size = np.arange(groups, dtype=order.dtype), np.diff(first)
    scratch: list[tuple[np.ndarray, np.ndarray]] = []  # one pair for each thread that has been at work
    part = -(-groups // _ROUNDS)
    proposed = np.empty(part, order.dtype)

    def work(start: int, stop: int) -> None:
        try:
            count, touched = scratch.pop()
        except IndexError:
            count, touched = np.zeros(groups, np.int64), np.empty(groups + 1, label.dtype)
        community.propose(adjacency.indptr, adjacency.indices, order, first, group, label, size, most, begin + start,
                          begin + stop, count, touched, proposed[start:stop])
        scratch.append((count, touched))

    for _ in range(sweeps):
        moved = 0
        for begin in range(0, groups, part):
            end = min(begin + part, groups)
            run_pieces(work, end - begin, _PIECE)
            moved += community.settle(first, proposed[:end - begin], most, begin, label, size)
        if moved * 100 < groups:
            break
    return label


def _merge(order: np.ndarray, first: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order and the first places of the groups that labels make of groups."""
    # Labels are numbered by the first group that has them; groups keep their order within a label.
    names, begins, number = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(begins)] = np.arange(len(names))
    number = rank[number]
    by_label = np.argsort(number, kind="stable")
    length = np.diff(first)[by_label]
    stop = np.cumsum(length)
    # Each group's nodes in turn, from wherever they stood.
    places = np.arange(len(order)) + np.repeat(first[by_label] - (stop - length), length)
    nodes = np.zeros(len(names) + 1, first.dtype)
    np.cumsum(np.bincount(number, weights=np.diff(first), minlength=len(names)).astype(first.dtype), out=nodes[1:])
    return order[places], nodes
