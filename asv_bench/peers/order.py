"""Orders of the nodes and the graph renumbered, beside scipy's (and networkit's where it is installed)."""
import importlib.util

import numpy as np

from asv_bench.peers import Case, comparison
from asv_bench.peers.graph import rmat, size


def bandwidth(graph, order):
    """Mean distance from the diagonal of the arcs of the renumbered graph."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return np.abs(np.repeat(place, np.diff(graph.indptr)) - place[graph.indices]).mean()


@comparison
def order(quick, stack):
    from scipy.sparse.csgraph import breadth_first_order, reverse_cuthill_mckee

    from gnncy.graph import bfs_order, permute, rcm_order
    graph = rmat(14 if quick else 20, 10)
    start = int(np.argmax(np.diff(graph.indptr)))
    found = bfs_order(graph)

    def covers(ours, theirs):
        # The others stop where the first component ends; ours goes on.
        assert len(set(ours.tolist())) == graph.shape[0]
        np.testing.assert_array_equal(np.sort(ours[:len(theirs)]), np.sort(theirs))

    def as_narrow(ours, theirs):
        np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))
        assert bandwidth(graph, ours) < 1.05 * bandwidth(graph, theirs)

    def equal(ours, theirs):
        np.testing.assert_array_equal(ours.indptr, theirs.indptr)
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        np.testing.assert_array_equal(ours.data, theirs.data)

    def renumbered():
        theirs = graph[found][:, found]
        theirs.sort_indices()
        return theirs

    yield Case(f"bfs, {size(graph)}", lambda: bfs_order(graph, start), "scipy breadth_first_order, one component",
               lambda: breadth_first_order(graph, start, return_predecessors=False), asked=2.5, same=covers)
    if importlib.util.find_spec("networkit"):
        import networkit
        theirs = networkit.graph.GraphFromCoo(graph.tocoo(), n=graph.shape[0], directed=False)
        yield Case("bfs, the same", lambda: bfs_order(graph, start), "networkit BFS, distances only",
                   lambda: networkit.distance.BFS(theirs, start, storePaths=False).run(), asked=2.5)
    yield Case("reverse Cuthill-McKee, the same", lambda: rcm_order(graph), "scipy reverse_cuthill_mckee",
               lambda: reverse_cuthill_mckee(graph, symmetric_mode=True), asked=2, same=as_narrow)
    yield Case("permute by bfs, rows sorted, the same", lambda: permute(graph, found), "scipy A[p][:, p], sorted",
               renumbered, asked=2, same=equal)
    yield Case("permute by bfs, the same", lambda: permute(graph, found), "scipy A[p][:, p], rows left unsorted",
               lambda: graph[found][:, found])
