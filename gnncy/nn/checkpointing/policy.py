"""What is kept and what is recomputed: one small class, made by a method for each policy."""
import math
import operator
import os
from collections.abc import Callable
from functools import partial

from gnncy._check import check_float, check_int
from gnncy._memory import format_bytes, parse_bytes
from gnncy.errors import MemoryLimitError
from gnncy.nn.checkpointing import schedule as schedules
from gnncy.nn.checkpointing.schedule import Chain, Schedule, simulate
from gnncy.storage.plans import DiskModel


class RecomputationPolicy:
    """Which activations are kept for the backward pass; the others are recomputed.

    Made by its class methods: :meth:`off`, :meth:`all`, :meth:`none`, :meth:`every`, :meth:`selective`, :meth:`sqrt`,
    :meth:`revolve`, :meth:`optimal`, :meth:`budget`; or by hand for a policy of one's own.

    Parameters
    ----------
    name : str
        As the policy is written, without the class.
    schedule : callable
        From a :class:`Chain` to a schedule.
    measures : bool
        Whether it needs the sizes and costs of the layers, or their number alone.
    stores : callable
        See :meth:`stores`; everything by default.
    disk : DiskModel, optional
        Costs of the disk that spilled layers go to.
    folder : path, optional
        Where their file lies.

    Notes
    -----
    A policy serves twice. For a chain of known length, :meth:`schedule` is the whole plan. For a
    :class:`GradientCheckpointManager`, which sees one activation after the other, :meth:`stores` says whether an
    activation is stored at all; the manager's budget then decides what stays.

    Examples
    --------
    >>> from gnncy.nn import RecomputationPolicy
    >>> from gnncy.nn.checkpointing import Chain
    >>> RecomputationPolicy.sqrt().schedule(Chain.uniform(9))
    ((0, 1, 2), (3, 4, 5), 6, 7, 8)
    >>> RecomputationPolicy.budget(4).schedule(Chain.uniform(6))
    ((0, 1, 2), (3, 4), 5)
    """

    def __init__(self, name: str, schedule: Callable[[Chain], Schedule], *, measures: bool = False,
                 stores: Callable[[int, float, int], bool] = lambda place, cost, nbytes: True,
                 disk: DiskModel | None = None, folder: str | os.PathLike | None = None):
        self.name, self.measures, self.disk, self.folder = name, measures, disk, folder
        self._schedule, self._stores = schedule, stores
        self._planned: tuple | None = None

    def __repr__(self) -> str:
        return f"RecomputationPolicy.{self.name}"

    @classmethod
    def off(cls) -> "RecomputationPolicy":
        """Everything is kept: the plain run."""
        return cls("off()", lambda chain: schedules.keep_all(len(chain)))

    @classmethod
    def all(cls) -> "RecomputationPolicy":
        """The input of every layer is kept, and each layer recomputed by itself."""
        return cls("all()", lambda chain: schedules.every(len(chain), 1))

    @classmethod
    def none(cls) -> "RecomputationPolicy":
        """The input of the chain alone is kept: L (L - 1) / 2 forward steps for L layers."""
        return cls("none()", lambda chain: schedules.revolve(len(chain), 1),
                   stores=lambda place, cost, nbytes: False)

    @classmethod
    def every(cls, n: int) -> "RecomputationPolicy":
        """The input of every ``n``-th layer is kept, the last stretch whole."""
        n = check_int(n, "n", 1)
        return cls(f"every({n})", lambda chain: schedules.every(len(chain), n),
                   stores=lambda place, cost, nbytes: place % n == 0)

    @classmethod
    def selective(cls, cost_threshold: float = 100.0, *, longest_gap: int = 8) -> "RecomputationPolicy":
        """What is dear to recompute for its size is kept, and something in every ``longest_gap`` layers.

        Parameters
        ----------
        cost_threshold : float
            Cost for each megabyte (10**6 bytes) from which a layer is kept: milliseconds where the layers are
            measured, the unit of the caller's costs in a :class:`GradientCheckpointManager`.
        longest_gap : int
            Most layers that are recomputed in a row.
        """
        threshold = check_float(cost_threshold, "cost_threshold", 0)
        gap = check_int(longest_gap, "longest_gap", 1)

        def dear(cost, nbytes):
            return cost * 1e6 >= threshold * nbytes

        def schedule(chain):
            items: list = []
            stretch: list[int] = []
            for layer in range(len(chain)):
                if dear(1e3 * chain.forward[layer], chain.saved(layer)) or layer == len(chain) - 1:
                    items += [tuple(stretch)] if stretch else []
                    items.append(layer)
                    stretch = []
                else:
                    stretch.append(layer)
                    if len(stretch) == gap:
                        items.append(tuple(stretch))
                        stretch = []
            return tuple(items)

        return cls(f"selective({threshold:g}, longest_gap={gap})", schedule, measures=True,
                   stores=lambda place, cost, nbytes: place % gap == 0 or dear(cost, nbytes))

    @classmethod
    def sqrt(cls) -> "RecomputationPolicy":
        r"""Stretches of :math:`\lceil\sqrt L\rceil` layers (Chen et al., 2016): less than one more forward pass."""
        return cls("sqrt()", lambda chain: schedules.sqrt(len(chain)))

    @classmethod
    def revolve(cls, slots: int) -> "RecomputationPolicy":
        """At most ``slots`` inputs kept at once, the chain's among them, and the fewest forward steps that allows.

        Best for equal layers (Griewank and Walther, 2000); one layer at a time is recorded.
        """
        slots = check_int(slots, "slots", 1)
        return cls(f"revolve({slots})", lambda chain: schedules.revolve(len(chain), slots))

    @classmethod
    def optimal(cls, memory_budget: int | str) -> "RecomputationPolicy":
        """The dynamic programme for unequal sizes and costs within ``memory_budget`` (Beaumont et al., 2019)."""
        memory = parse_bytes(memory_budget, "memory_budget")
        return cls(f"optimal({memory_budget!r})", lambda chain: _fitting(chain, memory, None, []), measures=True)

    @classmethod
    def budget(cls, memory_budget: int | str, *, disk: DiskModel | None = None,
               folder: str | os.PathLike | None = None) -> "RecomputationPolicy":
        """The quickest schedule whose activations never exceed ``memory_budget``.

        Parameters
        ----------
        memory_budget : int or str
            Bytes, or a text such as ``"512MB"``.
        disk : DiskModel, optional
            What the disk under ``folder`` costs: layers are kept there where that is quicker than recomputing.
            Without it nothing is written.
        folder : path, optional
            Where the private file lies; the system's folder for temporary files by default.

        Raises
        ------
        MemoryLimitError
            By :meth:`schedule`, if nothing fits; the message names the least that would do.
        """
        memory = parse_bytes(memory_budget, "memory_budget")

        def schedule(chain):
            n = len(chain)
            simple = [schedules.keep_all(n), *(schedules.every(n, size) for size in range(1, n))]
            return _fitting(chain, memory, disk, simple)

        return cls(f"budget({memory_budget!r})", schedule, measures=True, disk=disk, folder=folder)

    def stores(self, place: int, cost: float, nbytes: int) -> bool:
        """Whether the activation before layer number ``place``, ``cost`` to recompute, is stored at all."""
        return self._stores(place, cost, nbytes)

    def schedule(self, chain: Chain) -> Schedule:
        """The schedule for a chain, as :func:`checkpoint_sequential` takes it.

        Parameters
        ----------
        chain : Chain
            From :func:`measure_chain`, or made by hand.

        Returns
        -------
        nested tuple of int
            A number is a layer that is kept, a tuple a stretch that is recomputed.

        Raises
        ------
        MemoryLimitError
            If there is a budget that nothing fits; the message names the least that would do.
        """
        return self._schedule(chain)

    def plan(self, layers, x) -> Schedule:
        """The schedule for layers and an input; measured again only for other layers or another kind of input."""
        if not self.measures:
            return self._schedule(Chain.uniform(len(layers)))
        from gnncy.nn.checkpointing.measure import measure_chain
        parts = [part for layer in layers for part in _parts(layer)]
        kind = (x.shape, x.dtype, x.is_leaf, x.requires_grad, *(getattr(part, "training", None) for part in parts))
        if self._planned is not None:
            known, known_kind, schedule = self._planned
            if known_kind == kind and len(known) == len(parts) and all(map(operator.is_, known, parts)):
                return schedule
        schedule = self.schedule(measure_chain(layers, x, working=False))
        self._planned = parts, kind, schedule
        return schedule


def _parts(layer) -> list:
    """A layer; for a ``functools.partial``, made anew at every step, what it is made of."""
    return [layer.func, *layer.args, *layer.keywords.values()] if isinstance(layer, partial) else [layer]


def _fitting(chain: Chain, memory: int, disk, candidates: list[Schedule]) -> Schedule:
    """The quickest of the best schedule and some simple ones that fits ``memory``."""
    least, frugal = schedules.least_memory(chain, spill=disk is not None)
    if memory < least:
        everything = simulate(chain, schedules.keep_all(len(chain))).peak_bytes
        raise MemoryLimitError(f"memory_budget {format_bytes(memory)} is too small for the activations of these "
                               f"{len(chain)} layers: the least that would do is {least} bytes "
                               f"({format_bytes(least)}); keeping all takes {format_bytes(everything)}")
    best = schedules.optimal(chain, memory, disk)
    candidates = [*candidates, frugal, *([] if best is None else [best])]
    costs = [simulate(chain, candidate, disk) for candidate in candidates]
    fitting = [(cost.seconds, cost.peak_bytes, k) for k, cost in enumerate(costs) if cost.peak_bytes <= memory]
    return candidates[min(fitting, default=(math.inf, 0, len(candidates) - 1))[2]]
