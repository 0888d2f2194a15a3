"""The examples of the documentation run, at a small size."""
import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.skipif(not EXAMPLES.exists(), reason="the documentation is not here")
def test_larger_than_memory(tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLES / "larger_than_memory.py"))["main"]
    found = main([str(tmp_path / "graph"), "--scale", "12", "--columns", "16", "--memory-limit", "80MB"])
    assert np.isfinite(found["losses"]).all()
    assert np.load(tmp_path / "graph" / "scores.npy").shape[0] == 4096
    assert np.load(tmp_path / "graph" / "table" / "embedding.npy").shape == (4096, 16)
    assert found["embedding"].shape == (4096, 16) and np.isfinite(found["embedding"]).all()
    said = capsys.readouterr().out
    assert "4096 nodes" in said and "an epoch over the arcs" in said
