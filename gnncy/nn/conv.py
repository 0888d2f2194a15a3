"""Graph convolutions, on whole graphs and on sampled blocks alike."""
from collections.abc import Sequence

import numpy as np

from gnncy._check import check_choice, check_float, check_int
from gnncy._kernels import spmm as kernels
from gnncy.graph import Block
from gnncy.nn import ops
from gnncy.nn.layers import LayerNorm, Linear, ReLU, glorot_uniform
from gnncy.nn.modules import Dropout, Module, Sequential
from gnncy.nn.ops.graphs import as_block
from gnncy.nn.tensor import Parameter, Tensor

__all__ = ["APPNP", "SIGN", "GCNConv", "GINConv", "GraphModule", "GraphSequential", "JumpingKnowledge", "ResGCNBlock",
           "SAGEConv", "SGConv", "add_self_loops", "gcn_norm"]


class GraphModule(Module):
    """Base of the layers that take a graph: ``forward(adjacency, x)``.

    ``adjacency`` is a ``csr_array`` or a :class:`~gnncy.graph.Block` of shape (targets, sources) whose first sources
    are the targets; entry (i, j) is the arc along which target i hears source j. ``x`` is (sources, in_features), the
    output (targets, out_features). For several passes over a whole graph make one block of it
    (``graph.Block.from_csr``), which keeps its transpose.
    """


def _tensor(x) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(x)


def check_rows(block: Block, x: Tensor, features: int) -> None:
    if x.shape != (block.n_src, features) or block.n_dst > block.n_src:
        raise ValueError(f"x must have shape ({block.n_src}, {features}) for an adjacency of shape "
                         f"({block.n_dst}, {block.n_src}), whose first sources are its targets; got {x.shape}")


# -- the operators -----------------------------------------------------------------------------------------------------

def add_self_loops(adjacency, weight: float | str = 1.0) -> Block:
    """The graph with exactly one arc from every target to itself.

    Parameters
    ----------
    adjacency : csr_array or Block, shape (targets, sources)
    weight : float or "mean"
        Weight of the loops that are added; loops that are there keep theirs. ``"mean"`` gives every loop, old ones
        too, the mean weight of the target's other arcs (0 where there are none).

    Returns
    -------
    Block
        Each target's loop comes first among its arcs. Without weights where ``adjacency`` has none.

    Notes
    -----
    These are ``add_remaining_self_loops`` of PyTorch Geometric and, for ``"mean"``, what its attention layers do.

    Examples
    --------
    >>> from gnncy import graph, nn
    >>> looped = nn.add_self_loops(graph.as_csr([[0, 2], [2, 5]]))
    >>> looped.indices, looped.weights
    (array([0, 1, 1, 0], dtype=int32), array([1., 2., 5., 2.], dtype=float32))
    """
    block = as_block(adjacency)
    if block.n_dst > block.n_src:
        raise ValueError(f"self-loops need the targets among the sources, but there are {block.n_dst} targets and "
                         f"{block.n_src} sources")
    mean = isinstance(weight, str) and check_choice(weight, "weight", ("mean",)) == "mean"
    n, width = block.n_dst, block.indptr.dtype
    targets = np.repeat(np.arange(n, dtype=width), np.diff(block.indptr))
    loops = block.indices == targets
    kept = ~loops
    targets_kept = targets[kept]
    count = np.bincount(targets_kept, minlength=n)
    indptr = np.zeros(n + 1, width)
    np.cumsum(count + 1, out=indptr[1:])
    places = np.arange(len(targets_kept)) + targets_kept + 1  # one loop before a target's first arc
    indices = np.empty(len(places) + n, width)
    indices[indptr[:-1]] = np.arange(n)
    indices[places] = block.indices[kept]
    weights = None
    if block.weights is not None:
        own = block.weights[kept]
        if mean:
            fill = np.bincount(targets_kept, own, n) / np.maximum(count, 1)
        else:
            fill = np.full(n, check_float(weight, "weight"))
            fill[targets[loops]] = block.weights[loops]
        weights = np.empty(len(indices), block.weights.dtype)
        weights[indptr[:-1]], weights[places] = fill, own
    return Block(indptr, indices, block.n_src, n, weights=weights)


