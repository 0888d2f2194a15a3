import copy
import os
import pathlib
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.sparse as sp

import gnncy
from gnncy.errors import GraphFormatError, MemoryLimitError, NotFittedError, StorageError
from gnncy.evaluate import linear_probe
from gnncy.storage import FeatureStorage, SparseFeatureStorage
from gnncy.storage.plans import DiskModel

ENCODERS = ["propagate", "sage"]


@pytest.fixture(scope="module")
def data():
    return gnncy.datasets.make_sbm(1500, 5, n_features=40, feature_noise=4.0, seed=0)


@pytest.fixture(scope="module")
def words(data):
    rng = np.random.default_rng(0)
    x = sp.random_array((1500, 120), density=0.04, random_state=rng, dtype=np.float32).tocsr()
    topic = sp.coo_array((np.ones(3000, np.float32), (np.repeat(np.arange(1500), 2),
                                                      np.repeat(data.labels * 20, 2) + rng.integers(0, 20, 3000))),
                         shape=x.shape)
    return sp.csr_array(x + topic)


def make(encoder="propagate", **changes):
    settings = {"encoder": encoder, "batch_size": 256, "max_epochs": 2, "random_state": 0, "hidden": 32,
                "memory_limit": "200MB", "reduced_width": 32, "n_neighbors": (5, 3)}
    return gnncy.GraphEncoder(16, **(settings | changes))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_embeddings_tell_more_than_the_features(data, encoder):
    model = make(encoder, max_epochs=12, learning_rate=3e-3 if encoder == "sage" else 3e-4)
    z = model.fit_transform(data.adjacency, features=data.features)
    assert z.shape == (1500, 16) and z.dtype == np.float32 and np.isfinite(z).all()
    embedded = linear_probe(z, data.labels, data.split).accuracy
    raw = linear_probe(data.features, data.labels, data.split).accuracy
    assert embedded > raw + 0.1
    assert len(model.history_) == model.n_iter_ == 12
    assert model.history_[-1]["loss"] < model.history_[0]["loss"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_same_bits_however_it_is_run(data, encoder, tmp_path):
    path = tmp_path / "x.npy"
    FeatureStorage.from_array(data.features, path).close()
    order = np.random.default_rng(0).permutation(1500)
    reordered = FeatureStorage.from_array(data.features, tmp_path / "y.npy", order=order)
    ways = [({}, data.features), ({"n_jobs": 2}, data.features), ({"prefetch": False}, str(path)),
            ({"memory_limit": "2GB"}, path), ({"n_jobs": 3, "checkpoint_dir": tmp_path / "run"}, reordered),
            ({"memory_limit": make(encoder).estimate(data.adjacency, features=data.features).needed}, data.features)]
    first, *others = (make(encoder, **changes).fit_transform(data.adjacency, features=x) for changes, x in ways)
    reordered.close()
    for other in others:
        assert np.array_equal(first, other)
    other = make(encoder, random_state=1).fit_transform(data.adjacency, features=data.features)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_sparse_features_from_memory_and_disk(data, words, encoder, tmp_path):
    on_disk = SparseFeatureStorage.from_csr(words, tmp_path / "words")
    a, b = (make(encoder).fit_transform(data.adjacency, features=x) for x in (words, on_disk))
    on_disk.close()
    assert np.array_equal(a, b)


KILLED = """
import sys, numpy as np, gnncy, scipy.sparse as sp
data = gnncy.datasets.make_sbm(1500, 5, n_features=40, feature_noise=4.0, seed=0)
words = sp.csr_array(np.maximum(data.features - 6, 0))
model = gnncy.GraphEncoder(16, encoder=sys.argv[1], batch_size=256, max_epochs=60, random_state=0, hidden=32,
                           reduced_width=32, n_neighbors=(5, 3), checkpoint_dir=sys.argv[2])
model.fit(data.adjacency, features=words)
"""


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_killed_run_resumes_to_the_same_bits(encoder, tmp_path):
    def command(folder):
        return [sys.executable, "-c", KILLED, encoder, str(folder)]

    began = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True)
    whole = time.monotonic() - began
    expected = (tmp_path / "whole" / "embedding.npy").read_bytes()
    for share in (0.35, 0.6, 0.85):
        process = subprocess.Popen(command(tmp_path / "cut"))
        time.sleep(share * whole)
        process.kill()
        process.wait()
    subprocess.run(command(tmp_path / "cut"), check=True)
    assert (tmp_path / "cut" / "embedding.npy").read_bytes() == expected
    assert not (tmp_path / "cut" / "work").exists()
    assert not list((tmp_path / "cut").glob(".*"))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_transform_embeds_the_same_graph_alike_and_another(data, encoder, tmp_path):
    model = make(encoder)
    z = model.fit_transform(data.adjacency, features=data.features)
    np.testing.assert_allclose(model.transform(data.adjacency, features=data.features), z, rtol=1e-5, atol=1e-5)
    other = gnncy.datasets.make_sbm(300, 5, n_features=40, seed=3)
    out = model.transform(other.adjacency, features=other.features, out=tmp_path / "z.npy")
    assert out.shape == (300, 16) and np.array_equal(np.load(tmp_path / "z.npy"), out)
    with pytest.raises(ValueError, match="X has 7 features, but GraphEncoder is expecting 40 features"):
        model.transform(other.adjacency, features=other.features[:, :7])


