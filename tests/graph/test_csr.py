import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gnncy._threads import working_threads
from gnncy.errors import GraphFormatError
from gnncy.graph import as_csr, degrees, is_symmetric, normalize, undirected

FORMATS = ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]


def assert_canonical(csr):
    assert isinstance(csr, sp.csr_array)
    assert csr.indptr.dtype == csr.indices.dtype
    assert csr.data.dtype in (np.float32, np.float64)
    assert csr.indptr[0] == 0 and csr.indptr[-1] == len(csr.indices) == len(csr.data)
    for i in range(csr.shape[0]):
        assert (np.diff(csr.indices[csr.indptr[i]:csr.indptr[i + 1]]) > 0).all()
    assert (csr.data != 0).all()


def test_every_graph_keeps_its_values(graph, to_dense):
    csr = as_csr(graph)
    assert_canonical(csr)
    assert csr.indices.dtype == np.int32
    np.testing.assert_array_equal(csr.toarray(), to_dense(graph))


@pytest.mark.parametrize("kind", [sp.coo_array, sp.coo_matrix])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format(format, kind, make_graph):
    graph = make_graph()
    np.testing.assert_array_equal(as_csr(kind(graph).asformat(format)).toarray(), graph.toarray())


@pytest.mark.parametrize("given, kept", [("?", "f4"), ("i1", "f4"), ("u8", "f4"), ("f4", "f4"), (">f4", "f4"),
                                         ("f8", "f8"), (">f8", "f8"), ("g", "f8")])
def test_value_types(given, kept):
    dense = np.array([[0, 1], [1, 1]]).astype(given)
    # scipy.sparse itself refuses foreign byte orders.
    for graph in (dense, sp.csr_array(dense)) if dense.dtype.isnative else (dense,):
        csr = as_csr(graph)
        assert csr.dtype == kept and csr.dtype.isnative
        np.testing.assert_array_equal(csr.toarray(), dense.astype(kept))
    assert as_csr(dense, dtype=np.float64).dtype == np.float64
    assert as_csr(dense, dtype="float32").dtype == np.float32


def test_half_precision_dense():
    assert as_csr(np.eye(3, dtype=np.float16)).dtype == np.float32


def test_canonical_graph_is_not_copied(make_graph):
    graph = make_graph()
    csr = as_csr(graph)
    assert csr is not graph
    for name in ("data", "indices", "indptr"):
        assert np.shares_memory(getattr(csr, name), getattr(graph, name))


def disordered():
    data = np.array([1, 2, 4, 0, 8, -8], np.float32)
    indices = np.array([2, 0, 2, 1, 1, 1], np.int32)
    graph = sp.csr_array((data, indices, np.array([0, 3, 4, 6], np.int32)), shape=(3, 3))
    for array in (graph.data, graph.indices, graph.indptr):
        array.setflags(write=False)
    return graph


def test_disorder_repeats_and_zeros_are_mended_on_a_copy():
    graph = disordered()
    before = [a.copy() for a in (graph.data, graph.indices, graph.indptr)]
    csr = as_csr(graph)
    assert_canonical(csr)
    np.testing.assert_array_equal(csr.toarray(), [[2, 0, 5], [0, 0, 0], [0, 0, 0]])
    for now, then in zip((graph.data, graph.indices, graph.indptr), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_wrong_flag_is_not_believed():
    graph = disordered()
    graph.has_canonical_format = True
    assert_canonical(as_csr(graph))


def test_repeats_of_a_narrow_type_do_not_overflow():
    ends = np.zeros(3, int), np.zeros(3, int)
    assert as_csr(sp.coo_array((np.full(3, 100, np.int8), ends), shape=(1, 1)))[0, 0] == 300


def test_spare_room_behind_the_last_row_is_ignored():
    graph = sp.csr_array(np.eye(3, dtype=np.float32))
    graph.indices = np.append(graph.indices, np.int32(99))
    graph.data = np.append(graph.data, np.float32(np.nan))
    csr = as_csr(graph)
    assert_canonical(csr)
    np.testing.assert_array_equal(csr.toarray(), np.eye(3))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.lists(
    st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.integers(-2, 2)), max_size=30))))
