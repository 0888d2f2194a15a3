"""InfoNCE by index, with several positives, debiased, with hard negatives; both directions from one product."""
import tracemalloc

import numpy as np
import pytest

from gnncy import _kernels, nn
from gnncy._threads import working_threads
from gnncy.losses import InfoNCELoss, info_nce, infonce

N, D, K, T = 6, 5, 4, 9
WEIGHTINGS = [(0.0, 0.0), (0.1, 0.0), (0.0, 1.0), (0.05, 0.7)]


def data(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def ids(*shape, seed=0, low=0):
    return np.random.default_rng([seed, *shape]).integers(low, T, shape)


def unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(norm < 1e-12, 0, x / np.maximum(norm, 1e-12))


def one_positive(s_positive, s_negative, temperature, prior=0.0, hardness=0.0):
    """One anchor's loss by the definition, plainly."""
    x, p = np.asarray(s_negative) / temperature, s_positive / temperature
    count = len(x)
    if count == 0:
        return 0.0
    shift = max(p, x.max())
    h = np.exp(hardness * (x - x.max()))
    mean = (h / h.sum() * np.exp(x - shift)).sum()
    others = count * (mean - prior * np.exp(p - shift)) / (1 - prior)
    if prior:
        others = max(others, count * np.exp(-1 / temperature - shift))
    return shift + np.log(np.exp(p - shift) + others) - p


def several_positives(s_positive, s_negative, temperature):
    x = np.concatenate([s_positive, s_negative]) / temperature
    return x.max() + np.log(np.exp(x - x.max()).sum()) - np.mean(s_positive) / temperature


# -- by index ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("prior, hardness", WEIGHTINGS)
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("positives", ["array", "index"])
def test_listed_negatives(positives, shared, temperature, prior, hardness):
    a, table = data(N, D), data(T, D, seed=1)
    negatives = ids(K, low=-1) if shared else ids(N, K, low=-1)
    p = data(N, D, seed=2) if positives == "array" else ids(N, seed=3)
    loss_fn = InfoNCELoss(temperature, "none", prior=prior, hardness=hardness)
    loss, grads = loss_fn(a, p, negatives, table=table)
    u, t = unit(a), unit(table)
    v = unit(p) if positives == "array" else t[p]
    lists = np.broadcast_to(negatives, (N, K))
    expected = [one_positive(u[i] @ v[i], t[lists[i][lists[i] >= 0]] @ u[i], temperature, prior, hardness)
                for i in range(N)]
    np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-12)
    assert grads.negatives is None and grads.table.shape == table.shape
    assert (grads.positives is None) == (positives == "index")
    step = 1e-5 if temperature < 0.1 else 1e-4
    if positives == "array":
        error = nn.check_gradient(lambda a, p, t: loss_fn(a, p, negatives, table=t), [a, p, table], step=step)
    else:
        error = nn.check_gradient(lambda a, t: loss_fn(a, p, negatives, table=t), [a, table], step=step)
    assert error < 1e-6


