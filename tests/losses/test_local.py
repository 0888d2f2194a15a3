"""The margin loss on pairs: against a plain formula, central differences, and every fault of the reference."""
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy import _kernels, nn
from gnncy._threads import working_threads
from gnncy.losses import LocalContrastiveLoss, Pairs

LEVELS = pytest.mark.parametrize("level", _kernels.AVAILABLE)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def data(n=12, d=5, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, n, d]).normal(size=(n, d)).astype(dtype)


def pair_lists(n=12, count=30, seed=0):
    """Different pairs of different nodes, either way round, and labels of both kinds."""
    rng = np.random.default_rng(seed)
    low, high = np.triu_indices(n, 1)
    chosen = rng.permutation(len(low))[:count]
    flip = rng.random(count) < 0.5
    left, right = np.where(flip, high[chosen], low[chosen]), np.where(flip, low[chosen], high[chosen])
    return left, right, rng.integers(0, 2, count)


def random_graph(n=12, seed=0, density=0.3):
    graph = sp.csr_array(np.triu(np.random.default_rng(seed).random((n, n)) < density, 1).astype(np.float32))
    return graph + graph.T


def reference(z, left, right, labels, margin):
    distance = np.linalg.norm(np.asarray(z, np.float64)[left] - np.asarray(z, np.float64)[right], axis=1)
    return np.where(labels, distance**2, np.maximum(0, margin - distance) ** 2)


@DTYPES
def test_loss_is_the_formula(dtype):
    z = data(dtype=dtype)
    left, right, labels = pair_lists()
    loss, grad = LocalContrastiveLoss(3.0, "none")(z, (left, right), labels)
    expected = reference(z, left, right, labels, 3.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5 if dtype == np.float32 else 1e-13, atol=1e-6)
    assert loss.dtype == np.float64 and grad.dtype == dtype and (expected == 0).any() and (expected > 0).any()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradient_against_central_differences(reduction, normalize):
    left, right, labels = pair_lists()
    loss_fn = LocalContrastiveLoss(1.2 if normalize else 3.0, reduction, normalize=normalize)
    assert nn.check_gradient(lambda z: loss_fn(z, (left, right), labels), [data()]) < 1e-6


@pytest.mark.parametrize("pairs", [([0], [0]), ([0], [1]), ([0, 0, 1], [1, 1, 0])], ids=str)
def test_gradient_for_one_node_one_pair_and_repeats(pairs):
    loss_fn = LocalContrastiveLoss(9.0)
    for labels in (np.ones(len(pairs[0])), np.zeros(len(pairs[0]))):
        if pairs == ([0], [0]) and not labels.any():
            continue  # a constant
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            error = nn.check_gradient(lambda z: loss_fn(z, pairs, labels), [data(2, 3)])  # noqa: B023
        assert error < 1e-6


def test_gradient_with_zero_rows():
    z = data()
    z[3] = 0
    left, right, labels = pair_lists()
    assert nn.check_gradient(lambda z: LocalContrastiveLoss(3.0)(z, (left, right), labels), [z]) < 1e-6
    loss, grad = LocalContrastiveLoss(1.0, normalize=True)(z, (left, right), labels)
    assert np.isfinite(loss) and np.isfinite(grad).all() and not grad[3].any()


def test_s4_3_and_s4_4_reductions_reach_the_gradients():
    """S4-3: the reference's mean divides the loss alone. S4-4: its none returns the sum."""
    z, (left, right, labels) = data(), pair_lists()
    each, by_none = LocalContrastiveLoss(3.0, "none")(z, (left, right), labels)
    total, by_sum = LocalContrastiveLoss(3.0, "sum")(z, (left, right), labels)
    mean, by_mean = LocalContrastiveLoss(3.0, "mean")(z, (left, right), labels)
    assert each.shape == (30,) and total == pytest.approx(each.sum()) and mean == pytest.approx(total / 30)
    np.testing.assert_array_equal(by_none, by_sum)
    np.testing.assert_allclose(by_mean, by_sum / 30, rtol=1e-12, atol=1e-15)


def test_arrays_and_tape_are_one_code():
    z, (left, right, labels) = data(), pair_lists()
    loss, grad = LocalContrastiveLoss(3.0)(z, (left, right), labels)
    x = nn.Tensor(z, requires_grad=True)
    out = LocalContrastiveLoss(3.0)(x, (left, right), labels)
    (2.0 * out).backward()
    assert out.item() == loss
    np.testing.assert_array_equal(x.grad, 2 * grad)


def test_gradients_of_all_nodes_sum_to_zero():
    left, right, labels = pair_lists()
    grad = LocalContrastiveLoss(3.0)(data(), (left, right), labels)[1]
    assert np.abs(grad).max() > 0.01
    np.testing.assert_allclose(grad.sum(axis=0), 0, atol=1e-14)


