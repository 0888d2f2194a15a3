"""Graphs, orders, types and layouts of all kinds, drawn by hypothesis."""
import tempfile
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gnncy import GraphEncoder
from gnncy._threads import working_threads
from gnncy.errors import GnncyError
from gnncy.graph import (
    NeighborSampler,
    aggregate,
    as_csr,
    bfs_order,
    community_order,
    degree_order,
    rcm_order,
)
from gnncy.storage import FeatureStorage, SparseFeatureStorage
from gnncy.training import pack_state, read_snapshot, unpack_state, write_snapshot

calm = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
few = settings(calm, max_examples=4)
FORMATS = ("csr", "csc", "coo", "lil")


@st.composite
def graphs(draw, least=0, most=24):
    """A sparse matrix as users have them, and what it means as a dense one."""
    n = draw(st.integers(least, most))
    node = st.integers(0, max(n - 1, 0))
    arcs = draw(st.lists(st.tuples(node, node), max_size=60 if n else 0))  # repeats, self-loops, isolated nodes
    if draw(st.booleans()):
        arcs += [(b, a) for a, b in arcs]
    weights = [draw(st.integers(1, 5)) if draw(st.booleans()) else 1 for _ in arcs]
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int32, np.int64]))
    row, column = np.array([a for a, _ in arcs], np.int64), np.array([b for _, b in arcs], np.int64)
    matrix = sp.coo_array((np.array(weights, dtype), (row, column)), shape=(n, n))
    dense = np.zeros((n, n))
    np.add.at(dense, (row, column), weights)
    kind = draw(st.sampled_from(FORMATS))
    matrix = matrix.asformat(kind)
    if kind in ("csr", "csc"):
        wide = draw(st.booleans())
        matrix = type(matrix)((matrix.data, matrix.indices.astype(np.int64 if wide else np.int32),
                               matrix.indptr.astype(np.int64 if wide else np.int32)), shape=(n, n))
        for part in (matrix.data, matrix.indices, matrix.indptr):
            part.flags.writeable = False
        if draw(st.booleans()):
            matrix = sp.csr_matrix(matrix) if kind == "csr" else sp.csc_matrix(matrix)
    return matrix, dense


@calm
@given(graphs())
def test_as_csr_keeps_the_matrix_and_is_canonical(graph):
    matrix, dense = graph
    found = as_csr(matrix)
    np.testing.assert_array_equal(found.toarray(), dense)
    assert found.has_canonical_format or not found.nnz
    for i in range(found.shape[0]):
        columns = found.indices[found.indptr[i]:found.indptr[i + 1]]
        assert (np.diff(columns) > 0).all()
    again = as_csr(found)
    np.testing.assert_array_equal(again.indices, found.indices)


@calm
@given(graphs(), st.sampled_from(["sum", "mean", "max"]), st.booleans(), st.sampled_from([np.float32, np.float64]),
       st.sampled_from("CF"), st.integers(0, 9))
def test_aggregation_is_that_of_the_dense_matrix(graph, reduce, weighted, dtype, layout, width):
    matrix, dense = graph
    n = len(dense)
    x = np.asarray(np.random.default_rng(n).normal(size=(n, width)), dtype, order=layout)
    x.flags.writeable = False
    found = aggregate(matrix, x, reduce=reduce, weighted=weighted and reduce != "max")
    assert found.dtype == dtype and found.shape == x.shape
    weight = dense if weighted and reduce != "max" else (dense != 0).astype(float)
    for i in range(n):
        there = dense[i] != 0
        if reduce == "max":
            want = x[there].max(axis=0) if there.any() else np.zeros(width)
        else:
            want = weight[i] @ x.astype(np.float64)
            if reduce == "mean" and there.any():
                want = want / weight[i].sum()
        np.testing.assert_allclose(found[i], want, rtol=1e-4, atol=1e-5)


@calm
@given(graphs(), st.sampled_from([bfs_order, rcm_order, degree_order, community_order]))
def test_every_order_is_a_permutation(graph, order):
    matrix, dense = graph
    found = order(matrix)
    np.testing.assert_array_equal(np.sort(found), np.arange(len(dense)))


