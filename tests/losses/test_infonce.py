"""InfoNCE: against a plain formula, central differences, its bounds, and every fault of the reference."""
import tracemalloc

import numpy as np
import pytest

from gnncy import _kernels, nn
from gnncy._memory import aligned_empty
from gnncy._threads import working_threads
from gnncy.losses import InfoNCELoss, info_nce, infonce

FORMS = ["in_batch", "symmetric", "shared", "own"]


def data(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def arguments(form, n=6, d=5, k=4, dtype=np.float64, seed=0):
    arrays = [data(n, d, seed=seed, dtype=dtype), data(n, d, seed=seed + 1, dtype=dtype)]
    if form == "shared":
        arrays.append(data(k, d, seed=seed + 2, dtype=dtype))
    if form == "own":
        arrays.append(data(n, k, d, seed=seed + 2, dtype=dtype))
    return arrays


def options(form):
    return {"symmetric": True} if form == "symmetric" else {}


def unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(norm < 1e-12, 0, x / np.maximum(norm, 1e-12))


def reference(anchors, positives, negatives=None, *, temperature, symmetric=False, false_negatives=None):
    """Each anchor's loss by the formula, in float64, with nothing clever."""
    u, v = unit(np.asarray(anchors, np.float64)), unit(np.asarray(positives, np.float64))
    if symmetric:
        flipped = None if false_negatives is None else np.asarray(false_negatives).T
        return (reference(u, v, temperature=temperature, false_negatives=false_negatives)
                + reference(v, u, temperature=temperature, false_negatives=flipped)) / 2
    losses = []
    for i in range(len(u)):
        candidates = v if negatives is None else unit(np.asarray(negatives, np.float64))
        candidates = candidates[i] if candidates.ndim == 3 else candidates
        keep = np.ones(len(candidates), bool) if false_negatives is None else ~false_negatives[i]
        if negatives is None:
            keep = keep & (np.arange(len(v)) != i)
        logits = np.concatenate([[u[i] @ v[i]], candidates[keep] @ u[i]]) / temperature
        top = logits.max()
        losses.append(top + np.log(np.exp(logits - top).sum()) - logits[0])
    return np.array(losses)


def mask(form, n=6, k=4):
    return np.random.default_rng(9).random((n, n if form in ("in_batch", "symmetric") else k)) < 0.4


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.5, 10.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_loss_is_the_formula(form, masked, temperature):
    """S4-1: the reference panics on its first call."""
    arrays = arguments(form)
    false_negatives = mask(form) if masked else None
    expected = reference(*arrays, temperature=temperature, false_negatives=false_negatives, **options(form))
    loss, _ = info_nce(*arrays, temperature=temperature, reduction="none", false_negatives=false_negatives,
                       **options(form))
    np.testing.assert_allclose(loss, expected, rtol=1e-11, atol=1e-13)
    narrow, grads = info_nce(*(a.astype(np.float32) for a in arrays), temperature=temperature, reduction="none",
                             false_negatives=false_negatives, **options(form))
    assert narrow.dtype == np.float64 and all(g.dtype == np.float32 for g in grads if g is not None)
    np.testing.assert_allclose(narrow, expected, rtol=1e-4, atol=3e-6 / temperature)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_against_central_differences(form, reduction, masked, temperature):
    arrays = arguments(form)
    loss_fn = InfoNCELoss(temperature, reduction, **options(form))
    false_negatives = mask(form) if masked else None
    step = 1e-5 if temperature < 0.1 else 1e-4
    assert nn.check_gradient(lambda *x: loss_fn(*x, false_negatives=false_negatives), arrays, step=step) < 1e-6


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 3, 1), (2, 1, 1), (3, 8, 1), (2, 17, 5)], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_for_small_sizes(form, sizes):
    # One anchor, one negative, one dimension.
    arrays = arguments(form, *sizes)
    error = nn.check_gradient(lambda *x: info_nce(*x, temperature=0.3, **options(form)), arrays)
    assert error < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_arrays_give_the_same_as_the_tape_and_reductions_scale_the_gradients(form):
    """S4-3: the reference's mean divides the loss and not the gradients. S4-4: its none returns the sum."""
    arrays = arguments(form)
    each, by_none = info_nce(*arrays, reduction="none", **options(form))
    total, by_sum = info_nce(*arrays, reduction="sum", **options(form))
    mean, by_mean = info_nce(*arrays, reduction="mean", **options(form))
    assert each.shape == (6,) and isinstance(total, float)
    assert total == pytest.approx(each.sum()) and mean == pytest.approx(total / 6)
    tensors = [nn.Tensor(a, requires_grad=True) for a in arrays]
    loss = info_nce(*tensors, **options(form))
    assert loss.item() == mean
    loss.backward()
    for t, a, b, c in zip(tensors, by_none, by_sum, by_mean, strict=False):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(c, b / 6, rtol=1e-12, atol=1e-15)
        np.testing.assert_array_equal(t.grad, c)
    weights = np.arange(6.0)
    tensors = [nn.Tensor(a, requires_grad=True) for a in arrays]
    (info_nce(*tensors, reduction="none", **options(form)) * weights).sum().backward()
    scaled = [nn.Tensor(a, requires_grad=True) for a in arrays]
    (3.0 * info_nce(*scaled, **options(form))).backward()
    np.testing.assert_allclose(scaled[0].grad, 3 * by_mean.anchors)
    assert not np.allclose(tensors[0].grad, by_sum.anchors)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_rows_have_cosine_and_gradient_zero(form, dtype):
    """S4-6: zero vectors give NaN gradients in the reference."""
    arrays = arguments(form, dtype=dtype)
    arrays[0][1] = 0
    arrays[1][2] = 0
    if len(arrays) == 3:
        arrays[2][..., 3, :] = 0
    loss, grads = info_nce(*arrays, reduction="none", **options(form))
    np.testing.assert_allclose(loss, reference(*arrays, temperature=0.5, **options(form)), rtol=1e-5)
    assert not grads.anchors[1].any() and not grads.positives[2].any()
    assert np.isfinite(grads.anchors).all() and np.isfinite(grads.positives).all() and grads.anchors[0].any()
    if len(arrays) == 3:
        assert not grads.negatives[..., 3, :].any() and np.isfinite(grads.negatives).all()


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("form", FORMS)
def test_bounds_and_invariances(form, temperature):
    n, k = 6, 4
    arrays = arguments(form, n=n, k=k)
    candidates = n if len(arrays) == 2 else k + 1
    call = dict(temperature=temperature, reduction="none", **options(form))
    loss, grads = info_nce(*arrays, **call)
    assert (loss >= 0).all() and (loss <= np.log(candidates) + 2 / temperature).all()
    for array, grad in zip(arrays, grads, strict=False):  # moving along a row changes no cosine
        assert np.abs((array * grad).sum(axis=-1)).max() < 1e-12 / temperature
    scaled = [a * np.random.default_rng(5).uniform(1e-3, 1e3, (*a.shape[:-1], 1)) for a in arrays]
    np.testing.assert_allclose(info_nce(*scaled, **call)[0], loss, rtol=1e-9)
    same = [np.broadcast_to(arrays[0][0], a.shape) for a in arrays]
    np.testing.assert_allclose(info_nce(*same, **call)[0], np.log(candidates), rtol=1e-10)
    order = np.random.default_rng(1).permutation(n)
    shuffled = [a if a.ndim == 2 and i == 2 else a[order] for i, a in enumerate(arrays)]
    np.testing.assert_allclose(info_nce(*shuffled, **call)[0], loss[order], rtol=1e-9)