def test_s4_9_attraction_alone_warns():
    """S4-9: without dissimilar pairs collapse is the minimum; the reference says nothing."""
    z, graph = data(), random_graph()
    with pytest.warns(UserWarning, match="all pairs are similar.*negatives="):
        LocalContrastiveLoss()(z, graph)
    with pytest.warns(UserWarning, match="all pairs are similar"):
        LocalContrastiveLoss()(z, ([0], [1]))
    LocalContrastiveLoss(negatives=1)(z, graph, key=0)  # warnings are errors here
    LocalContrastiveLoss()(z, ([0, 1], [1, 2]), [1, 0])


@pytest.mark.filterwarnings("ignore:all pairs are similar")
def test_s4_9_both_directions_of_an_edge_count_once():
    """S4-9: the reference counts an edge twice where the list holds both directions."""
    z, graph = data(), random_graph()
    low, high = sp.triu(graph).nonzero()
    for reduction in ("mean", "sum"):
        loss_fn = LocalContrastiveLoss(reduction=reduction)
        once, grad = loss_fn(z, (low, high))
        for other in (graph, sp.csr_matrix(graph).astype(np.float64), sp.triu(graph), sp.tril(graph).tocsr(),
                      graph + sp.eye_array(12), (np.concatenate([low, high]), np.concatenate([high, low])),
                      Pairs.from_graph(graph), Pairs(high, low)):
            loss, other_grad = loss_fn(z, other)
            assert loss == pytest.approx(once, rel=1e-13)
            np.testing.assert_allclose(other_grad, grad, rtol=1e-11, atol=1e-14)


