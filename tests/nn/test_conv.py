"""Graph layers against dense formulas in plain numpy, and their gradients against central differences."""
import numpy as np
import pytest
from scipy import sparse

from gnncy import nn
from gnncy._threads import working_threads
from gnncy.graph import Block, NeighborSampler

SHAPES = [(5, 5), (4, 7), (1, 1)]


def data(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def dense(targets, sources, seed=0):
    """Directed, weighted, with self-loops, and a target without neighbours where there are several."""
    rng = np.random.default_rng([seed, targets, sources])
    weights = (rng.random((targets, sources)) < 0.5) * rng.uniform(0.3, 2, (targets, sources))
    if targets > 3:
        weights[0], weights[1] = 0, 1.0
        weights[2, 2] = 0.7
    return weights


def check(module, adjacency, x):
    """Largest relative error of the gradients by the input and by each parameter."""
    places = [(m, name) for m in module.modules() for name, p in vars(m).items()
              if isinstance(p, nn.Parameter) and p.requires_grad]

    def function(x, *values):
        for (owner, name), value in zip(places, values, strict=True):
            setattr(owner, name, value)
        return module(adjacency, x)

    return nn.check_gradient(function, [x, *(getattr(m, name).data for m, name in places)])


def with_biases(module):
    for name, p in module.named_parameters():
        if "bias" in name:
            p.data[...] = data(*p.shape, seed=5)
    return module


def weight(linear):
    return linear.weight.data


def with_loops(a):
    """Loops of weight 1 where there are none."""
    a = a.copy()
    n = len(a)
    own = a[np.arange(n), np.arange(n)]
    a[np.arange(n), np.arange(n)] = np.where(own == 0, 1, own)
    return a


def normalised(a, loops=True):
    if loops:
        a = with_loops(a)
    degree = np.full(a.shape[1], float(loops))
    degree[:len(a)] = a.sum(1)
    inverse = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    return inverse[:len(a), None] * a * inverse


def softmax_rows(scores, mask):
    e = np.where(mask, np.exp(np.where(mask, scores, 0)), 0)
    return e / np.maximum(e.sum(1, keepdims=True), 1e-300)


def leaky(x, slope=0.2):
    return np.where(x > 0, x, slope * x)


def attention_graph(a):
    """Mask and weights with every loop replaced, as in PyTorch Geometric: its weight is the mean of the others'."""
    a, n = a.copy(), len(a)
    a[np.arange(n), np.arange(n)] = 0
    mask = a != 0
    a[np.arange(n), np.arange(n)] = a.sum(1) / np.maximum(mask.sum(1), 1)
    mask[np.arange(n), np.arange(n)] = True
    return a, mask


def heads_of(x, heads):
    return x.reshape(len(x), heads, -1)


# -- one reference for each layer --------------------------------------------------------------------------------------

def gcn(layer, a, x):
    return normalised(a) @ x @ layer.weight.data + layer.bias.data


def sage(layer, a, x):
    mask = a != 0
    if layer.reduce == "max":
        heard = np.array([x[row].max(0) if row.any() else np.zeros(x.shape[1]) for row in mask])
    else:
        heard = mask @ x
        if layer.reduce == "mean":
            heard = heard / np.maximum(mask.sum(1, keepdims=True), 1)
    return x[:len(a)] @ layer.weight_self.data + heard @ layer.weight_neigh.data + layer.bias.data


def gin(layer, a, x):
    first, _, last = layer.network.layers
    hidden = (1 + layer.eps.data[0]) * x[:len(a)] + (a != 0) @ x
    hidden = np.tanh(hidden @ weight(first) + first.bias.data)
    return hidden @ weight(last) + last.bias.data


def gat(layer, a, x):
    a, mask = attention_graph(a)
    values = heads_of(x @ weight(layer.linear), layer.heads)
    out = []
    for h in range(layer.heads):
        scores = ((values[:len(a), h] @ layer.vector_target.data[h])[:, None]
                  + (values[:, h] @ layer.vector_source.data[h])[None])
        if layer.weighted:
            scores = scores + a * (layer.weight_arc.data[h] @ layer.vector_arc.data[h])
        out.append(softmax_rows(leaky(scores), mask) @ values[:, h])
    return (np.concatenate(out, 1) if layer.concat else np.mean(out, 0)) + layer.bias.data


def gatv2(layer, a, x):
    a, mask = attention_graph(a)
    source = heads_of(x @ weight(layer.source) + layer.source.bias.data, layer.heads)
    target = heads_of(x[:len(a)] @ weight(layer.target) + layer.target.bias.data, layer.heads)
    out = []
    for h in range(layer.heads):
        both = target[:, None, h] + source[None, :, h]
        if layer.weighted:
            both = both + a[:, :, None] * layer.weight_arc.data[h]
        out.append(softmax_rows(leaky(both) @ layer.vector.data[h], mask) @ source[:, h])
    return (np.concatenate(out, 1) if layer.concat else np.mean(out, 0)) + layer.bias.data


def neighbour_attention(layer, a, x):
    def apply(linear, rows):
        return rows @ weight(linear) + linear.bias.data
    query, key, value = (heads_of(apply(m, rows), layer.heads) for m, rows in
                         ((layer.query, x[:len(a)]), (layer.key, x), (layer.value, x)))
    out = [softmax_rows(query[:, h] @ key[:, h].T / np.sqrt(query.shape[2]), a != 0) @ value[:, h]
           for h in range(layer.heads)]
    return apply(layer.out, np.concatenate(out, 1))


def gated_attention(layer, a, x):
    """The reference's formula, but for its gate z, which is 1 - z here."""
    def sigmoid(v):
        return 1 / (1 + np.exp(-v))
    m = x @ weight(layer.message) + layer.message.bias.data
    total = a.sum(1, keepdims=True)
    mean = np.where(total > 0, a / np.where(total > 0, total, 1), (a != 0) / np.maximum((a != 0).sum(1), 1)[:, None])
    t = (neighbour_attention(layer.attention, a, m) + mean @ m) @ weight(layer.transform) + layer.transform.bias.data
    h, d = m[:len(a)], m.shape[1]
    w, u = layer.gate.from_input, layer.gate.from_state
    (wr, wz, wn), (br, bz, bn) = np.split(weight(w), 3, 1), np.split(w.bias.data, 3)
    (ur, uz, un), (cr, cz, cn) = np.split(weight(u), 3, 1), np.split(u.bias.data, 3)
    r, z = sigmoid(t @ wr + br + h @ ur + cr), 1 - sigmoid(t @ wz + bz + h @ uz + cz)
    candidate = np.tanh(t @ wn + bn + (r * h) @ un + cn)
    out = (1 - z) * h + z * candidate
    out = np.where((a != 0).any(1)[:, None], out, h)
    assert out.shape[1] == d
    out = (out - out.mean(1, keepdims=True)) / np.sqrt(out.var(1, keepdims=True) + 1e-5)
    return out * layer.norm.weight.data + layer.norm.bias.data


def residual(layer, a, x):
    unit = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    hidden = np.maximum(unit * layer.norm.weight.data + layer.norm.bias.data, 0)
    return x[:len(a)] + gcn(layer.conv, a, hidden)


def sgc(layer, a, x):
    return np.linalg.matrix_power(normalised(a), layer.steps) @ x @ weight(layer.linear) + layer.linear.bias.data


def appnp(layer, a, x):
    z = x
    for _ in range(layer.steps):
        z = (1 - layer.alpha) * normalised(a) @ z + layer.alpha * x
    return z


F64 = {"rng": 0, "dtype": np.float64}
LAYERS = {
    "gcn_narrower": (lambda: nn.GCNConv(4, 3, **F64), gcn), "gcn_wider": (lambda: nn.GCNConv(4, 5, **F64), gcn),
    "sage_mean": (lambda: nn.SAGEConv(4, 5, **F64), sage), "sage_narrower": (lambda: nn.SAGEConv(4, 2, **F64), sage),
    "sage_sum": (lambda: nn.SAGEConv(4, 3, "sum", **F64), sage),
    "sage_max": (lambda: nn.SAGEConv(4, 3, "max", **F64), sage),
    "gin": (lambda: nn.GINConv(nn.MLP([4, 5, 3], "tanh", **F64), 0.3, True, dtype=np.float64), gin),
    "gat": (lambda: nn.GATConv(4, 3, 2, **F64), gat), "gat_mean": (lambda: nn.GATConv(4, 2, 3, False, **F64), gat),
    "gat_weighted": (lambda: nn.GATConv(4, 3, 2, weighted=True, **F64), gat),
    "gatv2": (lambda: nn.GATv2Conv(4, 3, 2, **F64), gatv2),
    "gatv2_mean": (lambda: nn.GATv2Conv(4, 3, 2, False, **F64), gatv2),
    "gatv2_weighted": (lambda: nn.GATv2Conv(4, 3, 1, weighted=True, **F64), gatv2),
    "dot_attention": (lambda: nn.NeighborAttention(4, 2, **F64), neighbour_attention),
    "gated_attention": (lambda: nn.GatedAttentionConv(4, 4, 2, **F64), gated_attention),
    "residual": (lambda: nn.ResGCNBlock(nn.GCNConv(4, 4, **F64)), residual),
    "sgc": (lambda: nn.SGConv(4, 3, 3, **F64), sgc), "appnp": (lambda: nn.APPNP(4, 0.2), appnp),
    "appnp_all": (lambda: nn.APPNP(2, 0.0), appnp),
}


WHOLE = ("sgc", "appnp", "appnp_all")  # layers that take no sampled blocks


@pytest.mark.parametrize("name, shape", [(name, shape) for name in LAYERS for shape in SHAPES
                                         if name not in WHOLE or shape[0] == shape[1]], ids=str)
def test_layer_is_its_formula_and_its_gradients_agree(name, shape):
    # The reference's layer has no backward pass (SPEC R0.3), its README names layers that do not exist.
    make, reference = LAYERS[name]
    a, x, layer = dense(*shape), data(shape[1], 4), with_biases(make())
    expected = reference(layer, a, x)
    np.testing.assert_allclose(layer(sparse.csr_array(a), x).data, expected, rtol=1e-10, atol=1e-12)
    block = Block.from_csr(sparse.csr_array(a))
    np.testing.assert_array_equal(layer(block, x).data, layer(sparse.csr_array(a), x).data)
    assert check(layer, block, x) < 1e-6


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer_in_single_precision_and_on_any_number_of_threads(name):
    make, _ = LAYERS[name]
    layer = make()
    wide = dense(3000, 3000)
    a = sparse.csr_array(np.where(np.random.default_rng(0).random(wide.shape) < 0.005, wide, 0)).astype(np.float32)
    for m in layer.modules():
        for key, p in vars(m).items():
            if isinstance(p, nn.Parameter):
                setattr(m, key, nn.Parameter(p.data.astype(np.float32), p.requires_grad))
    x = data(3000, 4).astype(np.float32)

    def run():
        t = nn.Tensor(x, requires_grad=True)
        for p in layer.parameters():
            p.grad = None
        out = layer(a, t)
        out.sum().backward()
        assert out.dtype == t.grad.dtype == np.float32
        return [out.data, t.grad, *(p.grad for p in layer.parameters() if p.requires_grad)]

    with working_threads(1):
        one = run()
    with working_threads(2):
        two = run()
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first, second)


