"""The training loop: an epoch from disk and from memory, contrastive training on a graph, what a snapshot costs."""
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from gnncy import losses, nn, optim
from gnncy._threads import working_threads
from gnncy.datasets import make_rmat
from gnncy.storage import ArrayStorage, FeatureStorage, HyperbatchIterator
from gnncy.training import GraphLoader, Objective, SnapshotFolder, Trainer

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


class Sage(nn.Module):
    def __init__(self, *dims):
        self.convolutions = [nn.SAGEConv(a, b, rng=i) for i, (a, b) in enumerate(pairwise(dims))]

    def forward(self, blocks, x):
        for convolution, block in zip(self.convolutions, blocks, strict=True):
            x = convolution(block, x)
        return x


class Fit:
    """An epoch of ``Trainer.fit`` on a skewed graph, and of its loader alone, with and without neighbourhoods."""

    params = [["rows", "blocks"], ["in-batch", "mined", "three losses"]]
    param_names = ["encoder", "objective"]

    def setup(self, encoder, objective):
        data = make_rmat(sized(14, 11), sized(16, 8), n_features=WIDTH, seed=0)
        mined = {"negatives": losses.HardNegativeMiner("mixed", 16), "candidates": BATCH}
        self.loader = GraphLoader(data.adjacency, data.features, batch_size=BATCH, seed=0,
                                  fanouts=(10, 5) if encoder == "blocks" else None,
                                  **(mined if objective == "mined" else {}))
        self.model = Sage(WIDTH, 128, 64) if encoder == "blocks" else nn.MLP([WIDTH, 128, 64], rng=0)
        several = {"infonce": losses.InfoNCELoss(symmetric=True), "spectral": losses.SpectralRegularization(),
                   "local": losses.LocalContrastiveLoss(negatives=1)}
        self.objective = Objective(several) if objective == "three losses" else Objective()

    def fit(self):
        trainer = Trainer(self.model, optim.Adam(self.model.parameters(), lr=1e-3), seed=0, max_epochs=1)
        return trainer.fit(self.loader, self.objective)[0]

    def time_epoch(self, encoder, objective):
        self.fit()

    def time_loader(self, encoder, objective):
        for _ in self.loader.batches(epoch=0):
            pass

    def track_update_share(self, encoder, objective):
        record = self.fit()
        return record["update_seconds"] / record["seconds"]


class Overhead:
    """What the loop itself costs a step: an empty step on a tiny model, in microseconds."""

    unit = "us"

    def track_overhead_of_a_step(self):
        model, steps = nn.Linear(1, 1, rng=0), sized(5_000, 500)

        class Batches(list):
            statistics = SimpleNamespace(bytes_read=0, hit_rate=0.0, wait_seconds=0.0)

            def close(self):
                pass

        optimizer = optim.SGD(model.parameters(), lr=0.0)
        began = time.perf_counter()
        Trainer(model, optimizer, seed=0, max_epochs=1).run(
            lambda epoch, first: Batches(range(steps)), lambda batch, key: (0.0, 1), steps)
        whole = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            optimizer.step()
        return 1e6 * (whole - (time.perf_counter() - began)) / steps


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
