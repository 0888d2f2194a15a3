"""Elastic weight consolidation of a table that is larger than memory: information and anchors lie on disk."""
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gnncy import _files
from gnncy._check import check_array, check_float, check_ids, check_int
from gnncy.errors import StorageError
from gnncy.nn import Tensor
from gnncy.storage import FeatureStorage
from gnncy.training.continual.ewc import Penalty, merged, pull, quadratic

FORMAT, VERSION = "gnncy-ewc", 1
_CHUNK_BYTES = 1 << 22  # of float64 rows that are worked on at a time


class ColdTierEWC:
    r"""Elastic weight consolidation of a table of parameters on disk, such as learnable embeddings.

    The same penalty as that of :class:`ElasticWeightConsolidation`, for a table of ``n_params`` rows of ``dim``
    numbers. Fisher information and anchors are two files of that shape in a folder, read and written in parts of a few
    MiB. After each task call :meth:`compute_fisher` with gradients of single samples, then :meth:`consolidate`.
    :meth:`create` makes one, :meth:`open` goes on with it.

    Parameters
    ----------
    folder : path-like
        What :meth:`create` made.

    Attributes
    ----------
    folder : pathlib.Path
    n_params, dim : int
    decay : float or None
        See :class:`ElasticWeightConsolidation`.
    n_tasks : int
    n_samples : int
        Of the Fisher information that waits for :meth:`consolidate`; 0 if there is none.

    Raises
    ------
    StorageError
        If the folder holds no such state, or a damaged one.

    Notes
    -----
    A file is written beside the one that it replaces, and one small file says which counts: after a crash at any point,
    :meth:`open` finds the state before or after the call. One at a time may write: a call that changes the state takes
    the folder's lock, and is refused where another holds it or has changed the state since it was opened.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training.continual import ColdTierEWC
    >>> table = np.zeros((4, 2), np.float32)
    >>> with ColdTierEWC.create("ewc", n_params=4, dim=2, strength=100.0) as ewc:
    ...     ewc.compute_fisher([([1, 3], np.ones((2, 2)))])  # one sample, which touched rows 1 and 3
    ...     ewc.consolidate(table)
    >>> with ColdTierEWC.open("ewc") as ewc:
    ...     table += 1
    ...     ewc.penalty(table), ewc.gradient(table[[1, 2]], [1, 2])
    (200.0, array([[100., 100.],
           [  0.,   0.]], dtype=float32))
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self._fisher: FeatureStorage | None = None
        self._anchor: FeatureStorage | None = None
        state = self._read_state()
        self.n_params, self.dim = state["n_params"], state["dim"]
        self._strength, self.decay = state["strength"], state["decay"]
        self.n_tasks, self.n_samples = state["n_tasks"], state["n_samples"]
        self._offset = float.fromhex(state["offset"])
        self._generation, self._fisher_generation = state["generation"], state["fisher_generation"]
        self._chunk = max(1, _CHUNK_BYTES // (8 * self.dim))
        with _locked(self.folder) as alone:
            if alone:
                self._remove_others()
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, folder, n_params: int, dim: int, strength: float = 1.0, *, decay: float | None = None,
               overwrite: bool = False) -> "ColdTierEWC":
        """A new state without a task.

        Parameters
        ----------
        folder : path-like
            Made if need be.
        n_params, dim : int
            Rows and columns of the table.
        strength : float
            :math:`\\lambda` of the penalty, at least 0.
        decay : float, optional
            See :class:`ElasticWeightConsolidation`.
        overwrite : bool
            Replace a state that is already there.

        Raises
        ------
        FileExistsError
            If the folder holds a state and ``overwrite`` is False.
        """
        state = {"n_params": check_int(n_params, "n_params", 1), "dim": check_int(dim, "dim", 1),
                 "strength": check_float(strength, "strength", 0),
                 "decay": None if decay is None else check_float(decay, "decay", 0, 1), "n_tasks": 0, "n_samples": 0,
                 "offset": 0.0.hex(), "generation": 0, "fisher_generation": 0}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "ewc.json").exists() and not overwrite:
            raise FileExistsError(f"{folder} holds a state already: ColdTierEWC.open(folder) goes on with it, "
                                  "overwrite=True replaces it")
        with _locked(folder) as alone:
            if not alone:
                raise _busy(folder)
            _write_state(folder, state)
        return cls(folder)

    @classmethod
    def open(cls, folder) -> "ColdTierEWC":
        """The state in ``folder``; the same as calling the class."""
        return cls(folder)

    @property
    def strength(self) -> float:
        """How much the penalty counts; a new one is kept in the folder."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        strength = check_float(value, "strength", 0)
        with self._changing():
            self._strength = strength
            self._save()

    @property
    def is_active(self) -> bool:
        """Whether a task was consolidated, so that there is a penalty."""
        return self.n_tasks > 0

    def compute_fisher(self, gradients: Iterable) -> None:
        """Find the Fisher information of the task that was just learned: the mean square of samples' gradients.

        Parameters
        ----------
        gradients : array of shape (samples, n_params, dim), or iterable
            Of the log-likelihood of one sample each, never of a minibatch: squares of means are too small by about the
            size of the batch. A sample is an array of shape (n_params, dim), or a pair of the distinct rows that it
            touches and their gradients, of shape (k, dim); one that touches none counts too.

        Raises
        ------
        ValueError
            If a shape is wrong, a number not finite, or there is no sample; what was there before stays.
        """
        if isinstance(gradients, np.ndarray) and gradients.shape[1:] != (self.n_params, self.dim):
            raise ValueError(f"gradients must have shape (samples, {self.n_params}, {self.dim}), got "
                             f"{gradients.shape}")
        with self._changing():
            self._compute_fisher(gradients)

    def _compute_fisher(self, gradients: Iterable) -> None:
        generation = self._generation + 1
        path = self._path("squares", generation)
        count = 0
        try:
            with FeatureStorage.create(path, self.n_params, self.dim, dtype=np.float64, overwrite=True) as squares:
                for count, parts in self._parts(gradients):  # noqa: B007
                    if parts:
                        _add_squares(squares, parts)
            if not count:
                raise ValueError("gradients hold no sample: the Fisher information is a mean over samples")
        except BaseException:
            _remove(path)
            raise
        self._change(generation, n_samples=count)

    def consolidate(self, weights) -> None:
        """Hold the table as it is now, beside what earlier tasks hold.

        Parameters
        ----------
        weights : array or storage, shape (n_params, dim)

        Raises
        ------
        RuntimeError
            If there is no Fisher information of this task.
        """
        with self._changing():
            self._consolidate(weights)

    def _consolidate(self, weights) -> None:
        if not self.n_samples:
            raise RuntimeError("there is no Fisher information of this task: call compute_fisher(gradients) before "
                               "consolidate(weights)")
        read = self._reader(weights)
        generation, rise = self._generation + 1, 0.0
        paths = self._path("fisher", generation), self._path("anchor", generation)
        try:
            with (FeatureStorage(self._path("squares", self._generation)) as squares,
                  FeatureStorage.create(paths[0], self.n_params, self.dim, overwrite=True) as fisher,
                  FeatureStorage.create(paths[1], self.n_params, self.dim, overwrite=True) as anchor):
                for start, stop in self._chunks():
                    new, w = squares.read_rows(start, stop) / self.n_samples, read(start, stop)
                    if self._fisher is not None and self._anchor is not None:
                        new, w, more = merged(self._fisher.read_rows(start, stop), self._anchor.read_rows(start, stop),
                                              new, w, self.decay)
                        rise += more
                    ids = np.arange(start, stop)
                    fisher.write_features(ids, new.astype(np.float32))
                    anchor.write_features(ids, np.asarray(w, np.float32))
        except BaseException:
            for path in paths:
                _remove(path)
            raise
        self._change(generation, n_samples=0, n_tasks=self.n_tasks + 1, offset=self._offset + rise,
                     fisher_generation=generation)

    def penalty(self, weights, ids=None) -> float:
        """The penalty, summed in float64; 0 before the first task is consolidated.

        Parameters
        ----------
        weights : array or storage, shape (n_params, dim), or (k, dim) with ``ids``
        ids : array of int, shape (k,), optional
            Rows of the table that ``weights`` are. The penalty is then that of these alone, without the constant that
            several tasks leave.
        """
        if ids is not None:
            fisher, anchor, w = self._rows(weights, ids)
            return 0.0 if fisher is None else self._strength / 2 * quadratic(fisher, anchor, w)
        read = self._reader(weights)
        if self._fisher is None or self._anchor is None:
            return 0.0
        total = self._offset
        for start, stop in self._chunks():
            total += quadratic(self._fisher.read_rows(start, stop), self._anchor.read_rows(start, stop),
                               read(start, stop))
        return self._strength / 2 * total

    def gradient(self, weights, ids=None) -> np.ndarray:
        """The gradient of :meth:`penalty` by rows of the table.

        Parameters
        ----------
        weights : array, shape (n_params, dim), or (k, dim) with ``ids``, or (dim,) with one int
        ids : array of int, shape (k,), or one int, optional
            Rows of the table that ``weights`` are; all by default.

        Returns
        -------
        ndarray
            Of the shape of ``weights``.
        """
        if isinstance(ids, (int, np.integer)) and not isinstance(ids, bool):
            return self.gradient(np.asarray(weights)[None], [ids])[0]
        fisher, anchor, w = self._rows(weights, np.arange(self.n_params) if ids is None else ids)
        return np.zeros_like(w) if fisher is None else pull(fisher, anchor, w, self._strength)

    def loss(self, weights: Tensor, ids) -> Tensor:
        """The penalty of rows of the table on the tape, as that of :meth:`penalty` with ``ids``.

        Parameters
        ----------
        weights : Tensor, shape (k, dim)
        ids : array of int, shape (k,)
        """
        fisher, anchor, _ = self._rows(weights.data, ids)
        if fisher is None:
            return Tensor(np.zeros((), weights.dtype))
        return Penalty.apply(weights, fisher=[fisher], anchor=[anchor], strength=self._strength)

    def close(self) -> None:
        """Let go of the files. Closing twice does nothing."""
        for store in (self._fisher, self._anchor):
            if store is not None:
                store.close()

    def __enter__(self) -> "ColdTierEWC":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def __repr__(self) -> str:
        return (f"ColdTierEWC({str(self.folder)!r}, {self.n_params} x {self.dim}, strength={self._strength:g}, "
                f"{self.n_tasks} tasks)")

    # -- parts

    def _chunks(self) -> Iterator[tuple[int, int]]:
        return ((start, min(start + self._chunk, self.n_params)) for start in range(0, self.n_params, self._chunk))

    def _reader(self, weights) -> Callable[[int, int], np.ndarray]:
        if not hasattr(weights, "shape"):
            weights = np.asarray(weights)
        if tuple(weights.shape) != (self.n_params, self.dim):
            raise ValueError(f"weights must have shape ({self.n_params}, {self.dim}), got {tuple(weights.shape)}")
        return lambda start, stop: check_array(weights[start:stop], "weights")

    def _rows(self, weights, ids) -> tuple[Any, Any, np.ndarray]:
        """Fisher information, anchors and weights of rows; None twice without a task."""
        ids, w = check_ids(ids, self.n_params, "ids"), check_array(weights, "weights", allow_empty=True)
        if w.shape != (len(ids), self.dim):
            raise ValueError(f"weights must have shape ({len(ids)}, {self.dim}), a row for each id, got {w.shape}")
        if self._fisher is None or self._anchor is None:
            return None, None, w
        return self._fisher.read_batch(ids), self._anchor.read_batch(ids), w

    def _parts(self, gradients: Iterable) -> Iterator[tuple[int, list[tuple[np.ndarray, np.ndarray]]]]:
        """Samples in the order given, a few MiB of rows at a time, with the number of samples so far."""
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        held = count = 0
        for sample in gradients:
            ids, rows = sample if isinstance(sample, tuple) else (None, sample)
            if ids is None:
                if np.shape(rows) != (self.n_params, self.dim):
                    raise ValueError(f"the gradient of a sample must have shape ({self.n_params}, {self.dim}), got "
                                     f"{np.shape(rows)} for sample {count}")
                chunks = [(np.arange(start, stop), rows[start:stop]) for start, stop in self._chunks()]
            else:
                ids = check_ids(ids, self.n_params, "ids of a sample")
                if len(np.unique(ids)) != len(ids):
                    raise ValueError(f"ids of sample {count} repeat: a square is of the whole gradient of a row, so "
                                     "add up its parts first")
                if np.shape(rows) != (len(ids), self.dim):
                    raise ValueError(f"the gradients of sample {count} must have shape ({len(ids)}, {self.dim}), got "
                                     f"{np.shape(rows)}")
                chunks = [(ids, rows)]
            count += 1
            for own, part in chunks:
                if len(own):
                    parts.append((own, check_array(part, f"gradient of sample {count - 1}", dtype=np.float64)))
                    held += len(own)
                if held >= self._chunk:
                    yield count, parts
                    parts, held = [], 0
        yield count, parts

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep other writers out, and out of what they have changed."""
        with _locked(self.folder) as alone:
            if not alone:
                raise _busy(self.folder)
            state = self._read_state()
            if (state["generation"], state["strength"]) != (self._generation, self._strength):
                raise StorageError(f"{self.folder} is not as it was left here: another has changed it, or a write "
                                   "failed; open it again with ColdTierEWC.open(folder)")
            yield

    def _path(self, what: str, generation: int) -> Path:
        return self.folder / f"{what}-{generation:06d}.npy"

    def _attach(self) -> None:
        self.close()
        if self.n_tasks:
            self._fisher = FeatureStorage(self._path("fisher", self._fisher_generation))
            self._anchor = FeatureStorage(self._path("anchor", self._fisher_generation))
            for store in (self._fisher, self._anchor):
                if store.shape != (self.n_params, self.dim):
                    raise StorageError(f"{store.path} has shape {store.shape}, need ({self.n_params}, {self.dim}): it "
                                       "belongs to another state; restore the folder from a copy")

    def _change(self, generation: int, *, n_samples: int, n_tasks: int | None = None, offset: float | None = None,
                fisher_generation: int | None = None) -> None:
        """Make new files count, then remove the old ones."""
        self._generation, self.n_samples = generation, n_samples
        if fisher_generation is not None and n_tasks is not None and offset is not None:
            self.n_tasks, self._offset, self._fisher_generation = n_tasks, offset, fisher_generation
        self._save()
        self._attach()
        self._remove_others()

    def _save(self) -> None:
        _write_state(self.folder, {
            "n_params": self.n_params, "dim": self.dim, "strength": self._strength, "decay": self.decay,
            "n_tasks": self.n_tasks, "n_samples": self.n_samples, "offset": self._offset.hex(),
            "generation": self._generation, "fisher_generation": self._fisher_generation})

    def _remove_others(self) -> None:
        """Remove what a crash left, and what no longer counts."""
        _files.remove_temporaries(self.folder)
        kept = {self._path("squares", self._generation)} if self.n_samples else set()
        if self.n_tasks:
            kept |= {self._path("fisher", self._fisher_generation), self._path("anchor", self._fisher_generation)}
        for what in ("squares", "fisher", "anchor"):
            for file in self.folder.glob(f"{what}-{'[0-9]' * 6}.npy"):
                if file not in kept:
                    _remove(file)

    def _read_state(self) -> dict[str, Any]:
        file = self.folder / "ewc.json"
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            if state.get("format") != FORMAT:
                raise StorageError(f"{file} is not a {FORMAT} file; ColdTierEWC.create(folder, ...) makes one")
            if state["version"] > VERSION:
                raise StorageError(f"{file} has format version {state['version']}, this gnncy reads up to {VERSION}; "
                                   "upgrade gnncy")
            missing = {"n_params", "dim", "strength", "decay", "n_tasks", "n_samples", "offset", "generation",
                       "fisher_generation"} - state.keys()
            if missing:
                raise StorageError(f"{file} is damaged: it lacks {', '.join(sorted(missing))}")
        except FileNotFoundError as error:
            raise StorageError(f"{file} is missing: there is no state here; ColdTierEWC.create(folder, ...) makes "
                               "one") from error
        except (ValueError, AttributeError, KeyError) as error:
            raise StorageError(f"{file} is damaged ({error!r}); restore it from a copy") from error
        return state


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, if nobody else does."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    alone = _files.lock(fd)
    try:
        yield alone
    finally:
        if alone:
            _files.release(fd)
        else:
            os.close(fd)


def _busy(folder: Path) -> StorageError:
    return StorageError(f"{folder} is being changed by another process or thread; try again when it has ended")


def _write_state(folder: Path, state: dict) -> None:
    _files.write_text(folder / "ewc.json", json.dumps({"format": FORMAT, "version": VERSION} | state, indent=1) + "\n")


def _add_squares(squares: FeatureStorage, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Add squares to rows on disk, one sample after the other, so that sums do not depend on how many are held."""
    ids, place = np.unique(np.concatenate([own for own, _ in parts]), return_inverse=True)
    rows = squares.read_batch(ids)
    start = 0
    for own, gradient in parts:
        rows[place[start:start + len(own)]] += gradient * gradient
        start += len(own)
    squares.write_features(ids, rows)


def _remove(path: Path) -> None:
    """Remove a file of rows and what lies beside it."""
    for file in path.parent.glob(path.name + "*"):
        file.unlink(missing_ok=True)
