"""Reconstruction of features and of edges: against plain formulas and central differences."""

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy import _kernels, nn
from gnncy._threads import working_threads
from gnncy.losses import Pairs, ReconstructionLoss

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def data(n=9, d=5, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, n, d]).normal(size=(n, d)).astype(dtype)


def graph(n=9, seed=0):
    upper = sp.csr_array(np.triu(np.random.default_rng(seed).random((n, n)) < 0.3, 1).astype(np.float32))
    return upper + upper.T


def rows(kind, output, target, gamma):
    if kind == "mse":
        return ((output - target) ** 2).mean(axis=1)
    cosine = (output * target).sum(axis=1) / np.linalg.norm(output, axis=1) / np.linalg.norm(target, axis=1)
    return (1 - cosine) ** gamma


@DTYPES
@pytest.mark.parametrize("kind, gamma", [("mse", 2), ("sce", 1), ("sce", 2), ("sce", 2.5)])
def test_features(kind, gamma, dtype):
    output, target = data(dtype=dtype), data(seed=1, dtype=dtype)
    loss, grad = ReconstructionLoss(kind, "none", gamma=gamma)(output, target)
    expected = rows(kind, output.astype(np.float64), target.astype(np.float64), gamma)
    np.testing.assert_allclose(loss, expected, rtol=1e-12 if dtype == np.float64 else 1e-5)
    assert loss.dtype == np.float64 and grad.dtype == dtype
    mean, by_mean = ReconstructionLoss(kind, gamma=gamma)(output, target)
    assert mean == pytest.approx(expected.mean(), rel=1e-5)
    np.testing.assert_allclose(by_mean, grad / 9, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind, gamma", [("mse", 2), ("sce", 1), ("sce", 2), ("sce", 2.5)])
def test_gradient_against_central_differences(kind, gamma, reduction):
    loss_fn = ReconstructionLoss(kind, reduction, gamma=gamma)
    output, target = data(), data(seed=1)
    target[2] = 0
    assert nn.check_gradient(lambda x: loss_fn(x, target), [output]) < 1e-6
    assert nn.check_gradient(lambda x: loss_fn(x, target[:1]), [output[:1]]) < 1e-6


def test_scaled_cosine_error_of_zero_rows():
    output, target = data(), data(seed=1)
    output[1] = target[2] = 0
    loss, grad = ReconstructionLoss("sce", "none")(output, target)
    assert loss[1] == loss[2] == 1 and not grad[1].any() and not grad[2].any() and grad[0].any()


def test_scaled_cosine_error_keeps_its_digits_near_the_target():
    target = data(dtype=np.float32)
    output = target.copy()
    output[:, 0] += 1e-5
    narrow, narrow_grad = ReconstructionLoss("sce", "none", gamma=1)(output, target)
    wide, grad = ReconstructionLoss("sce", "none", gamma=1)(output.astype(np.float64), target.astype(np.float64))
    assert wide.max() < 1e-9
    np.testing.assert_allclose(narrow, wide, rtol=0.1, atol=1e-14)
    same, grad = ReconstructionLoss("sce", gamma=1)(target, 3 * target)
    assert same < 1e-12 and np.abs(grad).max() < 1e-6


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_adjacency(reduction):
    z, adjacency = data() / 2, graph()
    loss_fn = ReconstructionLoss("adjacency", reduction, negatives=2)
    assert nn.check_gradient(lambda x: loss_fn(x, adjacency, key=5), [z]) < 1e-6
    edges = adjacency.nnz // 2
    each, _ = ReconstructionLoss("adjacency", "none", negatives=2)(z, adjacency, key=5)
    low, high = sp.triu(adjacency).nonzero()
    np.testing.assert_allclose(each[:edges], np.logaddexp(0, -(z[low] * z[high]).sum(axis=1)), rtol=1e-12)
    drawn = Pairs.from_graph(adjacency).sample_others(2 * edges, key=5)
    nodes = np.repeat(np.arange(9), np.diff(drawn.indptr))[drawn.pairs >= 0]
    expected = np.empty(2 * edges)
    first = drawn.pairs >= 0
    expected[drawn.pairs[first]] = np.logaddexp(0, (z[nodes] * z[drawn.others[first]]).sum(axis=1))
    np.testing.assert_allclose(each[edges:], expected, rtol=1e-12)
    loss, grad = loss_fn(z, adjacency, key=5)
    if reduction != "none":
        assert loss == pytest.approx(each.mean() if reduction == "mean" else each.sum(), rel=1e-12)
    x = nn.Tensor(z, requires_grad=True)
    loss_fn(x, adjacency, key=5).sum().backward()
    np.testing.assert_allclose(x.grad, grad, rtol=1e-12, atol=1e-15)


def test_adjacency_with_large_dots_neither_overflows_nor_rounds_to_nothing():
    z = np.array([[30.0, 0], [30.0, 0], [-30.0, 0]], np.float32)
    loss, grad = ReconstructionLoss("adjacency", "none", negatives=0)(z, Pairs([0, 0, 1], [1, 2, 2], [1, 1, 0]))
    np.testing.assert_allclose(loss, [0, 900, 0], atol=1e-30)
    assert np.isfinite(grad).all() and grad[2, 0] == -30
    small, _ = ReconstructionLoss("adjacency", "none", negatives=0)(z / 10, Pairs([0], [1]))
    assert small[0] == pytest.approx(np.log1p(np.exp(-9)), rel=1e-4)


def test_bits_do_not_depend_on_the_number_of_threads():
    rng = np.random.default_rng(0)
    adjacency = sp.csr_array((np.ones(9000, np.float32), rng.integers(0, 3000, (2, 9000))), shape=(3000, 3000))
    output, target = data(3000, 20, dtype=np.float32), data(3000, 20, seed=1, dtype=np.float32)
    for kind, goal in (("adjacency", adjacency), ("mse", target), ("sce", target)):
        results = []
        for threads in (1, 2):
            with working_threads(threads):
                results.append(ReconstructionLoss(kind)(output, goal, key=0))
        assert results[0][0] == results[1][0]
        np.testing.assert_array_equal(results[0][1], results[1][1])


def test_s4_8_bad_input():
    """S4-8: empty batches give 0/0 in the reference (whose reconstruction loss is always 0)."""
    z = data()
    for call, kind, message in [
        (lambda: ReconstructionLoss("bce"), ValueError, "kind must be one of"),
        (lambda: ReconstructionLoss("sce", gamma=0.5), ValueError, "gamma must be at least 1"),
        (lambda: ReconstructionLoss()(z, z[:, :3]), ValueError, r"output's shape \(9, 5\), got \(9, 3\)"),
        (lambda: ReconstructionLoss()(z[:0], z[:0]), ValueError, "output is empty"),
        (lambda: ReconstructionLoss()(z, z * np.nan), ValueError, "target contains inf or nan"),
        (lambda: ReconstructionLoss("adjacency")(z, z), TypeError, "must be a sparse graph or Pairs"),
        (lambda: ReconstructionLoss("adjacency")(z, graph()), ValueError, "call with key="),
        (lambda: ReconstructionLoss("adjacency")(z, sp.csr_array((9, 9)), key=0), ValueError, "no edges"),
        (lambda: ReconstructionLoss()(z, nn.Tensor(z, requires_grad=True)), ValueError, "give target.detach"),
    ]:
        with pytest.raises(kind, match=message):
            call()
    assert ReconstructionLoss()(z, nn.Tensor(z))[0] == 0


def test_repr():
    assert repr(ReconstructionLoss()) == "ReconstructionLoss(kind='mse', reduction='mean')"
    assert repr(ReconstructionLoss("sce", gamma=3)) == "ReconstructionLoss(kind='sce', reduction='mean', gamma=3.0)"


@pytest.mark.parametrize("level", _kernels.AVAILABLE)
@DTYPES
@pytest.mark.parametrize("d", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
def test_row_kernels(level, dtype, d):
    kernels = _kernels.at_level(level, "reconstruction")
    x, target = data(4, d, dtype=dtype), data(4, d, seed=1, dtype=dtype)
    weight = np.array([1, 2, 0.5, 3], dtype)
    for array in (x, target, weight):
        array.flags.writeable = False
    a, b, w = (array.astype(np.float64) for array in (x, target, weight))
    rtol, atol = (1e-11, 1e-13) if dtype == np.float64 else (1e-4, 1e-4)
    loss, grad = np.empty(4), np.empty_like(x)
    for start, stop in ((0, 1), (1, 4)):
        kernels.squared_grad(x, target, weight, start, stop, loss, grad)
    np.testing.assert_allclose(loss, rows("mse", a, b, 0), rtol=rtol)
    np.testing.assert_allclose(grad, 2 * w[:, None] * (a - b) / d, rtol=rtol, atol=atol)
    for start, stop in ((0, 1), (1, 4)):
        kernels.cosine_grad(x, target, weight, 2.0, start, stop, loss, grad)
    np.testing.assert_allclose(loss, rows("sce", a, b, 2), rtol=rtol, atol=atol)
    u, v = (y / np.linalg.norm(y, axis=1, keepdims=True) for y in (a, b))
    cosine = (u * v).sum(axis=1, keepdims=True)
    expected = 2 * w[:, None] * (1 - cosine) * (cosine * u - v) / np.linalg.norm(a, axis=1, keepdims=True)
    np.testing.assert_allclose(grad, expected, rtol=rtol, atol=atol)
