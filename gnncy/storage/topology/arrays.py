"""The arrays of a graph on disk, opened: elements of them, row starts, the ends of arcs, and whether all is whole."""
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from gnncy._kernels.topology import draws
from gnncy._threads import current_threads
from gnncy.errors import StorageError
from gnncy.storage._blocks import BlockFile, IOStatistics, ascending
from gnncy.storage.layout import checksums
from gnncy.storage.layout.checksums import VerifyReport
from gnncy.storage.topology import sweep
from gnncy.storage.topology.layout import read_layout, table_of

_SLICE = 1 << 16  # elements whose reads are planned at once
CHUNK = 1 << 20  # arcs of a block of rows


class GraphArrays:
    """``indptr``, ``indices`` and perhaps ``data``, read by extents."""

    def __init__(self, path: Path, io_threads: int | None, direct: bool | None, disk, stats: IOStatistics):
        self.path, self.io_threads, self.stats = path, io_threads, stats
        self.layout = read_layout(path)
        self.n_nodes, self.nnz, self.weighted = self.layout.n_nodes, self.layout.nnz, "data" in self.layout.files
        most = max(self.n_nodes, self.nnz)
        self.index_dtype = np.dtype(np.int32 if most <= np.iinfo(np.int32).max else np.int64)
        self.indptr: np.ndarray | None = None  # once it is loaded
        self.longest = 0
        self._opened: dict[str, BlockFile] | None = {}
        try:
            for name, file in self.layout.files.items():
                self._opened[name] = BlockFile(file.path, direct=direct, disk=disk, io_threads=io_threads, stats=stats)
            first, last = (int(self.read("indptr", k, k + 1)[0]) for k in (0, self.n_nodes))
            if (first, last) != (0, self.nnz):
                raise StorageError(f"{path / 'indptr.npy'}: row starts go from {first} to {last}, {self.nnz} arcs need "
                                   f"0 to {self.nnz}; restore the folder from a copy")
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return self._opened is None

    def close(self) -> None:
        """Let go of the files."""
        opened, self._opened = self._opened, None
        for file in (opened or {}).values():
            file.close()

    def file(self, name: str) -> BlockFile:
        """An array's file."""
        if self._opened is None:
            raise ValueError(f"{self.path}: the graph is closed; open it again")
        return self._opened[name]

    # Elements

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Elements ``start .. stop - 1``, sequentially."""
        file = self.layout.files[name]
        out = np.empty(stop - start, file.dtype)
        self.file(name).read_range(file.offset + start * file.dtype.itemsize, out)
        return out

    def gather(self, name: str, first: np.ndarray, length: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """``length[k]`` elements from ``first[k]`` on, of all k one after the other, at the start of ``out``."""
        file, total = self.layout.files[name], int(length.sum())
        size = file.dtype.itemsize
        out = np.empty(total, file.dtype) if out is None else out[:total]
        target = np.cumsum(length) - length
        _, place = ascending(first)
        place = place[length[place] > 0]
        self.file(name).gather(first[place] * size + file.offset, length[place] * size, target[place] * size, out)
        return out

    def visit(self, name: str, arcs: np.ndarray, out: np.ndarray) -> None:
        """The elements of arcs in any order, by one ascending pass; ``out`` may be ``arcs``."""
        sweep.visit(self.layout.files[name], self.file(name), arcs, out, current_threads())

    def draw(self, name: str, lists: sweep.Lists, threads: int | None = None) -> np.ndarray:
        """The elements of the arcs that are drawn, by one ascending pass."""
        out = np.empty(int(lists.indptr[-1]), self.layout.files[name].dtype)
        sweep.draw(self.layout.files[name], self.file(name), lists, out, threads or current_threads())
        return out

    def ends(self, start: int, stop: int) -> np.ndarray:
        """Ends of arcs, sequentially."""
        return self.checked_ends(self.read("indices", start, stop))

    def checked_ends(self, ends: np.ndarray) -> np.ndarray:
        if len(ends) and (int(ends.min()) < 0 or int(ends.max()) >= self.n_nodes):
            raise self.broken_ends()
        return ends

    # Row starts

    def load_indptr(self) -> np.ndarray:
        """Read all row starts and keep them."""
        if self.indptr is None:
            indptr = np.zeros(self.n_nodes + 1, self.index_dtype)
            for start in range(0, self.n_nodes, CHUNK):
                stop = min(start + CHUNK, self.n_nodes)
                starts = self.starts(start, stop)
                if starts[0] != indptr[start]:
                    raise self.broken_starts()
                indptr[start:stop + 1] = starts
                self.longest = max(self.longest, int(np.diff(starts).max()))
            self.indptr = indptr
        return self.indptr

    def starts(self, start: int, stop: int) -> np.ndarray:
        """Row starts of the nodes ``start .. stop``, the last included."""
        if self.indptr is not None:
            return self.indptr[start:stop + 1].astype(np.int64)
        starts = self.read("indptr", start, stop + 1).astype(np.int64)
        if (np.diff(starts) < 0).any() or starts[0] < 0 or starts[-1] > self.nnz:
            raise self.broken_starts()
        return starts

    def blocks(self, most: int) -> Iterator[tuple[int, np.ndarray]]:
        """Row starts of blocks of rows with at most so many arcs, but for a node that has more, and so many nodes."""
        start = 0
        while start < self.n_nodes:
            stop = min(start + most, self.n_nodes)
            starts = self.starts(start, stop) if self.indptr is None else self.indptr[start:stop + 1]
            rows = max(1, int(np.searchsorted(starts, starts[0] + most, "right")) - 1)
            yield start, starts[:rows + 1].astype(np.int64, copy=False)
            start += rows

    def spans(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of each node's first arc, and how many it has."""
        if self.indptr is not None:
            first = self.indptr[nodes].astype(np.int64)
            degree = self.indptr[nodes + 1] - first
        else:
            file = self.layout.files["indptr"]
            size = file.dtype.itemsize
            pairs = np.empty((len(nodes), 2), file.dtype)
            rows, place = ascending(nodes)
            for low in range(0, len(rows), _SLICE):
                some = rows[low:low + _SLICE]
                self.file("indptr").gather(some * size + file.offset, np.broadcast_to(np.int64(2 * size), len(some)),
                                           place[low:low + _SLICE] * (2 * size), pairs)
            first = pairs[:, 0].astype(np.int64)
            degree = pairs[:, 1] - first
        if len(degree) and (int(degree.min()) < 0 or int(first.min()) < 0 or int((first + degree).max()) > self.nnz):
            raise self.broken_starts()
        return first, degree

    def row_of(self, arc: int) -> int:
        """The node that an arc begins at."""
        low, high = 0, self.n_nodes
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if int(self.starts(middle, middle)[0]) <= arc else (low, middle)
        return low

    # What may be wrong with them

    def broken_starts(self) -> StorageError:
        return StorageError(f"{self.path / 'indptr.npy'}: row starts do not ascend from 0 to {self.nnz}, the file is "
                            f"damaged; restore the folder from a copy")

    def broken_ends(self) -> StorageError:
        return StorageError(f"{self.path / 'indices.npy'}: an arc ends outside 0..{self.n_nodes - 1}, the file is "
                            f"damaged; find where with verify(), and restore the folder from a copy")

    def verify(self) -> VerifyReport:
        """Hold the files against their checksums, and look at the form of every row."""
        summed = self.layout.summed
        damaged: list[tuple[int, int]] = []
        unchecked: list[tuple[int, int]] = [] if summed else [(0, self.n_nodes)]
        for name, file in self.layout.files.items() if summed else ():
            with BlockFile(file.path, direct=True, io_threads=self.io_threads, stats=self.stats) as disk:
                found = checksums.check(disk, file.offset, file.nbytes,
                                        partial(checksums.load_table, table_of(file.path), file.nbytes))
            for extents, target in zip(found, (damaged, unchecked), strict=True):
                for low, high in checksums.row_ranges(extents, file.dtype.itemsize, file.length):
                    target.append((max(low - 1, 0), min(high, self.n_nodes)) if name == "indptr" else
                                  (self.row_of(low), self.row_of(high - 1) + 1))
        if not damaged:
            for start, starts in self.blocks(CHUNK):
                bad = np.zeros(len(starts) - 1, np.uint8)
                ends = self.read("indices", int(starts[0]), int(starts[-1]))
                draws.misplaced(starts - starts[0], ends, self.n_nodes, bad)
                damaged += [(start + row, start + row + 1) for row in np.flatnonzero(bad).tolist()]
        rows = checksums.merged(damaged)
        return VerifyReport(self.path, self.n_nodes, rows, checksums.merged(unchecked), checksums.members(rows))
