"""GraphEncoder on a graph whose arcs are on disk: what it gives in memory, within the limit."""
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp

import gnncy
from gnncy import graph
from gnncy.errors import GraphFormatError, MemoryLimitError, StorageError
from gnncy.estimators import stored
from gnncy.storage import FeatureStorage, GraphStorage
from gnncy.storage.passes import diffuse


@pytest.fixture(scope="module")
def data():
    return gnncy.datasets.make_sbm(1200, 4, n_features=40, feature_noise=4.0, seed=0)


@pytest.fixture(scope="module")
def star():
    """A graph with hubs, loops and weights, and nodes without arcs."""
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 1100, 4000), (rng.random(4000)**3 * 40).astype(int)
    arcs = sp.csr_array((rng.random(4000) + 0.1, (rows, columns)), shape=(1200, 1200))
    return graph.undirected(arcs)


@pytest.fixture
def small_blocks(monkeypatch):
    """Many blocks of a small graph."""
    monkeypatch.setattr(stored, "LOOK", 2500)
    monkeypatch.setattr(diffuse, "ARCS", 3500)


def make(encoder="propagate", **changes):
    settings = {"encoder": encoder, "batch_size": 256, "max_epochs": 1, "random_state": 0, "hidden": 32,
                "memory_limit": "100MB", "reduced_width": 48}
    return gnncy.GraphEncoder(16, **(settings | changes))


def words(data):
    return sp.csr_array(np.maximum(data.features - 4, 0))


@pytest.mark.parametrize("encoder", ["propagate", "mlp"])
@pytest.mark.parametrize("kind", ["dense", "sparse", "none"])
@pytest.mark.parametrize("which", ["sbm", "star"])
def test_the_bits_of_the_graph_in_memory(data, star, kind, which, encoder, tmp_path, small_blocks):
    adjacency = data.adjacency if which == "sbm" else star
    features = {"dense": data.features, "sparse": words(data), "none": None}[kind]
    inside = make(encoder)
    expected = inside.fit_transform(adjacency, features=features)
    if encoder == "propagate":
        assert inside._encoder.propagation_ == {"sbm": "even", "star": "hubs"}[which]
    GraphStorage.create(tmp_path / "g", adjacency).close()
    with GraphStorage(tmp_path / "g", direct=which == "star") as arcs:
        least = make(encoder).estimate(arcs, features=features).needed
        for options in ({"n_jobs": 2}, {"memory_limit": least, "prefetch": False},
                        {"memory_limit": least, "n_jobs": 3, "checkpoint_dir": tmp_path / "run"}):
            model = make(encoder, **options)
            np.testing.assert_array_equal(model.fit_transform(arcs, features=features), expected)
        np.testing.assert_array_equal(model.transform(arcs, features=features), expected)
        np.testing.assert_array_equal(model.transform(adjacency, features=features), expected)
    assert not list(tmp_path.glob("run/**/matrix"))


def test_several_objectives_and_a_graph_that_grew(data, tmp_path, small_blocks):
    before = graph.as_csr(data.adjacency[:1000, :1000])
    GraphStorage.create(tmp_path / "before", before).close()
    GraphStorage.create(tmp_path / "after", data.adjacency).close()
    inside, outside = (make(objective=["vicreg", "reconstruction"]) for _ in range(2))
    with GraphStorage(tmp_path / "before") as few, GraphStorage(tmp_path / "after") as all_of_them:
        for model, first, then in ((inside, before, data.adjacency), (outside, few, all_of_them)):
            model.fit(first, features=data.features[:1000])
            model.partial_fit(then, features=data.features, max_epochs=1)
    np.testing.assert_array_equal(inside.embedding_, outside.embedding_)


def test_a_run_that_was_cut_off_goes_on_and_another_graph_is_refused(data, tmp_path, small_blocks):
    GraphStorage.create(tmp_path / "g", data.adjacency).close()
    other = data.adjacency.copy()
    other.data[:] = 2
    GraphStorage.create(tmp_path / "other", other).close()

    def cut(*_):
        raise KeyboardInterrupt

    with GraphStorage(tmp_path / "g") as arcs, GraphStorage(tmp_path / "other") as weighted:
        expected = make().fit_transform(arcs, features=data.features)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stored.shutil, "rmtree", lambda *_, **__: None)  # as if it was killed
            patch.setattr("gnncy.estimators.encoders.smoothed.diffuse_tiles", cut)
            with pytest.raises(KeyboardInterrupt):
                make(checkpoint_dir=tmp_path / "run").fit(arcs, features=data.features)
        assert (tmp_path / "run" / "work" / "matrix").exists()
        with pytest.raises(StorageError, match="holds another run .different: adjacency"):
            make(checkpoint_dir=tmp_path / "run").fit(weighted, features=data.features)
        again = make(checkpoint_dir=tmp_path / "run").fit_transform(arcs, features=data.features)
    np.testing.assert_array_equal(again, expected)
    assert not (tmp_path / "run" / "work").exists()


def test_a_plan_holds_no_arcs_and_reads_none(data, tmp_path):
    GraphStorage.create(tmp_path / "g", data.adjacency).close()
    with GraphStorage(tmp_path / "g") as arcs:
        for model in (gnncy.NodeClassifier(16), make()):
            plan = model.estimate(arcs, features=data.features)
            assert not {what for parts in plan.stages.values() for what in parts} & {"graph", "propagation matrix"}
        assert arcs.stats.bytes_read <= 16 * (arcs.n_nodes + 1) + 8192  # row starts, and pages around them
        with pytest.raises(MemoryLimitError, match="raise memory_limit to"):
            make(memory_limit=plan.needed - 2_000_000).fit(arcs, features=data.features)


