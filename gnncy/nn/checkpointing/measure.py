"""What a training step costs, foretold from its layers; and what a real one kept."""
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from gnncy._memory import format_bytes
from gnncy.nn import ops
from gnncy.nn.checkpointing.meter import ActivationMeter, owner
from gnncy.nn.checkpointing.policy import RecomputationPolicy
from gnncy.nn.checkpointing.recompute import as_layers, checkpoint_sequential
from gnncy.nn.checkpointing.schedule import Chain, Schedule, check_schedule, simulate
from gnncy.nn.modules import Module
from gnncy.nn.tensor import Parameter, Tensor, Watcher, forgetting, recording, watching


class _Saved(Watcher):
    """Which arrays the operations of a layer save, and which leaves they give gradients to."""

    def __init__(self):
        self.arrays: dict[int, int] = {}
        self.outside: set[int] = set()
        self.leaves: dict[int, Tensor] = {}

    def after(self, node, inputs, out):
        if out is None or not out.requires_grad or forgetting():
            return
        for x in inputs:
            if x.is_leaf:
                self.outside.add(id(owner(x.data)))
                if x.requires_grad:
                    self.leaves[id(x)] = x
        self.outside.update(id(owner(x)) for x in node.options.values() if isinstance(x, np.ndarray))
        for value in node.saved:
            if isinstance(value, np.ndarray):
                self.arrays[id(owner(value))] = owner(value).nbytes

    def nbytes(self) -> int:
        return sum(size for key, size in self.arrays.items() if key not in self.outside)


@dataclass
class _Layer:
    forward: float
    backward: float
    inner: int
    keeps_input: bool
    keeps_output: bool
    forward_peak: int
    record_peak: int
    working: int
    output_bytes: int | None  # None where the output is a view of the input
    needs_grad: bool


def measure_chain(layers, x, *, working: bool = True) -> Chain:
    """Measure the layers of a chain, one after the other, each forward and backward.

    Parameters
    ----------
    layers : Sequential or sequence of callables
    x : Tensor or array
        The input that training will see, or one of its shape.
    working : bool
        Measure what the passes need besides activations too, which takes another forward and backward pass.

    Returns
    -------
    Chain

    Notes
    -----
    No more than one layer's activations are held at a time. Equal layers (modules of one type with equal settings,
    parameters of equal shapes and the very same other attributes) whose input and output have one shape are measured
    once.
    Gradients and running statistics are left as they are.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> from gnncy.nn.checkpointing import measure_chain
    >>> chain = measure_chain(nn.MLP([8, 16, 4], rng=0), np.ones((10, 8), np.float32))
    >>> chain.names, chain.boundary
    (('Linear', 'ReLU', 'Linear'), (0, 640, 640, 160))
    """
    layers = as_layers(layers)
    x = x if isinstance(x, Tensor) else Tensor(x)
    data, needs = x.data, x.requires_grad
    boundary = [0 if x.is_leaf else owner(data).nbytes]
    known: dict[tuple, _Layer] = {}
    measured = []
    for layer in layers:
        key = (_signature(layer), data.shape, data.dtype, needs)
        found = known.get(key)
        if found is None:
            found, out = _measure(layer, data, needs, working)
            if out.shape == data.shape and out.dtype == data.dtype:
                known[key] = found  # the input stands for the output of such a layer, so none is held
            data = out
            del out
        measured.append(found)
        boundary.append(boundary[-1] if found.output_bytes is None else found.output_bytes)
        needs = found.needs_grad

    def column(name):
        return tuple(getattr(found, name) for found in measured)

    return Chain(column("forward"), column("backward"), tuple(boundary), column("inner"), column("keeps_input"),
                 column("keeps_output"), column("forward_peak"), column("record_peak"), column("working"),
                 tuple(_name(layer) for layer in layers))


def _name(layer) -> str:
    layer = layer.func if isinstance(layer, partial) else layer
    return type(layer).__name__ if isinstance(layer, Module) else getattr(layer, "__name__", type(layer).__name__)


