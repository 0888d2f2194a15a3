"""Signs that an embedding has collapsed."""
from typing import NamedTuple

import numpy as np

from gnncy._linalg import matmul
from gnncy._random import seed_from, stream
from gnncy._threads import working_threads
from gnncy.evaluate.rows import ROWS, as_dense, as_source, take_rows


class EmbeddingHealth(NamedTuple):
    """Signs of collapse; see :func:`embedding_health`."""

    effective_rank: float
    uniformity: float
    dead_columns: float


def embedding_health(embedding, *, random_state=0) -> EmbeddingHealth:
    """Signs that an embedding has collapsed, without labels.

    Parameters
    ----------
    embedding : array or feature store of shape (n, d)
        Read in blocks of rows.
    random_state : int, None or numpy Generator
        Draws the rows (1024 at most) for the uniformity.

    Returns
    -------
    EmbeddingHealth
        ``effective_rank``, exp of the entropy of the singular values divided by their sum: d for rows spread evenly
        over all directions, 1 for rows on a line. ``uniformity``, log of the mean of ``exp(-2 |u - v|^2)`` over pairs
        of rows scaled to unit length: 0 if all are equal, towards -4 if spread over the sphere. ``dead_columns``, the
        share of columns with a standard deviation below 1e-5 of the entries' root mean square.

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
    n, d = embedding.shape
    if n < 2 or d < 1:
        raise ValueError(f"embedding must have at least two rows and one column, got shape {(n, d)}")
    gram, total = np.zeros((d, d)), np.zeros(d)
    with working_threads():
        for start in range(0, n, ROWS):
            rows = as_dense(take_rows(embedding, np.arange(start, min(start + ROWS, n)), None))
            gram += matmul(rows.T, rows)
            total += rows.sum(axis=0)
        chosen = np.sort(stream(seed_from(random_state), "uniformity").permutation(n)[:1024])
        sample = as_dense(take_rows(embedding, chosen, "l2"))
        cosine = matmul(sample, sample.T)[np.triu_indices(len(sample), 1)]
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    share = singular[singular > 0] / max(singular.sum(), np.finfo(float).tiny)
    spread = np.diag(gram) / n - (total / n) ** 2
    dead = spread <= 1e-10 * np.trace(gram) / (n * d)
    return EmbeddingHealth(float(np.exp(-np.sum(share * np.log(share)))) if share.size else 0.0,
                           float(np.log(np.mean(np.exp(4 * (cosine - 1))))), float(dead.mean()))
