"""Checksums of files by extents: computed as rows are written, kept beside them, verified at the speed of the disk."""
import json
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gnncy._files import replacing
from gnncy._threads import run_pieces
from gnncy.errors import StorageError
from gnncy.storage._blocks import PAGE, BlockFile, ahead, direct_empty, npy_header, read_npy_header, write_all

EXTENT = 256 * 1024  # bytes under one checksum: a table of 32 bytes for each MiB, damage named to some hundred rows
UNKNOWN = -1  # in a table: written since, and not yet summed up again
_PIECE = 32  # extents that are read at a time
_SUMMED = 4  # extents that a thread sums up at a time
_MARKS = 8  # times that a writer marks what it is about to write; the next time it marks the whole file


@dataclass(frozen=True)
class VerifyReport:
    """What :meth:`FeatureStorage.verify` and :meth:`SparseFeatureStorage.verify` found. True if all is well.

    Parameters
    ----------
    path : pathlib.Path
        The file or directory.
    n_rows : int
        Its rows.
    damaged : tuple of (int, int)
        Ranges of rows, ``start .. stop - 1`` in storage order, that hold other bytes than were written.
    unchecked : tuple of (int, int)
        Ranges of rows whose checksum is not known: the file was written without any, or a writer was killed or is at
        work.
    damaged_nodes : ndarray of int64
        Ids of the nodes whose rows are damaged, ascending.

    Attributes
    ----------
    ok : bool
        Whether every row was checked and none is damaged.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import FeatureStorage
    >>> with FeatureStorage.from_array(np.ones((1000, 4)), "features.npy") as store:
    ...     print(store.verify())
    features.npy: all 1000 rows are as they were written
    """

    path: Path
    n_rows: int
    damaged: tuple[tuple[int, int], ...] = ()
    unchecked: tuple[tuple[int, int], ...] = ()
    damaged_nodes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether every row was checked and none is damaged."""
        return not self.damaged and not self.unchecked

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        lines = []
        if self.damaged:
            nodes = ", ".join(map(str, self.damaged_nodes[:8].tolist())) + (", ..." if len(self.damaged_nodes) > 8
                                                                           else "")
            lines.append(f"{self.path}: damaged rows {_spans(self.damaged)}, of {len(self.damaged_nodes)} nodes "
                         f"({nodes}); write them again or restore the file from a copy")
        if self.unchecked:
            lines.append(f"{self.path}: rows {_spans(self.unchecked)} have no checksum to be held against (written by "
                         f"an older version or another program, or a writer did not close the file)")
        return "\n".join(lines) or f"{self.path}: all {self.n_rows} rows are as they were written"


def _spans(ranges) -> str:
    shown = ", ".join(f"{start}..{stop - 1}" for start, stop in ranges[:8])
    return shown + (f" and {len(ranges) - 8} more ranges" if len(ranges) > 8 else "")


def n_extents(size: int) -> int:
    """Extents of ``size`` bytes."""
    return -(-size // EXTENT)


class RunningChecksums:
    """Checksums of bytes that come one after the other, behind ``size`` bytes whose table is given."""

    def __init__(self, before: np.ndarray | None = None, size: int = 0) -> None:
        known = [] if before is None else before.tolist()
        self._filled = size % EXTENT
        self._last = known.pop() if self._filled else 0
        self._done: list[int] = known
        self._unknown = len(known) if self._last == UNKNOWN else None
        self._last = max(self._last, 0)

    def add(self, data) -> None:
        """Take the next bytes; each extent of them is summed up by one of the threads at hand."""
        view = memoryview(data).cast("B")
        cuts = [0, *range(EXTENT - self._filled, len(view), EXTENT), len(view)]
        sums = [self._last, *[0] * (len(cuts) - 2)]

        def sum_up(first: int, last: int) -> None:
            for k in range(first, last):
                sums[k] = zlib.crc32(view[cuts[k]:cuts[k + 1]], sums[k])

        run_pieces(sum_up, len(sums), _SUMMED)
        self._filled = cuts[-1] - cuts[-2] + (self._filled if len(sums) == 1 else 0)
        *whole, self._last = sums
        self._done += whole
        if self._filled == EXTENT:
            self._done.append(self._last)
            self._last, self._filled = 0, 0

    def table(self) -> np.ndarray:
        """Checksum of every extent so far, int64."""
        table = np.array(self._done + [self._last] * (self._filled > 0), np.int64)
        if self._unknown is not None:
            table[self._unknown] = UNKNOWN
        return table


def of_zeros(size: int) -> np.ndarray:
    """The table of ``size`` zero bytes."""
    table = np.full(n_extents(size), zlib.crc32(bytes(EXTENT)), np.int64)
    if size % EXTENT:
        table[-1] = zlib.crc32(bytes(size % EXTENT))
    return table


def compute(file: BlockFile, offset: int, size: int, extents: np.ndarray) -> np.ndarray:
    """Checksums of the given extents (ascending) of the ``size`` bytes at ``offset`` of a file."""
    found = np.empty(len(extents), np.int64)
    together = np.split(np.arange(len(extents)), np.flatnonzero(np.diff(extents) > 1) + 1)
    runs = [run[k:k + _PIECE] for run in together for k in range(0, len(run), _PIECE)]
    buffers = [direct_empty(min(_PIECE, len(extents)) * EXTENT) for _ in runs[:2]]

    def read(k: int) -> np.ndarray:
        start = int(extents[runs[k][0]]) * EXTENT
        data = buffers[k % 2][:min(len(runs[k]) * EXTENT, size - start)]
        file.read_range(offset + start, data)
        return data

    # One run is read while the one before is summed up.
    for run, data in zip(runs, ahead(read, len(runs), 1), strict=True):
        for k, extent in enumerate(run.tolist()):
            found[extent] = zlib.crc32(data[k * EXTENT:(k + 1) * EXTENT].data)
    return found


def check(file: BlockFile, offset: int, size: int,
          table: Callable[[], np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the extents that are damaged, and of those whose checksum is not known.

    ``table`` reads the table, if there is one; it is asked again about what differs, for a writer may be at work.
    """
    if table is None:
        return np.zeros(0, np.int64), np.arange(n_extents(size))
    known = table()
    suspects = np.flatnonzero(known != UNKNOWN)
    suspects = suspects[compute(file, offset, size, suspects) != known[suspects]]
    if len(suspects):
        before, known = known[suspects], table()
        suspects = suspects[known[suspects] == before]
        suspects = suspects[compute(file, offset, size, suspects) != known[suspects]]
    return suspects, np.flatnonzero(known == UNKNOWN)


