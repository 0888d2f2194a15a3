"""Text files of edges, larger than memory perhaps, to graphs on disk."""
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gnncy._check import check_int
from gnncy.datasets.read import edge_lines
from gnncy.storage import GraphStorage

_LINES = 1 << 16  # lines in hand at a time


def ingest_edges(source: str | os.PathLike, folder: str | os.PathLike, *, n_nodes: int | None = None,
                 directed: bool = False, memory_limit: int | float | str = "256MB",
                 overwrite: bool = False) -> GraphStorage:
    r"""Write the graph of a text file of edges to disk, at any size, within a memory limit.

    The file is read once. Its edges are spilled to files beside ``folder`` (some 50 bytes an edge, removed after) and
    sorted part by part.

    Parameters
    ----------
    source : path
        A line an edge: two node ids from 0 on, then optionally a weight, as :func:`read_graph` reads it; ``.gz`` too.
    folder : path
        Folder to make; whole or absent.
    n_nodes : int, optional
        Nodes are ``0 .. n_nodes - 1``; by default the largest id and one.
    directed, memory_limit, overwrite
        As in :meth:`gnncy.storage.GraphStorage.from_edges`.

    Returns
    -------
    GraphStorage
        What :func:`read_graph` gives of the same file, on disk: columns ascend, an edge that is repeated counts once,
        with its largest weight; but an edge of weight 0 is none.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    GraphFormatError
        A line is not two ids and perhaps a number, or the file is damaged.
    IndexError
        An id is negative, or ``n_nodes`` or more.
    MemoryLimitError
        The limit is too small; the message names the least.

    Examples
    --------
    >>> import pathlib
    >>> from gnncy.datasets import ingest_edges
    >>> _ = pathlib.Path("edges.csv").write_text("source,target,weight\n0,1,0.5\n1,2,2\n")
    >>> with ingest_edges("edges.csv", "graph_of_edges") as graph:
    ...     graph.to_csr().toarray()
    array([[0. , 0.5, 0. ],
           [0.5, 0. , 2. ],
           [0. , 2. , 0. ]], dtype=float32)
    """
    folder = Path(folder)
    if n_nodes is not None:
        return GraphStorage.from_edges(folder, edge_lines(source, _LINES), check_int(n_nodes, "n_nodes", 0),
                                       directed=directed, memory_limit=memory_limit, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.lines-") as spill:
        file, largest = Path(spill, "edges"), -1
        with open(file, "wb") as out:
            for piece in edge_lines(source, _LINES):
                largest = max(largest, int(piece[0].max()), int(piece[1].max()))
                np.save(out, np.stack(piece[:2]))
                np.save(out, piece[2] if len(piece) == 3 else np.zeros(0))
        return GraphStorage.from_edges(folder, _saved(file), largest + 1, directed=directed, memory_limit=memory_limit,
                                       overwrite=overwrite)


def _saved(path: Path) -> Iterator[tuple[np.ndarray, ...]]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while file.tell() < size:
            ends, weights = np.load(file), np.load(file)
            yield (*ends, weights) if weights.size else tuple(ends)
