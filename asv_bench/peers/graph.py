"""Graph work beside scipy.sparse, and beside a sampler written in numpy."""
import sys
from functools import lru_cache

import numpy as np

from asv_bench.peers import Case, comparison


@lru_cache(maxsize=1)
def rmat(scale, edge_factor):
    from gnncy.datasets import make_rmat
    from gnncy.graph import as_csr
    return as_csr(make_rmat(scale, edge_factor, n_features=1, seed=0).adjacency)


def size(graph):
    return f"R-MAT, {graph.shape[0] / 1e6:.3g} M nodes, {graph.nnz / 1e6:.3g} M arcs"


def torch_graph(name, graph):
    """torch, and the graph as its CSR array of ones; None without torch."""
    try:
        import torch
    except ImportError:
        print(f"{name}: no comparison with torch, which is not installed", file=sys.stderr)
        return None
    indptr, indices = (torch.from_numpy(a.astype(np.int64)) for a in (graph.indptr, graph.indices))
    return torch, torch.sparse_csr_tensor(indptr, indices, torch.ones(graph.nnz), size=graph.shape)


@comparison
def spmm(quick, stack):
    from gnncy.graph import Block, aggregate
    from gnncy.graph import spmm as ours
    graph = rmat(13 if quick else 18, 8)
    x = np.random.default_rng(0).standard_normal((graph.shape[0], 128)).astype(np.float32)
    block = Block.from_csr(graph)
    count = np.maximum(np.diff(graph.indptr), 1).astype(np.float32)[:, None]
    pattern = graph.copy()
    pattern.data[:] = 1

    def same(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)

    yield Case(f"{size(graph)}, 128 columns", lambda: ours(graph, x), "scipy A @ X", lambda: graph @ x, asked=2,
               same=same)
    yield Case("mean of neighbours, the same", lambda: aggregate(block, x), "scipy A @ X / counts",
               lambda: (pattern @ x) / count, asked=3.8, same=same)
    found = torch_graph("spmm", graph)
    if found:
        torch, csr = found
        rows, indices, starts = (torch.from_numpy(a) for a in (x, graph.indices, graph.indptr[:-1]))
        bag = torch.nn.functional.embedding_bag
        yield Case("mean of neighbours, the same", lambda: aggregate(block, x), "torch embedding_bag, int32",
                   lambda: bag(indices, rows, starts, mode="mean").numpy(), asked=1.2, same=same)
        yield Case("mean of neighbours, the same", lambda: aggregate(block, x), "torch sparse.mm mean",
                   lambda: torch.sparse.mm(csr, rows, "mean").numpy(), asked=1.2, same=same)


@comparison
def spmm_gradient(quick, stack):
    from gnncy.graph import Block, aggregate, aggregate_grad
    graph = rmat(13 if quick else 18, 8)
    x, grad = np.random.default_rng(0).standard_normal((2, graph.shape[0], 128)).astype(np.float32)
    block = Block.from_csr(graph)
    block.transposed()
    mean = graph.copy()
    mean.data = np.repeat(1 / np.maximum(np.diff(graph.indptr), 1), np.diff(graph.indptr)).astype(np.float32)
    back = mean.T.tocsr()

    def same(ours, theirs):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-3)

    yield Case(f"mean of neighbours and its gradient, {size(graph)}, 128 columns",
               lambda: (aggregate(block, x), aggregate_grad(block, grad)), "scipy, transpose kept",
               lambda: (mean @ x, back @ grad), asked=2.4, same=same)
    found = torch_graph("spmm_gradient", graph)
    if found:
        torch, csr = found
        rows, above = torch.from_numpy(x).requires_grad_(), torch.from_numpy(grad)

        def theirs():
            rows.grad = None
            out = torch.sparse.mm(csr, rows, "mean")
            out.backward(above)
            return out.detach().numpy(), rows.grad.numpy()

        yield Case("mean of neighbours and its gradient, the same",
                   lambda: (aggregate(block, x), aggregate_grad(block, grad)), "torch sparse.mm mean", theirs, asked=2,
                   same=same)


def numpy_sampler(graph, fanouts, rng):
    """Without replacement, vectorised over the frontier: draws that repeat within a row are drawn again."""
    number = np.full(graph.shape[0], -1)
    degrees = np.diff(graph.indptr)

    def choose(nodes, fanout):
        degree = degrees[nodes]
        draws = np.broadcast_to(np.arange(fanout), (len(nodes), fanout)).copy()
        many = np.flatnonzero(degree > fanout)
        again = np.ones((len(many), fanout), bool)
        while len(many):
            rows, places = np.nonzero(again)
            draws[many[rows], places] = rng.random(len(rows)) * degree[many[rows]]
            chosen = np.sort(draws[many], axis=1)
            draws[many] = chosen
            again = np.zeros(chosen.shape, bool)
            again[:, 1:] = chosen[:, 1:] == chosen[:, :-1]
            left = again.any(axis=1)
            many, again = many[left], again[left]
        return (graph.indptr[nodes][:, None] + draws)[draws < degree[:, None]], np.minimum(degree, fanout)

    def sample(seeds):
        nodes, blocks = seeds, []
        number[nodes] = np.arange(len(nodes))
        for fanout in fanouts:
            arcs, counts = choose(nodes, fanout)
            ends = graph.indices[arcs]
            new = np.unique(ends[number[ends] < 0])
            number[new] = np.arange(len(nodes), len(nodes) + len(new))
            nodes = np.concatenate([nodes, new])
            blocks.append((counts, number[ends]))
        number[nodes] = -1
        return nodes, blocks
    return sample


@comparison
def sampling(quick, stack):
    from gnncy.graph import NeighborSampler
    graph = rmat(14 if quick else 20, 10)
    fanouts, size_of_batch = (15, 10), 128 if quick else 1024
    rng = np.random.default_rng(0)
    seeds = rng.choice(np.flatnonzero(np.diff(graph.indptr)), size_of_batch, replace=False)
    ours = NeighborSampler(graph, fanouts, seed=0)
    theirs = numpy_sampler(graph, fanouts, rng)

    def same(batch, other):
        nodes, blocks = other
        # The seeds' number of arcs is no matter of chance, and that of all nearly none.
        assert batch.blocks[-1].n_arcs == blocks[0][0].sum()
        assert abs(len(nodes) / len(batch.nodes) - 1) < 0.1

    setting = f"{list(fanouts)}, batch {size_of_batch}, {size(graph)}"
    yield Case(setting, lambda: ours.sample(seeds), "numpy, repeated draws drawn again", lambda: theirs(seeds),
               asked=5, unit="batches/s", amount=1, same=same)

    # The limit: whoever samples must read the end of each arc drawn, and look its number up.
    edges = np.concatenate([block.edges for block in ours.sample(seeds).blocks]).astype(np.intp)
    ends, number = graph.indices.astype(np.intp), np.arange(graph.shape[0])
    yield Case(f"{len(edges) / 1e3:.0f} k arcs, the same", lambda: ours.sample(seeds), "limit: two random loads an arc",
               lambda: number.take(ends.take(edges)), asked=0.38, unit="batches/s", amount=1)
