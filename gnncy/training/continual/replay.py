"""Replay: a few of the nodes seen so far, to be trained again among new ones."""
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gnncy import _files
from gnncy._check import check_array, check_choice, check_float, check_int
from gnncy._memory import aligned_empty
from gnncy._random import derive, seed_from, stream
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage
from gnncy.training.snapshot import read_snapshot, write_snapshot

BALANCES = ("none", "class", "degree")
_COLUMNS = ("nodes", "labels", "groups", "priorities", "order", "slots")


class Replayed(NamedTuple):
    """What :meth:`ReplayMemory.draw` gives; ``labels`` and ``features`` are None where none were added.

    Attributes
    ----------
    nodes, labels : ndarray of int64, shape (k,)
    features : ndarray, shape (k, d)
    """

    nodes: np.ndarray
    labels: np.ndarray | None
    features: np.ndarray | None


class ReplayMemory:
    """A uniform sample of all nodes that were ever added, of limited size.

    Each node added gets a random number; those with the smallest are kept. So at any time every set of ``capacity`` of
    the nodes added is equally likely to be there, however they came. Balanced, the same holds within each class, or
    within nodes of about the same degree, and groups have equally many places: a group with fewer nodes keeps them all,
    and the others share the rest.

    Parameters
    ----------
    capacity : int
        Nodes kept, at most.
    balance : {"none", "class", "degree"}
        Groups that get equally many places: by the ``labels`` of :meth:`add`, or by its ``degrees``, where 0, 1, 2 to
        3, 4 to 7 and so on are groups.
    seed : int or Generator
        Of the random numbers; that of a node depends on it and on how many were added before.
    folder : path-like, optional
        Keep rows of features in a file there, with room for twice ``capacity`` of them. What :meth:`commit` has
        written is what :meth:`open` finds, whatever happens in between. Default: in memory.

    Attributes
    ----------
    capacity, balance, seed
    seen : int
        Nodes added so far.

    References
    ----------
    J. Vitter, Random sampling with a reservoir, ACM TOMS 1985.
    A. Chrysakis, M.-F. Moens, Online continual learning from imbalanced data, ICML 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training.continual import ReplayMemory
    >>> memory = ReplayMemory(4, balance="class", seed=0)
    >>> memory.add(np.arange(100), labels=np.repeat([0, 1], [98, 2]))
    >>> len(memory), np.bincount(memory.labels)
    (4, array([2, 2]))
    >>> memory.draw(2, key=1).nodes.shape
    (2,)
    """

    def __init__(self, capacity: int, *, balance: str = "none", seed=0, folder=None):
        self.capacity = check_int(capacity, "capacity", 1)
        self.balance = check_choice(balance, "balance", BALANCES)
        self.seed = seed_from(seed)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and (self.folder / "memory.npz").exists():
            raise FileExistsError(f"{self.folder} holds a memory already: ReplayMemory.open(folder) goes on with it")
        self.seen = 0
        self._kept = _empty()
        self._counts: dict[int, int] = {}
        self._labelled: bool | None = None
        self._rows: np.ndarray | FeatureStorage | None = None
        self._committed = np.zeros(0, np.int64)

    @classmethod
    def open(cls, folder) -> "ReplayMemory":
        """The memory in ``folder``, as it was at its last :meth:`commit`.

        Parameters
        ----------
        folder : path-like

        Raises
        ------
        StorageError
            If there is none, or it is damaged.
        """
        folder = Path(folder)
        arrays, numbers = read_snapshot(folder / "memory.npz")
        if numbers.get("kind") != "replay memory":
            raise StorageError(f"{folder / 'memory.npz'} is no memory of nodes; ReplayMemory(capacity, folder=folder) "
                               "makes one in an empty folder")
        _files.remove_temporaries(folder)
        memory = cls(numbers["capacity"], balance=numbers["balance"], seed=numbers["seed"])
        memory.folder = folder
        memory._take_over(arrays, numbers)
        if numbers["rows"]:
            memory._rows = FeatureStorage(folder / "rows.npy", "r+")
        memory._committed = memory._kept["slots"]
        return memory

    # -- what is there

    def __len__(self) -> int:
        return len(self._kept["nodes"])

    def __repr__(self) -> str:
        return f"ReplayMemory({len(self)} of {self.seen} nodes, capacity={self.capacity}, balance={self.balance!r})"

    @property
    def nodes(self) -> np.ndarray:
        """The nodes kept, in the order in which they were added."""
        return self._kept["nodes"].copy()

    @property
    def labels(self) -> np.ndarray | None:
        """Their labels."""
        return self._kept["labels"].copy() if self._labelled else None

    def features(self) -> np.ndarray | None:
        """Their rows, all in memory."""
        return self._read(self._kept["slots"])

    def add(self, nodes, *, labels=None, degrees=None, features=None) -> None:
        """Offer nodes to the memory.

        Parameters
        ----------
        nodes : array of int, shape (k,)
            Any order. A node that is added twice may be kept twice.
        labels : array of int, shape (k,), optional
            At each call or at none.
        degrees : array of int, shape (k,), optional
            With ``balance="degree"``.
        features : array, shape (k, d), optional
            Rows to be kept too, at each call or at none; without them, look nodes up where the graph's features are.
        """
        nodes = _ints(nodes, "nodes", None)
        k = len(nodes)
        own = None if labels is None else _ints(labels, "labels", k)
        rows = None if features is None else check_array(features, "features", allow_empty=k == 0)
        if self.seen and ((own is None) == bool(self._labelled) or (rows is None) != (self._rows is None)):
            raise ValueError("labels and features must be given at each call of add or at none")
        if rows is not None and (len(rows) != k or self._rows is not None and rows.shape[1] != self._rows.shape[1]):
            width = "d" if self._rows is None else self._rows.shape[1]
            raise ValueError(f"features must have a row of {width} numbers for each of {k} nodes, got shape "
                             f"{rows.shape}")
        groups = self._groups(k, own, degrees)
        if k == 0:
            return
        if rows is not None and self._rows is None:
            self._rows = self._reserve(rows)
        new = {"nodes": nodes, "labels": np.zeros(k, np.int64) if own is None else own, "groups": groups,
               "priorities": self._priorities(k), "order": np.arange(self.seen, self.seen + k),
               "slots": np.full(k, -1)}
        counts = dict(self._counts)
        for group, count in zip(*np.unique(groups, return_counts=True), strict=True):
            counts[int(group)] = counts.get(int(group), 0) + int(count)
        both = {name: np.concatenate([self._kept[name], new[name]]) for name in _COLUMNS}
        keep = self._chosen(both["groups"], both["priorities"], counts)
        kept = {name: column[keep] for name, column in both.items()}
        fresh = kept["slots"] < 0
        slots = self._free(kept["slots"][~fresh])[:fresh.sum()]
        kept["slots"][fresh] = slots
        if rows is not None:
            chosen = rows[kept["order"][fresh] - self.seen]
            if isinstance(self._rows, FeatureStorage):
                self._rows.write_features(slots, chosen)
            elif self._rows is not None:
                self._rows[slots] = chosen
        self._kept, self._counts, self._labelled, self.seen = kept, counts, own is not None, self.seen + k

    def draw(self, size: int, key: int) -> Replayed:
        """A uniform sample of what is kept, without replacement.

        Parameters
        ----------
        size : int
            All that there is, if that is less.
        key : int
            The same key gives the same sample of the same memory.

        Returns
        -------
        Replayed
        """
        size = min(check_int(size, "size", 0), len(self))
        chosen = stream(self.seed, "draw", key).choice(len(self), size, replace=False) if size else np.zeros(0, np.intp)
        labels = self._kept["labels"][chosen] if self._labelled else None
        return Replayed(self._kept["nodes"][chosen], labels, self._read(self._kept["slots"][chosen]))

    # -- how it is kept

    def commit(self) -> None:
        """Make what is there now what :meth:`open` finds; only with ``folder``."""
        if self.folder is None:
            raise ValueError("a memory without a folder is not on disk: pass folder, or save its state_dict()")
        self.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self._rows, FeatureStorage):
            self._rows.flush()
        arrays, numbers = self._state()
        write_snapshot(self.folder / "memory.npz", arrays, numbers)
        self._committed = self._kept["slots"]

    def close(self) -> None:
        """Let go of the file, if there is one."""
        if isinstance(self._rows, FeatureStorage):
            self._rows.close()

    def __enter__(self) -> "ReplayMemory":
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def state_dict(self) -> dict:
        """All that later draws and additions depend on, with the rows kept: arrays, and what JSON can hold."""
        arrays, numbers = self._state()
        rows = self.features()
        return arrays | numbers | ({} if rows is None else {"features": rows})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict` of a memory of the same capacity, balance and seed.
        """
        for name in ("capacity", "balance", "seed"):
            if state[name] != getattr(self, name):
                raise ValueError(f"the state belongs to a memory with {name}={state[name]!r}, this one has "
                                 f"{getattr(self, name)!r}")
        rows = np.asarray(state["features"]) if "features" in state else None
        if rows is not None and self._rows is not None and rows.shape[1] != self._rows.shape[1]:
            raise ValueError(f"the state has rows of {rows.shape[1]} numbers, this memory of {self._rows.shape[1]}")
        if rows is not None and self._rows is None:
            self._rows = self._reserve(rows)
        self._take_over(state, state)
        self._kept["slots"] = self._free(self._committed[:0])[:len(self)]
        if isinstance(self._rows, FeatureStorage):
            self._rows.write_features(self._kept["slots"], rows)
        elif self._rows is not None:
            self._rows[self._kept["slots"]] = rows

    def _state(self) -> tuple[dict[str, np.ndarray], dict]:
        arrays = {name: self._kept[name].copy() for name in _COLUMNS}
        arrays["group_ids"] = np.array(sorted(self._counts), np.int64)
        arrays["group_counts"] = np.array([self._counts[group] for group in sorted(self._counts)], np.int64)
        return arrays, {"kind": "replay memory", "capacity": self.capacity, "balance": self.balance, "seed": self.seed,
                        "seen": self.seen, "labelled": self._labelled, "rows": self._rows is not None}

    def _take_over(self, arrays: Mapping[str, Any], numbers: Mapping[str, Any]) -> None:
        self._kept = {name: np.array(arrays[name]) for name in _COLUMNS}
        self._counts = dict(zip(np.asarray(arrays["group_ids"]).tolist(), np.asarray(arrays["group_counts"]).tolist(),
                                strict=True))
        self.seen, self._labelled = numbers["seen"], numbers["labelled"]

    def _reserve(self, rows: np.ndarray) -> np.ndarray | FeatureStorage:
        if self.folder is None:
            return aligned_empty((self.capacity, rows.shape[1]), rows.dtype)
        self.folder.mkdir(parents=True, exist_ok=True)
        return FeatureStorage.create(self.folder / "rows.npy", 2 * self.capacity, rows.shape[1], dtype=rows.dtype,
                                     overwrite=True)

    def _free(self, used: np.ndarray) -> np.ndarray:
        """Places for rows; on disk, what was committed is not overwritten before the next commit."""
        places = self.capacity if self.folder is None else 2 * self.capacity
        return np.setdiff1d(np.arange(places), np.concatenate([used, self._committed]))

    def _read(self, slots: np.ndarray) -> np.ndarray | None:
        if isinstance(self._rows, FeatureStorage):
            return self._rows.read_batch(slots)
        return None if self._rows is None else self._rows[slots]

    # -- who is kept

    def _groups(self, k: int, labels: np.ndarray | None, degrees) -> np.ndarray:
        if self.balance == "none":
            return np.zeros(k, np.int64)
        if self.balance == "class":
            if labels is None:
                raise ValueError("balance='class' needs labels of the nodes added")
            return labels
        if degrees is None:
            raise ValueError("balance='degree' needs degrees of the nodes added, for instance "
                             "gnncy.graph.degrees(adjacency)[nodes]")
        degrees = _ints(degrees, "degrees", k)
        if k and degrees.min() < 0:
            raise ValueError(f"degrees must be at least 0, got {degrees.min()}")
        return np.frexp(degrees.astype(np.float64))[1].astype(np.int64)

    def _priorities(self, k: int) -> np.ndarray:
        """Random 64-bit numbers of the next ``k`` nodes: ``derive(seed, "priority", i)``."""
        x = np.uint64(derive(self.seed, "priority")) ^ np.arange(self.seen, self.seen + k, dtype=np.uint64)
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    def _chosen(self, groups: np.ndarray, priorities: np.ndarray, counts: Mapping[int, int]) -> np.ndarray:
        """Whether each node stays: those of the smallest numbers in their group, as many as it has places."""
        places = self._places(counts)
        order = np.lexsort((priorities, groups))
        sorted_groups = groups[order]
        first = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]])
        sizes = np.diff(np.r_[first, len(order)])
        rank = np.arange(len(order)) - np.repeat(first, sizes)
        most = np.array([places[group] for group in sorted_groups[first].tolist()])
        keep = np.zeros(len(groups), bool)
        keep[order[rank < np.repeat(most, sizes)]] = True
        return keep

    def _places(self, by_group: Mapping[int, int]) -> dict[int, int]:
        """Places of each group: the same number for all that have so many nodes; the first get what is left over.

        As more nodes come, the places of a group that has more nodes than places never become more; so who was
        turned away would not be there now either.
        """
        groups = sorted(by_group)
        counts = np.array([by_group[group] for group in groups])
        low, high = 0, int(counts.max())
        while low < high:  # the largest level at which all fits
            level = (low + high + 1) // 2
            low, high = (level, high) if np.minimum(counts, level).sum() <= self.capacity else (low, level - 1)
        places = np.minimum(counts, low)
        more = np.flatnonzero(counts > low)[:self.capacity - places.sum()]
        places[more] += 1
        return dict(zip(groups, places.tolist(), strict=True))


class Rehearsal:
    """Trains on a few nodes of a memory in each step, beside the minibatch: for ``Trainer(continual=...)``.

    Parameters
    ----------
    memory : ReplayMemory
    step : callable
        ``step(replayed, key)`` computes the mean loss of a :class:`Replayed`, adds its gradients to the parameters'
        and returns it.
    size : int
        Nodes a step.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training.continual import Rehearsal, ReplayMemory
    >>> memory = ReplayMemory(10)
    >>> memory.add(np.arange(100))
    >>> Rehearsal(memory, lambda replayed, key: float(len(replayed.nodes)), size=3)(None, key=0)
    3.0
    """

    def __init__(self, memory: ReplayMemory, step: Callable[[Replayed, int], float], size: int):
        self.memory, self.step, self.size = memory, step, check_int(size, "size", 1)

    def __call__(self, batch=None, key: int = 0) -> float:
        """The loss of nodes drawn by ``key``; 0 of an empty memory."""
        if len(self.memory) == 0:
            return 0.0
        return check_float(self.step(self.memory.draw(self.size, key), key), "the loss of a replay step")

    def state_dict(self) -> dict:
        """That of the memory."""
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict`.
        """
        self.memory.load_state_dict(state)


def _empty() -> dict[str, np.ndarray]:
    return {name: np.zeros(0, np.uint64 if name == "priorities" else np.int64) for name in _COLUMNS}


def _ints(value, name: str, count: int | None) -> np.ndarray:
    array = np.asarray(value)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.ndim != 1 or count is not None and len(array) != count:
        need = "1-dimensional" if count is None else f"one integer for each of {count} nodes"
        raise ValueError(f"{name} must be {need}, got shape {array.shape}")
    return array.astype(np.int64)
