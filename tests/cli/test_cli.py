import csv
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.sparse as sp

import gnncy
from gnncy import cli
from gnncy.storage import FeatureStorage, SparseFeatureStorage

QUICK = ["--dim", "8", "--epochs", "2", "--batch-size", "128", "--threads", "1", "--memory-limit", "300MB"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    data = gnncy.datasets.make_sbm(600, 3, n_features=24, feature_noise=1.0, seed=0)
    sp.save_npz(folder / "graph.npz", sp.csr_matrix(data.adjacency))
    FeatureStorage.from_array(data.features, folder / "x.npy").close()
    np.save(folder / "y.npy", data.labels)
    words = sp.csr_array(np.maximum(data.features - 1, 0))
    sp.save_npz(folder / "words.npz", sp.csr_matrix(words))
    SparseFeatureStorage.from_csr(words, folder / "words").close()
    return folder


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def train(files, out, *more):
    return run("train", files / "graph.npz", "--features", files / "x.npy", "--labels", files / "y.npy", "--out", out,
               *QUICK, *more)


def test_a_run_leaves_its_files_and_prints_its_results(files, tmp_path, capsys):
    assert train(files, tmp_path / "run", "--json") == 0
    text = capsys.readouterr()
    results = json.loads(text.out)
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    probe = results["probe"]
    assert probe["embedding"]["accuracy"] > probe["majority"]["accuracy"] + 0.2
    assert set(probe) == {"embedding", "raw features", "majority"}
    assert "memory limit" in text.err and "epoch 1/2" in text.err and "epoch 2/2" in text.err
    assert np.load(tmp_path / "run" / "embedding.npy").shape == (600, 8)
    with open(tmp_path / "run" / "history.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[1]["loss"]) > 0
    assert not (tmp_path / "run" / "work").exists()


def test_the_table_for_people(files, tmp_path, capsys):
    assert train(files, tmp_path / "run", "--quiet") == 0
    text = capsys.readouterr()
    assert text.err == ""
    assert "linear probe" in text.out and "macro-F1" in text.out and "raw features" in text.out
    assert "peak memory above start-up" in text.out


def test_the_same_call_again_gives_the_same_bits(files, tmp_path):
    assert train(files, tmp_path / "a", "--quiet") == 0
    first = (tmp_path / "a" / "embedding.npy").read_bytes()
    assert train(files, tmp_path / "a", "--quiet") == 0
    assert train(files, tmp_path / "b", "--quiet", "--threads", "2", "--no-prefetch", "--memory-limit", "1GB") == 0
    assert (tmp_path / "a" / "embedding.npy").read_bytes() == first
    assert (tmp_path / "b" / "embedding.npy").read_bytes() == first


@pytest.mark.parametrize("features", ["words.npz", "words", None])
def test_features_of_every_kind(files, tmp_path, features, capsys):
    given = [] if features is None else ["--features", files / features]
    assert run("train", files / "graph.npz", *given, "--out", tmp_path / "run", *QUICK, "--quiet", "--json") == 0
    assert "probe" not in json.loads(capsys.readouterr().out)  # no labels


def test_figures(files, tmp_path):
    pytest.importorskip("matplotlib", reason="needs gnncy[plot]")
    assert train(files, tmp_path / "run", "--plot", "--quiet") == 0
    for name in ("loss", "io", "embedding"):
        assert (tmp_path / "run" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_extra_is_named(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert train(files, tmp_path / "run", "--plot", "--quiet") == 2
    assert "gnncy[plot]" in capsys.readouterr().err


def test_estimate_prints_the_plan_and_writes_nothing(files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("estimate", files / "graph.npz", "--features", files / "x.npy", *QUICK) == 0
    assert "memory limit 300 MB" in capsys.readouterr().out
    assert run("estimate", files / "graph.npz", "--features", files / "x.npy", "--json", "--memory-limit", "1MB") == 1
    text = capsys.readouterr()
    plan = json.loads(text.out)
    assert plan["needed"] > plan["limit"] == 1_000_000
    assert "raise memory_limit to" in text.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what, kind", [("graph.npz", "graph"), ("x.npy", "feature store"),
                                        ("words", "sparse feature store")])
def test_info(files, what, kind, capsys):
    assert run("info", files / what, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == kind and facts["nodes"] == 600
    assert run("info", files / what) == 0
    assert kind in capsys.readouterr().out


def test_info_verifies_features(files, tmp_path, capsys):
    for what in ("x.npy", "words"):
        assert run("info", files / what, "--verify", "--json") == 0
        assert json.loads(capsys.readouterr().out)["verified"] is True
    x = np.random.default_rng(0).standard_normal((100_000, 8)).astype(np.float32)
    order = np.random.default_rng(1).permutation(100_000)
    FeatureStorage.from_array(x, tmp_path / "features.npy", order=order).close()
    with open(tmp_path / "features.npy", "rb+") as file:
        file.seek(4096 + 1_000_000)
        file.write(b"\xff")
    assert run("info", tmp_path / "features.npy", "--verify") == 1
    assert "damaged rows 24576..32767, of 8192 nodes" in capsys.readouterr().out
    assert run("info", tmp_path / "features.npy", "--verify", "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["verified"] is False and facts["damaged rows"] == [[24576, 32768]] and facts["unchecked rows"] == []
    assert facts["damaged nodes"] == np.sort(order[24576:32768]).tolist()
    np.save(tmp_path / "plain.npy", x[:5])
    assert run("info", tmp_path / "plain.npy", "--verify") == 1
    assert "no checksum" in capsys.readouterr().out
    assert run("info", files / "graph.npz", "--verify") == 2
    assert "--verify reads feature stores" in capsys.readouterr().err


def test_info_of_a_graph_folder(tmp_path, capsys):
    gnncy.datasets.write_rmat(tmp_path / "graph", 8, n_features=16)
    assert run("info", tmp_path / "graph", "--verify", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "graph" and facts["nodes"] == 256 and facts["verified"] is True


def test_info_of_a_run(files, tmp_path, capsys):
    assert train(files, tmp_path / "run", "--quiet") == 0
    capsys.readouterr()
    assert run("info", tmp_path / "run", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "run" and facts["finished"] and facts["epochs"] == 2


def test_doctor(capsys):
    assert run("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["simd"]["available"]
    assert run("doctor") == 0
    assert "SIMD level" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["train", "imagenet"], "unknown data set or missing file: 'imagenet'"),
    (["train", "wordnet", "--memory-limit", "lots"], "--memory-limit must be"),
    (["train", "wordnet", "--epochs", "many"], "--epochs must be a number or 'auto'"),
    (["train", "wordnet", "--learning-rate", "fast"], "--learning-rate must be a number or 'auto'"),
    (["train", "wordnet", "--temperature", "0"], "temperature must be greater than 0"),
    (["train", "{files}/graph.npz", "--features", "none.npy"], "no such file"),
    (["train", "{files}/graph.npz", "--labels", "{files}/x.npy"], "one integer per node"),
    (["info", "nowhere"], "no such file"),
])
def test_usage_errors_end_with_2_and_say_what_is_wrong(files, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(*(a.format(files=files) for a in arguments)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train"], ["fly"], ["train", "wordnet", "--encoder", "transformer"], []])
def test_argparse_s_own_errors_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    assert "usage: gnncy" in capsys.readouterr().err


def test_damaged_files_and_small_limits_end_with_1(files, tmp_path, capsys):
    whole = (files / "x.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:len(whole) // 2])
    assert run("train", files / "graph.npz", "--features", tmp_path / "cut.npy", "--out", tmp_path / "run") == 1
    assert "cut.npy" in capsys.readouterr().err
    assert train(files, tmp_path / "run", "--memory-limit", "2MB") == 1
    assert "raise memory_limit to" in capsys.readouterr().err


def test_a_folder_of_another_run_is_refused(files, tmp_path, capsys):
    assert train(files, tmp_path / "run", "--quiet") == 0
    assert train(files, tmp_path / "run", "--seed", "1") == 1
    assert "holds another run (different: seed)" in capsys.readouterr().err


def test_python_m_and_version():
    done = subprocess.run([sys.executable, "-m", "gnncy", "--version"], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == f"gnncy {gnncy.__version__}"


@pytest.mark.slow
def test_an_interrupt_leaves_a_good_run_behind(files, tmp_path):
    command = [sys.executable, "-m", "gnncy", "train", str(files / "graph.npz"), "--features", str(files / "x.npy"),
               "--out", str(tmp_path / "run"), "--dim", "8", "--batch-size", "128", "--threads", "1", "--epochs", "100"]
    # A job in the background of a shell ignores interrupts, and so would what it starts.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in err
    whole = subprocess.run(command, text=True, capture_output=True)
    assert whole.returncode == 0, whole.stderr
    assert "continuing after epoch" in whole.stderr
    elsewhere = [str(tmp_path / "fresh") if part == str(tmp_path / "run") else part for part in command]
    subprocess.run(elsewhere, check=True, capture_output=True)
    assert (tmp_path / "run" / "embedding.npy").read_bytes() == (tmp_path / "fresh" / "embedding.npy").read_bytes()


@pytest.mark.parametrize("room", [2_000, 30_000])
def test_a_full_disk_is_said_and_the_run_can_go_on(files, tmp_path, room):
    import resource
    command = [sys.executable, "-m", "gnncy", "train", str(files / "graph.npz"), "--features", str(files / "x.npy"),
               "--out", str(tmp_path / "run"), "--dim", "8", "--batch-size", "128", "--threads", "1", "--epochs", "2"]
    full = subprocess.run(command, text=True, capture_output=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
    assert full.returncode == 1, full.stderr
    assert "File too large" in full.stderr and "Traceback" not in full.stderr
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert np.load(tmp_path / "run" / "embedding.npy").shape == (600, 8)
