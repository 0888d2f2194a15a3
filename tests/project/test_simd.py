"""SIMD levels: chosen at import, forced by GNNCY_SIMD, all loadable side by side, agreeing within rounding."""
import os
import subprocess
import sys

import numpy as np
import pytest

from gnncy import _kernels

rng = np.random.default_rng(0)


def level_under(value):
    env = os.environ | {"GNNCY_SIMD": value}
    return subprocess.run([sys.executable, "-c", "from gnncy import _kernels; print(_kernels.LEVEL, _kernels.rows)"],
                          env=env, capture_output=True, text=True)


@pytest.mark.parametrize("level", _kernels.AVAILABLE)
def test_a_level_can_be_forced(level):
    out = level_under(level).stdout.split()
    assert out[0] == level
    assert f"gnncy._kernels.{level}.nn.rows" in " ".join(out)


def test_an_empty_variable_means_the_best_level():
    assert level_under("").stdout.split()[0] == _kernels.AVAILABLE[-1]


def test_an_unknown_level_names_those_offered():
    result = level_under("avx9000")
    assert result.returncode == 1
    offered = ", ".join(_kernels.AVAILABLE)
    assert f"GNNCY_SIMD='avx9000' is not offered by this build on this CPU; choose from {offered}" in result.stderr


def test_base_is_always_there():
    assert _kernels.AVAILABLE[0] == "base"


def test_an_unknown_kernel_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _kernels.nothing  # noqa: B018


def test_importing_kernels_leaves_subnormals_alone():
    code = "from gnncy._kernels import rows; import sys; sys.exit(5e-324 == 0.0)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(params=_kernels.AVAILABLE)
def rows(request):
    return _kernels.at_level(request.param, "rows")


@pytest.mark.parametrize("d", [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalise(rows, dtype, d):
    x = rng.standard_normal((5, d)).astype(dtype)
    x[2] = 0
    x.setflags(write=False)
    out, norm = np.empty_like(x), np.empty(5, dtype)
    rows.normalise(x, out, norm)
    exact = np.linalg.norm(x.astype(float), axis=1)
    tolerance = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(norm, exact, rtol=tolerance)
    np.testing.assert_allclose(out, x / np.where(exact, exact, 1)[:, None], rtol=tolerance, atol=tolerance)
    assert norm[2] == 0 and not out[2].any()


@pytest.mark.parametrize("d", [1, 3, 8, 17])
def test_normalise_grad_is_the_derivative(rows, d):
    x, g = rng.standard_normal((4, d)), rng.standard_normal((4, d))
    x[1] = 0

    def value(x):
        out, norm = np.empty_like(x), np.empty(len(x))
        rows.normalise(x, out, norm)
        return out, norm

    out, norm = value(x)
    grad = np.empty_like(x)
    rows.normalise_grad(out, norm, g, grad)
    assert not grad[1].any()
    for i, j in [(i, j) for i in (0, 2, 3) for j in range(d)]:
        step = np.zeros_like(x)
        step[i, j] = 1e-6
        slope = np.sum(g * (value(x + step)[0] - value(x - step)[0])) / 2e-6
        assert grad[i, j] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_one_level_gives_one_result_wherever_the_arrays_begin(rows):
    # A loop peeled to an aligned address would sum in an order that depends on the address.
    width, sums = 37, set()
    values = rng.standard_normal((3, width)).astype(np.float32)
    for offset in range(0, 16):
        held = np.empty(3 * width + 16, np.float32)[offset:offset + 3 * width].reshape(3, width)
        held[:] = values
        out, norm = np.empty_like(held), np.empty(3, np.float32)
        rows.normalise(held, out, norm)
        sums.add(norm.tobytes() + out.tobytes())
    assert len(sums) == 1
