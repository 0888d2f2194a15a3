"""Rows of an embedding, which may lie on disk, in float64."""
import numpy as np
from scipy import sparse

from gnncy._check import check_array, check_finite

ROWS = 8192  # rows of the embedding in memory at a time


def as_source(embedding, n):
    """The embedding as something with rows to take by an array of ids."""
    if sparse.issparse(embedding):
        embedding = sparse.csr_array(embedding)
    elif not hasattr(embedding, "shape"):
        embedding = np.asarray(embedding)
    if len(embedding.shape) != 2:
        raise ValueError(f"embedding must be 2-dimensional, got shape {tuple(embedding.shape)}")
    if n is not None and embedding.shape[0] != n:
        raise ValueError(f"embedding has {embedding.shape[0]} rows, labels {n}; one row a label is needed")
    return embedding


def take_rows(embedding, ids, normalize):
    """Rows of the embedding in float64, dense or CSR, of unit length if wanted (zero rows stay zero)."""
    # A copy either way, as ids is an array.
    rows = embedding.read_batch(ids) if hasattr(embedding, "read_batch") else embedding[ids]
    if sparse.issparse(rows):
        rows = sparse.csr_array(rows, dtype=np.float64)
        check_finite(rows.data, "embedding")
        if normalize == "l2":
            row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
            norm = np.sqrt(np.bincount(row, rows.data**2, rows.shape[0]))
            rows.data /= np.where(norm > 0, norm, 1)[row]
        return rows
    rows = check_array(rows, "embedding", dtype=np.float64)
    if normalize == "l2":
        norm = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        rows /= np.where(norm > 0, norm, 1)[:, None]
    return rows


def as_dense(rows):
    return rows.toarray() if sparse.issparse(rows) else rows
