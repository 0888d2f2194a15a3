"""A deep residual GCN under every policy of checkpointing: seconds, bytes, and the bits of the gradients."""
import gc
import hashlib
import sys
import tempfile
import time

import numpy as np

from asv_bench.peers import table

WIDTH, DEPTH = 128, 64


def data(quick):
    """The normalised graph, features and the weights of the loss."""
    from gnncy.datasets import load_wordnet, make_sbm
    from gnncy.graph import normalize
    adjacency = make_sbm(1_000, seed=0).adjacency if quick else load_wordnet().adjacency
    rng = np.random.default_rng(0)
    x = rng.standard_normal((adjacency.shape[0], WIDTH), np.float32)
    return normalize(adjacency), x, rng.standard_normal((WIDTH, 1), np.float32)


def network(adjacency, depth):
    """``x + A (relu(norm(x)) W + b)``, ``depth`` times."""
    from gnncy import nn
    from gnncy.graph import Block
    block = Block.from_csr(adjacency)
    block.transposed()

    class ResidualGCN(nn.Module):
        def __init__(self, rng):
            self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, rng=rng)

        def forward(self, x):
            return x + nn.aggregate(block, self.linear(nn.relu(self.norm(x))), "sum", weighted=True)

    return nn.Sequential(*[ResidualGCN(k) for k in range(depth)])


def measured(step):
    """CPU seconds of a call, and the most memory that the process held beyond what it had before.

    A step takes long and is run once: seconds of the processor, summed over threads, bear other work beside them.
    """
    from gnncy._memory import peak_rss, reset_peak, rss, trim
    gc.collect()
    trim()
    before = rss()
    reset_peak()
    start = time.process_time()
    result = step()
    seconds, peak = time.process_time() - start, peak_rss() - before
    print(f"  {seconds:.1f} CPU s, {peak / 1e6:.0f} MB", file=sys.stderr, flush=True)
    return seconds, peak, result


def ours(model, x, weights, schedule):
    """A step; returns the peak of the activations counted, and the gradients."""
    from gnncy import nn
    from gnncy.nn.checkpointing import ActivationMeter
    for parameter in model.parameters():
        parameter.grad = None
    with ActivationMeter() as meter:
        nn.mean(nn.matmul(nn.checkpoint_sequential(model, x, schedule), weights)).backward()
    return meter.peak, [parameter.grad for parameter in model.parameters()]


def torch_steps(model, adjacency, x, weights, segments):
    """The same model in torch: steps without and with ``torch.utils.checkpoint``; nothing without torch."""
    try:
        import torch
        from torch.utils.checkpoint import checkpoint_sequential
    except ImportError:
        print("checkpointing: no comparison with torch, which is not installed", file=sys.stderr)
        return {}
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta
        matrix, transposed = (torch.sparse_csr_tensor(*map(torch.from_numpy, (a.indptr, a.indices, a.data)), a.shape)
                              for a in (adjacency, adjacency.T.tocsr()))

    class Propagate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            return matrix @ h

        @staticmethod
        def backward(ctx, grad):
            return transposed @ grad

    class Block(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.norm, self.linear = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH)
            with torch.no_grad():
                self.linear.weight.copy_(torch.from_numpy(layer.linear.weight.data.T))
                self.linear.bias.copy_(torch.from_numpy(layer.linear.bias.data))

        def forward(self, x):
            return x + Propagate.apply(self.linear(torch.relu(self.norm(x))))

    net = torch.nn.Sequential(*map(Block, model.layers))
    inputs, direction = torch.from_numpy(x), torch.from_numpy(weights)

    def step(forward):
        def run():
            net.zero_grad(set_to_none=True)
            (forward() @ direction).mean().backward()
            return [g.T.numpy() if g.ndim == 2 else g.numpy() for g in (p.grad for p in net.parameters())]
        return run

    checkpoint_sequential(net[:2], 2, inputs, use_reentrant=False).mean().backward()  # what is done once
    return {"no checkpointing": step(lambda: net(inputs)),
            f"{segments} segments": step(lambda: checkpoint_sequential(net, segments, inputs, use_reentrant=False))}


