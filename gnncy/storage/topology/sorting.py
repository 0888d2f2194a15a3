"""Sorting more keys than memory holds."""
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

Piece = tuple[np.ndarray, np.ndarray | None]  # keys, and a weight for each or None for all

_PIECE = 1 << 16  # keys read, or returned, at a time
_PARTS = 64  # parts that keys are spilled to at a time
KEY_BYTES, WEIGHED_BYTES = 8, 44  # of memory that a key takes while it is sorted: alone, or with its weight


def distinct(pieces: Iterable[Piece], total: int, low: int, high: int, room: int,
             folder: Path | None = None) -> Iterator[Piece]:
    """The distinct keys of ``pieces``, ascending, each with its largest weight, at most 65,536 at a time.

    Keys are int64 in ``low .. high-1``, at most ``total`` in number (with repetitions); all pieces come with weights
    (float32), or none. As many as ``room`` are sorted in memory; of more, each part of the range is spilled to files
    of its own in ``folder`` and sorted by itself. Pieces may be sorted in place.
    """
    if total <= room:
        yield from _sorted(pieces, total)
        return
    if high - low <= 1:
        found = [None if weights is None else weights.max() for keys, weights in pieces if keys.size]
        if found:
            largest = [weight for weight in found if weight is not None]
            yield np.array([low]), np.array([max(largest)]) if largest else None
        return
    assert folder is not None
    # A quarter more parts than an even spread needs; a part that is too full is spilled again.
    parts = min(_PARTS, total * 5 // (room * 4) + 1, high - low)
    step = -(-(high - low) // parts)
    paths = [folder / f"{low}-{step}-{part}" for part in range(parts)]
    counts = _spill(pieces, low + step * np.arange(1, parts), paths)
    for part, path in enumerate(paths):
        start = low + step * part
        yield from distinct(_read(path), counts[part], start, min(start + step, high), room, folder)
        path.unlink()
        _weights_of(path).unlink(missing_ok=True)


def _sorted(pieces: Iterable[Piece], total: int) -> Iterator[Piece]:
    keys, weights, filled = np.empty(total, np.int64), None, 0
    for some, own in pieces:
        keys[filled:filled + some.size] = some
        if own is not None:
            weights = np.empty(total, np.float32) if weights is None else weights
            weights[filled:filled + some.size] = own
        filled += some.size
    keys = keys[:filled]
    if weights is not None and filled:
        order = np.argsort(keys)
        keys, weights = keys[order], weights[order]
        del order
        first = np.ones(filled, bool)
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        start = np.flatnonzero(first)
        keys, weights = keys[start], np.maximum.reduceat(weights, start)
        for low in range(0, len(keys), _PIECE):
            yield keys[low:low + _PIECE], weights[low:low + _PIECE]
        return
    keys.sort()
    last = None
    for low in range(0, filled, _PIECE):
        piece = keys[low:low + _PIECE]
        new = np.ones(len(piece), bool)
        np.not_equal(piece[1:], piece[:-1], out=new[1:])
        new[0] = last is None or piece[0] != last
        last = piece[-1]
        yield piece[new], None


def _weights_of(path: Path) -> Path:
    return path.with_name(path.name + ".weights")


def _spill(pieces: Iterable[Piece], bounds: np.ndarray, paths: list[Path]) -> list[int]:
    counts = [0] * len(paths)
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb", buffering=0)) for path in paths]
        others: list = []
        for keys, weights in pieces:
            if weights is None:
                keys.sort()
            else:
                order = np.argsort(keys)
                keys, weights = keys[order], weights[order]
                others = others or [stack.enter_context(open(_weights_of(path), "wb", buffering=0)) for path in paths]
            stops = np.append(np.searchsorted(keys, bounds), keys.size)
            start = 0
            for part, stop in enumerate(stops.tolist()):
                keys[start:stop].tofile(files[part])
                if weights is not None:
                    weights[start:stop].tofile(others[part])
                counts[part] += stop - start
                start = stop
    return counts


def _read(path: Path) -> Iterator[Piece]:
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb", buffering=0))
        other = stack.enter_context(open(_weights_of(path), "rb", buffering=0)) if _weights_of(path).exists() else None
        while (keys := np.fromfile(file, np.int64, _PIECE)).size:
            yield keys, None if other is None else np.fromfile(other, np.float32, _PIECE)