def one_way(adjacency):
    return sp.csr_array(sp.triu(adjacency))


def twice(adjacency):
    """Every arc two times."""
    found = sp.csr_array((np.repeat(adjacency.data, 2), np.repeat(adjacency.indices, 2), 2 * adjacency.indptr),
                         shape=adjacency.shape)
    assert found.nnz == 2 * adjacency.nnz
    return found


def folder_of(path, adjacency):
    """Arrays alone, as other programs may write them."""
    path.mkdir()
    for name in ("indptr", "indices", "data"):
        np.save(path / f"{name}.npy", getattr(adjacency, name))
    return path


@pytest.mark.parametrize(("write", "options", "error", "message"), [
    (lambda path, a: GraphStorage.create(path, one_way(a)).close(), {}, GraphFormatError, "directed=False"),
    (lambda path, a: folder_of(path, one_way(a)), {}, GraphFormatError, "directed=False"),
    (lambda path, a: folder_of(path, a * 2.5), {}, GraphFormatError, "directed=False"),  # weights: none can know
    (lambda path, a: GraphStorage.create(path, -a).close(), {}, GraphFormatError, "weights down to -1"),
    (lambda path, a: folder_of(path, twice(a)), {}, GraphFormatError, "repeated arcs or arcs of weight 0"),
    (lambda path, a: GraphStorage.create(path, a).close(), {"encoder": "sage"}, ValueError, "take encoder='propagate'"),
    (lambda path, a: GraphStorage.create(path, a[:1, :1]).close(), {}, GraphFormatError, "at least 2 nodes"),
], ids=["one way", "one way, unknown", "weights, unknown", "negative", "repeated", "sampled", "lone"])
def test_graphs_that_it_does_not_take(data, write, options, error, message, tmp_path):
    write(tmp_path / "g", data.adjacency)
    with GraphStorage(tmp_path / "g") as arcs, pytest.raises(error, match=message):
        make(**options).fit(arcs, features=data.features[:arcs.n_nodes])


def test_a_graph_of_another_program_and_one_way_where_arcs_do_not_count(data, tmp_path):
    expected = make("mlp").fit_transform(data.adjacency, features=data.features)
    GraphStorage.create(tmp_path / "directed", one_way(data.adjacency)).close()
    with GraphStorage(tmp_path / "directed") as arcs:
        np.testing.assert_array_equal(make("mlp").fit_transform(arcs, features=data.features), expected)
    unweighted = folder_of(tmp_path / "g", data.adjacency)
    (unweighted / "data.npy").unlink()
    with GraphStorage(unweighted) as arcs:
        np.testing.assert_array_equal(make().fit_transform(arcs, features=data.features),
                                      make().fit_transform(data.adjacency, features=data.features))


def test_damage_is_told_and_not_swallowed_by_the_thread_that_reads(data, tmp_path, small_blocks):
    GraphStorage.create(tmp_path / "g", data.adjacency).close()
    with open(tmp_path / "g" / "indices.npy", "r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(b"\xff" * 16)
    with GraphStorage(tmp_path / "g") as arcs, pytest.raises(StorageError, match="an arc ends outside"):
        make().fit(arcs, features=data.features)


def test_a_classifier(data, tmp_path, small_blocks):
    labels = np.where(np.arange(1200) % 3 == 0, data.labels, -1)
    inside, outside = (gnncy.NodeClassifier(16, max_epochs=2, random_state=0) for _ in range(2))
    inside.fit(data.adjacency, labels, features=data.features)
    with GraphStorage.create(tmp_path / "g", data.adjacency) as arcs:
        outside.fit(arcs, labels, features=data.features)
        np.testing.assert_array_equal(outside.predict_proba(arcs, features=data.features),
                                      inside.predict_proba(data.adjacency, features=data.features))


def test_estimators_that_take_arcs_in_memory_say_so(data, tmp_path):
    with GraphStorage.create(tmp_path / "g", data.adjacency) as arcs, \
            pytest.raises(TypeError, match=re.escape("to_csr()")):
        gnncy.LinkPredictor().fit(arcs, features=data.features)


MEMORY = """
import sys, gnncy
from gnncy import _memory
from gnncy.storage import GraphStorage
folder, limit = sys.argv[1], int(sys.argv[2])
options = {"batch_size": 128, "max_epochs": 1, "random_state": 0, "n_jobs": 2, "hidden": 32}
few = gnncy.datasets.make_sbm(300, 3, n_features=8)
gnncy.GraphEncoder(16, **options).fit(few.adjacency, features=few.features)  # code paged in, pools made
with GraphStorage(folder, direct=True) as arcs:
    _memory.trim()
    assert _memory.reset_peak()
    before = _memory.rss()
    gnncy.GraphEncoder(16, memory_limit=limit, **options).fit(arcs, features=folder + "/features.npy")
    print(_memory.peak_rss() - before)
"""


@pytest.mark.slow
def test_the_memory_limit_holds_for_arcs_larger_than_it(tmp_path):
    gnncy.datasets.write_rmat(tmp_path / "g", 14, 400, n_features=32, memory_limit="100MB")
    with GraphStorage(tmp_path / "g") as arcs, FeatureStorage(tmp_path / "g" / "features.npy") as features:
        limit = gnncy.GraphEncoder(16, batch_size=128, hidden=32).estimate(arcs, features=features).needed
        assert 20 * arcs.nnz > 1.4 * limit  # an arc of the graph and of its matrix in memory takes 20 bytes
    held = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "g"), str(limit)], check=True, text=True,
                          stdout=subprocess.PIPE).stdout
    assert int(held) < limit
