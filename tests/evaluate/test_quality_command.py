"""``python -m asv_bench.quality`` on small graphs: what it runs, what it does not run again, what its tables say."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from asv_bench import quality
from asv_bench.quality import OUT_OF_CORE, Results, Task
from gnncy import graph
from gnncy.datasets import make_sbm

ROOT = Path(quality.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``small`` with features, ``words`` with sparse ones and two splits, ``bare`` without."""
    folder = tmp_path_factory.mktemp("graphs")
    data = make_sbm(160, 3, n_features=20, feature_noise=3.0, seed=0)
    common = {"adj_indptr": data.adjacency.indptr, "adj_indices": data.adjacency.indices, "y": data.labels}
    ids = {f"{part}_idx": ids for part, ids in zip(("train", "val", "test"), data.split, strict=True)}
    words = sp.csr_array(np.maximum(data.features, 0))
    masks = np.zeros((3, 160, 2), bool)
    for column in range(2):
        for part, chosen in enumerate(np.split(np.roll(np.arange(160), 7 * column), [20, 40])):
            masks[part, chosen, column] = True
    masks = {f"{part}_mask": mask for part, mask in zip(("train", "val", "test"), masks, strict=True)}
    np.savez(folder / "small.npz", x=data.features, **common, **ids)
    np.savez(folder / "words.npz", x_data=words.data, x_indices=words.indices, x_indptr=words.indptr,
             x_shape=words.shape, **common, **masks)
    np.savez(folder / "bare.npz", **common, **ids)
    return folder


def test_what_is_run(folder, capsys):
    every = [*quality.METHODS, OUT_OF_CORE, *quality.WITHOUT_FEATURES, *quality.LINKS]
    names = ["small", "small:random", "words", "small:64", "small:links", "bare", "missing"]
    todo = quality.tasks(names, every, folder, 3, have={("small", "default", 1)})
    found = {name: {} for name, *_ in todo}
    for name, method, seeds in todo:
        found[name].setdefault(method, []).append(seeds)
    each, at_once = [(0,), (1,), (2,)], [(0, 1, 2)]
    random = {"features (LR)": at_once, "SGC": at_once, "diffused SVD": each, "untrained": each, "default": each,
              OUT_OF_CORE: [(0,)]}
    fixed = random | {"features (LR)": [(0,)], "SGC": [(0,)]}
    assert found["small:random"] == found["words"] == random
    assert found["small"] == fixed | {"default": [(0,), (2,)]}
    assert found["small:64"] == {name: seeds for name, seeds in fixed.items() if name not in quality.UNSEEDED}
    assert found["small:links"] == {"cosine": each, "default": each}
    assert found["bare"] == {"rows of A (LR)": [(0,)], "spectral": each, "walks": each, "default on walks": each,
                             "default": each}
    assert "missing: no missing.npz" in capsys.readouterr().err


def test_splits_of_a_seed(folder):
    _, features, labels, split = quality.load("words", folder)
    with np.load(folder / "words.npz") as file:
        for seed in range(3):
            for part, ids in zip(("train", "val", "test"), split(seed), strict=True):
                np.testing.assert_array_equal(ids, np.flatnonzero(file[f"{part}_mask"][:, seed % 2]))
    assert sp.issparse(features) and features.dtype == np.float32
    split = quality.load("small:random", folder)[3]
    assert [len(part) for part in split(1)] == [16, 16, 128] and len(np.unique(np.concatenate(split(1)))) == 160
    assert not np.array_equal(split(1)[0], split(2)[0])


def test_what_has_no_seed_is_probed_on_all_splits(folder):
    both = quality.perform(Task("words", "SGC", (0, 1)), folder)
    again, = quality.perform(Task("words", "SGC", (1,)), folder)
    assert both[0]["score"] != both[1]["score"] == again["score"]
    assert [r["seed"] for r in both] == [0, 1]


def test_rows_smoothed_when_they_are_read(folder):
    adjacency, features, *_ = quality.load("words", folder)
    hat = adjacency.toarray() + np.eye(160)
    hat /= np.sqrt(np.outer(hat.sum(axis=0), hat.sum(axis=0)))
    raw = features.toarray() / features.toarray().sum(axis=1, keepdims=True)
    ids = np.array([3, 159, 0])
    found = quality.SmoothedTwice(adjacency, features).read_batch(ids)
    np.testing.assert_allclose(found.toarray(), (hat @ hat @ raw)[ids], rtol=1e-4, atol=1e-7)
    assert graph.is_symmetric(adjacency)


def test_bits_out_of_core_are_compared(folder):
    inside, outside = (quality.perform(Task("words", method, (0,)), folder)[0] for method in ("default", OUT_OF_CORE))
    assert inside["score"] > 50 and inside["peak_bytes"] > 0 and outside["limit_bytes"] >= outside["dense_bytes"] // 4
    assert Results([inside, outside]).same_bits("words") == "yes"
    assert Results([inside | {"digest": "0"}, outside]).same_bits("words") == "NO"
    assert Results([inside | {"seed": 1}, outside]).same_bits("words") == "not compared"
    lines = quality.tables([inside, outside])
    assert set(lines) == {"scores", "f1", "cost", "out_of_core"}
    assert lines["out_of_core"][3].split()[-1] == "yes"


def test_figures_of_the_tables():
    def record(name, method, seed, score):
        return {"graph": name, "method": method, "seed": seed, "score": score, "macro_f1": score - 1}

    found = Results([record("actor", "features (LR)", 0, 35.0), record("actor", "features (LR)", 1, 37.0),
                     record("actor", "SGC", 0, 30.0), record("actor", "default", 0, 36.0),
                     record("actor", "default", 1, 39.0), record("zoo", "default", 0, 50.0),
                     record("cora", "default", 0, 83.0)])
    assert found.graphs == ["cora", "actor", "zoo"]
    assert found.gain("actor") == "+1.5" and found.gain("zoo") == ""
    asked = {name: found.asked(name, "score", quality.ASKED) for name in found.graphs}
    assert asked == {"cora": "84.0", "actor": "36.5", "zoo": ""}
    assert quality.mean(found.of("actor", "default"), "score") == "37.5 ± 2.1"
    assert quality.mean(found.of("zoo", "default"), "score") == "50.0"
    assert quality.mean([], "score") == "–"


def test_command_goes_on_where_it_was(folder, tmp_path):
    def command(*more):
        return subprocess.run([sys.executable, "-m", "asv_bench.quality", "small", "small:links", "bare", "--data",
                               str(folder), "--seeds", "1", "--json", str(tmp_path / "runs.json"), "--tables",
                               str(tmp_path), "--jobs", "2", "--methods", "cosine", "spectral", *more],
                              capture_output=True, text=True, cwd=ROOT, check=True)

    first = command("SGC")
    records = json.loads((tmp_path / "runs.json").read_text())
    assert {(r["graph"], r["method"]) for r in records} == {("small", "SGC"), ("small:links", "cosine"),
                                                            ("bare", "spectral")}
    assert "3 runs in" in first.stderr
    second = command("SGC", "features (LR)")
    assert "1 run in" in second.stderr
    assert json.loads((tmp_path / "runs.json").read_text())[:3] == records
    scores = (tmp_path / "quality_scores.inc").read_text()
    assert scores in second.stdout and scores.splitlines()[3].startswith("small ") and "4 runs with 1 seed" in scores
    assert {file.stem for file in tmp_path.glob("*.inc")} == {
        "quality_scores", "quality_f1", "quality_cost", "quality_links", "quality_without_features"}
