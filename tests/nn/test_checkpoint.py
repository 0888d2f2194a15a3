"""Stretches recomputed on the tape: the bits of the plain run, whatever is kept."""
import gc
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy import nn
from gnncy._threads import working_threads
from gnncy.graph import Block
from gnncy.nn import RecomputationPolicy as Policy
from gnncy.nn.checkpointing import ActivationMeter, Chain, Spill, simulate
from gnncy.nn.tensor import repeated_pass
from gnncy.storage.plans import DiskModel

FAST_DISK = DiskModel(0.0, 1e15, 1e15)


class GCNBlock(nn.Module):
    """Pre-norm residual graph convolution."""

    def __init__(self, block, features, rng, p=0.0):
        self.block, self.norm, self.linear = block, nn.LayerNorm(features), nn.Linear(features, features, rng=rng)
        self.dropout = nn.Dropout(p)

    def forward(self, x):
        h = self.dropout(nn.relu(self.norm(x)))
        return x + nn.aggregate(self.block, self.linear(h))


def graph(n, seed=0):
    return Block.from_csr(sp.random_array((n, n), density=4 / n, format="csr", rng=seed, dtype=np.float32))


def gcn(depth, n=50, features=16, p=0.0):
    block = graph(n)
    return nn.Sequential(*[GCNBlock(block, features, i, p) for i in range(depth)]).set_step_key(7), (n, features)


def mlp():
    """Layers of unequal sizes and costs."""
    return nn.MLP([24, 64, 8, 128, 4, 96, 16], "elu", norm=True, rng=0), (40, 24)


MODELS = {"mlp": mlp, "gcn": lambda: gcn(9), "dropout": lambda: gcn(7, p=0.4)}
POLICIES = [Policy.off(), Policy.all(), Policy.none(), Policy.every(2), Policy.every(5), Policy.selective(0.01),
            Policy.selective(1e9, longest_gap=3), Policy.sqrt(), Policy.revolve(2), Policy.revolve(3),
            Policy.optimal(90_000), Policy.budget(80_000), Policy.budget(70_000, disk=FAST_DISK)]


def gradients(run, model, x):
    """Loss and gradients of everything, as bytes."""
    for parameter in model.parameters():
        parameter.grad = None
    x = nn.Tensor(x, requires_grad=True)
    out = run(x)
    (out * out).sum().backward()
    return [out.data.tobytes(), x.grad.tobytes(), *[p.grad.tobytes() for p in model.parameters()]]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_gradients_have_the_bits_of_the_plain_run(make, policy):
    model, shape = make()
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    plain = gradients(model, model, x)
    assert len(set(plain)) == len(plain)
    assert gradients(lambda x: nn.checkpoint_sequential(model, x, policy), model, x) == plain


def test_bits_do_not_depend_on_threads():
    model, _ = gcn(4, n=5000, p=0.2)
    x = np.random.default_rng(1).standard_normal((5000, 16), np.float32)
    plain = gradients(model, model, x)
    for threads in (1, 2):
        with working_threads(threads):
            assert gradients(lambda x: nn.checkpoint_sequential(model, x), model, x) == plain


def test_parameters_inside_get_gradients_though_no_input_needs_one():
    layer, x = nn.Linear(3, 2, rng=0), np.ones((4, 3), np.float32)
    layer(x).sum().backward()
    plain = layer.weight.grad.copy()
    layer.weight.grad = layer.bias.grad = None
    nn.checkpoint(layer, x).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad, plain)


def test_sums_of_gradients_keep_their_order():
    # Uses before, inside and after a stretch: float sums would show another order.
    rng = np.random.default_rng(3)
    a, b, c, d, start = rng.standard_normal((5, 2000), np.float32)

    def inside(h, x):
        y = h * b + nn.tanh(h) * c
        return y + h * d + x * a

    def gradient(stretch):
        x = nn.Tensor(start, requires_grad=True)
        h = x * a
        z = stretch(h, x) * h + nn.tanh(h) * d + x * c
        z.sum().backward()
        return x.grad

    np.testing.assert_array_equal(gradient(lambda h, x: nn.checkpoint(inside, h, x)), gradient(inside))


def test_several_results_have_the_bits_of_the_plain_run():
    rng = np.random.default_rng(3)
    a, b, start = rng.standard_normal((3, 2000), np.float32)
    runs = []

    def inside(x):
        runs.append(1)
        h = nn.tanh(x * a)
        return h, nn.exp(h) + x * b, nn.Tensor(a), x

    def gradient(stretch, used):
        x = nn.Tensor(start, requires_grad=True)
        results = stretch(x * 1.5)
        loss = x * a
        for k in used:
            loss = loss + results[k] * b
        loss.sum().backward()
        return x.grad

    for used in ([0], [1], [0, 1], [1, 0], [0, 1, 2, 3], [3]):
        plain = gradient(inside, used)
        runs.clear()
        np.testing.assert_array_equal(gradient(lambda x: nn.checkpoint(inside, x), used), plain)
        assert len(runs) == 2