def test_graphs_without_weights_and_without_loops():
    a, x = dense(6, 6), data(6, 4)
    pattern = Block.from_csr(sparse.csr_array(a))
    pattern = Block(pattern.indptr, pattern.indices, 6, 6)
    layer = nn.GCNConv(4, 3, **F64)
    np.testing.assert_allclose(layer(pattern, x).data, gcn(layer, (a != 0).astype(float), x), atol=1e-6)
    layer = nn.GCNConv(4, 3, self_loops=False, **F64)
    np.testing.assert_allclose(layer(sparse.csr_array(a), x).data, normalised(a, loops=False) @ x @ layer.weight.data)
    operator = nn.gcn_norm(sparse.csr_array(a))
    given = nn.GCNConv(4, 3, normalize=False, **F64)
    np.testing.assert_allclose(given(operator, x).data, nn.GCNConv(4, 3, **F64)(sparse.csr_array(a), x).data)
    bare = nn.GATConv(4, 3, self_loops=False, **F64)
    assert not bare(sparse.csr_array(a), x).data[0].any()  # nothing heard
    with pytest.raises(ValueError, match="block with weights"):
        nn.GATv2Conv(4, 3, weighted=True, **F64)(pattern, x)
    with pytest.raises(ValueError, match="block with weights"):
        nn.spmm(pattern, x)


