"""Stretches of the tape that are forgotten in the forward pass and computed again in the backward pass."""
import weakref
import zlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from gnncy.nn.checkpointing.schedule import Schedule, Spill, check_schedule, flatten
from gnncy.nn.checkpointing.store import SpillFile, spilling
from gnncy.nn.tensor import Operation, Tensor, Watcher, forgetting, grad_enabled, recording, watching


class _Keys(Watcher):
    """The operations of a stretch and the random keys of theirs: noted the first time, repeated the second."""

    def __init__(self):
        self.noted: list[tuple[type[Operation], int | None]] = []
        self.place: int | None = None

    def before(self, operation, options):
        if self.place is None:
            self.noted.append((operation, options.get("key")))
            return
        if self.place == len(self.noted) or self.noted[self.place][0] is not operation:
            self._differs()
        key = self.noted[self.place][1]
        if key is not None:
            options["key"] = key
        self.place += 1

    def repeat(self) -> None:
        self.place = 0

    def finish(self, sound: bool) -> None:
        if self.place != len(self.noted) or not sound:
            self._differs()

    def _differs(self):
        raise RuntimeError("the checkpointed function ran other operations the second time than the first; it must do "
                           "the same again: leave train() and eval(), its inputs and what it reads as they were until "
                           "backward has ended")


class _Result(Operation):
    """Stands on the tape for one result of a stretch; when its turn comes in the backward pass, the stretch runs."""

    def __init__(self, stretch: "_Stretch"):
        self.stretch = stretch

    def again(self):
        return self.stretch.again()


