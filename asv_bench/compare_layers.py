"""Every layer beside PyTorch Geometric's (or PyTorch's) with the same weights: outputs and gradients in float32.

``python -m asv_bench.compare_layers`` prints the largest difference of each as a table, relative to the largest element
where that exceeds 1, and fails above 1e-5. It needs torch and torch_geometric.
"""
import sys

import numpy as np
import torch
import torch_geometric.nn as pyg
from scipy import sparse

from gnncy import nn
from gnncy.graph import Block

LIMIT = 1e-5
D, OUT, HEADS = 24, 16, 4
T = lambda a: torch.from_numpy(np.ascontiguousarray(a))  # noqa: E731


def graph(targets, sources, seed=0):
    """Weighted and directed, with isolated targets, a hub and some self-loops."""
    rng = np.random.default_rng(seed)
    dense = rng.random((targets, sources)) < 0.04
    dense[0] = True
    dense[1:6] = False
    dense[10, 10] = dense[11, 11] = True
    return sparse.csr_array((dense * rng.uniform(0.2, 2, dense.shape)).astype(np.float32))


def arcs(adjacency):
    rows = np.repeat(np.arange(adjacency.shape[0]), np.diff(adjacency.indptr))
    return T(np.stack([adjacency.indices, rows]).astype(np.int64)), T(adjacency.data)


def copy(target, source, transpose=False):
    with torch.no_grad():
        array = source.data.T if transpose else source.data
        target.copy_(T(array).reshape(target.shape))


def linear(target, source):
    copy(target.weight, source.weight, transpose=True)
    if source.bias is not None:
        copy(target.bias, source.bias)


def scatter(layer, seed=1):
    """Give biases and the like values other than their first ones."""
    rng = np.random.default_rng(seed)
    for name, p in layer.named_parameters():
        if "bias" in name:
            p.data[...] = rng.standard_normal(p.shape)
    return layer


def gcn():
    ours, theirs = scatter(nn.GCNConv(D, OUT, rng=0)), pyg.GCNConv(D, OUT)
    copy(theirs.lin.weight, ours.weight, True)
    copy(theirs.bias, ours.bias)
    return ours, lambda x, e, w, n: theirs(x, e, w), [(ours.weight, theirs.lin.weight, True), (ours.bias, theirs.bias)]


def sage(reduce):
    def make():
        ours, theirs = scatter(nn.SAGEConv(D, OUT, reduce, rng=0)), pyg.SAGEConv(D, OUT, aggr=reduce)
        copy(theirs.lin_l.weight, ours.weight_neigh, True)
        copy(theirs.lin_l.bias, ours.bias)
        copy(theirs.lin_r.weight, ours.weight_self, True)
        return ours, lambda x, e, w, n: theirs((x, x[:n]), e), [
            (ours.weight_neigh, theirs.lin_l.weight, True), (ours.weight_self, theirs.lin_r.weight, True),
            (ours.bias, theirs.lin_l.bias)]
    return make


def gin():
    ours = scatter(nn.GINConv(nn.MLP([D, OUT, OUT], rng=0), eps=0.3, train_eps=True))
    network = torch.nn.Sequential(torch.nn.Linear(D, OUT), torch.nn.ReLU(), torch.nn.Linear(OUT, OUT))
    theirs = pyg.GINConv(network, eps=0.3, train_eps=True)
    first, last = ours.network.layers[0], ours.network.layers[2]
    linear(network[0], first)
    linear(network[2], last)
    return ours, lambda x, e, w, n: theirs((x, x[:n]), e), [
        (first.weight, network[0].weight, True), (last.bias, network[2].bias), (ours.eps, theirs.eps)]


def gat(concat, weighted):
    def make():
        ours = scatter(nn.GATConv(D, OUT, HEADS, concat, weighted=weighted, rng=0))
        theirs = pyg.GATConv(D, OUT, HEADS, concat, edge_dim=1 if weighted else None)
        copy(theirs.lin.weight, ours.linear.weight, True)
        copy(theirs.att_src, ours.vector_source)
        copy(theirs.att_dst, ours.vector_target)
        copy(theirs.bias, ours.bias)
        pairs = [(ours.linear.weight, theirs.lin.weight, True), (ours.vector_source, theirs.att_src),
                 (ours.vector_target, theirs.att_dst), (ours.bias, theirs.bias)]
        if weighted:
            copy(theirs.lin_edge.weight, ours.weight_arc)
            copy(theirs.att_edge, ours.vector_arc)
            pairs += [(ours.weight_arc, theirs.lin_edge.weight), (ours.vector_arc, theirs.att_edge)]

        def call(x, e, w, n):
            return theirs((x, x[:n]) if n < len(x) else x, e, w[:, None] if weighted else None)
        return ours, call, pairs
    return make