def test_self_loops_are_added_once_and_keep_their_weight():
    a = dense(4, 7)
    for fill, expected in ((1.0, with_loops(a)), ("mean", attention_graph(a)[0])):
        looped = nn.add_self_loops(sparse.csr_array(a), fill)
        found = sparse.csr_array((looped.weights, looped.indices, looped.indptr), shape=(4, 7)).toarray()
        np.testing.assert_allclose(found, expected)
        assert looped.n_arcs == (a != 0).sum() + 4 - (a.diagonal() != 0).sum()
    with pytest.raises(ValueError, match="targets among the sources"):
        nn.add_self_loops(sparse.csr_array(dense(5, 3)))
    with pytest.raises(ValueError, match="weight must be one of 'mean'"):
        nn.add_self_loops(sparse.csr_array(a), "median")


def test_blocks_of_the_sampler_with_all_neighbours_equal_the_whole_graph():
    rng = np.random.default_rng(0)
    a = sparse.random_array((40, 40), density=0.1, rng=rng, format="csr")
    x = data(40, 4)
    for conv in (lambda i, o, s: nn.SAGEConv(i, o, rng=s, dtype=np.float64),
                 lambda i, o, s: nn.GATv2Conv(i, o, rng=s, dtype=np.float64)):
        model = nn.GraphSequential(conv(4, 6, 0), nn.ReLU(), conv(6, 3, 1))
        batch = NeighborSampler(a, (-1, -1)).sample([7, 3, 30])
        np.testing.assert_allclose(model(batch.blocks, x[batch.nodes]).data, model(a, x).data[[7, 3, 30]])
    with pytest.raises(ValueError, match="2 layers take a graph, got 1 blocks"):
        model(batch.blocks[:1], x)


