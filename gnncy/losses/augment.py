"""Random views of feature rows, from a key alone."""
import numpy as np

from gnncy._check import check_array, check_float, check_int
from gnncy._random import stream


def drop_blocks(x: np.ndarray, block: int, rate: float, key: int) -> np.ndarray:
    """Rows with whole blocks of columns zeroed, each with probability ``rate``; at least one block of a row stays.

    What stays is scaled by (blocks / blocks kept), so that a row's expectation is the row. With blocks that
    are different smoothings of the same features, two such views ask the encoder what the scales have in common.

    Parameters
    ----------
    x : array, shape (b, k * block), float32 or float64
    block : int
        Columns of a block.
    rate : float
        Probability in 0..1 (below 1) that a block is dropped.
    key : int
        The draw; the same key gives the same view.

    Returns
    -------
    array, shape (b, k * block)
        A new one, of the type of ``x``.

    Raises
    ------
    ValueError
        If the columns of ``x`` are not a multiple of ``block``, or ``rate`` is not in 0..1.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.losses import drop_blocks
    >>> x = np.ones((2, 4), np.float32)
    >>> drop_blocks(x, 2, 0.0, key=1)
    array([[1., 1., 1., 1.],
           [1., 1., 1., 1.]], dtype=float32)
    """
    x = check_array(x, "x", finite=False)
    check_int(block, "block", 1)
    check_float(rate, "rate", 0.0, 1.0)
    rows, width = x.shape
    if width % block:
        raise ValueError(f"x must have a multiple of block={block} columns, got {width}")
    count = width // block
    generator = stream(key, "blocks")
    keep = generator.random((rows, count), dtype=np.float32) >= rate
    rescued = generator.integers(0, count, rows)
    empty = np.flatnonzero(~keep.any(axis=1))
    keep[empty, rescued[empty]] = True
    scale = (keep * (count / keep.sum(axis=1, keepdims=True))).astype(x.dtype)
    return (x.reshape(rows, count, block) * scale[:, :, None]).reshape(rows, width)
