"""Dense products whose bits do not depend on the number of threads."""
import numpy as np

from gnncy._threads import run_pieces

_PIECE = 256


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