def test_small_temperature_does_not_underflow():
    """S4-5: cosines 1.85 apart at temperature 0.01: 185, where the reference has infinity."""
    a = np.array([[1.0, 0.0]], np.float32)
    p = np.array([[-0.85, np.sqrt(1 - 0.85**2)]], np.float32)
    for negatives in (a, a[None]):
        loss, grads = info_nce(a, p, negatives, temperature=0.01)
        assert loss == pytest.approx(185, rel=1e-5)
        assert np.isfinite(grads.positives).all() and grads.positives.any()


@pytest.mark.parametrize("form", ["in_batch", "shared", "own"])
def test_nearly_satisfied_anchor_keeps_its_digits_in_float32(form):
    # The positive is nearly all of the softmax: log(1 + r) and its gradient -r/(1 + r) must not round to 0.
    a = np.eye(2, dtype=np.float32)
    negatives = {"in_batch": (), "shared": (-a[:1],), "own": (a[::-1, None, :].copy(),)}[form]
    anchors, positives = (a, a) if form != "shared" else (a[:1], a[:1])
    loss, grads = info_nce(anchors, positives, *negatives, temperature=0.05, reduction="none")
    gap = 40 if form == "shared" else 20
    np.testing.assert_allclose(loss, np.log1p(np.exp(-gap)), rtol=1e-5)
    wide = info_nce(*(x.astype(np.float64) for x in (anchors, positives, *negatives)), temperature=0.05,
                    reduction="none")[1]
    np.testing.assert_allclose(grads.anchors, wide.anchors, rtol=1e-5, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_everything_left_out_is_loss_zero(form):
    arrays = arguments(form)
    loss, grads = info_nce(*arrays, false_negatives=np.ones_like(mask(form)), **options(form))
    assert loss == 0
    assert not any(g.any() for g in grads if g is not None)


def test_shared_negatives_are_the_same_as_a_copy_for_each_anchor():
    a, p, shared = arguments("shared")
    loss, grads = info_nce(a, p, shared)
    again, own = info_nce(a, p, np.repeat(shared[None], 6, axis=0))
    assert loss == pytest.approx(again, rel=1e-12)
    np.testing.assert_allclose(grads.anchors, own.anchors, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(grads.negatives, own.negatives.sum(axis=0), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("form", ["in_batch", "symmetric", "shared"])
def test_blocks_of_anchors_change_nothing(form, monkeypatch):
    """S4-7: no matrix of all pairs, no norm computed twice."""
    arrays = arguments(form, n=700, d=8, k=300)
    whole = info_nce(*arrays, **options(form))
    monkeypatch.setattr(infonce, "_BLOCK", 256)
    blocked = info_nce(*arrays, **options(form))
    assert whole[0] == pytest.approx(blocked[0], rel=1e-13)
    for a, b in zip(whole[1], blocked[1], strict=True):
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-16)


def test_memory_does_not_grow_with_the_square_of_the_batch():
    n, d = 8192, 4
    a, p = data(n, d, dtype=np.float32), data(n, d, seed=1, dtype=np.float32)
    tracemalloc.start()
    try:
        info_nce(a, p)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6 < 4 * n * n / 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_bits_do_not_depend_on_the_number_of_threads(form, dtype):
    arrays = arguments(form, n=1100, d=32, k=40, dtype=dtype)
    with working_threads(1):
        loss, grads = info_nce(*arrays, **options(form))
    with working_threads(2):
        again, others = info_nce(*arrays, **options(form))
    assert loss == again
    for a, b in zip(grads, others, strict=True):
        if a is not None:
            np.testing.assert_array_equal(a, b)


def test_without_need_of_gradients_none_are_computed():
    tensors = [nn.Tensor(a) for a in arguments("in_batch")]
    assert not info_nce(*tensors).requires_grad
    assert info_nce(*tensors).item() == pytest.approx(info_nce(*arguments("in_batch"))[0])
    one = nn.Tensor(tensors[0].data, requires_grad=True)
    info_nce(one, tensors[1]).backward()
    np.testing.assert_array_equal(one.grad, info_nce(*arguments("in_batch"))[1].anchors)


@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_any_layout_and_never_changed(form):
    arrays = arguments(form)
    expected = info_nce(*arrays, **options(form))
    for change in (np.asfortranarray, lambda x: np.repeat(x, 2, axis=-1)[..., ::2], lambda x: x.astype(">f8"), list):
        copies = [change(a) for a in arrays]
        for c in copies:
            if isinstance(c, np.ndarray):
                c.flags.writeable = False
        got = info_nce(*copies, **options(form))
        assert got[0] == pytest.approx(expected[0], rel=1e-12)
        np.testing.assert_allclose(got[1].anchors, expected[1].anchors, rtol=1e-9, atol=1e-15)
    mixed = info_nce(arrays[0].astype(np.float32), *arrays[1:], **options(form))
    assert mixed[1].anchors.dtype == np.float64


def test_bad_input():
    """S4-8: empty batches and temperatures at or below 0 are accepted by the reference; S4-7: so are ragged shapes."""
    a, p = arguments("in_batch")
    bad = a.copy()
    bad[2, 3] = np.nan
    for call, kind, message in [
        (lambda: info_nce(a[:0], p[:0]), ValueError, "anchors is empty"),
        (lambda: info_nce(a, p, a[:0]), ValueError, "negatives is empty"),
        (lambda: info_nce(a, p[:3]), ValueError, r"shape of anchors, \(6, 5\), got \(3, 5\)"),
        (lambda: info_nce(a, p, p[:, :2]), ValueError, r"\(k, 5\) or \(6, k, 5\).*got \(6, 2\)"),
        (lambda: info_nce(a, p, data(5, 2, 5)), ValueError, r"got \(5, 2, 5\)"),
        (lambda: info_nce(a[0], p), ValueError, "anchors must be 2-dimensional"),
        (lambda: info_nce(bad, p), ValueError, r"anchors contains inf or nan.*\(2, 3\)"),
        (lambda: info_nce(a, bad), ValueError, "positives contains inf or nan"),
        (lambda: info_nce(a, p, bad), ValueError, "negatives contains inf or nan"),
        (lambda: info_nce(a, p, np.stack([bad] * 6)), ValueError, r"negatives contains inf or nan.*\(0, 2, 3\)"),
        (lambda: info_nce(a * 1e200, p), ValueError, "too long for float64"),
        (lambda: info_nce(a * 1j, p), ValueError, "Complex data not supported"),
        (lambda: info_nce(a, p, temperature=0), ValueError, "temperature must be greater than 0"),
        (lambda: InfoNCELoss(-1.0), ValueError, "temperature must be greater than 0"),
        (lambda: InfoNCELoss(np.nan), ValueError, "temperature must be finite"),
        (lambda: InfoNCELoss("1"), TypeError, "temperature must be a number"),
        (lambda: InfoNCELoss(reduction=None), ValueError, "reduction must be one of"),
        (lambda: info_nce(a, p, a, symmetric=True), ValueError, "leave negatives out"),
        (lambda: info_nce(a, p, false_negatives=np.zeros((6, 6))), ValueError, "boolean of shape"),
        (lambda: info_nce(a, p, false_negatives=np.zeros((6, 5), bool)), ValueError, "boolean of shape"),
    ]:
        with pytest.raises(kind, match=message):
            call()


def test_repr():
    assert repr(InfoNCELoss(0.2, "sum")) == "InfoNCELoss(temperature=0.2, reduction='sum', symmetric=False)"


# -- kernels -----------------------------------------------------------------------------------------------------------

@pytest.fixture(params=_kernels.AVAILABLE)
def kernels(request):
    return _kernels.at_level(request.param, "infonce")


@pytest.mark.parametrize("k", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_grad_kernel(kernels, k, dtype):
    n, tau = 3, 0.25
    cosines = np.random.default_rng(k).uniform(-1, 1, (n, k + 1))
    logits = (cosines[:, 1:] / tau).astype(dtype)
    positive, weight = (cosines[:, 0] / tau).astype(dtype), np.array([1, 0.5, 2], dtype)
    shift = np.maximum(logits.max(axis=1), positive)
    for x in (positive, weight, shift):
        x.flags.writeable = False
    loss, positive_grad = np.empty(n), np.empty(n, dtype)
    kernels.softmax_grad(logits, positive, shift, weight, tau, 0, 0, loss, positive_grad)
    e = np.exp(cosines / tau)
    p = e / e.sum(axis=1, keepdims=True)
    rtol = 1e-12 if dtype == np.float64 else 3e-6
    np.testing.assert_allclose(loss, -np.log(p[:, 0]), rtol=rtol)
    np.testing.assert_allclose(logits, p[:, 1:] * weight[:, None] / tau, rtol=rtol)
    np.testing.assert_allclose(positive_grad, (p[:, 0] - 1) * weight / tau, rtol=rtol)


@pytest.mark.parametrize("d", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_per_anchor_kernel_against_shared_formula(kernels, d, dtype):
    n, k, tau = 3, 5, 0.25
    u, negatives = unit(data(n, d)).astype(dtype), data(n, k, d, seed=1, dtype=dtype)
    left_out = np.zeros((n, k), np.uint8)
    left_out[1, 2] = 1
    positive, weight = np.array([1, -2, 0.5], dtype), np.array([1, 0.5, 2], dtype)
    for x in (u, negatives, left_out, positive, weight):
        x.flags.writeable = False
    norm, scratch = np.empty((n, k), dtype), np.empty((2, k), dtype)
    loss, positive_grad, by_u, by_n = np.empty(n), np.empty(n, dtype), np.empty_like(u), np.empty_like(negatives)
    row = np.empty(d, dtype)
    kernels.per_anchor_grad(u, negatives, positive, weight, tau, 0, 0, left_out, *scratch, row, False, norm, loss,
                            positive_grad, by_u, by_n)
    streamed = np.empty(by_n.size + 8, dtype)[1:by_n.size + 1].reshape(by_n.shape)  # of any alignment
    for target in (streamed, aligned_empty(by_n.shape, dtype)):
        kernels.per_anchor_grad(u, negatives, positive, weight, tau, 0, 0, left_out, *scratch, row, True, norm, loss,
                                positive_grad, by_u, target)
        np.testing.assert_array_equal(target, by_n)
    length = np.linalg.norm(negatives, axis=2)
    c = np.einsum("ij,ikj->ik", u, negatives) / length
    e = np.where(left_out, 0, np.exp(c / tau))
    total = e.sum(axis=1) + np.exp(positive)
    g = e / total[:, None] * weight[:, None] / tau
    rtol, atol = (1e-11, 1e-13) if dtype == np.float64 else (2e-5, 1e-5)
    np.testing.assert_allclose(norm, length, rtol=rtol)
    np.testing.assert_allclose(loss, np.log(total) - positive, rtol=rtol, atol=atol)
    np.testing.assert_allclose(by_u, np.einsum("ik,ikj->ij", g / length, negatives), rtol=rtol, atol=atol)
    expected = (g / length)[:, :, None] * (u[:, None, :] - c[:, :, None] * negatives / length[:, :, None])
    np.testing.assert_allclose(by_n, expected, rtol=rtol, atol=atol)


def test_the_gradient_by_negatives_can_be_written_to_an_array_of_the_caller():
    a, p, negatives = data(5, 3), data(5, 3, seed=1), data(5, 4, 3, seed=2)
    out = np.full_like(negatives, np.nan)
    loss, grads = InfoNCELoss()(a, p, negatives, out=out)
    assert grads.negatives is out
    np.testing.assert_array_equal(out, InfoNCELoss()(a, p, negatives)[1].negatives)
    for bad, message in [(np.empty((5, 4, 2)), "C-contiguous array of shape"), (negatives, "must not overlap"),
                         (out.astype(np.float32), "dtype float64")]:
        with pytest.raises(ValueError, match=message):
            InfoNCELoss()(a, p, negatives, out=bad)
    with pytest.raises(ValueError, match=r"negatives of shape \(n, k, d\)"):
        InfoNCELoss()(a, p, out=out)
