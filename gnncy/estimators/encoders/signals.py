"""What is known without labels: which way to smooth a graph, where its nodes stand in it, how reliable features are."""
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, issparse

from gnncy._linalg import matmul
from gnncy._random import stream
from gnncy.estimators.encoders.matrices import mean_matrix
from gnncy.estimators.stored import Graph, arc_counts, row_blocks
from gnncy.storage.passes import chunk_rows, is_sparse, iter_nodes, unit_rows
from gnncy.storage.passes.diffuse import multiply

DISASSORTATIVE = -0.11  # below it, arcs lead from small nodes to hubs: taxonomies, package relations, followers
JUDGED = 8_192  # nodes by which features are judged
RIDGES = 10.0 ** np.arange(-3, 2)  # of which the best is taken
HOPS = 3
PLACE = 3  # columns of `structure` for each number of hops


def degree_assortativity(adjacency: Graph) -> float:
    """Correlation of the logarithms of the degrees at the two ends of an arc, -1 to 1; 0 where all are equal.

    The graph must be symmetric. After M. E. J. Newman, "Assortative mixing in networks", Physical Review Letters 89
    (2002); the logarithm keeps a few hubs from deciding alone.
    """
    degree = arc_counts(adjacency)
    log_degree = np.log(np.maximum(degree, 1))
    arcs = adjacency.nnz
    if not arcs:
        return 0.0
    mean = degree @ log_degree / arcs
    centred = log_degree - mean
    variance = degree @ centred**2 / arcs
    if variance < 1e-12:
        return 0.0
    sums = np.zeros(len(degree))
    for first, rows in row_blocks(adjacency):
        filled = np.flatnonzero(np.diff(rows.indptr))  # reduceat gives an empty row the entry that follows
        sums[first + filled] = np.add.reduceat(centred[rows.indices], rows.indptr[filled])
    return float(centred @ sums / arcs / variance)


def row_lengths(features) -> np.ndarray:
    """Euclidean length of every row, in one pass."""
    lengths = np.empty(features.shape[0], np.float32)
    for start, rows in iter_nodes(features):
        squares = rows.multiply(rows).sum(axis=1) if issparse(rows) else np.einsum("ij,ij->i", rows, rows)
        lengths[start:start + rows.shape[0]] = np.sqrt(squares)
    return lengths


def structure(directed: Graph, both_ways: Graph, lengths: np.ndarray, folder: Path | None = None) -> np.ndarray:
    """What scaling rows to length 1 and averaging over neighbours lose, ``n x (HOPS + 1) x PLACE``.

    The logarithms of a row's length and of the degree, the logarithm of out-degree over in-degree, and the
    means of these over the neighbours once, twice and three times. A graph on disk must be symmetric; its matrix of
    means is written to ``folder``.
    """
    n = len(lengths)
    out = arc_counts(directed)
    into = np.bincount(directed.indices, minlength=n) if isinstance(directed, csr_array) else out
    found = np.empty((n, HOPS + 1, PLACE), np.float32)
    found[:, 0] = np.stack([np.log1p(lengths), np.log1p(arc_counts(both_ways)), np.log1p(out) - np.log1p(into)], axis=1)
    heard = np.empty((n, PLACE), np.float32)
    with mean_matrix(both_ways, folder) as mean_over_neighbors:
        for hop in range(HOPS):
            multiply(mean_over_neighbors, np.ascontiguousarray(found[:, hop]), heard)
            found[:, hop + 1] = heard
    return found


def split_half_reliability(features, reducer, seed: int) -> float:
    """The share of the variance of one half of the feature columns that the other half foretells, 0 to 1.

    By ridge regression, fitted on half of a sample of nodes and judged by the other, where the best of a few strengths
    counts. Of noise nothing is foretold.
    """
    (n, d), rng = features.shape, stream(seed, "halves")
    half = rng.random(d) < 0.5
    ids = np.sort(rng.choice(n, min(n, JUDGED), replace=False))
    part_of = rng.permutation(len(ids)) % 2  # fits, judges
    width = reducer.width if reducer is not None else d
    moments, sums = np.zeros((2, 2 * width, 2 * width)), np.zeros((2, 2 * width))
    size = chunk_rows(4 * width if is_sparse(features) else max(4 * width, d))
    for start in range(0, len(ids), size):
        some = ids[start:start + size]
        rows = features[some] if issparse(features) else features.read_batch(some)
        images = np.hstack([_image(rows, columns, reducer) for columns in (half, ~half)], dtype=np.float64)
        for part in range(2):
            some_images = images[part_of[start:start + size] == part]
            moments[part] += matmul(some_images.T, some_images)
            sums[part] += some_images.sum(axis=0)
    for part, count in enumerate(np.bincount(part_of)):
        moments[part] -= np.outer(sums[part], sums[part] / count)
    (own, _), (cross, cross_judged) = moments[:, :width, :width], moments[:, :width, width:]
    variance = np.trace(moments[1, width:, width:])
    mean = np.trace(own) / width
    if not variance > 0 or not mean > 0:
        return 0.0
    best = 0.0
    for ridge in RIDGES:
        weights = np.linalg.solve(own + ridge * mean * np.eye(width), cross)
        gained = 2 * (weights * cross_judged).sum() - (weights * (moments[1, :width, :width] @ weights)).sum()
        best = max(best, float(gained / variance))
    return min(best, 1.0)


def _image(rows, columns: np.ndarray, reducer) -> np.ndarray:
    """Rows of length 1 of some of the columns alone, as the encoder reads them."""
    if issparse(rows):
        rows = csr_array((rows.data * columns[rows.indices], rows.indices, rows.indptr), shape=rows.shape)
    else:
        rows = rows * columns
    return unit_rows(rows if reducer is None else reducer.transform(rows))
