"""What losses of two views share: checked arguments, columns about their mean."""
import numpy as np

from gnncy._check import check_array


def check_views(first, second) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape with at least two rows, the second in the type of the first."""
    first = check_array(first, "first")
    second = check_array(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"second must have the shape of first, {first.shape}, got {second.shape}")
    if len(first) < 2:
        raise ValueError("first must have at least 2 rows: the loss compares columns over a minibatch, got 1")
    return first, second.astype(first.dtype, copy=False)


def centred(x: np.ndarray) -> np.ndarray:
    """Columns minus their mean."""
    return x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)


def deviations(x: np.ndarray, freedom: int, eps: float = 0.0) -> np.ndarray:
    """Standard deviation of each centred column, its squares summed in float64 over ``n - freedom``."""
    squares = np.einsum("ij,ij->j", x, x, dtype=np.float64)
    return np.sqrt(squares / (len(x) - freedom) + eps).astype(x.dtype)