class _Stretch:
    """A function, its inputs, and what makes it do the same a second time."""

    def __init__(self, function, inputs, rng, check):
        self.function, self.arguments, self.rng, self.check = function, inputs, rng, check
        self.keys = _Keys()
        self.state = None if rng is None else rng.bit_generator.state
        self.places: list[weakref.ref[_Result]] = []
        self.checksum: list[int] = []

    def first(self):
        with recording(forget=True), watching(self.keys):
            out = self.function(*self.arguments)
        results = _results(out)
        if self.check:
            self.checksum = _checksum(results)
        tensors = tuple(x for x in self.arguments if isinstance(x, Tensor))
        results = tuple(self._stand_in(x, tensors) if x.requires_grad else x for x in results)
        return results[0] if isinstance(out, Tensor) else results

    def _stand_in(self, result: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        node, out = _Result(self), Tensor(result.data)
        node.needs = tuple(x.requires_grad for x in tensors)
        node.link(tensors, out)
        self.places.append(weakref.ref(node))
        return out

    def again(self) -> list[tuple[Operation, Tensor]]:
        function, arguments = self.function, self.arguments
        self.function = self.arguments = None  # so that nothing but the call holds the inputs
        if self.rng is not None:
            present, self.rng.bit_generator.state = self.rng.bit_generator.state, self.state
        self.keys.repeat()
        try:
            with recording(forget=False, repeated=True), watching(self.keys):
                results = _results(function(*arguments))
        finally:
            if self.rng is not None:
                self.rng.bit_generator.state = present
        needed = [x for x in results if x.requires_grad]
        self.keys.finish(len(needed) == len(self.places))
        if self.check and _checksum(results) != self.checksum:
            raise RuntimeError("the checkpointed function gave other values the second time than the first: it draws "
                               "from a generator that it was not checkpointed with (rng=), or what it reads changed")
        places = [place() for place in self.places]
        return [(place, x) for place, x in zip(places, needed, strict=True) if place is not None]


def _results(out) -> tuple[Tensor, ...]:
    results = (out,) if isinstance(out, Tensor) else out
    if not isinstance(results, tuple) or not all(isinstance(x, Tensor) for x in results):
        raise TypeError(f"a checkpointed function must return a Tensor or a tuple of Tensors, got {out!r:.80}")
    return results


def _checksum(results: tuple[Tensor, ...]) -> list[int]:
    return [zlib.crc32(np.ascontiguousarray(x.data).data) for x in results]


def checkpoint(function: Callable, *inputs, rng: np.random.Generator | None = None, check: bool = False):
    """``function(*inputs)``, of which nothing is kept but the inputs; the backward pass computes it again.

    Parameters
    ----------
    function : callable
        Returns a Tensor, or a tuple of them. A :class:`~gnncy.nn.Module`, or anything that does the same when it is
        called again: it may use parameters, which receive their gradients, and call ``checkpoint`` itself.
    *inputs : Tensor or anything
        Passed on. The Tensors are kept alive until the backward pass has used them.
    rng : numpy Generator, optional
        Generator that ``function`` draws from: its state is put back for the second time, and afterwards to what it
        is then. Keys of :func:`~gnncy.nn.dropout` are repeated without being asked.
    check : bool
        Keep a checksum of the result and compare the second result with it, at about a millisecond a megabyte.

    Returns
    -------
    Tensor or tuple of Tensor
        What ``function`` returns.

    Raises
    ------
    TypeError
        If ``function`` returns anything else.
    RuntimeError
        In the backward pass, if ``function`` does not run the same operations again or, under ``check``, gives other
        values.

    Notes
    -----
    Gradients have the bits of the run without: the operations of the second time take the place of the stretch on the
    tape, so that every sum of gradients has its order.

    References
    ----------
    Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> layer = nn.MLP([4, 64, 4], rng=0)
    >>> x = nn.Tensor(np.ones((8, 4)), requires_grad=True)
    >>> nn.checkpoint(layer, x).sum().backward()
    >>> x.grad.shape, layer.layers[0].weight.grad.shape
    ((8, 4), (4, 64))
    """
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy Generator, got {type(rng).__name__}")
    if not grad_enabled() or forgetting():
        return function(*inputs)
    return _Stretch(function, inputs, rng, check).first()


def checkpoint_sequential(layers, x, policy=None) -> Tensor:
    """Apply layers one after the other, keeping and recomputing as a policy says.

    Parameters
    ----------
    layers : Sequential or sequence of callables
        Each takes one Tensor and returns one; ``functools.partial(layer, graph)`` gives a layer its graph.
    x : Tensor or array
        Input of the first.
    policy : RecomputationPolicy or schedule, optional
        Without one, :meth:`RecomputationPolicy.sqrt`. A policy that needs the sizes and costs of the layers measures
        them on ``x`` when it first sees these layers with an input of this shape. A schedule is what
        :meth:`RecomputationPolicy.schedule` returns.

    Returns
    -------
    Tensor

    Raises
    ------
    MemoryLimitError
        If the policy has a memory budget that no schedule fits; the message names the least that would do.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> model = nn.MLP([8, 8, 8, 8, 8], rng=0)
    >>> x = np.ones((4, 8), np.float32)
    >>> y = nn.checkpoint_sequential(model, x, nn.RecomputationPolicy.every(3))
    >>> bool((y.data == model(x).data).all())
    True
    """
    layers = as_layers(layers)
    x = x if isinstance(x, Tensor) else Tensor(x)
    if not grad_enabled() or forgetting():
        return _run(layers, range(len(layers)), x, None)
    if policy is None:
        from gnncy.nn.checkpointing.policy import RecomputationPolicy
        policy = RecomputationPolicy.sqrt()
    if isinstance(policy, tuple):
        schedule = check_schedule(policy, len(layers))
    else:
        schedule = policy.plan(layers, x)
    spills = any(isinstance(item, Spill) for item in flatten(schedule))
    return _run(layers, schedule, x, SpillFile(getattr(policy, "folder", None)) if spills else None)


def as_layers(layers) -> list[Callable[[Tensor], Tensor]]:
    """The layers of a Sequential, or of a sequence; a single module is one layer."""
    layers = getattr(layers, "layers", layers)
    layers = list(layers) if isinstance(layers, Sequence) else [layers]
    for i, layer in enumerate(layers):
        if not callable(layer):
            raise TypeError(f"layer {i} must be callable, got {type(layer).__name__}")
    if not layers:
        raise ValueError("there must be at least one layer")
    return layers


def _run(layers, schedule: Schedule | range, x: Tensor, file: SpillFile | None) -> Tensor:
    if forgetting():
        schedule = tuple(flatten(schedule))
    for item in schedule:
        if isinstance(item, tuple):
            x = checkpoint(partial(_run, layers, item, file=file), x)
        elif isinstance(item, Spill) and file is not None and not forgetting():
            with spilling(file):
                x = layers[item](x)
        else:
            x = layers[item](x)
    return x