def gatv2(concat, weighted):
    def make():
        ours = scatter(nn.GATv2Conv(D, OUT, HEADS, concat, weighted=weighted, rng=0))
        theirs = pyg.GATv2Conv(D, OUT, HEADS, concat, edge_dim=1 if weighted else None)
        linear(theirs.lin_l, ours.source)
        linear(theirs.lin_r, ours.target)
        copy(theirs.att, ours.vector)
        copy(theirs.bias, ours.bias)
        pairs = [(ours.source.weight, theirs.lin_l.weight, True), (ours.target.weight, theirs.lin_r.weight, True),
                 (ours.target.bias, theirs.lin_r.bias), (ours.vector, theirs.att), (ours.bias, theirs.bias)]
        if weighted:
            copy(theirs.lin_edge.weight, ours.weight_arc)
            pairs.append((ours.weight_arc, theirs.lin_edge.weight))

        def call(x, e, w, n):
            return theirs((x, x[:n]), e, w[:, None] if weighted else None)
        return ours, call, pairs
    return make


def sgc():
    ours, theirs = scatter(nn.SGConv(D, OUT, 3, rng=0)), pyg.SGConv(D, OUT, K=3)
    linear(theirs.lin, ours.linear)
    return ours, lambda x, e, w, n: theirs(x, e, w), [(ours.linear.weight, theirs.lin.weight, True),
                                                      (ours.linear.bias, theirs.lin.bias)]


def appnp():
    theirs = pyg.APPNP(K=5, alpha=0.2)
    return nn.APPNP(5, 0.2), lambda x, e, w, n: theirs(x, e, w), []


def residual():
    ours = scatter(nn.ResGCNBlock(nn.GCNConv(D, D, rng=0)))
    conv, norm = pyg.GCNConv(D, D), torch.nn.LayerNorm(D)
    theirs = pyg.DeepGCNLayer(conv, norm, torch.nn.ReLU(), block="res+", dropout=0.0)
    copy(conv.lin.weight, ours.conv.weight, True)
    copy(conv.bias, ours.conv.bias)
    copy(norm.weight, ours.norm.weight)
    copy(norm.bias, ours.norm.bias)
    return ours, lambda x, e, w, n: theirs(x, e, w), [(ours.conv.weight, conv.lin.weight, True),
                                                      (ours.norm.weight, norm.weight), (ours.norm.bias, norm.bias)]


def attention():
    ours, theirs = scatter(nn.NeighborAttention(D, HEADS, rng=0)), torch.nn.MultiheadAttention(D, HEADS)
    parts = [ours.query, ours.key, ours.value]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(T(np.concatenate([p.weight.data.T for p in parts])))
        theirs.in_proj_bias.copy_(T(np.concatenate([p.bias.data for p in parts])))
    linear(theirs.out_proj, ours.out)

    def call(x, e, w, n):
        mask = torch.ones(n, len(x), dtype=torch.bool)
        mask[e[1], e[0]] = False
        some = torch.unique(e[1])  # torch gives nan where nothing is attended to
        out = theirs.out_proj.bias.expand(n, D).clone()
        return out.index_copy(0, some, theirs(x[some], x, x, attn_mask=mask[some], need_weights=False)[0])
    return ours, call, [(ours.out.weight, theirs.out_proj.weight, True), (ours.out.bias, theirs.out_proj.bias)]


def rows(ours, theirs, pairs=()):
    """A layer that knows no graph."""
    class Plain(nn.Module):
        def __init__(self):
            self.layer = ours

        def forward(self, adjacency, x):
            return self.layer(x)
    return lambda: (Plain(), lambda x, e, w, n: theirs(x), list(pairs))


def batch_norm():
    ours, theirs = nn.BatchNorm(D), torch.nn.BatchNorm1d(D)
    return rows(ours, theirs, [(ours.weight, theirs.weight), (ours.bias, theirs.bias),
                               (nn.Parameter(ours.running_mean), theirs.running_mean),
                               (nn.Parameter(ours.running_var), theirs.running_var)])()


def layer_norm():
    ours, theirs = nn.LayerNorm(D), torch.nn.LayerNorm(D)
    return rows(ours, theirs, [(ours.weight, theirs.weight), (ours.bias, theirs.bias)])()


def mlp():
    ours = scatter(nn.MLP([D, OUT, OUT], "gelu", rng=0))
    theirs = torch.nn.Sequential(torch.nn.Linear(D, OUT), torch.nn.GELU(), torch.nn.Linear(OUT, OUT))
    linear(theirs[0], ours.layers[0])
    linear(theirs[2], ours.layers[2])
    return rows(ours, theirs, [(ours.layers[0].weight, theirs[0].weight, True),
                               (ours.layers[2].bias, theirs[2].bias)])()