def test_listed_negatives_are_the_same_as_their_rows():
    a, p, table, negatives = data(N, D), data(N, D, seed=2), data(T, D, seed=1), ids(N, K)
    out = np.random.default_rng(0).random((N, K)) < 0.3
    loss, grads = info_nce(a, p, negatives, table=table, false_negatives=out)
    plain, own = info_nce(a, p, table[negatives], false_negatives=out)
    assert loss == pytest.approx(plain, rel=1e-12)
    np.testing.assert_allclose(grads.anchors, own.anchors, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(grads.positives, own.positives, rtol=1e-11, atol=1e-15)
    scattered = np.zeros_like(table)
    np.add.at(scattered, negatives, own.negatives)
    np.testing.assert_allclose(grads.table, scattered, rtol=1e-10, atol=1e-15)
    narrow = info_nce(a.astype(np.float32), p.astype(np.float32), negatives, table=table.astype(np.float32),
                      false_negatives=out)
    assert narrow[0] == pytest.approx(plain, rel=1e-5) and narrow[1].table.dtype == np.float32


def test_duplicate_indices_sum_and_unnamed_rows_have_gradient_zero():
    a, table = data(2, D), data(T, D, seed=1)
    negatives = np.array([[3, 3, 3, -1], [3, 5, -1, -1]])
    loss_fn = InfoNCELoss(0.3)
    grads = loss_fn(a, np.array([1, 1]), negatives, table=table)[1]
    assert set(np.flatnonzero(grads.table.any(axis=1))) == {1, 3, 5}
    error = nn.check_gradient(lambda a, t: loss_fn(a, np.array([1, 1]), negatives, table=t), [a, table])
    assert error < 1e-6
    assert nn.check_gradient(lambda t: loss_fn(a[:1], np.array([0]), [[1]], table=t), [table]) < 1e-6  # one negative


def test_zero_rows_of_a_table():
    table = data(T, D)
    table[3] = 0
    loss, grads = info_nce(data(N, D), ids(N), np.full((N, 2), 3), table=table)
    assert np.isfinite(loss) and not grads.table[3].any() and grads.table.any()


def test_all_negatives_left_out_is_loss_zero():
    for prior, hardness in WEIGHTINGS:
        loss, grads = info_nce(data(N, D), data(N, D, seed=1), np.full((N, 3), -1), table=data(T, D, seed=2),
                               prior=prior, hardness=hardness)
        assert loss == 0 and not any(g.any() for g in grads if g is not None)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_several_positives_by_index(temperature):
    a, table = data(N, D), data(T, D, seed=1)
    positives, negatives = ids(N, 3, seed=4, low=-1), ids(N, K, low=-1)
    positives[:, 0] = np.maximum(positives[:, 0], 0)
    positives[2, 1:] = -1
    loss_fn = InfoNCELoss(temperature, "none")
    loss, grads = loss_fn(a, positives, negatives, table=table)
    u, t = unit(a), unit(table)
    expected = [several_positives(t[p[p >= 0]] @ u[i], t[k[k >= 0]] @ u[i], temperature)
                for i, (p, k) in enumerate(zip(positives, negatives, strict=True))]
    np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-12)
    step = 1e-5 if temperature < 0.1 else 1e-4
    assert nn.check_gradient(lambda a, t: loss_fn(a, positives, negatives, table=t), [a, table], step=step) < 1e-6
    alone, _ = loss_fn(a, positives[:, 0], negatives, table=table)
    assert loss[2] == pytest.approx(alone[2], rel=1e-12)


# -- several positives of a batch --------------------------------------------------------------------------------------

def labels_mask(labels=(0, 1, 0, 2, 1, 0)):
    return np.equal.outer(labels, labels)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_positive_mask(symmetric, temperature):
    a, p = data(N, D), data(N, D, seed=1)
    mask, out = labels_mask(), np.random.default_rng(1).random((N, N)) < 0.3
    loss_fn = InfoNCELoss(temperature, "none", symmetric)
    loss, _ = loss_fn(a, p, positive_mask=mask & ~np.eye(N, dtype=bool), false_negatives=out)

    def one_way(u, v, out):
        return np.array([several_positives(v[mask[i]] @ u[i], v[~mask[i] & ~out[i]] @ u[i], temperature)
                         for i in range(N)])

    u, v = unit(a), unit(p)
    expected = (one_way(u, v, out) + one_way(v, u, out.T)) / 2 if symmetric else one_way(u, v, out)
    np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-12)
    step = 1e-5 if temperature < 0.1 else 1e-4
    error = nn.check_gradient(lambda a, p: loss_fn(a, p, positive_mask=mask, false_negatives=out), [a, p], step=step)
    assert error < 1e-6


def test_a_mask_of_the_diagonal_is_one_positive():
    a, p = data(N, D), data(N, D, seed=1)
    loss, grads = info_nce(a, p, positive_mask=np.eye(N, dtype=bool))
    plain, others = info_nce(a, p)
    assert loss == pytest.approx(plain, rel=1e-12)
    np.testing.assert_allclose(grads.anchors, others.anchors, rtol=1e-11, atol=1e-15)
    everything, _ = info_nce(a, a, positive_mask=np.ones((N, N), bool), temperature=10.0)
    assert everything == pytest.approx(np.log(N), abs=0.02)


# -- debiased, hard negatives ------------------------------------------------------------------------------------------

def batch(form):
    arrays = [data(N, D), data(N, D, seed=1)]
    if form in ("shared", "own"):
        arrays.append(data(K, D, seed=2) if form == "shared" else data(N, K, D, seed=2))
    return arrays