def test_any_list_of_arcs(case):
    n, arcs = case
    rows, columns, values = np.array(arcs, int).reshape(-1, 3).T
    dense = np.zeros((n, n))
    np.add.at(dense, (rows, columns), values)
    # Built by hand as CSR, in the order given: unsorted, with repeats.
    by_row = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
    unsorted = sp.csr_array((values[by_row].astype(float), columns[by_row], indptr), shape=(n, n))
    for graph in (sp.coo_array((values, (rows, columns)), shape=(n, n)), unsorted):
        csr = as_csr(graph)
        assert_canonical(csr)
        np.testing.assert_array_equal(csr.toarray(), dense)


@pytest.mark.parametrize("graph, error, text", [
    (None, TypeError, "got NoneType"),
    ("edges.csv", TypeError, "got str"),
    ({0: [1]}, TypeError, "got dict"),
    (np.array([["a"]]), TypeError, "numeric, got dtype <U1"),
    (np.array([[None]]), TypeError, "numeric, got dtype object"),
    (np.eye(2) * 1j, GraphFormatError, "Complex data not supported"),
    (sp.csr_array(np.eye(2) * 1j), GraphFormatError, "Complex data not supported"),
    (np.ones(4), GraphFormatError, r"2-dimensional, got shape \(4,\)"),
    (sp.coo_array(np.ones(4)), GraphFormatError, r"got shape \((4,|1, 4)\)"),
    (np.ones((2, 3)), GraphFormatError, r"square.*got shape \(2, 3\)"),
    (np.array([[0, np.nan], [0, 0]]), GraphFormatError, "contains inf or nan"),
    (sp.csr_array(np.array([[0, np.inf], [0, 0]])), GraphFormatError, "contains inf or nan"),
])
def test_bad_graphs(graph, error, text):
    with pytest.raises(error, match=text):
        as_csr(graph)


def test_values_beyond_float32_are_refused():
    graph = sp.csr_array(np.array([[1e300]]))
    with pytest.raises(GraphFormatError, match="inf or nan"):
        as_csr(graph, dtype=np.float32)
    with pytest.raises(GraphFormatError, match="inf or nan"):
        as_csr(sp.coo_array(([1e308, 1e308], ([0, 0], [0, 0])), shape=(1, 1)))


def broken(**parts):
    graph = sp.csr_array(np.ones((3, 3), np.float32))
    for name, value in parts.items():
        setattr(graph, name, np.array(value))
    return graph


@pytest.mark.parametrize("parts, text", [
    ({"indptr": [0, 3, 2, 9]}, "indptr must rise from 0 to at most 9"),
    ({"indptr": [1, 3, 6, 9]}, "indptr must rise"),
    ({"indptr": [0, 3, 6, 10]}, "indptr must rise"),
    ({"indptr": [0, 3, 9]}, "indptr must hold 4 integers, got 3"),
    ({"indptr": [0.0, 3.0, 6.0, 9.0]}, "got 4 of float64"),
    ({"indices": [0, 1, 2, 0, 1, 2, 0, 1, 3]}, r"column index outside 0\.\.2"),
    ({"indices": [-1, 1, 2, 0, 1, 2, 0, 1, 2]}, r"column index outside 0\.\.2"),
    ({"indices": [0, 1, 2, 0, 1, 2, 0, 1, 2**32]}, r"column index outside 0\.\.2"),
    ({"data": [1.0]}, "9 indices for 1 values"),
])
def test_broken_arrays(parts, text):
    with pytest.raises(GraphFormatError, match=text):
        as_csr(broken(**parts))


def test_options():
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got int64"):
        as_csr(np.eye(2), dtype=np.int64)
    with pytest.raises(GraphFormatError, match="^links must be square"):
        as_csr(np.ones((1, 2)), name="links")
    assert as_csr(np.ones((2, 3)), square=False).shape == (2, 3)