def test_a_repeated_pair_has_loss_zero_at_its_later_places():
    z = data()
    pairs = Pairs([0, 1, 1, 0, 3], [1, 0, 0, 1, 4], [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(pairs.repeated, [False, True, False, True, False])
    loss, grad = LocalContrastiveLoss(3.0, "none")(z, pairs)
    expected = reference(z, [0, 0, 3], [1, 1, 4], np.array([1, 0, 0]), 3.0)
    np.testing.assert_allclose(loss, [expected[0], 0, expected[1], 0, expected[2]], rtol=1e-13)
    np.testing.assert_allclose(LocalContrastiveLoss(3.0, "mean")(z, pairs)[0], expected.mean())
    np.testing.assert_allclose(grad, LocalContrastiveLoss(3.0, "none")(z, ([0, 1, 3], [1, 0, 4]), [1, 0, 0])[1])


def test_many_repeats_of_one_pair_take_no_longer_than_others():
    count = 200_000
    pairs = Pairs(np.zeros(count, int), np.ones(count, int))
    assert pairs.count == 1 and pairs.repeated.sum() == count - 1
    assert Pairs(np.zeros(count, int), np.zeros(count, int)).count == 1


def test_s4_9_coincident_dissimilar_rows_are_pushed_apart():
    """S4-9: the gradient of coincident dissimilar points is zero in the reference, so they stay together."""
    z = np.zeros((2, 3))
    loss, grad = LocalContrastiveLoss(1.5)(z, ([0], [1]), [0])
    assert loss == 1.5**2
    np.testing.assert_array_equal(grad[0], -grad[1])
    assert np.linalg.norm(grad[0]) == 3.0
    moved = z - 0.01 * grad
    again = LocalContrastiveLoss(1.5)(moved, ([0], [1]), [0])[0]
    assert again == pytest.approx((1.5 - 0.06) ** 2)
    near = LocalContrastiveLoss(1.5)(np.array([[1e-9, 0, 0], [0, 0, 0]]), ([0], [1]), [0])[1]
    assert np.linalg.norm(near[0]) == pytest.approx(3.0)
    assert not LocalContrastiveLoss(1.5)(z, ([0], [0]), [0])[1].any()  # a node and itself


def test_s4_8_empty_input_is_refused():
    """S4-8: empty edges give 0/0 in the reference, empty embeddings a panic."""
    with pytest.raises(ValueError, match="at least one pair"):
        LocalContrastiveLoss()(data(), ([], []))
    with pytest.raises(ValueError, match="no edges between different nodes"):
        LocalContrastiveLoss()(data(3), sp.eye_array(3, format="csr"))
    with pytest.raises(ValueError, match="embeddings is empty"):
        LocalContrastiveLoss()(np.empty((3, 0)), ([0, 1], [1, 2]), [0, 1])


def test_drawn_pairs_are_no_edges_and_depend_on_the_key_alone():
    graph = random_graph(60, density=0.5)
    pairs = Pairs.from_graph(graph)
    drawn = pairs.sample_others(15_000, key=3)
    firsts = np.repeat(np.arange(60), np.diff(drawn.indptr))
    assert len(drawn) == 15_000 and not drawn.similar.any()
    assert (firsts != drawn.others).all() and not graph.toarray()[firsts, drawn.others].any()
    free = (60 * 59 - graph.nnz) // 2
    keys = np.unique(firsts * 60 + drawn.others)
    assert len(keys) == 2 * free  # every free pair was hit: 15,000 draws of about 885
    counts = np.bincount(np.searchsorted(keys, firsts * 60 + drawn.others))
    assert counts.std() < 2 * np.sqrt(15_000 / free)  # uniform: Poisson's spread
    with working_threads(2):
        again = pairs.sample_others(15_000, key=3)
    np.testing.assert_array_equal(drawn.others, again.others)
    assert not np.array_equal(drawn.others, pairs.sample_others(15_000, key=4).others)
    first = Pairs.from_graph(graph).sample_others(10, key=3)
    at = np.flatnonzero((drawn.pairs >= 0) & (drawn.pairs < 10))
    np.testing.assert_array_equal(np.sort(drawn.others[at]), np.sort(first.others[first.pairs >= 0]))


def test_drawn_pairs_of_a_nearly_complete_graph():
    whole = sp.csr_array(np.ones((20, 20)) - np.eye(20))
    with pytest.raises(ValueError, match="every two of the 20 nodes"):
        LocalContrastiveLoss(negatives=1)(data(20), whole, key=0)
    almost = whole.tolil()
    almost[4, 9] = almost[9, 4] = 0
    drawn = Pairs.from_graph(almost.tocsr()).sample_others(50, key=1)
    assert set(drawn.others) == {4, 9}
    with pytest.raises(ValueError, match="every two of the 1 nodes"):
        Pairs([0], [0]).sample_others(1, key=0)


def test_drawn_pairs_take_part_in_the_loss():
    z, graph = data(), random_graph()
    loss_fn = LocalContrastiveLoss(3.0, "none", negatives=2)
    loss, grad = loss_fn(z, graph, key=7)
    edges = graph.nnz // 2
    assert loss.shape == (3 * edges,)
    low, high = sp.triu(graph).nonzero()
    np.testing.assert_allclose(loss[:edges], reference(z, low, high, np.ones(edges), 3.0), rtol=1e-13)
    assert (loss[edges:] > 0).any()
    assert nn.check_gradient(lambda x: loss_fn(x, graph, key=7), [z]) < 1e-6
    with pytest.raises(ValueError, match="call with key="):
        loss_fn(z, graph)


@DTYPES
def test_bits_do_not_depend_on_the_number_of_threads(dtype):
    rng = np.random.default_rng(0)
    n = 5000
    z = data(n, 24, dtype=dtype)
    left, right = rng.integers(0, n, (2, 20_000))
    labels = rng.integers(0, 2, 20_000)
    results = []
    for threads in (1, 2, 3):
        with working_threads(threads):
            results.append(LocalContrastiveLoss(7.0, negatives=1)(z, (left, right), labels, key=0))
    for loss, grad in results[1:]:
        assert loss == results[0][0]
        np.testing.assert_array_equal(grad, results[0][1])


def test_inputs_of_any_layout_and_never_changed():
    z, (left, right, labels) = data(), pair_lists()
    expected = LocalContrastiveLoss(3.0)(z, (left, right), labels)
    for change in (np.asfortranarray, lambda x: x.astype(">f8"), lambda x: x.tolist()):
        got = LocalContrastiveLoss(3.0)(change(z), (left.astype(np.int32), right.tolist()), labels.astype(bool))
        assert got[0] == pytest.approx(expected[0], rel=1e-13)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-12)
    for x in (z, left, right, labels):
        x.flags.writeable = False
    assert LocalContrastiveLoss(3.0)(z, (left, right), labels)[0] == expected[0]


def test_wide_indices_give_the_same():
    graph = random_graph()
    wide = sp.csr_array((graph.data, graph.indices.astype(np.int64), graph.indptr.astype(np.int64)), graph.shape)
    loss_fn = LocalContrastiveLoss(3.0, negatives=1)
    np.testing.assert_array_equal(loss_fn(data(), graph, key=1)[1], loss_fn(data(), wide, key=1)[1])


def test_bad_input():
    z = data()
    for call, kind, message in [
        (lambda: LocalContrastiveLoss(0), ValueError, "margin must be greater than 0"),
        (lambda: LocalContrastiveLoss(reduction="max"), ValueError, "reduction must be one of"),
        (lambda: LocalContrastiveLoss(negatives=-1), ValueError, "negatives must be at least 0"),
        (lambda: LocalContrastiveLoss()(z, ([0, 1], [1])), ValueError, "of one length, got 2 and 1"),
        (lambda: LocalContrastiveLoss()(z, ([0], [12])), IndexError, r"right must lie in 0\.\.11, got 12"),
        (lambda: LocalContrastiveLoss()(z, ([-1], [1])), IndexError, "left must lie in"),
        (lambda: LocalContrastiveLoss()(z, ([0.5], [1])), TypeError, "left must be integers"),
        (lambda: LocalContrastiveLoss()(z, ([0], [1]), [2]), ValueError, "labels must be 1 for similar"),
        (lambda: LocalContrastiveLoss()(z, ([0], [1]), [1, 0]), ValueError, "one entry for each of the 1 pairs"),
        (lambda: LocalContrastiveLoss()(z, random_graph(), [1]), ValueError, r"labels belong to pairs given as \(left"),
        (lambda: LocalContrastiveLoss()(z, random_graph(13)), ValueError, "13 nodes, but there are embeddings of 12"),
        (lambda: LocalContrastiveLoss()(z, "edges"), TypeError, "pairs must be a sparse graph"),
        (lambda: LocalContrastiveLoss()(z * np.nan, ([0, 0], [1, 2]), [0, 1]), ValueError, "embeddings contains inf"),
        (lambda: LocalContrastiveLoss()(z[0], ([0, 0], [1, 2]), [0, 1]), ValueError, "must be 2-dimensional"),
        (lambda: LocalContrastiveLoss(negatives=1)(z, random_graph(), key="a"), TypeError, "key must be an integer"),
        (lambda: Pairs([0], [1]).sample_others(0, 1), ValueError, "count must be at least 1"),
    ]:
        with pytest.raises(kind, match=message):
            call()


def test_repr():
    assert repr(LocalContrastiveLoss(2.0)) == ("LocalContrastiveLoss(margin=2.0, reduction='mean', negatives=0, "
                                               "normalize=False)")
    assert repr(Pairs([0, 1], [1, 2], [1, 0])) == "Pairs(2 pairs of 3 nodes, 1 similar)"


# -- kernels -----------------------------------------------------------------------------------------------------------

@LEVELS
@DTYPES
@pytest.mark.parametrize("d", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
def test_pair_kernels(level, dtype, d):
    kernels = _kernels.at_level(level, "pairs")
    z = (data(12, d, dtype=dtype) / np.sqrt(d)).astype(dtype)
    left, right, labels = pair_lists()
    pairs = Pairs(left, right, labels, n_nodes=12)
    weight = np.random.default_rng(1).uniform(0.5, 2, 30).astype(dtype)
    inputs = (pairs.indptr, pairs.others, pairs.pairs, z, pairs.similar, weight)
    for x in inputs:
        x.flags.writeable = False
    x = z.astype(np.float64)
    difference, product = x[left] - x[right], (x[left] * x[right]).sum(axis=1)
    distance = np.linalg.norm(difference, axis=1)
    gap = np.maximum(1.5 - distance, 0)
    sign = np.where(labels, -1, 1)
    rtol, atol = (1e-12, 1e-14) if dtype == np.float64 else (1e-4, 2e-5)

    loss, grad = np.empty(30), np.zeros_like(z)
    kernels.margin_grad(*inputs, 1.5, 0, 5, loss, grad)
    kernels.margin_grad(*inputs, 1.5, 5, 12, loss, grad)
    np.testing.assert_allclose(loss, np.where(labels, distance**2, gap**2), rtol=rtol, atol=atol)
    by_pair = (weight * np.where(labels, 2, -2 * gap / distance))[:, None] * difference
    expected = np.zeros((12, d))
    np.add.at(expected, left, by_pair)
    np.subtract.at(expected, right, by_pair)
    np.testing.assert_allclose(grad, expected, rtol=rtol, atol=atol)

    grad[:] = 0
    kernels.logistic_grad(*inputs, 0, 12, loss, grad)
    np.testing.assert_allclose(loss, np.logaddexp(0, sign * product), rtol=rtol, atol=atol)
    by_product = (weight * sign / (1 + np.exp(-sign * product)))[:, None]
    expected = np.zeros((12, d))
    np.add.at(expected, left, by_product * x[right])
    np.add.at(expected, right, by_product * x[left])
    np.testing.assert_allclose(grad, expected, rtol=rtol, atol=atol)


def test_rows_of_pairs_are_sorted_and_complete():
    left, right, _ = pair_lists(12, 40)
    pairs = Pairs(left, right, n_nodes=14)
    assert pairs.indptr[-1] == 80 and pairs.indptr[12] == 80
    for i in range(14):
        row = slice(pairs.indptr[i], pairs.indptr[i + 1])
        assert (np.diff(pairs.others[row]) >= 0).all()
        for other, p in zip(pairs.others[row], pairs.pairs[row], strict=True):
            assert (left[p], right[p]) == (i, other) if p >= 0 else (left[~p], right[~p]) == (other, i)
