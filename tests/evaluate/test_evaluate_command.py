import json

import numpy as np
import pytest

import gnncy
from gnncy import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = gnncy.datasets.make_sbm(400, 3, n_features=16, feature_noise=1.0, seed=0)
    np.save(folder / "embedding.npy", data.features)
    np.save(folder / "y.npy", data.labels)
    return folder


def test_a_run_is_probed_by_a_protocol(folder, capsys):
    arguments = ["evaluate", str(folder), "--labels", str(folder / "y.npy"), "--runs", "2", "--threads", "1"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["protocol"], found["runs"]) == ("random", 2) and found["accuracy"]["mean"] > 0.5
    assert "effective_rank" in found["health"] and "alignment" not in found["health"]
    assert cli.main(arguments) == 0
    assert "random split, 2 runs" in capsys.readouterr().out


@pytest.mark.parametrize("more, message", [([], "there are no labels"),
                                           (["--labels", "y.npy", "--protocol", "public"], "needs a graph")])
def test_what_is_missing_is_named(folder, capsys, more, message):
    more = [str(folder / part) if part.endswith(".npy") else part for part in more]
    assert cli.main(["evaluate", str(folder), *more]) == 2
    assert message in capsys.readouterr().err
