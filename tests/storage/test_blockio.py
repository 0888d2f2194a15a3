"""The planning kernel: runs, groups and their bounds; the sort in front of it."""
import numpy as np
import pytest

from gnncy._kernels.storage import blockio
from gnncy.storage._blocks import ascending


def plan(start, length, max_gap=65536, max_run=1 << 20, amplification=4.0):
    start = np.asarray(start, np.int64)
    start.flags.writeable = False
    length = np.broadcast_to(np.asarray(length, np.int64), start.shape)
    first, group = np.full((2, len(start) + 1), -9, np.int64)
    count = np.zeros(2, np.int64)
    blockio.plan(start, length, max_gap, max_run, amplification, first, group, count)
    runs, groups = count
    return first[:runs + 1].tolist(), group[:groups + 1].tolist()


@pytest.mark.parametrize("start, options, want", [
    ([0, 512, 1024], {}, [0, 3]),
    ([0, 512, 512, 512, 1024], {}, [0, 5]),                              # repeats
    ([0, 1 << 20], {}, [0, 1, 2]),                                       # far apart
    ([0, 3000], dict(amplification=1.0), [0, 2]),                        # on one page
    ([0, 4096], dict(amplification=1.0), [0, 1, 2]),                     # on two
    ([3584, 4096], dict(amplification=1.0), [0, 2]),                     # on two, without a gap
    ([0, 8192], dict(amplification=100.0), [0, 2]),
    ([0, 8192], dict(amplification=100.0, max_gap=7679), [0, 1, 2]),
    ([0, 8192], dict(amplification=100.0, max_gap=7680), [0, 2]),
    ([0, 512, 1024, 1536], dict(max_run=1024), [0, 2, 4]),
    ([0, 512, 512, 1024, 1024], dict(max_run=1024), [0, 3, 5]),          # a repeat never makes a run longer
    ([0, 512, 2048], dict(max_gap=0), [0, 2, 3]),
])
def test_runs(start, options, want):
    assert plan(start, 512, **options)[0] == want


@pytest.mark.parametrize("seed", range(30))
def test_every_run_keeps_its_bounds(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.choice([4, 36, 512, 1000, 5000]))
    rows = np.sort(rng.integers(0, int(rng.choice([50, 3000, 100_000])), 500))
    start = rows * size + 4096
    gap, longest, amplification = 20_000, 60_000, 3.0
    first, group = plan(start, size, gap, longest, amplification)
    assert first[0] == 0 and first[-1] == 500 and group[0] == 0 and group[-1] == len(first) - 1
    assert (np.diff(first) > 0).all() and (np.diff(group) > 0).all()
    for low, high in zip(first[:-1], first[1:], strict=True):
        inside = np.unique(start[low:high])
        span, gaps = inside[-1] + size - inside[0], inside[1:] - inside[:-1] - size
        assert span <= max(longest, size) and (gaps <= gap).all()
        shared = (inside[1:] // 4096 <= (inside[:-1] + size - 1) // 4096)
        assert span <= amplification * size * len(inside) or shared.any()
    for here, there in zip(first[1:-1], first[2:], strict=True):  # neighbours on a page are apart only by length
        if start[here] // 4096 <= (start[here - 1] + size - 1) // 4096 and there:
            low = first[first.index(here) - 1]
            assert start[here] + size - start[low] > longest


def test_groups_hold_similar_work():
    start = np.arange(10_000) * 1_000_000
    first, group = plan(start, 512)
    assert len(first) == 10_001
    assert set(np.diff(group)[:-1]) == {127}  # 4 MiB at 32 KiB + 512 B each
    assert plan([0], 5) == ([0, 1], [0, 1])


@pytest.mark.parametrize("high", [100, 1 << 40])
def test_ascending_is_a_stable_sort(high):
    rng = np.random.default_rng(1)
    for n in (0, 1, 2, 1000):
        rows = rng.integers(0, high, n)
        for given in (rows, np.sort(rows), rows.astype(np.int32) if high == 100 else rows):
            ranked, place = ascending(given)
            np.testing.assert_array_equal(place, np.argsort(given, kind="stable"))
            np.testing.assert_array_equal(ranked, given[place])
            assert ranked.dtype == place.dtype == np.int64
