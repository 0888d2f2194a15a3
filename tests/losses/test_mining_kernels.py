"""The kernels of the miners, at every SIMD level."""
import numpy as np
import pytest

from gnncy import _kernels
from mining_reference import cosine, data, hardest, unit


@pytest.fixture(params=_kernels.AVAILABLE)
def topk(request):
    return _kernels.at_level(request.param, "topk")


def lists(n, k, dtype):
    return np.full((n, k), -np.inf), np.full((n, k), -1), np.zeros((n, k), dtype)


def frozen(*arrays):
    for array in arrays:
        array.setflags(write=False)
    return arrays


@pytest.mark.parametrize("m", [1, 7, 8, 31, 32, 33, 64, 65, 100])
@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_largest_kernel(topk, m, k, dtype):
    rng = np.random.default_rng([m, k])
    x = rng.integers(-3, 4, (6, 3 * m)).astype(dtype)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.1] = -np.inf
    x[0] = np.nan
    lower, upper = np.full(6, -9, dtype), np.full(6, 3, dtype)
    lower[1] = 0
    scores, chosen, values = lists(6, k, dtype)
    for first in range(0, 3 * m, m):
        topk.largest(*frozen(x[:, first:first + m].copy(), np.arange(first, first + m), lower, upper, np.full(6, -1),
                             np.empty(0, np.int64)), scores, chosen, values)
    wanted = hardest(np.nan_to_num(x, nan=-np.inf), k, (x > lower[:, None]) & (x < 3))
    np.testing.assert_array_equal(chosen, wanted)
    present = wanted >= 0
    np.testing.assert_array_equal(values[present], np.take_along_axis(x, wanted, 1)[present])
    np.testing.assert_array_equal(scores[present], values[present])


def mix64(x):
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def gumbel(key, anchors, ids):
    """The kernel's noise, by its formula."""
    streams = (mix64(np.uint64(key) ^ mix64(anchors.astype(np.uint64))) >> np.uint64(32)).astype(np.uint32)
    x = ids ^ streams[:, None]
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return -np.log(-np.log1p(-(x + 0.5) * 2.0**-32))


@pytest.mark.parametrize("m, k", [(1, 1), (31, 4), (64, 3), (1000, 20), (20_000, 5)])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drawn_kernel(topk, m, k, alpha, dtype):
    rng = np.random.default_rng([m, k])
    x = rng.uniform(-1, 1, (4, m)).astype(dtype)
    x[:, ::9] = np.nan
    x[:, 1::9] = -np.inf
    ids = rng.integers(0, 2**32, m, dtype=np.uint32)
    anchors = np.array([0, 1, 2**40, 5])
    lower, upper = np.full(4, -2, dtype), np.full(4, 0.9, dtype)
    scores, chosen, values = lists(4, k, dtype)
    topk.drawn(*frozen(x, np.arange(m), ids, anchors), 77, alpha, *frozen(lower, upper, np.full(4, -1)),
               np.empty(0, np.int64), scores, chosen, values)
    score = alpha * np.nan_to_num(x.astype(np.float64), neginf=0) + gumbel(77, anchors, ids)
    wanted = hardest(score, k, (x > -2) & (x < dtype(0.9)))
    np.testing.assert_array_equal(chosen, wanted)
    np.testing.assert_allclose(scores[wanted >= 0], np.take_along_axis(score, wanted, 1)[wanted >= 0], rtol=1e-9)


@pytest.mark.parametrize("d", [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cosines_kernel(topk, d, dtype):
    x = data(30, d, dtype=dtype)
    x[5] = 0
    nodes = np.array([5, 0, 29, 7, 7, 3, 1, 2, 4, 6, 8, 9])
    anchor = unit(data(1, d, seed=1, dtype=dtype))[0].astype(dtype)
    out = np.empty(len(nodes), dtype)
    topk.cosines(*frozen(x, nodes, anchor), out)
    np.testing.assert_allclose(out, cosine(anchor[None], x[nodes])[0], atol=1e-6 if dtype == np.float32 else 1e-14)
    assert out[0] == 0
