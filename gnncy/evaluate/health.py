"""Signs that an embedding has collapsed."""
import warnings
from typing import NamedTuple

import numpy as np

from gnncy._linalg import matmul
from gnncy._random import seed_from, stream
from gnncy._threads import working_threads
from gnncy.evaluate.rows import ROWS, as_dense, as_source, take_rows
from gnncy.graph import as_csr

SAMPLE = 1024
RANK, UNIFORMITY = 1.5, -0.1  # of a collapsed embedding


class CollapseWarning(UserWarning):
    """An embedding says (nearly) the same of all nodes.

    Examples
    --------
    >>> import warnings
    >>> from gnncy.evaluate import CollapseWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", CollapseWarning)  # to stop where it comes
    """


class EmbeddingHealth(NamedTuple):
    """Signs of collapse; see :func:`embedding_health`."""

    effective_rank: float
    uniformity: float
    dead_columns: float
    alignment: float = float("nan")

    @property
    def collapsed(self) -> bool:
        """Whether rows lie on a line or in a point: effective rank below 1.5, uniformity above -0.1."""
        return self.effective_rank < RANK or self.uniformity > UNIFORMITY


def embedding_health(embedding, adjacency=None, *, random_state=0) -> EmbeddingHealth:
    """Signs that an embedding has collapsed, without labels.

    Parameters
    ----------
    embedding : array or feature store of shape (n, d)
        Read in blocks of rows.
    adjacency : sparse array or matrix, shape (n, n), optional
        Whose edges join pairs that should be alike, for the alignment.
    random_state : int, None or numpy Generator
        Draws the rows for the uniformity, the edges for the alignment (1024 at most of either).

    Returns
    -------
    EmbeddingHealth
        ``effective_rank``, exp of the entropy of the singular values divided by their sum: d for rows spread evenly
        over all directions, 1 for rows on a line. ``uniformity``, log of the mean of ``exp(-2 |u - v|^2)`` over pairs
        of rows scaled to unit length: 0 if all are equal, towards -4 if spread over the sphere. ``dead_columns``, the
        share of columns with a standard deviation below 1e-5 of the entries' root mean square. ``alignment``, the mean
        of ``|u - v|^2`` over edges, 0 if linked rows are equal, 2 on average for unrelated ones; nan without edges.

    Warns
    -----
    CollapseWarning
        If the embedding has ``collapsed``.

    References
    ----------
    Q. Garrido et al., "RankMe", ICML 2023. T. Wang, P. Isola, "Understanding contrastive representation learning
    through alignment and uniformity on the hypersphere", ICML 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.evaluate import embedding_health
    >>> health = embedding_health(np.random.default_rng(0).normal(size=(2000, 16)))
    >>> round(health.effective_rank, 1), health.dead_columns
    (16.0, 0.0)
    """
    embedding = as_source(embedding, None)
    (n, d), seed = embedding.shape, seed_from(random_state)
    if n < 2 or d < 1:
        raise ValueError(f"embedding must have at least two rows and one column, got shape {(n, d)}")
    gram, total = np.zeros((d, d)), np.zeros(d)
    with working_threads():
        for start in range(0, n, ROWS):
            rows = as_dense(take_rows(embedding, np.arange(start, min(start + ROWS, n)), None))
            gram += matmul(rows.T, rows)
            total += rows.sum(axis=0)
        chosen = np.sort(stream(seed, "uniformity").permutation(n)[:SAMPLE])
        sample = as_dense(take_rows(embedding, chosen, "l2"))
        cosine = matmul(sample, sample.T)[np.triu_indices(len(sample), 1)]
        alignment = _alignment(embedding, adjacency, seed) if adjacency is not None else float("nan")
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    share = singular[singular > 0] / max(singular.sum(), np.finfo(float).tiny)
    spread = np.diag(gram) / n - (total / n) ** 2
    dead = spread <= 1e-10 * np.trace(gram) / (n * d)
    health = EmbeddingHealth(float(np.exp(-np.sum(share * np.log(share)))) if share.size else 0.0,
                             float(np.log(np.mean(np.exp(4 * (cosine - 1))))), float(dead.mean()), alignment)
    if health.collapsed and d > 1:
        warnings.warn(f"the embedding has collapsed: effective rank {health.effective_rank:.2f} of {min(n, d)}, "
                      f"uniformity {health.uniformity:.2f} (0 if all rows are equal); raise the number of negatives, "
                      "or lower the temperature or the learning rate", CollapseWarning, stacklevel=2)
    return health


def _alignment(embedding, adjacency, seed: int) -> float:
    graph = as_csr(adjacency)
    if graph.shape[0] != embedding.shape[0]:
        raise ValueError(f"adjacency has {graph.shape[0]} nodes, embedding {embedding.shape[0]} rows; one a node is "
                         "needed")
    arcs = np.sort(stream(seed, "alignment").permutation(graph.nnz)[:SAMPLE])
    ends = np.stack([np.searchsorted(graph.indptr, arcs, side="right") - 1, graph.indices[arcs]])
    ends = ends[:, ends[0] != ends[1]]
    if not ends.size:
        return float("nan")
    ids, place = np.unique(ends, return_inverse=True)
    rows = as_dense(take_rows(embedding, ids, "l2"))
    left, right = rows[place.reshape(ends.shape)]
    return float(np.mean(((left - right) ** 2).sum(axis=1)))
