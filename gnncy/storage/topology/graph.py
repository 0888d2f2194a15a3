"""A graph whose arcs are on disk: the arrays of its CSR matrix, read by extents."""
import os
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from gnncy._check import check_ids, check_int
from gnncy._kernels.topology import draws
from gnncy._memory import available, format_bytes, parse_bytes
from gnncy.errors import GraphFormatError, MemoryLimitError, StorageError
from gnncy.graph import as_csr, is_symmetric
from gnncy.graph.inclusion import inclusion_by_blocks
from gnncy.storage._blocks import BlockFile, IOStatistics, ascending
from gnncy.storage.layout import checksums
from gnncy.storage.layout.checksums import VerifyReport
from gnncy.storage.topology import sweep
from gnncy.storage.topology.layout import read_layout, table_of, writing

if TYPE_CHECKING:
    from gnncy.storage.plans import DiskModel

_SLICE = 1 << 16  # arcs whose reads are planned at once
_CHUNK = 1 << 20  # arcs of a block of rows
_PIECE_BITS = 21  # of a file that is read in order: pieces of 2 MiB
_PIECES = 1 << 12  # of a file, at most
_AHEAD = 2  # pieces that are read while one is in use
_INT32_MAX = np.iinfo(np.int32).max


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
        self._opened: dict[str, BlockFile] | None = None
        self._indptr: np.ndarray | None = None
        self._longest = 0
        self.path = Path(path)
        self.io_threads = None if io_threads is None else check_int(io_threads, "io_threads", 1)
        self._direct, self._disk = direct, disk
        self.stats = IOStatistics()
        self._layout = read_layout(self.path)
        self.n_nodes, self.nnz = self._layout.n_nodes, self._layout.nnz
        self.weighted, self.symmetric = "data" in self._layout.files, self._layout.symmetric
        self.dtype = self._layout.files["data"].dtype if self.weighted else np.dtype(np.float32)
        self.index_dtype = np.dtype(np.int32 if max(self.n_nodes, self.nnz) <= _INT32_MAX else np.int64)
        self._pid = os.getpid()
        opened: dict[str, BlockFile] = {}
        try:
            for name, file in self._layout.files.items():
                opened[name] = BlockFile(file.path, direct=direct, disk=disk, io_threads=self.io_threads,
                                         stats=self.stats)
            self._opened = opened
            ends = self._read("indptr", 0, 1), self._read("indptr", self.n_nodes, self.n_nodes + 1)
            if (int(ends[0][0]), int(ends[1][0])) != (0, self.nnz):
                raise StorageError(f"{self.path / 'indptr.npy'}: row starts go from {ends[0][0]} to {ends[1][0]}, "
                                   f"{self.nnz} arcs need 0 to {self.nnz}; restore the folder from a copy")
        except BaseException:
            self._opened = None
            for block in opened.values():
                block.close()
            raise

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
        graph = as_csr(adjacency)
        weights = None if (graph.data == 1).all() else graph.data.dtype
        with writing(path, graph.shape[0], weights, is_symmetric(graph), overwrite) as writer:
            for start in range(0, graph.shape[0] + 1, _SLICE):
                writer.start_rows(graph.indptr[start:start + _SLICE])
            for start in range(0, graph.nnz, _CHUNK):
                part = slice(start, start + _CHUNK)
                writer.append(None, graph.indices[part], graph.data[part])
        return cls(path)

    @classmethod
    def from_edges(cls, path, edges, n_nodes: int | None = None, *, directed: bool = False,
                   memory_limit: int | float | str = "256MB", overwrite: bool = False) -> "GraphStorage":
        """Write a list of edges in any order, larger than memory perhaps, to disk as a graph, and open it.

        Edges are spilled to files beside the new folder and sorted part by part: 16 bytes an edge that is stored in
        both directions, and 8 more if it has a weight, all removed after.

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

    # What it is

    @property
    def shape(self) -> tuple[int, int]:
        """Nodes, twice."""
        return self.n_nodes, self.n_nodes

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays on disk."""
        return sum(file.nbytes for file in self._layout.files.values())

    @property
    def pass_nbytes(self) -> int:
        """Bytes that a pass over arcs reads into."""
        return max(sweep.sweep_nbytes(file) for name, file in self._layout.files.items() if name != "indptr")

    def width(self, what: str) -> int:
        """Bytes of an element of an array."""
        return self._layout.files[what].dtype.itemsize if what in self._layout.files else self.dtype.itemsize

    @property
    def direct(self) -> bool:
        """Whether arcs are read past the page cache."""
        return self._file("indices").direct

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._opened is None

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
        if self._indptr is None:
            indptr = np.zeros(self.n_nodes + 1, self.index_dtype)
            for start in range(0, self.n_nodes, _CHUNK):
                stop = min(start + _CHUNK, self.n_nodes)
                starts = self._starts(start, stop)
                if starts[0] != indptr[start]:
                    raise self._broken_starts()
                indptr[start:stop + 1] = starts
                self._longest = max(self._longest, int(np.diff(starts).max()))
            self._indptr = indptr
        return self._indptr

    def longest_list(self) -> int:
        """Most arcs of a node; known once row starts are loaded."""
        self.load_indptr()
        return self._longest

    def spans(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of each node's first arc, and how many it has; both int64.

        Parameters
        ----------
        nodes : array of int
            Any order, repeats allowed.
        """
        nodes = check_ids(nodes, self.n_nodes, "nodes")
        if self._indptr is not None:
            first = self._indptr[nodes].astype(np.int64)
            degree = self._indptr[nodes + 1] - first
        else:
            rows, place = ascending(nodes)
            file = self._layout.files["indptr"]
            size = file.dtype.itemsize
            pairs = np.empty((len(nodes), 2), file.dtype)
            for low in range(0, len(rows), _SLICE):
                some = rows[low:low + _SLICE]
                self._file("indptr").gather(some * size + file.offset, np.broadcast_to(np.int64(2 * size), len(some)),
                                            place[low:low + _SLICE] * (2 * size), pairs)
            first = pairs[:, 0].astype(np.int64)
            degree = pairs[:, 1] - first
        if len(degree) and (int(degree.min()) < 0 or int(first.min()) < 0 or int((first + degree).max()) > self.nnz):
            raise self._broken_starts()
        return first, degree

    def degrees(self) -> np.ndarray:
        """Arcs of every node, int64 of shape (n,)."""
        out = np.empty(self.n_nodes, np.int64)
        for start in range(0, self.n_nodes, _CHUNK):
            out[start:start + _CHUNK] = np.diff(self._starts(start, min(start + _CHUNK, self.n_nodes)))
        return out

    def _starts(self, start: int, stop: int) -> np.ndarray:
        """Row starts of the nodes ``start .. stop``, the last included."""
        if self._indptr is not None:
            return self._indptr[start:stop + 1].astype(np.int64)
        starts = self._read("indptr", start, stop + 1).astype(np.int64)
        if (np.diff(starts) < 0).any() or starts[0] < 0 or starts[-1] > self.nnz:
            raise self._broken_starts()
        return starts

    def _broken_starts(self) -> StorageError:
        return StorageError(f"{self.path / 'indptr.npy'}: row starts do not ascend from 0 to {self.nnz}, the file is "
                            f"damaged; restore the folder from a copy")

    # Arcs

    def neighbors(self, node: int) -> np.ndarray:
        """Ends of a node's arcs, ascending int64."""
        first, degree = self.spans(np.array([check_int(node, "node", 0, self.n_nodes - 1)]))
        return self._ends(int(first[0]), int(first[0] + degree[0])).astype(np.int64)

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
        indptr = np.concatenate([[0], np.cumsum(degree)])
        rows, place = ascending(first)
        place = place[degree[place] > 0]
        start, length, target = first[place], degree[place], indptr[place]

        def gather(name: str) -> np.ndarray:
            file = self._layout.files[name]
            out, size = np.empty(int(indptr[-1]), file.dtype), file.dtype.itemsize
            self._file(name).gather(start * size + file.offset, length * size, target * size, out)
            return out

        indices = self._checked(gather("indices"))
        return self._matrix(indptr, indices, gather("data") if self.weighted else None)

    def read_rows(self, start: int, stop: int) -> sp.csr_array:
        """Rows ``start .. stop - 1`` of the adjacency matrix, read sequentially."""
        start = check_int(start, "start", 0, self.n_nodes)
        stop = check_int(stop, "stop", start, self.n_nodes)
        return self._rows(self._starts(start, stop))

    def iter_rows(self, chunk_arcs: int = _CHUNK) -> Iterator[tuple[int, sp.csr_array]]:
        """Blocks of rows in their order, each with the number of its first row.

        Parameters
        ----------
        chunk_arcs : int
            Arcs of a block, at most, but for a node that has more; and nodes, at most.
        """
        for start, starts in self._pieces(check_int(chunk_arcs, "chunk_arcs", 1)):
            yield start, self._rows(starts)

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
            self._visit("data", arcs, out)
        return out

    def replace_by_ends(self, arcs: np.ndarray) -> np.ndarray:
        """Put the end of each arc where its number stands, in an array of int32 or int64."""
        self._visit("indices", arcs, arcs)
        return arcs

    def _visit(self, name: str, arcs: np.ndarray, out: np.ndarray) -> None:
        sweep.visit(self._layout.files[name], self._file(name), arcs, out)

    def read_drawn(self, lists, weighted):
        def read(name):
            out = np.empty(int(lists.indptr[-1]), self._layout.files[name].dtype)
            sweep.draw(self._layout.files[name], self._file(name), lists, out)
            return out
        ends = read("indices")
        weights = None
        if weighted:
            weights = read("data") if self.weighted else np.ones(len(ends), self.dtype)
        return ends, weights

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
        for start in range(0, self.n_nodes + 1, _CHUNK):
            stop = min(start + _CHUNK, self.n_nodes + 1)
            indptr[start:stop] = self._starts(start, stop - 1)
        for start in range(0, self.nnz, _CHUNK):
            stop = min(start + _CHUNK, self.nnz)
            indices[start:stop] = self._ends(start, stop)
            if self.weighted:
                data[start:stop] = self._read("data", start, stop)
        return as_csr(sp.csr_array((data, indices, indptr), shape=self.shape))

    def _rows(self, starts: np.ndarray) -> sp.csr_array:
        low, high = int(starts[0]), int(starts[-1])
        return self._matrix(starts - low, self._ends(low, high),
                            self._read("data", low, high) if self.weighted else None)

    def _matrix(self, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray | None) -> sp.csr_array:
        data = np.ones(len(indices), np.float32) if data is None else data
        return sp.csr_array((data, indices, indptr), shape=(len(indptr) - 1, self.n_nodes))

    def _ends(self, start: int, stop: int) -> np.ndarray:
        return self._checked(self._read("indices", start, stop))

    def _checked(self, ends: np.ndarray) -> np.ndarray:
        if len(ends) and (int(ends.min()) < 0 or int(ends.max()) >= self.n_nodes):
            raise self.broken_ends()
        return ends

    def broken_ends(self) -> StorageError:
        """The error for an end of an arc that is no node."""
        return StorageError(f"{self.path / 'indices.npy'}: an arc ends outside 0..{self.n_nodes - 1}, the file is "
                            f"damaged; find where with verify(), and restore the folder from a copy")

    def _read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements of an array, sequentially."""
        file = self._layout.files[name]
        out = np.empty(stop - start, file.dtype)
        self._file(name).read_range(file.offset + start * file.dtype.itemsize, out)
        return out

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
        damaged: list[tuple[int, int]] = []
        unchecked: list[tuple[int, int]] = [] if self._layout.summed else [(0, self.n_nodes)]
        for name, file in self._layout.files.items() if self._layout.summed else ():
            with BlockFile(file.path, direct=True, io_threads=self.io_threads, stats=self.stats) as disk:
                found = checksums.check(disk, file.offset, file.nbytes,
                                        partial(checksums.load_table, table_of(file.path), file.nbytes))
            for extents, target in zip(found, (damaged, unchecked), strict=True):
                for low, high in checksums.row_ranges(extents, file.dtype.itemsize, file.length):
                    target.append((max(low - 1, 0), min(high, self.n_nodes)) if name == "indptr" else
                                  (self._row_of(low), self._row_of(high - 1) + 1))
        if not damaged:
            for start, starts in self._pieces(_CHUNK):
                bad = np.zeros(len(starts) - 1, np.uint8)
                ends = self._read("indices", int(starts[0]), int(starts[-1]))
                draws.misplaced(starts - starts[0], ends, self.n_nodes, bad)
                damaged += [(start + row, start + row + 1) for row in np.flatnonzero(bad).tolist()]
        rows = checksums.merged(damaged)
        return VerifyReport(self.path, self.n_nodes, rows, checksums.merged(unchecked), checksums.members(rows))

    def _pieces(self, most: int) -> Iterator[tuple[int, np.ndarray]]:
        """Row starts of blocks of rows with at most so many arcs, but for a node that has more, and so many nodes."""
        start = 0
        while start < self.n_nodes:
            starts = self._starts(start, min(start + most, self.n_nodes))
            rows = max(1, int(np.searchsorted(starts, starts[0] + most, "right")) - 1)
            yield start, starts[:rows + 1]
            start += rows

    def _row_of(self, arc: int) -> int:
        """The node that an arc begins at."""
        low, high = 0, self.n_nodes
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if int(self._starts(middle, middle)[0]) <= arc else (low, middle)
        return low

    # Its life

    def _file(self, name: str) -> BlockFile:
        if self._opened is None:
            raise ValueError(f"{self.path}: the graph is closed; open it again")
        return self._opened[name]

    def close(self) -> None:
        """Let go of the files. Closing twice does nothing."""
        opened, self._opened = self._opened, None
        for file in (opened or {}).values():
            file.close()

    def __enter__(self) -> "GraphStorage":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __del__(self):
        if getattr(self, "_opened", None) is not None and not sys.is_finalizing():
            if self._pid == os.getpid():
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __reduce__(self):
        return _reopen, (os.path.abspath(self.path), {"io_threads": self.io_threads, "direct": self._direct,
                                                      "disk": self._disk})


def _reopen(path, options):
    return GraphStorage(path, **options)
