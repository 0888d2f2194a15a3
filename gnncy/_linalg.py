"""Dense products whose bits do not depend on the number of threads."""
import numpy as np

from gnncy._threads import run_pieces

_PIECE = 256
_TALL = 2048
_PARTS = 8


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """``a @ b`` for two matrices, each fixed piece of rows of the result computed by one thread.

    Either operand may be a transposed view. Bits are the same for any thread count inside
    :func:`gnncy._threads.working_threads`.
    """
    if out is None:
        out = np.empty((a.shape[0], b.shape[1]), np.result_type(a, b))

    def piece(start, stop):
        np.matmul(a[start:stop], b, out=out[start:stop])

    run_pieces(piece, a.shape[0], _PIECE)
    return out


def matmul_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a.T @ b`` for two tall matrices: fixed pieces of rows, their products added in ascending order."""
    n = a.shape[0]
    if n <= _TALL:
        return matmul(a.T, b)
    out = np.zeros((a.shape[1], b.shape[1]), np.result_type(a, b))
    parts = np.empty((_PARTS, *out.shape), out.dtype)  # bounds the memory, not the threads' freedom
    for first in range(0, n, _PARTS * _TALL):
        last = min(first + _PARTS * _TALL, n)

        def piece(start, stop, first=first):
            np.matmul(a[first + start:first + stop].T, b[first + start:first + stop], out=parts[start // _TALL])

        run_pieces(piece, last - first, _TALL)
        for part in parts[:-(-(last - first) // _TALL)]:
            out += part
    return out
