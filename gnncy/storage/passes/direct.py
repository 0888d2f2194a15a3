"""What passes read and write: rows in storage order, scratch files, results, past the page cache where asked for."""
import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gnncy.storage._blocks import (
    PAGE,
    STREAMS,
    BlockFile,
    IOStatistics,
    _waiting_threads,
    ascending,
    io_error,
    open_direct,
    together,
    write_all,
)
from gnncy.storage._sidecar import Writer, check_rows, writing

OPEN_FILES = "/proc/self/fd"  # where an open file, which may have no name, can be opened again; not on every system
_WRITE = 1 << 21  # bytes of one write


class DirectWriter:
    """Writes to an open file past the page cache where bytes and addresses lie on page bounds, else through it."""

    def __init__(self, fd: int, path: Path, direct: bool, stats: IOStatistics):
        self._fd, self._path, self._stats = fd, path, stats
        self._direct: int | None = None
        again = f"{OPEN_FILES}/{fd}"
        if direct and os.path.exists(again):
            self._direct = open_direct(again, os.O_WRONLY)

    def write(self, data: np.ndarray, offset: int) -> None:
        """Write all bytes of a C-contiguous array at ``offset``."""
        self.write_parts([(data, offset)])

    def write_parts(self, parts: Iterable[tuple[np.ndarray, int]]) -> None:
        """Write all bytes of C-contiguous arrays, each at an offset of its own, several at a time."""
        views = [(data.reshape(-1).view(np.uint8), offset) for data, offset in parts]
        self._stats.add(bytes_written=sum(len(view) for view, _ in views),
                        operations=sum(-(-len(view) // _WRITE) for view, _ in views))
        pages, rest = [], []
        for view, offset in views:
            aligned = self._direct is not None and (offset | view.ctypes.data) % PAGE == 0
            whole = len(view) // PAGE * PAGE if aligned else 0
            pages += [(view[k:min(k + _WRITE, whole)], offset + k) for k in range(0, whole, _WRITE)]
            if whole < len(view):
                rest.append((view[whole:], offset + whole))
        if pages and not self._write_pages(pages):
            self.close()
            rest = views
        for view, offset in rest:
            write_all(self._fd, self._path, view, offset)

    def _write_pages(self, pieces: list[tuple[np.ndarray, int]]) -> bool:
        """Write whole pages, several pieces at a time; False where the file system takes the flag and refuses."""
        assert self._direct is not None
        fd, todo, guard = self._direct, iter(pieces), threading.Lock()
        failures: list[tuple[int, int]] = []

        def work() -> None:
            while not failures:
                with guard:
                    view, offset = next(todo, (None, 0))
                if view is None:
                    return
                part = view.data
                while part:
                    try:
                        done = os.pwrite(fd, part, offset)
                    except OSError as error:
                        failures.append((offset, error.errno or errno.EIO))
                        return
                    part, offset = part[done:], offset + done

        together(work, min(STREAMS, len(pieces)), lambda: failures.append((pieces[0][1], errno.EINTR)))
        if failures and min(failures)[1] != errno.EINVAL:
            at, status = min(failures)
            raise io_error(self._path, status, at, "writing")
        return not failures

    def close(self) -> None:
        """Let go of the second descriptor."""
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None


class Space:
    """Bytes of an open file from ``base`` on, to be written and read again."""

    def __init__(self, file: BlockFile, base: int, direct: bool):
        self.file, self.base = file, base
        self._writer = DirectWriter(file.fd, file.path, direct, file.stats)
        self.write, self.write_parts = self._writer.write, self._writer.write_parts

    def close(self) -> None:
        """Let go of the file."""
        self._writer.close()
        self.file.close()


class Scratch(Space):
    """A file without a name, reserved on disk; it is gone with the process however that ends."""

    def __init__(self, folder, size: int, direct: bool, disk, stats: IOStatistics):
        path = Path(folder) / f".gnncy-pass-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        file = BlockFile(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, direct=direct, disk=disk, stats=stats)
        try:
            path.unlink()
            file.reserve(size)
            super().__init__(file, 0, direct)
        except BaseException:
            file.close()
            raise


class Source:
    """Rows of features by their places in storage order, whatever holds them."""

    def __init__(self, features):
        self.features = features
        self.shape: tuple[int, int] = tuple(features.shape)
        self.dtype = np.dtype(features.dtype)
        self.order: np.ndarray | None = getattr(features, "order", None)
        self.bytes_per_row = getattr(features, "row_bytes", self.shape[1] * np.dtype(
            getattr(features, "file_dtype", self.dtype)).itemsize)
        self.on_disk = hasattr(features, "path")

    def range(self, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        """Rows ``start .. stop - 1``."""
        if hasattr(self.features, "read_rows"):
            return self.features.read_rows(start, stop, out)
        ids = np.arange(start, stop) if self.order is None else self.order[start:stop]
        return self.features.read_batch(ids, out)

    def pick(self, places: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Rows at any places, in the order given."""
        return self.features.read_batch(places if self.order is None else self.order[places], out)


class ScratchRows(Source):
    """Rows in a scratch file: what one pass leaves for the next."""

    def __init__(self, scratch: Scratch, shape: tuple[int, int], dtype: np.dtype, order: np.ndarray | None):
        self.scratch, self.shape, self.dtype, self.order = scratch, shape, dtype, order
        self.bytes_per_row = shape[1] * dtype.itemsize
        self.on_disk = True
        self._end = 0

    def append(self, rows: np.ndarray) -> None:
        """The rows that follow those before."""
        rows = np.ascontiguousarray(rows, self.dtype)
        self.scratch.write(rows, self._end * self.bytes_per_row)
        self._end += len(rows)

    def range(self, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        self.scratch.file.read_range(start * self.bytes_per_row, out)
        return out

    def pick(self, places: np.ndarray, out: np.ndarray) -> np.ndarray:
        rows, place = ascending(places)
        self.scratch.file.gather(rows * self.bytes_per_row, np.broadcast_to(np.int64(self.bytes_per_row), len(rows)),
                                 place * self.bytes_per_row, out)
        return out

    def close(self) -> None:
        """Give the space back."""
        self.scratch.close()


class Result:
    """Rows of a new file of features, in storage order; they are written while what follows is computed."""

    def __init__(self, writer: Writer, direct: bool, stats: IOStatistics):
        self._writer, self._next, self._direct, self._stats = writer, 0, direct, stats
        self._fd, self._path = writer.file.fd, writer.file.path
        self._file = DirectWriter(self._fd, self._path, direct, stats)
        self._pending: Future | None = None
        writer.file = self  # type: ignore[assignment]

    def append(self, rows: np.ndarray) -> None:
        """The rows that follow those before. They are read until the next call, or :meth:`wait`, has returned."""
        writer = self._writer
        if rows.dtype != writer.dtype or not np.isfinite(rows.sum()):
            rows = check_rows(rows, writer.shape[1], writer.dtype, f"the block at row {self._next}")
        writer.write(self._next, rows)
        self._next += len(rows)

    def write(self, rows: np.ndarray, offset: int) -> None:
        """Begin to write rows, when those before are written: what the writer asks of its file."""
        self.wait()
        self._pending = in_background(self._file.write, rows, offset)

    def space(self, disk) -> Space:
        """The place of the rows, as space for what they are made of; a row must be written after what lies there."""
        file = BlockFile(f"{OPEN_FILES}/{self._fd}", os.O_RDWR, direct=self._direct, disk=disk, stats=self._stats)
        file.path = self._path  # the one that errors shall name
        try:
            return Space(file, PAGE, self._direct)
        except BaseException:
            file.close()
            raise

    def wait(self) -> None:
        """Until what was begun is written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Let go of the file, whose descriptor is the writer's."""
        if self._pending is not None:
            wait([self._pending])
        self._file.close()


@contextmanager
def result(path, shape: tuple[int, int], dtype, order, overwrite: bool, direct: bool,
           stats: IOStatistics) -> Iterator[Result]:
    """A new file of features at ``path``: whole when the block is left, absent if an exception leaves it."""
    with writing(path, shape, dtype, order, overwrite) as writer:
        rows = Result(writer, direct, stats)
        try:
            yield rows
            rows.wait()
        finally:
            rows.close()


def in_background(call: Callable, *arguments) -> Future:
    """Begin a call that waits for a disk."""
    return _waiting_threads().submit(call, *arguments)