def row_ranges(extents: np.ndarray, row_bytes: int, n_rows: int) -> tuple[tuple[int, int], ...]:
    """Ranges of packed rows that lie, if only in part, in the given extents (ascending)."""
    return merged((extent * EXTENT // row_bytes, min(-(-(extent + 1) * EXTENT // row_bytes), n_rows))
                  for extent in extents.tolist())


def merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges, ascending, those that touch or overlap made one."""
    result: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if result and start <= result[-1][1]:
            start, stop = result[-1][0], max(stop, result.pop()[1])
        result.append((start, stop))
    return tuple(result)


def members(ranges: tuple[tuple[int, int], ...]) -> np.ndarray:
    """All numbers that lie in ranges."""
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(start, stop) for start, stop in ranges)])


def save_table(path: Path, table: np.ndarray) -> None:
    """Write a table to a file of its own, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(npy_header(table.shape, np.dtype("<i8")))
        file.write(np.ascontiguousarray(table, "<i8").data)


def load_table(path: Path, size: int) -> np.ndarray:
    """The table for ``size`` bytes."""
    try:
        with open(path, "rb") as file:
            shape, dtype, offset, _ = read_npy_header(file, path)
            if shape != (n_extents(size),) or dtype != "<i8":
                raise StorageError(f"{path}: holds {shape} of {dtype}, need {n_extents(size)} checksums; restore it "
                                   f"from a copy")
            file.seek(offset)
            return np.frombuffer(file.read(8 * shape[0]), "<i8").astype(np.int64)
    except FileNotFoundError:
        raise StorageError(f"{path}: the checksums of the rows are missing; restore the file from a copy") from None


def sealed(fields: dict) -> str:
    """JSON of what describes a file, with a checksum of its own."""
    return json.dumps(fields | {"crc32": _seal(fields)}, indent=1) + "\n"


def check_seal(path: Path, fields: dict) -> None:
    """Hold fields that were read against their checksum, if they have one: files of older versions do not."""
    if "crc32" in fields and fields["crc32"] != _seal({k: v for k, v in fields.items() if k != "crc32"}):
        raise StorageError(f"{path}: not as it was written, by its checksum; restore it from a copy")


def _seal(fields: dict) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


class WrittenExtents:
    """The table of a file that is written in place: what is about to change is marked first, and summed up after.

    A mark is on the disk before the bytes are, so a crash leaves extents that are unknown, never good ones that look
    damaged nor damaged ones that look good.
    """

    def __init__(self, path: Path, size: int):
        self._path = path
        self._values = load_table(path, size)
        self._own = np.zeros(len(self._values), bool)
        self._marks = 0

    def mark(self, start: np.ndarray, length: int) -> None:
        """Call before ``length`` bytes at each ``start`` are written."""
        first, last = start // EXTENT, (start + length - 1) // EXTENT
        own = np.zeros_like(self._own)
        for step in range(int((last - first).max()) + 1):
            own[np.minimum(first + step, last)] = True
        new = np.flatnonzero(own & ~self._own)
        if not len(new):
            return
        self._own |= own
        self._values[new] = UNKNOWN
        self._marks += 1
        if self._marks <= _MARKS:
            self._write(self._values[new[0]:new[-1] + 1], int(new[0]))
        elif self._marks == _MARKS + 1:
            self._write(np.full_like(self._values, UNKNOWN), 0)  # and from now on without waiting for the disk

    def settle(self, file: BlockFile, offset: int, size: int) -> None:
        """Sum up what was written, after it is on the disk. What another writer left unknown stays so."""
        own = np.flatnonzero(self._own)
        self._values[own] = compute(file, offset, size, own)
        self._write(self._values, 0)
        self._own[:] = False
        self._marks = 0

    def _write(self, values: np.ndarray, start: int) -> None:
        fd = os.open(self._path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            write_all(fd, self._path, np.ascontiguousarray(values, "<i8"), PAGE + 8 * start)
            os.fsync(fd)
        finally:
            os.close(fd)