def test_sage_may_be_given_sources_in_any_number():
    layer = nn.SAGEConv(3, 2, rng=0)
    assert layer(sparse.csr_array(dense(2, 4)), np.ones((4, 3), np.float32)).dtype == np.float32
    for shape, x in (((2, 4), np.ones((2, 3))), ((2, 4), np.ones((4, 2)))):
        with pytest.raises(ValueError, match="x must have shape"):
            layer(sparse.csr_array(dense(*shape)), x)
    with pytest.raises(ValueError, match="first sources must be the targets"):
        layer(sparse.csr_array(dense(3, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="x must have shape"):
        nn.GATConv(3, 2)(sparse.csr_array(dense(3, 3)), np.ones((3, 4)))


def test_a_layer_computes_no_gradient_that_nobody_asked_for():
    layer, block = nn.SAGEConv(4, 5, rng=0), Block.from_csr(sparse.csr_array(dense(4, 9)).astype(np.float32))
    x = nn.Tensor(data(9, 4).astype(np.float32))
    out = layer(block, x)
    out.sum().backward()
    assert x.grad is None and block._transposed is None


def test_maximum_shares_the_gradient_between_neighbours_that_tie():
    x = nn.Tensor([[1.0], [3.0], [3.0], [2.0]], requires_grad=True)
    out = nn.aggregate(np.ones((1, 4)), x, "max")
    assert out.item() == 3
    out.backward([[4.0]])
    np.testing.assert_array_equal(x.grad, [[0], [2], [2], [0]])


def test_sign_and_its_hops():
    a, x = dense(6, 6), data(6, 4)
    hops = nn.SIGN.hops(sparse.csr_array(a), x, 2)
    for k, hop in enumerate(hops):
        np.testing.assert_allclose(hop, np.linalg.matrix_power(normalised(a), k) @ x, rtol=1e-10)
    model = nn.SIGN(4, 3, 2, 2, **F64)
    hidden = np.concatenate([h @ weight(b) for h, b in zip(hops, model.branches, strict=True)], axis=1)
    np.testing.assert_allclose(model(hops).data, np.maximum(hidden, 0) @ weight(model.last))
    assert nn.check_gradient(lambda *h: model(h), hops) < 1e-6
    with pytest.raises(ValueError, match="takes 3 arrays, got 2"):
        model(hops[:2])


@pytest.mark.parametrize("mode", ["cat", "max"])
def test_jumping_knowledge(mode):
    arrays = [data(5, 3, seed=s) for s in range(3)]
    layer = nn.JumpingKnowledge(mode)
    expected = np.concatenate(arrays, 1) if mode == "cat" else np.max(arrays, 0)
    np.testing.assert_array_equal(layer([nn.Tensor(x) for x in arrays]).data, expected)
    assert nn.check_gradient(lambda *x: layer(x), arrays) < 1e-6


def test_attention_drops_weights_by_the_step_key():
    layer, a, x = nn.GATConv(4, 3, dropout=0.5, rng=0), sparse.csr_array(dense(6, 6)), data(6, 4)
    first = layer.set_step_key(1)(a, x).data
    np.testing.assert_array_equal(layer.set_step_key(1)(a, x).data, first)
    assert (layer.set_step_key(2)(a, x).data != first).any() and (layer.eval()(a, x).data != first).any()


@pytest.mark.parametrize("call, message", [
    (lambda: nn.NeighborAttention(5, 2), "features must be a multiple of heads"),
    (lambda: nn.JumpingKnowledge("lstm"), "mode must be one of"),
    (lambda: nn.APPNP(alpha=1.5), "alpha must be"),
    (lambda: nn.propagate(sparse.csr_array(dense(2, 3)), np.ones((3, 1)), 1), "needs a whole graph"),
    (lambda: nn.aggregate(sparse.csr_array(dense(2, 3)), np.ones((3, 1)), "max", True), "takes no weights"),
    (lambda: nn.arc_add(dense(2, 3), np.ones((3, 1)), np.ones((3, 1))), "left must have shape"),
    (lambda: nn.arc_dot(dense(2, 3), np.ones((2, 1, 2)), np.ones((3, 1, 3))), "left and right must agree"),
    (lambda: nn.arc_combine([[1]], np.ones((1, 2)), np.ones((1, 1, 3))), "as many heads"),
    (lambda: nn.arc_scores([[1]], np.ones((1, 1, 2)), np.ones((1, 1, 2)), np.ones(2)), "vector must have shape"),
    (lambda: nn.segment_softmax(np.ones(3), [0, 2]), "indptr must rise from 0 to 3"),
    (lambda: nn.segment_softmax(np.ones(3), [0.0, 3.0]), "vector of integers"),
])
def test_bad_arguments_of_graph_layers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
