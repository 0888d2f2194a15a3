"""The graph type, ``scipy.sparse.csr_array``, in one canonical form; degrees, normalisation, symmetry."""
import numpy as np
import scipy.sparse as sp

from gnncy._check import check_choice, check_finite, check_float
from gnncy._kernels import spmm
from gnncy._kernels.graph import traversal
from gnncy._threads import run_pieces
from gnncy.errors import GraphFormatError

_INT32_MAX = np.iinfo(np.int32).max
_ROWS = 1 << 15  # rows of a piece


def as_csr(adjacency, *, name: str = "adjacency", dtype=None, square: bool = True) -> sp.csr_array:
    """A graph as a canonical ``csr_array``: the form that every function of this room works on.

    Rows are sorted, repeated entries summed, stored zeros removed, all values finite. Indices are int32 if
    the numbers of nodes and entries allow, else int64. Every function here calls this itself.

    Parameters
    ----------
    adjacency : scipy.sparse array or matrix of any format, or dense array, shape (n, n)
        Entry (i, j) is the weight of the arc from i to j.
    name : str
        What error messages call it.
    dtype : {None, float32, float64}
        Type of the values. By default float64 is kept and everything else becomes float32.
    square : bool
        False admits a rectangular array.

    Returns
    -------
    csr_array
        Shares the arrays of an ``adjacency`` that is canonical already, so do not write into it; the
        caller's arrays are never changed.

    Raises
    ------
    TypeError
        If it is no array, or of a type that is not numeric.
    GraphFormatError
        If it is complex, not two-dimensional, not square, not finite, or its index arrays are broken.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.graph import as_csr
    >>> graph = as_csr(np.array([[0, 1], [1, 0]]))
    >>> graph.dtype, graph.indices
    (dtype('float32'), array([1, 0], dtype=int32))
    """
    if not sp.issparse(adjacency):
        if hasattr(adjacency, "to_csr"):
            raise TypeError(f"{name} must be a graph in memory, got {type(adjacency).__name__}, of arcs on disk; "
                            f"sample from it with gnncy.storage.StorageSampler or ColdTierLoader, or take its to_csr()")
        if not (isinstance(adjacency, (list, tuple)) or hasattr(adjacency, "__array__")):
            raise TypeError(f"{name} must be a scipy.sparse array or matrix, or a dense array, "
                            f"got {type(adjacency).__name__}")
        adjacency = np.asarray(adjacency)
    dtype = _value_dtype(adjacency.dtype, name, dtype)
    if len(adjacency.shape) != 2:
        raise GraphFormatError(f"{name} must be 2-dimensional, got shape {adjacency.shape}")
    if square and adjacency.shape[0] != adjacency.shape[1]:
        raise GraphFormatError(f"{name} must be square, a row and a column for every node, got shape {adjacency.shape}")
    shape = adjacency.shape
    with np.errstate(over="ignore"):  # what overflows is refused below
        if not sp.issparse(adjacency):
            adjacency = sp.csr_array(adjacency.astype(dtype))
        elif adjacency.format != "csr":
            # Widened first, so that repeated entries of a narrow type cannot overflow when they are summed.
            adjacency = adjacency.astype(dtype).tocsr()
        data = np.ascontiguousarray(adjacency.data, dtype)

    indptr, indices = adjacency.indptr, adjacency.indices
    small = max(*shape, len(indices)) <= _INT32_MAX
    if indptr.dtype.kind not in "iu" or indices.dtype.kind not in "iu" or len(indptr) != shape[0] + 1:
        raise GraphFormatError(f"{name} has a broken index structure: indptr must hold {shape[0] + 1} integers, "
                               f"got {len(indptr)} of {indptr.dtype}, and indices integers, got {indices.dtype}")
    if len(data) != len(indices):
        raise GraphFormatError(f"{name} has a broken index structure: {len(indices)} indices for {len(data)} values")
    # Checked in the width they came in: a narrowing would hide an index that is out of range.
    width = np.int32 if indices.dtype.itemsize <= 4 and indptr.dtype.itemsize <= 4 else np.int64
    indptr, indices = np.ascontiguousarray(indptr, width), np.ascontiguousarray(indices, width)
    form = traversal.form(indptr, indices, shape[1])
    if form == -1:
        raise GraphFormatError(f"{name} has a broken index structure: indptr must rise from 0 "
                               f"to at most {len(indices)}")
    if form == -2:
        raise GraphFormatError(f"{name} has a column index outside 0..{shape[1] - 1}")
    if small:
        indptr, indices = np.ascontiguousarray(indptr, np.int32), np.ascontiguousarray(indices, np.int32)
    used = int(indptr[-1])
    indices, data = indices[:used], data[:used]
    _check_finite(data, name)
    clean = form == 0 and (data.min(initial=1) > 0 or data.all())
    csr = sp.csr_array((data, indices, indptr), shape=shape, copy=not clean)
    if clean:
        csr.has_canonical_format = True
    else:
        csr.sum_duplicates()
        csr.eliminate_zeros()
        _check_finite(csr.data, name)
    return csr


def is_symmetric(adjacency) -> bool:
    """Whether every arc has a reverse arc of the same weight.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)

    Returns
    -------
    bool

    Examples
    --------
    >>> from gnncy.graph import is_symmetric
    >>> is_symmetric([[0, 1], [1, 0]]), is_symmetric([[0, 1], [0, 0]])
    (True, False)
    """
    forward = as_csr(adjacency)
    backward = forward.T.tocsr()
    return (np.array_equal(forward.indptr, backward.indptr) and np.array_equal(forward.indices, backward.indices)
            and np.array_equal(forward.data, backward.data))


