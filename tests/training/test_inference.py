"""Layer-wise inference against the same model in memory."""
import numpy as np
import pytest
import scipy.sparse as sp

from gnncy import nn
from gnncy.errors import MemoryLimitError
from gnncy.graph import Block, as_csr, community_order
from gnncy.nn import inference
from gnncy.storage import FeatureStorage, HyperbatchConfig
from gnncy.storage.passes.stream import OVERHEAD
from gnncy.training import ColdTierTrainer

N, D = 4001, 12
SMALL = OVERHEAD + 1_100_000


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(0)
    a = sp.random_array((N, N), density=3 / N, random_state=rng, dtype=np.float32, format="csr")
    return as_csr(a + a.T)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """So few at a time that the working memory is little beside the features, small as they are."""
    monkeypatch.setattr(inference, "_ROWS", 256)
    monkeypatch.setattr(inference, "_NORMALISING", 8)


def _mlp(a, b):
    return nn.MLP([a, 16, b], rng=4)


MODELS = {
    "gcn": lambda: nn.GraphSequential(nn.GCNConv(D, 20, rng=0), nn.ReLU(), nn.Dropout(0.5), nn.GCNConv(20, 5, rng=1)),
    "gcn, given": lambda: nn.GraphSequential(nn.GCNConv(D, 4, normalize=False, bias=False, rng=0)),
    "sage": lambda: nn.GraphSequential(nn.SAGEConv(D, 20, rng=0), nn.ReLU(), nn.SAGEConv(20, 5, rng=1)),
    "sage, weighted": lambda: nn.GraphSequential(nn.SAGEConv(D, 20, weighted=True, rng=0), nn.SAGEConv(20, 5, rng=1)),
    "sage, max": lambda: nn.GraphSequential(nn.SAGEConv(D, 6, "max", rng=0), nn.LayerNorm(6)),
    "sage, sum": lambda: nn.GraphSequential(nn.SAGEConv(D, 6, "sum", bias=False, rng=0), nn.SAGEConv(6, 6, rng=1)),
    "gin": lambda: nn.GraphSequential(nn.GINConv(_mlp(D, 9), eps=0.3), nn.ReLU(), nn.GINConv(_mlp(9, 4))),
    "gat": lambda: nn.GraphSequential(nn.GATConv(D, 4, heads=3, rng=0), nn.ELU(),
                                      nn.GATConv(12, 6, heads=2, concat=False, weighted=True, dropout=0.4, rng=1)),
    "gatv2": lambda: nn.GraphSequential(nn.GATv2Conv(D, 4, heads=2, rng=0), nn.ReLU(), nn.GATv2Conv(8, 3, rng=1)),
    "neighbour attention": lambda: nn.NeighborAttention(D, heads=3, rng=0),
    "sgc": lambda: nn.SGConv(D, 4, steps=3, rng=0),
    "appnp": lambda: nn.GraphSequential(nn.Linear(D, 7, rng=0), nn.ReLU(), nn.APPNP(4, 0.2)),
    "residual": lambda: nn.GraphSequential(nn.ResGCNBlock(nn.GCNConv(D, D, rng=0)),
                                           nn.ResGCNBlock(nn.GATConv(D, D, rng=1), nn.BatchNorm(D)),
                                           nn.ResGCNBlock(nn.SAGEConv(D, D, rng=1))),
    "head": lambda: nn.Projected(nn.GraphSequential(nn.SAGEConv(D, 6, rng=0)), nn.ProjectionHead(6, 6, 4, rng=1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_of_the_model_in_memory(tmp_path, graph, x, name):
    model = MODELS[name]()
    model.eval()
    given = graph
    with nn.no_grad():
        expected = (model.head(model.encoder(given, x)) if name == "head" else model(given, nn.Tensor(x))).data
    model.train()
    for limit, threads in (("1GB", 1), (SMALL, 2)):
        with nn.infer(model, given, x, out=tmp_path / "z.npy", memory_limit=limit, n_jobs=threads,
                      overwrite=True) as z:
            assert np.array_equal(z[:], expected)
            assert z.verify()
    assert all(module.training for module in model.modules())
    assert [path.name for path in tmp_path.glob(".*")] == []


@pytest.mark.parametrize("direct", [False, True])
def test_from_a_store_in_another_order(tmp_path, graph, x, direct):
    model = nn.GraphSequential(nn.SAGEConv(D, 20, rng=0), nn.ReLU(), nn.GATConv(20, 5, rng=1))
    with nn.no_grad():
        expected = model(graph, x).data
    order = community_order(graph)
    FeatureStorage.from_array(x, tmp_path / "x.npy", order=order).close()
    found = []
    for limit in ("1GB", SMALL):
        with (FeatureStorage(tmp_path / "x.npy", direct=direct) as store,
              nn.infer(model, graph, store, out=tmp_path / "z.npy", memory_limit=limit, overwrite=True) as z):
            assert np.array_equal(z.order, order)
            found.append(z[:])
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(found[0], found[1])


def test_float64_and_a_path(tmp_path, graph, x):
    model = nn.GraphSequential(nn.GCNConv(D, 3, rng=0, dtype=np.float64))
    FeatureStorage.from_array(x.astype(np.float64), tmp_path / "x.npy").close()
    with nn.infer(model, graph, tmp_path / "x.npy", out=tmp_path / "z.npy") as z:
        assert z.dtype == np.float64
        np.testing.assert_allclose(z[:], model(graph, x.astype(np.float64)).data, rtol=1e-6)
    with nn.infer(model, graph, tmp_path / "x.npy", out=tmp_path / "h.npy", dtype=np.float16) as half:
        assert half.file_dtype == np.float16


def test_layers_of_other_kinds_do_not_depend_on_the_limit(tmp_path, graph, x):
    model = nn.GatedAttentionConv(D, 8, heads=2, rng=0)
    with nn.no_grad():
        expected = model(graph, x).data
    found = []
    for limit in ("1GB", OVERHEAD + 6_000_000):
        with nn.infer(model, graph, x, out=tmp_path / "z.npy", memory_limit=limit, overwrite=True) as z:
            found.append(z[:])
    np.testing.assert_allclose(found[0], expected, rtol=2e-5, atol=2e-6)
    assert np.array_equal(found[0], found[1])


def test_the_layers_one_after_the_other(tmp_path, graph, x):
    first, second = nn.SAGEConv(D, 5, rng=0), nn.SAGEConv(5, 3, rng=1)
    with nn.infer([first, nn.ReLU(), second], Block.from_csr(graph), x, out=tmp_path / "z.npy") as z:
        with nn.no_grad():
            assert np.array_equal(z[:], second(graph, nn.ReLU()(first(graph, x))).data)


def test_modules_of_rows_alone(tmp_path, graph, x):
    model = nn.MLP([D, 8, 3], rng=0)
    with nn.infer(model, graph, x, out=tmp_path / "z.npy") as z, nn.no_grad():
        assert np.array_equal(z[:], model(x).data)


class Wrapped(nn.GraphModule):
    def __init__(self):
        self.inner = nn.GCNConv(D, 2, rng=0)

    def forward(self, adjacency, x):
        return self.inner(adjacency, x)


def test_what_it_refuses(tmp_path, graph, x):
    out = tmp_path / "z.npy"
    with pytest.raises(ValueError, match=r"adjacency must have shape \(4001, 4001\)"):
        nn.infer(nn.SAGEConv(D, 2), graph[:5, :5], x, out=out)
    with pytest.raises(TypeError, match="Wrapped holds a GCNConv, which needs the whole graph"):
        nn.infer(Wrapped(), graph, x, out=out)
    with pytest.raises(MemoryLimitError, match="too small"):
        nn.infer(nn.SAGEConv(D, 2), graph, x, out=out, memory_limit=OVERHEAD)
    with pytest.raises(MemoryLimitError, match="the neighbours of 256 rows"):
        nn.infer(nn.GATConv(D, 2), graph, x, out=out, memory_limit=OVERHEAD + 10_000)
    with pytest.raises(MemoryLimitError, match="normalising the graph takes"):
        nn.infer(nn.GCNConv(D, 2), graph, x, out=out, memory_limit=OVERHEAD)
    with pytest.raises(TypeError, match="needs dense features"):
        nn.infer(nn.SAGEConv(D, 2), graph, sp.csr_array(x), out=out)
    with pytest.raises(TypeError, match="features of arcs"):
        nn.infer(nn.GATConv(D, 2, edge_features=3), graph, x, out=out)
    out.write_bytes(b"")
    with pytest.raises(FileExistsError, match="overwrite"):
        nn.infer(nn.SAGEConv(D, 2), graph, x, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["z.npy"]


def test_a_write_that_fails_is_raised_and_leaves_nothing(tmp_path, graph, x, monkeypatch):
    def full(self, data, offset):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("gnncy.storage.passes.direct.DirectWriter.write", full)
    with pytest.raises(OSError, match="No space left"):
        nn.infer(nn.SAGEConv(D, 2), graph, x, out=tmp_path / "z.npy")
    assert list(tmp_path.iterdir()) == []


def test_every_layer_that_takes_a_graph_is_known():
    # A new layer falls to the last branch of _Job.stage: whole neighbourhoods, equality within rounding.
    kinds = {kind.__name__ for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.GraphModule)}
    known = {kind.__name__ for kind in (nn.GCNConv, nn.SAGEConv, nn.GINConv, nn.SGConv, nn.APPNP, nn.GATConv,
                                        nn.GATv2Conv, nn.NeighborAttention, nn.ResGCNBlock)}
    assert kinds == known | {"GraphModule", "GatedAttentionConv"}
    assert inference.__all__ == ["infer"]


@pytest.mark.parametrize("order", [None, "shuffled"])
def test_the_trainer_embeds_by_whole_neighbourhoods(tmp_path, graph, x, order):
    rows = None if order is None else np.random.default_rng(2).permutation(N)
    FeatureStorage.from_array(x, tmp_path / "x.npy", order=rows).close()
    options = {"n_components": 4, "hidden": 8, "fanouts": (3, 2), "config": HyperbatchConfig(batch_size=500), "seed": 0}
    found = []
    for limit, plan in (("64MB", "C"), ("80MB", "A"), (None, "auto")):
        with ColdTierTrainer(tmp_path / "x.npy", graph, memory_limit=limit, plan=plan, **options) as trainer:
            trainer.train_epoch()
            model = trainer.model.encoder
            with nn.no_grad():
                expected = model(graph, x).data
            np.testing.assert_allclose(trainer.embed(), expected, rtol=1e-5, atol=1e-6)
            assert np.array_equal(trainer.embed([5, 3]), trainer.embed()[[5, 3]])
            with trainer.embed(path=tmp_path / "z.npy") as z:
                assert np.array_equal(z[:], trainer.embed())
                assert np.array_equal(np.load(tmp_path / "z.npy"), z[:])
            with trainer.embed([7, 1], path=tmp_path / "z.npy") as z:
                assert np.array_equal(z[:], trainer.embed([7, 1]))
            with pytest.raises(ValueError, match="neighbors must be one of"):
                trainer.embed(neighbors="some")
            assert not np.allclose(trainer.embed(neighbors="sampled"), expected)
            trainer.train_epoch()
            found.append(trainer.embed())
        assert {path.name for path in tmp_path.iterdir()} <= {
            "x.npy", "x.npy.json", "x.npy.crc32.npy", "x.npy.order.npy", "z.npy", "z.npy.json", "z.npy.crc32.npy"}
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_a_model_of_another_kind_is_embedded_by_sampling(tmp_path, graph, x):
    class Other(nn.Module):
        def __init__(self):
            self.conv = nn.SAGEConv(D, 4, rng=0)

        def forward(self, blocks, x):
            return self.conv(blocks[0], x)

    with ColdTierTrainer(x, graph, model=Other(), fanouts=(3,), config=HyperbatchConfig(batch_size=500),
                         memory_limit=None) as trainer:
        assert np.array_equal(trainer.embed([1, 2]), trainer.embed([1, 2], neighbors="sampled"))
        with pytest.raises(TypeError, match="layers one after the other"):
            trainer.embed(neighbors="all")
