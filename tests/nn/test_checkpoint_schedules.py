"""Schedules: closed formulas, every schedule of small chains tried, budgets kept, the least that does named."""
import math
from functools import cache

import numpy as np
import pytest

from gnncy.errors import MemoryLimitError
from gnncy.nn import RecomputationPolicy as Policy
from gnncy.nn.checkpointing import Chain, Spill, least_memory, optimal, revolve, simulate
from gnncy.nn.checkpointing.schedule import check_schedule, every, flatten, keep_all, sqrt
from gnncy.storage.plans import DiskModel


@cache
def all_schedules(start, stop):
    """Every schedule of layers ``start .. stop - 1``."""
    if start == stop:
        return [()]
    found = [(start, *rest) for rest in all_schedules(start + 1, stop)]
    for middle in range(start + 1, stop):
        for stretch in all_schedules(start, middle):
            found += [(stretch, *rest) for rest in all_schedules(middle, stop)]
    return found


def chain(n, seed, keeps_input=None):
    """Unequal sizes and costs. Arrays of small whole sizes, so that levels of memory are exact."""
    rng = np.random.default_rng(seed)
    boundary, inner = rng.integers(1, 9, n + 1), rng.integers(0, 12, n)
    keeps = rng.random(n) < 0.5 if keeps_input is None else np.full(n, keeps_input)
    output = rng.random(n) < 0.5
    forward_peak = boundary[1:] + rng.integers(0, 3, n)
    record_peak = np.maximum(forward_peak, inner + boundary[1:])
    return Chain(tuple(rng.integers(1, 20, n).astype(float)), tuple(rng.integers(1, 20, n).astype(float)),
                 tuple(map(int, boundary)), tuple(map(int, inner)), tuple(map(bool, keeps)), tuple(map(bool, output)),
                 tuple(map(int, forward_peak)), tuple(map(int, record_peak)))


def steps(n, slots):
    """Griewank and Walther's r n - C(slots + r, r - 1)."""
    r = next(r for r in range(n + 1) if math.comb(slots + r, slots) >= n)
    return r * n - (math.comb(slots + r, r - 1) if r else 0)


def test_revolve_takes_the_steps_of_the_formula():
    for n in range(1, 50):
        for slots in range(1, 9):
            schedule = check_schedule(revolve(n, slots), n)
            assert simulate(Chain.uniform(n), schedule).extra_forwards == steps(n, slots)
    known = {2: 420, 3: 258, 4: 200, 6: 156, 9: 126, 17: 109}
    assert {c: simulate(Chain.uniform(64), revolve(64, c)).extra_forwards for c in known} == known


def test_revolve_keeps_within_its_slots():
    for n, slots in [(10, 3), (30, 4), (64, 9)]:
        cost = simulate(Chain.uniform(n), revolve(n, slots))
        assert cost.peak_bytes <= slots + 2  # the layer that runs adds its input and its output


def test_no_split_of_a_chain_takes_fewer_steps_than_revolve():
    @cache
    def least(n, slots):
        if n == 1:
            return 0
        if slots == 1:
            return n * (n - 1) // 2
        return min(j + least(n - j, slots - 1) + least(j, slots) for j in range(1, n))

    for n in range(1, 40):
        for slots in range(1, 8):
            assert simulate(Chain.uniform(n), revolve(n, slots)).extra_forwards == least(n, slots)


def test_sqrt_stays_under_two_roots_and_one_more_pass():
    for n in (1, 2, 9, 64, 100, 113):
        cost = simulate(Chain.uniform(n), sqrt(n))
        assert cost.extra_forwards < n
        assert cost.peak_bytes <= 2 * math.isqrt(n - 1) + 4


@pytest.mark.parametrize("seed", range(6))
def test_the_dynamic_programme_finds_the_best_of_all_schedules(seed):
    # A layer that keeps its input holds it to its end, as the programme assumes.
    c = chain(5, seed, keeps_input=True)
    costs = [simulate(c, s) for s in all_schedules(0, 5)]
    least = min(cost.peak_bytes for cost in costs)
    assert least_memory(c)[0] == least == simulate(c, least_memory(c)[1]).peak_bytes
    for memory in range(least, max(cost.peak_bytes for cost in costs) + 2):
        found = simulate(c, optimal(c, memory))
        assert found.peak_bytes <= memory
        assert found.seconds == min(cost.seconds for cost in costs if cost.peak_bytes <= memory)
    assert optimal(c, least - 1) is None


