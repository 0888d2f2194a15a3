"""A file of rows as it lies on disk: which forms there are, what lies beside it, where a row's bytes are."""
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gnncy.errors import StorageError
from gnncy.storage._blocks import BlockFile, IOStatistics, read_npy_header
from gnncy.storage._sidecar import lock, read_order, read_sidecar, sidecar_file, table_file, tidy
from gnncy.storage.layout import checksums
from gnncy.storage.layout.checksums import VerifyReport, WrittenExtents
from gnncy.storage.layout.reference import HEADER, read_reference

SLICE = 1 << 17  # rows whose reads are planned at once


@dataclass
class RowsFile:
    """An open file of rows; what it holds was checked when it was opened."""

    file: BlockFile
    shape: tuple[int, int]
    dtype: np.dtype
    offset: int
    stride: int  # bytes from row to row
    position: np.ndarray | None  # place of every node's row
    finite: bool
    summed: bool
    written: WrittenExtents | None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.shape[1] * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.row_bytes

    def empty(self, n: int) -> np.ndarray:
        """Room for ``n`` rows as they are in the file."""
        return np.empty((n, self.shape[1]), self.dtype)

    def read(self, start: int, out: np.ndarray) -> np.ndarray:
        """Fill ``out`` with rows from ``start`` in storage order."""
        if self.stride == self.row_bytes:
            self.file.read_range(self.offset + start * self.stride, out)
        else:
            for low in range(0, len(out), SLICE):
                place = np.arange(low, min(low + SLICE, len(out)))
                self.pick(start + place, place, out)
        return out

    def pick(self, rows: np.ndarray, place: np.ndarray, out: np.ndarray, in_flight: int | None = None) -> None:
        """Read rows (ascending) to places of ``out``."""
        self.file.gather(rows * self.stride + self.offset, np.broadcast_to(np.int64(self.row_bytes), len(rows)),
                         place * self.row_bytes, out, in_flight)

    def verify(self, file: BlockFile) -> VerifyReport:
        """Hold all rows, read through another opening of the same file, against their checksums."""
        table = partial(checksums.load_table, table_file(file.path), self.nbytes) if self.summed else None
        damaged, unchecked = (checksums.row_ranges(extents, self.row_bytes, self.shape[0])
                              for extents in checksums.check(file, self.offset, self.nbytes, table))
        nodes = checksums.members(damaged)
        if len(nodes) and self.position is not None:
            bad = np.zeros(self.shape[0], bool)
            bad[nodes] = True
            nodes = np.flatnonzero(bad[self.position])
        return VerifyReport(file.path, self.shape[0], damaged, unchecked, nodes)

    def drop(self, start: int, stop: int) -> None:
        """Tell the system that the pages of rows ``start .. stop - 1`` are not needed again."""
        self.file.drop(self.offset + start * self.stride, (stop - start) * self.stride)


def open_rows(path: Path, writes: bool, check_form: Callable, *, direct: bool | None, disk,
              io_threads: int | None, stats: IOStatistics) -> RowsFile:
    """Open and validate a file of rows; ``check_form(dtype, shape)`` refuses what the caller cannot use."""
    while True:
        file = BlockFile(path, os.O_RDWR if writes else os.O_RDONLY, direct=direct, disk=disk, io_threads=io_threads,
                         stats=stats)
        try:
            found = _validated(path, file, writes, check_form)
            if found is not None and os.path.samestat(os.fstat(file.fd), os.stat(path)):
                if writes:
                    tidy(path)
                return found
        except BaseException:
            file.close()
            raise
        file.close()  # another process wrote a new file there while this one was reading what lies beside it


def _validated(path: Path, file: BlockFile, writes: bool, check_form: Callable) -> RowsFile | None:
    """What the file holds; None if rows were appended to it in the meantime."""
    if writes:
        lock(file.fd, path)
    with open(file.fd, "rb", closefd=False) as stream:
        foreign = read_reference(stream, path)
        shape, dtype, offset, crc = ((foreign[0], np.dtype("<f4"), HEADER, 0) if foreign
                                     else read_npy_header(stream, path))
    check_form(dtype, shape)
    if len(shape) != 2 or 0 in shape:
        raise StorageError(f"{path}: an array of shape {shape}, need (n_nodes, dim) with at least one row "
                           f"and column; reshape it and save it again")
    try:
        meta = None if foreign else read_sidecar(path, file, shape, dtype, crc)
    except StorageError:
        with open(file.fd, "rb", closefd=False) as stream:
            stream.seek(0)
            if read_npy_header(stream, path)[3] == crc:
                raise
        return None
    if meta is None and writes:
        what = ("file in the reference layout" if foreign
                else f"plain .npy file without its sidecar {sidecar_file(path).name}")
        raise StorageError(f"{path}: a {what} opens read-only; use mode='r', or copy it with "
                           f"FeatureStorage.convert(path, new_path)")
    row_bytes = shape[1] * dtype.itemsize
    summed = meta is not None and meta["checksums"] is not None
    return RowsFile(
        file, shape, dtype, offset, foreign[1] if foreign else row_bytes,
        None if meta is None or meta["order"] is None else read_order(path, shape[0], meta),
        bool(meta and meta["finite"]), summed,
        WrittenExtents(table_file(path), shape[0] * row_bytes) if writes and summed else None)