def gcn_norm(adjacency, self_loops: bool = True) -> Block:
    r"""The operator of a graph convolution, :math:`D^{-1/2} (A + I) D^{-1/2}`.

    Parameters
    ----------
    adjacency : csr_array or Block, shape (targets, sources)
        Weights are used if there are any, else every arc weighs 1. May be directed.
    self_loops : bool
        Add a loop of weight 1 to each node that has none.

    Returns
    -------
    Block
        Keep it where a graph is used more than once, and give it to layers with ``normalize=False``.

    Notes
    -----
    D holds the sums of the targets' rows, for both ends of an arc, as in PyTorch Geometric. In a sampled block, a
    source that is no target has only its loop, degree 1. To have the degrees of the whole graph, sample from the
    normalised one: ``NeighborSampler(graph.normalize(A), fanouts, weighted=True)`` and ``normalize=False``.

    References
    ----------
    Kipf and Welling, Semi-supervised classification with graph convolutional networks, ICLR 2017.

    Examples
    --------
    >>> from gnncy import graph, nn
    >>> nn.gcn_norm(graph.as_csr([[0, 1], [1, 0]])).weights
    array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    """
    block = as_block(adjacency)
    if self_loops:
        block = add_self_loops(block)
    weights = np.ones(block.n_arcs, np.float32) if block.weights is None else block.weights
    targets = np.repeat(np.arange(block.n_dst), np.diff(block.indptr))
    degree = np.full(block.n_src, float(self_loops))
    degree[:block.n_dst] = np.bincount(targets, weights, block.n_dst)
    inverse = np.zeros_like(degree)
    np.divide(1, np.sqrt(degree, where=degree > 0, out=np.ones_like(degree)), out=inverse, where=degree > 0)
    out = np.empty_like(weights)
    kernels.scaled(block.indptr, block.indices, np.ascontiguousarray(weights), inverse, inverse, out)
    return Block(block.indptr, block.indices, block.n_src, block.n_dst, weights=out)


# -- layers ------------------------------------------------------------------------------------------------------------

class GCNConv(GraphModule):
    r"""Graph convolution: neighbours weighted by both degrees, through one matrix.

    .. math:: Y = D^{-1/2} (A + I) D^{-1/2} X W + b

    Parameters
    ----------
    in_features, out_features : int
    normalize : bool
        False takes the weights of ``adjacency`` as they are: give it :func:`gcn_norm` of the graph, made once.
    self_loops : bool
        Whether normalising adds the I.
    bias : bool
    rng : int, Generator or None

    Notes
    -----
    Shapes and graphs as in :class:`GraphModule`. The same results as ``torch_geometric.nn.GCNConv``.

    References
    ----------
    Kipf and Welling, Semi-supervised classification with graph convolutional networks, ICLR 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> nn.GCNConv(3, 2, rng=0)(np.eye(4), np.ones((4, 3), np.float32)).shape
    (4, 2)
    """

    def __init__(self, in_features: int, out_features: int, normalize: bool = True, self_loops: bool = True,
                 bias: bool = True, *, rng=None, dtype=np.float32):
        self.in_features = check_int(in_features, "in_features", 1)
        self.out_features = check_int(out_features, "out_features", 1)
        self.normalize, self.self_loops = bool(normalize), bool(self_loops)
        self.weight = Parameter(glorot_uniform(in_features, out_features, rng, dtype))
        self.bias = Parameter(np.zeros(out_features, dtype)) if bias else None

    def forward(self, adjacency, x) -> Tensor:
        block = gcn_norm(adjacency, self.self_loops) if self.normalize else as_block(adjacency)
        return ops.graph_linear(block, x, self.weight, self.bias, reduce="sum", weighted=True)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, normalize={self.normalize}"


