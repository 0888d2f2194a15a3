"""Bytes foretold, bytes counted, and bytes that the process really takes."""
import tracemalloc
from functools import partial

import numpy as np
import pytest

from gnncy import graph, nn, plot
from gnncy._threads import working_threads
from gnncy.errors import MemoryLimitError
from gnncy.nn import RecomputationPolicy as Policy
from gnncy.nn.checkpointing import ActivationMeter, Chain, estimate, measure_chain, profile
from gnncy.storage.plans import DiskModel


class Residual(nn.Module):
    def __init__(self, features, rng, p=0.0):
        self.norm, self.linear = nn.LayerNorm(features), nn.Linear(features, features, rng=rng)
        self.dropout = nn.Dropout(p)

    def forward(self, x):
        return x + self.linear(self.dropout(nn.relu(self.norm(x))))


@pytest.fixture(autouse=True)
def one_thread():
    with working_threads(1):
        yield


def residual(depth=16, n=200, features=32, p=0.2):
    model = nn.Sequential(*[Residual(features, k, p) for k in range(depth)]).set_step_key(3)
    return model, np.random.default_rng(0).standard_normal((n, features), np.float32)


def unequal():
    model = nn.MLP([24, 64, 8, 128, 4, 96, 16], "elu", norm=True, rng=0)
    return model, np.random.default_rng(0).standard_normal((300, 24), np.float32)


def views():
    layers = [lambda x: nn.reshape(x, (-1, 8)), nn.tanh, nn.transpose, nn.exp, lambda x: x * x, lambda x: x[1:],
              nn.relu]
    return layers, np.random.default_rng(0).standard_normal((50, 16), np.float32)


def measured(layers, x, policy):
    with ActivationMeter() as meter:
        nn.mean(nn.checkpoint_sequential(layers, x, policy)).backward()
    assert meter.current == 0
    return meter.peak - x.dtype.itemsize  # of the loss


@pytest.mark.parametrize("needs", [False, True], ids=["features", "tensor"])
@pytest.mark.parametrize("policy", [Policy.off(), Policy.all(), Policy.none(), Policy.every(3), Policy.sqrt(),
                                    Policy.revolve(3), Policy.selective(1e9, longest_gap=4)], ids=repr)
@pytest.mark.parametrize("make", [residual, unequal])
def test_the_estimate_is_what_a_step_takes(make, policy, needs):
    model, x = make()
    x = nn.Tensor(x, requires_grad=needs)
    foretold = estimate(model, x, policy)
    assert abs(measured(model, x, foretold.schedule) - foretold.activation_bytes) <= 0.05 * foretold.activation_bytes


@pytest.mark.parametrize("part", [1, 2, 4, 8])
@pytest.mark.parametrize("disk", [None, DiskModel(0.0, 1e15, 1e15)], ids=["memory", "disk"])
@pytest.mark.parametrize("make", [residual, unequal])
def test_a_budget_is_never_exceeded(make, part, disk):
    model, x = make()
    budget = estimate(model, x).activation_bytes // part
    try:
        foretold = estimate(model, x, Policy.budget(budget, disk=disk))
    except MemoryLimitError:
        assert make is unequal
        return
    peak = measured(model, x, Policy.budget(budget, disk=disk))
    assert peak <= budget
    peak = measured(model, x, foretold.schedule)
    assert peak <= budget and abs(peak - foretold.activation_bytes) <= 0.05 * foretold.activation_bytes


def test_views_are_not_underestimated():
    layers, x = views()
    for policy in (Policy.off(), Policy.every(2), Policy.revolve(2)):
        x = nn.Tensor(x.data if isinstance(x, nn.Tensor) else x, requires_grad=True)
        foretold = estimate(layers, x, policy)
        assert measured(layers, x, foretold.schedule) <= foretold.activation_bytes


def test_the_least_that_is_named_does():
    model, x = residual()
    with pytest.raises(MemoryLimitError, match="least that would do is ([0-9]+) bytes") as error:
        estimate(model, x, Policy.budget(1000))
    least = int(str(error.value).split("would do is ")[1].split(" ")[0])
    assert measured(model, x, Policy.budget(least)) <= least
    with pytest.raises(MemoryLimitError):
        nn.checkpoint_sequential(model, x, Policy.budget(least - 1))


