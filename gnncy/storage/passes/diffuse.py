"""Diffusion of features over a graph, out of core: a few columns of all nodes at a time."""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import csr_array

from gnncy._check import check_choice, check_float, check_int
from gnncy._kernels import spmm as kernels
from gnncy._threads import run_pieces
from gnncy.graph import Block, spmm
from gnncy.storage._blocks import one_ahead
from gnncy.storage.passes.smoothing import mix
from gnncy.storage.passes.tiles import TILE, ColumnTiles
from gnncy.storage.topology import GraphStorage

_PIECE = 1 << 15  # arcs of a block that one thread takes at a time
ARCS = 1 << 19  # of a block that a pass over a matrix on disk reads
BLOCK_BYTES = 48  # that one of them takes, with its row and the blocks that are read meanwhile, at most

Matrix = Block | GraphStorage


@dataclass(frozen=True)
class Diffusion:
    """One way of smoothing features ``X`` over a propagation matrix ``P``.

    ``kind="power"`` gives :math:`P^k X` with ``k = steps`` (SGC, Wu et al. 2019; ``steps=0`` is ``X`` itself);
    ``kind="appnp"`` gives ``steps`` rounds of :math:`Z \\leftarrow (1-\\alpha) P Z + \\alpha X` from ``Z = X``
    (approximate personalised PageRank, Gasteiger et al. 2019).

    Parameters
    ----------
    kind : {"power", "appnp"}
    steps : int
    alpha : float, default 0
        In 0..1; of ``"appnp"`` only.

    References
    ----------
    F. Wu et al., "Simplifying graph convolutional networks", ICML 2019.
    J. Gasteiger, A. Bojchevski, S. Guennemann, "Predict then propagate", ICLR 2019.

    Examples
    --------
    >>> from gnncy.storage.passes import Diffusion
    >>> Diffusion("power", 2), Diffusion("appnp", 16, alpha=0.05)
    (Diffusion(kind='power', steps=2, alpha=0.0), Diffusion(kind='appnp', steps=16, alpha=0.05))
    """

    kind: str
    steps: int
    alpha: float = 0.0

    def __post_init__(self) -> None:
        check_choice(self.kind, "kind", ("power", "appnp"))
        check_int(self.steps, "steps", 0)
        check_float(self.alpha, "alpha", 0.0, 1.0)

    def __call__(self, matrix: csr_array | Matrix, x: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> np.ndarray:
        """Write the diffused ``x`` to ``out``, using ``scratch``; all ``n x w`` or ``k x n x w``, distinct."""
        source, target = (out, scratch) if self.steps % 2 == 0 else (scratch, out)
        np.copyto(source, x)
        for _ in range(self.steps):
            multiply(matrix, source, target)
            if self.kind == "appnp":
                mix(target.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1]), self.alpha)
            source, target = target, source
        return out


def multiply(matrix: csr_array | Matrix, x: np.ndarray, out: np.ndarray) -> None:
    """Write ``matrix @ x`` to ``out``; both ``n x w``, or ``k x n x w``: one pass over a matrix on disk for all k."""
    graph = as_matrix(matrix)
    tiles, results = (array.reshape(-1, *array.shape[-2:]) for array in (x, out))
    if isinstance(graph, Block):
        for values, result in zip(tiles, results, strict=True):
            spmm(graph, values, out=result)
        return
    for start, block in one_ahead(graph.iter_blocks(ARCS)):
        assert block.weights is not None
        weights, ones = block.weights.astype(x.dtype, copy=False), np.ones(block.n_dst, x.dtype)
        inner = np.searchsorted(block.indptr, np.arange(_PIECE, block.n_arcs, _PIECE))
        cuts = np.concatenate([[0], inner, [block.n_dst]])
        for values, result in zip(tiles, results, strict=True):
            run_pieces(partial(_sum_rows, block, weights, values, ones, result[start:], cuts), len(cuts) - 1, 1)


def _sum_rows(block: Block, weights, x, ones, out, cuts, first: int, last: int) -> None:
    kernels.weighted_sum(block.indptr, block.indices, weights, x, ones, cuts[first], cuts[last], out)


def as_matrix(matrix: csr_array | Matrix) -> Matrix:
    """What :func:`multiply` takes without looking at it again."""
    return matrix if isinstance(matrix, (Block, GraphStorage)) else Block.from_csr(matrix)


def diffuse_tiles(matrix: csr_array | Matrix, source: ColumnTiles, diffusions: Sequence[Diffusion], folder,
                  tiles: int = 1) -> list[ColumnTiles]:
    """Diffuse features that lie on disk; one :class:`ColumnTiles` per diffusion.

    Holds three ``n x 16`` arrays for each tile at work, whatever the width. Powers that follow one another continue
    from the last.

    Parameters
    ----------
    matrix : csr_array or GraphStorage, shape (n, n)
        The propagation matrix, such as ``graph.normalize(adjacency, "row")``. One on disk is read once for each step of
        each diffusion and group of tiles, ahead of its use.
    source : ColumnTiles, shape (n, d)
    diffusions : sequence of Diffusion
    folder : path-like
        Where the scratch files of the results lie.
    tiles : int
        Tiles at work at a time. More are for a matrix on disk; the results are the same.

    Returns
    -------
    list of ColumnTiles, each of shape (n, d)
        Of the type of ``source``; close them when done.

    Raises
    ------
    StorageError
        If there is no room for the scratch files.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_array
    >>> from gnncy.storage.passes import Diffusion, diffuse_tiles, reduced_tiles
    >>> path = csr_array(np.array([[0, 1, 0], [.5, 0, .5], [0, 1, 0]], np.float32))  # three nodes in a row
    >>> with reduced_tiles(np.eye(3, dtype=np.float32), None, ".") as source:
    ...     once, twice = diffuse_tiles(path, source, [Diffusion("power", 1), Diffusion("power", 2)], ".")
    >>> twice.read_rows(0, 3)
    array([[0.5, 0. , 0.5],
           [0. , 1. , 0. ],
           [0.5, 0. , 0.5]], dtype=float32)
    """
    n, d = source.shape
    graph = as_matrix(matrix)  # checked once
    results = [ColumnTiles(folder, n, d, source.dtype) for _ in diffusions]
    tiles = min(tiles, source.n_tiles)
    arrays = [np.empty((tiles, n, TILE), source.dtype) for _ in range(3)]
    for tile in range(0, source.n_tiles, tiles):
        x, out, scratch = (array[:source.n_tiles - tile] for array in arrays)
        source.read_tile(tile, x)
        reached = -1  # power of the matrix that out holds
        for diffusion, result in zip(diffusions, results, strict=True):
            power = diffusion.steps if diffusion.kind == "power" else -1
            if 0 <= reached <= power:
                for _ in range(reached, power):
                    multiply(graph, out, scratch)
                    out, scratch = scratch, out
            else:
                diffusion(graph, x, out, scratch)
            reached = power
            result.write_tile(tile, out)
    return results


def memory_needed(n: int, itemsize: int = 4, tiles: int = 1) -> int:
    """Bytes that :func:`diffuse_tiles` holds for ``n`` nodes, beside the matrix."""
    return 3 * n * TILE * itemsize * tiles
