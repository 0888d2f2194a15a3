"""The Laplacian as a regularizer: against scipy's Laplacian, central differences, and every fault of the reference."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.csgraph import laplacian

from gnncy import _kernels, nn
from gnncy._threads import working_threads
from gnncy.errors import GraphFormatError
from gnncy.losses import SpectralRegularization

KINDS = ("combinatorial", "symmetric", "random_walk")


def data(n=10, d=4, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, n, d]).normal(size=(n, d)).astype(dtype)


def graph(n=10, seed=0, weighted=True, isolated=True):
    """A symmetric graph; its last node has no edges."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.random((n, n)) < 0.4, 1) * (rng.uniform(0.5, 3, (n, n)) if weighted else 1.0)
    if isolated:
        upper[:, -1] = 0
    else:
        upper[np.arange(n - 1), np.arange(1, n)] = 2
    return sp.csr_array(upper + upper.T)


def matrix(adjacency, kind):
    """The Laplacian that the kind stands for."""
    dense = adjacency.toarray()
    if kind != "random_walk":
        return laplacian(dense, normed=kind == "symmetric")
    degree = dense.sum(axis=1) - dense.diagonal()
    step = dense / np.where(degree > 0, degree, 1)[:, None]
    return laplacian((step + step.T) / 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_are_those_of_scipys_laplacian(kind, weighted):
    z, adjacency = data(), graph(weighted=weighted)
    expected = matrix(adjacency, kind)
    loss, grad = SpectralRegularization(kind, scale=None)(z, adjacency)
    assert loss == pytest.approx(np.trace(z.T @ expected @ z), rel=1e-12)
    np.testing.assert_allclose(grad, 2 * expected @ z, rtol=1e-11, atol=1e-13)
    narrow, narrow_grad = SpectralRegularization(kind, scale=None)(z.astype(np.float32), adjacency)
    assert narrow == pytest.approx(loss, rel=1e-5) and narrow_grad.dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_self_loops_count_for_nothing(kind):
    z, adjacency = data(), graph()
    looped = adjacency + sp.diags_array(np.arange(10.0))
    loss, grad = SpectralRegularization(kind)(z, looped)
    assert loss == pytest.approx(SpectralRegularization(kind)(z, adjacency)[0], rel=1e-13)
    np.testing.assert_allclose(grad, 2 * matrix(looped, kind) @ z / (adjacency.nnz / 2), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("scale", ["edges", "nodes", None])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_against_central_differences(kind, scale):
    z = data()
    z[2] = 0
    loss_fn = SpectralRegularization(kind, 0.3, scale)
    assert nn.check_gradient(lambda x: loss_fn(x, graph()), [z]) < 1e-6
    x = nn.Tensor(z, requires_grad=True)
    out = loss_fn(x, graph())
    (2.0 * out).backward()
    loss, grad = loss_fn(z, graph())
    assert out.item() == loss
    np.testing.assert_allclose(x.grad, 2 * grad, rtol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_one_node_and_no_edges(kind):
    loss, grad = SpectralRegularization(kind)(np.ones((1, 3)), sp.csr_array((1, 1)))
    assert loss == 0 and not grad.any()
    loss, grad = SpectralRegularization(kind)(np.ones((1, 3)), np.ones((1, 1)))
    assert loss == 0 and not grad.any()


def test_s4_10_the_normalised_form_is_that_of_the_symmetric_laplacian():
    """S4-10: the reference's "normalized" term is another: it is 0 on constants, where it should be on sqrt(degree)."""
    adjacency = graph(isolated=False)
    degree = adjacency.sum(axis=1)
    root = np.sqrt(degree)[:, None]
    assert SpectralRegularization("symmetric")(root, adjacency)[0] < 1e-15
    assert SpectralRegularization("symmetric")(np.ones((10, 1)), adjacency)[0] > 0.01
    low, high = sp.triu(adjacency).nonzero()
    weights = adjacency[low, high]
    z = data()
    expected = (weights * ((z / root)[low] - (z / root)[high]).T ** 2).sum()
    of_reference = (weights / np.sqrt(degree[low] * degree[high]) * (z[low] - z[high]).T ** 2).sum()
    got = SpectralRegularization("symmetric", scale=None)(z, adjacency)[0]
    assert got == pytest.approx(expected, rel=1e-12) and abs(got - of_reference) > 0.1
    for kind in ("combinatorial", "random_walk"):
        assert SpectralRegularization(kind)(np.ones((10, 1)), adjacency)[0] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_s4_11_an_edge_in_one_direction_or_both_counts_once(kind):
    """S4-11: duplicate directions double both degrees and loss in the reference."""
    z, adjacency = data(), graph()
    expected, grad = SpectralRegularization(kind)(z, adjacency)
    for other in (sp.triu(adjacency).tocsr(), sp.tril(adjacency).tocsr(), sp.coo_matrix(adjacency),
                  adjacency.toarray()):
        loss, other_grad = SpectralRegularization(kind)(z, other)
        assert loss == pytest.approx(expected, rel=1e-13)
        np.testing.assert_allclose(other_grad, grad, rtol=1e-12, atol=1e-15)
    mixed = sp.triu(adjacency) + 0.5 * sp.tril(adjacency)  # the larger of the two weights counts
    assert SpectralRegularization(kind)(z, mixed)[0] == pytest.approx(expected, rel=1e-13)


def test_s4_11_the_scale_does_not_grow_with_the_graph():
    """S4-11: the reference's sum is not divided by edges or nodes, so that its weight depends on the graph's size."""
    z, adjacency = data(), graph()
    twice, both = sp.block_diag([adjacency, adjacency]), np.concatenate([z, z])
    for scale in ("edges", "nodes"):
        assert SpectralRegularization(scale=scale)(both, twice)[0] == pytest.approx(
            SpectralRegularization(scale=scale)(z, adjacency)[0], rel=1e-12)
    total = SpectralRegularization(scale=None)(z, adjacency)[0]
    assert SpectralRegularization(scale="edges")(z, adjacency)[0] == pytest.approx(total / (adjacency.nnz / 2))
    assert SpectralRegularization(scale="nodes")(z, adjacency)[0] == pytest.approx(total / 10)
    assert SpectralRegularization(weight=3.0, scale=None)(z, adjacency)[0] == pytest.approx(3 * total)


def test_s4_11_negative_weights_are_refused():
    """S4-11: negative weights give NaN in the reference."""
    with pytest.raises(GraphFormatError, match="weights of at least 0, got -1"):
        SpectralRegularization()(np.ones((2, 1)), np.array([[0, -1], [-1, 0]]))


def test_random_walk_kind_is_the_expected_step_and_never_negative():
    star = np.zeros((6, 6))
    star[0, 1:] = star[1:, 0] = 1
    z = np.array([[-np.sqrt(5)], *[[1.0]] * 5])
    step = star / star.sum(axis=1)[:, None]
    literal = np.trace(z.T @ (np.eye(6) - step) @ z)
    flipped = np.abs(z)
    assert np.trace(flipped.T @ (np.eye(6) - step) @ flipped) < 0 < literal
    loss = SpectralRegularization("random_walk", scale=None)
    for x in (z, flipped, data(6, 3)):
        expected = 0.5 * sum(step[i, j] * ((x[i] - x[j]) ** 2).sum() for i in range(6) for j in range(6))
        got = loss(x, star)[0]
        assert got == pytest.approx(expected, rel=1e-12) and got > 0
        missing = 0.5 * ((1 - step.sum(axis=0)) * (x**2).sum(axis=1)).sum()
        assert np.trace(x.T @ (np.eye(6) - step) @ x) == pytest.approx(got + missing, rel=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_the_number_of_threads(dtype):
    rng = np.random.default_rng(0)
    adjacency = sp.csr_array((np.ones(20_000), rng.integers(0, 5000, (2, 20_000))), shape=(5000, 5000))
    z = data(5000, 24, dtype=dtype)
    results = []
    for threads in (1, 2, 3):
        with working_threads(threads):
            results.append(SpectralRegularization()(z, adjacency))
    for loss, grad in results[1:]:
        assert loss == results[0][0]
        np.testing.assert_array_equal(grad, results[0][1])


def test_s4_8_bad_input():
    """S4-8: empty embeddings make the reference panic."""
    z = data()
    for call, kind, message in [
        (lambda: SpectralRegularization("normalized"), ValueError, "kind must be one of"),
        (lambda: SpectralRegularization(weight=-1), ValueError, "weight must be at least 0"),
        (lambda: SpectralRegularization(scale="batch"), ValueError, "scale must be one of"),
        (lambda: SpectralRegularization()(z, graph(11)), ValueError, r"each of the 11 nodes, got shape \(10, 4\)"),
        (lambda: SpectralRegularization()(z[:0], graph()), ValueError, "embeddings is empty"),
        (lambda: SpectralRegularization()(z * np.inf, graph()), ValueError, "embeddings contains inf or nan"),
        (lambda: SpectralRegularization()(z, graph()[:5]), GraphFormatError, "must be square"),
        (lambda: SpectralRegularization()(z, "graph"), TypeError, "adjacency must be"),
    ]:
        with pytest.raises(kind, match=message):
            call()


def test_arguments_are_not_changed_and_may_be_of_any_layout():
    z, adjacency = data(), graph()
    expected = SpectralRegularization()(z, adjacency)
    wide = sp.csr_array((adjacency.data, adjacency.indices.astype(np.int64), adjacency.indptr.astype(np.int64)),
                        adjacency.shape)
    for x in (z, adjacency.data, adjacency.indices, adjacency.indptr):
        x.flags.writeable = False
    for rows in (z, np.asfortranarray(z), z.astype(">f8"), z.tolist()):
        for form in (adjacency, sp.csr_matrix(adjacency), wide):
            loss, grad = SpectralRegularization()(rows, form)
            assert loss == pytest.approx(expected[0], rel=1e-6)
            np.testing.assert_allclose(grad, expected[1], rtol=1e-5, atol=1e-7)


def test_repr():
    assert repr(SpectralRegularization()) == "SpectralRegularization(kind='symmetric', weight=1.0, scale='edges')"


@pytest.mark.parametrize("level", _kernels.AVAILABLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
def test_laplacian_kernel(level, dtype, d):
    kernels = _kernels.at_level(level, "pairs")
    adjacency = graph().astype(dtype)
    rng = np.random.default_rng(d)
    z = data(10, d, dtype=dtype)
    share, scale = rng.uniform(0.5, 2, (2, 10)).astype(dtype)
    for x in (adjacency.indptr, adjacency.indices, adjacency.data, z, share, scale):
        x.flags.writeable = False
    loss, grad = np.empty(10), np.empty_like(z)
    for start, stop in ((0, 4), (4, 10)):
        kernels.laplacian_grad(adjacency.indptr, adjacency.indices, adjacency.data, z, share, scale, 0.25, start, stop,
                               loss, grad)
    weights = adjacency.toarray().astype(np.float64) * (share[:, None] + share)
    x = z * scale[:, None].astype(np.float64)
    rtol, atol = (1e-12, 1e-13) if dtype == np.float64 else (1e-4, 1e-4)
    squares = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(loss, (weights * squares).sum(axis=1) / 2, rtol=rtol, atol=atol)
    expected = 0.5 * scale[:, None] * (weights.sum(axis=1)[:, None] * x - weights @ x)
    np.testing.assert_allclose(grad, expected, rtol=rtol, atol=atol)
