"""Policies: which ids hold the slots of a cache."""
import numpy as np

from gnncy._check import check_choice, check_float, check_ids, check_int
from gnncy._kernels.policies import belady, frequency, queues
from gnncy._kernels.policies.policy import Static as StaticTable

MOST_IDS = 2**32 - 1
MOST_ROWS = 2**29  # rows and ghosts are numbered by int32


class Policy:
    """What every policy does: it decides over integer ids and slots; the rows belong to its user.

    A user calls :meth:`lookup` for accesses and, for rows that it has at hand, :meth:`admit`, which names the slot to
    put each row in. Calls are batches: ids are dealt with one after the other in compiled code. Decisions depend on the
    calls before alone, not on hashing, memory or time. Not safe against a second thread (:class:`AdaptiveHotset` is).

    Parameters
    ----------
    capacity : int
        Slots; a policy of capacity 0 admits nothing.

    Examples
    --------
    >>> from gnncy.storage.policies import LRU
    >>> lru = LRU(2)
    >>> lru.replay([1, 2, 1, 3, 2, 1])
    array([False, False,  True, False, False, False])
    >>> lru.resident()[0]
    array([2, 1])
    """

    name = ""
    _kernel: type

    def __init__(self, capacity: int):
        self.capacity = check_int(capacity, "capacity", 0, MOST_ROWS)
        self._table = self._new()

    def _new(self):
        return self._kernel(self.capacity)

    def __len__(self) -> int:
        return self._table.n

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {self.capacity})"

    @property
    def nbytes(self) -> int:
        """Bytes that the policy keeps, rows not included."""
        return self._table.nbytes

    @property
    def evictions(self) -> int:
        """Rows that had to go so far."""
        return self._table.evictions

    def lookup(self, ids) -> np.ndarray:
        """Access each id in turn.

        Parameters
        ----------
        ids : array of int, shape (k,)
            Below 2**32 - 1.

        Returns
        -------
        ndarray of int32, shape (k,)
            The slot of each id, -1 where it has none.
        """
        return self._each(self._table.lookup, ids)

    def find(self, ids) -> np.ndarray:
        """The slot of each id, -1 where it has none; counts as no access."""
        return self._each(self._table.find, ids)

    def admit(self, ids) -> np.ndarray:
        """Offer each id in turn, evicting others if need be.

        Returns
        -------
        ndarray of int32, shape (k,)
            The slot for each id's row, which it may have had before; -1 where it is not wanted. An id may be evicted by
            a later one of the same call: rows written to their slots in this order are right in the end.
        """
        return self._each(self._table.insert, ids)

    def replay(self, ids) -> np.ndarray:
        """Access each id in turn, and offer it at once if it has no slot.

        Returns
        -------
        ndarray of bool, shape (k,)
            Which were hits.
        """
        ids = check_ids(ids, MOST_IDS, "ids")
        hit = np.empty(len(ids), bool)
        self._table.replay(ids, hit.view(np.uint8))
        return hit

    def evict(self) -> int | None:
        """Take the next victim's slot away; returns its id, or None if no id has a slot."""
        node = self._table.evict()
        return None if node < 0 else node

    def decay(self, factor: float) -> None:
        """Multiply the counts of accesses; does nothing where a policy has none."""

    def counts(self) -> dict[int, float]:
        """Counts of accesses that are known, by id; empty where a policy has none."""
        return {}

    def resident(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids that have a slot, and their slots."""
        return self._table.resident()

    def state_dict(self) -> dict:
        """Everything that decides what will be done, as arrays and numbers."""
        return {"policy": self.name, "capacity": self.capacity, **self._table.state()}

    def load_state_dict(self, state: dict, *, rows: int | None = None) -> np.ndarray:
        """Take over what :meth:`state_dict` returned.

        Parameters
        ----------
        state : dict
        rows : int, optional
            Rows that were saved beside the state; it must have as many ids with a slot.

        Returns
        -------
        ndarray of int32
            The slots now of the first ids of ``state["ids"]``, those that have one.

        Raises
        ------
        ValueError
            If the state is of another policy or capacity, or damaged; nothing is changed then.
        """
        mine = {"policy": self.name, "capacity": self.capacity, **self._options()}
        for name, value in mine.items():
            if state.get(name) != value:
                raise ValueError(f"state has {name}={state.get(name)!r}, this policy {value!r}; make one with the same")
        table = self._new()
        like = table.state()
        try:
            values = {name: _like(state[name], value, name) for name, value in like.items()}
            self._check_state(values)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"state is damaged: {error}") from error
        table.restore(**values)
        if rows is not None and rows != table.n:
            raise ValueError(f"state is damaged: its rows must be {table.n} of the same width as here")
        self._table = table
        return self.find(values["ids"][:table.n])

    def _options(self) -> dict:
        return {}

    def _check_state(self, state: dict) -> None:
        _distinct(self.capacity, state["ids"])

    def _each(self, call, ids) -> np.ndarray:
        ids = check_ids(ids, MOST_IDS, "ids")
        slots = np.empty(len(ids), np.int32)
        call(ids, slots)
        return slots


class Static(Policy):
    """The given ids and no others, whatever is accessed.

    Ids have the slots 0, 1, 2, … in the order given, once their rows have been offered. Choose them with
    :func:`hottest`, by inclusion probability, degree or the counts of a sampled epoch.

    Parameters
    ----------
    ids : array of int, shape (capacity,)
        Distinct; hottest first.

    Examples
    --------
    >>> from gnncy.storage.policies import Static, hottest
    >>> static = Static(hottest([0.1, 0.9, 0.3, 0.9], 2))
    >>> static.admit([0, 1, 2, 3])
    array([-1,  0, -1,  1], dtype=int32)
    """

    name = "static"

    def __init__(self, ids):
        self.ids = check_ids(ids, MOST_IDS, "ids").copy()
        if len(np.unique(self.ids)) < len(self.ids):
            raise ValueError("ids must be distinct; pass each once")
        super().__init__(len(self.ids))

    def _new(self):
        return StaticTable(self.ids)

    def _check_state(self, state: dict) -> None:
        if not np.isin(state["ids"], self.ids).all():
            raise ValueError("state is of a static policy with other ids; make one with the same")


class Frequency(Policy):
    r"""The ids with the greatest decayed counts of accesses.

    An access adds 1 to the id's count :math:`c_v`, :meth:`decay` multiplies all by a factor. A full cache
    keeps the greatest :math:`(c_v, v)`: an id comes in with the count that it has, and only in place of a lesser one.
    Counts of ids without a slot are kept for at most ``ghosts`` of them, the least forgotten first.

    Parameters
    ----------
    capacity : int
    ghosts : int, optional
        Ids remembered without a slot; as many as slots by default, at least 1024.

    Notes
    -----
    An access takes O(1) steps, an eviction O(log capacity) on average, decay O(1).
    """

    name = "frequency"

    def __init__(self, capacity: int, *, ghosts: int | None = None):
        capacity = check_int(capacity, "capacity", 0, MOST_ROWS)
        self.ghosts = check_int(max(capacity, 1024) if ghosts is None else ghosts, "ghosts", 0, MOST_ROWS)
        super().__init__(capacity)

    def _new(self):
        return frequency.Frequency(self.capacity, self.ghosts if self.capacity else 0)

    def decay(self, factor: float) -> None:
        """Multiply all counts by ``factor``, at least 1e-6 and at most 1."""
        self._table.decay(check_float(factor, "factor", 1e-6, 1.0))

    def counts(self) -> dict[int, float]:
        """Counts that are known, by id, those of ghosts included."""
        state = self._table.state()
        ids = np.concatenate([state["ids"], state["ghost_ids"]])
        counts = np.concatenate([state["counts"], state["ghost_counts"]]) / state["unit"]
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def state_dict(self) -> dict:
        return {**super().state_dict(), "ghosts": self.ghosts}

    def _options(self) -> dict:
        return {"ghosts": self.ghosts}

    def _check_state(self, state: dict) -> None:
        _distinct(self.capacity, state["ids"], self.ghosts, state["ghost_ids"])
        for ids, counts in (("ids", "counts"), ("ghost_ids", "ghost_counts")):
            if state[counts].shape != state[ids].shape or not (state[counts] >= 0).all() \
                    or not np.isfinite(state[counts]).all():
                raise ValueError(f"state is damaged: {counts} must be a number of at least 0 for each of {ids}")
        check_float(state["unit"], "unit", above=0)


class _Linked(Policy):
    def _check_state(self, state: dict) -> None:
        lengths, ids, marks = state["lengths"], state["ids"], state["marks"]
        if lengths.shape != (3,) or (lengths < 0).any() or lengths.sum() != len(ids) or marks.shape != ids.shape \
                or not -1 <= state["hand"] < max(int(lengths[0]), 1):
            raise ValueError("state is damaged: its queues, ids and marks do not agree")
        rows = int(lengths[:2].sum())
        _distinct(self.capacity, ids[:rows], self.capacity, ids[rows:])


class LRU(_Linked):
    """The ids accessed last: the one not accessed for longest goes.

    Parameters
    ----------
    capacity : int
    """

    name = "lru"
    _kernel = queues.LRU


class Clock(_Linked):
    """First in, first out, but an id accessed since it came, or was last spared, is spared and counts as new (CLOCK).

    Parameters
    ----------
    capacity : int

    References
    ----------
    Corbató, A paging experiment with the Multics system, 1968.
    """

    name = "clock"
    _kernel = queues.Clock


class Sieve(_Linked):
    """A hand goes from old to new, spares ids accessed since it last came by, and takes the first other one (SIEVE).

    Parameters
    ----------
    capacity : int

    References
    ----------
    Zhang et al., SIEVE is simpler than LRU: an efficient turn-key eviction algorithm for web caches, NSDI 2024.
    """

    name = "sieve"
    _kernel = queues.Sieve


class S3FIFO(_Linked):
    """Three queues: a tenth of the slots for what is new, the rest for what was accessed again, ghosts of what went.

    An id that leaves the small queue goes to the main one if it was accessed at least twice there, else becomes a
    ghost; one that comes back while it is a ghost goes to the main queue at once. There an access, of which up to
    three count, spares an id once.

    Parameters
    ----------
    capacity : int

    References
    ----------
    Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023.
    """

    name = "s3fifo"
    _kernel = queues.S3FIFO


class Belady(Policy):
    """The ids that will be used soonest, of a known window of the future.

    :meth:`foresee` tells what will be accessed. The id whose next use is farthest goes, before it those without a known
    one, the longest unused first; an id is admitted only if it will be used before another. With all the
    future known no policy that starts as empty has more hits.

    Parameters
    ----------
    capacity : int

    References
    ----------
    Belady, A study of replacement algorithms for a virtual-storage computer, IBM Systems Journal 5(2), 1966.
    Park, Min and Lee, Ginex: SSD-enabled billion-scale graph neural network training on a single machine via
    provably optimal in-memory caching, VLDB 2022.

    Examples
    --------
    >>> from gnncy.storage.policies import Belady
    >>> belady = Belady(1)
    >>> belady.foresee([7, 8, 7])
    >>> belady.replay([7, 8, 7])
    array([False, False,  True])
    """

    name = "belady"
    _kernel = belady.Belady

    def foresee(self, ids) -> None:
        """Append accesses, in their order, to the known future. Each is used up by an access of its id."""
        self._table.foresee(check_ids(ids, MOST_IDS, "ids"))

    def forget(self) -> None:
        """Drop the known future, of an epoch that was broken off."""
        self._table.clear(1024)

    def _check_state(self, state: dict) -> None:
        _distinct(self.capacity, state["ids"])
        check_ids(state["upcoming"], MOST_IDS, "upcoming")
        if state["used"].shape != state["ids"].shape:
            raise ValueError("state is damaged: used must be a time for each of ids")


_NAMED = {policy.name: policy for policy in (Frequency, LRU, Clock, Sieve, S3FIFO, Belady)}


def make_policy(policy: "str | Policy", capacity: int, *, ghosts: int | None = None) -> Policy:
    """A policy by its name, or the object given if it is one of that capacity.

    Parameters
    ----------
    policy : {"frequency", "lru", "clock", "sieve", "s3fifo", "belady"} or Policy
    capacity : int
    ghosts : int, optional
        Of ``"frequency"``.

    Examples
    --------
    >>> from gnncy.storage.policies import make_policy
    >>> make_policy("sieve", 10)
    Sieve(0 of 10)
    """
    if isinstance(policy, Policy):
        if policy.capacity != capacity:
            raise ValueError(f"the policy is of capacity {policy.capacity}, not {capacity}; make both the same")
        if ghosts is not None:
            raise ValueError("ghosts is an option of policy='frequency'; give it to the policy object")
        return policy
    kind = _NAMED[check_choice(policy, "policy", tuple(_NAMED))]
    if kind is Frequency:
        return Frequency(capacity, ghosts=ghosts)
    if ghosts is not None:
        raise ValueError(f"ghosts is an option of policy='frequency', not of {policy!r}")
    return kind(capacity)


def _like(value, example, name: str):
    """What was saved, as an array of the type of the example, or as a number."""
    if isinstance(example, np.ndarray):
        return check_ids(value, MOST_IDS, name) if name.endswith("ids") else np.array(value, example.dtype)
    return check_float(value, name) if isinstance(example, float) else check_int(value, name)


def _distinct(capacity: int, ids: np.ndarray, most: int = 0, ghosts: np.ndarray | None = None) -> None:
    everything = ids if ghosts is None else np.concatenate([ids, ghosts])
    if len(ids) > capacity or len(everything) - len(ids) > most or len(np.unique(everything)) < len(everything):
        raise ValueError("state is damaged: it has too many ids, or one twice")
