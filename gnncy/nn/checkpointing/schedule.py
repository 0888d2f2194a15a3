"""Which layers of a chain are kept and which recomputed: schedules, what they cost, and the best ones.

A schedule is a nested tuple of the layers in order. A number is a layer whose saved arrays are kept for the backward
pass; a tuple is a stretch of which only the input is kept, and which is computed again, following the schedule inside
the tuple, when the backward pass gets there. ``(0, 1, 2)`` keeps all, ``((0, 1), 2)`` recomputes layers 0 and 1
together, ``(((0,), 1), 2)`` recomputes first both and then layer 0 alone. ``Spill(1)`` is layer 1 kept on disk.
"""
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gnncy._check import check_int

Schedule = tuple  # of int, Spill and Schedule


class Spill(int):
    """A layer of a schedule whose saved arrays go to disk and come back for its backward pass.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> from gnncy.nn.checkpointing import Spill
    >>> model = nn.MLP([4, 4, 4], rng=0)
    >>> nn.checkpoint_sequential(model, np.ones((3, 4)), (Spill(0), 1, 2)).sum().backward()
    """

    def __repr__(self):
        return f"Spill({int(self)})"


def flatten(schedule) -> Iterator[int]:
    """The layers of a schedule in order."""
    stack = [iter(schedule)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, tuple):
                stack.append(iter(item))
                break
            yield item
        else:
            stack.pop()


def check_schedule(schedule: Schedule, n: int) -> Schedule:
    """Refuse a schedule that does not run layers 0 to n - 1 once each, in order."""
    if list(flatten(schedule)) != list(range(n)):
        raise ValueError(f"the schedule must name layers 0 to {n - 1} once each, in order; got {schedule!r}")
    return schedule


@dataclass(frozen=True)
class Chain:
    """Sizes in bytes and costs in seconds of the layers of a chain, as :func:`measure_chain` finds them.

    Parameters
    ----------
    forward, backward : tuple of float
        Seconds of each layer.
    boundary : tuple of int
        Size of the input of each layer, and of the last one's output; 0 for an array that is held anyway.
    inner : tuple of int
        What a recorded layer keeps besides its input and output.
    keeps_input, keeps_output : tuple of bool
        Whether a recorded layer keeps these too.
    forward_peak, record_peak : tuple of int
        Most bytes that a layer holds beyond its input while it runs, forgotten and recorded.
    working : tuple of int
        Bytes that a layer's passes need for a time besides: gradients, and temporaries inside operations.
    names : tuple of str
    """

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    boundary: tuple[int, ...]
    inner: tuple[int, ...]
    keeps_input: tuple[bool, ...]
    keeps_output: tuple[bool, ...]
    forward_peak: tuple[int, ...]
    record_peak: tuple[int, ...]
    working: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.forward)

    @classmethod
    def uniform(cls, n: int, activation: int = 1, saved: int = 1) -> "Chain":
        """``n`` equal layers of cost 1, backward 2; each keeps ``saved`` bytes, its input among them."""
        peak = activation + max(saved - activation, 0)
        return cls((1.0,) * n, (2.0,) * n, (activation,) * (n + 1), (max(saved - activation, 0),) * n, (True,) * n,
                   (False,) * n, (activation,) * n, (peak,) * n)

    def saved(self, layer: int) -> int:
        """Bytes that a recorded layer keeps."""
        return (self.inner[layer] + self.keeps_input[layer] * self.boundary[layer]
                + self.keeps_output[layer] * self.boundary[layer + 1])


@dataclass(frozen=True)
class Cost:
    """What a schedule costs on a chain.

    ``seconds`` holds ``recompute_seconds``, those of ``extra_forwards`` steps, and what the disk takes for
    ``spilled_bytes``.
    """

    peak_bytes: int
    seconds: float
    extra_forwards: int
    recompute_seconds: float
    spilled_bytes: int


