"""``EmbeddingTable``: rows that are learned in place, in a file that may be bigger than memory."""
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gnncy import _files
from gnncy._check import check_array, check_choice, check_float, check_ids, check_int
from gnncy._kernels import records as kernels
from gnncy._kernels.storage import tables as places
from gnncy._memory import available, format_bytes, parse_bytes
from gnncy._random import stream
from gnncy._threads import run_pieces
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.storage._blocks import IOStatistics, direct_empty, npy_header, read_npy_header, write_all
from gnncy.storage._sidecar import lock, sidecar_file
from gnncy.storage.tables.cache import BlockCache
from gnncy.storage.tables.file import Journal, TableFile

FORMAT = "gnncy-table"
VERSION = 1
STATES = {"sgd": (), "rowwise_adagrad": ("sum",), "adam": ("exp_avg", "exp_avg_sq")}
RATES = {"sgd": 0.025, "rowwise_adagrad": 0.1, "adam": 1e-3}
BETAS = (0.9, 0.999)
EPS = {"rowwise_adagrad": 1e-10, "adam": 1e-8}
_ALIGN = 16  # bytes of which a record is a multiple: 256 of them are whole pages
_LEAST_BITS = 8
_BLOCK = 64 * 1024  # bytes of a block, at least where that takes more than 256 records
_LEAST_BLOCKS = 4  # that memory holds
_MARK = 4  # bytes that a row in memory takes beside its record
_PIECE = 1 << 16  # elements of rows that one thread takes at a time


