"""What a graph says about itself without labels: which way to smooth it, and where its nodes stand in it."""
import numpy as np
from scipy.sparse import csr_array, issparse

from gnncy.graph import degrees, normalize, spmm
from gnncy.storage.passes import iter_nodes

DISASSORTATIVE = -0.11  # below it, arcs lead from small nodes to hubs: taxonomies, package relations, followers
HOPS = 3
PLACE = 3  # columns of `structure` for each number of hops


def degree_assortativity(adjacency: csr_array) -> float:
    """Correlation of the logarithms of the degrees at the two ends of an arc, -1 to 1; 0 where all are equal.

    The graph must be symmetric. After M. E. J. Newman, "Assortative mixing in networks", Physical Review Letters 89
    (2002); the logarithm keeps a few hubs from deciding alone.
    """
    degree = degrees(adjacency)
    log_degree = np.log(np.maximum(degree, 1))
    arcs = adjacency.nnz
    if not arcs:
        return 0.0
    mean = degree @ log_degree / arcs
    centred = log_degree - mean
    variance = degree @ centred**2 / arcs
    if variance < 1e-12:
        return 0.0
    sums = np.add.reduceat(np.append(centred[adjacency.indices], 0.0), adjacency.indptr[:-1])
    sums[degree == 0] = 0.0  # reduceat gives an empty row the entry that follows
    return float(centred @ sums / arcs / variance)


def row_lengths(features) -> np.ndarray:
    """Euclidean length of every row, in one pass."""
    lengths = np.empty(features.shape[0], np.float32)
    for start, rows in iter_nodes(features):
        squares = rows.multiply(rows).sum(axis=1) if issparse(rows) else np.einsum("ij,ij->i", rows, rows)
        lengths[start:start + rows.shape[0]] = np.sqrt(squares)
    return lengths


def structure(directed: csr_array, both_ways: csr_array, lengths: np.ndarray) -> np.ndarray:
    """What scaling rows to length 1 and averaging over neighbours lose, ``n x (HOPS + 1) x PLACE``.

    The logarithms of a row's length and of the degree, the logarithm of out-degree over in-degree, and the
    means of these over the neighbours once, twice and three times.
    """
    n = len(lengths)
    out = degrees(directed)
    into = np.bincount(directed.indices, minlength=n)
    found = np.empty((n, HOPS + 1, PLACE), np.float32)
    found[:, 0] = np.stack([np.log1p(lengths), np.log1p(degrees(both_ways)), np.log1p(out) - np.log1p(into)], axis=1)
    mean_over_neighbors = normalize(both_ways, "row", self_loops=0.0)
    for hop in range(HOPS):
        found[:, hop + 1] = spmm(mean_over_neighbors, np.ascontiguousarray(found[:, hop]))
    return found
