"""Random views of feature rows and of graphs, from a key alone; and which parts of them matter least."""
import numpy as np
import scipy.sparse as sp

from gnncy._check import check_array, check_choice, check_float, check_int
from gnncy._random import derive, stream
from gnncy.graph import Block, as_csr, undirected

_ITERATIONS = 50  # of the powers that centralities come from


def drop_blocks(x: np.ndarray, block: int, rate: float, key: int) -> np.ndarray:
    """Rows with whole blocks of columns zeroed, each with probability ``rate``; at least one block of a row stays.

    What stays is scaled by (blocks / blocks kept), so that a row's expectation is the row. With blocks that
    are different smoothings of the same features, two such views ask the encoder what the scales have in common.

    Parameters
    ----------
    x : array, shape (b, k * block), float32 or float64
    block : int
        Columns of a block.
    rate : float
        Probability in 0..1 (below 1) that a block is dropped.
    key : int
        The draw; the same key gives the same view.

    Returns
    -------
    array, shape (b, k * block)
        A new one, of the type of ``x``.

    Raises
    ------
    ValueError
        If the columns of ``x`` are not a multiple of ``block``, or ``rate`` is not in 0..1.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import drop_blocks
    >>> x = np.ones((2, 4), np.float32)
    >>> drop_blocks(x, 2, 0.0, key=1)
    array([[1., 1., 1., 1.],
           [1., 1., 1., 1.]], dtype=float32)
    """
    x = check_array(x, "x", finite=False)
    check_int(block, "block", 1)
    check_float(rate, "rate", 0.0, 1.0)
    rows, width = x.shape
    if width % block:
        raise ValueError(f"x must have a multiple of block={block} columns, got {width}")
    count = width // block
    generator = stream(key, "blocks")
    keep = generator.random((rows, count), dtype=np.float32) >= rate
    rescued = generator.integers(0, count, rows)
    empty = np.flatnonzero(~keep.any(axis=1))
    keep[empty, rescued[empty]] = True
    scale = (keep * (count / keep.sum(axis=1, keepdims=True))).astype(x.dtype)
    return (x.reshape(rows, count, block) * scale[:, :, None]).reshape(rows, width)


def mask_features(x: np.ndarray, rate, key: int) -> np.ndarray:
    """Rows with whole columns zeroed, the same ones in all rows.

    Parameters
    ----------
    x : array, shape (n, d), float32 or float64
    rate : float or array, shape (d,)
        Probability in 0..1 that a column is masked, one for all or one each (see :func:`feature_drop_rates`).
    key : int
        The draw; the same key masks the same columns, whatever the rows.

    Returns
    -------
    array, shape (n, d)
        A new one, of the type of ``x``; what stays is not scaled.

    References
    ----------
    Zhu et al., Deep Graph Contrastive Representation Learning (GRACE), 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import mask_features
    >>> mask_features(np.ones((2, 6), np.float32), 0.5, key=3)
    array([[1., 1., 0., 1., 0., 1.],
           [1., 1., 0., 1., 0., 1.]], dtype=float32)
    """
    x = check_array(x, "x", finite=False)
    rate = _rates(rate, x.shape[1], "columns of x")
    kept = stream(check_int(key, "key"), "columns").random(x.shape[1]) >= rate
    return x * kept.astype(x.dtype)


def drop_edges(graph, rate, key: int, *, nodes=None):
    """A graph, or a sampled block, without some of its edges.

    Whether an edge stays depends on the key and its two ends alone: both directions go together, and a block that was
    sampled from a graph loses the arcs that the graph would lose.

    Parameters
    ----------
    graph : sparse array, shape (n, n), or Block
    rate : float or array, shape (n_arcs,)
        Probability in 0..1 that an arc is dropped, one for all or one each in the order of the graph's canonical form
        (see :func:`edge_drop_rates`). Of a sampled block these are ``rates[block.edges]``.
    key : int
        The draw.
    nodes : array of int, shape (n_src,), optional
        Of a block: the ids of its sources, ``SampledBatch.nodes``, without which its own numbers count.

    Returns
    -------
    csr_array or Block
        A new one; weights of the arcs that stay are as they were.

    References
    ----------
    Rong et al., DropEdge: Towards Deep Graph Convolutional Networks on Node Classification, ICLR 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import drop_edges
    >>> path = np.diag([1., 1., 1.], 1) + np.diag([1., 1., 1.], -1)
    >>> drop_edges(path, 0.5, key=2).toarray()
    array([[0., 0., 0., 0.],
           [0., 0., 0., 0.],
           [0., 0., 0., 1.],
           [0., 0., 1., 0.]])
    """
    block = graph if isinstance(graph, Block) else Block.from_csr(as_csr(graph))
    rate = _rates(rate, block.n_arcs, "arcs of the graph")
    targets, sources = np.repeat(np.arange(block.n_dst), np.diff(block.indptr)), block.indices
    if nodes is not None:
        nodes = np.asarray(nodes)
        if nodes.shape != (block.n_src,) or nodes.dtype.kind not in "iu":
            raise ValueError(f"nodes must be the ids of the {block.n_src} sources, got {nodes.dtype} of shape "
                             f"{nodes.shape}")
        targets, sources = nodes[targets], nodes[sources]
    low, high = np.minimum(targets, sources), np.maximum(targets, sources)
    bits = _mix(_mix(np.uint64(derive(check_int(key, "key"), "edges")) ^ low.astype(np.uint64))
                ^ high.astype(np.uint64))
    kept = (bits >> np.uint64(11)) * 2.0**-53 >= rate
    indptr = np.zeros(len(kept) + 1, block.indptr.dtype)
    np.cumsum(kept, out=indptr[1:])
    indptr = indptr[block.indptr]
    indices, weights = block.indices[kept], None if block.weights is None else block.weights[kept]
    if isinstance(graph, Block):
        return Block(indptr, indices, block.n_src, block.n_dst, None if block.edges is None else block.edges[kept],
                     weights)
    return sp.csr_array((weights, indices, indptr), shape=(block.n_dst, block.n_src))