def weighted_reference(form, arrays, out, temperature, prior, hardness):
    u, v, *rest = map(unit, arrays)
    if form == "symmetric":
        sides = [weighted_reference("in_batch", [x, y], o, temperature, prior, hardness)
                 for x, y, o in ((u, v, out), (v, u, out.T))]
        return (sides[0] + sides[1]) / 2
    losses = []
    for i in range(N):
        candidates = v if not rest else rest[0] if rest[0].ndim == 2 else rest[0][i]
        keep = ~out[i] & (np.arange(N) != i) if not rest else ~out[i]
        losses.append(one_positive(u[i] @ v[i], candidates[keep] @ u[i], temperature, prior, hardness))
    return np.array(losses)


@pytest.mark.parametrize("prior, hardness", WEIGHTINGS[1:])
@pytest.mark.parametrize("temperature", [0.01, 0.3])
@pytest.mark.parametrize("form", ["in_batch", "symmetric", "shared", "own"])
def test_debiased_and_hard_negatives(form, temperature, prior, hardness):
    arrays = batch(form)
    out = np.random.default_rng(3).random((N, N if len(arrays) == 2 else K)) < 0.3
    loss_fn = InfoNCELoss(temperature, "none", form == "symmetric", prior=prior, hardness=hardness)
    loss, _ = loss_fn(*arrays, false_negatives=out)
    np.testing.assert_allclose(loss, weighted_reference(form, arrays, out, temperature, prior, hardness), rtol=1e-9,
                               atol=1e-12)
    narrow, _ = loss_fn(*(x.astype(np.float32) for x in arrays), false_negatives=out)
    np.testing.assert_allclose(narrow, loss, rtol=1e-3, atol=1e-4 / temperature)
    step = 1e-5 if temperature < 0.1 else 1e-4
    assert nn.check_gradient(lambda *x: loss_fn(*x, false_negatives=out), arrays, step=step) < 1e-6


def test_where_the_bound_holds_the_negatives_have_no_gradient():
    a = np.array([[1.0, 0.0]])
    p, negatives = np.array([[1.0, 0.1]]), np.array([[-1.0, 0.2], [-1.0, -0.3]])
    loss, grads = info_nce(a, p, negatives, prior=0.5, temperature=0.5)
    cosine = 1 / np.sqrt(1.01)
    assert loss == pytest.approx(np.log1p(2 * np.exp(-2 - 2 * cosine)), rel=1e-9)
    assert not grads.negatives.any() and grads.positives.any()
    assert nn.check_gradient(lambda *x: info_nce(*x, prior=0.5, temperature=0.5), [a, p, negatives]) < 1e-6


def test_hard_negatives_get_more_of_the_gradient():
    a, p, negatives = data(1, D), data(1, D, seed=1), data(8, D, seed=2)
    cosines = unit(negatives) @ unit(a)[0]
    sizes = []
    for hardness in (0.0, 1.0, 3.0):
        grads = info_nce(a, p, negatives, hardness=hardness)[1]
        share = np.linalg.norm(grads.negatives, axis=1)[cosines.argmax()] / np.linalg.norm(grads.negatives)
        sizes.append(share)
    assert sizes[0] < sizes[1] < sizes[2]


# -- both directions ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_both_directions_from_one_product_are_two_passes(masked, temperature, dtype, monkeypatch):
    a, p = data(300, 8, dtype=dtype), data(300, 8, seed=1, dtype=dtype)
    p[:100] = a[:100] + 0.1 * p[:100]
    p[7] = a[9] = 0
    out = np.random.default_rng(0).random((300, 300)) < 0.2 if masked else None
    call = dict(temperature=temperature, symmetric=True, reduction="none", false_negatives=out)
    results = []
    for mild, kept in ((1e9, 0), (infonce._MILD, infonce._KEPT), (infonce._MILD, 0)):
        monkeypatch.setattr(infonce, "_MILD", mild)
        monkeypatch.setattr(infonce, "_KEPT", kept)
        monkeypatch.setattr(infonce, "_BLOCK", 256)
        results.append(info_nce(a, p, **call))
    rtol = 1e-10 if dtype == np.float64 else 1e-4
    for loss, grads in results[1:]:
        np.testing.assert_allclose(loss, results[0][0], rtol=rtol, atol=rtol)
        for grad, other in zip(grads[:2], results[0][1][:2], strict=True):
            np.testing.assert_allclose(grad, other, rtol=0, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize("kept", [0, 1 << 24])
def test_bits_of_both_directions_do_not_depend_on_threads(kept, monkeypatch):
    monkeypatch.setattr(infonce, "_KEPT", kept)
    a, p = data(1100, 16, dtype=np.float32), data(1100, 16, seed=1, dtype=np.float32)
    results = []
    for threads in (1, 2):
        with working_threads(threads):
            results.append(info_nce(a, p, symmetric=True))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1].anchors, results[1][1].anchors)
    np.testing.assert_array_equal(results[0][1].positives, results[1][1].positives)


