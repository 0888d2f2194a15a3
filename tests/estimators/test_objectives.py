"""GraphEncoder's encoders and objectives: same bits, resumed runs, memory plans, and the pass over all nodes."""
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

import gnncy
from gnncy.estimators.encoders.convolutions import CONVOLUTIONS
from gnncy.estimators.encoders.rows import RowEncoder, joint_plan
from gnncy.estimators.encoders.sampled import SampledEncoder
from gnncy.evaluate import linear_probe
from gnncy.graph import NeighborSampler, as_csr, normalize
from gnncy.losses.joint_embedding.objective import OBJECTIVES, Size
from gnncy.nn import Tensor, no_grad
from gnncy.storage import FeatureStorage
from gnncy.training import Callback

SAMPLED = list(CONVOLUTIONS)
ALL = ["propagate", "mlp", *SAMPLED]
EVERY = dict.fromkeys(OBJECTIVES, 1.0)


@pytest.fixture(scope="module")
def data():
    return gnncy.datasets.make_sbm(600, 4, n_features=24, feature_noise=3.0, seed=0)


def make(encoder, objective=EVERY, **changes):
    settings = {"encoder": encoder, "objective": objective, "batch_size": 128, "max_epochs": 1, "random_state": 0,
                "hidden": 16, "memory_limit": "200MB", "reduced_width": 24, "n_neighbors": (4, 3),
                "learning_rate": 3e-3}
    return gnncy.GraphEncoder(12, **(settings | changes))


@pytest.mark.parametrize("encoder, positives", [*((name, "neighbors") for name in ALL),
                                                *((name, "views") for name in SAMPLED)])
def test_the_same_bits_however_it_is_run(data, encoder, positives, tmp_path):
    path = tmp_path / "x.npy"
    FeatureStorage.from_array(data.features, path).close()
    least = make(encoder, positives=positives).estimate(data.adjacency, features=data.features).needed
    ways = [({}, data.features), ({"n_jobs": 2, "memory_limit": least}, data.features),
            ({"prefetch": False, "memory_limit": "2GB"}, path)]
    first, *others = (make(encoder, positives=positives, **changes).fit_transform(data.adjacency, features=x)
                      for changes, x in ways)
    assert np.isfinite(first).all() and first.shape == (600, 12)
    for other in others:
        assert np.array_equal(first, other)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_objective_learns_from_the_graph(data, objective):
    raw = linear_probe(data.features, data.labels, data.split).accuracy
    for encoder in ("propagate", "gcn"):
        model = make(encoder, objective, max_epochs=12)
        z = model.fit_transform(data.adjacency, features=data.features)
        assert linear_probe(z, data.labels, data.split).accuracy > raw + 0.1, encoder
        assert model.history_[-1]["loss"] < model.history_[0]["loss"]


class Interruption(Callback):
    def on_batch_end(self, trainer, info):
        if trainer.epoch == 2 and trainer.step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("encoder, objective", [("propagate", ["bgrl", "cca"]), ("gcn", "bgrl"), ("gat", "ggd"),
                                                ("sage", EVERY)])
def test_an_interrupted_run_resumes_to_the_same_bits(data, encoder, objective, tmp_path):
    expected = make(encoder, objective, max_epochs=4).fit_transform(data.adjacency, features=data.features)
    with pytest.raises(KeyboardInterrupt):
        make(encoder, objective, max_epochs=4, checkpoint_dir=tmp_path, callbacks=[Interruption()]).fit(
            data.adjacency, features=data.features)
    resumed = make(encoder, objective, max_epochs=4, checkpoint_dir=tmp_path)
    assert np.array_equal(resumed.fit_transform(data.adjacency, features=data.features), expected)
    assert len(resumed.history_) == 4
    with pytest.raises(gnncy.errors.StorageError, match="different: objective"):
        make(encoder, "vicreg", max_epochs=4, checkpoint_dir=tmp_path).fit(data.adjacency, features=data.features)


def test_the_history_has_each_objectives_loss(data):
    weights = {"cca": 2.0, "reconstruction": 0.5}
    for encoder in ("mlp", "sage"):
        record = make(encoder, weights).fit(data.adjacency, features=data.features).history_[0]
        total = sum(weight * record[f"{name}_loss"] for name, weight in weights.items())
        assert record["loss"] == pytest.approx(total, rel=1e-6)


def test_features_alone_do_not_see_the_graph(data):
    other = gnncy.datasets.make_sbm(600, 4, n_features=24, seed=5).adjacency
    a, b = (make("mlp", "infonce").fit_transform(graph, features=data.features) for graph in (data.adjacency, other))
    assert np.array_equal(a, b)
    a, b = (make("propagate", "cca").fit_transform(graph, features=data.features) for graph in (data.adjacency, other))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("conv", SAMPLED)
@pytest.mark.parametrize("widths", [(24, 12, 16), (24, 20, 7)])
def test_the_pass_over_all_nodes_is_the_forward_pass_over_whole_neighbourhoods(data, conv, widths, tmp_path):
    rng = np.random.default_rng(0)
    adjacency = as_csr(data.adjacency + sp.diags_array((rng.random(600) < 0.1).astype(np.float32)))
    convolution = CONVOLUTIONS[conv](adjacency)
    x = rng.standard_normal((600, 24), dtype=np.float32)
    seeds = rng.permutation(600)[:50]
    sample = NeighborSampler(convolution.graph, (-1, -1), seed=0, weighted=convolution.weighted).sample(seeds)
    rows, hidden, tiles = Tensor(x[sample.nodes]), iter([(0, x[:256]), (256, x[256:])]), None
    for i, block in enumerate(sample.blocks):
        layer = convolution.layer(widths[i], widths[i + 1], rng)
        layer.bias.data[:] = rng.standard_normal(widths[i + 1])
        with no_grad():
            rows = layer(convolution.hear(block, sample.nodes), rows)
            rows = Tensor(np.maximum(rows.data, 0)) if i == 0 else rows
        tiles = convolution.over_all(layer, hidden, tmp_path, activate=i == 0)
        hidden = tiles.iter_rows(100)
    np.testing.assert_allclose(tiles.read_rows(0, 600)[seeds], rows.data, rtol=1e-4, atol=1e-5)


