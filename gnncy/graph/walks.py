"""Random walks: sequences of nodes, each joined to the one before."""
import numpy as np

from gnncy._check import check_ids, check_int
from gnncy._kernels.graph import walks as kernels
from gnncy._random import derive, seed_from
from gnncy._threads import run_pieces
from gnncy.graph.csr import as_csr

_PIECE = 4096  # walks that one thread takes at a time


class RandomWalks:
    """Draws uniform random walks, many at once.

    A step goes along one of the node's arcs, each with the same odds. A walk depends on the seed, the epoch, the batch,
    its start and its number alone: the same call gives the same walks on any number of threads, and a start's walks do
    not depend on which other starts are given.

    Parameters
    ----------
    adjacency : sparse or dense array, shape (n, n)
        A step leads from a row to a column. Weights do not change the odds.
    length : int
        Steps of a walk.
    n_walks : int
        Walks from each start.
    seed : int or Generator
        Seed of the draws.

    See Also
    --------
    NeighborSampler : neighbours without replacement, hop by hop.

    References
    ----------
    Perozzi, Al-Rfou and Skiena, DeepWalk: online learning of social representations, KDD 2014.

    Examples
    --------
    >>> from gnncy.graph import RandomWalks
    >>> path = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    >>> RandomWalks(path, length=4).sample([0, 2])[:, 1::2]
    array([[1, 1],
           [1, 1]])
    """

    def __init__(self, adjacency, length: int = 10, n_walks: int = 1, *, seed=0):
        self.adjacency = as_csr(adjacency)
        self.length = check_int(length, "length", 1)
        self.n_walks = check_int(n_walks, "n_walks", 1)
        self.seed = seed_from(seed)

    def sample(self, starts, *, epoch: int = 0, batch: int = 0) -> np.ndarray:
        """Walks from each of some nodes.

        Parameters
        ----------
        starts : array of int, shape (k,), or boolean mask, shape (n,)
            Node ids. One that is given twice gives the same walks twice.
        epoch, batch : int
            Keys of the draw.

        Returns
        -------
        ndarray of int64, shape (k * n_walks, length + 1)
            The walks of the first start come first; each begins with its start. A walk stays where no arc leads on.

        Raises
        ------
        IndexError
            If a start is not a node.
        """
        graph = self.adjacency
        starts = check_ids(starts, graph.shape[0], "starts")
        key = derive(self.seed, "walk", check_int(epoch, "epoch", 0), check_int(batch, "batch", 0))
        walks = np.empty((len(starts) * self.n_walks, self.length + 1), np.int64)
        run_pieces(lambda a, b: kernels.walk(graph.indptr, graph.indices, starts, self.n_walks, key, a, b, walks),
                   len(walks), _PIECE)
        return walks
