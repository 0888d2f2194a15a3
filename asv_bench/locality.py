"""``python -m asv_bench.locality``: what each order of the nodes brings together, as a table.

For contiguous batches of a share of the nodes: the percentage of arcs that have both ends in one batch. Graphs are read
from ``NAME.npz`` in the folder ``--data`` (see :mod:`asv_bench.graphs`), made undirected, and
renumbered at random first; ``wordnet`` is the embedded data set, ``made`` a stochastic block model.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np

from asv_bench.graphs import adjacency_of

SHARES = (0.004, 0.02, 0.1)


def inside(graph, order, share):
    """Percentage of the arcs inside contiguous batches of a share of the nodes."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) // max(1, int(share * len(order)))
    return 100 * np.mean(np.repeat(place, np.diff(graph.indptr)) == place[graph.indices])


def load(name, folder):
    from gnncy.datasets import load_wordnet, make_sbm
    from gnncy.graph import permute, undirected
    if name == "wordnet":
        graph = load_wordnet().adjacency
    elif name == "made":
        graph = make_sbm(200_000, 130, n_features=1, seed=0).adjacency
    else:
        with np.load(folder / f"{name}.npz") as file:
            graph = adjacency_of(file)
    graph = undirected(graph)
    return permute(graph, np.random.default_rng(0).permutation(graph.shape[0]))


def main(arguments=None) -> int:
    from gnncy.graph import bfs_order, community_order, degree_order, rcm_order
    orders = {"random": lambda graph: np.arange(graph.shape[0]), "degree": degree_order, "bfs": bfs_order,
              "rcm": rcm_order, "community": community_order}
    parser = argparse.ArgumentParser(prog="python -m asv_bench.locality", description=__doc__)
    parser.add_argument("names", nargs="*", default=["wordnet", "made"], metavar="NAME")
    parser.add_argument("--data", type=Path, default=Path("."), metavar="FOLDER", help="where NAME.npz are")
    options = parser.parse_args(arguments)
    print(f"{'graph':<22}{'nodes':>8}{'arcs':>9}  " + "".join(f"{name:>20}" for name in orders))
    for name in options.names:
        graph = load(name, options.data)
        cells = []
        for order in orders.values():
            start = time.perf_counter()
            found = order(graph)
            seconds = time.perf_counter() - start
            shares = " / ".join(f"{inside(graph, found, share):.0f}" for share in SHARES)
            cells.append(f"{shares} {1e3 * seconds:.0f} ms")
        print(f"{name:<22}{graph.shape[0]:>8}{graph.nnz:>9}  " + "".join(f"{cell:>20}" for cell in cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
