"""A matrix on disk by column tiles: the form that lets a graph pass work on a few columns of all nodes."""
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gnncy._files import new_temporary
from gnncy.errors import StorageError

TILE = 16  # columns: one 64-byte line of float32, so a neighbour's entry costs one line


class ColumnTiles:
    """An ``n x d`` scratch matrix in one file, tile after tile of 16 columns of all rows.

    Rows go in and come out by ranges, tiles by number; both are a few large contiguous transfers.
    The last tile is padded with zeros. The file is private, preallocated (a full disk is an error at once)
    and unlinked as soon as it is open, so that it disappears with the process however that ends.

    Parameters
    ----------
    folder : path-like
        Where the file lies.
    n, d : int
        Rows and columns.
    dtype : float32 or float64, default float32

    Raises
    ------
    StorageError
        If the disk is full.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage.passes import ColumnTiles
    >>> with ColumnTiles(".", n=3, d=20) as tiles:
    ...     tiles.write_rows(0, np.ones((3, 20), np.float32))
    ...     tiles.read_tile(1, np.empty((3, 16), np.float32))[:, :6]
    array([[1., 1., 1., 1., 0., 0.],
           [1., 1., 1., 1., 0., 0.],
           [1., 1., 1., 1., 0., 0.]], dtype=float32)
    """

    def __init__(self, folder: str | os.PathLike, n: int, d: int, dtype=np.float32) -> None:
        self.shape = (n, d)
        self.dtype = np.dtype(dtype)
        self.n_tiles = -(-d // TILE)
        self._tile_bytes = n * TILE * self.dtype.itemsize
        self._path, self._fd = new_temporary(Path(folder) / "tiles", mode=0o600)
        try:
            os.unlink(self._path)
            size = self.n_tiles * self._tile_bytes
            if size:
                os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            os.close(self._fd)
            self._fd = -1
            raise StorageError(error.errno, f"cannot reserve {self.n_tiles * self._tile_bytes} bytes of scratch space "
                               f"({os.strerror(error.errno or 0)}); free some or choose another folder",
                               str(folder)) from error

    def write_rows(self, start: int, rows: np.ndarray) -> None:
        """Store ``rows`` (k x d) as rows ``start .. start + k``."""
        part = np.zeros((len(rows), TILE), self.dtype)
        for tile in range(self.n_tiles):
            columns = rows[:, tile * TILE:(tile + 1) * TILE]
            part[:, :columns.shape[1]] = columns
            part[:, columns.shape[1]:] = 0
            self._write(part, tile, start)

    def read_rows(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rows ``start .. stop`` as a ``(stop - start) x d`` array."""
        if out is None:
            out = np.empty((stop - start, self.shape[1]), self.dtype)
        part = np.empty((stop - start, TILE), self.dtype)
        for tile in range(self.n_tiles):
            self._read(part, tile, start)
            columns = out[:, tile * TILE:(tile + 1) * TILE]
            columns[...] = part[:, :columns.shape[1]]
        return out

    def write_tile(self, tile: int, values: np.ndarray) -> None:
        """Store one tile (n x 16, C-contiguous), or several from it on (k x n x 16)."""
        self._write(values, tile, 0)

    def read_tile(self, tile: int, out: np.ndarray) -> np.ndarray:
        """Read one tile into ``out`` (n x 16, C-contiguous), or several from it on (k x n x 16)."""
        self._read(out, tile, 0)
        return out

    def iter_rows(self, chunk: int) -> Iterator[tuple[int, np.ndarray]]:
        """``(start, rows)`` for consecutive ranges of ``chunk`` rows; the array is reused."""
        buffer = np.empty((min(chunk, self.shape[0]), self.shape[1]), self.dtype)
        for start in range(0, self.shape[0], chunk):
            stop = min(start + chunk, self.shape[0])
            yield start, self.read_rows(start, stop, buffer[:stop - start])

    def close(self) -> None:
        """Give the space back; safe to call again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "ColumnTiles":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _offset(self, tile: int, row: int) -> int:
        return tile * self._tile_bytes + row * TILE * self.dtype.itemsize

    def _write(self, values: np.ndarray, tile: int, row: int) -> None:
        view, offset = values.data.cast("B"), self._offset(tile, row)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view, offset = view[done:], offset + done

    def _read(self, values: np.ndarray, tile: int, row: int) -> None:
        view, offset = values.data.cast("B"), self._offset(tile, row)
        while view:
            done = os.preadv(self._fd, [view], offset)
            if done == 0:
                raise StorageError(f"scratch file {self._path} ended early at byte {offset}")
            view, offset = view[done:], offset + done