def test_bits_of_listed_negatives_do_not_depend_on_threads():
    a, table = data(400, 16, dtype=np.float32), data(3000, 16, seed=1, dtype=np.float32)
    chosen = np.random.default_rng(0).integers(0, 3000, (400, 20))
    results = []
    for threads in (1, 2):
        with working_threads(threads):
            results.append(info_nce(a, chosen[:, 0], chosen[:, 1:], table=table))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1].table, results[1][1].table)


def test_memory_of_both_directions_does_not_grow_with_the_square_of_the_batch():
    n, d = 8192, 4
    a, p = data(n, d, dtype=np.float32), data(n, d, seed=1, dtype=np.float32)
    tracemalloc.start()
    try:
        info_nce(a, p, symmetric=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6 < 4 * n * n / 5


# -- the rest ----------------------------------------------------------------------------------------------------------

def test_s4_2_the_tape_computes_the_same_as_the_arrays():
    """S4-2: the autograd part of the reference does not compile."""
    a, p, table, negatives = data(N, D), data(N, D, seed=2), data(T, D, seed=1), ids(N, K)
    tensors = [nn.Tensor(x, requires_grad=True) for x in (a, p, table)]
    loss, grads = InfoNCELoss(0.2)(a, p, negatives, table=table)
    out = InfoNCELoss(0.2)(tensors[0], tensors[1], negatives, table=tensors[2])
    out.backward()
    assert out.item() == loss
    for tensor, grad in zip(tensors, (grads.anchors, grads.positives, grads.table), strict=True):
        np.testing.assert_array_equal(tensor.grad, grad)


def test_s4_7_every_row_of_a_table_is_normalised_once(monkeypatch):
    """S4-7: the reference computes norms again for every pair, in both passes."""
    seen = []
    original = infonce.rows.normalise

    class Counting:
        normalise_grad = staticmethod(infonce.rows.normalise_grad)

        @staticmethod
        def normalise(x, unit, norms):
            seen.append(len(x))
            original(x, unit, norms)

    monkeypatch.setattr(infonce, "rows", Counting)
    info_nce(data(N, D), np.zeros(N, int), np.tile([1, 2, 2], (N, 1)), table=data(T, D))
    assert sum(seen) == N + 3  # anchors, and the rows that are named


def test_bad_input():
    a, p, table = data(N, D), data(N, D, seed=1), data(T, D, seed=2)
    for call, kind, message in [
        (lambda: info_nce(a, p, table=table), ValueError, "a table needs negatives by index"),
        (lambda: info_nce(a, p, p, table=table), ValueError, r"negatives must be integers.*\(k,\) or \(n, k\)"),
        (lambda: info_nce(a, p, [[9]] * N, table=table), IndexError, r"0\.\.8, or be -1 for none, got 9"),
        (lambda: info_nce(a, p, [[-2]] * N, table=table), IndexError, "got -2"),
        (lambda: info_nce(a, p, [[1]], table=table), ValueError, "a row for each of the 6 anchors, got 1"),
        (lambda: info_nce(a, [1, 2], [1], table=table), ValueError, "positives must have a row for each"),
        (lambda: info_nce(a, [1, 2, 3, -1, 1, 1], [1], table=table), ValueError, "anchor 3 has no positive"),
        (lambda: info_nce(a, p, [1], table=table[:, :2]), ValueError, "table must have 5 columns"),
        (lambda: info_nce(a, p, [1], table=table * np.nan), ValueError, "table contains inf or nan"),
        (lambda: info_nce(a, p, [1], table=table, symmetric=True), ValueError, "leave negatives out"),
        (lambda: info_nce(a, p, a, positive_mask=labels_mask()), ValueError, "positive_mask needs in-batch"),
        (lambda: info_nce(a, p, positive_mask=labels_mask()[:3]), ValueError, "positive_mask must be boolean"),
        (lambda: info_nce(a, p, positive_mask=labels_mask(), prior=0.1), ValueError, "one positive of each anchor"),
        (lambda: info_nce(a, ids(N, 2), [1], table=table, hardness=1), ValueError, "one positive of each anchor"),
        (lambda: info_nce(a, p, prior=1.0), ValueError, "prior must be below 1"),
        (lambda: InfoNCELoss(prior=-0.1), ValueError, "prior must be at least 0"),
        (lambda: InfoNCELoss(hardness=-1), ValueError, "hardness must be at least 0"),
    ]:
        with pytest.raises(kind, match=message):
            call()


def test_repr():
    assert "prior=0.1, hardness=1.0" in repr(InfoNCELoss(prior=0.1, hardness=1))


@pytest.fixture(params=_kernels.AVAILABLE)
def kernels(request):
    return _kernels.at_level(request.param, "infonce")


@pytest.mark.parametrize("k", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_row_kernels(kernels, k, dtype):
    rng = np.random.default_rng(k)
    logits = rng.uniform(-2, 2, (3, k)).astype(dtype)
    rtol, atol = (1e-11, 1e-13) if dtype == np.float64 else (1e-5, 1e-5)
    e, row, column = logits.copy(), np.empty(3, dtype), np.empty(k, dtype)
    kernels.exponentials(e, 1.0, row, column)
    expected = np.exp(logits.astype(np.float64) - 1)
    for got, want in ((e, expected), (row, expected.sum(axis=1)), (column, expected.sum(axis=0))):
        np.testing.assert_allclose(got, want, rtol=rtol)
    left, right = rng.random(3).astype(dtype), rng.random(k).astype(dtype)
    left.flags.writeable = right.flags.writeable = False
    kernels.scale_sides(e, left, right)
    np.testing.assert_allclose(e, expected * (left[:, None] + right), rtol=rtol)

    chosen = np.zeros((3, k), np.uint8)
    chosen[0, 0] = chosen[1, -1] = chosen[2, ::2] = 1
    weight, loss = np.array([1, 0.5, 2], dtype), np.empty(3)
    grad = logits.copy()
    chosen.flags.writeable = weight.flags.writeable = False
    kernels.positives_grad(grad, chosen, weight, 0.5, loss)
    x = logits.astype(np.float64)
    share = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    target = chosen / chosen.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(loss, np.log(np.exp(x).sum(axis=1)) - (x * target).sum(axis=1), rtol=rtol, atol=atol)
    np.testing.assert_allclose(grad, (share - target) * weight[:, None] / 0.5, rtol=rtol, atol=atol)


@pytest.mark.parametrize("d", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_listed_kernel(kernels, d, dtype):
    u, table, chosen = unit(data(3, d)).astype(dtype), unit(data(T, d, seed=1)).astype(dtype), ids(3, 5, low=-1)
    weight, is_positive = np.array([1, 0.5, 2], dtype), np.zeros(5, np.uint8)
    positive = np.array([0.3, -0.5, 0.9], dtype)
    for x in (u, table, chosen, weight, is_positive, positive):
        x.flags.writeable = False
    loss, positive_grad = np.empty(3), np.empty(3, dtype)
    by_u, by_cosine = np.empty_like(u), np.empty((3, 5), dtype)
    kernels.listed_grad(u, table, chosen, is_positive, 0, positive, weight, 0.5, 0, 0, loss, positive_grad, by_u,
                        by_cosine)
    cosine = np.einsum("ij,ikj->ik", u.astype(np.float64), table[chosen])
    e = np.where(chosen >= 0, np.exp(cosine / 0.5), 0)
    total = e.sum(axis=1) + np.exp(positive.astype(np.float64))
    rtol, atol = (1e-11, 1e-13) if dtype == np.float64 else (1e-5, 1e-5)
    np.testing.assert_allclose(loss, np.log(total) - positive, rtol=rtol, atol=atol)
    expected = e / total[:, None] * weight[:, None] / 0.5
    np.testing.assert_allclose(by_cosine, expected, rtol=rtol, atol=atol)
    np.testing.assert_allclose(by_u, np.einsum("ik,ikj->ij", expected, table[chosen]), rtol=rtol, atol=atol)
    np.testing.assert_allclose(positive_grad, -expected.sum(axis=1), rtol=rtol, atol=atol)