def policies(full):
    from gnncy.nn import RecomputationPolicy as Policy
    yield "every 4", Policy.every(4)
    yield "sqrt", Policy.sqrt()
    yield "Revolve, 6 inputs", Policy.revolve(6)
    for part in (4, 8, 16):
        yield f"budget 1/{part}", Policy.budget(full // part)
    try:
        from gnncy.storage.plans import calibrate
    except ImportError:
        print("checkpointing: no row with a disk, which cannot be calibrated", file=sys.stderr)
        return
    disk = calibrate(tempfile.gettempdir())
    yield "budget 1/16, or disk", Policy.budget(full // 16, disk=disk)


@table
def checkpointing(quick, threads):
    """Minutes, and 8 GB of memory: each step is run once."""
    from threadpoolctl import threadpool_limits

    from gnncy._threads import working_threads
    from gnncy.nn.checkpointing import Spill, estimate, measure_chain
    from gnncy.nn.checkpointing.schedule import flatten
    adjacency, x, weights = data(quick)
    model = network(adjacency, DEPTH)
    with working_threads(threads):
        chain = measure_chain(model, x)
        plain = estimate(chain, None)
        seconds, resident, (peak, reference) = measured(lambda: ours(model, x, weights, plain.schedule))
    shape = f"{DEPTH} layers, {len(x) / 1e3:.0f} k x {WIDTH}"

    def row(setting, ours, peer, theirs, unit, asked=None):
        ours, theirs = float(f"{ours:.4g}"), float(f"{theirs:.4g}")
        return {"setting": setting, "ours": ours, "peer": peer, "peer_value": theirs, "unit": unit,
                "ratio": float(f"{theirs / ours:.3g}"), "asked": asked}

    yield row(f"{shape}, no checkpointing: activations", peak / 1e6, "estimate", plain.activation_bytes / 1e6, "MB",
              0.95)
    for name, policy in policies(plain.activation_bytes):
        with working_threads(threads):
            foretold = estimate(chain, None, policy)
            run = measured(lambda: ours(model, x, weights, foretold.schedule))  # noqa: B023
        if any(a.tobytes() != b.tobytes() for a, b in zip(run[2][1], reference, strict=True)):
            raise AssertionError(f"{name}: the gradients differ from those without checkpointing")
        spilled = sum(isinstance(layer, Spill) for layer in flatten(foretold.schedule))
        if spilled:  # the wait for the disk is no work of the processor
            name = f"{name} ({spilled} layers, {foretold.spilled_bytes / 1e9:.1f} GB, on disk)"
        yield row(f"{name}: step", run[0], "no checkpointing", seconds, "CPU s", 0.69 if name == "sqrt" else None)
        yield row(f"{name}: activations", run[2][0] / 1e6, "estimate", foretold.activation_bytes / 1e6, "MB", 0.95)
        yield row(f"{name}: memory", run[1] / 1e6, "estimate, at most", foretold.peak_bytes / 1e6, "MB")
        if name == "sqrt":
            root = run
    print(f"checkpointing: the gradients are the same bits in every row ({_digest(reference)})", file=sys.stderr)

    segments = int(DEPTH**0.5)
    for name, step in torch_steps(model, adjacency, x, weights, segments).items():
        with threadpool_limits(threads):
            import torch
            torch.set_num_threads(threads)
            theirs = measured(step)
        for mine, other in zip(reference, theirs[2], strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=2e-3 * np.abs(other).max())
        mine, memory = (seconds, resident) if name == "no checkpointing" else root[:2]
        yield row(f"{name}: step", mine, "torch", theirs[0], "CPU s", None if quick else 1)
        yield row(f"{name}: memory", memory / 1e6, "torch", theirs[1] / 1e6, "MB", None if quick else 0.95)


def _digest(arrays):
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:12]
