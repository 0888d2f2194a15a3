"""``python -m asv_bench.hit_rates [GRAPH.npz ...]``: the share of reads that each cache policy answers, as a table.

Without arguments the graphs are generated: communities with power-law degrees (a degree-corrected stochastic block
model), and R-MAT. A file holds ``adj_indptr``, ``adj_indices`` and ``train_idx``. Minibatches have some seeds each and
fan-outs 10, 10, 10; the sets called presampled are the most read ones of another epoch.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from asv_bench.graphs import adjacency_of
from gnncy.datasets import make_rmat
from gnncy.graph import inclusion_probabilities, undirected
from gnncy.storage.policies import Trace, simulate

SHARES = (0.01, 0.05, 0.1, 0.2, 0.3)


def communities(n, degree=26, size=1500, mixing=0.3, exponent=2.3, seed=0):
    """A degree-corrected stochastic block model; nodes come in no order."""
    rng = np.random.default_rng(seed)
    weight = (1 - rng.random(n)) ** (-1 / (exponent - 1))
    weight = np.minimum(weight, np.sqrt(n * weight.mean()))
    blocks = max(n // size, 1)
    block = np.sort(rng.integers(0, blocks, n))
    ends = np.cumsum(weight)
    first, last = np.searchsorted(block, np.arange(blocks)), np.searchsorted(block, np.arange(blocks), "right")
    below = np.concatenate([[0], ends])
    arcs = n * degree // 2
    source = np.searchsorted(ends, rng.random(arcs) * ends[-1])
    low, high = below[first[block[source]]], below[last[block[source]]]
    anywhere = rng.random(arcs) < mixing
    low, high = np.where(anywhere, 0, low), np.where(anywhere, ends[-1], high)
    target = np.minimum(np.searchsorted(ends, low + rng.random(arcs) * (high - low)), n - 1)
    shuffle = rng.permutation(n)
    return undirected(sp.csr_array((np.ones(arcs, np.float32), (shuffle[source], shuffle[target])), shape=(n, n)))


def graphs(paths, n):
    """Names, adjacencies, seeds, fan-outs and seeds a minibatch."""
    if paths:
        for path in paths:
            with np.load(path) as file:
                adjacency, seeds = adjacency_of(file), file["train_idx"]
            yield path.stem, undirected(adjacency), seeds, 4
        return
    rng = np.random.default_rng(1)
    scale = int(np.log2(n))
    for name, adjacency in ((f"DC-SBM {n:,}", communities(n)),
                            (f"R-MAT {1 << scale:,}", undirected(make_rmat(scale, 13).adjacency))):
        nodes = adjacency.shape[0]
        connected = np.flatnonzero(np.diff(adjacency.indptr))
        yield name, adjacency, rng.choice(connected, nodes // 100, replace=False), max(nodes // 80_000, 1)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m asv_bench.hit_rates", description=__doc__)
    parser.add_argument("graphs", nargs="*", metavar="GRAPH.npz", type=Path)
    parser.add_argument("--nodes", metavar="N", type=int, default=200_000, help="of the generated graphs")
    parser.add_argument("--plot", metavar="FILE", help="draw the curves of the last graph (needs matplotlib)")
    options = parser.parse_args(arguments)
    for name, adjacency, seeds, batch_size in graphs(options.graphs, options.nodes):
        begun, n, fanouts = time.perf_counter(), adjacency.shape[0], (10, 10, 10)
        trace = Trace.sample(adjacency, seeds, fanouts, batch_size)
        before = Trace.sample(adjacency, seeds, fanouts, batch_size, epoch=1)
        scores = {"VIP": inclusion_probabilities(adjacency, seeds, fanouts, batch_size),
                  "degree": np.diff(adjacency.indptr), "presampled": before.counts(n)}
        table = simulate(trace, [int(share * n) for share in SHARES], scores=scores, windows=(32, 256, None))
        print(f"\n{name}: {adjacency.nnz:,} arcs, {len(trace)} minibatches of {len(trace.ids) / len(trace):,.0f} rows; "
              f"% of reads that hit")
        columns = list(dict.fromkeys(row["policy"] for row in table))
        rates = {(row["policy"], row["capacity"]): row["hit_rate"] for row in table}
        print(f"{'rows':>6}", *(f"{column:>11}" for column in columns))
        for share in SHARES:
            print(f"{share:>6.0%}", *(f"{100 * rates[column, int(share * n)]:>11.1f}" for column in columns))
        print(f"({time.perf_counter() - begun:.0f} s)", file=sys.stderr, flush=True)
    if options.plot:
        from gnncy import plot
        plot.miss_ratio(table, save=options.plot)


if __name__ == "__main__":
    main()