class EmbeddingTable:
    """Rows and their optimizer's state on disk, changed in place, of which a window is in memory.

    The file is a standard ``.npy`` of records, so ``np.load(path, mmap_mode="r")["row"]`` are the rows; beside a row
    lies its optimizer's state. Blocks of 256 records or more are read when a row of them is asked for, changed in
    memory, and written back when they make room for others, in ascending order, joined where they are neighbours.
    Where all blocks fit into memory none leaves.

    Nothing is lost: :meth:`checkpoint` makes all changes lasting, at once. What a block held at the last checkpoint is
    kept in a journal before it is written over. After a crash or a kill at any moment, as after :meth:`close` without
    a checkpoint, the table is what it was at the last checkpoint.

    Results do not depend on the memory limit, nor on what is in memory.

    Parameters
    ----------
    path : path-like
        A file that :meth:`create` made.
    mode : {"r", "r+"}
        Read, or read and write. A table has one writer at a time.
    memory_limit : int or str, optional
        Bytes of blocks in memory, such as ``"256MB"``. None means all that fit half of what is available.
    direct : bool, optional
        Go past the page cache where the file system allows it. None means for a file that is larger than the page cache
        could get. The result is the same.

    Attributes
    ----------
    path : pathlib.Path
    n_rows, dim : int
    optimizer : str
    lr : float
        The learning rate of the next update.
    steps : int
        Updates so far.
    progress : dict
        What the last checkpoint was given.
    stats : IOStatistics

    Raises
    ------
    StorageError
        If the file is truncated, damaged, foreign, not created to the end, or open for writing elsewhere.
    MemoryLimitError
        If the limit is below four blocks.

    See Also
    --------
    gnncy.estimators.NodeEmbedding : trains one on a graph.
    gnncy.optim.RowAdagrad, gnncy.optim.SparseAdam : the same steps on an array in memory.

    References
    ----------
    Lerer et al., PyTorch-BigGraph: A Large-scale Graph Embedding System, MLSys 2019.
    Mohoney et al., Marius: Learning Massive Graph Embeddings on a Single Machine, OSDI 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage.tables import EmbeddingTable
    >>> with EmbeddingTable.create("table.npy", 1000, 2, rows=np.zeros((1000, 2)), lr=0.1) as table:
    ...     table.update([3, 999, 3], [[1.0, 1.0], [2.0, -2.0], [1.0, 1.0]])
    ...     table.checkpoint({"epoch": 1})
    ...     table.gather([999, 3]).round(6)
    array([[-0.1,  0.1],
           [-0.1, -0.1]], dtype=float32)
    >>> np.load("table.npy")["row"][3].round(6)
    array([-0.1, -0.1], dtype=float32)
    >>> with EmbeddingTable("table.npy") as table:
    ...     table.progress
    {'epoch': 1}
    """

    def __init__(self, path, mode: str = "r", *, memory_limit: int | float | str | None = None,
                 direct: bool | None = None):
        self.path = Path(path)
        self.mode = check_choice(mode, "mode", ("r", "r+"))
        self.stats = IOStatistics()
        self._failed = False
        self._file: TableFile | None = None
        head = _read_sidecar(self.path)
        self.n_rows, self.dim = head["n_rows"], head["dim"]
        self.optimizer, self.lr = head["optimizer"], head["lr"]
        self._bits, self._journaled = head["block_bits"], head["journal"]
        dtype = _record(self.dim, self.optimizer)
        block_bytes = dtype.itemsize << self._bits
        n_blocks = -(-self.n_rows >> self._bits)
        file = TableFile(self.path, os.O_RDWR if mode == "r+" else os.O_RDONLY, block_bytes, direct=direct,
                         stats=self.stats)
        try:
            if mode == "r+":
                lock(file.fd, self.path)
                head = _read_sidecar(self.path)  # as the writer before left it
            with open(file.fd, "rb", closefd=False) as opened:
                shape, found, _, _ = read_npy_header(opened, self.path)
            if (shape, found) != ((self.n_rows,), dtype) or os.fstat(file.fd).st_size < 4096 + n_blocks * block_bytes:
                raise StorageError(f"{self.path}: records of {found} of shape {shape} where {sidecar_file(self.path)} "
                                   f"tells of {self.n_rows} of {dtype}; restore both from a copy")
            if not head["whole"]:
                raise StorageError(f"{self.path}: was changed without a journal and not closed; create it again")
            self._generation, self.steps, self.progress = head["generation"], head["steps"], head["progress"]
            self._journal = Journal(_journal_file(self.path), file, n_blocks)
            if mode == "r+":
                self._roll_back(file)
            elif self._journal.pending(self._generation):
                raise StorageError(f"{self.path}: a writer has it open, or was ended; once it is gone, open the table "
                                   f"with mode='r+', which rolls it back to the last checkpoint")
            capacity = _capacity(memory_limit, n_blocks, block_bytes + (_MARK << self._bits))
            self._cache = BlockCache(file, n_blocks, capacity, self._before_writing)
        except BaseException:
            file.close()
            raise
        self._file = file
        self.marks = np.full(capacity << self._bits, -1, np.int32)
        self.records = self._cache.memory.view(np.float32).reshape(capacity << self._bits, dtype.itemsize // 4)
        self._whole = True

    @classmethod
    def create(cls, path, n_rows: int, dim: int, *, optimizer: str = "rowwise_adagrad", lr: float | None = None,
               rows=None, scale: float = 1e-3, seed: int = 0, journal: bool = True, overwrite: bool = False,
               **options) -> "EmbeddingTable":
        """Make a table and open it for writing.

        Parameters
        ----------
        path : path-like
        n_rows, dim : int
        optimizer : {"rowwise_adagrad", "adam", "sgd"}
            One number of state a row, two numbers a value, or none.
        lr : float, optional
            Learning rate; by default 0.1, 1e-3 and 0.025.
        rows : array, shape (n_rows, dim), optional
            The rows to begin with.
        scale : float
            Without ``rows``, they are drawn uniformly between ``-scale`` and ``scale``.
        seed : int
            Of that draw.
        journal : bool
            Whether the table outlives a crash while it is open. Without it less is written.
        overwrite : bool
            Whether a file that is there may be replaced.
        **options
            As for the class.

        Returns
        -------
        EmbeddingTable

        Raises
        ------
        StorageError
            If there is such a file already, or the disk is full.

        Examples
        --------
        >>> from gnncy.storage.tables import EmbeddingTable
        >>> EmbeddingTable.create("drawn.npy", 10, 3, optimizer="adam", seed=1).close()
        """
        path = Path(path)
        n, d = check_int(n_rows, "n_rows", 1), check_int(dim, "dim", 1)
        check_choice(optimizer, "optimizer", tuple(STATES))
        lr = RATES[optimizer] if lr is None else check_float(lr, "lr", 0)
        scale = check_float(scale, "scale", 0)
        if rows is not None:
            rows = check_array(rows, "rows", dtype=np.float32)
            if rows.shape != (n, d):
                raise ValueError(f"rows must have shape {(n, d)}, got {rows.shape}")
        sidecar = sidecar_file(path)
        if path.exists() or sidecar.exists():
            if not overwrite:
                raise StorageError(f"{path} exists; open it with EmbeddingTable(path, 'r+'), choose another name, or "
                                   f"pass overwrite=True to replace it")
            if path.exists():
                with open(path, "rb") as there:
                    lock(there.fileno(), path)
            for old in (sidecar, _journal_file(path)):
                old.unlink(missing_ok=True)
        dtype, (bits, _) = _record(d, optimizer), cls.layout(d, optimizer)
        with _files.replacing(path) as temporary:
            _write_rows(temporary, path, n, d, dtype, bits, rows, scale, seed, options.get("direct"))
        _write_sidecar(path, {"n_rows": n, "dim": d, "optimizer": optimizer, "lr": lr, "block_bits": bits,
                              "journal": bool(journal), "generation": 0, "steps": 0, "whole": True, "progress": {}})
        return cls(path, "r+", **options)

    @staticmethod
    def layout(dim: int, optimizer: str = "rowwise_adagrad") -> tuple[int, int]:
        """Of the rows of a block the binary logarithm, and its bytes.

        Examples
        --------
        >>> from gnncy.storage.tables import EmbeddingTable
        >>> EmbeddingTable.layout(128)
        (8, 135168)
        """
        size, bits = _record(dim, optimizer).itemsize, _LEAST_BITS
        while size << bits < _BLOCK:
            bits += 1
        return bits, size << bits

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and their width."""
        return self.n_rows, self.dim

    @property
    def nbytes(self) -> int:
        """Bytes of the records."""
        return self.n_rows * self.records.shape[1] * 4

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return 1 << self._bits

    @property
    def n_blocks(self) -> int:
        """Blocks of the table."""
        return len(self._cache.slot_of)

    @property
    def capacity(self) -> int:
        """Blocks that memory holds."""
        return self._cache.capacity

    @property
    def resident(self) -> bool:
        """Whether all blocks fit into memory."""
        return self.capacity >= self.n_blocks

    @property
    def direct(self) -> bool:
        """Whether the page cache is passed by."""
        return self._opened().direct

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        return (f"EmbeddingTable({str(self.path)!r}, {self.n_rows} x {self.dim}, {self.optimizer}, "
                f"{min(self.capacity, self.n_blocks)} of {self.n_blocks} blocks in memory)")

    # -- rows

    def gather(self, ids, *, state: bool = False):
        """Copies of some rows, with every change so far.

        Parameters
        ----------
        ids : array of int, shape (k,), or boolean mask, shape (n_rows,)
            In any order, repeats allowed.
        state : bool
            Whether to return the optimizer's state of these rows too.

        Returns
        -------
        rows : ndarray of float32, shape (k, dim)
        state : dict of str to ndarray
            By the names of the optimizer's numbers: ``sum`` of shape (k,), or ``exp_avg`` and ``exp_avg_sq`` of shape
            (k, dim). Only with ``state=True``.
        """
        ids = check_ids(ids, self.n_rows, "ids")
        width = self.dim if not state else self.records.shape[1]
        out = np.empty((len(ids), width), np.float32)
        for some, where in self._windows(ids):
            out[some] = self.records[where, :width]
        if not state:
            return out
        dtype = _record(self.dim, self.optimizer)
        fields = out.view(dtype).reshape(-1)
        return fields["row"].copy(), {name: fields[name].copy() for name in STATES[self.optimizer]}

    def update(self, ids, gradients) -> None:
        """One step of the optimizer on some rows.

        Parameters
        ----------
        ids : array of int, shape (k,)
            The gradients of a row that is named twice are added, in the order given.
        gradients : array_like, shape (k, dim)

        Raises
        ------
        ValueError, IndexError
            If shapes do not agree, a gradient is not finite or a row does not exist; nothing is changed then.
        """
        self._check_writer()
        ids = check_ids(ids, self.n_rows, "ids")
        gradients = check_array(gradients, "gradients", dtype=np.float32, allow_empty=True)
        if gradients.shape != (len(ids), self.dim):
            raise ValueError(f"gradients must have shape {(len(ids), self.dim)}, one row for each id, got "
                             f"{gradients.shape}")
        self.steps += 1
        for some, where in self._windows(ids):
            self._apply(where, np.array(gradients[some]))  # the kernel adds them up in place

    def prefetch(self, ids) -> None:
        """Begin to read some rows that will be asked for soon, as far as there is room beside those in use."""
        ids = check_ids(ids, self.n_rows, "ids")
        self.read_ahead(np.unique(ids >> self._bits))

    def iter_rows(self, n: int | None = None) -> Iterator[np.ndarray]:
        """All rows in order, ``n`` at a time (by default as many as suit the memory)."""
        n = max(1, self.capacity // 2) * self.block_rows if n is None else check_int(n, "n", 1)
        for first in range(0, self.n_rows, n):
            yield self.gather(np.arange(first, min(first + n, self.n_rows)))

    # -- windows: several steps on the same blocks, without a copy of their rows

    def hold(self, blocks: np.ndarray) -> None:
        """Have blocks (numbers, ascending) in memory until :meth:`hold` or another method asks for others.

        Row i lies in block ``i // block_rows``. Raises MemoryLimitError if there are more of them than fit.
        """
        self._guarded(self._cache.hold, blocks)

    def read_ahead(self, blocks: np.ndarray) -> None:
        """Begin to read blocks (numbers, ascending), as far as there is room beside those held."""
        self._guarded(self._cache.read_ahead, blocks)

    def expect(self, blocks: np.ndarray, due) -> None:
        """Tell when blocks are used next: those with the greatest number leave first. Ends with the next use."""
        self._cache.due[blocks] = due

    def locate(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Where rows (int64) of held blocks lie in ``records``, of which the first ``dim`` columns are the row.

        ``out`` may be ``rows``.
        """
        out = np.empty(rows.shape, np.int64) if out is None else out
        places.locate(rows, self._cache.slot_of, self._bits, out)
        return out

    def step(self, where: np.ndarray, gradients: np.ndarray) -> None:
        """One step of the optimizer on located rows; ``gradients`` is written over."""
        self._check_writer()
        self.steps += 1
        self._apply(where, gradients)

    @property
    def places(self) -> tuple[np.ndarray, int]:
        """For a kernel that takes steps by itself: the slots of blocks, and the bits of a row's place in its block."""
        return self._cache.slot_of, self._bits

    def changed(self, blocks: np.ndarray, steps: int) -> None:
        """Note that a kernel took some steps on rows of held blocks (numbers)."""
        self._check_writer()
        self.steps += steps
        self._cache.change(self._cache.slot_of[blocks])

    # -- lasting state

    def checkpoint(self, progress: dict | None = None) -> None:
        """Make all changes so far lasting: from now on this is what the table comes back to.

        Parameters
        ----------
        progress : dict, optional
            What the caller wants to find again as :attr:`progress`; must be JSON. By default unchanged.

        Raises
        ------
        StorageError
            If something could not be written; the last checkpoint stays.
        """
        self._check_writer()
        file = self._opened()
        progress = self.progress if progress is None else json.loads(json.dumps(progress))
        self._guarded(self._cache.write_back)
        self._guarded(file.sync)
        self._guarded(self._commit, self._generation + 1, progress, True)
        self._generation += 1
        self.progress = progress
        self._guarded(self._journal.clear)

    def rollback(self) -> None:
        """Go back to the last checkpoint."""
        self._check_writer()
        file = self._file
        if file is None or not self._journaled:
            what = "the table is closed" if file is None else "has no journal to go back by"
            raise StorageError(f"{self.path}: {what}")
        self._cache.forget()
        self._roll_back(file)
        self._failed = False

    def close(self) -> None:
        """Let go of the file; changes since the last checkpoint are undone. Closing twice does nothing."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            self._cache.forget()
            if self.mode == "r+":
                self._roll_back(file)
        finally:
            self._journal.close()
            file.close()

    def __enter__(self) -> "EmbeddingTable":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    # -- parts

    def _windows(self, ids: np.ndarray) -> Iterator[tuple[slice | np.ndarray, np.ndarray]]:
        """Positions of ids, and where their rows lie, as many at a time as fit into memory."""
        blocks = ids >> self._bits
        distinct = np.unique(blocks)
        if len(distinct) <= self.capacity:
            self.hold(distinct)
            yield slice(None), self.locate(ids)
            return
        order = np.argsort(blocks, kind="stable")
        blocks = blocks[order]
        for first in range(0, len(distinct), self.capacity):
            some = distinct[first:first + self.capacity]
            self.hold(some)
            part = order[np.searchsorted(blocks, some[0]):np.searchsorted(blocks, some[-1], "right")]
            yield part, self.locate(ids[part])

    def _apply(self, where: np.ndarray, gradients: np.ndarray) -> None:
        n = len(where)
        distinct, begin, order = np.empty((3, n + 1), np.int64)
        count = places.group(where, self.marks, distinct, begin, order)
        kernel, scalars = self._step()
        run_pieces(lambda a, b: kernel(a, b, distinct, order, begin, gradients, *scalars, self.records), count,
                   max(1, _PIECE // self.dim))
        self._cache.change(distinct[:count] >> self._bits)

    def _step(self):
        if self.optimizer == "sgd":
            return kernels.sgd, (self.lr,)
        eps = EPS[self.optimizer]
        if self.optimizer == "rowwise_adagrad":
            return kernels.rowwise_adagrad, (self.lr, eps)
        (a, b), t = BETAS, self.steps
        root_correction = (1 - b**t) ** -0.5
        return kernels.adam, (self.lr / (1 - a**t), a, 1 - a, b, 1 - b, root_correction, eps * root_correction)

    def _before_writing(self, blocks: np.ndarray) -> None:
        if self._journaled:
            self._journal.save(blocks, self._generation)
        elif self._whole:
            self._commit(self._generation, self.progress, False)

    def _commit(self, generation: int, progress: dict, whole: bool) -> None:
        _write_sidecar(self.path, {
            "n_rows": self.n_rows, "dim": self.dim, "optimizer": self.optimizer, "lr": self.lr,
            "block_bits": self._bits, "journal": self._journaled, "generation": generation, "steps": self.steps,
            "whole": whole, "progress": progress})
        self._whole = whole

    def _roll_back(self, file: TableFile) -> None:
        if self._journaled:
            head = _read_sidecar(self.path)  # a checkpoint may count although its writer was told of an error
            self.steps, self.lr, self.progress = head["steps"], head["lr"], head["progress"]
            self._generation = head["generation"]
            self._journal.roll_back(self._generation)
            self._journal.clear()
            _journal_file(self.path).unlink(missing_ok=True)
            self._journal.close()

    def _guarded(self, call, *arguments) -> None:
        """Call; if it fails, what is in memory and on disk may differ, and only the last checkpoint is sure."""
        self._opened()
        try:
            call(*arguments)
        except MemoryLimitError:
            raise
        except BaseException:
            self._failed = True
            raise

    def _opened(self) -> TableFile:
        if self._file is None:
            raise StorageError(f"{self.path}: the table is closed")
        if self._failed:
            raise StorageError(f"{self.path}: reading or writing failed before; rollback() or open the table again, "
                               f"which gives the last checkpoint")
        return self._file

    def _check_writer(self) -> None:
        if self.mode != "r+":
            raise StorageError(f"{self.path}: is open for reading; open it with mode='r+' to change it")


def _record(dim: int, optimizer: str) -> np.dtype:
    fields: list[tuple] = [("row", "<f4", (dim,))]
    fields += [(name, "<f4") if name == "sum" else (name, "<f4", (dim,)) for name in STATES[optimizer]]
    unused = -np.dtype(fields).itemsize % _ALIGN
    return np.dtype(fields + ([("unused", f"V{unused}")] if unused else []))


def _journal_file(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _capacity(memory_limit, n_blocks: int, size: int) -> int:
    limit = available() // 2 if memory_limit is None else parse_bytes(memory_limit)
    capacity = min(limit // size, n_blocks)
    if capacity < min(_LEAST_BLOCKS, n_blocks):
        least = format_bytes(min(_LEAST_BLOCKS, n_blocks) * size)
        raise MemoryLimitError(f"memory_limit={format_bytes(limit)} is too small: blocks of {format_bytes(size)} need "
                               f"at least {least}")
    return capacity


def _write_rows(temporary: Path, path: Path, n: int, d: int, dtype: np.dtype, bits: int, rows, scale: float, seed: int,
                direct: bool | None) -> None:
    block_rows, block_bytes = 1 << bits, dtype.itemsize << bits
    n_blocks = -(-n >> bits)
    several = min(n_blocks, max(1, (8 << 20) // block_bytes))
    data = direct_empty((several, block_rows), dtype)
    data.view(np.uint8)[:] = 0
    file = TableFile(temporary, os.O_RDWR | os.O_CREAT, block_bytes, direct=bool(direct))
    with file:
        file.reserve(4096 + n_blocks * block_bytes)
        write_all(file.fd, path, npy_header((n,), dtype), 0)
        for first in range(0, n_blocks, several):
            blocks = np.arange(first, min(first + several, n_blocks))

            def fill(start, stop, first=first):
                for k in range(start, stop):
                    low = (first + k) << bits
                    high = min(low + block_rows, n)
                    if rows is not None:
                        data["row"][k, :high - low] = rows[low:high]
                        continue
                    drawn = stream(seed, "row", first + k).random((high - low, d), np.float32)
                    data["row"][k, :high - low] = (drawn * 2 - 1) * np.float32(scale)

            run_pieces(fill, len(blocks), 1)
            file.put(blocks, np.arange(len(blocks), dtype=np.int64) * block_bytes, data)
        file.sync()


def _write_sidecar(path: Path, fields: dict) -> None:
    _files.write_text(sidecar_file(path), json.dumps({"format": FORMAT, "version": VERSION, **fields}, indent=1) + "\n")


def _read_sidecar(path: Path) -> dict:
    file = sidecar_file(path)
    if not path.exists():
        raise StorageError(f"{path}: there is no such table; make one with EmbeddingTable.create")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{path}: {file.name} is missing: not a table, or one that was not created to the end; "
                           f"create it again") from None
    except ValueError as error:
        raise StorageError(f"{file} is damaged ({error}); restore it from a copy") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise StorageError(f"{path}: not a table: {file.name} is of another format")
    if fields.get("version") != VERSION:
        raise StorageError(f"{path}: version {fields.get('version')} of the format, this gnncy reads {VERSION}")
    missing = {"n_rows", "dim", "optimizer", "lr", "block_bits", "journal", "generation", "steps", "whole",
               "progress"} - fields.keys()
    if missing or fields["optimizer"] not in STATES:
        raise StorageError(f"{file} is damaged (missing: {', '.join(sorted(missing)) or 'a known optimizer'}); restore "
                           f"it from a copy")
    return fields
