"""Sorting more keys than memory holds."""
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

_PIECE = 1 << 16  # keys read, or returned, at a time
_PARTS = 64  # spill files open at a time


def distinct(chunks: Iterable[np.ndarray], total: int, low: int, high: int, buffer: np.ndarray,
             folder: Path | None = None) -> Iterator[np.ndarray]:
    """The distinct keys of ``chunks``, ascending, in arrays of at most 65,536.

    Keys are int64 in ``low .. high-1``, at most ``total`` in number (with repetitions). As many as the int64
    ``buffer`` holds are sorted in it; of more, each part of the range is spilled to a file of its own in ``folder``
    and sorted by itself. Chunks may be sorted in place.
    """
    if high - low <= 1:
        if any([chunk.size > 0 for chunk in chunks]):
            yield np.array([low])
        return
    if total <= buffer.size:
        filled = 0
        for chunk in chunks:
            buffer[filled:filled + chunk.size] = chunk
            filled += chunk.size
        keys = buffer[:filled]
        keys.sort()
        last = low - 1
        for start in range(0, filled, _PIECE):
            piece = keys[start:start + _PIECE]
            yield piece[np.diff(piece, prepend=last) != 0]
            last = piece[-1]
        return
    assert folder is not None
    # A quarter more parts than an even spread needs; a part that is too full is spilled again.
    parts = min(_PARTS, total * 5 // (buffer.size * 4) + 1, high - low)
    step = -(-(high - low) // parts)
    paths = [folder / f"{low}-{step}-{part}" for part in range(parts)]
    counts = _spill(chunks, low + step * np.arange(1, parts), paths)
    for part, path in enumerate(paths):
        start = low + step * part
        yield from distinct(_read(path), counts[part], start, min(start + step, high), buffer, folder)
        path.unlink()


def _spill(chunks, bounds, paths) -> list[int]:
    counts = [0] * len(paths)
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb", buffering=0)) for path in paths]
        for chunk in chunks:
            chunk.sort()
            for part, keys in enumerate(np.split(chunk, np.searchsorted(chunk, bounds))):
                keys.tofile(files[part])
                counts[part] += keys.size
    return counts


def _read(path: Path) -> Iterator[np.ndarray]:
    with open(path, "rb", buffering=0) as file:
        while (keys := np.fromfile(file, np.int64, _PIECE)).size:
            yield keys
