"""Where activations wait: memory, and a private file of which nothing is left over."""
import os
import tempfile
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import numpy as np

from gnncy._check import check_float
from gnncy._memory import aligned_empty, format_bytes, parse_bytes
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.nn.checkpointing.meter import owner
from gnncy.nn.tensor import Watcher, watching
from gnncy.storage.plans import DiskModel

_PIECE = 1 << 24  # bytes of one system call


class SpillFile:
    """Arrays in a file without a name: the system frees it with the process, however that ends.

    Parameters
    ----------
    folder : path, optional
        The system's folder for temporary files by default. It should be on a disk: a folder in memory saves nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.nn.checkpointing import SpillFile
    >>> with SpillFile() as file:
    ...     place = file.write(np.arange(3.0))
    ...     file.read(place), file.nbytes
    (array([0., 1., 2.]), 24)
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self._folder = tempfile.gettempdir() if folder is None else folder
        try:
            self._file = tempfile.TemporaryFile(prefix="gnncy-", dir=os.fspath(self._folder))
        except OSError as error:
            raise StorageError(error.errno, f"no temporary file for activations can be made in {self._folder}: "
                                            f"{error.strerror}") from error
        self._free: list[tuple[int, int]] = []  # (start, stop), ascending, never touching
        self._end = 0
        self._lock = threading.Lock()
        self.nbytes = 0
        self.written = 0

    def __enter__(self) -> "SpillFile":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def close(self) -> None:
        """Give the file back to the system."""
        self._file.close()

    def write(self, array: np.ndarray) -> tuple:
        """Write an array; returns its place, to be given to :meth:`read` and :meth:`free`.

        Raises
        ------
        StorageError
            If the disk is full or fails; what was there before is still there.
        """
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        flat = np.ascontiguousarray(array.T if order == "F" else array).reshape(-1)
        start = self._take(flat.nbytes)
        data = flat.view(np.uint8).data
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._file.fileno(), data[done:done + _PIECE], start + done)
        except OSError as error:
            self._give(start, flat.nbytes)
            raise StorageError(error.errno, f"activations could not be written to {self._folder}: {error.strerror}; "
                                            "free some of the disk, or name another folder") from error
        self.written += flat.nbytes
        return start, array.shape, flat.dtype, order

    def read(self, place: tuple) -> np.ndarray:
        """The array at a place, as it was written."""
        start, shape, dtype, order = place
        out = aligned_empty(shape[::-1] if order == "F" else shape, dtype)
        data = out.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(data):
            got = os.preadv(self._file.fileno(), [data[done:done + _PIECE]], start + done)
            if got == 0:
                raise StorageError(f"the file of activations in {self._folder} ends at {start + done} bytes, before "
                                   f"what was written to it: was it truncated?")
            done += got
        return out.T if order == "F" else out

    def free(self, place: tuple) -> None:
        """Let the space of an array be used again; the file shrinks when its end is free."""
        self._give(place[0], _nbytes(place))

    def _take(self, nbytes: int) -> int:
        with self._lock:
            self.nbytes += nbytes
            for i, (start, stop) in enumerate(self._free):
                if stop - start >= nbytes:
                    self._free[i:i + 1] = [(start + nbytes, stop)] if stop - start > nbytes else []
                    return start
            start, self._end = self._end, self._end + nbytes
            return start

    def _give(self, start: int, nbytes: int) -> None:
        with self._lock:
            self.nbytes -= nbytes
            merged: list[tuple[int, int]] = []
            for piece in sorted([*self._free, (start, start + nbytes)]):
                if merged and merged[-1][1] == piece[0]:
                    merged[-1] = merged[-1][0], piece[1]
                else:
                    merged.append(piece)
            if merged and merged[-1][1] == self._end:
                self._end = merged.pop()[0]
                if not self._file.closed:
                    self._file.truncate(self._end)
            self._free = merged


def _nbytes(place) -> int:
    _, shape, dtype, _ = place
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


class _OnDisk:
    """One array in the file, read once for all operations that saved it."""

    def __init__(self, file: SpillFile, array: np.ndarray):
        self.file, self.place, self.users = file, file.write(array), 0
        self.array: np.ndarray | None = None

    def take(self) -> np.ndarray:
        array = self.file.read(self.place) if self.array is None else self.array
        self.users -= 1
        self.array = array if self.users else None
        return array

    def __del__(self):
        self.file.free(self.place)


class _Spilling(Watcher):
    def __init__(self):
        self.nodes: list = []
        self.outside: set[int] = set()

    def after(self, node, inputs, out):
        if out is None or not out.requires_grad:
            return
        # Weights, features and index arrays are held by others: writing them would save nothing.
        held = [x.data for x in inputs if x.is_leaf] + [x for x in node.options.values() if isinstance(x, np.ndarray)]
        self.outside.update(id(owner(x)) for x in held)
        self.nodes.append(node)

    def write(self, file: SpillFile) -> None:
        known: dict[tuple, _OnDisk] = {}

        def pack(value):
            if not (isinstance(value, np.ndarray) and value.nbytes and id(owner(value)) not in self.outside
                    and (value.flags.c_contiguous or value.flags.f_contiguous)):
                return value
            key = value.__array_interface__["data"][0], value.shape, value.strides, value.dtype.str
            if key not in known:
                known[key] = _OnDisk(file, value)
            known[key].users += 1
            return known[key]

        for node in self.nodes:
            packed = tuple(map(pack, node.saved))
            if any(isinstance(x, _OnDisk) for x in packed):
                node.saved = _Unpack(packed)


class _Unpack:
    def __init__(self, packed):
        self.packed = packed

    def __call__(self) -> tuple:
        return tuple(x.take() if isinstance(x, _OnDisk) else x for x in self.packed)


@contextmanager
def spilling(file: SpillFile) -> Iterator[None]:
    """Move to ``file`` what the operations inside the block save, once the block has ended."""
    watcher = _Spilling()
    with watching(watcher):
        yield
    watcher.write(file)


class ActivationStore:
    """Arrays under keys, within a number of bytes of memory; on disk where that is cheaper than recomputing.

    Parameters
    ----------
    memory_budget : int or str, optional
        Bytes of memory; unbounded by default.
    disk : DiskModel, optional
        Constants of the disk, from ``gnncy.storage.plans``. Without it nothing is written.
    folder : path, optional
        Where the private file lies; the system's folder for temporary files by default.

    Notes
    -----
    Arrays are copied in, once, and handed out read-only without a copy. A key that is stored again replaces what it
    held. All methods may be called from several threads.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.nn.checkpointing import ActivationStore
    >>> store = ActivationStore("1MB")
    >>> store.store("h1", np.ones(1000, np.float32))
    True
    >>> store.memory_usage
    4000
    >>> float(store.retrieve("h1").sum())
    1000.0
    """

    def __init__(self, memory_budget: int | str | None = None, *, disk: DiskModel | None = None,
                 folder: str | os.PathLike | None = None):
        self.memory_budget = None if memory_budget is None else parse_bytes(memory_budget, "memory_budget")
        self.disk, self._folder = disk, folder
        self._arrays: dict[Hashable, np.ndarray] = {}
        self._places: dict[Hashable, tuple] = {}
        self._file: SpillFile | None = None
        self._usage = 0
        self._lock = threading.RLock()

    def __enter__(self) -> "ActivationStore":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays or key in self._places

    def __len__(self) -> int:
        return len(self._arrays) + len(self._places)

    @property
    def memory_usage(self) -> int:
        """Bytes in memory."""
        return self._usage

    @property
    def disk_usage(self) -> int:
        """Bytes on disk."""
        return 0 if self._file is None else self._file.nbytes

    def spills(self, nbytes: int, seconds: float) -> bool:
        """Whether writing and reading ``nbytes`` is cheaper than ``seconds`` of recomputing."""
        return self.disk is not None and \
            self.disk.write_seconds(1, nbytes) + self.disk.read_seconds(1, nbytes) < seconds

    def store(self, key: Hashable, array, seconds: float = float("inf")) -> bool:
        """Keep a copy of an array: in memory if it fits, else on disk if that is cheaper than recomputing.

        Parameters
        ----------
        key : hashable
        array : array_like
        seconds : float
            What recomputing it takes.

        Returns
        -------
        bool
            False if it was not kept: it does not fit, and recomputing is cheaper than the disk.

        Raises
        ------
        MemoryLimitError
            If it does not fit, cannot be recomputed (``seconds`` is infinite) and there is no disk.
        """
        array = np.asarray(array)
        if seconds != float("inf"):
            check_float(seconds, "seconds", 0)
        with self._lock:
            self.remove(key)
            if self.memory_budget is None or self._usage + array.nbytes <= self.memory_budget:
                copy = np.array(array, order="K")
                copy.flags.writeable = False
                self._arrays[key] = copy
                self._usage += copy.nbytes
                return True
            if self.spills(array.nbytes, seconds):
                self._write(key, array)
                return True
            if seconds == float("inf"):
                raise MemoryLimitError(f"memory_budget {format_bytes(self.memory_budget)} holds "
                                       f"{format_bytes(self._usage)} and has no room for {array.nbytes} bytes more; at "
                                       f"least {self._usage + array.nbytes} bytes are needed, or a disk (disk=)")
            return False

    def spill(self, key: Hashable) -> None:
        """Move an array from memory to disk."""
        with self._lock:
            self._write(key, self._arrays[key])
            self._usage -= self._arrays.pop(key).nbytes

    def _write(self, key, array) -> None:
        if self._file is None:
            self._file = SpillFile(self._folder)
        self._places[key] = self._file.write(array)

    def retrieve(self, key: Hashable) -> np.ndarray:
        """The array, read-only; from disk it is read again each time and not kept in memory.

        Raises
        ------
        KeyError
            If there is none.
        """
        with self._lock:
            if key in self._arrays:
                return self._arrays[key]
            if key not in self._places:
                raise KeyError(key)
            assert self._file is not None
            array = self._file.read(self._places[key])
        array.flags.writeable = False
        return array

    def remove(self, key: Hashable) -> bool:
        """Forget an array; False if there was none."""
        with self._lock:
            if key in self._arrays:
                self._usage -= self._arrays.pop(key).nbytes
                return True
            if key in self._places:
                assert self._file is not None
                self._file.free(self._places.pop(key))
                return True
            return False

    def clear(self) -> None:
        """Forget everything, and give the file back."""
        with self._lock:
            self._arrays.clear()
            self._places.clear()
            self._usage = 0
            if self._file is not None:
                self._file.close()
                self._file = None

    def close(self) -> None:
        """The same as :meth:`clear`."""
        self.clear()


