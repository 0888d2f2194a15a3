"""Convolutions whose weights are scores of both ends of an arc."""
import numpy as np

from gnncy._check import check_array, check_float, check_int
from gnncy.graph import Block, aggregate
from gnncy.nn import ops
from gnncy.nn.conv import GraphModule, add_self_loops, check_rows
from gnncy.nn.layers import GRUCell, LayerNorm, Linear, glorot_uniform
from gnncy.nn.modules import Dropout
from gnncy.nn.ops.graphs import arc_weights, as_block
from gnncy.nn.tensor import Parameter, Tensor

__all__ = ["GATConv", "GATv2Conv", "GatedAttentionConv", "NeighborAttention"]


class _Attention(GraphModule):
    """What GAT and GATv2 share: heads, loops, softmax over the neighbours, and how heads are joined."""

    def _set(self, in_features, out_features, heads, concat, slope, dropout, self_loops, weighted, bias, dtype):
        self.in_features = check_int(in_features, "in_features", 1)
        self.out_features = check_int(out_features, "out_features", 1)
        self.heads = check_int(heads, "heads", 1)
        self.concat, self.self_loops, self.weighted = bool(concat), bool(self_loops), bool(weighted)
        self.slope = check_float(slope, "slope", above=0)
        self.dropout = Dropout(dropout)
        self.bias = Parameter(np.zeros(out_features * (heads if concat else 1), dtype)) if bias else None

    def _begin(self, adjacency, x) -> tuple[Block, Tensor, Tensor]:
        """The graph with its loops, and the rows of sources and targets."""
        block, x = as_block(adjacency), x if isinstance(x, Tensor) else Tensor(x)
        check_rows(block, x, self.in_features)
        if self.weighted:
            arc_weights(block)
        if self.self_loops:
            block = add_self_loops(block, "mean")
        return block, x, x if block.n_dst == block.n_src else x[:block.n_dst]

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.heads, self.out_features)

    def _end(self, block: Block, scores: Tensor, values: Tensor) -> Tensor:
        weights = self.dropout(ops.segment_softmax(scores, block.indptr))
        out = ops.arc_combine(block, weights, values)
        out = out.reshape(block.n_dst, self.heads * self.out_features) if self.concat else ops.mean(out, axis=1)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, heads={self.heads}, concat={self.concat}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _vectors(heads: int, features: int, rng, dtype) -> Parameter:
    return Parameter(glorot_uniform(heads, features, rng, dtype))


class GATConv(_Attention):
    r"""Graph attention: neighbours weighted by a softmax of scores of both ends.

    .. math::
        e_{ij} = \mathrm{leaky}(a_{target} \cdot W x_i + a_{source} \cdot W x_j + a_{edge} \cdot V z_{ij}) \qquad
        y_i = \sum_j \mathrm{softmax}_{j \in N(i)}(e_{ij})\, W x_j + b

    Parameters
    ----------
    in_features, out_features : int
        ``out_features`` is a head's width.
    heads : int
    concat : bool
        Heads side by side, ``heads * out_features`` columns; False takes their mean.
    slope : float
        Of the leaky ReLU.
    dropout : float
        Of the normalised weights.
    self_loops : bool
        Let each target hear itself.
    weighted : bool
        Let the arcs' weights enter the scores, with a learned factor; the loops get the mean of the target's arcs.
    bias : bool
    edge_features : int
        Width of the features z of the arcs, which are then given to each call, ``layer(adjacency, x, z)``: an array of
        shape (arcs, edge_features), a row an arc in the order of the graph's ``indices``. The loops get the mean of the
        target's arcs.
    rng : int, Generator or None

    Notes
    -----
    Shapes and graphs as in :class:`GraphModule`. The same results as ``torch_geometric.nn.GATConv``, with
    ``edge_features`` as its ``edge_dim``; with ``weighted`` as with ``edge_dim=1``. The last term is there with
    ``edge_features`` alone. Of features on disk, those of a sampled block are ``storage.read_batch(block.edges)``.

    References
    ----------
    Velickovic et al., Graph attention networks, ICLR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> nn.GATConv(3, 4, heads=2, rng=0)(np.eye(5), np.ones((5, 3), np.float32)).shape
    (5, 8)
    """

    def __init__(self, in_features: int, out_features: int, heads: int = 1, concat: bool = True, slope: float = 0.2,
                 dropout: float = 0.0, self_loops: bool = True, weighted: bool = False, bias: bool = True, *,
                 edge_features: int = 0, rng=None, dtype=np.float32):
        self._set(in_features, out_features, heads, concat, slope, dropout, self_loops, weighted, bias, dtype)
        self.edge_features = check_int(edge_features, "edge_features", 0)
        rng = np.random.default_rng(rng)
        self.linear = Linear(in_features, heads * out_features, bias=False, rng=rng, dtype=dtype)
        self.vector_target, self.vector_source = (_vectors(heads, out_features, rng, dtype) for _ in range(2))
        if weighted:
            self.weight_arc, self.vector_arc = (_vectors(heads, out_features, rng, dtype) for _ in range(2))
        if edge_features:
            self.weight_edge = Parameter(glorot_uniform(edge_features, heads * out_features, rng, dtype))
            self.vector_edge = _vectors(heads, out_features, rng, dtype)

    def forward(self, adjacency, x, edge_features=None) -> Tensor:
        given = as_block(adjacency)
        block, x, _ = self._begin(given, x)
        arcs = None
        if self.edge_features or edge_features is not None:
            arcs = self._arc_rows(given, block, edge_features, x.dtype)
        return self.attend(block, self.linear(x), arcs)

    def attend(self, block: Block, values: Tensor, arcs: np.ndarray | None = None) -> Tensor:
        """The layer from the sources' rows times the matrix on, for a graph with its loops.

        ``arcs`` are the features of the graph's arcs, loops included.
        """
        values = self._split(values)
        targets = values if block.n_dst == block.n_src else values[:block.n_dst]
        scores = ops.arc_add(block, (targets * self.vector_target).sum(-1), (values * self.vector_source).sum(-1))
        if self.weighted:
            scores = scores + arc_weights(block)[:, None] * (self.weight_arc * self.vector_arc).sum(-1)
        if arcs is not None:
            each = self.weight_edge.reshape(self.edge_features, self.heads, self.out_features)
            scores = scores + Tensor(arcs) @ (each * self.vector_edge).sum(-1)
        return self._end(block, ops.leaky_relu(scores, self.slope), values)

    def _arc_rows(self, given: Block, block: Block, features, dtype) -> np.ndarray:
        """Features of the arcs of ``block``, which may have loops that ``given`` has not."""
        shape = (given.n_arcs, self.edge_features)
        if np.shape(features) != shape:
            raise ValueError(f"edge_features must have shape {shape} for a layer made with edge_features="
                             f"{self.edge_features}, got {np.shape(features)}")
        features = check_array(features, "edge_features", dtype=dtype, finite=False, allow_empty=True)
        if not self.self_loops:
            return features
        targets = np.repeat(np.arange(given.n_dst), np.diff(given.indptr))
        kept = given.indices != targets
        rows = np.empty((block.n_arcs, self.edge_features), dtype)
        first = np.zeros(block.n_arcs, bool)
        first[block.indptr[:-1]] = True
        rows[~first] = own = features[kept]
        indptr = block.indptr - np.arange(block.n_dst + 1, dtype=block.indptr.dtype)  # without the loops
        each = Block(indptr, np.arange(len(own), dtype=indptr.dtype), len(own), block.n_dst)
        rows[first] = aggregate(each, own)
        return rows


