"""The reference layout: a header of 24 bytes, then one row to a block of whole pages.

Bytes 0-7 hold the width of a row, 8-15 the number of rows, 16-23 the bytes of a block, all unsigned and
little-endian; row i, float32, begins at byte 24 + i * block.
"""
import os
from pathlib import Path

import numpy as np

from gnncy.errors import StorageError
from gnncy.storage._blocks import PAGE

HEADER = 24
_LARGEST_PAGE = 65536  # of any machine that may have made the file


def read_reference(file, path: Path) -> tuple[tuple[int, int], int] | None:
    """Shape and bytes from row to row of an open file in the reference layout; None if it is in another."""
    file.seek(0)
    head = file.read(HEADER)
    if len(head) < HEADER:
        return None
    dim, n, block = (int(word) for word in np.frombuffer(head, "<u8"))  # Python's own integers: they do not overflow
    if not dim or not n or block % PAGE or not 4 * dim <= block < 4 * dim + _LARGEST_PAGE:
        return None
    size, need = os.fstat(file.fileno()).st_size, HEADER + n * block
    if size != need:
        raise StorageError(f"{path}: its header is that of the reference layout with {n} rows of {dim} values in "
                           f"blocks of {block} bytes, which make {need} bytes, but it has {size}: it is truncated or "
                           f"damaged; restore it from a copy or create it again")
    return (n, dim), block
