"""What operations share: kernels run over fixed pieces, and gradients summed over broadcast axes."""
import numpy as np

from gnncy._threads import run_pieces
from gnncy.nn.tensor import Tensor

PIECE = 1 << 16  # elements that one thread takes at a time; a multiple of 4, see the dropout kernel
ROWS = 1024


def unbroadcast(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum a gradient over the axes along which ``shape`` was broadcast."""
    if grad.shape == shape:
        return grad
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] != 1)
    return grad.sum(axis=stretched, keepdims=True) if stretched else grad


def run_elementwise(kernel, inputs, *scalars) -> np.ndarray:
    """Run a flat kernel over fixed pieces of arrays of one shape and dtype."""
    flat = [np.ascontiguousarray(x).reshape(-1) for x in inputs]
    out = np.empty(inputs[0].shape, inputs[0].dtype)
    flat_out = out.reshape(-1)

    def piece(start, stop):
        kernel(*(x[start:stop] for x in flat), *scalars, flat_out[start:stop])

    run_pieces(piece, flat_out.size, PIECE)
    return out


def run_rowwise(kernel, *arrays) -> None:
    """Run a row kernel over fixed pieces of rows."""
    run_pieces(lambda start, stop: kernel(*(x[start:stop] for x in arrays)), len(arrays[0]), ROWS)


def as_matrix(x: np.ndarray) -> np.ndarray:
    """All axes but the last made one."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def column_sums(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Sum of the rows of ``x``, or of ``x * y``: fixed pieces of rows, then the pieces in float64."""
    parts = np.empty((-(-len(x) // ROWS), x.shape[1]), x.dtype)

    def piece(start, stop):
        part = x[start:stop] if y is None else x[start:stop] * y[start:stop]
        np.sum(part, axis=0, out=parts[start // ROWS])

    run_pieces(piece, len(x), ROWS)
    return parts.sum(axis=0, dtype=np.float64).astype(x.dtype)


def add_row(row: np.ndarray, out: np.ndarray) -> None:
    """Add one row to every row."""
    def piece(start, stop):
        out[start:stop] += row

    run_pieces(piece, len(out), ROWS)


def add_product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Add ``a @ b``, never held as a whole."""
    def piece(start, stop):
        out[start:stop] += a[start:stop] @ b

    run_pieces(piece, len(out), ROWS // 4)


def shape_of(x) -> tuple[int, ...]:
    return x.shape if isinstance(x, Tensor) else np.shape(x)