class GATv2Conv(_Attention):
    r"""Graph attention whose ranking of neighbours depends on the target: the score is a small network of both ends.

    .. math::
        e_{ij} = a \cdot \mathrm{leaky}(W_t x_i + c_t + W_s x_j + c_s) \qquad
        y_i = \sum_j \mathrm{softmax}_{j \in N(i)}(e_{ij})\, (W_s x_j + c_s) + b

    Parameters
    ----------
    in_features, out_features, heads, concat, slope, dropout, self_loops, weighted, bias, rng
        As in :class:`GATConv`; ``bias`` rules c too.

    Notes
    -----
    Shapes and graphs as in :class:`GraphModule`. The same results as ``torch_geometric.nn.GATv2Conv``, whose ``lin_l``
    is ``source`` and ``lin_r`` is ``target``. Scores are computed arc by arc: memory grows by arcs times heads, not
    times features.

    References
    ----------
    Brody et al., How attentive are graph attention networks?, ICLR 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> nn.GATv2Conv(3, 4, heads=2, concat=False, rng=0)(np.eye(5), np.ones((5, 3), np.float32)).shape
    (5, 4)
    """

    def __init__(self, in_features: int, out_features: int, heads: int = 1, concat: bool = True, slope: float = 0.2,
                 dropout: float = 0.0, self_loops: bool = True, weighted: bool = False, bias: bool = True, *, rng=None,
                 dtype=np.float32):
        self._set(in_features, out_features, heads, concat, slope, dropout, self_loops, weighted, bias, dtype)
        rng = np.random.default_rng(rng)
        self.source, self.target = (Linear(in_features, heads * out_features, bias, rng=rng, dtype=dtype)
                                    for _ in range(2))
        self.vector = _vectors(heads, out_features, rng, dtype)
        self.weight_arc = _vectors(heads, out_features, rng, dtype) if weighted else None

    def forward(self, adjacency, x) -> Tensor:
        block, x, own = self._begin(adjacency, x)
        return self.attend(block, self.target(own), self.source(x))

    def attend(self, block: Block, targets: Tensor, values: Tensor) -> Tensor:
        """The layer from the products of targets and sources on, for a graph with its loops."""
        values = self._split(values)
        scores = ops.arc_scores(block, self._split(targets), values, self.vector, self.weight_arc, self.slope)
        return self._end(block, scores, values)


