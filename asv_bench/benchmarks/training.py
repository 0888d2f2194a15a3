"""The training loop: an epoch from disk and from memory, and what a snapshot costs."""
import shutil
import tempfile
from pathlib import Path

import numpy as np

from gnncy import losses, nn, optim
from gnncy._threads import working_threads
from gnncy.storage import ArrayStorage, FeatureStorage, HyperbatchIterator
from gnncy.training import SnapshotFolder, Trainer

from . import sized

ROWS, WIDTH, BATCH = sized(50_000, 4_000), 128, 1_000


class Epoch:
    """An epoch of InfoNCE on two dropped-out views of each row."""

    params = [["disk", "memory"], [True, False], [1, 2]]
    param_names = ["features", "prefetch", "threads"]

    def setup(self, features, prefetch, threads):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((ROWS, WIDTH), dtype=np.float32)
        self.folder = Path(tempfile.mkdtemp())
        self.store = (FeatureStorage.from_array(x, self.folder / "features.npy") if features == "disk"
                      else ArrayStorage(x))
        self.minibatches = rng.permutation(ROWS).reshape(-1, BATCH)
        self.model = nn.MLP([WIDTH, 256, 64], "elu", rng=0)
        nn.flatten_parameters(self.model)
        self.prefetch = prefetch

    def teardown(self, features, prefetch, threads):
        self.store.close()
        shutil.rmtree(self.folder)

    def batches(self, epoch, first):
        return HyperbatchIterator(self.store, self.minibatches[first:], buffer_bytes="4MB", prefetch=self.prefetch)

    def step(self, batch, key):
        views = [self.model(nn.dropout(nn.Tensor(batch.features), 0.3, key=key + i)) for i in range(2)]
        loss = losses.info_nce(*views)
        loss.backward()
        return loss.item(), len(batch.features)

    def epoch(self, threads, epochs=1):
        trainer = Trainer(self.model, optim.Adam(self.model.parameters(), lr=1e-3), seed=0, max_epochs=epochs)
        with working_threads(threads):
            return trainer.run(self.batches, self.step, len(self.minibatches))

    def time_epoch(self, features, prefetch, threads):
        self.epoch(threads)

    def peakmem_epoch(self, features, prefetch, threads):
        self.epoch(threads)

    def track_loss_after_two_epochs(self, features, prefetch, threads):
        return self.epoch(threads, 2)[-1]["loss"]


class Snapshot:
    """Writing a snapshot of a model and its optimizer, synced, and reading it."""

    def setup(self):
        self.folder = tempfile.mkdtemp()
        rng = np.random.default_rng(0)
        self.arrays = {f"array {i}": rng.random(sized(1_000_000, 100_000), dtype=np.float32) for i in range(3)}
        self.snapshots = SnapshotFolder(self.folder)
        self.snapshots.save(0, self.arrays, {})

    def teardown(self):
        shutil.rmtree(self.folder)

    def time_save(self):
        self.snapshots.save(1, self.arrays, {})

    def time_load(self):
        self.snapshots.load_latest()
