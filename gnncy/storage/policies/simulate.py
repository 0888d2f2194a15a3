"""What each policy would have hit: the miss-ratio curves of a trace."""
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gnncy._check import check_array, check_choice, check_float, check_int
from gnncy.storage.policies.policy import MOST_ROWS, Belady, Policy, make_policy
from gnncy.storage.policies.trace import Trace, hottest

POLICIES = ("oracle", "frequency", "lru", "clock", "sieve", "s3fifo", "belady")


def simulate(trace, capacities: Iterable[int], policies: Sequence[str] = POLICIES, *,
             scores: Mapping[str, np.ndarray] | None = None, windows: Sequence[int | None] = (256, None),
             decay: float = 0.95, decay_every: int = 32) -> list[dict]:
    """Hits and misses of policies on a trace, at several capacities.

    ``"oracle"`` and ``scores`` are static sets and loaded beforehand; the others begin empty, so their first
    access of every id is a miss.

    Parameters
    ----------
    trace : Trace, or iterable of arrays of int
        Minibatches; :meth:`Trace.sample` draws those of a graph and a sampler.
    capacities : iterable of int
        Rows.
    policies : sequence of str
        Of ``"oracle"`` (the static set that is best for this trace), ``"frequency"``, ``"lru"``, ``"clock"``,
        ``"sieve"``, ``"s3fifo"`` and ``"belady"``.
    scores : mapping of name to array of shape (n,), optional
        For each a static policy of the ids with the greatest scores.
    windows : sequence of int or None
        Of ``"belady"``: one line for each, with so many minibatches known ahead, the present one included; None knows
        all.
    decay : float
        Factor of the counts of ``"frequency"``.
    decay_every : int
        Minibatches from one decay to the next.

    Returns
    -------
    list of dict
        One for each policy and capacity, with the keys ``policy``, ``capacity``, ``hits``, ``misses``, ``hit_rate`` and
        ``miss_ratio``; :func:`gnncy.plot.miss_ratio` draws it.

    Examples
    --------
    >>> from gnncy.storage.policies import simulate
    >>> for row in simulate([[1, 2, 3], [1, 2, 4], [1, 2, 5]], [2], ["oracle", "lru", "belady"], windows=[None]):
    ...     print(row["policy"], row["hits"], row["misses"])
    oracle 6 3
    lru 0 9
    belady 4 5
    """
    if not isinstance(trace, Trace):
        trace = Trace.of(trace)
    if not len(trace.ids):
        raise ValueError("trace is empty: there is nothing to simulate")
    capacities = [check_int(capacity, "capacities", 0, MOST_ROWS) for capacity in capacities]
    known = [None if window is None else check_int(window, "windows", 1) for window in windows]
    for name in policies:
        check_choice(name, "policies", POLICIES)
    check_float(decay, "decay", 1e-6, 1.0)
    decay_every = check_int(decay_every, "decay_every", 1)
    n = int(trace.ids.max()) + 1
    static = {}
    for name, values in (scores or {}).items():
        static[name] = hottest(values, max(capacities, default=0))
        if len(check_array(values, f"scores[{name!r}]", ndim=1)) < n:
            raise ValueError(f"scores[{name!r}] must have an entry for each of the {n} ids, got {len(values)}")
    if "oracle" in policies:
        static["oracle"] = hottest(trace.counts(n), max(capacities, default=0))
    table = []

    def line(name, capacity, hits):
        total = len(trace.ids)
        table.append({"policy": name, "capacity": capacity, "hits": int(hits), "misses": total - int(hits),
                      "hit_rate": int(hits) / total, "miss_ratio": 1 - int(hits) / total})

    for name, ids in static.items():
        rank = np.full(max(n, int(ids.max(initial=0)) + 1), len(ids))
        rank[ids] = np.arange(len(ids))
        below = np.concatenate([[0], np.cumsum(np.bincount(rank[trace.ids], minlength=len(ids) + 1))])
        for capacity in capacities:
            line(name, capacity, below[min(capacity, len(ids))])
    for name in policies:
        for capacity in capacities:
            if name == "belady":
                for window in known:
                    label = name if window is None else f"{name} {window}"
                    line(label, capacity, _foreseeing(trace, capacity, window))
            elif name != "oracle":
                line(name, capacity, _hits(trace, make_policy(name, capacity), decay, decay_every))
    return table


def _hits(trace: Trace, policy: Policy, decay: float, decay_every: int) -> int:
    hits = 0
    for first in range(0, len(trace), decay_every):
        last = min(first + decay_every, len(trace))
        hits += int(policy.replay(trace.ids[trace.starts[first]:trace.starts[last]]).sum())
        policy.decay(decay)
    return hits


def _foreseeing(trace: Trace, capacity: int, window: int | None) -> int:
    policy, hits = Belady(capacity), 0
    window = len(trace) if window is None else min(window, len(trace))
    policy.foresee(trace.ids[:trace.starts[window]])
    for k in range(len(trace)):
        hits += int(policy.replay(trace.minibatch(k)).sum())
        if k + window < len(trace):
            policy.foresee(trace.minibatch(k + window))
    return hits
