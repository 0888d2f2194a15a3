"""Snapshots: what saving and reading one costs, and the write that it is made of."""
import shutil
import tempfile
from pathlib import Path

import numpy as np

from gnncy import nn, optim
from gnncy.training import SnapshotFolder, pack_state, read_snapshot, unpack_state

from . import sized


class Snapshot:
    """Weights and Adam's state of a layer, so many MB in all."""

    params = [sized([1, 64], [1])]
    param_names = ["megabytes"]

    def setup(self, megabytes):
        rows = megabytes * 1_000_000 // (3 * 4 * 256)
        self.model = nn.Linear(256, rows, rng=0)
        self.adam = optim.Adam(self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = np.ones_like(parameter.data)
        self.adam.step()
        self.folder = Path(tempfile.mkdtemp())
        self.snapshots, self.number = SnapshotFolder(self.folder), 0
        self.save()

    def teardown(self, megabytes):
        shutil.rmtree(self.folder)

    def save(self):
        self.number += 1
        self.path = self.snapshots.save(self.number, *pack_state({"model": self.model.state_dict(),
                                                                  "adam": self.adam.state_dict()}))

    def time_save(self, megabytes):
        self.save()

    def time_read(self, megabytes):
        unpack_state(*read_snapshot(self.path))

    def peakmem_save(self, megabytes):
        self.save()

    def track_bytes_beside_the_arrays(self, megabytes):
        return self.path.stat().st_size - sum(3 * p.data.nbytes for p in self.model.parameters())

    track_bytes_beside_the_arrays.unit = "bytes"
