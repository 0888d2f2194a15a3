"""Wide or sparse features made dense and narrow on the way in, by a documented and seeded method."""
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import qr
from scipy.sparse import csr_array, issparse

from gnncy._check import check_choice, check_int
from gnncy._files import replacing
from gnncy._linalg import matmul
from gnncy._memory import aligned_empty
from gnncy._random import derive, stream
from gnncy._threads import run_pieces
from gnncy.graph import spmm
from gnncy.storage.passes.diffuse import Diffusion, Matrix, as_matrix
from gnncy.storage.passes.tiles import TILE, ColumnTiles

CHUNK = 2**19  # values in a chunk of dense rows: never the memory limit's, so that sums over chunks do not depend on it
SPARSE_ROWS = 4096  # rows in a chunk of sparse ones
OVERSAMPLING = 16
PANEL = 64  # columns of the basis that are summed at once
BAG_OF_WORDS_DENSITY = 0.25


def chunk_rows(width: int) -> int:
    """Rows in a chunk of dense rows of a width: about 2 MB of float32, a multiple of 256 rows."""
    return max(256, CHUNK // width // 256 * 256)


def is_sparse(features) -> bool:
    """Whether features are a sparse array or a store of one."""
    return issparse(features) or hasattr(features, "nnz")


def iter_nodes(features, chunk: int | None = None) -> Iterator[tuple[int, Any]]:
    """``(first node, rows)`` of features in node order: CSR rows of sparse features, else dense rows."""
    n, d = features.shape
    if chunk is None:
        chunk = SPARSE_ROWS if is_sparse(features) else chunk_rows(d)
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        if issparse(features) or isinstance(features, np.ndarray):
            rows = features[start:stop]
        else:
            rows = features.read_batch(np.arange(start, stop))
        yield start, csr_array(rows) if issparse(rows) else rows


class FeatureReducer:
    """Maps rows of features to a few dense columns, streaming.

    Parameters
    ----------
    width : int
        Columns of the result.
    method : {"svd", "hash"}, default "svd"
        ``"svd"``: the leading right singular vectors of the (diffused) features, by randomised subspace
        iteration [1]_. ``"hash"``: signed feature hashing [2]_, needs no pass over the data and no memory, and
        keeps less.
    seed : int, default 0
    n_iter : int, default 2
        Subspace iterations.

    Notes
    -----
    Non-negative features of which at most a quarter are non-zero are taken for a bag of words: each column
    is weighted by its inverse document frequency :math:`\\log((1+n)/(1+\\mathrm{df}))` and each row scaled to length 1.
    Other features are used as they are.

    With ``diffusion`` given to :meth:`fit`, the basis is that of the *diffused* features :math:`S X`, which is what an
    encoder of smoothed features needs; :math:`S X` is never formed: :math:`S` is applied to 16 columns at a time.

    References
    ----------
    .. [1] N. Halko, P. G. Martinsson, J. A. Tropp, "Finding structure with randomness: probabilistic algorithms
       for constructing approximate matrix decompositions", SIAM Review 53 (2011).
    .. [2] K. Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import random_array
    >>> words = random_array((200, 50), density=0.1, random_state=np.random.default_rng(0), dtype=np.float32).tocsr()
    >>> from gnncy.storage.passes import FeatureReducer
    >>> reducer = FeatureReducer(8, seed=0).fit(words)
    >>> reducer.transform(words[:3]).shape
    (3, 8)
    """

    def __init__(self, width: int, method: str = "svd", *, seed: int = 0, n_iter: int = 2) -> None:
        self.width = check_int(width, "width", 1)
        self.method = check_choice(method, "method", ("svd", "hash"))
        self.n_iter = check_int(n_iter, "n_iter", 0)
        self.seed = seed

    def fit(self, features, matrix: csr_array | Matrix | None = None, diffusion: Diffusion | None = None,
            folder=None, tiles: int = 1) -> "FeatureReducer":
        """Learn the map from all rows of ``features`` (sparse, array or store, ``n x d``).

        With a ``diffusion`` over ``matrix``, a scratch file of ``4 n (width + 16)`` bytes lies in ``folder``.
        ``matrix`` must be symmetric: the diffusion is applied as its own transpose. ``matrix`` and ``tiles`` are those
        of :func:`diffuse_tiles`.
        """
        n, d = features.shape
        self.column_weight_ = _inverse_document_frequency(features)
        if self.method == "hash":
            self.basis_ = _signed_hash(d, self.width, self.seed)
            return self
        if self.width > min(n, d):
            raise ValueError(f"width must be at most min(n, d) = {min(n, d)} for method 'svd', got {self.width}")
        k = min(self.width + OVERSAMPLING, d, n)
        basis = stream(self.seed, "svd").standard_normal((d, k), dtype=np.float32)
        for _ in range(self.n_iter):
            basis = _orthonormal(self._normal_operator(features, basis, matrix, diffusion, folder, tiles))
        if self.n_iter == 0:
            basis = _orthonormal(np.asfortranarray(basis))
        image = self._normal_operator(features, basis, matrix, diffusion, folder, tiles)
        gram = matmul(basis.T, image).astype(np.float64)
        del image
        values, vectors = np.linalg.eigh((gram + gram.T) / 2)
        leading = fixed_signs(vectors[:, ::-1][:, :self.width]).astype(np.float32)
        self.basis_ = matmul(basis, leading)
        self.singular_values_ = np.sqrt(np.maximum(values[::-1][:self.width], 0))
        return self

    def transform(self, rows) -> np.ndarray:
        """Dense ``k x width`` float32 image of ``k`` rows (sparse or dense)."""
        return _product(_weighted(rows, self.column_weight_), self.basis_)

    def memory_needed(self, n: int, d: int, tiles: int = 1) -> int:
        """Bytes that :meth:`fit` holds for an ``n x d`` matrix, beside a chunk of its rows."""
        if self.method == "hash":
            return 8 * d
        k = self.width + OVERSAMPLING
        return 4 * (d * k + CHUNK + max(d * (k + PANEL) + SPARSE_ROWS * PANEL, 3 * n * TILE * tiles))

    def save(self, folder) -> None:
        """Write the fitted map into a folder, as ``basis.npy`` and ``column_weight.npy``, each whole or absent."""
        weight = np.zeros(0, np.float32) if self.column_weight_ is None else self.column_weight_
        for name, array in (("column_weight", weight), ("basis", self.basis_)):
            if not issparse(array):
                with replacing(Path(folder) / f"{name}.npy") as temporary, open(temporary, "wb") as f:
                    np.save(f, array)

    def load(self, folder, d: int) -> bool:
        """Restore what :meth:`save` wrote, for features of ``d`` columns; False if there is nothing.

        The basis is memory-mapped: it takes memory while it is used, and none before.
        """
        last = "column_weight" if self.method == "hash" else "basis"
        if not (Path(folder) / f"{last}.npy").exists():
            return False
        weight = np.load(Path(folder) / "column_weight.npy")
        self.column_weight_ = weight if len(weight) else None
        self.basis_ = (_signed_hash(d, self.width, self.seed) if self.method == "hash"
                       else np.load(Path(folder) / "basis.npy", mmap_mode="r"))
        return True

    def _normal_operator(self, features, basis, matrix, diffusion, folder, tiles) -> np.ndarray:
        """``(S X)^T (S X) basis``, in Fortran order."""
        n, (d, k) = features.shape[0], basis.shape
        chunk = chunk_rows(k if is_sparse(features) else max(d, k))
        result = np.zeros((d, k), np.float32, order="F")

        def images():
            dense = np.ascontiguousarray(basis)
            for start, rows in iter_nodes(features, chunk):
                yield start, _product(_weighted(rows, self.column_weight_), dense)

        def accumulate(parts):
            for (_, rows), (_, part) in zip(iter_nodes(features, chunk), parts, strict=True):
                back = _transposed(_weighted(rows, self.column_weight_))
                for first in range(0, k, PANEL):
                    panel = slice(first, first + PANEL)
                    result[:, panel] += _product(back, np.ascontiguousarray(part[:, panel]))

        if diffusion is None:
            accumulate(images())
            return result
        with ColumnTiles(folder, n, k) as image:
            for start, part in images():
                image.write_rows(start, part)
            graph = as_matrix(matrix)  # checked once
            tiles = min(tiles, image.n_tiles)
            arrays = [aligned_empty((tiles, n, TILE)) for _ in range(3)]
            for tile in range(0, image.n_tiles, tiles):
                x, out, scratch = (array[:image.n_tiles - tile] for array in arrays)
                once = diffusion(graph, image.read_tile(tile, x), out, scratch)
                image.write_tile(tile, diffusion(graph, once, x, scratch))
            del arrays, x, out, scratch, once
            accumulate(image.iter_rows(chunk))
        return result


def fixed_signs(vectors: np.ndarray) -> np.ndarray:
    """Eigenvectors (columns) with their largest entry made positive: the sign that LAPACK gives is arbitrary."""
    return vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the columns; in place for a Fortran-ordered array."""
    return qr(columns, mode="economic", overwrite_a=True, check_finite=False)[0]


def _transposed(rows):
    return rows.T.tocsr() if issparse(rows) else rows.T


def reduced_tiles(features, reducer: FeatureReducer | None, folder, *, normalize_rows: bool = True) -> ColumnTiles:
    """Features, reduced if a reducer is given and each row scaled to length 1, as scratch column tiles."""
    width = features.shape[1] if reducer is None else reducer.width
    tiles = ColumnTiles(folder, features.shape[0], width)
    for start, rows in iter_nodes(features):
        if reducer is not None:
            rows = reducer.transform(rows)
        elif not isinstance(rows, np.ndarray):
            rows = rows.toarray()
        tiles.write_rows(start, unit_rows(rows) if normalize_rows else rows)
    return tiles


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows shorter than 1e-12 become zero."""
    from gnncy._kernels import rows as kernel
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    out, norm = np.empty_like(rows), np.empty(len(rows), rows.dtype)
    run_pieces(lambda start, stop: kernel.normalise(rows[start:stop], out[start:stop], norm[start:stop]),
               len(rows), 1024)
    return out


def _inverse_document_frequency(features) -> np.ndarray | None:
    n, d = features.shape
    count = np.zeros(d, np.int64)
    for _, rows in iter_nodes(features):
        dense = isinstance(rows, np.ndarray)
        values = rows if dense else rows.data
        if values.size and values.min() < 0:
            return None
        count = count + (np.count_nonzero(rows, axis=0) if dense
                         else np.bincount(rows.indices[values != 0], minlength=d))
    if count.sum() > BAG_OF_WORDS_DENSITY * n * d:
        return None
    return np.log((1 + n) / (1 + count)).astype(np.float32)


def _weighted(rows, column_weight):
    if column_weight is None:
        return rows if issparse(rows) else np.asarray(rows, np.float32)
    if not issparse(rows):
        return unit_rows(rows * column_weight)
    data = rows.data.astype(np.float32) * column_weight[rows.indices]
    norm = np.sqrt(np.add.reduceat(np.append(data * data, np.float32(0)), rows.indptr[:-1]))
    norm[np.diff(rows.indptr) == 0] = 0
    scale = np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    data *= np.repeat(scale, np.diff(rows.indptr))
    return csr_array((data, rows.indices, rows.indptr), shape=rows.shape)


def _product(rows, columns) -> np.ndarray:
    if issparse(columns):
        return (rows @ columns).toarray() if issparse(rows) else np.asarray(rows @ columns)
    if issparse(rows):
        return spmm(csr_array(rows, dtype=np.float32), columns)
    return matmul(rows, columns)


def _signed_hash(d: int, width: int, seed: int) -> csr_array:
    generator = np.random.Generator(np.random.Philox(key=derive(seed, "hash")))
    bucket = generator.integers(0, width, d)
    sign = generator.integers(0, 2, d).astype(np.float32) * 2 - 1
    return csr_array((sign, bucket, np.arange(d + 1)), shape=(d, width))
