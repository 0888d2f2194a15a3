import pytest

from gnncy.errors import MemoryLimitError
from gnncy.training import MemoryPlan, resolve_limit
from gnncy.training.planner import OVERHEAD


def test_the_largest_stage_counts():
    plan = MemoryPlan(100_000_000, {"a": {"x": 10, "y": 20}, "b": {"z": 25}}, held=7)
    assert plan.needed == OVERHEAD + 7 + 30
    assert plan.left("b") == 100_000_000 - OVERHEAD - 7 - 25
    plan.check()


def test_a_limit_too_small_is_refused_with_the_least_that_would_do():
    plan = MemoryPlan(50_000_000, {"train": {"weights": 60_000_000, "order": 1_000}})
    with pytest.raises(MemoryLimitError, match=r"stage 'train' needs at least 73 MB \(weights 60 MB.*73MB or more"):
        plan.check()
    MemoryPlan(73_000_000, plan.stages).check()


def test_the_text_names_stages_and_parts():
    text = str(MemoryPlan(10**8, {"smooth": {"tiles": 5 * 10**6}}, held=10**6))
    assert "memory limit 100 MB" in text and "1 MB held already" in text and "smooth" in text and "tiles 5 MB" in text


def test_limits():
    assert resolve_limit("64MB") == 64_000_000
    assert resolve_limit(1000) == 1000
    assert resolve_limit("auto") > 10**6
    for bad in ("lots", "-1MB", 0):
        with pytest.raises(ValueError, match="memory_limit"):
            resolve_limit(bad)
