import importlib

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gnncy import _kernels
from gnncy._threads import working_threads
from gnncy.graph import Block, NeighborSampler, aggregate, aggregate_grad, as_csr, spmm

module = importlib.import_module("gnncy.graph.aggregate")


@pytest.fixture(params=_kernels.AVAILABLE)
def kernels(request, monkeypatch):
    kernels = _kernels.at_level(request.param, "spmm")
    monkeypatch.setattr(module, "kernels", kernels)
    return kernels


def dense_operator(graph, reduce, weighted):
    dense = np.asarray(graph.toarray() if sp.issparse(graph) else graph, np.float64)
    w = dense if weighted else (dense != 0).astype(float)
    if reduce == "mean":
        total = w.sum(1, keepdims=True)
        w = np.divide(w, total, out=np.zeros_like(w), where=total != 0)
    return w


REDUCES = [("sum", False), ("sum", True), ("mean", False), ("mean", True)]


@pytest.mark.parametrize("reduce, weighted", REDUCES)
def test_values_and_gradient(graph, reduce, weighted, kernels):
    n = graph.shape[0]
    operator = dense_operator(graph, reduce, weighted)
    for dtype, rtol in ((np.float32, 2e-5), (np.float64, 1e-12)):
        x = np.random.default_rng(0).standard_normal((n, 5)).astype(dtype)
        x.setflags(write=False)
        y = aggregate(graph, x, reduce=reduce, weighted=weighted)
        back = aggregate_grad(graph, x, reduce=reduce, weighted=weighted)
        assert y.dtype == back.dtype == dtype
        # Weights are float32 in most of these graphs; their means are rounded there in the double case too.
        np.testing.assert_allclose(y, operator @ x, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(back, operator.T @ x, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("reduce, weighted", REDUCES)
def test_gradient_by_central_differences(make_graph, reduce, weighted, kernels):
    graph = make_graph(12, 0.3, dtype=np.float64)
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((12, 3)), rng.standard_normal((12, 3))
    grad = aggregate_grad(graph, g, reduce=reduce, weighted=weighted)
    numeric, h = np.empty_like(x), 1e-6
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        up, down = (aggregate(graph, x + s, reduce=reduce, weighted=weighted) for s in (step, -step))
        numeric[i] = ((up - down) * g).sum() / (2 * h)
    assert np.abs(grad - numeric).max() < 1e-6 * np.abs(numeric).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100])
