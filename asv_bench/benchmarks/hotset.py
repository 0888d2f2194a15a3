"""Cache policies: decisions a second, hit rates, rows looked up, and memory."""
import numpy as np

from asv_bench.peers.hotset import Batches, zipf
from gnncy.storage import AdaptiveHotset
from gnncy.storage.policies import Belady, make_policy, simulate

from . import sized


class Policies:
    """A trace replayed in batches, a cache of a quarter of the ids; each run goes on where the last one stopped."""

    params = [["frequency", "lru", "clock", "sieve", "s3fifo"], [1.0, 0.8]]
    param_names = ["policy", "zipf"]
    timeout = 120

    def setup(self, name, exponent):
        capacity = sized(1_000_000, 5_000)
        warm, self.later, trace = np.split(zipf(4 * capacity, 16 * capacity, exponent), [5 * capacity, 6 * capacity])
        self.policy = make_policy(name, capacity)
        self.policy.replay(warm)
        self.batch = Batches(self.policy, trace, sized(1 << 16, 1 << 10))

    def time_replay(self, name, exponent):
        self.batch()

    def track_hit_rate(self, name, exponent):
        return float(self.policy.replay(self.later).mean())

    track_hit_rate.unit = "share"

    def track_bytes_a_row(self, name, exponent):
        return self.policy.nbytes / self.policy.capacity

    track_bytes_a_row.unit = "bytes"


class Foreseen:
    """Belady with a window, and all policies in the simulator."""

    def setup(self):
        capacity = sized(50_000, 1_000)
        self.capacity = capacity
        self.batches = np.split(zipf(4 * capacity, 8 * capacity, 0.8), 100)

    def time_belady(self):
        belady = Belady(self.capacity)
        for ids in self.batches[:32]:
            belady.foresee(ids)
        for ids, ahead in zip(self.batches, [*self.batches[32:], *[[]] * 32], strict=True):
            belady.replay(ids)
            belady.foresee(np.asarray(ahead, np.int64))

    def time_simulate(self):
        simulate(self.batches, [self.capacity])


class Rows:
    """Rows of 512 bytes in and out."""

    params = [["frequency", "lru"]]
    param_names = ["policy"]

    def setup(self, name):
        n = sized(200_000, 5_000)
        self.rows = np.random.default_rng(0).random((n, 128), np.float32)
        self.hot = AdaptiveHotset(n, 128, policy=name)
        self.hot.insert(np.arange(n), self.rows)
        self.ids = np.random.default_rng(1).integers(0, n, n // 4)
        self.out = np.empty((n // 4, 128), np.float32)

    def time_lookup(self, name):
        self.hot.lookup(self.ids, self.out)

    def time_state_dict(self, name):
        self.hot.state_dict()

    def peakmem_resident(self, name):
        self.hot.resident()
