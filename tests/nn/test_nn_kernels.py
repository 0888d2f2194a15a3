"""Float kernels at every SIMD level, both widths, lengths around the vector sizes, read-only input."""

import numpy as np
import pytest
from scipy import special

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


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gelu(level, n, dtype):
    kernels, x, g = load(level, "elementwise"), data(n, dtype=dtype), data(n, dtype=dtype, seed=1)
    out, grad = np.empty(n, dtype), np.empty(n, dtype)
    kernels.gelu(x, out)
    kernels.gelu_grad(x, g, grad)
    below = 0.5 * (1 + special.erf(x.astype(np.float64) / np.sqrt(2)))
    close(out, x * below, dtype)
    close(grad, g * (below + x * np.exp(-x.astype(np.float64) ** 2 / 2) / np.sqrt(2 * np.pi)), dtype)


@pytest.mark.parametrize("width", [np.int32, np.int64])
@pytest.mark.parametrize("channels", [1, 4, 7, 8, 17, 33])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arcs(level, channels, dtype, width):
    kernels, heads = load(level, "arcs"), 2
    indptr, indices = np.array([0, 2, 2, 6], width), np.array([4, 1, 0, 3, 3, 1], width)
    rows, none = np.repeat(np.arange(3), np.diff(indptr)), np.empty(0, width)
    left, right = data(3, heads, channels, dtype=dtype), data(5, heads, channels, dtype=dtype)
    weights, grad = data(6, heads, dtype=dtype), data(6, heads, dtype=dtype, seed=1)
    vector, slant = data(heads, channels, dtype=dtype), data(heads, channels, dtype=dtype, seed=1)
    arc = data(6, dtype=dtype)

    def run(kernel, shape, *arguments):
        out = np.full(shape, np.nan, dtype)
        kernel(*arguments, 0, 1, out)  # in two pieces
        kernel(*arguments, 1, 3, out)
        return out

    close(run(kernels.sums, (6, heads), indptr, indices, left[:, :, 0].copy(), right[:, :, 0].copy()),
          left[rows, :, 0] + right[indices, :, 0], dtype)
    close(run(kernels.dots, (6, heads), indptr, indices, left, right), (left[rows] * right[indices]).sum(-1), dtype)
    total, combined = np.zeros((3, heads), dtype), np.zeros((3, heads, channels), dtype)
    np.add.at(total, rows, weights)
    np.add.at(combined, rows, weights[:, :, None] * right[indices])
    close(run(kernels.total, (3, heads), indptr, none, weights), total, dtype)
    close(run(kernels.combine, (3, heads, channels), indptr, indices, none, weights, right), combined, dtype)
    places = np.array([5, 4, 3, 2, 1, 0], width)  # the same sums where the values of arcs stand in another order
    np.testing.assert_array_equal(run(kernels.total, (3, heads), indptr, places, weights[::-1].copy()),
                                  run(kernels.total, (3, heads), indptr, none, weights))
    e = np.exp(weights.astype(np.float64))
    sums = np.stack([np.bincount(rows, e[:, h], 3) for h in range(heads)], 1)[rows]
    soft = run(kernels.softmax, (6, heads), indptr, weights)
    close(soft, e / sums, dtype)
    inner = np.stack([np.bincount(rows, (soft * grad)[:, h], 3) for h in range(heads)], 1)[rows]
    close(run(kernels.softmax_grad, (6, heads), indptr, soft, grad), soft * (grad - inner), dtype)
    both = left[rows] + right[indices] + arc[:, None, None] * slant
    slope = np.where(both > 0, 1, dtype(0.2))
    close(run(kernels.scores, (6, heads), indptr, indices, arc, left, right, slant, vector, 0.2),
          (slope * both * vector).sum(-1), dtype)
    by_left = np.zeros((3, heads, channels), dtype)
    np.add.at(by_left, rows, grad[:, :, None] * slope * vector)
    close(run(kernels.scores_grad, (3, heads, channels), indptr, indices, none, arc, left, right, slant, vector, 0.2,
              grad), by_left, dtype)
    by_vector, by_slant = np.zeros((2, heads, channels), dtype)
    kernels.scores_grad_vectors(indptr, indices, arc, left, right, slant, 0.2, grad, 0, 3, by_vector, by_slant)
    close(by_vector, (grad[:, :, None] * slope * both).sum(0), dtype)
    close(by_slant, (grad[:, :, None] * slope * arc[:, None, None]).sum(0), dtype)
