"""What a pass computes of a matrix: sums over neighbours, as often as asked, and which of them are kept."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gnncy._threads import run_pieces
from gnncy.graph import Block, aggregate

_PIECE = 4096


@dataclass(frozen=True)
class Smoothing:
    """``steps`` times ``z = graph z``, or ``z = (1 - alpha) graph z + alpha x``, from ``z = x``.

    ``reduce`` and ``weighted`` are those of :func:`gnncy.graph.aggregate`. ``kept`` are the steps whose results are
    wanted, ascending; 0 is x itself. Every column by itself: columns may be done slab by slab, and rows window by
    window, with the same bits.
    """

    graph: Block
    steps: int = 1
    alpha: float | None = None
    kept: tuple[int, ...] = (1,)
    reduce: str = "sum"
    weighted: bool = True

    @property
    def rooms(self) -> int:
        """Arrays of the size of x that computing takes, x included."""
        return 1 if self.steps == 0 else 3 if self.alpha is not None and self.steps > 1 else 2

    def step(self, graph: Block, z: np.ndarray, out: np.ndarray, x: np.ndarray) -> np.ndarray:
        """One step of a graph or of some of its rows; ``x`` are these rows' own."""
        aggregate(graph, z, reduce=self.reduce, weighted=self.weighted, out=out)
        if self.alpha is not None:
            mix(out, x, self.alpha)
        return out

    def run(self, x: np.ndarray, take: Callable[[], np.ndarray],
            give: Callable[[np.ndarray], object]) -> Iterator[np.ndarray]:
        """The kept results, each when it is not needed here any more. Arrays come from ``take``, return by ``give``.

        ``x`` is taken over too.
        """
        z = x
        for step in range(1, self.steps + 1):
            out = self.step(self.graph, z, take(), x)
            if step - 1 in self.kept and (z is not x or self.alpha is None):
                yield z
            elif z is not x or self.alpha is None:
                give(z)
            z = out
        if z is not x and self.alpha is not None:
            give(x)
        yield z


def mix(z: np.ndarray, x: np.ndarray, alpha: float) -> None:
    """``z = (1 - alpha) z + alpha x``, in place."""
    keep, restart = z.dtype.type(1 - alpha), z.dtype.type(alpha)

    def piece(start: int, stop: int) -> None:
        z[start:stop] *= keep
        z[start:stop] += restart * x[start:stop]

    run_pieces(piece, len(z), _PIECE)
