"""A bounded cache of feature rows; a policy says which rows it keeps."""
import threading
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from gnncy._check import check_choice, check_float, check_ids, check_int
from gnncy._kernels.storage import hotset as kernels
from gnncy.storage.policies.policy import MOST_IDS, MOST_ROWS, Policy, make_policy

_VERSION = 2


@dataclass(slots=True)
class HotsetStatistics:
    """What a hotset did since its epoch began.

    Attributes
    ----------
    lookups, hits : int
        Ids looked up, and those of them that were cached.
    admissions, evictions : int
        Rows that were taken in, those of cached ids not counted, and rows that had to go.
    """

    lookups: int = 0
    hits: int = 0
    admissions: int = 0
    evictions: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the lookups that were hits; 0 without any."""
        return self.hits / self.lookups if self.lookups else 0.0


class AdaptiveHotset:
    """A cache of at most ``capacity`` feature rows.

    Which rows it keeps is up to its policy. The default keeps those with the greatest decayed access counts: every
    access adds 1 to the count of its id, and :meth:`decay_counts` multiplies all counts by ``decay``. A full cache
    then keeps the rows with the greatest (count, id): a new row enters with the count that was recorded for its id,
    and only in place of a lesser one. Counts of ids that are not cached are kept for the ``ghosts`` ids with the
    greatest counts, so memory is bounded.

    Parameters
    ----------
    capacity : int
        Rows held; 0 turns the cache off.
    dim : int
        Length of a row.
    policy : {"frequency", "lru", "clock", "sieve", "s3fifo", "belady"} or Policy
        By name, or an object of :mod:`gnncy.storage.policies` of the same capacity, which then belongs to the cache.
        For a known sampler ``Static(hottest(scores, capacity))`` is better than all that have a name but ``"belady"``.
    decay : float, default 0.95
        Factor in 1e-6..1 of :meth:`decay_counts`.
    dtype : float32 or float64
        Of the rows.
    ghosts : int, optional
        Of ``"frequency"``: ids remembered without a row; as many as rows by default, at least 1024.

    Notes
    -----
    Ids lie below 2**32 - 1. Ties and evictions do not depend on the order of memory or on hashing. Methods may be
    called from several threads, one at a time goes ahead.

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
    >>> hot.evict_cold(), hot.get(7)
    (5, array([7.], dtype=float32))
    """

    def __init__(self, capacity: int, dim: int, *, policy: str | Policy = "frequency", decay: float = 0.95,
                 dtype=np.float32, ghosts: int | None = None):
        self.capacity = check_int(capacity, "capacity", 0, MOST_ROWS)
        self.dim = check_int(dim, "dim", 1)
        self.decay = check_float(decay, "decay", 1e-6, 1.0)
        self.dtype = np.dtype(check_choice(np.dtype(dtype).name, "dtype", ("float32", "float64")))
        self.policy = make_policy(policy, self.capacity, ghosts=ghosts)
        if len(self.policy):
            raise ValueError(f"the policy must be empty, got {self.policy!r}; make a new one for each cache")
        self._lock = threading.Lock()
        self._rows = np.zeros((self.capacity, self.dim), self.dtype)
        self._statistics = HotsetStatistics()

    def __len__(self) -> int:
        return len(self.policy)

    def __contains__(self, node) -> bool:
        return bool(self.contains(node)[0])

    def __repr__(self) -> str:
        return f"AdaptiveHotset({len(self)} of {self.capacity} rows of {self.dim}, {self.policy.name}, " \
               f"hit rate {self.hit_rate:.3f})"

    @property
    def is_empty(self) -> bool:
        """Whether no row is cached."""
        return len(self) == 0

    @property
    def nbytes(self) -> int:
        """Bytes held: rows and what the policy keeps."""
        return self._rows.nbytes + self.policy.nbytes

    @property
    def hits(self) -> int:
        """Cached ids among the :attr:`lookups`."""
        return self._statistics.hits

    @property
    def lookups(self) -> int:
        """Ids looked up since :meth:`start_epoch`."""
        return self._statistics.lookups

    @property
    def hit_rate(self) -> float:
        """Share of the lookups since :meth:`start_epoch` that were cached; 0 without any."""
        return self._statistics.hit_rate

    @property
    def statistics(self) -> HotsetStatistics:
        """What was done since :meth:`start_epoch`: a copy."""
        with self._lock:
            return replace(self._statistics)

    def start_epoch(self) -> HotsetStatistics:
        """Begin to count anew, and return what was counted before. Rows and access counts stay."""
        with self._lock:
            finished, self._statistics = self._statistics, HotsetStatistics()
        return finished

    def get(self, node: int) -> np.ndarray | None:
        """A copy of the row of one id, or None if it is not cached; counts as :meth:`lookup` does."""
        out = np.empty((1, self.dim), self.dtype)
        return out[0] if self.lookup(node, out)[0] else None

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
        ids = _ids(ids)
        if not isinstance(out, np.ndarray) or out.shape != (len(ids), self.dim) or out.dtype != self.dtype \
                or not out.flags.c_contiguous or not out.flags.writeable:
            raise ValueError(f"out must be a writeable C-contiguous {self.dtype} array of shape "
                             f"{(len(ids), self.dim)}, got {getattr(out, 'shape', type(out).__name__)} "
                             f"{getattr(out, 'dtype', '')}")
        with self._lock:
            slots = self.policy.lookup(ids)
            self._statistics.hits += kernels.take(_bytes(self._rows), slots, _bytes(out))
            self._statistics.lookups += len(ids)
        return slots >= 0

    def contains(self, ids) -> np.ndarray:
        """Which ids are cached. Counts neither an access nor a lookup."""
        with self._lock:
            return self.policy.find(_ids(ids)) >= 0

    def insert(self, ids, rows) -> np.ndarray:
        """Offer rows to the cache, one after the other; a row of a cached id is replaced.

        Parameters
        ----------
        ids : array of int, shape (k,), or int
        rows : array-like, shape (k, dim), or (dim,) for one id

        Returns
        -------
        ndarray of bool, shape (k,)
            Which were admitted (a later one of the same call may have evicted them again).
        """
        single = np.ndim(ids) == 0
        ids = _ids(ids)
        rows = np.ascontiguousarray(rows, dtype=self.dtype)
        if single and rows.ndim == 1:
            rows = rows[None]
        if rows.shape != (len(ids), self.dim):
            raise ValueError(f"rows must have shape {(len(ids), self.dim)}, got {rows.shape}")
        with self._lock:
            before, evicted = len(self.policy), self.policy.evictions
            slots = self.policy.admit(ids)
            kernels.put(_bytes(rows), slots, _bytes(self._rows))
            evicted = self.policy.evictions - evicted
            self._statistics.evictions += evicted
            self._statistics.admissions += len(self.policy) - before + evicted
        return slots >= 0

    def record_access(self, ids) -> None:
        """Count an access of each id, cached or not."""
        with self._lock:
            self.policy.lookup(_ids(ids))

    def evict_cold(self) -> int | None:
        """Drop the row that would be the next to go; returns its id, or None if there is none."""
        with self._lock:
            node = self.policy.evict()
            self._statistics.evictions += node is not None
        return node

    def decay_counts(self) -> None:
        """Multiply all counts by ``decay``, where the policy counts."""
        with self._lock:
            self.policy.decay(self.decay)

    def counts(self) -> dict[int, float]:
        """Access counts that are known, by id, those of ghosts included; empty where the policy has none."""
        with self._lock:
            return self.policy.counts()

    def resident(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the cached rows, and the rows, not copied: candidates for hard negatives that cost no read.

        Returns
        -------
        ids : ndarray of int64, shape (n,)
        rows : ndarray, shape (n, dim)
            A read-only view of the cache's memory, good until the next :meth:`insert` or :meth:`load_state_dict`. Only
            after :meth:`evict_cold`, as long as the gaps that it made are open, is it a copy.

        Examples
        --------
        >>> import numpy as np
        >>> from gnncy.storage import AdaptiveHotset
        >>> hot = AdaptiveHotset(capacity=3, dim=2)
        >>> hot.insert([8, 4], [[1.0, 2.0], [3.0, 4.0]])
        array([ True,  True])
        >>> hot.resident()
        (array([8, 4]), array([[1., 2.],
               [3., 4.]], dtype=float32))
        """
        with self._lock:
            ids, slots = self.policy.resident()
            order = np.argsort(slots)
            ids, slots = ids[order], slots[order]
            whole = not len(slots) or slots[-1] == len(slots) - 1
            rows = self._rows[:len(slots)] if whole else self._rows[slots]
        rows.flags.writeable = False
        return ids, rows

    def state_dict(self) -> dict:
        """Everything that the cache holds, as arrays and numbers."""
        with self._lock:
            state = self.policy.state_dict()
            return {"version": _VERSION, "dim": self.dim, "decay": self.decay, "dtype": self.dtype.name, **state,
                    "rows": self._rows[self.policy.find(state["ids"][:len(self.policy)])], **asdict(self._statistics)}

    def load_state_dict(self, state: dict) -> None:
        """Take over what :meth:`state_dict` returned; the cache then behaves as that one would have.

        Raises
        ------
        ValueError
            If the state is of another kind of hotset, or damaged; nothing is changed then.
        """
        mine = {"version": _VERSION, "dim": self.dim, "dtype": self.dtype.name}
        for name, value in mine.items():
            if state.get(name) != value:
                raise ValueError(f"state has {name}={state.get(name)!r}, this hotset {value!r}; make one with the same")
        try:
            rows = np.asarray(state["rows"], self.dtype)
            statistics = HotsetStatistics(*(check_int(state[field.name], field.name, 0)
                                            for field in fields(HotsetStatistics)))
            decay = check_float(state["decay"], "decay", 1e-6, 1.0)
        except KeyError as error:
            raise ValueError(f"state is damaged: it lacks {error}") from error
        with self._lock:
            slots = self.policy.load_state_dict(state, rows=len(rows) if rows.shape[1:] == (self.dim,) else -1)
            self._rows[slots] = rows
            self._statistics, self.decay = statistics, decay


def _ids(ids) -> np.ndarray:
    return check_ids(np.atleast_1d(ids), MOST_IDS, "ids")


def _bytes(rows: np.ndarray) -> np.ndarray:
    return rows.view(np.uint8)