def test_graphs_of_every_kind(data):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 6))
    directed = sp.random_array((60, 60), density=0.05, random_state=rng)
    graphs = {"no edges": sp.csr_array((60, 60)), "directed, weighted": directed, "self loops": sp.eye_array(60),
              "dense": np.asarray(directed.todense()), "matrix": sp.csr_matrix(directed),
              "two parts": sp.block_diag([sp.csr_array(np.ones((30, 30)))] * 2)}
    for name, graph in graphs.items():
        for encoder in ENCODERS:
            z = make(encoder, max_epochs=1, batch_size=16).fit_transform(graph, features=x)
            assert np.isfinite(z).all(), (name, encoder)


def test_without_features_the_graph_itself_serves(data):
    z = make(max_epochs=1).fit_transform(data.adjacency)
    assert linear_probe(z, data.labels, data.split).accuracy > 0.5


def test_the_callers_arrays_stay_as_they_are(data):
    adjacency, x = data.adjacency.copy(), data.features.copy()
    adjacency.data.flags.writeable = False
    x.flags.writeable = False
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make(max_epochs=1).fit(adjacency, features=x)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert np.array_equal(x, data.features)


def test_bad_input_is_named(data, tmp_path):
    a, x = data.adjacency, data.features
    with pytest.raises(GraphFormatError, match="square"):
        make().fit(sp.csr_array((5, 6)), features=x)
    with pytest.raises(GraphFormatError, match="at least 2 nodes"):
        make().fit(sp.csr_array((1, 1)), features=x[:1])
    with pytest.raises(ValueError, match="1500 nodes, features have shape"):
        make().fit(a, features=x[:9])
    bad = x.copy()
    bad[3, 4] = np.nan
    for encoder in ENCODERS:
        with pytest.raises(ValueError, match="(?i)inf or nan"):
            make(encoder).fit(a, features=bad)
    weighted = a.copy()
    weighted.data[0] = np.inf
    with pytest.raises(ValueError, match="(?i)inf or nan"):
        make().fit(weighted, features=x)
    with pytest.raises((ValueError, TypeError), match="(?i)complex|real numbers"):
        make().fit(a, features=x * 1j)
    with pytest.raises(FileNotFoundError):
        make().fit(a, features=tmp_path / "none.npy")