class SAGEConv(GraphModule):
    r"""GraphSAGE: each target's own row and its neighbours' mean (sum, maximum), each through its own weights.

    .. math:: y_i = x_i W_{self} + \mathrm{mean}_{j \in N(i)} x_j\, W_{neigh} + b

    Parameters
    ----------
    in_features, out_features : int
    reduce : {"mean", "sum", "max"}
        A target without neighbours receives a zero.
    bias : bool
    weighted : bool
        Weigh neighbours by the arcs' weights; not with ``"max"``.
    rng : int, Generator or None

    Notes
    -----
    Shapes and graphs as in :class:`GraphModule`. Where that costs less, rows are
    multiplied before they are aggregated. The same results as ``torch_geometric.nn.SAGEConv``, whose ``lin_l`` is
    ``weight_neigh`` and ``bias``, and ``lin_r`` is ``weight_self``.

    References
    ----------
    Hamilton et al., Inductive representation learning on large graphs, NeurIPS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> nn.SAGEConv(3, 2, "max", rng=0)(np.eye(4), np.ones((4, 3), np.float32)).shape
    (4, 2)
    """

    def __init__(self, in_features: int, out_features: int, reduce: str = "mean", bias: bool = True, *,
                 weighted: bool = False, rng=None, dtype=np.float32):
        self.in_features = check_int(in_features, "in_features", 1)
        self.out_features = check_int(out_features, "out_features", 1)
        self.reduce, self.weighted = check_choice(reduce, "reduce", ("mean", "sum", "max")), bool(weighted)
        if self.weighted and reduce == "max":
            raise ValueError("a maximum takes no weights; give weighted=False or another reduce")
        rng = np.random.default_rng(rng)
        self.weight_self = Parameter(glorot_uniform(in_features, out_features, rng, dtype))
        self.weight_neigh = Parameter(glorot_uniform(in_features, out_features, rng, dtype))
        self.bias = Parameter(np.zeros(out_features, dtype)) if bias else None

    def forward(self, adjacency, x) -> Tensor:
        return ops.graph_linear(adjacency, x, self.weight_neigh, self.bias, self.weight_self, self.reduce,
                                self.weighted)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, reduce={self.reduce!r}"


class GINConv(GraphModule):
    r"""Graph isomorphism convolution: own row and the sum of the neighbours', through a network.

    .. math:: y_i = f\bigl((1 + \epsilon) x_i + \textstyle\sum_{j \in N(i)} x_j\bigr)

    Parameters
    ----------
    network : Module
        f; an :class:`MLP`, as a rule.
    eps : float
    train_eps : bool
        Whether eps is learned.

    Notes
    -----
    Shapes and graphs as in :class:`GraphModule`; weights of arcs do not count. The same results as
    ``torch_geometric.nn.GINConv``.

    References
    ----------
    Xu et al., How powerful are graph neural networks?, ICLR 2019.
    """

    def __init__(self, network: Module, eps: float = 0.0, train_eps: bool = False, *, dtype=np.float32):
        self.network = network
        self.eps = Parameter(np.full(1, check_float(eps, "eps"), dtype), requires_grad=bool(train_eps))

    def forward(self, adjacency, x) -> Tensor:
        block, x = as_block(adjacency), _tensor(x)
        check_rows(block, x, x.shape[-1])
        own = x if block.n_dst == block.n_src else x[:block.n_dst]
        if self.eps.requires_grad or self.eps.data[0]:
            own = own * (self.eps + 1.0)
        return self.network(own + ops.aggregate(block, x, "sum"))


class SGConv(GraphModule):
    r"""Simple graph convolution: K steps of smoothing and one linear map, :math:`S^K X W + b`.

    Parameters
    ----------
    in_features, out_features : int
    steps : int
        K.
    normalize, self_loops, bias
        As in :class:`GCNConv`.
    rng : int, Generator or None

    Notes
    -----
    A whole graph only. The same results as ``torch_geometric.nn.SGConv``. S^K X does not change while training:
    compute it once with :func:`propagate` and train a :class:`Linear` where x is no output of another layer.

    References
    ----------
    Wu et al., Simplifying graph convolutional networks, ICML 2019.
    """

    def __init__(self, in_features: int, out_features: int, steps: int = 1, normalize: bool = True,
                 self_loops: bool = True, bias: bool = True, *, rng=None, dtype=np.float32):
        self.steps = check_int(steps, "steps", 0)
        self.normalize, self.self_loops = bool(normalize), bool(self_loops)
        self.linear = Linear(in_features, out_features, bias, rng=rng, dtype=dtype)

    def forward(self, adjacency, x) -> Tensor:
        operator = gcn_norm(adjacency, self.self_loops) if self.normalize else adjacency
        return self.linear(ops.propagate(operator, x, self.steps))


