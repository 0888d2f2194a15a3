"""Float kernels at every SIMD level, both widths, lengths around the vector sizes, read-only input."""

import numpy as np
import pytest

from gnncy import _kernels
from gnncy._random import mix64

LENGTHS = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100]


@pytest.fixture(params=_kernels.AVAILABLE)
def level(request):
    return request.param


def load(level, name):
    return _kernels.at_level(level, name)


def data(*shape, dtype, seed=0):
    x = np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)
    x.flags.writeable = False
    return x


def close(actual, expected, dtype):
    np.testing.assert_allclose(actual, expected, rtol=1e-12 if dtype == np.float64 else 2e-6,
                               atol=1e-14 if dtype == np.float64 else 1e-6)


def test_exponential_over_the_whole_range(level):
    kernel = load(level, "elementwise").exponential
    x = np.linspace(-87.29, 88, 1_000_003).astype(np.float32)
    out = np.empty_like(x)
    kernel(x, out)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(out / exact - 1).max() < 3e-7
    small = np.linspace(-1e-3, 1e-3, 10_001).astype(np.float32)
    out = np.empty_like(small)
    kernel(small, out)
    assert np.abs(out / np.exp(small.astype(np.float64)) - 1).max() < 1.3e-7
    ends = np.array([-np.inf, -1e30, -200, -87.31, 0, -0.0, 200, np.inf, np.nan], np.float32)
    out = np.empty_like(ends)
    kernel(ends, out)
    np.testing.assert_allclose(out, [0, 0, 0, 0, 1, 1, np.exp(88), np.exp(88), np.nan], rtol=3e-7)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elementwise(level, n, dtype):
    kernels = load(level, "elementwise")
    x, g = data(n, dtype=dtype), data(n, dtype=dtype, seed=1)
    out, grad = np.empty(n, dtype), np.empty(n, dtype)
    kernels.exponential(x, out)
    close(out, np.exp(x), dtype)
    kernels.relu(x, out)
    close(out, np.maximum(x, 0), dtype)
    kernels.relu_grad(out, g, grad)
    close(grad, np.where(x > 0, g, 0), dtype)
    kernels.leaky_relu(x, 0.25, out)
    close(out, np.where(x > 0, x, dtype(0.25) * x), dtype)
    kernels.leaky_relu_grad(out, g, 0.25, grad)
    close(grad, np.where(x > 0, g, dtype(0.25) * g), dtype)
    kernels.elu(x, 0.5, out)
    close(out, np.where(x > 0, x, 0.5 * np.expm1(x)), dtype)
    kernels.elu_grad(out, g, 0.5, grad)
    close(grad, np.where(x > 0, g, 0.5 * np.exp(x) * g), dtype)


@pytest.mark.parametrize("d", LENGTHS[1:])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows(level, d, dtype):
    kernels = load(level, "rows")
    x, g = data(5, d, dtype=dtype).copy(), data(5, d, dtype=dtype, seed=1)
    x[3] = 0
    out, norm = np.empty_like(x), np.empty(5, dtype)
    kernels.normalise(x, out, norm)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    close(norm, length[:, 0], dtype)
    close(out, np.where(length > 0, x / np.maximum(length, 1e-30), 0), dtype)
    apart, own = np.empty_like(x), g.copy()
    kernels.normalise_grad(out, norm, g, apart)
    kernels.normalise_grad(out, norm, own, own)  # gradients may be turned in place
    np.testing.assert_array_equal(own, apart)
    assert not apart[3].any()
    close((apart * out).sum(axis=1) * norm, np.zeros(5), dtype)
    kernels.standardise(x, 1e-3, out, norm)
    close(norm, 1 / np.sqrt(x.var(axis=1) + 1e-3), dtype)
    close(out * np.sqrt(x.var(axis=1) + 1e-3)[:, None], x - x.mean(axis=1, keepdims=True), dtype)
    kernels.standardise_grad(out, norm, g, apart)
    close(apart / norm[:, None], g - g.mean(axis=1, keepdims=True) - out * (out * g).mean(axis=1, keepdims=True), dtype)
    index = np.array([1, 0, 1, 2, 1], np.intp)
    index.flags.writeable = False
    summed, expected = np.zeros((3, d), dtype), np.zeros((3, d), dtype)
    kernels.scatter_add(g, index, summed)
    np.add.at(expected, index, g)
    np.testing.assert_array_equal(summed, expected)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dropout_mask_is_the_hash_of_key_and_place(level, n, dtype):
    kernel = load(level, "elementwise").dropout
    x = data(n, dtype=dtype)
    out = np.empty_like(x)
    key, first, threshold = 2**63 + 12345, 4 * 1000, 20_000
    kernel(x, key, first, threshold, 2.0, out)
    base = mix64(key)
    lanes = [(mix64((base + (first + i) // 4) % 2**64) >> (16 * (i % 4))) & 0xFFFF for i in range(n)]
    np.testing.assert_array_equal(out, [0 if lane < threshold else 2 * v for lane, v in zip(lanes, x, strict=True)])


def test_dropout_masks_are_equal_at_all_levels():
    x = np.ones(1003, np.float32)
    outs = []
    for level in _kernels.AVAILABLE:
        out = np.empty_like(x)
        load(level, "elementwise").dropout(x, 7, 0, 30_000, 1.0, out)
        outs.append(out)
    assert 0.4 < outs[0].mean() < 0.7
    for out in outs:
        np.testing.assert_array_equal(out, outs[0])
