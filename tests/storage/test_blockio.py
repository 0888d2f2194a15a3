"""The planning kernel: runs, groups and their bounds; the sort in front of it."""
import numpy as np
import pytest

from gnncy._kernels.storage import blockio
from gnncy.storage._blocks import ascending


def plan(start, length, unit=12, max_gap=65536, max_run=1 << 20, free_run=0, amplification=4.0):
    start = np.asarray(start, np.int64)
    start.flags.writeable = False
    length = np.broadcast_to(np.asarray(length, np.int64), start.shape)
    first = np.full(len(start) + 1, -9, np.int64)
    runs = blockio.plan(start, length, unit, max_gap, max_run, free_run, amplification, first)
    assert (first[runs + 1:] == -9).all()
    return first[:runs + 1].tolist()


@pytest.mark.parametrize("start, options, want", [
    ([0, 512, 1024], {}, [0, 3]),
    ([0, 512, 512, 512, 1024], {}, [0, 5]),                              # repeats
    ([0, 1 << 20], {}, [0, 1, 2]),                                       # far apart
    ([0, 3000], dict(amplification=1.0, max_gap=0), [0, 2]),             # on one page
    ([0, 4096], dict(amplification=1.0, max_gap=0), [0, 2]),             # on neighbouring pages
    ([0, 8192], dict(amplification=1.0), [0, 1, 2]),                     # a page between them
    ([0, 8192], dict(amplification=1.5), [0, 2]),
    ([0, 8192], dict(amplification=1.0, free_run=12288), [0, 2]),        # short enough to cost an operation anyway
    ([0, 8192], dict(amplification=1.0, free_run=12287), [0, 1, 2]),
    ([0, 8192], dict(max_gap=4095), [0, 1, 2]),
    ([0, 8192], dict(max_gap=4096), [0, 2]),
    ([0, 8192], dict(unit=0, amplification=100.0, max_gap=7679), [0, 1, 2]),
    ([0, 8192], dict(unit=0, amplification=100.0, max_gap=7680), [0, 2]),
    ([0, 512, 1024, 1536], dict(unit=0, max_run=1024), [0, 2, 4]),
    ([0, 4096, 8192, 12288], dict(max_run=8192), [0, 2, 4]),
    ([0, 512, 512, 1024, 1024], dict(unit=0, max_run=1024), [0, 3, 5]),  # a repeat never makes a run longer
    ([0, 512, 2048], dict(unit=0, max_gap=0), [0, 2, 3]),
    ([], {}, [0]),
])
def test_runs(start, options, want):
    assert plan(start, 512, **options) == want


@pytest.mark.parametrize("unit", [0, 12])
@pytest.mark.parametrize("seed", range(15))
def test_every_run_keeps_its_bounds(seed, unit):
    rng = np.random.default_rng(seed)
    size = int(rng.choice([4, 36, 512, 1000, 5000]))
    rows = np.sort(rng.integers(0, int(rng.choice([50, 3000, 100_000])), 500))
    start = rows * size + 4096
    gap, longest, free, amplification = 20_000, 60_000, 30_000, 3.0
    first = plan(start, size, unit, gap, longest, free, amplification)
    assert first[0] == 0 and first[-1] == 500 and (np.diff(first) > 0).all()
    low, high = start >> unit, (start + size - 1 >> unit) + 1

    def allowed(i, j):
        before = np.concatenate([low[i:i + 1], high[i:j - 1]])
        needed = int((high[i:j] - np.maximum(low[i:j], before)).sum())
        span = (high[j - 1] - low[i]) << unit
        gaps = (low[i + 1:j] - high[i:j - 1]) << unit
        return (gaps <= gap).all() and span <= longest and (span <= free or span <= amplification * (needed << unit))

    for i, j in zip(first[:-1], first[1:], strict=True):
        assert j == i + 1 or allowed(i, j)
        assert j == 500 or not allowed(i, j + 1)  # a run ends only where it must


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