class APPNP(GraphModule):
    r"""Personalised PageRank of predictions: K times :math:`Z = (1 - \alpha) S Z + \alpha X`; no parameters.

    Parameters
    ----------
    steps : int
        K.
    alpha : float
        Share of X in every step, the probability of a restart.
    normalize, self_loops : bool
        As in :class:`GCNConv`.

    Notes
    -----
    A whole graph only; put an :class:`MLP` before it. Nothing is kept for the gradient. The same results as
    ``torch_geometric.nn.APPNP`` without its dropout of arcs.

    References
    ----------
    Gasteiger et al., Predict then propagate: graph neural networks meet personalized PageRank, ICLR 2019.
    """

    def __init__(self, steps: int = 10, alpha: float = 0.1, normalize: bool = True, self_loops: bool = True):
        self.steps = check_int(steps, "steps", 0)
        self.alpha = check_float(alpha, "alpha", 0, 1)
        self.normalize, self.self_loops = bool(normalize), bool(self_loops)

    def forward(self, adjacency, x) -> Tensor:
        operator = gcn_norm(adjacency, self.self_loops) if self.normalize else adjacency
        return ops.propagate(operator, x, self.steps, self.alpha)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, alpha={self.alpha}"


class SIGN(Module):
    r"""Features smoothed 0 to K times beforehand, each through its own matrix, side by side, through another.

    .. math:: Y = \sigma([X W_0, S X W_1, \dots, S^K X W_K])\, V + b

    Parameters
    ----------
    in_features, hidden_features, out_features : int
        Each of the K + 1 inputs gets ``hidden_features`` columns.
    steps : int
        K.
    dropout : float
        Before V.
    rng : int, Generator or None

    Notes
    -----
    ``forward(hops)`` takes the K + 1 arrays, rows of the same nodes in each. It needs no graph, so that minibatches
    are rows: :meth:`hops` makes the arrays once, :mod:`gnncy.storage.passes` where they do not fit in memory.

    References
    ----------
    Frasca et al., SIGN: scalable inception graph neural networks, 2020.
    """

    def __init__(self, in_features: int, hidden_features: int, out_features: int, steps: int, dropout: float = 0.0, *,
                 rng=None, dtype=np.float32):
        rng = np.random.default_rng(rng)
        self.branches = [Linear(in_features, hidden_features, rng=rng, dtype=dtype)
                         for _ in range(check_int(steps, "steps", 0) + 1)]
        self.activation, self.dropout = ReLU(), Dropout(dropout)
        self.last = Linear(hidden_features * len(self.branches), out_features, rng=rng, dtype=dtype)

    @staticmethod
    def hops(adjacency, x, steps: int, normalize: bool = True) -> list[np.ndarray]:
        """The arrays X, S X, ..., S^K X of a whole graph."""
        operator = gcn_norm(adjacency) if normalize else as_block(adjacency)
        found = [_tensor(x).data]
        for _ in range(check_int(steps, "steps", 0)):
            found.append(ops.propagate(operator, found[-1], 1).data)
        return found

    def forward(self, hops: Sequence) -> Tensor:
        if len(hops) != len(self.branches):
            raise ValueError(f"SIGN of {len(self.branches) - 1} steps takes {len(self.branches)} arrays, "
                             f"got {len(hops)}")
        hidden = ops.concatenate([branch(x) for branch, x in zip(self.branches, hops, strict=True)], axis=1)
        return self.last(self.dropout(self.activation(hidden)))


