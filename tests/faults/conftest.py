"""The shim that injects faults, compiled once."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("faults are injected by a library that is compiled and preloaded")
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([*compiler.split(), "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library),
                    str(HERE / "shim.c"), "-ldl"], check=True)
    return library


@pytest.fixture
def inject(shim, tmp_path):
    """Runs ``scenarios.py`` under the shim; what it prints."""
    import json

    def run(what, scenario, *more):
        done = subprocess.run(
            [sys.executable, str(HERE / "scenarios.py"), str(shim), str(tmp_path), what, scenario, *map(str, more)],
            env=os.environ | {"LD_PRELOAD": str(shim), "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return run
