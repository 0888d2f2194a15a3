"""How probable it is that a node lies in a minibatch of a neighbour sampler."""
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gnncy._check import check_array, check_ids, check_int
from gnncy._kernels.graph import incidence, inclusion, traversal
from gnncy._threads import run_pieces
from gnncy.graph.csr import as_csr

_NODES = 1 << 14  # nodes of a piece
_HOPS = 32


def inclusion_probabilities(adjacency, seeds, fanouts: Sequence[int], batch_size: int, *, weights=None,
                            replace: bool = False) -> np.ndarray:
    r"""Probability of each node to be in a minibatch that :class:`NeighborSampler` draws from random seeds.

    Of the features that training reads, node v's row is read with this probability in every minibatch, so it says
    which rows to keep in memory and how much an epoch will read (vertex-inclusion probability, VIP).

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        What the sampler is given.
    seeds : array of int, shape (k,), or boolean mask, shape (n,)
        Distinct node ids, of which minibatches are drawn.
    fanouts : sequence of int
        Most neighbours of a node at each hop, the seeds' first; -1 takes all. At most 32 hops.
    batch_size : int
        Seeds in a minibatch.
    weights : array, shape (k,), optional
        How often each seed is drawn, relative to the others (``batch_size`` times its share, at most always); all the
        same by default.
    replace : bool
        Neighbours are drawn with replacement.

    Returns
    -------
    ndarray of float32, shape (n,)
        The same bits on any number of threads.

    Notes
    -----
    With :math:`q_t(u)` the probability that node u, expanded at hop t, takes a given neighbour (the fan-out over its
    degree, at most 1), a node is reached within h hops with probability

    .. math:: p_h(v) = 1 - (1 - p_0(v)) \prod_{u \to v} \bigl(1 - r_h(u \to v)\bigr),

    where :math:`r_h(u \to v)` is the probability that u is reached *without the help of v* and takes v at a hop after
    that and before h; it follows from :math:`p_0, \dots, p_{h-1}` of the two nodes alone. The approximation is
    independence: of the seeds from each other (they are drawn without replacement, so really a little negative), and
    of the ways that lead to a node through its neighbours. Hence it is exact for independent seeds on a graph without
    cycles (trees, in either direction of the arcs), and too high where a node is reached by several ways that share
    a part (triangles, communities smaller than what a minibatch reaches). SALIENT++ counts the echo of a node through
    its own neighbours too; on undirected graphs that is the larger error, and it is left out here.

    Each hop is one pass over the graph. It takes ``4 (len(fanouts) + 2)`` bytes a node, and for a graph that is not
    symmetric twice the graph's indices for its transpose.

    References
    ----------
    Kaler et al., Communication-efficient graph neural networks with probabilistic neighborhood expansion analysis and
    caching (SALIENT++), MLSys 2023.

    Examples
    --------
    A path 0 - 1 - 2 - 3, seed 0, two hops of one neighbour each: 1 takes 0 or 2.

    >>> from gnncy.graph import inclusion_probabilities
    >>> path = [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    >>> inclusion_probabilities(path, [0], fanouts=(1, 1), batch_size=1)
    array([1. , 1. , 0.5, 0. ], dtype=float32)
    """
    graph = as_csr(adjacency)
    n = graph.shape[0]
    limits, state = _begin(n, seeds, fanouts, batch_size, weights)
    np.subtract(graph.indptr[1:], graph.indptr[:-1], out=state[:, -1], casting="unsafe")
    in_indptr, in_indices = _arriving(graph)
    out = np.empty(n, np.float32)
    for hop in range(1, len(limits) + 1):
        target = state[:, hop] if hop < len(limits) else out

        def work(start: int, stop: int) -> None:
            inclusion.hop(graph.indptr, graph.indices, in_indptr, in_indices, state, limits, bool(replace),
                          hop, 0, start, stop, target)  # noqa: B023

        run_pieces(work, n, _NODES)
    return out


def inclusion_by_blocks(blocks: Callable[[], Iterable], n: int, degrees: np.ndarray, seeds, fanouts, batch_size: int
                        ) -> np.ndarray:
    """What :func:`inclusion_probabilities` gives for a symmetric graph of which some rows at a time are in memory.

    ``blocks()`` gives them once for each hop: the number of the first row, and a csr_array.
    """
    limits, state = _begin(n, seeds, fanouts, batch_size, None)
    state[:, -1] = degrees
    out = np.empty(n, np.float32)
    for hop in range(1, len(limits) + 1):
        target = state[:, hop] if hop < len(limits) else out
        for first, rows in blocks():
            indptr = rows.indptr.astype(rows.indices.dtype, copy=False)

            def work(start: int, stop: int) -> None:
                inclusion.hop(indptr, rows.indices, indptr, rows.indices, state, limits, False, hop, first,  # noqa: B023
                              first + start, first + stop, target)  # noqa: B023

            run_pieces(work, rows.shape[0], _NODES)
    return out


def _begin(n: int, seeds, fanouts, batch_size: int, weights) -> tuple[np.ndarray, np.ndarray]:
    """Fan-outs, infinite where all neighbours are taken; and the nodes' state before the first hop."""
    if isinstance(fanouts, (str, bytes)) or not hasattr(fanouts, "__len__") or not 0 < len(fanouts) <= _HOPS:
        raise TypeError(f"fanouts must be a sequence of 1 to {_HOPS} integers, one a hop, got {fanouts!r}")
    limits = np.array([check_int(k, f"fanouts[{hop}]", low=-1) for hop, k in enumerate(fanouts)], np.float64)
    if 0 in limits:
        raise ValueError(f"fanouts must be at least 1, or -1 for all neighbours, got {tuple(fanouts)}")
    limits[limits < 0] = np.inf
    state = np.zeros((n, len(limits) + 1), np.float32)
    seeds = check_ids(seeds, n, "seeds")
    state[seeds, 0] = seed_probabilities(len(seeds), batch_size, weights)
    if np.count_nonzero(state[:, 0]) != np.count_nonzero(state[seeds, 0]):
        raise ValueError("seeds must be distinct; give np.unique(seeds)")
    return limits, state


def seed_probabilities(n_seeds: int, batch_size: int, weights=None) -> np.ndarray | float:
    """Probability of each of the seeds to be in a minibatch."""
    batch_size = check_int(batch_size, "batch_size", low=1)
    if weights is None:
        return min(1.0, batch_size / max(n_seeds, 1))
    weights = check_array(weights, "weights", ndim=1, dtype=np.float64, allow_empty=True)
    if len(weights) != n_seeds or weights.min(initial=0) < 0 or (n_seeds and not weights.any()):
        raise ValueError(f"weights must hold one number of at least 0, not all 0, for each of the {n_seeds} seeds, "
                         f"got shape {weights.shape}")
    return np.minimum(1.0, batch_size * weights / max(weights.sum(), np.finfo(np.float64).tiny))


def _arriving(graph):
    """Row starts and sources of the arcs that end at each node: the graph's own where it is symmetric."""
    if incidence.symmetric(graph.indptr, graph.indices, graph.data, graph.indptr[:-1].copy()):
        return graph.indptr, graph.indices
    indptr = np.zeros_like(graph.indptr)
    indices, places = np.empty_like(graph.indices), np.empty_like(graph.indices)
    traversal.transpose(graph.indptr, graph.indices, indptr, indices, places)
    return indptr, indices