def edge_drop_rates(adjacency, rate: float, centrality: str = "degree", *, most: float = 0.7) -> np.ndarray:
    r"""Probabilities that drop unimportant edges more often: those between nodes of little centrality.

    .. math::
        p_{ij} = \min\Bigl(\frac{s_{max} - s_{ij}}{s_{max} - \bar s}\, p,\; p_{most}\Bigr) \qquad
        s_{ij} = \log \tfrac12 (\varphi_i + \varphi_j)

    Parameters
    ----------
    adjacency : sparse array, shape (n, n)
    rate : float
        p, in 0..1: about the share of edges that are dropped.
    centrality : {"degree", "pagerank", "eigenvector"}
        φ, of the undirected graph without weights.
    most : float
        Bound of the probabilities, in 0..1.

    Returns
    -------
    ndarray, shape (n_arcs,)
        Float64, in the order of the canonical form's ``data``.

    See Also
    --------
    drop_edges : what takes them.

    References
    ----------
    Zhu et al., Graph Contrastive Learning with Adaptive Augmentation (GCA), WWW 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import edge_drop_rates
    >>> path = np.diag([1., 1., 1.], 1) + np.diag([1., 1., 1.], -1)
    >>> edge_drop_rates(path, 0.2).round(2)
    array([0.3, 0.3, 0. , 0. , 0.3, 0.3])
    """
    adjacency = as_csr(adjacency)
    phi = _centrality(adjacency, centrality)
    targets = np.repeat(np.arange(adjacency.shape[0]), np.diff(adjacency.indptr))
    return _relative(phi[targets] / 2 + phi[adjacency.indices] / 2, rate, most)


def feature_drop_rates(features, adjacency, rate: float, centrality: str = "degree", *, most: float = 0.7
                       ) -> np.ndarray:
    r"""Probabilities that mask unimportant features more often: those that nodes of little centrality have.

    .. math::
        p_i = \min\Bigl(\frac{s_{max} - s_i}{s_{max} - \bar s}\, p,\; p_{most}\Bigr) \qquad
        s_i = \log \textstyle\sum_u \varphi_u |x_{ui}|

    Parameters
    ----------
    features : array or sparse array, shape (n, d)
        A column of zeros counts as the least important one.
    adjacency : sparse array, shape (n, n)
    rate, centrality, most
        As in :func:`edge_drop_rates`.

    Returns
    -------
    ndarray, shape (d,)
        Float64.

    See Also
    --------
    mask_features : what takes them.

    References
    ----------
    Zhu et al., Graph Contrastive Learning with Adaptive Augmentation (GCA), WWW 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import feature_drop_rates
    >>> star = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 0]])
    >>> feature_drop_rates(np.eye(3), star, 0.2).round(2)
    array([0. , 0.3, 0.3])
    """
    adjacency = as_csr(adjacency)
    features = abs(features) if sp.issparse(features) else np.abs(check_array(features, "features"))
    if features.shape[0] != adjacency.shape[0]:
        raise ValueError(f"features must have one row per node: the graph has {adjacency.shape[0]} nodes, features "
                         f"have shape {features.shape}")
    return _relative(np.asarray(features.T @ _centrality(adjacency, centrality)), rate, most)


def _rates(rate, n: int, of: str):
    if np.ndim(rate) == 0:
        return check_float(rate, "rate", 0.0, 1.0)
    rate = check_array(rate, "rate", ndim=1, dtype=np.float64, allow_empty=True)
    if len(rate) != n:
        raise ValueError(f"rate must be one number, or one for each of the {n} {of}, got {len(rate)}")
    if len(rate) and (rate.min() < 0 or rate.max() > 1):
        raise ValueError(f"rate must lie in 0..1, got {rate.min():g} to {rate.max():g}")
    return rate


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser of each number, as :func:`gnncy._random.mix64`."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _relative(weights: np.ndarray, rate: float, most: float) -> np.ndarray:
    """Probabilities that fall with the logarithm of the weights, ``rate`` on average but for the bound."""
    rate, most = check_float(rate, "rate", 0.0, 1.0), check_float(most, "most", 0.0, 1.0)
    if not len(weights):
        return np.zeros(0)
    positive = weights > 0
    least = weights[positive].min() if positive.any() else 1.0
    score = np.log(np.where(positive, weights, least))
    below = score.max() - score
    mean = below.mean()
    return np.minimum(below / mean * rate if mean > 0 else np.full(len(score), rate), most)


def _centrality(adjacency: sp.csr_array, kind: str) -> np.ndarray:
    check_choice(kind, "centrality", ("degree", "pagerank", "eigenvector"))
    graph = undirected(abs(adjacency))
    graph.data = np.ones(len(graph.data))
    degree = np.diff(graph.indptr).astype(np.float64)
    if kind == "degree":
        return degree
    phi = np.full(len(degree), 1 / np.sqrt(max(len(degree), 1)))
    for _ in range(_ITERATIONS):
        if kind == "pagerank":
            phi = 0.15 / len(degree) + 0.85 * (graph @ (phi / np.maximum(degree, 1)))
        else:  # the shift keeps a bipartite graph's iteration from alternating
            phi = graph @ phi + phi
            phi /= np.linalg.norm(phi)
    return phi
