"""Features on disk in one byte a value, with a scale for each row."""
import os
from pathlib import Path

import numpy as np

from gnncy._kernels import narrow
from gnncy._threads import run_pieces
from gnncy.errors import StorageError
from gnncy.storage._blocks import read_npy_header
from gnncy.storage._sidecar import check_rows, sidecar_file, writing
from gnncy.storage.features import FeatureStorage

_SCALE = 4  # bytes of a row before its values
_ROWS = 1024


class QuantizedFeatureStorage(FeatureStorage):
    r"""Rows of features in int8, read as float32: a quarter of the bytes, and an error of half a step of 1/127.

    A row x is kept as a float32 scale and integers,

    .. math:: s = \max_j |x_j| / 127 \qquad q_j = \mathrm{round}(x_j / s) \qquad x_j \approx s\, q_j

    with ties to even, so that :math:`|x_j - s q_j| \le s / 2`, which is 0.4 % of the row's largest value; a row of
    zeros stays one. Rows lie in a standard ``.npy`` file of int8, of shape (n, 4 + d): the bytes of the little-endian
    scale, then the values, so that one read brings both. All else is as in :class:`FeatureStorage`: the files beside
    it, the order of rows, checksums, writing in place; a ``dtype=`` has no effect. Arithmetic on rows that were read is
    float32.

    Parameters
    ----------
    path, mode, io_threads, direct, disk
        As of :class:`FeatureStorage`.

    Raises
    ------
    StorageError
        If the file is not one that this class wrote, or damaged, or locked by another writer.

    See Also
    --------
    FeatureStorage : with ``dtype="float16"``, half of the bytes of float32 and an error of 0.05 % of each value.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import QuantizedFeatureStorage
    >>> x = np.array([[1, -0.3, 0.25], [0, 0, 0], [127, 64, -3]], np.float32)
    >>> with QuantizedFeatureStorage.from_array(x, "small.npy") as store:
    ...     store.read_batch([2, 0]).round(3)
    array([[127.   ,  64.   ,  -3.   ],
           [  1.   ,  -0.299,   0.252]], dtype=float32)
    >>> np.load("small.npy").shape
    (3, 7)
    """

    _EXTRA = _SCALE

    def _check_form(self, file_dtype: np.dtype, shape) -> None:
        if file_dtype != np.int8 or len(shape) != 2 or shape[1] <= _SCALE or not sidecar_file(self.path).exists():
            raise StorageError(f"{self.path}: not a file of quantised rows ({file_dtype}, shape {shape}); make one "
                               f"with QuantizedFeatureStorage.convert(path, new_path), or open it with FeatureStorage")

    @classmethod
    def _given(cls, path) -> FeatureStorage:
        return cls(path) if is_quantized(path) else FeatureStorage(path)

    @classmethod
    def _new_file(cls, path, shape: tuple[int, int], dtype, order, overwrite: bool):
        return writing(path, (shape[0], shape[1] + _SCALE), np.int8, order, overwrite, encode=cls._encode)

    @staticmethod
    def _encode(rows, columns: int, dtype: np.dtype, name: str) -> np.ndarray:
        """Rows as they are in the file, of float rows that are finite."""
        x = check_rows(rows, columns - _SCALE, np.dtype(np.float32), name)
        out = np.empty((len(x), columns), np.uint8)
        run_pieces(lambda start, stop: narrow.quantise(x, start, stop, out), len(x), _ROWS)
        return out.view(np.int8)

    def _decode(self, stored: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        narrow.dequantise(stored.view(np.uint8), places, out)


def is_quantized(path: str | os.PathLike) -> bool:
    """Whether a file holds rows of int8."""
    with open(path, "rb") as file:
        return file.read(6) == b"\x93NUMPY" and read_npy_header(file, Path(path))[1] == np.int8
