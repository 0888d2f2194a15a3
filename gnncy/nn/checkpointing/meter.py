"""Exact counting of the bytes that the tape holds."""
import time
import weakref

import numpy as np

from gnncy.nn.tensor import Watcher, watching


def owner(array: np.ndarray) -> np.ndarray:
    """The array whose memory ``array`` is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class ActivationMeter(Watcher):
    """Bytes of the arrays that operations made, each counted once, from when it was made until it is freed.

    These are results and what operations save for their backward pass. Leaves (parameters, features) and arrays given
    as options are not counted, nor gradients, nor what an operation needs only while it runs.

    Parameters
    ----------
    timeline : bool
        Whether to note every change.

    Attributes
    ----------
    current, peak : int
        Bytes now, and the most there were.
    timeline : list of (float, int)
        With ``timeline=True`` the clock (``time.perf_counter``) and ``current`` after every change.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> from gnncy.nn.checkpointing import ActivationMeter
    >>> x = nn.Tensor(np.zeros((100, 4), np.float32), requires_grad=True)
    >>> with ActivationMeter() as meter:
    ...     y = nn.relu(x * 2.0)
    >>> meter.current, meter.peak
    (1600, 3200)
    """

    def __init__(self, *, timeline: bool = False):
        self.current = self.peak = 0
        self.timeline: list[tuple[float, int]] = []
        self._notes = timeline
        self._known: dict[int, weakref.ref] = {}

    def __enter__(self) -> "ActivationMeter":
        self._block = watching(self)
        self._block.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._block.__exit__(*error)

    def reset_peak(self) -> None:
        """Start a new measurement of ``peak`` at what is held now."""
        self.peak = self.current

    def after(self, node, inputs, out):
        if out is not None:
            for x in inputs:
                if x.is_leaf:
                    self._see(x.data, counted=False)
            for value in node.options.values():
                self._see(value, counted=False)
            self._see(out.data)
        saved = node.saved
        for value in getattr(saved, "packed", saved):
            self._see(value)

    def _see(self, array, counted: bool = True) -> None:
        if not isinstance(array, np.ndarray):
            return
        array = owner(array)
        key = id(array)
        if key in self._known:
            return
        nbytes = array.nbytes if counted else 0

        def freed(_, key=key, nbytes=nbytes):
            del self._known[key]
            self._change(-nbytes)

        self._known[key] = weakref.ref(array, freed)
        self._change(nbytes)

    def _change(self, nbytes: int) -> None:
        self.current += nbytes
        self.peak = max(self.peak, self.current)
        if self._notes and nbytes:
            self.timeline.append((time.perf_counter(), self.current))