def _signature(value):
    """What two layers must have in common to cost the same."""
    if isinstance(value, Parameter):
        return value.shape, value.dtype, value.requires_grad
    if isinstance(value, Module):
        return type(value), tuple((name, _signature(x)) for name, x in vars(value).items() if name != "key")
    if isinstance(value, partial):
        return _signature(value.func), _signature(value.args), _signature(tuple(value.keywords.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)


def _measure(layer: Callable[[Tensor], Tensor], data: np.ndarray, needs: bool,
             working: bool) -> tuple[_Layer, np.ndarray]:
    x = Tensor(data, requires_grad=needs)
    with recording(forget=True, repeated=True), ActivationMeter() as meter:
        layer(x)
    forward_peak = meter.peak

    saved = _Saved()
    with recording(forget=False, repeated=True), ActivationMeter() as meter, watching(saved):
        start = time.perf_counter()
        out = layer(x)
        forward = time.perf_counter() - start
    alias = owner(out.data) is owner(data)
    kept = {id(leaf): leaf.grad for leaf in saved.leaves.values()}
    try:
        for leaf in saved.leaves.values():
            leaf.grad = None
        inner = meter.current - (0 if alias else owner(out.data).nbytes)
        backward, more = 0.0, 0
        if out.requires_grad:
            grad = np.ones(out.shape, out.dtype)
            start = time.perf_counter()
            out.backward(grad)
            backward = time.perf_counter() - start
            if working:
                forwards, both = _traced(layer, x, grad)
                # A stretch that is run again has the gradient of its result wait beside it.
                more = max(forwards - meter.peak + grad.nbytes, both - meter.peak)
    finally:
        for leaf in saved.leaves.values():
            leaf.grad = kept[id(leaf)]
    found = _Layer(forward, backward, inner, id(owner(data)) in saved.arrays,
                   not alias and id(owner(out.data)) in saved.arrays, forward_peak, meter.peak, max(more, 0),
                   None if alias else owner(out.data).nbytes, out.requires_grad)
    return found, out.data


def _traced(layer, x: Tensor, grad: np.ndarray) -> tuple[int, int]:
    """Most bytes that a forward pass allocates, and that both passes do, the first gradient included."""
    running = tracemalloc.is_tracing()
    if not running:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        with recording(forget=False, repeated=True):
            out = layer(x)
        forwards = tracemalloc.get_traced_memory()[1] - before
        out.backward(grad)
        return forwards, tracemalloc.get_traced_memory()[1] - before
    finally:
        if not running:
            tracemalloc.stop()


@dataclass(frozen=True)
class Estimate:
    """What a forward and a backward pass will take; ``print`` it for a table.

    Attributes
    ----------
    policy : str
    schedule : nested tuple
    activation_bytes : int
        Most bytes of activations at a time: results of operations and what they save.
    working_bytes : int
        Most bytes of gradients on their way, and of temporaries inside an operation.
    seconds : float
    extra_forwards : int
        Layers that are run a second time or more.
    recompute_seconds : float
        Their part of ``seconds``.
    spilled_bytes : int
        Written to disk and read back.
    chain : Chain
        The layers, as measured.
    """

    policy: str
    schedule: Schedule
    activation_bytes: int
    working_bytes: int
    seconds: float
    extra_forwards: int
    recompute_seconds: float
    spilled_bytes: int
    chain: Chain = field(repr=False)

    @property
    def peak_bytes(self) -> int:
        """Activations and working memory together, an upper bound: they need not meet."""
        return self.activation_bytes + self.working_bytes

    def __str__(self) -> str:
        rows = [("policy", self.policy), ("layers", str(len(self.chain))),
                ("activations", format_bytes(self.activation_bytes)),
                ("working memory", format_bytes(self.working_bytes)),
                ("peak, at most", format_bytes(self.peak_bytes)),
                ("time", f"{self.seconds:.3g} s, {self.recompute_seconds:.3g} s of it recomputing"),
                ("extra layer passes", str(self.extra_forwards)),
                ("to disk and back", format_bytes(self.spilled_bytes))]
        return "\n".join(f"{name:<20}{value}" for name, value in rows)


def estimate(model, batch, policy: RecomputationPolicy | Schedule | None = None) -> Estimate:
    """Bytes and seconds of a forward and backward pass, before it is run as a whole.

    Parameters
    ----------
    model : Sequential, sequence of layers, Module, or Chain
        Anything but a sequence counts as one layer. A :class:`Chain`, measured before, is not measured again.
    batch : Tensor or array
        Input of the first layer; ignored for a Chain.
    policy : RecomputationPolicy or schedule, optional
        :meth:`RecomputationPolicy.off` by default.

    Returns
    -------
    Estimate
        The loss's own arrays come on top.

    Raises
    ------
    MemoryLimitError
        If the policy's budget is too small; the message names the least that would do.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> from gnncy.nn.checkpointing import estimate
    >>> model = nn.Sequential(*[nn.Linear(32, 32, rng=i) for i in range(16)])
    >>> x = np.ones((1000, 32), np.float32)
    >>> plain = estimate(model, x)
    >>> plain.activation_bytes
    2048000
    >>> estimate(model, x, nn.RecomputationPolicy.sqrt()).activation_bytes
    896000
    """
    chain = model if isinstance(model, Chain) else measure_chain(model, batch)
    policy = RecomputationPolicy.off() if policy is None else policy
    if isinstance(policy, tuple):
        name, schedule, disk = "a schedule", check_schedule(policy, len(chain)), None
    else:
        name, schedule, disk = policy.name, policy.schedule(chain), policy.disk
    cost = simulate(chain, schedule, disk)
    return Estimate(name, schedule, cost.peak_bytes, max(chain.working, default=0), cost.seconds, cost.extra_forwards,
                    cost.recompute_seconds, cost.spilled_bytes, chain)


@dataclass
class LayerProfile:
    """What one layer did in a step: times run, seconds of these runs, bytes of its output and of what it kept."""

    name: str
    runs: int = 0
    seconds: float = 0.0
    output_bytes: int = 0
    kept_bytes: int = 0
    stretch: bool = False


@dataclass(frozen=True)
class Profile:
    """A training step as it went; ``print`` it for a table, ``gnncy.plot.activations`` draws it.

    Attributes
    ----------
    layers : list of LayerProfile
        ``kept_bytes`` is what a layer itself saved for its backward pass, ``stretch`` whether its input was kept to
        recompute from, ``runs`` how many times it ran forward.
    timeline : ndarray of shape (n, 2)
        Seconds since the start, and bytes of activations then.
    forward_seconds, backward_seconds : float
    peak_bytes : int
        Most bytes of activations at a time.
    policy : str
    """

    layers: list[LayerProfile]
    timeline: np.ndarray = field(repr=False)
    forward_seconds: float
    backward_seconds: float
    peak_bytes: int
    policy: str

    def __str__(self) -> str:
        width = max(5, *(len(layer.name) for layer in self.layers))
        lines = [f"{'':>4}  {'layer':<{width}}  {'runs':>4}  {'ms':>8}  {'output':>8}  {'keeps':>8}  input"]
        for i, layer in enumerate(self.layers):
            lines.append(f"{i:>4}  {layer.name:<{width}}  {layer.runs:>4}  {1e3 * layer.seconds:>8.2f}  "
                         f"{format_bytes(layer.output_bytes):>8}  {format_bytes(layer.kept_bytes):>8}  "
                         f"{'kept' if layer.stretch else ''}".rstrip())
        lines.append(f"{self.policy}: activations at most {format_bytes(self.peak_bytes)}, forward "
                     f"{self.forward_seconds:.3g} s, backward with recomputing {self.backward_seconds:.3g} s")
        return "\n".join(lines)


def profile(model, batch, policy: RecomputationPolicy | Schedule | None = None,
            loss: Callable[[Tensor], Tensor] | None = None) -> Profile:
    """Run a forward and a backward pass, and tell which layer keeps what.

    Parameters
    ----------
    model : Sequential, sequence of layers, or Module
    batch : Tensor or array
    policy : RecomputationPolicy or schedule, optional
        :meth:`RecomputationPolicy.off` by default.
    loss : callable, optional
        From the output to a Tensor of one number; the mean by default.

    Returns
    -------
    Profile

    Notes
    -----
    It is a real step: gradients are added to the parameters' ``grad``.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> from gnncy.nn.checkpointing import profile
    >>> model = nn.MLP([8, 8, 8, 8], rng=0)
    >>> step = profile(model, np.ones((100, 8), np.float32), nn.RecomputationPolicy.every(2))
    >>> [layer.runs for layer in step.layers]
    [2, 2, 2, 2, 1]
    """
    layers = as_layers(model)
    policy = RecomputationPolicy.off() if policy is None else policy
    x = batch if isinstance(batch, Tensor) else Tensor(batch)
    schedule = policy if isinstance(policy, tuple) else policy.plan(layers, x)
    check_schedule(schedule, len(layers))
    rows = [LayerProfile(_name(layer)) for layer in layers]
    for item in schedule:
        if isinstance(item, tuple):
            while isinstance(item, tuple):
                item = item[0]
            rows[item].stretch = True

    def watched(row, layer):
        def run(x):
            saved = _Saved()
            start = time.perf_counter()
            with watching(saved):
                out = layer(x)
            row.seconds += time.perf_counter() - start
            row.runs += 1
            row.output_bytes = out.data.nbytes
            row.kept_bytes = max(row.kept_bytes, saved.nbytes())
            return out
        return run

    start = time.perf_counter()
    with ActivationMeter(timeline=True) as meter:
        out = checkpoint_sequential([watched(row, layer) for row, layer in zip(rows, layers, strict=True)], x, schedule)
        value = ops.mean(out) if loss is None else loss(out)
        del out
        middle = time.perf_counter()
        value.backward()
    end = time.perf_counter()
    timeline = np.array([(0.0, 0), *((at - start, nbytes) for at, nbytes in meter.timeline)])
    return Profile(rows, timeline, middle - start, end - middle, meter.peak,
                   "a schedule" if isinstance(policy, tuple) else policy.name)
