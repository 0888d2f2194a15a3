"""Clipping of gradients by norm and by value."""
import numpy as np
import pytest

from gnncy import nn
from gnncy._threads import working_threads
from gnncy.optim import clip_grad_norm_, clip_grad_value_


@pytest.mark.parametrize("dtype, rtol", [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_norm_over_all_gradients(dtype, rtol):
    rng = np.random.default_rng(0)
    grads = [rng.normal(size=shape).astype(dtype) for shape in [(30, 7), (5,), (0,), (2, 3, 4)]]
    before = [g.copy() for g in grads]
    expected = np.sqrt(sum((g.astype(np.float64)**2).sum() for g in grads))
    total = clip_grad_norm_(grads, 3.0)
    assert total == pytest.approx(expected, rel=1e-13)
    for g, b in zip(grads, before, strict=True):
        np.testing.assert_allclose(g, b * (3 / (expected + 1e-6)), rtol=rtol)
    after = [g.copy() for g in grads]
    clip_grad_norm_(grads, 100.0)  # already short enough
    for g, b in zip(grads, after, strict=True):
        np.testing.assert_array_equal(g, b)


def test_tensors_and_those_without_a_gradient():
    a, b = nn.Tensor(np.ones(4), requires_grad=True), nn.Tensor(np.ones(2), requires_grad=True)
    (a * 3).sum().backward()
    assert clip_grad_norm_([a, b], 1.0) == 6.0
    np.testing.assert_allclose(a.grad, 0.5, rtol=1e-6)
    clip_grad_value_(a, 0.25)
    assert (a.grad == 0.25).all() and b.grad is None
    assert clip_grad_norm_(nn.MLP([2, 2], rng=0).parameters(), 1.0) == 0


def test_float64_near_its_ends_does_not_overflow():
    g = np.full(4, 1e300)
    assert clip_grad_norm_(g, 1.0) == pytest.approx(2e300, rel=1e-14)
    np.testing.assert_allclose(g, 0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_left_alone(bad):
    grads = [np.ones(3), np.array([1.0, bad])]
    assert not np.isfinite(clip_grad_norm_(grads, 0.1))
    assert (grads[0] == 1).all()
    with pytest.raises(ValueError, match="norm of the gradients is (nan|inf); nothing was changed"):
        clip_grad_norm_(grads, 0.1, error_if_nonfinite=True)


def test_value():
    g = np.array([-5.0, -0.5, 0.0, 0.5, 5.0, np.inf, -np.inf, np.nan], np.float32)
    clip_grad_value_([g], 1.0)
    np.testing.assert_array_equal(g, [-1, -0.5, 0, 0.5, 1, 1, -1, np.nan])


def test_the_norm_does_not_depend_on_the_number_of_threads():
    g = np.random.default_rng(0).normal(size=1_000_003).astype(np.float32)
    totals, clipped = [], []
    for threads in (1, 2):
        copy = g.copy()
        with working_threads(threads):
            totals.append(clip_grad_norm_(copy, 1.0))
        clipped.append(copy)
    assert totals[0] == totals[1]
    np.testing.assert_array_equal(*clipped)


def test_refusals():
    read_only = np.ones(2)
    read_only.flags.writeable = False
    for clip in (clip_grad_norm_, clip_grad_value_):
        for bad in (0, -1.0):
            with pytest.raises(ValueError, match="must be greater than 0"):
                clip(np.ones(2), bad)
        for grad in (read_only, np.ones((4, 4))[:, ::2], np.ones(2, ">f4"), np.ones(2, int)):
            with pytest.raises(ValueError, match="writable, C-contiguous"):
                clip([grad], 1.0)
        with pytest.raises(TypeError, match="Tensor or an array"):
            clip([[1.0]], 1.0)
        with pytest.raises(TypeError, match="Tensors or arrays"):
            clip(3, 1.0)
