"""Edges held out of a graph, and pairs of nodes without one, to measure the prediction of links."""
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import minimum_spanning_tree

from gnncy._check import check_float, check_int
from gnncy._random import seed_from, stream
from gnncy.graph import as_csr


class EdgeSplit(NamedTuple):
    """A graph without some of its edges, and these; pairs are int64 of shape (m, 2).

    Attributes
    ----------
    train : csr_array of shape (n, n)
        The adjacency without the other parts' edges, in either direction.
    val, test : ndarray
        Edges held out. Of an undirected graph each stands once, the smaller id first; of a directed one as arcs.
    val_negatives, test_negatives : ndarray
        As many pairs that have no edge in the whole graph, all different.
    """

    train: csr_array
    val: np.ndarray
    test: np.ndarray
    val_negatives: np.ndarray
    test_negatives: np.ndarray


def split_edges(adjacency, val: float = 0.05, test: float = 0.10, *, connected: bool = False,
                random_state=0) -> EdgeSplit:
    """Hold out edges for validation and test, and draw as many pairs of nodes without an edge.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        Self-loops stay where they are.
    val, test : float
        Shares of the linked pairs of nodes.
    connected : bool
        Never hold out the edges of a (random) spanning forest, so that what was connected stays so.
    random_state : int, None or numpy Generator

    Returns
    -------
    EdgeSplit

    Raises
    ------
    ValueError
        If a part would be empty, or there are too few edges, or pairs without one.
    GraphFormatError
        If the adjacency is not a graph's.

    Notes
    -----
    The shares are those of Kipf and Welling's variational graph autoencoder. Unlike there, both directions of a linked
    pair go to the same part in directed graphs too, and no negative is an edge of any part or drawn twice. Features
    that were computed from the whole graph, or an encoder trained on it, have seen the answers: use ``train`` for both.

    References
    ----------
    T. N. Kipf, M. Welling, "Variational graph auto-encoders", 2016.

    Examples
    --------
    >>> from gnncy.datasets import make_sbm, split_edges
    >>> data = make_sbm(300, 3, seed=0)
    >>> split = split_edges(data.adjacency)
    >>> split.train.nnz // 2 + len(split.val) + len(split.test) == data.n_edges
    True
    >>> len(split.test_negatives) == len(split.test)
    True
    """
    adjacency = as_csr(adjacency)
    val, test = (check_float(share, name, 0, 1) for share, name in ((val, "val"), (test, "test")))
    seed = seed_from(random_state)
    n = adjacency.shape[0]
    keys, directed = _pair_keys(adjacency)
    order = stream(seed, "edges").permutation(len(keys))
    if connected:
        forest = _forest_keys(keys, order, n)
        order = order[~np.isin(keys[order], forest)]
    counts = [int(share * len(keys)) for share in (val, test)]
    for count, name, share in zip(counts, ("val", "test"), (val, test), strict=True):
        if share > 0 and count == 0:
            raise ValueError(f"{name}={share:g} of {len(keys)} linked pairs is none; raise it, or set it to 0")
    if sum(counts) > len(order) or sum(counts) == len(keys):
        raise ValueError(f"{sum(counts)} of {len(keys)} linked pairs cannot be held out: {len(order)} may be; "
                         "lower val and test" + (", or connected=False" if connected else ""))
    parts = keys[order[:counts[0]]], keys[order[counts[0]:sum(counts)]]
    row, col = _arcs(adjacency)
    arc = np.minimum(row, col) * n + np.maximum(row, col)
    pairs = [_pairs(np.sort(part), n) for part in parts]
    if directed:
        pairs = [np.stack([row, col], 1)[np.isin(arc, part)] for part in parts]
    stays = ~np.isin(arc, np.concatenate(parts))
    train = csr_array(coo_array((adjacency.data[stays], (row[stays], col[stays])), shape=adjacency.shape))
    negatives = sample_non_edges(adjacency, len(pairs[0]) + len(pairs[1]), random_state=seed)
    return EdgeSplit(as_csr(train), pairs[0], pairs[1], negatives[:len(pairs[0])], negatives[len(pairs[0]):])


def sample_non_edges(adjacency, count: int, *, random_state=0) -> np.ndarray:
    """Different pairs of nodes, uniformly drawn of those that are not linked in either direction.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
    count : int
    random_state : int, None or numpy Generator

    Returns
    -------
    ndarray of int64, shape (count, 2)
        The smaller id first, of each pair (undirected graph), or in random order (directed graph).

    Raises
    ------
    ValueError
        If there are fewer such pairs.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.datasets import sample_non_edges
    >>> path = np.diag(np.ones(3), 1) + np.diag(np.ones(3), -1)
    >>> sorted(map(tuple, sample_non_edges(path, 3).tolist()))
    [(0, 2), (0, 3), (1, 3)]
    """
    adjacency = as_csr(adjacency)
    count = check_int(count, "count", 0)
    n, seed = adjacency.shape[0], seed_from(random_state)
    keys, directed = _pair_keys(adjacency)
    free = n * (n - 1) // 2 - len(keys)
    if count > free:
        raise ValueError(f"count={count} pairs without an edge are wanted, the graph has {free}")
    if 2 * count > free:  # so few are left that all can be listed: rejection would take long
        found = np.concatenate([row * n + np.arange(row + 1, n) for row in range(n - 1)]) if n > 1 else np.zeros(0, int)
        found = found[~np.isin(found, keys)]
        found = found[stream(seed, "negatives").permutation(len(found))][:count]
    else:
        found, turn = np.zeros(0, np.int64), 0
        while len(found) < count:
            u, v = stream(seed, "negatives", turn).integers(0, n, (2, 2 * (count - len(found)) + 64))
            drawn = (np.minimum(u, v) * n + np.maximum(u, v))[u != v]
            found = np.concatenate([found, drawn[~np.isin(drawn, keys)]])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
            turn += 1
        found = found[:count]
    pairs = _pairs(found, n)
    if directed:
        turned = stream(seed, "directions").random(count) < 0.5
        pairs[turned] = pairs[turned, ::-1]
    return pairs


def _arcs(adjacency: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every entry, int64."""
    return (np.repeat(np.arange(adjacency.shape[0], dtype=np.int64), np.diff(adjacency.indptr)),
            adjacency.indices.astype(np.int64))


def _pair_keys(adjacency: csr_array) -> tuple[np.ndarray, bool]:
    """``smaller * n + larger`` of every linked pair, ascending, and whether some pair has one arc only."""
    row, col = _arcs(adjacency)
    keys = (np.minimum(row, col) * adjacency.shape[0] + np.maximum(row, col))[row != col]
    unique, arcs = np.unique(keys, return_counts=True)
    return unique, bool((arcs == 1).any())


def _pairs(keys: np.ndarray, n: int) -> np.ndarray:
    return np.stack(np.divmod(keys, n), axis=1) if n else np.zeros((0, 2), np.int64)


def _forest_keys(keys: np.ndarray, order: np.ndarray, n: int) -> np.ndarray:
    """Keys of the edges of a spanning forest, the later in ``order`` the likelier."""
    weight = np.empty(len(keys))
    weight[order] = np.arange(len(keys), 0, -1)
    u, v = np.divmod(keys, n)
    forest = minimum_spanning_tree(csr_array(coo_array((weight, (u, v)), shape=(n, n)))).tocoo()
    return np.minimum(forest.row, forest.col).astype(np.int64) * n + np.maximum(forest.row, forest.col)