def simulate(chain: Chain, schedule: Schedule, disk=None) -> Cost:
    """Follow a schedule through a forward and a backward pass, array by array.

    Parameters
    ----------
    chain : Chain
    schedule : nested tuple
    disk : DiskModel, optional
        What spilling costs; free without it.

    Returns
    -------
    Cost
        ``extra_forwards`` counts the steps that are run without being recorded: 0 where all is kept.

    Examples
    --------
    >>> from gnncy.nn.checkpointing import Chain, simulate
    >>> simulate(Chain.uniform(4), (0, 1, 2, 3)).extra_forwards
    0
    >>> simulate(Chain.uniform(4), ((0, 1), 2, 3)).extra_forwards
    2
    """
    check_schedule(schedule, len(chain))
    holders: dict[tuple[str, int], int] = {}
    held = peak = spilled = extra = 0
    recomputing, seconds = 0.0, sum(chain.forward) + sum(chain.backward)

    def size(array):
        return chain.boundary[array[1]] if array[0] == "boundary" else chain.inner[array[1]]

    def hold(*arrays):
        nonlocal held, peak
        for array in arrays:
            holders[array] = holders.get(array, 0) + 1
            if holders[array] == 1:
                held += size(array)
        peak = max(peak, held)

    def release(*arrays):
        nonlocal held
        for array in arrays:
            holders[array] -= 1
            if not holders[array]:
                del holders[array]
                held -= size(array)

    def saved(layer):
        return [("inner", layer), *[("boundary", layer)] * chain.keeps_input[layer],
                *[("boundary", layer + 1)] * chain.keeps_output[layer]]

    def forward(items):
        """Run a schedule whose input is held; leave its output held, and return what the backward pass undoes."""
        nonlocal peak, recomputing, seconds, spilled, extra
        done = []
        for item in items:
            layers = list(flatten(item)) if isinstance(item, tuple) else [int(item)]
            first = layers[0]
            if isinstance(item, tuple):
                hold(("boundary", first))
                for layer in layers:
                    peak = max(peak, held + chain.forward_peak[layer])
                    hold(("boundary", layer + 1))
                    release(("boundary", layer))
                    recomputing += chain.forward[layer]
                    extra += 1
            else:
                peak = max(peak, held + chain.record_peak[first])
                hold(("boundary", first + 1))
                if isinstance(item, Spill):
                    spilled += chain.saved(first)
                    if disk is not None:
                        seconds += disk.write_seconds(1, chain.saved(first)) + disk.read_seconds(1, chain.saved(first))
                else:
                    hold(*saved(first))
                release(("boundary", first))
            done.append(item)
        return done

    hold(("boundary", 0))
    stack = forward(schedule)
    release(("boundary", len(chain)))
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            layers = list(flatten(item))
            hold(("boundary", layers[0]))  # by the first layer; the call holds it to its end
            again = forward(item)
            release(("boundary", layers[0]), ("boundary", layers[-1] + 1))
            stack += again
        else:
            if isinstance(item, Spill):
                hold(*saved(int(item)))
            release(*saved(int(item)))
    return Cost(peak, seconds + recomputing, extra, recomputing, spilled)


# -- schedules that need the number of layers alone --------------------------------------------------------------------

def keep_all(n: int) -> Schedule:
    """Nothing is recomputed."""
    return tuple(range(n))


def every(n: int, size: int) -> Schedule:
    """Stretches of ``size`` layers, each recomputed as a whole; the last one is kept."""
    stretches = [tuple(range(start, min(start + size, n))) for start in range(0, n, size)]
    return (*stretches[:-1], *stretches[-1])


def sqrt(n: int) -> Schedule:
    r"""Stretches of :math:`\lceil\sqrt n\rceil` layers: about 2 sqrt(n) activations, under one more forward pass."""
    return every(n, math.isqrt(n - 1) + 1)


def revolve(n: int, slots: int) -> Schedule:
    r"""The fewest forward steps with ``slots`` kept inputs, the chain's among them.

    Parameters
    ----------
    n : int
        Number of layers.
    slots : int

    Returns
    -------
    nested tuple of int

    Notes
    -----
    With :math:`r = \min\{r : \binom{c + r}{c} \ge n\}` for c slots that is :math:`r n - \binom{c + r}{r - 1}` steps.

    References
    ----------
    Griewank and Walther, Algorithm 799: Revolve, ACM Transactions on Mathematical Software 26, 2000.

    Examples
    --------
    >>> from gnncy.nn.checkpointing import Chain, revolve, simulate
    >>> simulate(Chain.uniform(64), revolve(64, 9)).extra_forwards
    126
    """
    check_int(n, "n", 1)
    check_int(slots, "slots", 1)
    return _revolve(0, n, slots)


