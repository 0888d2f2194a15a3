"""Comparisons with other libraries and with the machine's limits, both sides interleaved in one run.

A comparison is a function marked with :func:`comparison`. It prepares its data and yields :class:`Case` objects: two
calls that do the same work. ``python -m asv_bench.peers --help`` runs them.
"""
import gc
import importlib
import pkgutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from gnncy._threads import working_threads

LEAST_SECONDS = 0.05  # a round repeats a call until it has taken this long


@dataclass
class Case:
    """Two calls that do the same work.

    ``peer`` names the other side. ``amount`` is the work of one call in ``unit`` times a second (a rate); without it
    times are compared, in ms. ``asked`` is the least ratio of the speeds, ours to the peer's, that satisfies us; None
    where nothing is asked. ``same(ours, theirs)`` raises if the two results differ by more than they may.
    """

    setting: str
    ours: Callable[[], object]
    peer: str
    theirs: Callable[[], object]
    asked: float | None = None
    unit: str = "ms"
    amount: float | None = None
    same: Callable[[object, object], None] | None = None

    def value(self, seconds: float) -> float:
        value = 1e3 * seconds if self.amount is None else self.amount / seconds
        return float(f"{value:.4g}")


REGISTRY: dict[str, Callable[..., Iterator]] = {}


def comparison(function):
    """Register ``function(quick, stack)`` under its name; what it enters on ``stack`` is closed after its last case."""
    REGISTRY[function.__name__] = function
    return function


def table(function):
    """Register ``function(quick, threads)``, which measures by itself and yields its rows.

    For calls that take too long, or too much memory, for alternating rounds: one run of each.
    """
    function.measures = True
    REGISTRY[function.__name__] = function
    return function


def run(name: str, *, threads: int = 1, rounds: int = 7, quick: bool = False) -> Iterator[dict]:
    """Run the comparison ``name``: one row a case."""
    if hasattr(REGISTRY[name], "measures"):
        yield from ({"name": name, "threads": threads, **row} for row in REGISTRY[name](quick, threads))
        return
    with ExitStack() as stack:
        for case in REGISTRY[name](quick, stack):
            ours, theirs = measure(case, threads, rounds)
            yield {"name": name, "setting": case.setting, "threads": threads, "ours": case.value(ours),
                   "peer": case.peer, "peer_value": case.value(theirs), "unit": case.unit,
                   "ratio": float(f"{theirs / ours:.3g}"), "asked": case.asked}


def measure(case: Case, threads: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a call of ours and of theirs, in alternating rounds."""
    sides = (_ours(case.ours, threads), _theirs(case.theirs, threads))
    results = [side(1)[1] for side in sides]
    if case.same is not None:
        case.same(*results)
    del results
    repeats = [max(1, round(LEAST_SECONDS / side(1)[0])) for side in sides]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for k in (0, 1) if turn % 2 == 0 else (1, 0):
            times[k].append(sides[k](repeats[k])[0])
    return statistics.median(times[0]), statistics.median(times[1])


def _ours(call, threads):
    def side(repeats):
        with working_threads(threads):
            return _timed(call, repeats)
    return side


def _theirs(call, threads):
    from threadpoolctl import threadpool_limits

    def side(repeats):
        with threadpool_limits(threads):
            return _timed(call, repeats)
    return side


def _timed(call, repeats):
    gc.collect()
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
    return (time.perf_counter() - start) / repeats, result


for _module in pkgutil.iter_modules(__path__):  # each registers its comparisons
    if _module.name != "__main__":
        importlib.import_module(f"{__name__}.{_module.name}")