def degrees(adjacency, weighted: bool = False) -> np.ndarray:
    """Out-degree of every node: the number of its arcs, or the sum of their weights.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
    weighted : bool
        Sum the weights instead of counting.

    Returns
    -------
    ndarray, shape (n,)
        int64 counts, or float64 sums. A self-loop counts once. In-degrees are ``degrees(adjacency.T)``.

    Examples
    --------
    >>> from gnncy.graph import degrees
    >>> degrees([[0, 2], [2, 3]]), degrees([[0, 2], [2, 3]], weighted=True)
    (array([1, 2]), array([2., 5.]))
    """
    adjacency = as_csr(adjacency)
    if weighted:
        return _row_sums(adjacency)
    return np.diff(adjacency.indptr).astype(np.int64)


def normalize(adjacency, kind: str = "sym", self_loops: float = 1.0) -> sp.csr_array:
    r"""The graph with weights divided by degrees.

    With :math:`B = A + wI` and :math:`D` the diagonal matrix of its row sums (column sums for ``"col"``):

    ======= ============================= =====================================================
    "sym"   :math:`D^{-1/2} B D^{-1/2}`   graph convolution; eigenvalues in [-1, 1]
    "row"   :math:`D^{-1} B`              mean over neighbours, random walk; rows sum to 1
    "col"   :math:`B D^{-1}`              columns sum to 1
    ======= ============================= =====================================================

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        ``"sym"`` is meant for symmetric graphs; make a directed one symmetric with :func:`undirected` first.
    kind : {"sym", "row", "col"}
    self_loops : float
        The weight w added to every self-loop; 0 adds none.

    Returns
    -------
    csr_array, shape (n, n)
        A new graph, float64 if ``adjacency`` is, else float32. A node of degree 0 has an empty row (column).

    Raises
    ------
    GraphFormatError
        If a degree is negative.

    References
    ----------
    Kipf and Welling, Semi-supervised classification with graph convolutional networks, ICLR 2017.

    Examples
    --------
    >>> from gnncy.graph import normalize
    >>> normalize([[0, 1], [1, 0]]).toarray()
    array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)
    """
    adjacency = as_csr(adjacency)
    kind = check_choice(kind, "kind", ("sym", "row", "col"))
    self_loops = check_float(self_loops, "self_loops", low=0.0)
    n = adjacency.shape[0]
    if self_loops:
        adjacency = as_csr(adjacency + self_loops * sp.eye_array(n, dtype=adjacency.dtype, format="csr"))
    ones = np.ones(n)
    degree = adjacency.T @ ones if kind == "col" else _row_sums(adjacency)
    if n and degree.min() < 0:
        node = int(degree.argmin())
        raise GraphFormatError(f"normalize needs degrees of at least 0, got {degree[node]:g} at node {node}; "
                               f"use abs(adjacency) or drop negative weights")
    with np.errstate(divide="ignore"):
        inverse = np.where(degree > 0, 1 / (np.sqrt(degree) if kind == "sym" else degree), 0.0)
    left, right = {"sym": (inverse, inverse), "row": (inverse, ones), "col": (ones, inverse)}[kind]
    if not self_loops:  # its arrays may be the caller's own
        adjacency = adjacency.copy()
    indptr, indices, data = adjacency.indptr, adjacency.indices, adjacency.data
    run_pieces(lambda start, stop: spmm.scaled(indptr[start:stop + 1], indices, data, left[start:stop], right, data),
               n, _ROWS)
    return adjacency


def undirected(adjacency) -> sp.csr_array:
    """The graph with every arc going both ways, with the larger weight of the two directions.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        Weights must not be negative.

    Returns
    -------
    csr_array, shape (n, n)
        Symmetric.

    Examples
    --------
    >>> from gnncy.graph import undirected
    >>> undirected([[0, 2], [1, 3]]).toarray()
    array([[0., 2.],
           [2., 3.]], dtype=float32)
    """
    adjacency = as_csr(adjacency)
    if adjacency.nnz and adjacency.data.min() < 0:
        raise GraphFormatError(f"undirected takes the larger weight of two directions and needs weights of at least 0, "
                               f"got {adjacency.data.min():g}; use abs(adjacency) or drop negative weights")
    return as_csr(adjacency.maximum(adjacency.T))


def _row_sums(csr: sp.csr_array) -> np.ndarray:
    sums = np.empty(csr.shape[0])
    run_pieces(lambda start, stop: traversal.row_sums(csr.indptr, csr.data, start, stop, sums), len(sums), _ROWS)
    return sums


def _check_finite(values: np.ndarray, name: str) -> None:
    """Refuse nan and infinity as :class:`GraphFormatError`."""
    if values.size == 0 or np.isfinite(values.min()) and np.isfinite(values.max()):  # nan is both
        return
    try:
        check_finite(values, name)
    except ValueError as error:
        raise GraphFormatError(str(error)) from None


def _value_dtype(given: np.dtype, name: str, wanted) -> np.dtype:
    if given.kind == "c":
        raise GraphFormatError(f"Complex data not supported: {name} has dtype {given}; pass its real part")
    if given.kind not in "biuf":
        raise TypeError(f"{name} must be numeric, got dtype {given}")
    if wanted is None:
        wanted = np.float64 if given.kind == "f" and given.itemsize >= 8 else np.float32
    wanted = np.dtype(wanted)
    if wanted not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {wanted}")
    return wanted