def test_the_process_takes_what_is_counted_and_foretold():
    # tracemalloc sees every array: activations, gradients, temporaries.
    model, x = residual(16, 1500, 64)
    for parameter in model.parameters():
        parameter.grad = np.zeros_like(parameter.data)
    measure_chain(model, x)  # first-time allocations
    plain = None
    for policy in (Policy.off(), Policy.budget("3MB")):
        foretold = estimate(model, x, policy)
        schedule = foretold.schedule
        tracemalloc.start()
        try:
            with ActivationMeter() as meter:
                nn.mean(nn.checkpoint_sequential(model, x, schedule)).backward()
            taken = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert meter.peak <= taken <= 1.02 * foretold.peak_bytes  # objects of Python among it
        plain = plain or taken
    assert taken < plain / 3


def test_measuring_changes_nothing():
    model, x = residual(3)
    nn.mean(model(x)).backward()
    before = [(p.grad, p.grad.copy()) for p in model.parameters()]
    measure_chain(model, nn.Tensor(x, requires_grad=True))
    for p, (grad, values) in zip(model.parameters(), before, strict=True):
        assert p.grad is grad
        np.testing.assert_array_equal(grad, values)


def test_equal_layers_are_measured_once():
    runs = []

    class Counted(nn.Module):
        def __init__(self, features):
            self.linear = nn.Linear(features, 16, rng=0)

        def forward(self, x):
            runs.append(1)
            return self.linear(x)

    chain = measure_chain([Counted(8), *[Counted(16) for _ in range(30)]], np.ones((5, 8), np.float32), working=False)
    assert len(chain) == 31 and len(runs) == 2 * 2
    assert chain.boundary == (0, *[5 * 16 * 4] * 31)


def test_a_policy_plans_once_for_an_input_of_one_kind(monkeypatch):
    from gnncy.nn.checkpointing import measure as module
    model, x = residual(4)
    calls = []
    monkeypatch.setattr(module, "measure_chain", lambda *a, **k: calls.append(1) or measure_chain(*a, **k))
    policy = Policy.budget("10MB")
    for _ in range(3):
        nn.checkpoint_sequential(model, x, policy)
    assert len(calls) == 1
    nn.checkpoint_sequential(model, x[:50], policy)
    nn.checkpoint_sequential(residual(4)[0], x[:50], policy)
    assert len(calls) == 3
    layers, block = [nn.SAGEConv(8, 8, rng=k) for k in range(3)], graph.Block.from_csr(np.eye(20, dtype=np.float32))
    for _ in range(2):
        nn.checkpoint_sequential([partial(layer, block) for layer in layers], np.ones((20, 8), np.float32), policy)
    assert len(calls) == 4


def test_estimate_and_profile_read_well():
    model, x = residual(9)
    text = str(estimate(model, x, Policy.sqrt()))
    assert "sqrt()" in text and "extra layer passes  6" in text and "activations" in text
    step = profile(model, x, Policy.sqrt())
    assert [layer.runs for layer in step.layers] == [2] * 6 + [1] * 3
    assert [layer.stretch for layer in step.layers] == [True, False, False] * 2 + [False] * 3
    # The norm's rows and their scales, relu's result, dropout's result.
    assert all(layer.kept_bytes == 3 * x.nbytes + 200 * 4 for layer in step.layers)
    assert step.peak_bytes - 4 == measured(model, x, Policy.sqrt()) and step.peak_bytes == step.timeline[:, 1].max()
    assert "Residual" in str(step) and len(str(step).splitlines()) == 11


def test_a_figure_of_a_step(tmp_path):
    model, x = residual(9)
    ax = plot.activations(profile(model, x, Policy.sqrt()), budget="200kB", save=tmp_path / "step.png")
    assert ax.get_ylabel() == "activations, MB" and (tmp_path / "step.png").stat().st_size > 0


def test_a_chain_by_hand_is_estimated_without_a_run():
    found = estimate(Chain.uniform(9), None, Policy.sqrt())
    assert found.extra_forwards == 6 and found.seconds == 9 + 18 + 6 and found.working_bytes == 0
    assert estimate(Chain.uniform(3), None, ((0,), 1, 2)).policy == "a schedule"
