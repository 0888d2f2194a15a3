"""Graph convolutions, on whole graphs and on sampled blocks alike."""
import numpy as np

from gnncy._check import check_choice, check_int
from gnncy.nn import ops
from gnncy.nn.modules import Module, glorot_uniform
from gnncy.nn.tensor import Parameter, Tensor


class SAGEConv(Module):
    r"""GraphSAGE: each target's own row and its neighbours' mean (or sum), each through its own weights.

    .. math:: y_i = x_i W_{self} + \mathrm{mean}_{j \in N(i)} x_j\, W_{neigh} + b

    Parameters
    ----------
    in_features, out_features : int
    reduce : {"mean", "sum"}
        A target without neighbours receives a zero.
    bias : bool
    rng : int, Generator or None

    Notes
    -----
    Shapes: ``adjacency`` is a ``csr_array`` or a sampled block of shape (targets, sources) whose first sources are the
    targets themselves; ``x`` is (sources, in_features), the output (targets, out_features). Where the output is
    narrower than the input, rows are multiplied before they are aggregated, which moves fewer bytes. For several
    passes over a whole graph make one block of it (``graph.Block.from_csr``), which keeps its transpose.

    References
    ----------
    Hamilton et al., Inductive Representation Learning on Large Graphs, NeurIPS 2017.
    """

    def __init__(self, in_features: int, out_features: int, reduce: str = "mean", bias: bool = True, *, rng=None,
                 dtype=np.float32):
        self.in_features = check_int(in_features, "in_features", 1)
        self.out_features = check_int(out_features, "out_features", 1)
        self.reduce = check_choice(reduce, "reduce", ("mean", "sum"))
        rng = np.random.default_rng(rng)
        self.weight_self = Parameter(glorot_uniform(in_features, out_features, rng, dtype))
        self.weight_neigh = Parameter(glorot_uniform(in_features, out_features, rng, dtype))
        self.bias = Parameter(np.zeros(out_features, dtype)) if bias else None

    def forward(self, adjacency, x) -> Tensor:
        x = x if isinstance(x, Tensor) else Tensor(x)
        targets, sources = adjacency.shape if hasattr(adjacency, "shape") else (adjacency.n_dst, adjacency.n_src)
        if x.shape != (sources, self.in_features) or targets > sources:
            raise ValueError(f"x must have shape ({sources}, {self.in_features}) for an adjacency of shape "
                             f"({targets}, {sources}), whose first sources are its targets; got {x.shape}")
        if self.out_features < self.in_features:
            neighbours = ops.aggregate(adjacency, ops.matmul(x, self.weight_neigh), self.reduce)
        else:
            neighbours = ops.matmul(ops.aggregate(adjacency, x, self.reduce), self.weight_neigh)
        own = x if targets == sources else x[:targets]
        if self.bias is None:
            return ops.add(ops.matmul(own, self.weight_self), neighbours)
        return ops.add(ops.affine(own, self.weight_self, self.bias), neighbours)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, reduce={self.reduce!r}"
