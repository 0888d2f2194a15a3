"""A bounded cache of feature rows that keeps the ones used most."""
import threading

import numpy as np

from gnncy._check import check_choice, check_float, check_ids, check_int
from gnncy._kernels.storage import hotset

_LARGEST = 1e100  # unit of count above which all counts are divided by it
_MOST = np.iinfo(np.int32).max // 4
_ANY = np.iinfo(np.int64).max
_VERSION = 1


class AdaptiveHotset:
    """A cache of at most ``capacity`` feature rows that keeps those with the greatest decayed access counts.

    Every access adds 1 to the count of its id, and :meth:`decay_counts` multiplies all counts by ``decay``. A full
    cache keeps the rows with the greatest (count, id): a new row enters with the count that was recorded for its id,
    and only in place of a lesser one. Counts of ids that are not cached are kept for the ``ghosts`` ids with the
    greatest counts, so memory is bounded.

    Parameters
    ----------
    capacity : int
        Rows held; 0 turns the cache off.
    dim : int
        Length of a row.
    decay : float, default 0.95
        Factor in (0, 1] of :meth:`decay_counts`.
    dtype : float32 or float64
        Of the rows.
    ghosts : int, optional
        Ids remembered without a row; as many as rows by default, at least 1024.

    Notes
    -----
    An access costs O(1) hashing and O(log capacity) heap steps, decay O(1). Ties and evictions do not depend on
    the order of memory or on hashing. Methods may be called from several threads, one at a time goes ahead.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.storage import AdaptiveHotset
    >>> hot = AdaptiveHotset(capacity=2, dim=1)
    >>> hot.record_access([5, 5, 7, 7, 7, 9])
    >>> hot.insert([5, 7, 9], [[5.0], [7.0], [9.0]])
    array([ True,  True, False])
    >>> rows = np.zeros((2, 1), np.float32)
    >>> hot.lookup([7, 9], rows)
    array([ True, False])
    >>> rows.ravel(), hot.hit_rate
    (array([7., 0.], dtype=float32), 0.5)
    """

    def __init__(self, capacity: int, dim: int, *, decay: float = 0.95, dtype=np.float32, ghosts: int | None = None):
        self.capacity = check_int(capacity, "capacity", 0, _MOST)
        self.dim = check_int(dim, "dim", 1)
        self.decay = check_float(decay, "decay", high=1.0, above=0.0)
        if decay < 1e-6:
            raise ValueError(f"decay must be at least 1e-6, got {decay!r}")
        self.dtype = np.dtype(check_choice(np.dtype(dtype).name, "dtype", ("float32", "float64")))
        self.ghosts = check_int(max(self.capacity, 1024) if ghosts is None else ghosts, "ghosts", 0, _MOST)
        self._lock = threading.Lock()
        self._rows = np.zeros((self.capacity, self.dim), self.dtype)
        self._table = hotset.Table(self.capacity, self.ghosts if self.capacity else 0)
        self.start_epoch()

    def __len__(self) -> int:
        return self._table.cached.n

    def __contains__(self, node) -> bool:
        return bool(self.contains([node])[0])

    def __repr__(self) -> str:
        return f"AdaptiveHotset({len(self)} of {self.capacity} rows of {self.dim}, hit rate {self.hit_rate:.3f})"

    @property
    def nbytes(self) -> int:
        """Bytes held: rows, counts and hash table."""
        return self._rows.nbytes + self._table.nbytes

    @property
    def hits(self) -> int:
        """Cached ids among the :attr:`lookups`."""
        return self._hits

    @property
    def lookups(self) -> int:
        """Ids looked up since :meth:`start_epoch`."""
        return self._lookups

    @property
    def hit_rate(self) -> float:
        """Share of the lookups since :meth:`start_epoch` that were cached; 0 without any."""
        return self._hits / self._lookups if self._lookups else 0.0

    def start_epoch(self) -> None:
        """Begin to count hits and lookups anew. Rows and access counts stay."""
        self._hits = self._lookups = 0

    def lookup(self, ids, out: np.ndarray) -> np.ndarray:
        """Copy the rows that are cached, and count an access of every id.

        Parameters
        ----------
        ids : array of int, shape (k,)
        out : ndarray, shape (k, dim)
            Receives the rows of cached ids; other rows are left as they are.

        Returns
        -------
        ndarray of bool, shape (k,)
            Which ids were cached.
        """
        ids = check_ids(ids, _ANY, "ids")
        if not isinstance(out, np.ndarray) or out.shape != (len(ids), self.dim) or out.dtype != self.dtype \
                or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"out must be a writeable C-contiguous {self.dtype} array of shape "
                             f"{(len(ids), self.dim)}, got {getattr(out, 'shape', type(out).__name__)} "
                             f"{getattr(out, 'dtype', '')}")
        mask = np.zeros(len(ids), bool)
        with self._lock:
            if self.capacity:
                self._hits += self._table.lookup(ids, _bytes(self._rows), _bytes(out), mask.view(np.uint8))
            self._lookups += len(ids)
        return mask

    def contains(self, ids) -> np.ndarray:
        """Which ids are cached. Counts neither an access nor a lookup."""
        ids = check_ids(ids, _ANY, "ids")
        mask = np.zeros(len(ids), bool)
        with self._lock:
            self._table.contains(ids, mask.view(np.uint8))
        return mask

    def insert(self, ids, rows) -> np.ndarray:
        """Offer rows to the cache, one after the other; a row of a cached id is replaced.

        Parameters
        ----------
        ids : array of int, shape (k,)
        rows : array-like, shape (k, dim)

        Returns
        -------
        ndarray of bool, shape (k,)
            Which were admitted (a later one of the same call may have evicted them again).
        """
        ids = check_ids(ids, _ANY, "ids")
        rows = np.ascontiguousarray(rows, dtype=self.dtype)
        if rows.shape != (len(ids), self.dim):
            raise ValueError(f"rows must have shape {(len(ids), self.dim)}, got {rows.shape}")
        mask = np.zeros(len(ids), bool)
        if self.capacity:
            with self._lock:
                self._table.insert(ids, _bytes(rows), _bytes(self._rows), mask.view(np.uint8))
        return mask

    def record_access(self, ids) -> None:
        """Count an access of each id, cached or not."""
        ids = check_ids(ids, _ANY, "ids")
        if self.capacity:
            with self._lock:
                self._table.record(ids)

    def decay_counts(self) -> None:
        """Multiply all counts by ``decay``."""
        with self._lock:
            self._table.unit /= self.decay
            if self._table.unit > _LARGEST:
                self._table.rescale()

    def counts(self) -> dict[int, float]:
        """Access counts that are known, by id, those of ghosts included."""
        with self._lock:
            table = self._table
            return {int(heap.ids[slot]): float(heap.counts[slot] / table.unit)
                    for heap, slots in zip((table.cached, table.ghosts), table.occupied(), strict=True)
                    for slot in slots}

    def state_dict(self) -> dict:
        """Everything that the cache holds, as arrays and numbers."""
        with self._lock:
            table = self._table
            cached, ghosts = table.occupied()
            return {"version": _VERSION, "capacity": self.capacity, "dim": self.dim, "decay": self.decay,
                    "dtype": self.dtype.name, "ghosts": self.ghosts, "unit": table.unit,
                    "ids": table.cached.ids[cached], "counts": table.cached.counts[cached], "rows": self._rows[cached],
                    "ghost_ids": table.ghosts.ids[ghosts], "ghost_counts": table.ghosts.counts[ghosts],
                    "hits": self._hits, "lookups": self._lookups}

    def load_state_dict(self, state: dict) -> None:
        """Take over what :meth:`state_dict` returned; the cache then behaves as that one would have."""
        mine = {"version": _VERSION, "capacity": self.capacity, "dim": self.dim, "dtype": self.dtype.name,
                "ghosts": self.ghosts}
        for name, value in mine.items():
            if state.get(name) != value:
                raise ValueError(f"state has {name}={state.get(name)!r}, this hotset {value!r}; make one with the same")
        ids, ghost_ids = (check_ids(state[name], _ANY, name) for name in ("ids", "ghost_ids"))
        counts, ghost_counts = (np.array(state[name], np.float64) for name in ("counts", "ghost_counts"))
        rows = np.asarray(state["rows"], self.dtype)
        everything = np.concatenate([ids, ghost_ids])
        if len(ids) > self.capacity or len(ghost_ids) > self.ghosts or len(np.unique(everything)) < len(everything) \
                or counts.shape != ids.shape or ghost_counts.shape != ghost_ids.shape \
                or rows.shape != (len(ids), self.dim):
            raise ValueError("state is damaged: its ids, counts and rows do not agree")
        table = hotset.Table(self.capacity, self.ghosts if self.capacity else 0)
        table.unit = check_float(state["unit"], "unit", above=0.0)
        table.restore(ids, counts, ghost_ids, ghost_counts)
        with self._lock:
            self._rows[:len(ids)] = rows
            self._table, self.decay = table, check_float(state["decay"], "decay", high=1.0, above=0.0)
            self._hits, self._lookups = check_int(state["hits"], "hits", 0), check_int(state["lookups"], "lookups", 0)


def _bytes(rows: np.ndarray) -> np.ndarray:
    return rows.view(np.uint8)
