"""Eigenvalues of the Laplacian: against a dense solver, with each copy of 0, the same bits each time."""
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components, laplacian

from gnncy._threads import working_threads
from gnncy.errors import GraphFormatError
from gnncy.graph import eigenvalues, eigenvectors, spectral

KINDS = ("symmetric", "combinatorial", "random_walk")


def random_graph(n, density, seed=0, blocks=1):
    rng = np.random.default_rng([seed, n])
    upper = np.triu(rng.random((n, n)) < density, 1) * rng.uniform(0.5, 2, (n, n))
    if blocks > 1:
        part = np.sort(rng.integers(0, blocks, n))
        upper *= np.equal.outer(part, part)
    order = rng.permutation(n)
    return sp.csr_array((upper + upper.T)[order][:, order])


def dense(graph, kind):
    matrix = laplacian(graph.toarray(), normed=kind != "combinatorial")
    if kind == "random_walk":
        degree = graph.sum(axis=1)
        root = np.sqrt(np.where(degree > 0, degree, 1))
        matrix = matrix / root[:, None] * root
    return matrix


@pytest.fixture(params=["dense", "arpack", "lobpcg"])
def method(request, monkeypatch):
    if request.param != "dense":
        monkeypatch.setattr(spectral, "_DENSE", 20)
    return "arpack" if request.param == "dense" else request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_against_a_dense_solver(method, kind, blocks):
    graph = random_graph(120, 0.08, blocks=blocks)
    components = connected_components(graph)[0]
    assert (components == 1) == (blocks == 1)
    matrix = dense(graph, kind)
    values, vectors = eigenvectors(graph, 12, kind=kind, method=method)
    np.testing.assert_allclose(values, np.sort(np.linalg.eigvals(matrix).real)[:12], atol=1e-9)
    assert (values == 0).sum() == components
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-7)
    degree = graph.sum(axis=1)
    weight = np.where(degree > 0, degree, 1) if kind == "random_walk" else np.ones(120)
    np.testing.assert_allclose(vectors.T * weight @ vectors, np.eye(12), atol=1e-8)
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    assert (largest > 0).all()
    np.testing.assert_array_equal(eigenvalues(graph, 12, kind=kind, method=method), values)


@pytest.mark.parametrize("kind", KINDS)
def test_each_component_has_its_zero(kind):
    graph = sp.block_diag([random_graph(30, 0.3), sp.csr_array((5, 5)), sp.csr_array([[0, 1], [1, 0]])] * 4)
    assert connected_components(graph)[0] == 28
    values, vectors = eigenvectors(graph, 40, kind=kind)
    assert (values == 0).sum() == 28 and values[28] > 1e-3
    assert ((vectors[:, :28] != 0).sum(axis=0) == [30, 1, 1, 1, 1, 1, 2] * 4).all()
    np.testing.assert_array_equal(eigenvalues(graph, 7, kind=kind), np.zeros(7))


def test_all_of_them_and_the_bounds_of_the_symmetric_kind():
    path = sp.diags_array([np.ones(3), np.ones(3)], offsets=[-1, 1])
    values = eigenvalues(path, 4)
    np.testing.assert_allclose(values, [0, 0.5, 1.5, 2], atol=1e-12)  # 2: a path is bipartite
    np.testing.assert_allclose(eigenvalues(path, 4, kind="combinatorial"), [0, 2 - np.sqrt(2), 2, 2 + np.sqrt(2)],
                               atol=1e-12)
    np.testing.assert_array_equal(eigenvalues(np.zeros((1, 1)), 1), [0])
    np.testing.assert_allclose(eigenvalues(path + sp.eye_array(4), 4), values, atol=1e-12)  # self-loops: nothing


def test_copies_of_an_eigenvalue_within_a_component(method):
    ring = sp.csr_array(np.roll(np.eye(60), 1, axis=1) + np.roll(np.eye(60), -1, axis=1))
    expected = np.sort(1 - np.cos(2 * np.pi * np.arange(60) / 60))[:9]  # in pairs
    np.testing.assert_allclose(eigenvalues(ring, 9, method=method), expected, atol=1e-9)


def test_the_same_bits_each_time_and_with_any_number_of_threads(method):
    graph = random_graph(400, 0.02)
    results = []
    for threads in (1, 2, 1):
        with working_threads(threads):
            results.append(eigenvectors(graph, 6, method=method))
    for values, vectors in results[1:]:
        np.testing.assert_array_equal(values, results[0][0])
        np.testing.assert_array_equal(vectors, results[0][1])


def test_bad_input():
    graph = random_graph(20, 0.3)
    for call, kind, message in [
        (lambda: eigenvalues(graph, 0), ValueError, r"k must be in 1\.\.20"),
        (lambda: eigenvalues(graph, 21), ValueError, r"k must be in 1\.\.20"),
        (lambda: eigenvalues(graph, 2, kind="normed"), ValueError, "kind must be one of"),
        (lambda: eigenvalues(graph, 2, method="dense"), ValueError, "method must be one of"),
        (lambda: eigenvalues(sp.triu(graph), 2), GraphFormatError, "symmetric graph"),
        (lambda: eigenvalues(-graph, 2), GraphFormatError, "weights of at least 0"),
    ]:
        with pytest.raises(kind, match=message):
            call()


def test_no_convergence_names_a_way_out(monkeypatch):
    def never(*args, **kwargs):
        raise spectral.ArpackNoConvergence("ARPACK error -1: No convergence", np.empty(0), np.empty((0, 0)))

    monkeypatch.setattr(spectral, "eigsh", never)
    monkeypatch.setattr(spectral, "_DENSE", 20)
    with pytest.raises(spectral.ArpackNoConvergence, match="try method='lobpcg'"):
        eigenvalues(random_graph(60, 0.2), 3)