@pytest.mark.parametrize("change, message", [
    ({"encoder": "gin"}, "encoder must be one of 'propagate', 'mlp', 'sage', 'gcn', 'gat'"),
    ({"objective": "dgi"}, "objective must be one of 'infonce', 'vicreg', 'cca', 'bgrl', 'ggd', 'reconstruction'"),
    ({"objective": {"cca": -1.0}}, r"objective\['cca'\] must be greater than 0"),
    ({"temperature": 0}, "temperature must be greater than 0"),
    ({"learning_rate": float("nan")}, "learning_rate must be finite"),
    ({"batch_size": 1}, "batch_size must be at least 2"),
    ({"max_epochs": -1}, "max_epochs must be at least 0"),
    ({"memory_limit": "lots"}, "memory_limit must be"),
    ({"n_jobs": 0}, "n_jobs must not be 0"),
    ({"n_neighbors": (), "encoder": "sage"}, "at least one fan-out"),
    ({"random_state": -1}, "random_state must be non-negative"),
])
def test_bad_parameters_are_named_by_fit(data, change, message):
    model = make().set_params(**change)
    with pytest.raises(ValueError, match=message):
        model.fit(data.adjacency, features=data.features)


def test_a_limit_too_small_names_the_least_and_the_least_does(data):
    with pytest.raises(MemoryLimitError, match=r"raise memory_limit to (\d+)MB") as error:
        make(memory_limit="12.5MB").fit(data.adjacency, features=data.features)
    least = str(error.value).rsplit(" ", 3)[-3]
    make(memory_limit=least, max_epochs=1).fit(data.adjacency, features=data.features)


@pytest.mark.parametrize("encoder", ["propagate", "sage"])
def test_requests_in_flight_are_as_many_as_the_limit_has_buffers_for(data, words, encoder, monkeypatch):
    opened, real = [], FeatureStorage.__init__

    def watched(store, *args, io_threads=None, **options):
        opened.append(io_threads)
        real(store, *args, io_threads=io_threads, **options)

    monkeypatch.setattr(FeatureStorage, "__init__", watched)
    monkeypatch.setattr("gnncy.estimators.graph_encoder.known_disk", lambda path: DiskModel(1e-5, 1e9, 1e9, threads=32))
    model = make(encoder, max_epochs=1, memory_limit=1)
    least = model.estimate(data.adjacency, features=words).needed
    for limit, expected in ((least, 4), ("2GB", None)):  # each has a buffer of its own
        opened.clear()
        model.set_params(memory_limit=limit).fit(data.adjacency, features=words)
        assert expected in opened and model._encoder.io_threads == expected


def test_a_folder_of_another_run_is_refused(data, tmp_path):
    make(checkpoint_dir=tmp_path).fit(data.adjacency, features=data.features)
    with pytest.raises(StorageError, match=r"holds another run \(different: temperature\)"):
        make(checkpoint_dir=tmp_path, temperature=0.7).fit(data.adjacency, features=data.features)
    with pytest.raises(StorageError, match="feature_checksum"):
        make(checkpoint_dir=tmp_path).fit(data.adjacency, features=data.features + 1)
    again = make(checkpoint_dir=tmp_path, n_jobs=2, memory_limit="1GB").fit(data.adjacency, features=data.features)
    assert again.n_iter_ == 2


def test_results_come_with_fit_and_travel(data):
    model = make()
    with pytest.raises(NotFittedError, match="call fit"):
        model.transform(data.adjacency, features=data.features)
    model.fit(data.adjacency, features=data.features)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(twin.embedding_, model.embedding_)
        np.testing.assert_array_equal(twin.transform(data.adjacency, features=data.features),
                                      model.transform(data.adjacency, features=data.features))
    assert list(model.get_feature_names_out()[:2]) == ["graphencoder0", "graphencoder1"]
    assert repr(gnncy.GraphEncoder(16, n_jobs=2)) == "GraphEncoder(n_components=16, n_jobs=2)"