class ResGCNBlock(GraphModule):
    r"""Residual block with the norm first: :math:`X + \mathrm{conv}(\mathrm{dropout}(\mathrm{act}(\mathrm{norm}(X))))`.

    Parameters
    ----------
    conv : GraphModule
        From a width to the same width.
    norm : Module, optional
        :class:`LayerNorm` or :class:`BatchNorm` of that width; LayerNorm by default.
    activation : Module, optional
        ReLU by default.
    dropout : float

    Notes
    -----
    Shapes and graphs as in :class:`GraphModule`. One of these is the unit to checkpoint in a deep network. The
    ``"res+"`` block of ``torch_geometric.nn.DeepGCNLayer``.

    References
    ----------
    Li et al., DeeperGCN: all you need to train deeper GCNs, 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> block = nn.ResGCNBlock(nn.GCNConv(3, 3, rng=0))
    >>> block(np.eye(4), np.ones((4, 3), np.float32)).shape
    (4, 3)
    """

    def __init__(self, conv: Module, norm: Module | None = None, activation: Module | None = None,
                 dropout: float = 0.0):
        if norm is None:
            first = next(conv.parameters())
            norm = LayerNorm(first.shape[0], dtype=first.dtype.type)
        self.norm, self.activation, self.dropout = norm, activation or ReLU(), Dropout(dropout)
        self.conv = conv

    def forward(self, adjacency, x) -> Tensor:
        block, x = as_block(adjacency), _tensor(x)
        own = x if block.n_dst == block.n_src else x[:block.n_dst]
        return own + self.conv(block, self.dropout(self.activation(self.norm(x))))


class JumpingKnowledge(Module):
    """Outputs of all layers joined: side by side, or the maximum of each element.

    Parameters
    ----------
    mode : {"cat", "max"}

    Notes
    -----
    ``forward(outputs)`` takes a sequence of (n, d) and gives (n, layers d) or (n, d). As
    ``torch_geometric.nn.JumpingKnowledge``, whose third mode, an LSTM over the layers, is not offered. Layers that tie
    share the gradient of a maximum.

    References
    ----------
    Xu et al., Representation learning on graphs with jumping knowledge networks, ICML 2018.
    """

    def __init__(self, mode: str = "cat"):
        self.mode = check_choice(mode, "mode", ("cat", "max"))

    def forward(self, outputs: Sequence) -> Tensor:
        if self.mode == "cat":
            return ops.concatenate(outputs, axis=1)
        return ops.max(ops.concatenate([ops.reshape(x, (x.shape[0], 1, x.shape[1])) for x in outputs], axis=1), axis=1)

    def extra_repr(self) -> str:
        return repr(self.mode)


class GraphSequential(Sequential):
    """Modules one after the other, those that take a graph given one.

    ``forward(adjacency, x)`` takes one graph for all of them, or the list of a sampled batch's blocks, one for each
    layer that takes a graph.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import graph, nn
    >>> model = nn.GraphSequential(nn.SAGEConv(3, 8, rng=0), nn.ReLU(), nn.SAGEConv(8, 2, rng=1))
    >>> ring = graph.as_csr(np.roll(np.eye(6), 1, axis=1))
    >>> model(ring, np.ones((6, 3), np.float32)).shape
    (6, 2)
    >>> batch = graph.NeighborSampler(ring, (2, 2)).sample([0, 4])
    >>> model(batch.blocks, np.ones((len(batch.nodes), 3), np.float32)).shape
    (2, 2)
    """

    def forward(self, adjacency, x) -> Tensor:  # type: ignore[override]
        convolutions = sum(isinstance(layer, GraphModule) for layer in self.layers)
        if isinstance(adjacency, (list, tuple)):
            if len(adjacency) != convolutions:
                raise ValueError(f"{convolutions} layers take a graph, got {len(adjacency)} blocks")
            graphs = iter(adjacency)
        else:
            graphs = iter([as_block(adjacency)] * convolutions)
        for layer in self.layers:
            x = layer(next(graphs), x) if isinstance(layer, GraphModule) else layer(x)
        return _tensor(x)
