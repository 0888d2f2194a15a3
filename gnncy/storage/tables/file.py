"""The file of a table: blocks of records, moved by whole pages, and the journal of what they held before."""
import errno
import os
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np

from gnncy._kernels.storage import blockio
from gnncy.storage._blocks import MAX_RUN, PAGE, BlockFile, direct_empty, io_error, open_direct, together, write_all

IN_FLIGHT = 12  # blocks that are moved at the same time
_IMAGES = 8  # blocks that the journal copies at a time
_ENTRY = struct.Struct("<8sQQIQ")
_MAGIC = b"GNNCYJNL"


class TableFile(BlockFile):
    """A file whose data, from byte 4096 on, are blocks of whole pages; they are read and written by their numbers."""

    def __init__(self, path, flags: int, block_bytes: int, **options):
        self._direct_fd = -1
        super().__init__(path, flags, **options)
        self.block_bytes = block_bytes
        if self.direct and flags & os.O_RDWR:
            fd = open_direct(path, os.O_RDWR)
            if fd is None:
                self.direct = False
            else:
                self._direct_fd = fd

    def get(self, blocks: np.ndarray, place: np.ndarray, out: np.ndarray) -> None:
        """Read blocks (ascending) into the bytes of ``out`` at ``place``."""
        self._move(blocks, place, out, "reading")

    def put(self, blocks: np.ndarray, place: np.ndarray, data: np.ndarray) -> None:
        """Write the bytes of ``data`` at ``place`` to blocks (ascending)."""
        self._move(blocks, place, data, "writing")

    def _move(self, blocks, place, memory, doing: str) -> None:
        if len(blocks) == 0:
            return
        begun = time.perf_counter()
        start, length = PAGE + blocks * self.block_bytes, np.full(len(blocks), self.block_bytes)
        # Joined where they are neighbours in the file and in memory, so that all go straight there.
        breaks = (np.diff(blocks) != 1) | (np.diff(place) != self.block_bytes)
        first = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(blocks)]])
        memory = memory.reshape(-1).view(np.uint8)
        direct = self.direct
        status, offset = self._runs(direct, start, length, place, first, memory, doing)
        if status == errno.EINVAL and direct:  # some file systems take the flag and refuse the calls
            self.direct = direct = False
            status, offset = self._runs(direct, start, length, place, first, memory, doing)
        if self._passing and not direct:
            self.drop(int(start[0]), int(start[-1] + length[-1] - start[0]))
        self.stats.add(seconds=time.perf_counter() - begun)
        if status:
            raise io_error(self.path, status, offset, doing)

    def _runs(self, direct, start, length, place, first, memory, doing) -> tuple[int, int]:
        """Status and, of a failure, the byte."""
        runs, most = len(first) - 1, MAX_RUN
        fd = self.fd if not direct else self._aligned_fd if doing == "reading" else self._direct_fd
        none = np.empty(0, np.uint8)  # no run needs a buffer between
        ticket = np.zeros(1, np.int64)
        todo, lock = iter(range(runs)), threading.Lock()
        failures: list[tuple[int, int]] = []

        def read() -> None:
            report = np.zeros(3, np.int64)
            status = blockio.read_runs(fd, direct, start, length, place, first, runs, ticket, 1, most, none, memory,
                                       report)
            self.stats.add(bytes_read=int(report[0]), operations=int(report[1]))
            if status:
                failures.append((int(report[2]), status))

        def write() -> None:
            report, status = np.zeros(3, np.int64), 0
            while not failures and not status:
                with lock:
                    run = next(todo, None)
                if run is None:
                    break
                status = blockio.write_runs(fd, start, length, place, first, run, run + 1, most, none, memory, report)
            self.stats.add(bytes_written=int(report[0]), operations=int(report[1]))
            if status:
                failures.append((int(report[2]), status))

        def cancel() -> None:
            ticket[0] = runs
            failures.append((0, errno.ECANCELED))

        together(read if doing == "reading" else write, min(IN_FLIGHT, runs), cancel)
        offset, status = min(failures, default=(0, 0))
        return status, offset

    def close(self) -> None:
        """Let go of the file. Closing twice does nothing."""
        fd, self._direct_fd = self._direct_fd, -1
        if fd >= 0:
            os.close(fd)
        super().close()


class Journal:
    """Blocks of a table as they were at the last checkpoint, copied before they are written over.

    An entry is a page (magic, generation, block, checksum of the block, checksum of these) and the block. Entries of
    another generation than the table's are of no meaning any more.
    """

    def __init__(self, path: Path, file: TableFile, n_blocks: int):
        self.path = path
        self._file = file
        self._saved = np.zeros(n_blocks, bool)
        self._end = 0
        self._fd = -1
        self._buffer: np.ndarray | None = None

    @property
    def _entry_bytes(self) -> int:
        return PAGE + self._file.block_bytes

    def save(self, blocks: np.ndarray, generation: int) -> None:
        """Keep what these blocks hold on disk, unless that was done; durable on return."""
        blocks = blocks[~self._saved[blocks]]
        if len(blocks) == 0:
            return
        size = self._entry_bytes
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CREAT
            fd = open_direct(self.path, flags) if self._file.direct else None
            self._fd = os.open(self.path, flags | os.O_CLOEXEC, 0o666) if fd is None else fd
            self._buffer = direct_empty((_IMAGES, size))
        assert self._buffer is not None
        for first in range(0, len(blocks), _IMAGES):
            some = blocks[first:first + _IMAGES]
            self._file.get(some, np.arange(len(some), dtype=np.int64) * size + PAGE, self._buffer)
            for entry, block in zip(self._buffer, some.tolist(), strict=False):
                head = (_MAGIC, generation, block, zlib.crc32(entry[PAGE:].data))
                entry[:PAGE] = 0
                entry[:_ENTRY.size] = np.frombuffer(_ENTRY.pack(*head, zlib.crc32(repr(head).encode())), np.uint8)
            data = self._buffer[:len(some)].reshape(-1).data
            write_all(self._fd, self.path, data, self._end)
            self._file.stats.add(bytes_written=data.nbytes, operations=1)
            self._end += data.nbytes
        os.fsync(self._fd)
        self._saved[blocks] = True

    def clear(self) -> None:
        """Forget all entries, after a checkpoint."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
        self._saved[:] = False
        self._end = 0

    def close(self) -> None:
        """Let go of the file."""
        fd, self._fd, self._buffer = self._fd, -1, None
        if fd >= 0:
            os.close(fd)

    def pending(self, generation: int) -> bool:
        """Whether there is something to roll back."""
        return next(self._entries(generation), None) is not None

    def roll_back(self, generation: int) -> int:
        """Write every kept block back; returns how many."""
        count = 0
        for block, image in self._entries(generation):
            self._file.put(np.array([block]), np.zeros(1, np.int64), image)
            count += 1
        if count:
            self._file.sync()
        return count

    def _entries(self, generation: int):
        if not self.path.exists():
            return
        size = self._entry_bytes
        entry = direct_empty(size)
        with open(self.path, "rb", buffering=0) as file:
            while file.readinto(entry.data) == size:
                magic, of, block, crc, check = _ENTRY.unpack(entry[:_ENTRY.size].tobytes())
                if (magic, of) != (_MAGIC, generation) or check != zlib.crc32(repr((magic, of, block, crc)).encode()) \
                        or crc != zlib.crc32(entry[PAGE:].data) or block >= len(self._saved):
                    return  # it was being written when the process ended, so its block was not written over yet
                yield block, entry[PAGE:]
