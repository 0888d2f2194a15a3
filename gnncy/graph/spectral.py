"""The smallest eigenvalues of a graph's Laplacian, and their eigenvectors."""
import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, lobpcg

from gnncy._check import check_choice, check_int
from gnncy._random import stream
from gnncy._threads import current_threads, working_threads
from gnncy.errors import GraphFormatError
from gnncy.graph.csr import as_csr, degrees, is_symmetric

_DENSE = 256  # nodes of a component up to which all its eigenvalues are computed
_KINDS = ("symmetric", "combinatorial", "random_walk")


def eigenvalues(adjacency, k: int, *, kind: str = "symmetric", method: str = "arpack") -> np.ndarray:
    """The k smallest eigenvalues of the Laplacian, ascending; 0 as often as the graph has components.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        Symmetric, with weights of at least 0. Self-loops count for nothing.
    k : int
        1 to n.
    kind : {"symmetric", "combinatorial", "random_walk"}
        Of I - D^-1/2 A D^-1/2, D - A, or I - D^-1 A, as ``scipy.sparse.csgraph.laplacian``: a node without edges has
        a row of zeros. The first and the last have the same eigenvalues, in 0..2.
    method : {"arpack", "lobpcg"}
        For components of more than 256 nodes; those of smaller ones come from a dense solver.

    Returns
    -------
    ndarray, shape (k,)
        Float64; the same bits each time.

    Raises
    ------
    GraphFormatError
        If the graph is not symmetric or has a negative weight.
    scipy.sparse.linalg.ArpackNoConvergence
        If ARPACK does not get there, as on long paths; ``method="lobpcg"`` may.

    See Also
    --------
    eigenvectors : with the eigenvectors.

    Notes
    -----
    Each component is solved by itself, with its known eigenvector of 0 projected out: an iteration from one starting
    vector may miss copies of an eigenvalue.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.graph import eigenvalues
    >>> two_edges = np.kron(np.eye(2), [[0, 1], [1, 0]])
    >>> eigenvalues(two_edges, 4)
    array([0., 0., 2., 2.])
    """
    return eigenvectors(adjacency, k, kind=kind, method=method)[0]


def eigenvectors(adjacency, k: int, *, kind: str = "symmetric",
                 method: str = "arpack") -> tuple[np.ndarray, np.ndarray]:
    """The k smallest eigenvalues of the Laplacian and their eigenvectors.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
    k : int
    kind : {"symmetric", "combinatorial", "random_walk"}
    method : {"arpack", "lobpcg"}
        As for :func:`eigenvalues`.

    Returns
    -------
    values : ndarray, shape (k,)
        Ascending.
    vectors : ndarray, shape (n, k)
        Float64 columns, zero outside one component. Of length 1 and orthogonal, for ``"random_walk"`` so in the inner
        product weighted by degrees (1 for a node without edges). The largest entry in magnitude, the first of equal
        ones, is positive. Components come in the order of their first nodes where eigenvalues are equal.

    See Also
    --------
    eigenvalues : the values alone, and what may be raised.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.graph import eigenvectors
    >>> values, vectors = eigenvectors(np.kron(np.eye(2), [[0, 1], [1, 0]]), 2)
    >>> values, np.round(vectors.T, 3)
    (array([0., 0.]), array([[0.707, 0.707, 0.   , 0.   ],
                             [0.   , 0.   , 0.707, 0.707]]))
    """
    graph = as_csr(adjacency, dtype=np.float64)
    n = graph.shape[0]
    check_int(k, "k", 1, n)
    check_choice(kind, "kind", _KINDS)
    check_choice(method, "method", ("arpack", "lobpcg"))
    if graph.nnz and graph.data.min() < 0:
        raise GraphFormatError(f"eigenvalues need weights of at least 0, got {graph.data.min():g}; use abs(adjacency) "
                               "or drop negative weights")
    if not is_symmetric(graph):
        raise GraphFormatError("eigenvalues need a symmetric graph; make it so with gnncy.graph.undirected")
    graph = as_csr(graph - sp.diags_array(graph.diagonal(), format="csr"))
    degree = degrees(graph, weighted=True)
    degree[degree == 0] = 1
    root = np.sqrt(degree)

    count, label = connected_components(graph, directed=False)
    by_component = np.argsort(label, kind="stable")
    ends = np.cumsum(np.bincount(label, minlength=count))
    found: list[tuple[float, np.ndarray, np.ndarray]] = []  # value, nodes, entries
    spans = list(zip(ends - np.diff(ends, prepend=0), ends, strict=True))
    for first, last in spans:
        nodes = by_component[first:last]
        null = np.ones(len(nodes)) if kind == "combinatorial" else root[nodes]
        found.append((0.0, nodes, null / np.linalg.norm(null)))
    wanted = k - count
    if wanted > 0:
        if kind != "combinatorial":
            inverse = sp.diags_array(1 / root)
            graph = inverse @ graph @ inverse
        graph = graph.tocsr()[by_component][:, by_component]
        with working_threads(current_threads()):
            for (first, last), (_, nodes, null) in zip(spans, found[:], strict=True):
                if len(nodes) > 1:
                    values, vectors = _beyond_null(graph[first:last, first:last], null, min(wanted, len(nodes) - 1),
                                                   method)
                    found += [(value, nodes, vector) for value, vector in zip(values, vectors.T, strict=True)]
    found = sorted(found, key=lambda item: item[0])[:k]  # stable: components in their order
    vectors = np.zeros((n, k))
    for column, (_, nodes, entries) in zip(vectors.T, found, strict=True):
        if kind == "random_walk":
            entries = entries / root[nodes]
        column[nodes] = entries * np.sign(entries[np.abs(entries).argmax()])
    return np.array([value for value, _, _ in found]), vectors


def _beyond_null(weights, null, k, method):
    """The k smallest eigenvalues but 0 of D - W for a connected graph with the null vector ``null``; its eigenvectors.

    With ``null`` not constant the diagonal D is that which makes it a null vector: 1 for normalised weights.
    """
    n = len(null)
    diagonal = weights @ null / null
    if n <= max(_DENSE, 6 * (k + 5)):
        values, vectors = np.linalg.eigh(np.diag(diagonal) - weights.toarray())
        return np.maximum(values[1:k + 1], 0), vectors[:, 1:k + 1]
    laplacian = (sp.diags_array(diagonal) - weights).tocsr()
    top = 2 * diagonal.max()  # no eigenvalue is above
    random = stream(0, "eigenvectors")
    if method == "lobpcg":
        start = random.standard_normal((n, k + 5))
        values, vectors = lobpcg(laplacian, start, Y=null[:, None], largest=False, tol=1e-9 * top, maxiter=2000)
        order = np.argsort(values)[:k]
        return np.maximum(values[order], 0), vectors[:, order]

    def flipped(x):
        # Largest where the Laplacian is smallest; the null vector, pushed to the other end, is out of the way.
        x = x.ravel()
        return top * x - laplacian @ x - (2 * top * (null @ x)) * null

    operator = LinearOperator((n, n), matvec=flipped, dtype=np.float64)
    start = random.standard_normal(n)
    start -= (null @ start) * null
    try:
        values, vectors = eigsh(operator, k, which="LA", v0=start, ncv=min(n, max(2 * k + 1, 40)), maxiter=20 * n,
                                tol=1e-12)
    except ArpackNoConvergence as error:
        raise ArpackNoConvergence(f"{error.args[0]}; try method='lobpcg'", error.eigenvalues, error.eigenvectors) \
            from None
    order = np.argsort(-values, kind="stable")
    return np.maximum(top - values[order], 0), vectors[:, order]