def gru():
    ours, theirs = scatter(nn.GRUCell(D, D, rng=0)), torch.nn.GRUCell(D, D)
    copy(theirs.weight_ih, ours.from_input.weight, True)
    copy(theirs.weight_hh, ours.from_state.weight, True)
    copy(theirs.bias_ih, ours.from_input.bias)
    copy(theirs.bias_hh, ours.from_state.bias)

    class Both(nn.Module):
        def __init__(self):
            self.layer = ours

        def forward(self, adjacency, x):
            return self.layer(x, x * 0.5)
    return Both(), lambda x, e, w, n: theirs(x, x * 0.5), [(ours.from_input.weight, theirs.weight_ih, True),
                                                           (ours.from_state.weight, theirs.weight_hh, True),
                                                           (ours.from_state.bias, theirs.bias_hh)]


def jumping(mode):
    def make():
        theirs, layer = pyg.JumpingKnowledge(mode), nn.JumpingKnowledge(mode)

        class Three(nn.Module):
            def forward(self, adjacency, x):
                return layer([x, x * x, 0.3 * x])
        return Three(), lambda x, e, w, n: theirs([x, x * x, 0.3 * x]), []
    return make


def embedding():
    ours, theirs, ids = nn.Embedding(50, OUT, rng=0), torch.nn.Embedding(50, OUT), np.arange(80) * 7 % 50
    copy(theirs.weight, ours.weight)

    class Table(nn.Module):
        def __init__(self):
            self.table = ours

        def forward(self, adjacency, x):
            return self.table(ids) + x.sum()
    return Table(), lambda x, e, w, n: theirs(T(ids)) + x.sum(), [(ours.weight, theirs.weight)]


# Name, what it is compared with, whether it also takes sampled blocks there.
LAYERS = [
    ("GCNConv", "GCNConv", gcn, False), ("SAGEConv, mean", "SAGEConv", sage("mean"), True),
    ("SAGEConv, sum", "SAGEConv", sage("sum"), True), ("SAGEConv, max", "SAGEConv", sage("max"), True),
    ("GINConv", "GINConv", gin, True), ("GATConv, concat", "GATConv", gat(True, False), True),
    ("GATConv, mean, weighted", "GATConv, edge_dim=1", gat(False, True), False),
    ("GATv2Conv, concat", "GATv2Conv", gatv2(True, False), True),
    ("GATv2Conv, mean, weighted", "GATv2Conv, edge_dim=1", gatv2(False, True), True),
    ("SGConv", "SGConv", sgc, False), ("APPNP", "APPNP", appnp, False),
    ("ResGCNBlock", "DeepGCNLayer, res+", residual, False),
    ("NeighborAttention", "torch MultiheadAttention, masked", attention, True),
    ("JumpingKnowledge, cat", "JumpingKnowledge", jumping("cat"), False),
    ("JumpingKnowledge, max", "JumpingKnowledge", jumping("max"), False),
    ("MLP, gelu", "torch Linear, GELU", mlp, False), ("LayerNorm", "torch LayerNorm", layer_norm, False),
    ("BatchNorm", "torch BatchNorm1d", batch_norm, False), ("GRUCell", "torch GRUCell", gru, False),
    ("Embedding", "torch Embedding", embedding, False),
]


def difference(ours, theirs):
    theirs = theirs.detach().numpy()
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def compare(make, adjacency):
    """Largest difference of the output and of the gradients by the input and the parameters."""
    ours, theirs, pairs = make()
    targets, sources = adjacency.shape
    x = np.random.default_rng(3).standard_normal((sources, D)).astype(np.float32)
    mine, other = nn.Tensor(x, requires_grad=True), T(x).requires_grad_()
    out, wanted = ours(Block.from_csr(adjacency), mine), theirs(other, *arcs(adjacency), targets)
    grad = np.random.default_rng(4).standard_normal(out.shape).astype(np.float32)
    out.backward(grad)
    wanted.backward(T(grad))
    found = [difference(mine.grad, other.grad)]
    for parameter, peer, *transposed in pairs:
        # Running statistics have no gradient; they are compared themselves.
        ours, theirs = (parameter.grad, peer.grad) if peer.requires_grad else (parameter.data, peer)
        found.append(difference((ours.T if transposed else ours).reshape(peer.shape), theirs))
    return difference(out.data, wanted), max(found)


def main() -> int:
    worst = 0.0
    print(f"torch {torch.__version__}, torch_geometric {sys.modules['torch_geometric'].__version__}\n")
    print("\n".join(["layer,compared with,graph,output,gradients"]))
    for name, peer, make, on_blocks in LAYERS:
        for where, adjacency in [("whole", graph(80, 80)), ("block", graph(40, 90))][:2 if on_blocks else 1]:
            output, gradients = compare(make, adjacency)
            worst = max(worst, output, gradients)
            print(f'"{name}","{peer}",{where},{output:.1e},{gradients:.1e}')
    print(f"\nlargest: {worst:.1e}")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