class NeighborAttention(GraphModule):
    r"""Multi-head dot attention of each target to its neighbours.

    .. math:: y_i = \bigl[\textstyle\sum_j \mathrm{softmax}_{j \in N(i)}(q_i \cdot k_j / \sqrt{d})\, v_j\bigr] W_o + b_o

    with q, k and v linear in x and d the width of a head, heads side by side in the brackets.

    Parameters
    ----------
    features : int
        Width of input and output, a multiple of ``heads``.
    heads : int
    bias : bool
    rng : int, Generator or None

    Notes
    -----
    Shapes and graphs as in :class:`GraphModule`; weights of arcs do not count, and a target hears itself only through
    a loop. ``torch.nn.MultiheadAttention`` with the graph as its mask, without an array of targets times sources. A
    target without neighbours gets :math:`b_o`.

    References
    ----------
    Vaswani et al., Attention is all you need, NeurIPS 2017.
    """

    def __init__(self, features: int, heads: int = 1, bias: bool = True, *, rng=None, dtype=np.float32):
        self.features, self.heads = check_int(features, "features", 1), check_int(heads, "heads", 1)
        if features % heads:
            raise ValueError(f"features must be a multiple of heads, got {features} and {heads}")
        rng = np.random.default_rng(rng)
        self.query, self.key, self.value, self.out = (Linear(features, features, bias, rng=rng, dtype=dtype)
                                                      for _ in range(4))

    def forward(self, adjacency, x) -> Tensor:
        block, x = as_block(adjacency), x if isinstance(x, Tensor) else Tensor(x)
        check_rows(block, x, self.features)
        own = x if block.n_dst == block.n_src else x[:block.n_dst]
        return self.attend(block, self.query(own), self.key(x), self.value(x))

    def attend(self, block: Block, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The layer from queries, keys and values on."""
        width = self.features // self.heads
        query, key, value = (rows.reshape(rows.shape[0], self.heads, width) for rows in (query, key, value))
        scores = ops.arc_dot(block, query, key) * width**-0.5
        out = ops.arc_combine(block, ops.segment_softmax(scores, block.indptr), value)
        return self.out(out.reshape(block.n_dst, self.features))


class GatedAttentionConv(GraphModule):
    r"""Attention plus a weighted mean of the neighbours, gated into the target's own state.

    .. math::
        m &= X W_m + b_m \qquad
        t_i = \bigl(\mathrm{attention}(m)_i + \textstyle\sum_j \frac{w_{ij}}{\sum_k w_{ik}} m_j\bigr) W_t + b_t \\
        y_i &= \mathrm{LayerNorm}(\mathrm{dropout}(\mathrm{GRU}(t_i, m_i)))

    Parameters
    ----------
    in_features, out_features : int
        ``out_features`` is a multiple of ``heads``.
    heads : int
    dropout : float
    rng : int, Generator or None

    Notes
    -----
    Shapes and graphs as in :class:`GraphModule`; a graph without weights, or a target whose weights sum to 0 or less,
    takes the plain mean. A target without neighbours gets LayerNorm(m).

    This is ``RuvectorLayer`` of the crate ruvector-gnn (``layer.rs``), which has no backward pass and whose dropout
    scales by ``1 - p`` without dropping, also outside training. With the same weights, those of the gate z negated
    (it keeps the state here, as in PyTorch, and replaces it there), and ``dropout=0`` the results are the same.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> nn.GatedAttentionConv(3, 8, heads=2, rng=0)(np.eye(5), np.ones((5, 3), np.float32)).shape
    (5, 8)
    """

    def __init__(self, in_features: int, out_features: int, heads: int = 1, dropout: float = 0.0, *, rng=None,
                 dtype=np.float32):
        rng = np.random.default_rng(rng)
        self.message = Linear(in_features, out_features, rng=rng, dtype=dtype)
        self.attention = NeighborAttention(out_features, heads, rng=rng, dtype=dtype)
        self.transform = Linear(out_features, out_features, rng=rng, dtype=dtype)
        self.gate = GRUCell(out_features, out_features, reset_after=False, rng=rng, dtype=dtype)
        self.norm, self.dropout = LayerNorm(out_features, dtype=dtype), Dropout(dropout)

    def forward(self, adjacency, x) -> Tensor:
        block, x = as_block(adjacency), x if isinstance(x, Tensor) else Tensor(x)
        check_rows(block, x, self.message.in_features)
        message = self.message(x)
        own = message if block.n_dst == block.n_src else message[:block.n_dst]
        heard = self.attention(block, message) + ops.spmm(_mean_operator(block), message)
        out = self.dropout(self.gate(self.transform(heard), own))
        return self.norm(ops.where((np.diff(block.indptr) == 0)[:, None], own, out))


def _mean_operator(block: Block) -> Block:
    """Weights over their sum in the row, equal ones where that is not positive."""
    count = np.diff(block.indptr)
    targets = np.repeat(np.arange(block.n_dst), count)
    given = np.ones(block.n_arcs, np.float32) if block.weights is None else block.weights
    total = np.bincount(targets, given, block.n_dst)
    even = (total <= 0)[targets]
    weights = np.where(even, 1, given) / np.where(even, count[targets], total[targets])
    return Block(block.indptr, block.indices, block.n_src, block.n_dst, weights=weights.astype(given.dtype))
