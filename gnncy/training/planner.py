"""The memory plan: what each stage of a run holds, against the one limit, before a byte is read."""
from dataclasses import dataclass, field

from gnncy import _memory
from gnncy.errors import MemoryLimitError

OVERHEAD = 12_000_000
"""Bytes set aside for what cannot be counted: the interpreter's objects, BLAS's packing buffers, code paged in."""


@dataclass
class MemoryPlan:
    """Bytes that each stage of a run holds at the same time, and the limit that they must keep.

    Parameters
    ----------
    limit : int
        Bytes that the run may hold beyond the process's start-up size.
    stages : dict of str to dict of str to int
        For each stage, what it holds and how many bytes.
    held : int, default 0
        Bytes of the limit that the process holds already.

    Examples
    --------
    >>> from gnncy.training import MemoryPlan
    >>> plan = MemoryPlan(64_000_000, {"train": {"graph": 10_000_000}})
    >>> plan.needed
    22000000
    >>> plan.left("train")
    42000000
    """

    limit: int
    stages: dict[str, dict[str, int]] = field(default_factory=dict)
    held: int = 0

    @property
    def needed(self) -> int:
        """The least limit that would do."""
        return OVERHEAD + self.held + max((sum(parts.values()) for parts in self.stages.values()), default=0)

    def left(self, stage: str) -> int:
        """Bytes of the limit that a stage leaves for buffers."""
        return self.limit - OVERHEAD - self.held - sum(self.stages[stage].values())

    def check(self) -> None:
        """Raise MemoryLimitError, naming the least that would do, if the limit is too small."""
        if self.needed > self.limit:
            stage, parts = max(self.stages.items(), key=lambda item: sum(item[1].values()))
            largest = ", ".join(f"{what} {_memory.format_bytes(size)}" for what, size in
                                sorted(parts.items(), key=lambda item: -item[1])[:3])
            least = -(-self.needed // 10**6)
            raise MemoryLimitError(
                f"memory_limit={_memory.format_bytes(self.limit)} is too small: stage '{stage}' needs at least "
                f"{least} MB ({largest}); raise memory_limit to {least}MB or more")

    def as_dict(self) -> dict:
        """The plan as plain numbers."""
        return {"limit": self.limit, "needed": self.needed, "held": self.held, "overhead": OVERHEAD,
                "stages": self.stages}

    def __str__(self) -> str:
        rows = [f"memory limit {_memory.format_bytes(self.limit)}, at least {_memory.format_bytes(self.needed)} needed "
                f"({_memory.format_bytes(self.held)} held already, overhead {_memory.format_bytes(OVERHEAD)})"]
        for stage, parts in self.stages.items():
            holds = ", ".join(f"{what} {_memory.format_bytes(size)}" for what, size in parts.items())
            rows.append(f"  {stage:<10} {_memory.format_bytes(sum(parts.values())):>8}  {holds}")
        return "\n".join(rows)


def resolve_limit(memory_limit) -> int:
    """Bytes of a ``memory_limit=``.

    Parameters
    ----------
    memory_limit : int, str or None
        Bytes, or text such as ``"256MB"`` or ``"2GiB"``; None and ``"auto"`` are half of what the machine, cgroup
        and rlimits leave.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If it is none of these, or not above 0.

    Examples
    --------
    >>> from gnncy.training import resolve_limit
    >>> resolve_limit("256MB"), resolve_limit("1 GiB")
    (256000000, 1073741824)
    """
    if memory_limit is None or memory_limit == "auto":
        return _memory.available() // 2
    return _memory.parse_bytes(memory_limit)
