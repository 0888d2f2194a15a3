"""Diffusion of features over a graph, out of core: a few columns of all nodes at a time."""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from gnncy._check import check_choice, check_float, check_int
from gnncy.graph import Block, spmm
from gnncy.storage.passes.smoothing import mix
from gnncy.storage.passes.tiles import TILE, ColumnTiles


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

    def __call__(self, matrix: csr_array | Block, x: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> np.ndarray:
        """Write the diffused ``x`` to ``out``, using ``scratch``; all ``n x w``, distinct."""
        source, target = (out, scratch) if self.steps % 2 == 0 else (scratch, out)
        np.copyto(source, x)
        for _ in range(self.steps):
            spmm(matrix, source, out=target)
            if self.kind == "appnp":
                mix(target, x, self.alpha)
            source, target = target, source
        return out


def diffuse_tiles(matrix: csr_array, source: ColumnTiles, diffusions: Sequence[Diffusion], folder) -> list[ColumnTiles]:
    """Diffuse a matrix that lies on disk; one :class:`ColumnTiles` per diffusion.

    Holds four ``n x 16`` arrays, whatever the width. Powers that follow one another continue from the last.

    Parameters
    ----------
    matrix : csr_array, shape (n, n)
        The propagation matrix, such as ``graph.normalize(adjacency, "row")``.
    source : ColumnTiles, shape (n, d)
    diffusions : sequence of Diffusion
    folder : path-like
        Where the scratch files of the results lie.

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
    graph = Block.from_csr(matrix)  # checked once
    results = [ColumnTiles(folder, n, d, source.dtype) for _ in diffusions]
    x, out, scratch, power = (np.empty((n, TILE), source.dtype) for _ in range(4))
    for tile in range(source.n_tiles):
        source.read_tile(tile, x)
        np.copyto(power, x)
        reached = 0
        for diffusion, result in zip(diffusions, results, strict=True):
            if diffusion.kind == "power" and diffusion.steps >= reached:
                Diffusion("power", diffusion.steps - reached)(graph, power, out, scratch)
                np.copyto(power, out)
                reached = diffusion.steps
            else:
                diffusion(graph, x, out, scratch)
            result.write_tile(tile, out)
    return results


def memory_needed(n: int, itemsize: int = 4) -> int:
    """Bytes that :func:`diffuse_tiles` holds for ``n`` nodes, beside the matrix."""
    return 4 * n * TILE * itemsize