def _revolve(start: int, stop: int, slots: int) -> Schedule:
    items: list = []
    while stop - start > 1:
        if slots == 1:
            # One input alone: each layer is reached from it anew.
            stretch: Schedule = (start,)
            for layer in range(start + 1, stop - 1):
                stretch = (stretch, layer)
            return (*items, stretch, stop - 1)
        split = split_for_slots(stop - start, slots)
        items.append(_revolve(start, start + split, slots))
        start, slots = start + split, slots - 1
    return (*items, start)


def split_for_slots(n: int, slots: int) -> int:
    """How many of ``n`` steps to advance before the next input is kept: both sides stay within their repetitions."""
    if slots == 1 or n == 1:
        return n - 1
    r = 1
    while math.comb(slots + r, slots) < n:
        r += 1
    return min(math.comb(slots + r - 1, slots), n - math.comb(slots + r - 2, slots - 1))


# -- the best schedule for unequal layers ------------------------------------------------------------------------------

_LEVELS, _ENTRIES = 500, 16_000_000


def least_memory(chain: Chain, *, spill: bool = False) -> tuple[int, Schedule]:
    """Fewest bytes that any schedule needs, and one that needs no more.

    Parameters
    ----------
    chain : Chain
    spill : bool
        Whether layers may go to disk.

    Returns
    -------
    nbytes : int
    schedule : nested tuple

    Examples
    --------
    >>> from gnncy.nn.checkpointing import Chain, least_memory
    >>> least_memory(Chain.uniform(3))
    (3, ((0, 1), 2))
    """
    n = len(chain)
    boundary = np.array(chain.boundary)
    need = np.zeros((2, n + 1, n + 1), np.int64)  # [input paid already, first layer, stop]
    split = np.zeros((2, n + 1, n + 1), np.int64)
    for length in range(1, n + 1):
        for s in range(n - length + 1):
            t = s + length
            for paid in (0, 1):
                own = 0 if paid else boundary[s]
                after = need[int(chain.keeps_output[s]), s + 1, t]
                best, place = max(own + chain.record_peak[s], _kept(chain, s, own) + after), 0
                if spill:
                    best = max(own + chain.record_peak[s], need[0, s + 1, t])
                if length > 1:
                    middle = np.arange(s + 1, t)
                    run = np.maximum.accumulate(_forward_need(chain, s, t - 1))
                    bytes_ = own + np.maximum(run, np.maximum(need[0, middle, t], need[1, s, middle]))
                    k = int(bytes_.argmin())
                    if bytes_[k] < best:
                        best, place = int(bytes_[k]), s + 1 + k
                need[paid, s, t], split[paid, s, t] = best, place

    def build(paid, s, t):
        items: list = []
        while s < t:
            j = split[paid, s, t]
            if j == 0:
                items.append(Spill(s) if spill else s)
                paid, s = 0 if spill else int(chain.keeps_output[s]), s + 1
            else:
                items.append(build(1, s, int(j)))
                paid, s = 0, int(j)
        return tuple(items)

    return int(need[0, 0, n]), build(0, 0, n)


def _kept(chain: Chain, s: int, own: int) -> int:
    """Bytes that layer ``s`` goes on holding once recorded, where it is charged ``own`` for its input."""
    return (chain.inner[s] + chain.keeps_input[s] * own
            + chain.keeps_output[s] * chain.boundary[s + 1])


def _forward_need(chain: Chain, s: int, t: int) -> np.ndarray:
    """Bytes beyond the input of ``s`` that running each layer of ``s .. t - 1`` and forgetting it needs."""
    inputs = np.array(chain.boundary[s:t])
    inputs[:1] = 0
    return inputs + np.array(chain.forward_peak[s:t])


