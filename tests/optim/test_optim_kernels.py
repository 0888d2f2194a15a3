"""Every kernel at every SIMD level, both widths, lengths around the vectors'; ranges leave the rest alone."""

import numpy as np
import pytest

from gnncy import _kernels

LENGTHS = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100]


@pytest.fixture(params=_kernels.AVAILABLE)
def kernels(request):
    return _kernels.at_level(request.param, "optimizer")


def check(got, expected):
    rtol = 1e-12 if got.dtype == np.float64 else 3e-6
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps(kernels, n, dtype):
    rng = np.random.default_rng(n)
    g, p, m = rng.normal(size=(3, n)).astype(dtype)
    v, top = rng.random((2, n)).astype(dtype)
    g.flags.writeable = False
    d = 2 * g + 0.5 * p

    q = p.copy()
    kernels.sgd(0, n, g, 2.0, 0.2, 0.5, q)
    check(q, p - 0.2 * d)

    q, b = p.copy(), m.copy()
    kernels.momentum(0, n, g, 2.0, 0.2, 0.5, 0.9, 0.7, 1.0, 0.8, q, b)
    check(b, 0.9 * m + 0.7 * d)
    check(q, p - 0.2 * (d + 0.8 * (0.9 * m + 0.7 * d)))

    expected_m, expected_v = 0.9 * m + 0.1 * d, 0.99 * v + 0.01 * d**2
    q, a, b = p.copy(), m.copy(), v.copy()
    kernels.adam(0, n, g, 2.0, 0.2, 0.9, 0.1, 0.99, 0.01, 3.0, 0.01, 0.5, 0.75, q, a, b)
    check(a, expected_m)
    check(b, expected_v)
    check(q, p * 0.75 - 0.2 * expected_m / (np.sqrt(expected_v) * 3 + 0.01))

    q, a, b, c = p.copy(), m.copy(), v.copy(), top.copy()
    kernels.amsgrad(0, n, g, 2.0, 0.2, 0.9, 0.1, 0.99, 0.01, 3.0, 0.01, 0.5, 0.75, q, a, b, c)
    check(a, expected_m)
    check(b, expected_v)
    check(c, np.maximum(top, expected_v))
    check(q, p * 0.75 - 0.2 * expected_m / (np.sqrt(np.maximum(top, expected_v)) * 3 + 0.01))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_range_leaves_the_rest_alone(kernels, dtype):
    rng = np.random.default_rng(0)
    g, *arrays = rng.random((5, 50)).astype(dtype)
    for kernel, scalars, count in [
        (kernels.sgd, (1, 0.1, 0), 1), (kernels.momentum, (1, 0.1, 0, 0.9, 1, 0, 1), 2),
        (kernels.adam, (1, 0.1, 0.9, 0.1, 0.9, 0.1, 1, 1e-8, 0, 1), 3),
        (kernels.amsgrad, (1, 0.1, 0.9, 0.1, 0.9, 0.1, 1, 1e-8, 0, 1), 4)]:
        whole, part = ([x.copy() for x in arrays[:count]] for _ in range(2))
        kernel(0, 50, g, *scalars, *whole)
        kernel(13, 37, g, *scalars, *part)
        for x, y, before in zip(whole, part, arrays, strict=False):
            np.testing.assert_array_equal(y[13:37], x[13:37])
            np.testing.assert_array_equal(np.delete(y, slice(13, 37)), np.delete(before, slice(13, 37)))


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_passes_over_gradients(kernels, n, dtype):
    x = np.random.default_rng(n).normal(size=n + 2).astype(dtype)
    x[[0, -1]] = np.nan  # outside the range
    x.flags.writeable = False
    inner = x[1:-1].astype(np.float64)
    assert kernels.sum_squares(1, n + 1, x, 2.0) == pytest.approx(4 * (inner**2).sum(), rel=1e-14)
    y = x.copy()
    kernels.multiply(1, n + 1, y, 0.3)
    np.testing.assert_array_equal(y, np.r_[x[:1], x[1:-1] * dtype(0.3), x[-1:]])
    y = x.copy()
    kernels.clamp(1, n + 1, y, 0.3)
    np.testing.assert_array_equal(y, np.r_[x[:1], np.clip(x[1:-1], -dtype(0.3), dtype(0.3)), x[-1:]])
    bits = np.uint32 if dtype == np.float32 else np.uint64
    assert kernels.all_finite(1, n + 1, x.view(bits))
    for i in range(1, n + 1):
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            y = x.copy()
            y[i] = bad
            assert not kernels.all_finite(1, n + 1, y.view(bits))
            assert not np.isfinite(kernels.sum_squares(1, n + 1, y, 1.0))
    assert kernels.all_finite(0, 3, np.array([np.finfo(dtype).max, np.finfo(dtype).tiny, -0.0], dtype).view(bits))


@pytest.mark.parametrize("d", [1, 3, 7, 8, 9, 16, 17, 33])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows(kernels, d, dtype):
    rng = np.random.default_rng(d)
    x = rng.normal(size=(7, d)).astype(dtype)
    order, begin = np.array([6, 0, 3, 1, 5, 2, 4]), np.array([0, 1, 4, 7])
    for array in (x, order, begin):
        array.flags.writeable = False
    out = np.zeros((3, d), dtype)
    kernels.sum_rows(0, 3, order, begin, x, out)
    np.testing.assert_array_equal(out, [x[6], x[0] + x[3] + x[1], x[5] + x[2] + x[4]])

    rows = np.array([4, 1])
    rows.flags.writeable = False
    p, m = rng.normal(size=(2, 6, d)).astype(dtype)
    v = rng.random((6, d)).astype(dtype)
    total = rng.random(6).astype(dtype)
    g, q, t = x[:2], p.copy(), total.copy()
    kernels.row_adagrad(0, 2, rows, g, 0.3, 0.1, q, t)
    expected_t, expected_q = total.copy(), p.copy()
    expected_t[rows] += (g**2).mean(axis=1)
    expected_q[rows] -= 0.3 * g / (np.sqrt(expected_t[rows]) + dtype(0.1))[:, None]
    check(t, expected_t)
    check(q, expected_q)

    q, a, b = p.copy(), m.copy(), v.copy()
    kernels.row_adam(1, 2, rows, g, 0.2, 0.9, 0.1, 0.99, 0.01, 3.0, 0.01, q, a, b)
    expected = [p.copy(), m.copy(), v.copy()]
    expected[1][1] = 0.9 * m[1] + 0.1 * g[1]
    expected[2][1] = 0.99 * v[1] + 0.01 * g[1]**2
    expected[0][1] -= 0.2 * expected[1][1] / (np.sqrt(expected[2][1]) * 3 + 0.01)
    for got, want in zip((q, a, b), expected, strict=True):
        check(got, want)
