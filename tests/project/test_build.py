"""The build: what is packaged, and that a dropped-in kernel is found and its debug build checks bounds."""
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

import gnncy

ROOT = Path(gnncy.__file__).parents[1]
PROJECT = ROOT / "pyproject.toml"
in_a_checkout = pytest.mark.skipif(not PROJECT.exists(), reason="needs the checkout")

PROBE = '''
from gnncy._kernels._hash cimport below, mix64
from libc.stdint cimport uint64_t


def mix(uint64_t x):
    return mix64(x)


def one_below(uint64_t bits, uint64_t n):
    return below(bits, n)


def at(const double[::1] x, Py_ssize_t i):
    cdef double value
    with nogil:
        value = x[i]
    return value
'''

USE = '''
import numpy as np
from gnncy import _kernels, _random
from gnncy._kernels import probe, rows

assert _kernels.AVAILABLE == ("base",), _kernels.AVAILABLE
for k in range(2000):
    x = _random.derive(k)
    assert probe.mix(x) == _random.mix64(x), x
for n in (1, 2, 3, 1000, 2**32 - 1):
    assert probe.one_below(0, n) == 0 and probe.one_below(2**64 - 1, n) == n - 1
counts = np.bincount([probe.one_below(_random.derive(k), 5) for k in range(5000)], minlength=5)
assert len(counts) == 5 and abs(counts - 1000).max() < 150, counts

try:
    probe.at(np.zeros(3), 3)
except IndexError:
    print("bounds are checked")
x = np.ones((2, 4))
try:
    rows.normalise(x, np.empty((1, 4)), np.empty(2))
except IndexError:
    print("in real kernels too")
'''


def test_the_version_is_written_once():
    assert metadata("gnncy")["Version"] == gnncy.__version__


@in_a_checkout
def test_at_run_time_three_packages_are_needed():
    project = tomllib.loads(PROJECT.read_text())["project"]
    assert {need.split(">")[0] for need in project["dependencies"]} == {"numpy", "scipy", "threadpoolctl"}
    assert project["version"] == gnncy.__version__, "installed from another checkout: install again"


@in_a_checkout
def test_an_unknown_build_is_refused():
    pytest.importorskip("Cython")
    result = subprocess.run([sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True,
                            env=os.environ | {"GNNCY_BUILD": "fast"})
    assert result.returncode == 1
    assert "GNNCY_BUILD='fast': choose release, debug, sanitize or coverage" in result.stderr


@pytest.mark.slow
@in_a_checkout
def test_debug_build_of_a_new_kernel(tmp_path):
    pytest.importorskip("Cython")
    kernels = tmp_path / "gnncy" / "_kernels"
    (kernels / "base" / "nn").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("__init__.py", "_random.py", "_kernels/__init__.py", "_kernels/cpu.pyx", "_kernels/_hash.pxd",
                 "_kernels/base/__init__.py", "_kernels/base/_math.pxd", "_kernels/base/nn/__init__.py",
                 "_kernels/base/nn/rows.pyx"):
        shutil.copy(ROOT / "gnncy" / name, tmp_path / "gnncy" / name)
    (kernels / "probe.pyx").write_text(PROBE)
    env = os.environ | {"GNNCY_BUILD": "debug", "PYTHONPATH": str(tmp_path)}
    build = subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=tmp_path, env=env,
                           capture_output=True, text=True)
    assert build.returncode == 0, build.stderr[-2000:]
    used = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert used.stdout.split("\n")[:2] == ["bounds are checked", "in real kernels too"], used.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the process's mapped files")
def test_kernels_bring_no_openmp():
    # Beside OpenBLAS's own pool it is slower, and it hangs in forked children.
    code = ("from gnncy import _kernels; import importlib\n"
            "[_kernels.at_level(level, 'rows') for level in _kernels.AVAILABLE]\n"
            "print(open('/proc/self/maps').read())")
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "rows." in maps and "gomp" not in maps and "libomp" not in maps
