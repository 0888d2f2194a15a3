"""Features on disk: gathers beside numpy's own indexing, the row cache, minibatches read ahead."""
import os
import shutil
import tempfile

import numpy as np
import scipy.sparse as sp

from gnncy.storage import AdaptiveHotset, ArrayStorage, FeatureStorage, HyperbatchIterator, SparseFeatureStorage

from . import sized


class OnDisk:
    """A folder of its own for each benchmark."""

    def make(self):
        self.folder = tempfile.mkdtemp()
        return os.path.join(self.folder, "features.npy")

    def teardown(self, *args):
        self.store.close()
        shutil.rmtree(self.folder)


class Gather(OnDisk):
    """Rows by id from a file in the page cache, beside the same from an array in memory."""

    params = [[0.01, 0.2, 0.5, 1.0], ["sorted", "shuffled"], [32, 128, 1024]]
    param_names = ["share", "ids", "dim"]

    def setup(self, share, ids, dim):
        rng = np.random.default_rng(0)
        n = 4_000_000 // dim
        self.x = rng.random((n, dim), dtype=np.float32)
        self.ids = rng.choice(n, int(n * share), replace=False)
        if ids == "sorted":
            self.ids.sort()
        self.out = np.empty((len(self.ids), dim), np.float32)
        self.store = FeatureStorage.from_array(self.x, self.make())
        self.store.read_batch(self.ids, self.out)

    def time_storage(self, share, ids, dim):
        self.store.read_batch(self.ids, self.out)

    def time_numpy(self, share, ids, dim):
        self.x[self.ids]

    def track_amplification(self, share, ids, dim):
        before = self.store.stats.snapshot()
        self.store.read_batch(self.ids, self.out)
        spent = self.store.stats - before
        return spent.bytes_read / spent.bytes_requested


class Direct(OnDisk):
    """Past the page cache: random rows, and a pass in blocks."""

    params = [[True, False]]
    param_names = ["direct"]

    def setup(self, direct):
        n = sized(400_000, 20_000)
        rng = np.random.default_rng(0)
        FeatureStorage.from_array(rng.random((n, 128), dtype=np.float32), self.make()).close()
        self.store = FeatureStorage(os.path.join(self.folder, "features.npy"), direct=direct)
        self.ids = rng.choice(n, n // 100, replace=False)

    def time_gather(self, direct):
        self.store.read_batch(self.ids)

    def time_pass(self, direct):
        for _ in self.store.iter_rows(32_768, read_ahead=1, reuse=True):
            pass

    def peakmem_pass(self, direct):
        for _ in self.store.iter_rows(32_768, read_ahead=1, reuse=True):
            pass

    def track_operations_of_a_gather(self, direct):
        before = self.store.stats.snapshot()
        self.store.read_batch(self.ids)
        return (self.store.stats - before).operations


class Streaming(OnDisk):
    """Writing a file and reading all of it in blocks."""

    params = [["float16", "float32"]]
    param_names = ["dtype"]

    def setup(self, dtype):
        self.x = np.random.default_rng(0).random((40_000, 128), dtype=np.float32)
        self.path = self.make()
        self.store = FeatureStorage.from_array(self.x, self.path, dtype=dtype)

    def time_from_array(self, dtype):
        FeatureStorage.from_array(self.x, self.path + "2", dtype=dtype, overwrite=True).close()

    def time_iter_rows(self, dtype):
        for _ in self.store.iter_rows():
            pass

    def peakmem_iter_rows(self, dtype):
        for _ in self.store.iter_rows(1024):
            pass


class Sparse(OnDisk):
    """Sparse rows by id, beside scipy's own indexing."""

    params = [["storage", "scipy"]]
    param_names = ["reader"]

    def setup(self, reader):
        rng = np.random.default_rng(0)
        entries = rng.integers(0, 50_000, 500_000), rng.integers(0, 5_000, 500_000)
        self.x = sp.csr_array((np.ones(500_000, np.float32), entries), shape=(50_000, 5_000))
        self.ids = rng.integers(0, 50_000, 10_000)
        self.store = SparseFeatureStorage.from_csr(self.x, self.make())

    def time_read(self, reader):
        if reader == "scipy":
            self.x[self.ids]
        else:
            self.store.read_batch(self.ids)


class Hotset:
    """A million accesses of a cache of 20,000 rows, ten thousand at a time."""

    params = [["zipf", "uniform"]]
    param_names = ["accesses"]

    def setup(self, accesses):
        rng = np.random.default_rng(0)
        ids = rng.zipf(1.2, 1_000_000) % 500_000 if accesses == "zipf" else rng.integers(0, 500_000, 1_000_000)
        self.batches = np.split(ids, 100)
        self.rows = np.zeros((10_000, 16), np.float32)

    def run(self):
        hotset = AdaptiveHotset(20_000, 16)
        for ids in self.batches:
            hit = hotset.lookup(ids, self.rows)
            hotset.insert(ids[~hit], self.rows[~hit])
            hotset.decay_counts()
        return hotset

    def time_lookup_and_insert(self, accesses):
        self.run()

    def track_hit_rate(self, accesses):
        return self.run().hit_rate


class Hyperbatch(OnDisk):
    """An epoch of minibatches with repeated rows, from disk and from memory."""

    params = [["disk", "memory"], [True, False], [0, 2000]]
    param_names = ["features", "prefetch", "hotset"]

    def setup(self, features, prefetch, hotset):
        rng = np.random.default_rng(0)
        x = rng.random((40_000, 128), dtype=np.float32)
        self.batches = [np.unique(rng.zipf(1.1, 4_000) % 40_000) for _ in range(40)]
        self.store = FeatureStorage.from_array(x, self.make())
        self.loader = HyperbatchIterator(self.store if features == "disk" else ArrayStorage(x), self.batches,
                                         buffer_bytes="16MB", prefetch=prefetch,
                                         hotset=AdaptiveHotset(hotset, 128) if hotset else None)

    def epoch(self):
        for _ in self.loader:
            pass

    def time_epoch(self, features, prefetch, hotset):
        self.epoch()

    def peakmem_epoch(self, features, prefetch, hotset):
        self.epoch()

    def track_bytes_read(self, features, prefetch, hotset):
        self.epoch()
        return self.loader.statistics.bytes_read
