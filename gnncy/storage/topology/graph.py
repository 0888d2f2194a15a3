"""A graph whose arcs are on disk: rows of its adjacency matrix and the ends of its arcs, as they are asked for."""
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from gnncy._check import check_ids, check_int
from gnncy._memory import available, format_bytes, parse_bytes
from gnncy.errors import GraphFormatError, MemoryLimitError, StorageError
from gnncy.graph import Block, as_csr
from gnncy.graph.inclusion import inclusion_by_blocks
from gnncy.storage._blocks import IOStatistics
from gnncy.storage.layout.checksums import VerifyReport
from gnncy.storage.topology.arrays import CHUNK, GraphArrays
from gnncy.storage.topology.sweep import sweep_nbytes

if TYPE_CHECKING:
    from gnncy.storage.plans import DiskModel


class GraphStorage:
    """A graph on disk: a folder with the arrays of a CSR matrix, of which only what is asked for is read.

    ``indptr.npy`` and ``indices.npy`` are a node's row start and the ends of its arcs; ``data.npy``, if it is there,
    their weights. Each opens with ``np.load``. Folders that :func:`gnncy.datasets.write_rmat` and
    :func:`~gnncy.datasets.write_sbm` make open too. Arcs are numbered by their place in ``indices.npy``: that number is
    what a sampled :class:`~gnncy.graph.Block` gives as ``edges``, and the row of the arc in a storage of edge features.
    Reads are positional, coalesced and thread-safe, and never map a file. Read-only.

    Parameters
    ----------
    path : path-like
        The folder.
    io_threads : int or None
    direct : bool or None
    disk : DiskModel, optional
        How the files are read, as in :class:`~gnncy.storage.FeatureStorage`.

    Attributes
    ----------
    path : pathlib.Path
    weighted : bool
        Whether arcs have weights of their own; all weigh 1 otherwise.
    index_dtype : numpy.dtype
        Of the indices of samples and of :meth:`to_csr`: int32 if nodes and arcs can be counted by it, else int64.
    dtype : numpy.dtype
        Of the weights.
    symmetric : bool or None
        Whether every arc has a reverse arc of the same weight; None where that was not written down.
    stats : IOStatistics

    Raises
    ------
    StorageError
        If a file is truncated, damaged, foreign or of an unsupported version.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import GraphStorage
    >>> with GraphStorage.create("graph", np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])) as graph:
    ...     graph.shape, graph.nnz, graph.neighbors(1)
    ((3, 3), 4, array([0, 2]))
    """

    def __init__(self, path, *, io_threads: int | None = None, direct: bool | None = None,
                 disk: "DiskModel | None" = None):
        self.path = Path(path)
        self.io_threads = None if io_threads is None else check_int(io_threads, "io_threads", 1)
        self._direct, self._disk = direct, disk
        self.stats = IOStatistics()
        self._pid = os.getpid()
        self._arrays = GraphArrays(self.path, self.io_threads, direct, disk, self.stats)
        layout = self._arrays.layout
        self.n_nodes, self.nnz, self.index_dtype = layout.n_nodes, layout.nnz, self._arrays.index_dtype
        self.weighted, self.symmetric = self._arrays.weighted, layout.symmetric
        self.dtype = layout.files["data"].dtype if self.weighted else np.dtype(np.float32)

    @classmethod
    def open(cls, path, **options) -> "GraphStorage":
        """The graph at ``path``; the same as calling the class."""
        return cls(path, **options)

    @classmethod
    def create(cls, path, adjacency, *, overwrite: bool = False) -> "GraphStorage":
        """Write a graph in memory to disk, and open it.

        Parameters
        ----------
        path : path-like
            Folder to make; whole or absent.
        adjacency : sparse or dense array, shape (n, n)
            In canonical form on disk, see :func:`gnncy.graph.as_csr`. Weights that are all 1 are not written.
        overwrite : bool
            Replace a graph that is already there.

        Raises
        ------
        FileExistsError
            If ``path`` exists and ``overwrite`` is False.
        """
        from gnncy.storage.topology.ingest import write_matrix
        write_matrix(path, adjacency, overwrite)
        return cls(path)

    @classmethod
    def from_edges(cls, path, edges, n_nodes: int | None = None, *, directed: bool = False,
                   memory_limit: int | float | str = "256MB", overwrite: bool = False) -> "GraphStorage":
        """Write a list of edges in any order, larger than memory perhaps, to disk as a graph, and open it.

        Edges are spilled to files beside the new folder and sorted part by part. Of those that do not fit into memory
        this takes 16 bytes for each arc, and 8 more if it has a weight: 32 or 48 an edge that is stored in both
        directions. All of it is removed after.

        Parameters
        ----------
        path : path-like
            Folder to make; whole or absent.
        edges : array of int, shape (m, 2), path-like, or iterable
            Both ends of each edge: an array (memory-mapped, if it is large), the path of such an array saved by
            ``np.save``, or an iterable of pieces, each such an array or a tuple ``(sources, targets, weights)``.
        n_nodes : int, optional
            Nodes are ``0 .. n_nodes - 1``. By default the largest id and one; needed with an iterable.
        directed : bool
            Store an edge in the direction given only. Otherwise both directions are stored.
        memory_limit : int or str
            Bytes to be held at a time.
        overwrite : bool
            Replace a graph that is already there.

        Returns
        -------
        GraphStorage
            Columns ascend. An edge that is repeated counts once, with its largest weight; one of weight 0 is none.
            Weights are float32.

        Raises
        ------
        IndexError
            If an id is out of range.
        ValueError
            If a weight is not finite, or pieces with and without weights are mixed.
        MemoryLimitError
            If the limit is too small; the message names the least.

        Examples
        --------
        >>> from gnncy.storage import GraphStorage
        >>> pieces = iter([([0, 2], [1, 1], [0.5, 2.0]), ([1], [0], [3.0])])
        >>> with GraphStorage.from_edges("edges", pieces, 3) as graph:
        ...     graph.to_csr().toarray()
        array([[0., 3., 0.],
               [3., 0., 2.],
               [0., 2., 0.]], dtype=float32)
        """
        from gnncy.storage.topology.ingest import write_edges
        write_edges(path, edges, n_nodes, directed, parse_bytes(memory_limit), overwrite)
        return cls(path)

    @classmethod
    def from_rows(cls, path, rows: Iterable[sp.csr_array], n_nodes: int, *, dtype=None, symmetric: bool = False,
                  overwrite: bool = False) -> "GraphStorage":
        """Write a graph that comes in blocks of rows of its adjacency matrix to disk, and open it.

        Parameters
        ----------
        path : path-like
            Folder to make; whole or absent.
        rows : iterable of csr_array, shape (k, n)
            Blocks of rows, all rows in their order; in canonical form, see :func:`gnncy.graph.as_csr`.
        n_nodes : int
        dtype : float32 or float64, optional
            Of the weights; None writes none, so that all weigh 1.
        symmetric : bool
            Whether the matrix is.
        overwrite : bool
            Replace a graph that is already there.

        Returns
        -------
        GraphStorage

        Raises
        ------
        ValueError
            If there are not ``n_nodes`` rows, or they have another number of columns.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_array
        >>> from gnncy.storage import GraphStorage
        >>> rows = (csr_array(np.eye(1, 3, k, dtype=np.float32)) for k in range(3))
        >>> with GraphStorage.from_rows("eye", rows, 3) as graph:
        ...     graph.to_csr().toarray()
        array([[1., 0., 0.],
               [0., 1., 0.],
               [0., 0., 1.]], dtype=float32)
        """
        from gnncy.storage.topology.ingest import write_rows
        write_rows(path, rows, n_nodes, dtype, symmetric, overwrite)
        return cls(path)

    # What it is

    @property
    def shape(self) -> tuple[int, int]:
        """Nodes, twice."""
        return self.n_nodes, self.n_nodes

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays on disk."""
        return sum(file.nbytes for file in self._arrays.layout.files.values())

    @property
    def pass_nbytes(self) -> int:
        """Bytes that a pass over arcs reads into."""
        return max(sweep_nbytes(file) for name, file in self._arrays.layout.files.items() if name != "indptr")

    def width(self, what: str) -> int:
        """Bytes of an element of an array."""
        file = self._arrays.layout.files.get(what)
        return self.dtype.itemsize if file is None else file.dtype.itemsize

    @property
    def direct(self) -> bool:
        """Whether arcs are read past the page cache."""
        return self._arrays.file("indices").direct

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._arrays.closed

    def __len__(self) -> int:
        return self.n_nodes

    def __repr__(self) -> str:
        weighted, state = "weighted, " if self.weighted else "", ", closed" if self.closed else ""
        return (f"GraphStorage({str(self.path)!r}, {self.n_nodes} nodes, {self.nnz} arcs, {weighted}"
                f"{format_bytes(self.nbytes)}{state})")

    # Row starts

    @property
    def indptr_nbytes(self) -> int:
        """Bytes that :meth:`load_indptr` takes: 4 or, from 2**31 arcs on, 8 a node."""
        return (self.n_nodes + 1) * self.index_dtype.itemsize

    def load_indptr(self) -> np.ndarray:
        """Read all row starts and keep them, so that :meth:`spans` reads nothing.

        Returns
        -------
        ndarray, shape (n + 1,)
            Do not write into it.
        """
        return self._arrays.load_indptr()

    def longest_list(self) -> int:
        """Most arcs of a node; known once row starts are loaded."""
        self.load_indptr()
        return self._arrays.longest

    def spans(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of each node's first arc, and how many it has; both int64.

        Parameters
        ----------
        nodes : array of int
            Any order, repeats allowed.
        """
        return self._arrays.spans(check_ids(nodes, self.n_nodes, "nodes"))

    def degrees(self) -> np.ndarray:
        """Arcs of every node, int64 of shape (n,)."""
        out = np.empty(self.n_nodes, np.int64)
        for start in range(0, self.n_nodes, CHUNK):
            out[start:start + CHUNK] = np.diff(self._arrays.starts(start, min(start + CHUNK, self.n_nodes)))
        return out

    # Arcs

    @property
    def ends_dtype(self) -> np.dtype:
        """Of the ends of arcs on disk."""
        return self._arrays.layout.files["indices"].dtype

    def neighbors(self, node: int) -> np.ndarray:
        """Ends of a node's arcs, ascending int64."""
        first, degree = self.spans(np.array([check_int(node, "node", 0, self.n_nodes - 1)]))
        return self._arrays.ends(int(first[0]), int(first[0] + degree[0])).astype(np.int64)

    def read_batch(self, ids) -> sp.csr_array:
        """Rows of the adjacency matrix, in the given order.

        Parameters
        ----------
        ids : array of int, shape (k,), or boolean mask, shape (n,)
            Any order, repeats allowed.

        Returns
        -------
        csr_array, shape (k, n)
        """
        ids = check_ids(ids, self.n_nodes, "ids")
        first, degree = self.spans(ids)
        return self._matrix(np.concatenate([[0], np.cumsum(degree)]),
                            self._arrays.checked_ends(self._arrays.gather("indices", first, degree)),
                            self._arrays.gather("data", first, degree) if self.weighted else None)

    def read_rows(self, start: int, stop: int) -> sp.csr_array:
        """Rows ``start .. stop - 1`` of the adjacency matrix, read sequentially."""
        start = check_int(start, "start", 0, self.n_nodes)
        stop = check_int(stop, "stop", start, self.n_nodes)
        return self._rows(self._arrays.starts(start, stop))

    def iter_rows(self, chunk_arcs: int = CHUNK) -> Iterator[tuple[int, sp.csr_array]]:
        """Blocks of rows in their order, each with the number of its first row.

        Parameters
        ----------
        chunk_arcs : int
            Arcs of a block, at most, but for a node that has more; and nodes, at most.
        """
        for start, starts in self._arrays.blocks(check_int(chunk_arcs, "chunk_arcs", 1)):
            yield start, self._rows(starts)

    def iter_blocks(self, chunk_arcs: int = CHUNK) -> Iterator[tuple[int, Block]]:
        """Blocks of rows as :meth:`iter_rows` gives them, for products: with the row starts and weights of their arcs.

        Parameters
        ----------
        chunk_arcs : int
            As there.
        """
        for start, starts in self._arrays.blocks(check_int(chunk_arcs, "chunk_arcs", 1)):
            low, high = int(starts[0]), int(starts[-1])
            ends = self._arrays.ends(low, high)
            weights = self._arrays.read("data", low, high) if self.weighted else np.ones(high - low, self.dtype)
            yield start, Block((starts - low).astype(ends.dtype), ends, self.n_nodes, len(starts) - 1, weights=weights)

    def read_spans(self, first: np.ndarray, degree: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Ends of the arcs ``first[k] .. first[k] + degree[k] - 1``, span by span.

        Parameters
        ----------
        first, degree : array of int64
            Spans that ascend, as :meth:`spans` tells of ascending nodes, or of several nodes as one.
        out : ndarray of ``ends_dtype``, optional
            Where to; as long or longer.

        Returns
        -------
        ndarray of ``ends_dtype``
        """
        return self._arrays.checked_ends(self._arrays.gather("indices", first, degree, out))

    def read_arcs(self, arcs) -> np.ndarray:
        """Ends of arcs.

        Parameters
        ----------
        arcs : array of int, shape (k,)
            Numbers of arcs, in any order.

        Returns
        -------
        ndarray of int64, shape (k,)

        See Also
        --------
        read_weights : their weights.
        """
        return self.replace_by_ends(check_ids(arcs, self.nnz, "arcs").copy())

    def read_weights(self, arcs) -> np.ndarray:
        """Weights of arcs.

        Parameters
        ----------
        arcs : array of int, shape (k,)
            Numbers of arcs, in any order.

        Returns
        -------
        ndarray, shape (k,)
            1 where the graph has no weights.
        """
        arcs = np.asarray(arcs)
        if arcs.dtype != self.index_dtype:
            arcs = check_ids(arcs, self.nnz, "arcs")
        out = np.ones(len(arcs), self.dtype)
        if self.weighted:
            self._arrays.visit("data", arcs, out)
        return out

    def replace_by_ends(self, arcs: np.ndarray) -> np.ndarray:
        """Put the end of each arc where its number stands, in an array of int32 or int64."""
        self._arrays.visit("indices", arcs, arcs)
        return arcs

    def inclusion_probabilities(self, seeds, fanouts, batch_size: int) -> np.ndarray:
        """Probability of each node to be in a minibatch, as :func:`gnncy.graph.inclusion_probabilities` computes it.

        Every hop is one pass over the arcs.

        Parameters
        ----------
        seeds, fanouts, batch_size
            As there.

        Returns
        -------
        ndarray of float32, shape (n,)

        Raises
        ------
        GraphFormatError
            If the graph is not known to be symmetric: arcs that arrive at a node are needed, and those that leave it
            are at hand.
        """
        if not self.symmetric:
            raise GraphFormatError(f"{self.path}: inclusion probabilities need a symmetric graph on disk; compute them "
                                   f"with gnncy.graph.inclusion_probabilities where the graph fits into memory")
        return inclusion_by_blocks(self.iter_rows, self.n_nodes, self.degrees(), seeds, fanouts, batch_size)

    def to_csr(self, memory_limit: int | float | str | None = None) -> sp.csr_array:
        """The whole graph in memory.

        Parameters
        ----------
        memory_limit : int or str, optional
            Bytes that it may take; by default what is available.

        Raises
        ------
        MemoryLimitError
            If that is not enough.
        """
        need = (self.n_nodes + 1 + self.nnz) * self.index_dtype.itemsize + self.nnz * self.dtype.itemsize
        limit = available() if memory_limit is None else parse_bytes(memory_limit)
        if need > limit:
            raise MemoryLimitError(f"{self.path}: {self.nnz} arcs in memory need {format_bytes(need)}, "
                                   f"{format_bytes(limit)} are allowed; sample from it or read it with iter_rows")
        indptr = np.empty(self.n_nodes + 1, self.index_dtype)
        indices, data = np.empty(self.nnz, self.index_dtype), np.ones(self.nnz, self.dtype)
        for start in range(0, self.n_nodes + 1, CHUNK):
            stop = min(start + CHUNK, self.n_nodes + 1)
            indptr[start:stop] = self._arrays.starts(start, stop - 1)
        for start in range(0, self.nnz, CHUNK):
            stop = min(start + CHUNK, self.nnz)
            indices[start:stop] = self._arrays.ends(start, stop)
            if self.weighted:
                data[start:stop] = self._arrays.read("data", start, stop)
        return as_csr(sp.csr_array((data, indices, indptr), shape=self.shape))

    def _rows(self, starts: np.ndarray) -> sp.csr_array:
        low, high = int(starts[0]), int(starts[-1])
        return self._matrix(starts - low, self._arrays.ends(low, high),
                            self._arrays.read("data", low, high) if self.weighted else None)

    def _matrix(self, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray | None) -> sp.csr_array:
        data = np.ones(len(indices), np.float32) if data is None else data
        return sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, self.n_nodes))

    def broken_ends(self) -> StorageError:
        """The error for an end of an arc that is no node."""
        return self._arrays.broken_ends()

    # The whole of it

    def permute(self, order, path, *, memory_limit: int | float | str = "256MB", edge_features=None, edge_path=None,
                overwrite: bool = False) -> "GraphStorage":
        """Write the graph with its nodes renumbered, and the features of its arcs in the order of the new arcs.

        Parameters
        ----------
        order : array of int, shape (n,)
            Node k of the new graph is node ``order[k]`` of this one, as in :func:`gnncy.graph.permute`.
        path : path-like
            Folder to make; whole or absent.
        memory_limit : int or str
            Bytes to be held at a time; 16 a node are needed throughout. With less, lists of neighbours are read in more
            passes over this graph.
        edge_features : storage, shape (nnz, d), optional
            A row an arc of this graph.
        edge_path : path-like, optional
            Where to write the rows for the arcs of the new graph.
        overwrite : bool
            Replace what is already there.

        Returns
        -------
        GraphStorage
            The new graph.

        Raises
        ------
        ValueError
            If ``order`` does not hold every node once, or ``edge_features`` are not a row an arc.
        MemoryLimitError
            If ``memory_limit`` is too small; the message names the least.

        Examples
        --------
        >>> import numpy as np
        >>> from gnncy.storage import GraphStorage
        >>> with GraphStorage.create("path", np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])) as graph:
        ...     with graph.permute([1, 0, 2], "other") as other:
        ...         other.neighbors(0)
        array([1, 2])
        """
        from gnncy.storage.topology.permuted import write_permuted
        write_permuted(self, order, path, parse_bytes(memory_limit), edge_features, edge_path, overwrite)
        return type(self)(path)

    def verify(self) -> VerifyReport:
        """Read all files from the disk, hold them against their checksums, and look at the form of every row.

        Returns
        -------
        VerifyReport
            True if every row was checked and none is damaged. Rows of a folder without checksums count as unchecked.

        Raises
        ------
        StorageError
            If a file cannot be read, or the row starts are damaged.

        Examples
        --------
        >>> import numpy as np
        >>> from gnncy.storage import GraphStorage
        >>> with GraphStorage.create("verified", np.ones((3, 3))) as graph:
        ...     graph.verify().ok
        True
        """
        return self._arrays.verify()

    # Its life

    def close(self) -> None:
        """Let go of the files. Closing twice does nothing."""
        self._arrays.close()

    def __enter__(self) -> "GraphStorage":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __del__(self):
        if hasattr(self, "_arrays") and not self.closed and not sys.is_finalizing():
            if self._pid == os.getpid():
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __reduce__(self):
        return _reopen, (os.path.abspath(self.path), {"io_threads": self.io_threads, "direct": self._direct,
                                                      "disk": self._disk})


def _reopen(path, options):
    return GraphStorage(path, **options)