def test_a_temporary_run_leaves_nothing(data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = make(max_epochs=1).fit(data.adjacency, features=data.features)
    assert model.embedding_path_.is_relative_to(tmp_path)
    del model
    assert list(tmp_path.iterdir()) == []


def test_verbose_logs_a_line_an_epoch_to_stderr(data, capsys):
    make(verbose=1).fit(data.adjacency, features=data.features)
    text = capsys.readouterr()
    assert text.out == ""
    assert "epoch 1/2" in text.err and "epoch 2/2" in text.err and "memory limit" in text.err
    make().fit(data.adjacency, features=data.features)
    assert capsys.readouterr().err == ""


MEMORY = """
import sys, numpy as np, gnncy
from gnncy import _memory
import gnncy.estimators, gnncy.storage
folder, encoder = sys.argv[1:]
adjacency = gnncy.datasets.open_graph(folder).adjacency
gnncy.GraphEncoder(16, encoder=encoder, max_epochs=1, random_state=0, n_neighbors=(2,), batch_size=256).fit(
    gnncy.datasets.make_sbm(300, 3, n_features=8).adjacency,
    features=gnncy.datasets.make_sbm(300, 3, n_features=8).features)  # code paged in, pools made
_memory.trim()
assert _memory.reset_peak()
before = _memory.rss()
model = gnncy.GraphEncoder(16, encoder=encoder, max_epochs=1, random_state=0, memory_limit="52MB", n_jobs=2,
                           reduced_width=64, n_neighbors=(2,), batch_size=128)
model.fit(adjacency, features=folder + "/features.npy")
print(_memory.peak_rss() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_memory_limit_holds_for_features_five_times_larger(encoder, tmp_path):
    gnncy.datasets.write_sbm(tmp_path / "g", 60_000, 4, n_features=1100, degree=4.0)
    size = os.path.getsize(tmp_path / "g" / "features.npy")
    assert size > 5 * 52_000_000
    held = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "g"), encoder], check=True, text=True,
                          stdout=subprocess.PIPE).stdout
    assert int(held) < 52_000_000


@pytest.fixture
def memory_cgroup():
    """A function that makes a memory cgroup (v1 or v2) of so many bytes and returns its folder."""
    for root, file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = pathlib.Path(root) / f"gnncy-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / file).exists():
            def limited(limit, folder=folder, file=file):
                (folder / file).write_text(str(limit))
                return folder
            yield limited
            folder.rmdir()
            return
        folder.rmdir()
    pytest.skip("no memory cgroup can be made here (needs rights on /sys/fs/cgroup)")


@pytest.mark.slow
def test_a_cgroup_with_room_for_little_more_than_the_limit(tmp_path, memory_cgroup):
    data = gnncy.datasets.make_sbm(60_000, 4, n_features=1100, degree=4.0, seed=0)
    FeatureStorage.from_array(data.features, tmp_path / "x.npy").close()
    sp.save_npz(tmp_path / "a.npz", sp.csr_matrix(data.adjacency))
    del data
    command = [sys.executable, "-m", "gnncy", "train", str(tmp_path / "a.npz"), "--features", str(tmp_path / "x.npy"),
               "--dim", "16", "--batch-size", "256", "--reduced-width", "64", "--epochs", "1", "--memory-limit", "56MB"]
    folder = memory_cgroup(160_000_000)  # the limit, the start-up size of about 60 MB, and some files' pages
    inside = subprocess.run([*command, "--out", str(tmp_path / "inside")], text=True, capture_output=True,
                            preexec_fn=lambda: (folder / "cgroup.procs").write_text(str(os.getpid())))
    assert inside.returncode == 0, inside.stderr
    subprocess.run([*command, "--out", str(tmp_path / "outside")], check=True, capture_output=True)
    a, b = ((tmp_path / name / "embedding.npy").read_bytes() for name in ("inside", "outside"))
    assert a == b
