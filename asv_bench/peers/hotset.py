"""Cache policies over a million slots: decisions a second, beside an ordered dict and a scan for the least count.

Rates are of accesses, each a lookup and on a miss an offer too; where they are called lookups and offers, of both.
"""
import time
from collections import OrderedDict

import numpy as np

from asv_bench.peers import Case, comparison

ASKED = 10.0  # million operations a second


def zipf(n, size, exponent, seed=0):
    """Accesses of ids 0 .. n-1 with odds by a power of their rank, ids and ranks unrelated."""
    rng = np.random.default_rng(seed)
    uniform, rest = rng.random(size), 1 - exponent
    ranks = (n + 1.0) ** uniform if rest == 0 else (1 + ((n + 1.0) ** rest - 1) * uniform) ** (1 / rest)
    return rng.permutation(n)[np.minimum(ranks.astype(np.int64) - 1, n - 1)]


class OrderedDictLRU:
    """The usual way to write a cache in Python."""

    def __init__(self, capacity):
        self.capacity, self.ids = capacity, OrderedDict()

    def replay(self, ids):
        cached, hits = self.ids, 0
        for node in ids.tolist():
            if node in cached:
                cached.move_to_end(node)
                hits += 1
            else:
                if len(cached) == self.capacity:
                    cached.popitem(last=False)
                cached[node] = None
        return hits


class ScannedCounts:
    """Counts by id, and a scan of all that are cached for each eviction: the reference's way, with numpy's argmin."""

    def __init__(self, n, capacity):
        self.count, self.cached, self.capacity = np.zeros(n), np.full(capacity, -1), capacity
        self.slot, self.n = np.full(n, -1), 0

    def replay(self, ids):
        hits = 0
        for node in ids.tolist():
            self.count[node] += 1
            if self.slot[node] >= 0:
                hits += 1
                continue
            if self.n < self.capacity:
                slot, self.n = self.n, self.n + 1
            else:
                slot = int(self.count[self.cached].argmin())
                if self.count[node] < self.count[self.cached[slot]]:
                    continue
                self.slot[self.cached[slot]] = -1
            self.cached[slot], self.slot[node] = node, slot
        return hits


class Batches:
    """Goes on through a trace, so many accesses a call. Keep it long: the second time round it is not new."""

    def __init__(self, policy, trace, size, decay=None):
        self.policy, self.trace, self.size, self.decay, self.at = policy, trace, size, decay, 0

    def __call__(self):
        ids = self.trace[self.at:self.at + self.size]
        self.at = (self.at + self.size) % len(self.trace)
        result = self.policy.replay(ids)
        if self.decay is not None:
            self.policy.decay(self.decay)
        return result


class Pace:
    """A call that takes so many seconds: the rate that is asked for, as a peer."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self):
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass


@comparison
def hotset(quick, stack):
    from gnncy.storage import AdaptiveHotset
    from gnncy.storage.policies import make_policy
    capacity, size = (10_000, 1 << 14) if quick else (1_000_000, 1 << 16)
    n = 4 * capacity
    for exponent in (1.0, 0.8):
        warm, probe, trace = np.split(zipf(n, 16 * capacity, exponent), [6 * capacity, 8 * capacity])
        ordered, scanned = OrderedDictLRU(capacity), ScannedCounts(n, capacity)
        ordered.replay(warm)
        # Its warm-up by scans would take hours: the hottest of the warm-up, with their counts, stand in.
        scanned.count[:] = np.bincount(warm, minlength=n)
        scanned.cached[:] = np.argsort(-scanned.count, kind="stable")[:capacity]
        scanned.slot[scanned.cached], scanned.n = np.arange(capacity), capacity
        for name in ("frequency", "lru", "clock", "sieve", "s3fifo"):
            policy = make_policy(name, capacity)
            policy.replay(warm)
            rate = float(np.mean(policy.replay(probe)))
            setting = f"{name}, {capacity:,} slots, accesses Zipf {exponent:g} over {n:,} ids, {rate:.0%} hits"
            ours = Batches(policy, trace, size, 0.999 if name == "frequency" else None)
            unit = {"unit": "Mops/s", "amount": size / 1e6}
            if name == "frequency":
                done = size * (2 - rate)
                yield Case(f"{setting}; lookups and offers", ours, "limit: 10 Mops/s asked",
                           Pace(done / (ASKED * 1e6)), asked=1.0, unit="Mops/s", amount=done / 1e6)
                yield Case(f"{setting}, 64 at a time", Batches(policy, trace, 64), "numpy, a scan an eviction",
                           Batches(scanned, trace, 64), unit="Mops/s", amount=64 / 1e6)
            yield Case(setting, ours, "OrderedDict LRU", Batches(ordered, trace, size), **unit)
    rows = np.random.default_rng(0).random((capacity, 128), np.float32)
    hot, ids = AdaptiveHotset(capacity, 128), np.random.default_rng(1).integers(0, capacity, size)
    hot.insert(np.arange(capacity), rows)
    out, other = np.empty((2, size, 128), np.float32)
    yield Case(f"{size:,} rows of 512 bytes looked up, all cached, of {capacity:,}", lambda: hot.lookup(ids, out),
               "limit: np.take of the rows", lambda: np.take(rows, ids, 0, out=other, mode="clip"), unit="MB/s",
               amount=out.nbytes / 1e6, same=lambda *_: np.testing.assert_array_equal(out, other))
