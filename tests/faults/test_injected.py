"""Faults between a process and its files; ``tools/inject_faults.py`` runs every scenario at every call."""
import pytest


@pytest.mark.parametrize("scenario,stride,least", [("dense", 2, 12), ("reorder-writing", 3, 10), ("in-place", 1, 10),
                                                   ("sparse", 4, 9), ("snapshots", 2, 6), ("fit", 41, 10),
                                                   ("append", 2, 8), ("table", 7, 8)])
def test_killed_before_any_call_nothing_is_lost(inject, scenario, stride, least):
    assert inject("kill", scenario, stride)["killed"] >= least


@pytest.mark.parametrize("scenario,error,stride,least", [("dense", "ENOSPC", 3, 8), ("sparse", "ENOSPC", 5, 8),
                                                         ("snapshots", "EIO", 2, 6), ("sage", "ENOSPC", 29, 3)])
def test_a_full_disk_is_an_error_that_leaves_all_as_it_was(inject, scenario, error, stride, least):
    found = inject("refuse", scenario, error, stride)
    assert found["errors"] >= least
    assert found["harmless"] <= 2  # a folder that could not be made, and is there


@pytest.mark.parametrize("scenario,stride,least", [("dense", 1, 6), ("sparse", 2, 6), ("snapshots", 1, 6),
                                                   ("propagate", 17, 1)])
def test_a_disk_that_cannot_be_read_is_an_error_at_any_call(inject, scenario, stride, least):
    found = inject("read", scenario, "EIO", stride)
    assert found["errors"] >= least and found["harmless"] == 0


@pytest.mark.parametrize("scenario", ["dense", "sparse", "sage"])
def test_short_interrupted_and_slow_calls_change_no_bit(inject, scenario):
    assert inject("noise", scenario)["calls"] > 200