def test_kernels_against_scipy(kernels, d, dtype, make_graph):
    graph = as_csr(make_graph(90, 0.2, dtype=dtype))
    x = np.random.default_rng(d).standard_normal((90, d)).astype(dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(spmm(graph, x), graph @ x, **tolerance)
    np.testing.assert_allclose(aggregate(graph, x, reduce="sum"), (graph != 0).astype(dtype) @ x, **tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_are_asked_for_early(kernels, dtype):
    rng = np.random.default_rng(0)
    graph = as_csr(sp.random_array((500, 30_000), density=2e-3, rng=rng, dtype=dtype), square=False)
    for d in (11, 16, 40, 70):  # more bytes than the second level of the cache holds, as far as the kernel knows
        x = rng.standard_normal((30_000, d)).astype(dtype)
        expected, tolerance = graph @ x, 1e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(spmm(graph, x), expected, rtol=tolerance, atol=tolerance)
        near = np.unique(graph.indices)
        block = Block(graph.indptr, np.searchsorted(near, graph.indices).astype(np.int32), len(near), 500)
        for reduce in ("sum", "max"):
            found = aggregate(graph, x, reduce=reduce)
            np.testing.assert_array_equal(found[:, :1], aggregate(block, x[near, :1], reduce=reduce))
            np.testing.assert_array_equal(found[:, -1:], aggregate(block, x[near, -1:], reduce=reduce))


@pytest.mark.parametrize("reduce, weighted", REDUCES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_column_does_not_depend_on_the_others(kernels, dtype, reduce, weighted, make_graph):
    graph = make_graph(80, 0.3, dtype=dtype)
    x = np.random.default_rng(0).standard_normal((80, 100)).astype(dtype)
    whole = aggregate(graph, x, reduce=reduce, weighted=weighted)
    back = aggregate_grad(graph, x, reduce=reduce, weighted=weighted)
    for width in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65):
        for start in (0, 1, 5):
            tile = x[:, start:start + width]
            options = {"reduce": reduce, "weighted": weighted}
            np.testing.assert_array_equal(aggregate(graph, tile, **options), whole[:, start:start + width])
            np.testing.assert_array_equal(aggregate_grad(graph, tile, **options), back[:, start:start + width])


def test_threads_and_pieces_do_not_matter(make_graph, monkeypatch):
    graph = make_graph(700, 0.05)
    x = np.random.default_rng(0).standard_normal((700, 33)).astype(np.float32)
    one = aggregate(graph, x, weighted=True), aggregate_grad(graph, x)
    monkeypatch.setattr(module, "_ROWS", 64)
    with working_threads(3):
        three = aggregate(graph, x, weighted=True), aggregate_grad(graph, x)
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("reduce, weighted", REDUCES)
def test_blocks(make_graph, reduce, weighted):
    graph = make_graph(200, 0.1)
    batch = NeighborSampler(graph, (5, 4), weighted=True).sample(np.arange(0, 200, 11))
    rng = np.random.default_rng(0)
    for block in batch.blocks:
        pattern = np.zeros((block.n_dst, block.n_src), np.float32)
        pattern[np.repeat(np.arange(block.n_dst), np.diff(block.indptr)), block.indices] = block.weights
        operator = dense_operator(pattern, reduce, weighted)
        x, g = rng.standard_normal((block.n_src, 6)), rng.standard_normal((block.n_dst, 6))
        options = {"reduce": reduce, "weighted": weighted}
        np.testing.assert_allclose(aggregate(block, x, **options), operator @ x, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(aggregate_grad(block, g, **options), operator.T @ g, rtol=1e-9, atol=1e-9)


def test_transpose_of_a_block(make_graph):
    graph = as_csr(make_graph(70, 0.1))
    block = NeighborSampler(graph, (3,), weighted=True).sample(np.arange(30)).blocks[0]
    back = block.transposed()
    assert back is block.transposed()
    assert (back.n_src, back.n_dst) == (block.n_dst, block.n_src)
    np.testing.assert_array_equal(back.weights, graph.data[back.edges])

    def dense(b):
        return sp.csr_array((b.weights, b.indices, b.indptr), shape=(b.n_dst, b.n_src)).toarray()

    np.testing.assert_array_equal(dense(back), dense(block).T)
    for i in range(back.n_dst):
        assert (np.diff(back.indices[back.indptr[i]:back.indptr[i + 1]]) > 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_rectangular_product(n, m, d, seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(-2, 3, (n, m)).astype(np.float32)
    x = rng.integers(-5, 6, (m, d)).astype(np.float32)
    np.testing.assert_array_equal(spmm(sp.csr_array(a), x), a @ x)
    back = aggregate_grad(Block.from_csr(a), a @ x, reduce="sum", weighted=True)
    np.testing.assert_array_equal(back, a.T @ (a @ x))


@pytest.mark.parametrize("convert", [
    lambda x: np.asfortranarray(x), lambda x: x.astype(">f4"), lambda x: x.tolist(),
    lambda x: np.repeat(x, 2, axis=0)[::2], lambda x: x.astype(np.float16)])
def test_features_of_any_layout(make_graph, convert):
    x = np.random.default_rng(0).integers(0, 9, (60, 4)).astype(np.float32)
    np.testing.assert_array_equal(aggregate(make_graph(), convert(x), reduce="sum"),
                                  aggregate(make_graph(), x, reduce="sum"))


def test_nan_stays_where_it_is(make_graph):
    graph = make_graph()
    x = np.ones((60, 2), np.float32)
    x[7, 1] = np.nan
    y = aggregate(graph, x)
    assert np.isfinite(y[:, 0]).all()
    np.testing.assert_array_equal(np.isnan(y[:, 1]), graph.toarray()[:, 7] != 0)


def test_out(make_graph):
    graph, x = make_graph(), np.ones((60, 3), np.float32)
    out = np.full((60, 3), 7, np.float32)
    for function in (aggregate, aggregate_grad, spmm):
        expected = function(graph, x)
        assert function(graph, x, out=out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("out, text", [
    (np.empty((60, 2), np.float32), r"out must be a C-contiguous array of shape \(60, 3\) and dtype float32"),
    (np.empty((60, 3)), "got float64"), (np.empty((60, 3), np.float32, order="F"), "C-contiguous"), ([1], "got list")])
@pytest.mark.parametrize("function", [aggregate, aggregate_grad, spmm])
def test_bad_out(make_graph, function, out, text):
    with pytest.raises(ValueError, match=text):
        function(make_graph(), np.ones((60, 3), np.float32), out=out)


def test_out_must_be_apart_and_writable(make_graph):
    x, frozen = np.ones((60, 3), np.float32), np.ones((60, 3), np.float32)
    frozen.setflags(write=False)
    for out in (x, frozen):
        with pytest.raises(ValueError, match="writable and must not overlap"):
            aggregate(make_graph(), x, out=out)


@pytest.mark.parametrize("function", [aggregate, aggregate_grad, spmm])
@pytest.mark.parametrize("x, error, text", [
    (np.ones((59, 2)), ValueError, r"must have 60 rows.*got shape \(59, 2\)"), (np.ones(60), ValueError, "2-dim"),
    (np.ones((60, 2)) * 1j, ValueError, "Complex"), (np.full((60, 2), "a"), TypeError, "numeric")])
def test_bad_features(make_graph, function, x, error, text):
    with pytest.raises(error, match=text):
        function(make_graph(), x)


def test_bad_options(make_graph):
    for function in (aggregate, aggregate_grad):
        with pytest.raises(ValueError, match="reduce must be one of 'sum', 'mean', 'max', got 'min'"):
            function(make_graph(), np.ones((60, 1)), reduce="min")
    block = NeighborSampler(make_graph(), (2,)).sample([0]).blocks[0]
    with pytest.raises(ValueError, match="weighted=True needs a block with weights"):
        aggregate(block, np.ones((block.n_src, 1)), weighted=True)


def test_wide_indices_give_the_same(kernels, make_graph):
    graph = as_csr(make_graph(80, 0.2))
    x, one = np.random.default_rng(0).standard_normal((80, 19)).astype(np.float32), np.ones(80, np.float32)
    results = []
    for width in (np.int32, np.int64):
        indptr, indices = graph.indptr.astype(width), graph.indices.astype(width)
        plain, weighted, scaled = np.empty_like(x), np.empty_like(x), np.empty_like(graph.data)
        kernels.gather_sum(indptr, indices, x, one, 0, 80, plain)
        kernels.weighted_sum(indptr, indices, graph.data, x, one, 0, 80, weighted)
        kernels.scaled(indptr, indices, graph.data, np.full(80, 2.0), np.full(80, 0.5), scaled)
        results.append([plain, weighted, scaled])
    for narrow, wide in zip(*results, strict=True):
        np.testing.assert_array_equal(narrow, wide)
    np.testing.assert_array_equal(results[1][2], graph.data)


@pytest.mark.parametrize("width", [1, 5, 16, 33])
def test_maximum_and_its_gradient(kernels, make_graph, width):
    graph = as_csr(make_graph(70, 0.1))
    graph = as_csr(sp.vstack([graph[:30], sp.csr_array((1, 70))]), square=False)  # the last hears nobody
    block = Block.from_csr(graph)
    for dtype in (np.float32, np.float64):
        # Few different values, so that neighbours tie.
        x, grad = (np.random.default_rng(s).integers(-3, 3, (n, width)).astype(dtype) for s, n in ((0, 70), (1, 31)))
        x.setflags(write=False)
        y = aggregate(block, x, reduce="max")
        back = aggregate_grad(block, grad, reduce="max", x=x, result=y)
        expected, by_x = np.zeros_like(y), np.zeros_like(x)
        for i in range(31):
            heard = graph.indices[graph.indptr[i]:graph.indptr[i + 1]]
            if len(heard):
                expected[i] = x[heard].max(0)
                tied = x[heard] == expected[i]
                by_x[heard] += tied * grad[i] / tied.sum(0)
        np.testing.assert_array_equal(y, expected)
        assert y.dtype == back.dtype == dtype and not y[30].any()
        np.testing.assert_allclose(back, by_x, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="takes no weights"):
        aggregate(block, x, reduce="max", weighted=True)
    with pytest.raises(ValueError, match="needs x and result"):
        aggregate_grad(block, grad, reduce="max")
