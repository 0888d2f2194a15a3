"""Graphs with every peculiarity that the functions of this room must take."""
import numpy as np
import pytest
import scipy.sparse as sp


def random_graph(n=60, density=0.08, seed=0, directed=True, dtype=np.float32):
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((n, n)) < density, rng.uniform(0.5, 2.0, (n, n)), 0).astype(dtype)
    if not directed:
        dense = np.maximum(dense, dense.T)
    return sp.csr_array(dense)


def _int64(graph):
    graph = graph.copy()
    graph.indptr, graph.indices = graph.indptr.astype(np.int64), graph.indices.astype(np.int64)
    return graph


def _frozen(graph):
    graph = graph.copy()
    for array in (graph.data, graph.indices, graph.indptr):
        array.setflags(write=False)
    return graph


def _disconnected():
    return sp.csr_array(sp.block_diag([random_graph(20, 0.2, 1, False), random_graph(9, 0.4, 2, False), [[0]], [[3]]]))


def _star(n):
    hub, leaves = np.zeros(n - 1, int), np.arange(1, n)
    ends = np.concatenate([hub, leaves]), np.concatenate([leaves, hub])
    return sp.csr_array((np.ones(2 * n - 2, np.float32), ends), shape=(n, n))


GRAPHS = {
    "no nodes": sp.csr_array((0, 0), dtype=np.float32),
    "one node": sp.csr_array((1, 1), dtype=np.float32),
    "one loop": sp.csr_array(np.array([[2.0]])),
    "no arcs": sp.csr_array((7, 7), dtype=np.float32),
    "directed": random_graph(),
    "undirected": random_graph(directed=False),
    "double": random_graph(dtype=np.float64),
    "loops": sp.csr_array(random_graph() + 2 * sp.eye_array(60, dtype=np.float32)),
    "disconnected": _disconnected(),
    "star": _star(200),
    "int64": _int64(random_graph()),
    "matrix": sp.csr_matrix(random_graph()),
    "coo": random_graph().tocoo(),
    "csc": random_graph().tocsc(),
    "dense": random_graph().toarray(),
    "frozen": _frozen(random_graph()),
}


@pytest.fixture(params=GRAPHS, ids=lambda name: name.replace(" ", "-"))
def graph(request):
    return GRAPHS[request.param]


@pytest.fixture
def make_graph():
    return random_graph


@pytest.fixture
def to_dense():
    return lambda graph: graph.toarray() if sp.issparse(graph) else np.asarray(graph)
