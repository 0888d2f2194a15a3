"""The field's protocols: which nodes train, validate and test the probe, and over how many runs."""
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gnncy._check import check_choice, check_int
from gnncy._random import derive, seed_from, stream
from gnncy.datasets import Split
from gnncy.evaluate.metrics import check_labels
from gnncy.evaluate.probe import METRICS, ProbeResult, linear_probe

PROTOCOLS = ("public", "random", "planetoid")


@dataclass(frozen=True)
class ProtocolResult:
    """Scores of all runs of :func:`run_protocol`; printed as mean ± standard deviation in per cent.

    Attributes
    ----------
    protocol : str
    metric : str
        By which ``C`` was chosen.
    runs : list of ProbeResult
    """

    protocol: str
    metric: str
    runs: list[ProbeResult] = field(repr=False)

    def values(self, metric: str | None = None) -> np.ndarray:
        """One score a run, 0 to 1.

        Parameters
        ----------
        metric : {"accuracy", "macro_f1", "roc_auc"}, optional
            Default: that by which ``C`` was chosen.
        """
        metric = check_choice(self.metric if metric is None else metric, "metric", METRICS)
        return np.array([getattr(run, metric) for run in self.runs])

    @property
    def mean(self) -> float:
        """Of the runs' scores by ``metric``."""
        return float(self.values().mean())

    @property
    def std(self) -> float:
        """Standard deviation of the runs' scores, that of a sample (n - 1); 0 of one run."""
        return float(self.values().std(ddof=1)) if len(self.runs) > 1 else 0.0

    def as_dict(self) -> dict:
        """The figures as plain numbers, nan left out."""
        found: dict[str, Any] = {"protocol": self.protocol, "metric": self.metric, "runs": len(self.runs)}
        for metric in METRICS:
            values = self.values(metric)
            if not np.isnan(values).any():
                spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
                found[metric] = {"mean": float(values.mean()), "std": spread}
        return found

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.std:.1f}"


def protocol_split(labels, protocol: str = "random", *, random_state=0) -> Split:
    """Training, validation and test nodes by a protocol.

    Parameters
    ----------
    labels : array_like of shape (n,), int or str
        -1 marks nodes without a label, which are in no part.
    protocol : {"random", "planetoid"}
        ``"random"``: 10, 10 and 80 % of the labelled nodes. ``"planetoid"``: 20 nodes of each class, 500 and 1000
        others, as in the public splits of Cora, CiteSeer and PubMed, but drawn at random.
    random_state : int, None or numpy Generator

    Returns
    -------
    Split

    Raises
    ------
    ValueError
        If there are too few labelled nodes.

    References
    ----------
    Z. Yang, W. Cohen, R. Salakhutdinov, "Revisiting semi-supervised learning with graph embeddings", ICML 2016.

    O. Shchur et al., "Pitfalls of graph neural network evaluation", 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.evaluate import protocol_split
    >>> [len(part) for part in protocol_split(np.arange(100) % 4)]
    [10, 10, 80]
    """
    labels = check_labels(labels)
    check_choice(protocol, "protocol", ("random", "planetoid"))
    known = np.flatnonzero(labels >= 0) if labels.dtype.kind in "iu" else np.arange(len(labels))
    order = known[stream(seed_from(random_state), "protocol", protocol).permutation(len(known))]
    if protocol == "random":
        cuts = [len(known) // 10, len(known) // 5]
        if not cuts[0]:
            raise ValueError(f"protocol='random' needs at least 10 labelled nodes, there are {len(known)}")
        return Split(*(np.sort(part) for part in np.split(order, cuts)))
    classes = np.unique(labels[order])
    chosen = [order[labels[order] == label][:20] for label in classes]
    rest = order[~np.isin(order, np.concatenate(chosen))]
    if min(map(len, chosen)) < 20 or len(rest) < 1500:
        raise ValueError(f"protocol='planetoid' needs 20 nodes of each class and 1500 others, there are "
                         f"{min(map(len, chosen))} of the rarest and {len(rest)}")
    return Split(np.sort(np.concatenate(chosen)), np.sort(rest[:500]), np.sort(rest[500:1500]))


def run_protocol(embedding, labels, split=None, *, protocol: str | None = None, runs: int = 20,
                 metric: str = "accuracy", C=(1, 10, 100, 1000), random_state=0,
                 n_jobs: int | None = None) -> ProtocolResult:
    """The linear probe over several runs, by one of the field's protocols.

    Rows are scaled to length 1, ``C`` is chosen on the validation nodes of each run; see :func:`linear_probe`.

    Parameters
    ----------
    embedding : array, sparse matrix or feature store of shape (n, d), or callable
        A function is given the run's number and gives the run's embedding, trained with a seed of its own; an array is
        probed on all splits.
    labels : array of shape (n,), int or str
        -1 marks nodes without a label.
    split : optional
        The public split, as for :func:`linear_probe`, or a list of splits, one a run.
    protocol : {"public", "random", "planetoid"}, optional
        ``"public"`` uses ``split`` in each run, the others draw one for each; see :func:`protocol_split`. Default:
        ``"public"`` where a split is given, else ``"random"``.
    runs : int
        An array on a public split is one run, whatever is asked: all would be the same.
    metric : {"accuracy", "macro_f1", "roc_auc"}
        By which ``C`` is chosen, and what ``mean`` and ``std`` are of.
    C : float or sequence of float
        As in :func:`linear_probe`.
    random_state : int, None or numpy Generator
        Draws the splits: run i gets the same one for any method.
    n_jobs : int or None
        Threads. The result does not depend on them.

    Returns
    -------
    ProtocolResult

    Raises
    ------
    ValueError
        As :func:`linear_probe`, or if a public split is asked for and none given.

    Notes
    -----
    The standard deviation is over runs, not of the mean. Claim a difference between two methods on the same splits, run
    by run, and never between figures of two protocols.

    Examples
    --------
    >>> from gnncy.datasets import make_sbm
    >>> from gnncy.evaluate import run_protocol
    >>> data = make_sbm(1000, 4, n_features=32, feature_noise=2.0)
    >>> result = run_protocol(data.features, data.labels, runs=3)
    >>> len(result.runs), result.mean > 0.7
    (3, True)
    """
    several = isinstance(split, list)
    if protocol is None:
        protocol = "random" if split is None else "public"
    check_choice(protocol, "protocol", PROTOCOLS)
    if (protocol == "public") != (split is not None):
        raise ValueError("protocol='public' needs split, and the others draw their own: leave split out")
    runs = len(split) if several else check_int(runs, "runs", 1)
    trained = callable(embedding) and not hasattr(embedding, "shape")
    if split is not None and not several and not trained:
        runs = 1
    seed = seed_from(random_state)
    make: Callable[[int], Any] = embedding if trained else lambda run: embedding
    found = []
    for run in range(runs):
        if split is None:
            part = protocol_split(labels, protocol, random_state=derive(seed, "run", run))
        else:
            part = split[run] if several else split
        found.append(linear_probe(make(run), labels, part, C=C, metric=metric, n_jobs=n_jobs))
    return ProtocolResult(protocol, metric, found)