def test_sampled_gcn_is_on_average_the_whole_one(data):
    convolution = CONVOLUTIONS["gcn"](data.adjacency)
    x = np.random.default_rng(0).standard_normal((600, 3))
    sampler = NeighborSampler(convolution.graph, (4,), seed=0, weighted=True)
    seeds, total = np.arange(40), np.zeros((40, 3))
    for i in range(600):
        sample = sampler.sample(seeds, batch=i)
        block = convolution.hear(sample.blocks[0], sample.nodes)
        total += sp.csr_array((block.weights, block.indices, block.indptr),
                              shape=(block.n_dst, block.n_src)) @ x[sample.nodes]
    expected = normalize(data.adjacency, "sym") @ x
    np.testing.assert_allclose(total / 600, expected[:40], atol=0.06)


@pytest.mark.parametrize("encoder", ALL)
def test_the_plan_holds_what_training_allocates(encoder):
    data = gnncy.datasets.make_sbm(5000, 4, n_features=96, seed=0)
    for objective in ("infonce", EVERY):
        model = make(encoder, objective, batch_size=1000, hidden=128, reduced_width=96, n_neighbors=(10, 5),
                     n_jobs=2, max_epochs=1)
        model.set_params(memory_limit=model.estimate(data.adjacency, features=data.features).needed)
        tracemalloc.start()
        try:
            model.fit(data.adjacency, features=data.features)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < model.plan_.needed, (objective, str(model.plan_))


def test_planned_weights_are_the_models(data):
    size = Size(12, 24)
    for encoder in ALL:
        model = make(encoder).fit(data.adjacency, features=data.features)._encoder.model_
        body = sum(parameter.size for parameter in model.encoder.parameters())
        columns = {"propagate": 108}.get(encoder, 24)
        planned = joint_plan(EVERY, Size(12, columns), body, 10)
        learned = sum(parameter.size for parameter in model.parameters() if parameter.requires_grad)
        assert planned["weights, gradients, Adam"] == 16 * learned and planned["target network"] == 4 * body
    assert "target network" not in joint_plan({"cca": 1.0}, size, 100, 10)
    for conv, convolution in CONVOLUTIONS.items():
        parameters = sum(p.size for p in convolution.layer(24, 12, 0).parameters())
        assert parameters == convolution.parameters(24, 12), conv


def test_transform_embeds_another_graph(data, tmp_path):
    other = gnncy.datasets.make_sbm(200, 4, n_features=24, seed=3)
    for encoder in ("mlp", "gcn", "gat"):
        model = make(encoder, "cca")
        z = model.fit_transform(data.adjacency, features=data.features)
        np.testing.assert_allclose(model.transform(data.adjacency, features=data.features), z, rtol=1e-5, atol=1e-5)
        assert model.transform(other.adjacency, features=other.features).shape == (200, 12)


def test_graphs_of_every_kind():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 6))
    directed = sp.random_array((60, 60), density=0.05, random_state=rng)
    graphs = {"no edges": sp.csr_array((60, 60)), "directed, weighted": directed, "self loops": sp.eye_array(60)}
    for name, graph in graphs.items():
        for encoder in ALL:
            z = make(encoder, n_neighbors=(3,), batch_size=16).set_params(n_components=6).fit_transform(
                graph, features=x)
            assert np.isfinite(z).all(), (name, encoder)
    z = make("gcn", "cca").fit_transform(directed.tocsr(), features=np.zeros((60, 4)))
    assert not z.any()


def test_sparse_features(data):
    words = sp.csr_array(np.maximum(data.features - 4, 0))
    for encoder in ("mlp", "gcn"):
        z = make(encoder, "vicreg", reduced_width=16).fit_transform(data.adjacency, features=words)
        assert z.shape == (600, 12) and np.isfinite(z).all()


def test_which_encoder_a_choice_is(data):
    made = {name: make(name)._new_encoder(0, 600) for name in ALL}
    assert all(isinstance(made[name], SampledEncoder) and made[name].conv == name for name in SAMPLED)
    assert all(isinstance(made[name], RowEncoder) for name in ("propagate", "mlp"))
    assert not isinstance(make("propagate", "infonce")._new_encoder(0, 600), RowEncoder)
    assert make("gcn", ["cca", "ggd"])._new_encoder(0, 600).objectives == {"cca": 1.0, "ggd": 1.0}


@pytest.mark.parametrize("change, error, message", [
    ({"objective": "dgi"}, ValueError, "objective must be one of 'infonce', 'vicreg'"),
    ({"objective": {"cca": 0.0}}, ValueError, r"objective\['cca'\] must be greater than 0"),
    ({"objective": 3}, TypeError, "objective must be a name, a list of names or a dict of weights"),
    ({"positives": "walks"}, ValueError, "positives must be one of 'neighbors', 'views'"),
])
def test_bad_choices(data, change, error, message):
    with pytest.raises(error, match=message):
        make("gcn").set_params(**change).fit(data.adjacency, features=data.features)