def test_a_function_that_hands_on_its_input():
    x = nn.Tensor(np.ones(3), requires_grad=True)
    nn.checkpoint(lambda x: x, x).sum().backward()
    nn.checkpoint(lambda x: x, x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [3, 3, 3])


def test_an_unused_stretch_is_freed_at_once():
    x = nn.Tensor(np.ones(1000), requires_grad=True)
    gc.disable()
    try:
        with ActivationMeter() as meter:
            nn.checkpoint(nn.tanh, x * 2.0)
        assert meter.current == 0
    finally:
        gc.enable()


def test_nested_to_any_depth_without_recursion():
    x = nn.Tensor(np.linspace(-1, 1, 8), requires_grad=True)
    run = nn.tanh
    for _ in range(60):
        run = (lambda inner: lambda x: nn.checkpoint(inner, x) * 1.01)(run)
    run(x).sum().backward()
    found = x.grad.copy()
    x.grad = None
    y = nn.tanh(x)
    for _ in range(60):
        y = y * 1.01
    y.sum().backward()
    np.testing.assert_array_equal(found, x.grad)


def test_a_captured_tensor_gets_its_gradient():
    x = nn.Tensor(np.linspace(-1, 1, 8), requires_grad=True)
    h = x.exp()
    nn.checkpoint(lambda y: y * h * h, nn.tanh(x)).sum().backward()
    found = x.grad.copy()
    x.grad = None
    h = x.exp()
    (nn.tanh(x) * h * h).sum().backward()
    np.testing.assert_array_equal(found, x.grad)


def test_no_grad_is_respected_and_costs_one_run():
    runs = []

    def function(x):
        runs.append(1)
        return x * 2.0

    x = nn.Tensor(np.ones(3), requires_grad=True)
    with nn.no_grad():
        assert not nn.checkpoint(function, x).requires_grad
    assert not nn.checkpoint(function, nn.Tensor(np.ones(3))).requires_grad
    out = nn.checkpoint(function, x)
    assert len(runs) == 3
    with nn.no_grad():
        out.sum()
    out.backward(np.ones(3))
    assert len(runs) == 4
    np.testing.assert_array_equal(x.grad, [2, 2, 2])


def test_an_unused_stretch_is_not_run_again_and_a_second_backward_is_refused():
    runs = []

    def function(x):
        runs.append(1)
        return x * 2.0

    x = nn.Tensor(np.ones(3), requires_grad=True)
    nn.checkpoint(function, x)
    out = nn.checkpoint(function, x).sum()
    out.backward()
    assert len(runs) == 3
    with pytest.raises(RuntimeError, match="already called"):
        out.backward()


def test_dropout_repeats_though_the_key_has_moved_on():
    # S1-14: two forward passes with keys of their own before either backward pass.
    model, shape = gcn(4, p=0.5)
    x = np.random.default_rng(1).standard_normal(shape, np.float32)

    def both(run):
        for parameter in model.parameters():
            parameter.grad = None
        losses = []
        for key in (1, 2):
            model.set_step_key(key)
            losses.append((run(nn.Tensor(x)) * 0.5).sum())
        for loss in losses:
            loss.backward()
        return [p.grad.tobytes() for p in model.parameters()]

    assert both(lambda x: nn.checkpoint_sequential(model, x, Policy.sqrt())) == both(model)


def test_a_generators_state_is_put_back_and_left_where_it_was():
    # S1-14
    rng = np.random.default_rng(0)
    x = nn.Tensor(np.ones(1000), requires_grad=True)
    masks = []

    def noisy(x):
        masks.append(rng.random(1000) < 0.5)
        return x * masks[-1]

    out = nn.checkpoint(noisy, x, rng=rng)
    rng.random(17)
    present = rng.bit_generator.state
    out.sum().backward()
    assert rng.bit_generator.state == present
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(x.grad, masks[0])

    unsaved = nn.checkpoint(noisy, x, check=True)
    with pytest.raises(RuntimeError, match="other values the second time"):
        unsaved.sum().backward()


def test_another_second_run_is_refused():
    layer = nn.Sequential(nn.Linear(4, 4, rng=0), nn.Dropout(0.5)).set_step_key(1)
    x = nn.Tensor(np.ones((2, 4)), requires_grad=True)
    out = nn.checkpoint(layer, x)
    layer.eval()
    with pytest.raises(RuntimeError, match="other operations the second time"):
        out.sum().backward()
    turns = iter([nn.tanh, nn.sigmoid])
    with pytest.raises(RuntimeError, match="other operations"):
        nn.checkpoint(lambda x: next(turns)(x), x).sum().backward()