def optimal(chain: Chain, memory: int, disk=None) -> Schedule | None:
    r"""The schedule of least seconds within a number of bytes.

    Parameters
    ----------
    chain : Chain
    memory : int
        Bytes.
    disk : DiskModel, optional
        What the disk costs; without it nothing is spilled.

    Returns
    -------
    nested tuple of int, or None
        None if the levels of memory leave no schedule.

    Notes
    -----
    Dynamic programme over the first layer, the end and the memory, here with the arrays that a layer shares with its
    neighbours counted once, and with the disk as a third way:

    .. math::
        C(s, t, m) = \min\{C(s+1, t, m - kept_s),\; w_s + C(s+1, t, m),\;
        \min_{s<j<t} \sum_{k=s}^{j-1} f_k + C(j, t, m - a_s) + C(s, j, m - a_s)\}

    Sizes are rounded up to levels of memory, at most 500 of them.

    References
    ----------
    Beaumont et al., Optimal Checkpointing for Heterogeneous Chains: How to Train Deep Neural Networks with Limited
    Memory, 2019.

    Examples
    --------
    >>> from gnncy.nn.checkpointing import Chain, optimal
    >>> optimal(Chain.uniform(6), memory=4)
    ((0, 1, 2), (3, 4), 5)
    """
    n = len(chain)
    unit = math.gcd(*chain.boundary, *chain.inner, *chain.forward_peak, *chain.record_peak) or 1
    levels = max(100, min(_LEVELS, _ENTRIES // (2 * (n + 1) ** 2)))
    if memory // unit > levels:
        unit = -(-memory // levels)
    top = memory // unit

    def up(nbytes):
        return -(-int(nbytes) // unit)

    spill = [math.inf] * n if disk is None else [
        disk.write_seconds(1, chain.saved(s)) + disk.read_seconds(1, chain.saved(s)) for s in range(n)]
    table = np.full((2, n + 1, n + 1, top + 1), np.inf, np.float32)
    for s in range(n + 1):
        table[:, s, s] = 0

    def choices(paid, s, t):
        """Cost of every choice for the first layer at every level: keep, spill, stretches up to each end."""
        own = 0 if paid else chain.boundary[s]
        out = np.full((1 + t - s, top + 1), np.inf, np.float32)
        enough = up(own + chain.record_peak[s])
        after = int(chain.keeps_output[s])
        kept = up(_kept(chain, s, own))
        low = max(enough, kept)
        if low <= top:
            out[0, low:] = table[after, s + 1, t, low - kept:top + 1 - kept]
        low = max(enough, up(_kept(chain, s, own)))
        if low <= top and spill[s] < math.inf:
            out[1, low:] = spill[s] + table[0, s + 1, t, low:]
        if t - s > 1:
            held = up(own)
            need = np.array([up(own + x) for x in np.maximum.accumulate(_forward_need(chain, s, t - 1))])
            steps = np.cumsum(chain.forward[s:t - 1]).astype(np.float32)
            both = table[0, s + 1:t, t, :top + 1 - held] + table[1, s, s + 1:t, :top + 1 - held] + steps[:, None]
            out[2:, held:] = np.where(np.arange(held, top + 1) >= need[:, None], both, np.inf)
        return out

    for length in range(1, n + 1):
        for s in range(n - length + 1):
            for paid in (0, 1):
                table[paid, s, s + length] = choices(paid, s, s + length).min(axis=0)
    if not np.isfinite(table[0, 0, n, top]):
        return None

    def build(paid, s, t, m):
        items: list = []
        while s < t:
            k = int(choices(paid, s, t)[:, m].argmin())
            own = 0 if paid else chain.boundary[s]
            if k == 0:
                items.append(s)
                m -= up(_kept(chain, s, own))
                paid, s = int(chain.keeps_output[s]), s + 1
            elif k == 1:
                items.append(Spill(s))
                paid, s = 0, s + 1
            else:
                j = s + k - 1
                m -= up(own)
                items.append(build(1, s, j, m))
                paid, s = 0, j
        return tuple(items)

    return build(0, 0, n, top)
