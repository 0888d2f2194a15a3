"""One way to read rows by node id, from memory or from disk."""
import os
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from gnncy._check import check_ids
from gnncy.storage.features import FeatureStorage
from gnncy.storage.quantized import QuantizedFeatureStorage, is_quantized
from gnncy.storage.sparse import SparseFeatureStorage


class ArrayStorage:
    """An array in memory (or a memory map) that is read like a storage, with the same bits.

    Parameters
    ----------
    array : ndarray, shape (n_nodes, dim)
        Real numbers; float64 rows stay float64, others are read as float32. It is not copied.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import ArrayStorage
    >>> store = ArrayStorage(np.arange(6, dtype=np.float32).reshape(3, 2))
    >>> store.read_batch([2, 0])
    array([[4., 5.],
           [0., 1.]], dtype=float32)
    """

    ndim = 2

    def __init__(self, array: np.ndarray):
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"features must have shape (n_nodes, dim) with at least one row and column, got shape "
                             f"{array.shape}")
        if array.dtype.kind not in "fiub":
            raise TypeError(f"features must be real numbers, got dtype {array.dtype}")
        self.array = array
        self.shape: tuple[int, int] = array.shape
        self.dtype = np.dtype(np.float64 if array.dtype.kind == "f" and array.dtype.itemsize == 8 else np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.array.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"ArrayStorage({self.shape[0]} x {self.shape[1]} {self.array.dtype.name})"

    def read_batch(self, ids, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of the given nodes, as :meth:`FeatureStorage.read_batch`."""
        ids = check_ids(ids, self.shape[0], "ids")
        if out is None:
            out = np.empty((len(ids), self.shape[1]), self.dtype)
        if self.array.dtype == out.dtype:
            # ids are checked; any other mode would gather into a second array first
            np.take(self.array, ids, axis=0, out=out, mode="clip")
        else:
            out[...] = self.array[ids]
        return out

    take = read_batch

    def close(self) -> None:
        """Nothing to let go of."""


def as_storage(features):
    """Something whose ``read_batch`` gives rows of features, for whatever holds them.

    Parameters
    ----------
    features : storage, path-like, sparse array or array-like
        A storage and a sparse array come back as they are; a path is opened (a directory as
        :class:`SparseFeatureStorage`, a file as :class:`FeatureStorage` or :class:`QuantizedFeatureStorage`) and is
        the caller's to close; anything else is taken for a dense array.

    Returns
    -------
    FeatureStorage, SparseFeatureStorage, ArrayStorage or sparse array
        A sparse array in memory has no ``read_batch``; its rows are taken by indexing.

    Raises
    ------
    FileNotFoundError, StorageError
        If a path leads nowhere, or to something else than a store.
    TypeError, ValueError
        If an array is not one of real numbers with rows and columns.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import as_storage
    >>> as_storage(np.eye(3)).read_batch([2, 0])
    array([[0., 0., 1.],
           [1., 0., 0.]])
    """
    if isinstance(features, (FeatureStorage, SparseFeatureStorage, ArrayStorage)) or sp.issparse(features):
        return features
    if isinstance(features, (str, os.PathLike)):
        if Path(features).is_dir():
            return SparseFeatureStorage(features)
        return QuantizedFeatureStorage(features) if is_quantized(features) else FeatureStorage(features)
    if all(hasattr(features, name) for name in ("read_batch", "shape", "dtype")):
        return features
    return ArrayStorage(np.asarray(features))