@pytest.mark.parametrize("seed", range(8))
def test_a_budget_is_never_exceeded_and_the_least_is_named(seed):
    # S1-5
    c = chain(12, seed)
    least, frugal = least_memory(c)
    assert simulate(c, frugal).peak_bytes <= least
    everything = simulate(c, keep_all(12))
    before = math.inf
    for memory in np.linspace(least, everything.peak_bytes + 1, 12).astype(int):
        cost = simulate(c, Policy.budget(int(memory)).schedule(c))
        assert cost.peak_bytes <= memory
        assert cost.seconds <= before  # more memory is never slower
        before = cost.seconds
    assert before == everything.seconds
    with pytest.raises(MemoryLimitError, match=rf"least that would do is {least} bytes"):
        Policy.budget(least - 1).schedule(c)
    with pytest.raises(MemoryLimitError, match=rf"least that would do is {least} bytes"):
        Policy.optimal(least - 1).schedule(c)


def test_a_disk_lowers_the_least():
    c = chain(8, 3)
    with_disk = least_memory(c, spill=True)[0]
    assert with_disk < least_memory(c)[0]
    disk = DiskModel(0.0, 1e9, 1e9)
    assert simulate(c, Policy.budget(with_disk, disk=disk).schedule(c), disk).peak_bytes <= with_disk
    with pytest.raises(MemoryLimitError, match=rf"least that would do is {with_disk} bytes"):
        Policy.budget(with_disk - 1, disk=disk).schedule(c)


def test_large_sizes_are_rounded_up_never_down():
    c = Chain.uniform(40, 60_000_003, 120_000_011)
    for part in (2, 5, 9):
        memory = simulate(c, keep_all(40)).peak_bytes // part
        assert simulate(c, optimal(c, memory)).peak_bytes <= memory


def test_the_disk_is_used_where_it_is_cheaper():
    c = Chain.uniform(16, 10**6, 3 * 10**6)  # a second a layer
    memory = 12 * 10**6
    alone = Policy.budget(memory).schedule(c)
    assert not any(isinstance(k, Spill) for k in flatten(alone))
    fast = DiskModel(0.0, 1e9, 1e9)
    spilled = Policy.budget(memory, disk=fast).schedule(c)
    assert any(isinstance(k, Spill) for k in flatten(spilled))
    assert simulate(c, spilled, fast).seconds < simulate(c, alone).seconds
    assert simulate(c, spilled, fast).peak_bytes <= memory
    slow = DiskModel(10.0, 1e5, 1e5)
    assert not any(isinstance(k, Spill) for k in flatten(Policy.budget(memory, disk=slow).schedule(c)))


def test_policies_of_the_reference():
    c = Chain.uniform(6, 10**6, 2 * 10**6)
    assert Policy.off().schedule(c) == (0, 1, 2, 3, 4, 5)
    assert Policy.all().schedule(c) == ((0,), (1,), (2,), (3,), (4,), 5)
    assert Policy.every(2).schedule(c) == ((0, 1), (2, 3), 4, 5) == every(6, 2)
    assert Policy.none().schedule(c) == revolve(6, 1)
    # S1-8: without a stored activation there is still the chain's input to start from.
    assert simulate(c, Policy.none().schedule(c)).extra_forwards == 15


def test_selective_goes_by_cost_for_size_and_leaves_no_long_gap():
    # S1-9: a small dear layer is kept, a big cheap one is not, and gaps are bounded.
    c = Chain((1.0, 0.001, 1.0, 0.001) * 4, (1.0,) * 16, (10**6,) * 17, (10**6,) * 16, (True,) * 16, (False,) * 16,
              (10**6,) * 16, (2 * 10**6,) * 16)
    kept = [item for item in Policy.selective(100).schedule(c) if isinstance(item, int)]
    assert kept == [0, 2, 4, 6, 8, 10, 12, 14, 15]
    dear = Policy.selective(1e9, longest_gap=3).schedule(c)
    assert max(len(item) for item in dear if isinstance(item, tuple)) == 3
    assert not Policy.selective(100).stores(1, 150.0, 10 * 10**6) and Policy.selective(100).stores(1, 150.0, 10**6)


def test_refusals():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        Policy.every(0)  # S1-9: the reference stores layer 0 alone
    with pytest.raises(ValueError, match="slots must be at least 1"):
        Policy.revolve(0)
    with pytest.raises(ValueError, match="memory_budget must be positive"):
        Policy.budget(0)
    with pytest.raises(ValueError, match="longest_gap must be at least 1"):
        Policy.selective(longest_gap=0)
    with pytest.raises(ValueError, match="once each, in order"):
        simulate(Chain.uniform(3), (0, 2, 1))
