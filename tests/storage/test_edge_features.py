"""Features and weights of arcs on disk: gathered by the arcs of a sample, used by layers, permuted with the nodes."""
import numpy as np
import pytest
import scipy.sparse as sp

from gnncy import nn
from gnncy.graph import Block, NeighborSampler, aggregate, as_csr, permute
from gnncy.storage import FeatureStorage, GraphStorage, StorageSampler

F64 = {"rng": 0, "dtype": np.float64}


def data(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


@pytest.fixture
def graph():
    rng = np.random.default_rng(0)
    return as_csr((rng.random((120, 120)) < 0.1) * rng.uniform(0.5, 2, (120, 120)).astype(np.float32))


# A gather by arcs

def test_each_arc_of_a_sample_finds_its_features(tmp_path, graph):
    rows = np.stack([np.repeat(np.arange(120), np.diff(graph.indptr)), graph.indices, graph.data], 1).astype(np.float32)
    with GraphStorage.create(tmp_path / "graph", graph) as stored, \
            FeatureStorage.from_array(rows, tmp_path / "arcs.npy", order=np.random.default_rng(1).permutation(
                graph.nnz)) as features:
        sampler = StorageSampler(stored, (5, 4), seed=2, weighted=True)
        batch = sampler.sample(np.arange(20))
        memory = NeighborSampler(graph, (5, 4), seed=2, weighted=True).sample(np.arange(20))
        for block, other in zip(batch.blocks, memory.blocks, strict=True):
            assert np.array_equal(block.edges, other.edges)
            found = features.read_batch(block.edges)
            targets = np.repeat(np.arange(block.n_dst), np.diff(block.indptr))
            assert np.array_equal(found[:, 0], batch.nodes[targets])
            assert np.array_equal(found[:, 1], batch.nodes[block.indices])
            assert np.array_equal(found[:, 2], block.weights)


def test_weighted_aggregation_of_a_sample(tmp_path, graph):
    x = data(120, 6).astype(np.float32)
    with GraphStorage.create(tmp_path / "graph", graph) as stored:
        block = StorageSampler(stored, (-1,), weighted=True).sample(np.arange(120)).blocks[0]
        order = StorageSampler(stored, (-1,)).sample(np.arange(120)).nodes
    dense = graph.toarray()
    expected = dense @ x / np.maximum(dense.sum(1, keepdims=True), 1e-9)
    assert np.allclose(aggregate(block, x[order], weighted=True), expected, atol=1e-5)
    layer = nn.SAGEConv(6, 3, weighted=True, rng=0)
    mean = nn.SAGEConv(6, 3, rng=0)
    own = x @ layer.weight_self.data
    assert np.allclose(layer(block, x[order]).data, own + expected @ layer.weight_neigh.data, atol=1e-5)
    assert not np.allclose(mean(block, x[order]).data, layer(block, x[order]).data, atol=1e-3)


# Layers

def places(module):
    return [(m, name) for m in module.modules() for name, p in vars(m).items()
            if isinstance(p, nn.Parameter) and p.requires_grad]


@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("shape", [(5, 5), (4, 7), (1, 1)])
@pytest.mark.parametrize("features", [1, 3])
def test_attention_with_edge_features_has_its_gradient(loops, shape, features):
    weights = (np.random.default_rng(3).random(shape) < 0.6) * 1.0
    weights[0] = 0
    if shape[0] > 2:
        weights[2, 2] = 1
    block = Block.from_csr(sp.csr_array(weights))
    module = nn.GATConv(4, 3, 2, self_loops=loops, edge_features=features, **F64)
    z = data(block.n_arcs, features)
    found = places(module)

    def function(x, *values):
        for (owner, name), value in zip(found, values, strict=True):
            setattr(owner, name, value)
        return module(block, x, z)

    assert nn.check_gradient(function, [data(shape[1], 4), *(getattr(m, k).data for m, k in found)]) < 1e-6


def test_weights_are_edge_features_of_width_one(graph):
    x = data(120, 4)
    block = Block.from_csr(as_csr(graph.astype(np.float64)))
    one = nn.GATConv(4, 3, 2, weighted=True, **F64)
    other = nn.GATConv(4, 3, 2, edge_features=1, **F64)
    for name in ("vector_target", "vector_source"):
        getattr(other, name).data[...] = getattr(one, name).data
    other.linear.weight.data[...] = one.linear.weight.data
    other.weight_edge.data[...] = one.weight_arc.data.reshape(1, -1)
    other.vector_edge.data[...] = one.vector_arc.data
    assert np.allclose(one(block, x).data, other(block, x, block.weights[:, None]).data, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_against_a_dense_formula(dtype):
    weights = (np.random.default_rng(5).random((6, 6)) < 0.5) * 1.0
    np.fill_diagonal(weights, 0)
    graph, x, z = as_csr(weights), data(6, 4).astype(dtype), data(6, 6, 2).astype(dtype)
    layer = nn.GATConv(4, 3, 1, edge_features=2, rng=0, dtype=dtype)
    h = x @ layer.linear.weight.data
    v = layer.weight_edge.data @ layer.vector_edge.data[0]
    mean = (z * weights[..., None]).sum(1) / np.maximum(weights.sum(1), 1)[:, None]
    z[np.arange(6), np.arange(6)] = mean
    scores = (h @ layer.vector_target.data[0])[:, None] + (h @ layer.vector_source.data[0])[None] + z @ v
    scores = np.where(scores > 0, scores, 0.2 * scores)
    scores = np.where(weights + np.eye(6) > 0, np.exp(scores), 0)
    expected = scores / scores.sum(1, keepdims=True) @ h
    rows = z[np.repeat(np.arange(6), np.diff(graph.indptr)), graph.indices]
    found = layer(graph, x, rows).data
    assert found.dtype == dtype and np.allclose(found, expected, atol=1e-5 if dtype == np.float32 else 1e-12)


def test_edge_features_that_do_not_fit(graph):
    x, layer = data(120, 4).astype(np.float32), nn.GATConv(4, 3, edge_features=2)
    for given in (None, np.zeros((3, 2)), np.zeros((graph.nnz, 1))):
        with pytest.raises(ValueError, match="edge_features must have shape"):
            layer(graph, x, given)
    with pytest.raises(ValueError, match="made with edge_features=0"):
        nn.GATConv(4, 3)(graph, x, np.zeros((graph.nnz, 2)))
    with pytest.raises(ValueError, match="a maximum takes no weights"):
        nn.SAGEConv(4, 3, "max", weighted=True)


# An order of the nodes

@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("limit", [200, 10**6])  # arcs at a time
def test_an_order_of_nodes_moves_arcs_and_their_features(tmp_path, monkeypatch, graph, weighted, limit):
    from gnncy.storage.topology import permuted
    monkeypatch.setattr(permuted, "_LEAST", 1)
    monkeypatch.setattr(permuted, "_ARC_BYTES", 10**7 // limit)
    if not weighted:
        graph.data[:] = 1
    order = np.random.default_rng(7).permutation(120)
    rows = np.stack([np.repeat(np.arange(120), np.diff(graph.indptr)), graph.indices], 1).astype(np.float32)
    with GraphStorage.create(tmp_path / "graph", graph) as stored, \
            FeatureStorage.from_array(rows, tmp_path / "arcs.npy") as features:
        with stored.permute(order, tmp_path / "new", edge_features=features, edge_path=tmp_path / "new.npy",
                            memory_limit=10**7) as moved:
            found, expected = moved.to_csr(), permute(graph, order)
            assert (found != expected).nnz == 0 and np.array_equal(found.indices, expected.indices)
            assert moved.verify().ok and moved.weighted == weighted and moved.symmetric == stored.symmetric
    with FeatureStorage(tmp_path / "new.npy") as features:
        ends = features[:]
        assert np.array_equal(ends[:, 0], order[np.repeat(np.arange(120), np.diff(found.indptr))])
        assert np.array_equal(ends[:, 1], order[found.indices])


def test_a_permutation_that_is_none(tmp_path, graph):
    with GraphStorage.create(tmp_path / "graph", graph) as stored:
        with pytest.raises(ValueError, match="order must hold each of"):
            stored.permute(np.zeros(120, int), tmp_path / "new")
        with FeatureStorage.from_array(np.ones((5, 2)), tmp_path / "arcs.npy") as features:
            with pytest.raises(ValueError, match="edge_features must have a row for each"):
                stored.permute(np.arange(120), tmp_path / "new", edge_features=features, edge_path=tmp_path / "e.npy")
            with pytest.raises(ValueError, match="go together"):
                stored.permute(np.arange(120), tmp_path / "new", edge_features=features)
