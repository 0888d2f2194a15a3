"""A training step of GraphSAGE on sampled blocks beside PyTorch Geometric's."""
import subprocess
import sys

import numpy as np

from asv_bench.peers import Case, comparison

WIDTHS = (128, 256, 64)
RATE = 1e-3


def batch(quick):
    """Sampled blocks, the rows of their sources, and the seeds' classes. A graph so big that few nodes meet twice."""
    from scipy.sparse import csr_array

    from gnncy.graph import NeighborSampler
    n, seeds = (20_000, 64) if quick else (1_000_000, 1140)
    rng = np.random.default_rng(0)
    arcs = rng.integers(0, n, 12 * n, dtype=np.int32)
    graph = csr_array((np.ones(len(arcs), np.float32), arcs, 12 * np.arange(n + 1, dtype=np.int32)), shape=(n, n))
    blocks = NeighborSampler(graph, (10, 10), seed=0).sample(rng.choice(n, seeds, replace=False)).blocks
    x = rng.standard_normal((blocks[0].n_src, WIDTHS[0]), np.float32)
    return blocks, x, rng.integers(0, WIDTHS[-1], seeds)


def ours(blocks, x, classes):
    """A call that takes a step and returns its loss, and the model."""
    from gnncy import nn
    from gnncy.graph import Block
    from gnncy.optim import Adam
    model = nn.GraphSequential(nn.SAGEConv(*WIDTHS[:2], rng=0), nn.ReLU(), nn.SAGEConv(*WIDTHS[1:], rng=1))
    data, grad = nn.flatten_parameters(model)
    adam, seeds = Adam([data], RATE), np.arange(len(classes))

    def step():
        model.zero_grad()
        # Blocks of a new batch come without their transpose.
        fresh = [Block(b.indptr, b.indices, b.n_src, b.n_dst) for b in blocks]
        loss = -nn.log_softmax(model(fresh, x))[seeds, classes].mean()
        loss.backward()
        adam.step([grad])
        return loss.item(), model.layers[2].bias.data.copy()
    return step, model


def theirs(blocks, x, classes, model, sparse):
    """The same in PyTorch Geometric: by index lists, as its loaders give them, or by torch's CSR arrays."""
    import torch
    from torch_geometric.nn import SAGEConv

    def tensor(array):
        return torch.from_numpy(np.ascontiguousarray(array))

    layers = [SAGEConv(*WIDTHS[:2]), SAGEConv(*WIDTHS[1:])]
    for layer, mine in zip(layers, (model.layers[0], model.layers[2]), strict=True):
        with torch.no_grad():
            layer.lin_l.weight.copy_(tensor(mine.weight_neigh.data.T))
            layer.lin_r.weight.copy_(tensor(mine.weight_self.data.T))
            layer.lin_l.bias.copy_(tensor(mine.bias.data))
    adam = torch.optim.Adam([p for layer in layers for p in layer.parameters()], RATE, fused=True)
    graphs = []
    for b in blocks:
        if sparse:
            graphs.append(torch.sparse_csr_tensor(tensor(b.indptr.astype(np.int64)), tensor(b.indices.astype(np.int64)),
                                                  torch.ones(b.n_arcs), size=(b.n_dst, b.n_src)))
        else:
            rows = np.repeat(np.arange(b.n_dst), np.diff(b.indptr))
            graphs.append(tensor(np.stack([b.indices, rows]).astype(np.int64)))
    rows, classes = tensor(x), tensor(classes)

    def step():
        adam.zero_grad()
        h = torch.relu(layers[0]((rows, rows[:blocks[0].n_dst]), graphs[0]))
        h = layers[1]((h, h[:blocks[1].n_dst]), graphs[1])
        loss = torch.nn.functional.cross_entropy(h, classes)
        loss.backward()
        adam.step()
        return loss.item(), layers[1].lin_l.bias.detach().numpy().copy()
    return step


PEAK = """
import sys
from asv_bench.peers import nn
from gnncy import _memory
from gnncy._threads import working_threads
blocks, x, classes = nn.batch({quick})
step, model = nn.ours(blocks, x, classes)
if {side!r} != "ours":
    step = nn.theirs(blocks, x, classes, model, {side!r} == "csr")
    import torch
    torch.set_num_threads(1)
nn.warm({side!r})
_memory.trim()
before = _memory.rss()
assert _memory.reset_peak()
with working_threads(1):
    for _ in range(3):
        step()
print((_memory.peak_rss() - before) / 1e6)
"""


def warm(side):
    """Libraries load and keep buffers at the first product of any size; that is not the step's."""
    a = np.ones((512, 512), np.float32)
    a @ a
    if side != "ours":
        import torch
        b = torch.ones(512, 512, requires_grad=True)
        (b @ b).sum().backward()


def peak(side, quick):
    """Megabytes that three steps add at most, in a process of their own."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PEAK.format(side=side, quick=quick)], check=True,
                          capture_output=True, text=True)
    return float(done.stdout)


def same(mine, other):
    np.testing.assert_allclose(mine[0], other[0], rtol=1e-4)
    np.testing.assert_allclose(mine[1], other[1], atol=1e-5)


@comparison
def nn(quick, stack):
    try:
        import torch_geometric
    except ImportError:
        print("nn: no comparison with PyTorch Geometric, which is not installed", file=sys.stderr)
        return
    data = batch(quick)
    memory = {side: peak(side, quick) for side in ("ours", "index", "csr")}
    # By index lists is how its loaders and examples do it; by CSR arrays all but the four big products is small.
    for side, name, asked in (("index", "index lists", 1.5), ("csr", "CSR arrays", 1.0)):
        step, model = ours(*data)
        yield Case(f"GraphSAGE step, {len(data[1]) / 1e3:.0f} k x 128, hidden 256; peak {memory['ours']:.0f} MB",
                   step, f"PyG {torch_geometric.__version__}, {name}; peak {memory[side]:.0f} MB",
                   theirs(*data, model, side == "csr"), asked=asked, same=same)
