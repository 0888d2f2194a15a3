"""Backpropagation through a chain of plain functions, for training loops that do not use the tape."""
import os
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gnncy.nn.checkpointing.manager import CheckpointStatistics, GradientCheckpointManager
from gnncy.nn.checkpointing.policy import RecomputationPolicy
from gnncy.nn.checkpointing.schedule import split_for_slots
from gnncy.storage.plans import DiskModel


@dataclass
class _Layer:
    function: Callable[[np.ndarray], np.ndarray]
    cost: float = 0.0
    state: Any = None
    nbytes: int = 0


class EfficientBackprop:
    """A chain of functions on arrays whose inputs are stored within a budget and recomputed where they are missing.

    Parameters
    ----------
    memory_budget : int or str
        Bytes for stored inputs, never exceeded.
    policy : RecomputationPolicy, optional
        Which inputs are offered a place, as for :class:`GradientCheckpointManager`.
    enabled : bool
        Without it every input is kept, whatever the budget: the plain run.
    rng : numpy Generator, optional
        Generator that the functions draw from: its state is put back for each layer that is run again, and for its
        backward function, so that masks repeat.
    disk, folder
        As for :class:`GradientCheckpointManager`.

    Attributes
    ----------
    recomputed : int
        Forward functions run again since the last :meth:`clear_checkpoints`.

    Notes
    -----
    A missing input is computed from the nearest stored one before it. On the way, inputs are kept in the room that is
    free, at the places that make the remaining backward pass need the fewest steps (Griewank and Walther, 2000), so a
    stretch is not run anew for each of its layers.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.nn import RecomputationPolicy
    >>> from gnncy.nn.checkpointing import EfficientBackprop
    >>> backprop = EfficientBackprop("2kB", RecomputationPolicy.every(4))
    >>> x = np.full(100, 0.5, np.float32)
    >>> for layer in range(10):
    ...     x = backprop.forward_with_checkpoint(layer, x, np.sin)
    >>> grad = np.ones(100, np.float32)
    >>> for layer in reversed(range(10)):
    ...     grad = backprop.backward_with_recomputation(layer, grad, lambda x, g: g * np.cos(x))
    >>> round(float(grad[0]), 4), backprop.recomputed
    (0.3827, 7)
    """

    def __init__(self, memory_budget: int | str, policy: RecomputationPolicy | None = None, enabled: bool = True, *,
                 rng: np.random.Generator | None = None, disk: DiskModel | None = None,
                 folder: str | os.PathLike | None = None):
        self.checkpoint_manager = GradientCheckpointManager(memory_budget, policy, disk=disk, folder=folder)
        self._enabled = bool(enabled)
        self._rng = rng
        self.clear_checkpoints()

    @property
    def is_enabled(self) -> bool:
        """Whether inputs are stored by policy and budget."""
        return self._enabled

    def set_enabled(self, enabled: bool) -> None:
        """Switch; only between steps.

        Raises
        ------
        RuntimeError
            Between a forward and a backward pass.
        """
        if self._order:
            raise RuntimeError("checkpointing is switched between steps: finish the backward pass, or call "
                               "clear_checkpoints(), first")
        self._enabled = bool(enabled)

    def clear_checkpoints(self) -> None:
        """Forget all inputs and functions: the next forward pass starts anew."""
        self.checkpoint_manager.clear()
        self._order: list[Hashable] = []
        self._layers: dict[Hashable, _Layer] = {}
        self._plain: dict[Hashable, np.ndarray] = {}
        self.recomputed = 0

    def get_statistics(self) -> CheckpointStatistics:
        """Those of the manager."""
        return self.checkpoint_manager.get_statistics()

    def forward_with_checkpoint(self, layer: Hashable, input: np.ndarray,
                                forward_fn: Callable[[np.ndarray], np.ndarray], cost: float | None = None):
        """``forward_fn(input)``, the input stored if policy and budget allow.

        Parameters
        ----------
        layer : hashable
            Name of the layer, in the order of the chain. A name that was used already starts a new pass from there.
        input : ndarray
            What the layer before returned.
        forward_fn : callable
            From one array to another. It is kept, and called again where an input is missing.
        cost : float, optional
            Milliseconds that it takes; measured by default.

        Returns
        -------
        ndarray

        Raises
        ------
        MemoryLimitError
            If the budget does not hold the first layer's input.
        """
        if layer in self._layers:
            self._forget_from(self._order.index(layer))
        before = self._layers[self._order[-1]].cost if self._order else 0.0
        if self._enabled:
            self.checkpoint_manager.checkpoint_activation(layer, input, before)
        else:
            self._plain[layer] = np.array(input)
        state = None if self._rng is None else self._rng.bit_generator.state
        start = time.perf_counter()
        out = forward_fn(input)
        measured = 1e3 * (time.perf_counter() - start)
        self._order.append(layer)
        self._layers[layer] = _Layer(forward_fn, measured if cost is None else cost, state,
                                      np.asarray(input).nbytes)
        return out

    def _forget_from(self, place: int) -> None:
        self.checkpoint_manager._forget_from(place)
        for layer in self._order[place:]:
            del self._layers[layer]
            self._plain.pop(layer, None)
        del self._order[place:]

    def backward_with_recomputation(self, layer: Hashable, grad_out: np.ndarray,
                                    backward_fn: Callable[[np.ndarray, np.ndarray], np.ndarray]):
        """``backward_fn(input, grad_out)`` with the input that the layer had, recomputed if it is not held.

        Parameters
        ----------
        layer : hashable
            Layers come in the reverse order of the forward pass; what was stored for later ones is given back.
        grad_out : ndarray
            Gradient by the layer's output.
        backward_fn : callable
            From the layer's input and ``grad_out`` to the gradient by the input.

        Returns
        -------
        What ``backward_fn`` returns.

        Raises
        ------
        KeyError
            If the layer was not part of the forward pass, or its backward pass is done.
        """
        if layer not in self._layers:
            raise KeyError(f"layer {layer!r} has no forward pass that waits for its backward pass")
        place = self._order.index(layer)
        self._forget_from(place + 1)
        activation = self._plain[layer] if not self._enabled else self._input(place)
        state = self._layers[layer].state
        with _restored(self._rng, state):
            grad = backward_fn(activation, grad_out)
        self._forget_from(place)
        return grad

    def _input(self, place: int) -> np.ndarray:
        """The input of layer number ``place``: held, or recomputed from the nearest that is."""
        manager = self.checkpoint_manager
        start = place
        while not manager.has_checkpoint(self._order[start]):
            start -= 1
        x = manager.read_checkpoint(self._order[start])
        assert x is not None
        stop = start
        while start < place:
            if stop == start:
                largest = max(self._layers[self._order[k]].nbytes for k in range(start, place))
                free = (manager.memory_budget - manager.memory_usage) // max(largest, 1)
                stop = start + split_for_slots(place - start + 1, 1 + free)
            layer = self._layers[self._order[start]]
            with _restored(self._rng, layer.state):
                x = layer.function(x)
            self.recomputed += 1
            start += 1
            if start == stop and start < place:
                manager._keep_on_the_way(self._order[start], x, layer.cost)
        return x


class _restored:
    """The generator's state put back inside the block."""

    def __init__(self, rng, state):
        self.rng, self.state = rng, state

    def __enter__(self):
        if self.rng is not None:
            self.present, self.rng.bit_generator.state = self.rng.bit_generator.state, self.state

    def __exit__(self, *error):
        if self.rng is not None:
            self.rng.bit_generator.state = self.present