def test_refusals():
    x = nn.Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(TypeError, match="must return a Tensor or a tuple of Tensors, got 3"):
        nn.checkpoint(lambda x: 3, x)
    with pytest.raises(TypeError, match="rng must be a numpy Generator, got int"):
        nn.checkpoint(nn.relu, x, rng=3)
    with pytest.raises(ValueError, match="name layers 0 to 1 once each"):
        nn.checkpoint_sequential([nn.relu, nn.relu], x, (0, 2))
    with pytest.raises(TypeError, match="layer 0 must be callable, got int"):
        nn.checkpoint_sequential([3], x)
    with pytest.raises(ValueError, match="at least one layer"):
        nn.checkpoint_sequential([], x)


def test_a_stretch_keeps_its_input_alone_and_gives_it_back():
    x = nn.Tensor(np.ones((100, 10), np.float32), requires_grad=True)
    with ActivationMeter() as meter:
        h = x * 2.0
        out = nn.checkpoint(lambda h: nn.tanh(nn.tanh(nn.tanh(h))), h)
        del h
        gc.collect()
        assert meter.current == 2 * 4000  # input and result
        loss = out.sum()
        del out
        loss.backward()
        del loss
    assert meter.current == 0  # S1-3: nothing stays


def test_running_statistics_can_tell_a_repeated_pass():
    seen = []

    def function(x):
        seen.append(repeated_pass())
        return nn.checkpoint(lambda x: nn.tanh(x), x)

    x = nn.Tensor(np.ones(3), requires_grad=True)
    nn.checkpoint(function, x).sum().backward()
    assert seen == [False, True] and not repeated_pass()


@pytest.mark.parametrize("schedule", [(Spill(0), Spill(1), Spill(2), Spill(3)), (0, Spill(1), 2, Spill(3)),
                                      ((Spill(0), 1), Spill(2), 3), (((0, Spill(1)), 2), Spill(3))], ids=str)
def test_spilled_layers_come_back_bit_for_bit(schedule):
    model, shape = gcn(4, p=0.3)
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    plain = gradients(model, model, x)
    assert gradients(lambda x: nn.checkpoint_sequential(model, x, schedule), model, x) == plain


def test_spilled_layers_leave_memory():
    model, shape = gcn(6)
    x = nn.Tensor(np.ones(shape, np.float32))

    def after_forward(schedule):
        with ActivationMeter() as meter:
            loss = nn.checkpoint_sequential(model, x, schedule).sum()
            held = meter.current
            loss.backward()
        return held

    nbytes = 50 * 16 * 4
    assert after_forward(tuple(range(6))) > 12 * nbytes
    assert after_forward(tuple(Spill(k) for k in range(6))) < nbytes / 2


def test_transposed_arrays_keep_their_order_on_disk():
    layers = [lambda x: nn.transpose(nn.tanh(nn.transpose(x))), lambda x: nn.matmul(x, np.ones((5, 5)))]
    x = nn.Tensor(np.random.default_rng(0).standard_normal((9, 5)), requires_grad=True)
    nn.checkpoint_sequential(layers, x, (Spill(0), Spill(1))).sum().backward()
    found, x.grad = x.grad, None
    nn.checkpoint_sequential(layers, x, (0, 1)).sum().backward()
    np.testing.assert_array_equal(found, x.grad)


def test_layers_without_gradients_are_passed_through():
    # A chain whose first layers nothing needs: features, then a layer with parameters.
    head = nn.Linear(4, 2, rng=0)
    out = nn.checkpoint_sequential([nn.tanh, nn.relu, head, nn.relu], np.ones((3, 4), np.float32), Policy.every(2))
    out.sum().backward()
    assert head.weight.grad is not None


def test_forward_runs_are_those_of_the_schedule():
    counts = [0] * 12

    def layer(k):
        def run(x):
            counts[k] += 1
            return nn.tanh(x)
        return run

    x = nn.Tensor(np.ones(4), requires_grad=True)
    for policy in (Policy.sqrt(), Policy.revolve(3), Policy.none(), Policy.all()):
        counts[:] = [0] * 12
        schedule = policy.schedule(Chain.uniform(12))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            nn.checkpoint_sequential([layer(k) for k in range(12)], x, schedule).sum().backward()
        assert sum(counts) == 12 + simulate(Chain.uniform(12), schedule).extra_forwards


def test_running_statistics_move_once_for_a_repeated_stretch():
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    plain, repeated = nn.BatchNorm(3), nn.BatchNorm(3)
    plain(nn.Tensor(x, requires_grad=True)).sum().backward()
    nn.checkpoint(repeated, nn.Tensor(x, requires_grad=True)).sum().backward()
    np.testing.assert_array_equal(repeated.running_mean, plain.running_mean)
    np.testing.assert_array_equal(repeated.running_var, plain.running_var)