@calm
@given(graphs(least=1), st.lists(st.integers(-1, 5), min_size=1, max_size=3), st.integers(0, 3), st.booleans())
def test_sampled_neighbours_are_neighbours(graph, fanouts, epoch, weighted):
    matrix, dense = graph
    n = len(dense)
    fanouts = [k or 1 for k in fanouts]
    seeds = np.unique(np.random.default_rng(epoch).integers(0, n, 5))
    sampler = NeighborSampler(matrix, fanouts, seed=1, weighted=weighted)
    batch = sampler.sample(seeds, epoch=epoch, batch=0)
    again = NeighborSampler(matrix, fanouts, seed=1, weighted=weighted).sample(seeds, epoch=epoch, batch=0)
    np.testing.assert_array_equal(batch.nodes, again.nodes)
    np.testing.assert_array_equal(batch.nodes[:len(seeds)], seeds)
    assert len(np.unique(batch.nodes)) == len(batch.nodes)
    for block, fanout in zip(batch.blocks[::-1], fanouts, strict=True):
        for i in range(block.n_dst):
            node = batch.nodes[i]
            drawn = batch.nodes[block.indices[block.indptr[i]:block.indptr[i + 1]]]
            degree = int((dense[node] != 0).sum())
            assert len(np.unique(drawn)) == len(drawn) == (degree if fanout < 0 else min(degree, fanout))
            assert (dense[node, drawn] != 0).all()


@calm
@given(st.integers(1, 40), st.integers(1, 20), st.sampled_from(["f2", "f4", "f8", ">f4", ">f8", "i4", "?"]),
       st.sampled_from("CF"), st.booleans(), st.lists(st.integers(0, 39), max_size=30), st.randoms())
def test_stores_give_back_what_they_were_given(n, dim, dtype, layout, ordered, ids, draw):
    x = np.asarray(np.random.default_rng(n * dim).integers(-9, 9, (n, dim)), np.dtype(dtype), order=layout)
    x.flags.writeable = False
    ids = np.array([i % n for i in ids], np.int64)
    order = np.array(draw.sample(range(n), n)) if ordered else None
    with tempfile.TemporaryDirectory() as folder:
        with FeatureStorage.from_array(x, Path(folder) / "x.npy", order=order) as store:
            np.testing.assert_array_equal(store.read_batch(ids), x[ids])
            store.reorder(np.arange(n)[::-1])
            np.testing.assert_array_equal(store[:], x)
            assert store.verify()
        with SparseFeatureStorage.from_csr(sp.csr_array(x.astype("f4")), Path(folder) / "w") as words:
            np.testing.assert_array_equal(words.read_batch(ids).toarray(), x[ids])


@few
@given(graphs(least=2, most=12), st.sampled_from(["propagate", "sage"]), st.booleans())
def test_any_graph_is_embedded_with_the_same_bits_or_refused(graph, encoder, featured):
    matrix, dense = graph
    x = np.random.default_rng(0).normal(size=(len(dense), 4)).astype(np.float32) if featured else None
    model = GraphEncoder(2, encoder=encoder, n_neighbors=(2,), hidden=4, reduced_width=4, max_epochs=1, random_state=0)
    try:
        found = model.fit_transform(matrix, features=x)
    except (GnncyError, ValueError) as error:
        assert len(str(error)) > 20
        return
    assert found.shape == (len(dense), 2) and np.isfinite(found).all()
    with working_threads(2):
        np.testing.assert_array_equal(model.fit_transform(matrix, features=x), found)


keys = st.text(max_size=4).filter(lambda key: key != "$array" and "\0" not in key)
trees = st.recursive(
    st.none() | st.booleans() | st.integers(-2**40, 2**40) | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.integers(0, 4).map(lambda n: np.arange(n, dtype=np.float32)),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(keys, inner, max_size=3), max_leaves=12)


def same(a, b):
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@calm
@given(st.dictionaries(keys, trees, max_size=4))
def test_any_state_comes_back_from_a_snapshot(state):
    with tempfile.TemporaryDirectory() as folder:
        write_snapshot(Path(folder) / "s.npz", *pack_state(state))
        assert same(unpack_state(*read_snapshot(Path(folder) / "s.npz")), state)
