"""The Laplacian as a regularizer: embeddings that change little along the edges of a graph."""
import numpy as np

from gnncy._check import check_array, check_choice, check_float
from gnncy._kernels import pairs as kernels
from gnncy._kernels.graph import incidence
from gnncy._threads import run_pieces
from gnncy.errors import GraphFormatError
from gnncy.graph import as_csr, degrees, undirected
from gnncy.losses.loss import Problem, evaluate

_ROWS = 1024


class SpectralRegularization:
    r"""The trace of :math:`Z^T L Z`, how much embeddings change along the edges of a graph.

    =================== ======================================================================== ====================
    kind                sum over the edges, each once, of                                        is 0 where
    =================== ======================================================================== ====================
    ``"combinatorial"`` :math:`w_{ij} \|z_i - z_j\|^2`, with L = D - A                           Z is constant
    ``"symmetric"``     :math:`w_{ij} \|z_i/\sqrt{d_i} - z_j/\sqrt{d_j}\|^2`,                    Z is like
                        with L = I - D^-1/2 A D^-1/2                                             :math:`\sqrt{d}`
    ``"random_walk"``   :math:`w_{ij} \tfrac12 (1/d_i + 1/d_j) \|z_i - z_j\|^2`                  Z is constant
    =================== ======================================================================== ====================

    *d* are the sums of the weights at a node. Self-loops count for nothing, and a node without edges adds 0, as in
    ``scipy.sparse.csgraph.laplacian``. Nothing is built: loss and gradient, 2 L Z, come from one pass over the graph.

    Parameters
    ----------
    kind : {"symmetric", "combinatorial", "random_walk"}
    weight : float
        What the loss is multiplied by.
    scale : {"edges", "nodes", None}
        Divide by the number of edges, so that ``weight`` means the same on graphs of any size, or of nodes.

    See Also
    --------
    gnncy.graph.eigenvalues : the smallest eigenvalues of a graph's Laplacian.

    Notes
    -----
    The random walk kind is half of :math:`\sum_i \sum_j P_{ij} \|z_i - z_j\|^2` with P = D^-1 A: the expected square of
    a step of the walk from each node, so that nodes count alike, whatever their degree. It equals the trace of
    :math:`Z^T (I - P) Z` where the graph is regular. Elsewhere that trace differs by :math:`\tfrac12 \sum_i (1 - \sum_j
    P_{ji}) \|z_i\|^2`, has no lower bound (on a star it is negative for some Z), and so regularizes nothing.

    The loss is least where it is 0: keep its weight small beside a loss that keeps embeddings apart.

    References
    ----------
    Belkin and Niyogi, Laplacian Eigenmaps for Dimensionality Reduction and Data Representation, 2003.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import SpectralRegularization
    >>> path = np.array([[0, 1, 0], [1, 0, 2], [0, 2, 0]])
    >>> z = np.array([[0.], [1.], [3.]])
    >>> loss, grad = SpectralRegularization("combinatorial", scale=None)(z, path)
    >>> loss, grad.ravel()
    (9.0, array([-2., -6.,  8.]))
    """

    def __init__(self, kind: str = "symmetric", weight: float = 1.0, scale: str | None = "edges"):
        self.kind = check_choice(kind, "kind", ("combinatorial", "symmetric", "random_walk"))
        self.weight = check_float(weight, "weight", 0)
        self.scale = check_choice(scale, "scale", ("edges", "nodes", None))

    def __call__(self, embeddings, adjacency):
        """The loss and its gradient.

        Parameters
        ----------
        embeddings : array_like or Tensor, shape (n, d)
        adjacency : sparse or dense array, shape (n, n)
            Weights of at least 0. An edge stored in one direction only counts as if in both; where the two weights
            differ, the larger counts.

        Returns
        -------
        loss : float
        grad : ndarray, shape (n, d)
            In the type of the embeddings.

        Of a Tensor the loss alone comes back, as a Tensor on the tape.

        Raises
        ------
        GraphFormatError
            If a weight is negative: the trace would have no lower bound.
        """
        out = evaluate(_Laplacian, embeddings, reduction="sum", adjacency=adjacency, kind=self.kind,
                       factor=self.weight, scale=self.scale)
        return (out[0], out[1][0]) if isinstance(out, tuple) else out

    def __repr__(self) -> str:
        return f"SpectralRegularization(kind={self.kind!r}, weight={self.weight}, scale={self.scale!r})"


class _Laplacian(Problem):
    """One term for each node: half of those of its edges."""

    def __init__(self, embeddings, *, adjacency, kind, factor, scale):
        z = self.embeddings = check_array(embeddings, "embeddings")
        graph = as_csr(adjacency, dtype=z.dtype)
        n = graph.shape[0]
        if n != len(z):
            raise ValueError(f"embeddings must have a row for each of the {n} nodes, got shape {z.shape}")
        if graph.nnz and graph.data.min() < 0:
            raise GraphFormatError(f"adjacency must have weights of at least 0, got {graph.data.min():g}; use "
                                   "abs(adjacency) or drop negative weights")
        if not incidence.symmetric(graph.indptr, graph.indices, graph.data, graph.indptr[:-1].copy()):
            graph = undirected(graph)
        self.graph, self.count = graph, n
        loops = graph.diagonal()
        edges = (graph.nnz - np.count_nonzero(loops)) // 2
        self.factor = factor / {"edges": max(edges, 1), "nodes": n, None: 1}[scale]
        self.share, self.scale = np.full(n, 0.5, z.dtype), np.ones(n, z.dtype)
        if kind != "combinatorial":
            degree = degrees(graph, weighted=True) - loops
            degree[degree <= 0] = 1  # of a node without edges, so of no account
            if kind == "symmetric":
                self.scale[:] = 1 / np.sqrt(degree)
            else:
                self.share[:] = 0.5 / degree

    def solve(self, weight):
        losses, grad = np.empty(self.count), np.empty_like(self.embeddings)
        factor = self.factor * (0 if weight is None else float(weight))

        def piece(a, b):
            kernels.laplacian_grad(self.graph.indptr, self.graph.indices, self.graph.data, self.embeddings,
                                   self.share, self.scale, factor, a, b, losses, grad)

        run_pieces(piece, self.count, _ROWS)
        losses *= self.factor
        return losses, (grad,)
