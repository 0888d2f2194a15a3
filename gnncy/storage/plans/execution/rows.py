"""Rows as they lie in a file, and those that are held in memory."""
import numpy as np

from gnncy._check import check_ids, check_int
from gnncy._kernels.storage import rowset
from gnncy._memory import format_bytes
from gnncy.storage._blocks import IOStatistics, direct_empty
from gnncy.storage.features import FeatureStorage
from gnncy.storage.plans.disk import DiskModel
from gnncy.storage.sources import ArrayStorage, as_storage

SLICE = 1 << 17  # rows that one call reads


class RowFile:
    """The rows of a storage as they lie: by place in storage order, in the dtype of the file."""

    def __init__(self, storage, disk: DiskModel | None = None):
        self.storage, self.disk = as_storage(storage), disk
        if not hasattr(self.storage, "read_batch") or hasattr(self.storage, "nnz"):
            raise TypeError(f"storage must hold dense rows, got {type(self.storage).__name__}; "
                            f"reduce sparse features to a width of your choice first")
        self.n, self.dim = self.storage.shape
        self.is_file = isinstance(self.storage, FeatureStorage)
        self.dtype = np.dtype(self.storage.file_dtype if self.is_file else self.storage.dtype)
        self.row_bytes = self.dim * self.dtype.itemsize
        self.nbytes = self.n * self.row_bytes
        self.widened = self.dtype != self.storage.dtype
        if self.is_file:
            self.path, self.offset = self.storage.path, self.storage._rows.offset

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Where the rows of nodes lie, as a new array."""
        position = self.storage._rows.position if self.is_file else None
        return np.array(ids) if position is None else position[ids].astype(np.int64)

    def read(self, places: np.ndarray, out: np.ndarray) -> None:
        """The rows at ascending places."""
        if self.is_file:
            self.storage._gather(places, out, self.threads())
        else:
            self.storage.read_batch(places, out=out)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Rows as the storage gives them."""
        return rows.astype(self.storage.dtype) if self.widened else rows

    def descriptor(self) -> int:
        """Of the file, past the page cache if it is read that way."""
        file = self.storage._opened()
        return file._aligned_fd if file.direct else file.fd

    def threads(self) -> int:
        """Threads that one read takes."""
        if not self.is_file:
            return 0
        file = self.storage._opened()
        return file.io_threads or (self.disk or file.disk).threads

    def stats(self) -> IOStatistics:
        """What the storage has read so far, if it counts that."""
        stats = getattr(self.storage, "stats", None)
        return stats.snapshot() if isinstance(stats, IOStatistics) else IOStatistics()

    def read_buffered(self) -> bool:
        """Give up reading past the page cache; False if that was not done anyway."""
        file = self.storage._opened()
        direct, file.direct = file.direct, False
        return direct

    def drop(self, offset: int, size: int) -> None:
        """Let the page cache forget what was read, if the file is to pass it by and could not."""
        file = self.storage._opened()
        if file._passing and not file.direct:
            file.drop(offset, size)


class HotRows:
    """Rows of a storage that are held in memory, for as long as this object lives.

    Parameters
    ----------
    storage : storage or array-like, shape (n_nodes, dim)
        Anything that :func:`as_storage` takes whose rows are dense. The rows are read at once, in ascending order.
    nodes : array of int, shape (k,), or boolean mask, or int, optional
        The nodes whose rows are held; an int stands for so many rows from the start of the file, which are the most
        needed ones if it is in such an order. All by default.

    Attributes
    ----------
    rows : ndarray, shape (k, dim)
        In storage order, in the dtype of the file.
    words : ndarray of uint64
        Which rows are held, as bits with running counts: a quarter of a byte for each row of the storage.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage.plans import HotRows
    >>> hot = HotRows(np.arange(8, dtype=np.float32).reshape(4, 2), [3, 0])
    >>> len(hot), hot.nbytes
    (2, 32)
    """

    def __init__(self, storage, nodes=None):
        file = storage if isinstance(storage, RowFile) else RowFile(storage)
        self.words = np.zeros((-(-file.n // 64), 2), np.uint64)
        if nodes is None or isinstance(nodes, (int, np.integer)):
            wanted = file.n if nodes is None else min(check_int(nodes, "hot", 0), file.n)
            parts = (np.arange(start, min(start + SLICE, wanted)) for start in range(0, wanted, SLICE))
        else:
            nodes = check_ids(nodes, file.n, "hot")
            parts = (file.places(nodes[start:start + SLICE]) for start in range(0, len(nodes), SLICE))
        none, fresh = np.zeros_like(self.words), np.empty(SLICE, np.int64)
        for places in parts:
            rowset.mark(places, none, self.words, fresh)
        count = rowset.count(self.words)
        array = file.storage.array if isinstance(file.storage, ArrayStorage) else None
        if count == file.n and array is not None and array.dtype == file.dtype and array.flags.c_contiguous:
            self.rows = array  # in memory already
        else:
            self.rows = direct_empty((count, file.dim), file.dtype)
            read_members(file, self.words, self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of what finds them."""
        return self.rows.nbytes + self.words.nbytes

    def __repr__(self) -> str:
        return f"HotRows({len(self)} rows, {format_bytes(self.nbytes)})"


def read_members(file: RowFile, words: np.ndarray, out: np.ndarray, check=lambda: None) -> None:
    """Read the rows of a set in ascending order to ``out``."""
    word = done = 0
    places = np.empty(min(SLICE, len(out) + 64), np.int64)
    while done < len(out):
        check()
        word, some = rowset.members(words, word, places)
        file.read(places[:some], out[done:done + some])
        done += some


def as_bytes(rows: np.ndarray) -> np.ndarray:
    """The bytes of rows, one row each."""
    return rows.view(np.uint8).reshape(len(rows), -1) if rows.size else np.empty((0, rows.shape[1]), np.uint8)
