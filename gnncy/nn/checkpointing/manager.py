"""Activations under a hard budget, where the length of the chain is not known beforehand."""
import os
import threading
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from gnncy._check import check_float
from gnncy._memory import format_bytes, parse_bytes
from gnncy.errors import MemoryLimitError
from gnncy.nn.checkpointing.policy import RecomputationPolicy
from gnncy.nn.checkpointing.store import ActivationStore
from gnncy.storage.plans import DiskModel


@dataclass
class ActivationCheckpoint:
    """One stored activation.

    Attributes
    ----------
    layer : hashable
        The layer whose input it is.
    timestamp : int
        When it was stored or read last, on a clock that counts such events.
    memory_size : int
        Bytes.
    recomputation_cost : float
        Milliseconds to compute it from the activation before it.
    in_memory : bool
        False where it lies on disk.
    """

    layer: Hashable
    timestamp: int
    memory_size: int
    recomputation_cost: float
    in_memory: bool = True


@dataclass(frozen=True)
class CheckpointStatistics:
    """What a :class:`GradientCheckpointManager` holds, and what it has done since it was made or cleared.

    Attributes
    ----------
    total_checkpoints, in_memory_checkpoints : int
        Activations held now, and those of them in memory.
    total_memory, memory_budget, peak_memory : int
        Bytes of memory held now, allowed, and held at most.
    disk_memory : int
        Bytes on disk.
    memory_utilization : float
        ``total_memory / memory_budget``.
    stored, refused, evicted, spilled : int
        Activations accepted; refused by the policy or for want of room; dropped for others; moved to disk for others.
    """

    total_checkpoints: int
    in_memory_checkpoints: int
    total_memory: int
    memory_budget: int
    peak_memory: int
    disk_memory: int
    memory_utilization: float
    stored: int
    refused: int
    evicted: int
    spilled: int