def test_degrees(graph, to_dense):
    dense = to_dense(graph)
    count, weight = degrees(graph), degrees(graph, weighted=True)
    assert count.dtype == np.int64 and weight.dtype == np.float64
    np.testing.assert_array_equal(count, (dense != 0).sum(1))
    np.testing.assert_allclose(weight, dense.sum(1), rtol=1e-6)


def test_is_symmetric(make_graph):
    graph = make_graph(directed=False)
    assert is_symmetric(graph) and is_symmetric(np.zeros((0, 0)))
    assert not is_symmetric(make_graph())
    heavier = graph.copy()
    rows = np.repeat(np.arange(60), np.diff(heavier.indptr))
    heavier.data[np.flatnonzero(rows != heavier.indices)[0]] *= 2
    assert not is_symmetric(heavier)


def dense_normalize(dense, kind, loops):
    b = dense.astype(np.float64) + loops * np.eye(len(dense))
    d = b.sum(0 if kind == "col" else 1)
    inverse = np.divide(1, np.sqrt(d) if kind == "sym" else d, out=np.zeros(len(d)), where=d > 0)
    left = inverse if kind != "col" else np.ones(len(d))
    right = inverse if kind != "row" else np.ones(len(d))
    return left[:, None] * b * right


@pytest.mark.parametrize("loops", [0, 1.0, 0.5])
@pytest.mark.parametrize("kind", ["sym", "row", "col"])
def test_normalize(graph, kind, loops, to_dense):
    result = normalize(graph, kind, loops)
    assert_canonical(result)
    assert result.dtype == as_csr(graph).dtype
    np.testing.assert_allclose(result.toarray(), dense_normalize(to_dense(graph), kind, loops), rtol=1e-6)


def test_normalized_symmetric_graph_is_symmetric_to_the_bit(make_graph):
    assert is_symmetric(normalize(make_graph(directed=False)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_degrees_to_the_bits_of_scipy_on_any_threads(dtype, monkeypatch):
    graph = as_csr(sp.random_array((900, 900), density=0.05, rng=3, dtype=dtype))
    loops = as_csr(graph + 0.7 * sp.eye_array(900, dtype=dtype, format="csr"))
    degree, expected = loops @ np.ones(900), normalize(graph, self_loops=0.7).data
    monkeypatch.setattr("gnncy.graph.csr._ROWS", 64)
    for threads in (1, 3):
        with working_threads(threads):
            assert np.array_equal(normalize(graph, self_loops=0.7).data, expected)
            assert np.array_equal(degrees(loops, weighted=True), degree)


def test_normalize_does_not_share_arrays(make_graph):
    graph = make_graph()
    result = normalize(graph, "row", 0)
    result.data[:] = result.indices[:] = 0
    assert graph.data.min() > 0 and graph.indices.max() > 0


@pytest.mark.parametrize("kwargs, error, text", [
    ({"kind": "both"}, ValueError, "kind must be one of 'sym', 'row', 'col', got 'both'"),
    ({"self_loops": -1}, ValueError, "self_loops must be at least 0"),
    ({"self_loops": "yes"}, TypeError, "self_loops must be a number"),
])
def test_normalize_options(kwargs, error, text):
    with pytest.raises(error, match=text):
        normalize(np.eye(2), **kwargs)


def test_negative_degree_is_refused():
    with pytest.raises(GraphFormatError, match="got -2 at node 1"):
        normalize(np.array([[0, 1], [-3, 0]]))


def test_undirected(graph, to_dense):
    dense = to_dense(graph)
    result = undirected(graph)
    assert_canonical(result)
    assert is_symmetric(result)
    np.testing.assert_array_equal(result.toarray(), np.maximum(dense, dense.T))
    with pytest.raises(GraphFormatError, match="weights of at least 0, got -1"):
        undirected(np.array([[0, -1], [0, 0]]))
