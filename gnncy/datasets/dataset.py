"""What every data set of the room comes as."""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from gnncy._random import stream


class Split(NamedTuple):
    """Ids of the training, validation and test nodes, each ascending, int64."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    @classmethod
    def from_parts(cls, part: np.ndarray) -> "Split":
        """The split in which node i is for training, validation or test as ``part[i]`` is 0, 1 or 2."""
        return cls(*(np.flatnonzero(part == i) for i in range(3)))


def random_parts(n: int, seed: int) -> np.ndarray:
    """0, 1 and 2 for 10, 10 and 80 % of the nodes, drawn by ``seed``; uint8."""
    order = stream(seed, "split").permutation(n)
    part = np.full(n, 2, np.uint8)
    part[order[:n // 5]] = 1
    part[order[:n // 10]] = 0
    return part


def _no_names(kind: str) -> None:
    return None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GraphDataset:
    """A graph with features, labels and a split of its nodes.

    Attributes
    ----------
    name : str
    adjacency : csr_array of shape (n_nodes, n_nodes), float32
        Symmetric; both directions of every edge are stored, columns ascend, no self loops.
    features : array, csr_array or :class:`~gnncy.storage.FeatureStorage` of shape (n_nodes, n_features)
    labels : ndarray of shape (n_nodes,), int64
    class_names : tuple of str
    split : Split or None
    feature_names, node_names : list of str or None
        Read from the file when asked for.
    licence : str
        Terms under which the data may be used.
    """

    name: str
    adjacency: csr_array
    features: Any
    labels: np.ndarray
    class_names: tuple[str, ...]
    split: Split | None
    licence: str
    _names: Callable[[str], list[str] | None] = field(default=_no_names)

    @property
    def n_nodes(self) -> int:
        return self.adjacency.shape[0]

    @property
    def n_edges(self) -> int:
        """Undirected edges."""
        return self.adjacency.nnz // 2

    @property
    def n_features(self) -> int:
        return self.features.shape[1]

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def feature_names(self) -> list[str] | None:
        return self._names("features")

    @property
    def node_names(self) -> list[str] | None:
        return self._names("nodes")

    def __repr__(self) -> str:
        return (f"GraphDataset({self.name}: {self.n_nodes:,} nodes, {self.n_edges:,} edges, "
                f"{self.n_features:,} features, {self.n_classes} classes)")