class GradientCheckpointManager:
    r"""Activations of a chain of layers within a number of bytes that is never exceeded.

    Parameters
    ----------
    memory_budget : int or str
        Bytes, or a text such as ``"512MB"``.
    policy : RecomputationPolicy, optional
        Which activations are offered a place; ``RecomputationPolicy.selective()`` by default.
    disk : DiskModel, optional
        Constants of the disk: what is evicted goes there if that is cheaper than recomputing it.
    folder : path, optional
        Where the private file lies.

    Notes
    -----
    Where room is needed, the activation of the least

    .. math:: h = \frac{c + \sum_{u} c_u}{size \cdot staleness}

    goes first: c is its own cost, the sum runs over the layers around it that are not held (all have to be recomputed
    before it can be), staleness is the time since it was stored or read (Kirisame et al., 2021). As many go as are
    needed. The first layer's input anchors every recomputation: the policy is not asked about it, and it is never
    evicted. Arrays are copied in, so the caller may use its buffer again. All methods may be called from several
    threads.

    References
    ----------
    Kirisame et al., Dynamic Tensor Rematerialization, ICLR 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.nn import RecomputationPolicy
    >>> from gnncy.nn.checkpointing import GradientCheckpointManager
    >>> manager = GradientCheckpointManager(1200, RecomputationPolicy.all())
    >>> for layer in range(6):
    ...     kept = manager.checkpoint_activation(layer, np.full(100, layer, np.float32), cost=1.0)
    >>> [layer for layer in range(6) if manager.has_checkpoint(layer)], manager.memory_usage
    ([0, 4, 5], 1200)
    >>> float(manager.get_checkpoint(5)[0]), manager.memory_usage
    (5.0, 800)
    """

    def __init__(self, memory_budget: int | str, policy: RecomputationPolicy | None = None, *,
                 disk: DiskModel | None = None, folder: str | os.PathLike | None = None):
        self._budget = parse_bytes(memory_budget, "memory_budget")
        self.policy = RecomputationPolicy.selective() if policy is None else policy
        if not isinstance(self.policy, RecomputationPolicy):
            raise TypeError(f"policy must be a RecomputationPolicy, got {policy!r}")
        self._store = ActivationStore(disk=disk, folder=folder)  # this class keeps the budget
        self._lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Forget everything, the order of the layers and the statistics too."""
        with self._lock:
            self._store.clear()
            self._held: dict[Hashable, ActivationCheckpoint] = {}
            self._places: dict[Hashable, int] = {}  # every layer seen, in the order of the forward pass
            self._costs: list[float] = []
            self._clock = self._peak = self._stored = self._refused = self._evicted = self._spilled = 0

    @property
    def memory_budget(self) -> int:
        """Bytes allowed."""
        return self._budget

    @property
    def memory_usage(self) -> int:
        """Bytes of memory held now."""
        return self._store.memory_usage

    @property
    def num_checkpoints(self) -> int:
        """Activations held now, in memory or on disk."""
        return len(self._held)

    def has_checkpoint(self, layer: Hashable) -> bool:
        """Whether the activation of ``layer`` is held."""
        return layer in self._held

    def checkpoint_activation(self, layer: Hashable, activation, cost: float = 1.0) -> bool:
        """Offer an activation; layers are offered in the order of the forward pass.

        Parameters
        ----------
        layer : hashable
            The first one offered is the root.
        activation : array_like
            Copied if it is taken. It replaces what was held for this layer.
        cost : float
            Milliseconds to compute it from the activation before it.

        Returns
        -------
        bool
            Whether it is held now.

        Raises
        ------
        MemoryLimitError
            If the root's activation alone exceeds the budget.
        """
        cost = check_float(cost, "cost", 0)
        activation = np.asarray(activation)
        with self._lock:
            self._drop(layer)
            place = self._places.setdefault(layer, len(self._places))
            self._costs[place:place + 1] = [cost]
            root = place == 0
            if not root and not self.policy.stores(place, cost, activation.nbytes):
                self._refused += 1
                return False
            return self._take(layer, activation, cost, root)

    def _take(self, layer, activation, cost, root=False, evict=True) -> bool:
        nbytes = activation.nbytes
        fixed = sum(c.memory_size for c in self._held.values() if self._is_root(c.layer) and c.in_memory)
        if nbytes > self._budget - fixed or not evict and nbytes > self._budget - self.memory_usage:
            if root:
                raise MemoryLimitError(f"memory_budget {format_bytes(self._budget)} does not hold the input of the "
                                       f"first layer, from which all else is recomputed: at least {nbytes} bytes "
                                       f"({format_bytes(nbytes)}) are needed")
            self._refused += 1
            return False
        while self.memory_usage + nbytes > self._budget:
            self._evict()
        self._store.store(layer, activation)
        self._clock += 1
        self._held[layer] = ActivationCheckpoint(layer, self._clock, nbytes, cost)
        self._stored += 1
        self._peak = max(self._peak, self.memory_usage)
        return True

    def _is_root(self, layer) -> bool:
        return self._places[layer] == 0

    def _evict(self) -> None:
        """Drop the activation of least cost / (size x staleness), or move it to disk where that is cheaper."""
        self._clock += 1
        held = {self._places[layer] for layer in self._held}
        costs = {c.layer: self._projected(self._places[c.layer], held) for c in self._held.values()
                 if c.in_memory and not self._is_root(c.layer)}
        victim = min(costs, key=lambda layer: (
            costs[layer] / (max(self._held[layer].memory_size, 1) * (self._clock - self._held[layer].timestamp)),
            self._places[layer]))
        if self._store.spills(self._held[victim].memory_size, 1e-3 * costs[victim]):
            self._store.spill(victim)
            self._held[victim].in_memory = False
            self._spilled += 1
        else:
            self._drop(victim)
            self._evicted += 1

    def _projected(self, place: int, held: set[int]) -> float:
        """Cost of recomputing an activation together with its neighbours that are not held."""
        cost = self._costs[place]
        for step in (-1, 1):
            k = place + step
            while 0 <= k < len(self._costs) and k not in held:
                cost += self._costs[k]
                k += step
        return cost

    def _drop(self, layer) -> bool:
        self._store.remove(layer)
        return self._held.pop(layer, None) is not None

    def get_checkpoint(self, layer: Hashable) -> np.ndarray | None:
        """Take the activation of ``layer`` out: its bytes are free again; None if it is not held."""
        with self._lock:
            array = self.read_checkpoint(layer)
            self._drop(layer)
            return array

    def read_checkpoint(self, layer: Hashable) -> np.ndarray | None:
        """The activation of ``layer``, read-only, which stays; None if it is not held."""
        with self._lock:
            if layer not in self._held:
                return None
            self._clock += 1
            self._held[layer].timestamp = self._clock
            return self._store.retrieve(layer)

    def remove_checkpoint(self, layer: Hashable) -> bool:
        """Forget the activation of ``layer``; False if it is not held."""
        with self._lock:
            return self._drop(layer)

    def get_statistics(self) -> CheckpointStatistics:
        """What is held, and what was done."""
        with self._lock:
            in_memory = sum(c.in_memory for c in self._held.values())
            return CheckpointStatistics(
                len(self._held), in_memory, self.memory_usage, self._budget, self._peak, self._store.disk_usage,
                self.memory_usage / self._budget, self._stored, self._refused, self._evicted, self._spilled)

    def _keep_on_the_way(self, layer: Hashable, activation: np.ndarray, cost: float) -> bool:
        """Hold a recomputed activation if there is room; nothing is evicted for it."""
        with self._lock:
            self._drop(layer)
            return self._take(layer, activation, cost, evict=False)

    def _forget_from(self, place: int) -> None:
        """Forget the layers from number ``place`` on, which are computed anew."""
        with self._lock:
            for layer in [layer for layer, k in self._places.items() if k >= place]:
                self._drop(layer)
                del self._places[layer]
            del self._costs[place:]
