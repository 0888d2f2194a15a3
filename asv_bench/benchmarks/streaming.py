"""Smoothing from disk to disk, layer-wise inference, and rows of few bytes."""
import shutil
import tempfile
from pathlib import Path

import numpy as np

from asv_bench.peers.streaming import make_graph
from gnncy import nn
from gnncy.storage import FeatureStorage, QuantizedFeatureStorage
from gnncy.storage.passes import propagate, sign_features
from gnncy.storage.passes.stream import OVERHEAD

from . import sized

NODES = sized(100_000, 5_000)
WIDTH = 128


class Scratch:
    """A folder with features in it, for each benchmark."""

    def setup(self, *parameters):
        self.folder = Path(tempfile.mkdtemp())
        self.x = np.random.default_rng(0).standard_normal((NODES, WIDTH), dtype=np.float32)
        self.store = FeatureStorage.from_array(self.x, self.folder / "x.npy")

    def teardown(self, *parameters):
        self.store.close()
        shutil.rmtree(self.folder)


class Smoothing(Scratch):
    """A²X and its hops, with memory for a quarter of the features beside what a pass always takes."""

    params = [["columns", "windows"]]
    param_names = ["method"]

    def setup(self, method):
        super().setup()
        self.graph = make_graph(NODES)
        self.options = {"memory_limit": OVERHEAD + 12 * self.graph.nnz + NODES * WIDTH * 2 + 8_000_000,
                        "out": self.folder / "y.npy", "method": method, "overwrite": True}

    def time_propagate(self, method):
        propagate(self.graph, self.store, 2, **self.options).close()

    def peakmem_propagate(self, method):
        propagate(self.graph, self.store, 2, **self.options).close()

    def time_sign_features(self, method):
        sign_features(self.graph, self.store, 2, **self.options).close()


class Inference(Scratch):
    params = [["sage", "gat"]]
    param_names = ["layer"]

    def setup(self, layer):
        super().setup()
        self.graph = make_graph(NODES)
        kind = nn.SAGEConv if layer == "sage" else nn.GATConv
        self.model = nn.GraphSequential(kind(WIDTH, 64, rng=0), nn.ReLU(), kind(64, 32, rng=1))

    def time_infer(self, layer):
        nn.infer(self.model, self.graph, self.store, out=self.folder / "z.npy", memory_limit="256MB",
                 overwrite=True).close()

    def peakmem_infer(self, layer):
        self.time_infer(layer)


class Formats(Scratch):
    """Rows gathered from each format, and the bytes of its file."""

    params = [["float32", "float16", "int8"]]
    param_names = ["format"]

    def setup(self, format):
        super().setup()
        path = self.folder / "narrow.npy"
        self.narrow = (QuantizedFeatureStorage.from_array(self.x, path) if format == "int8"
                       else FeatureStorage.from_array(self.x, path, dtype=format))
        self.ids = np.random.default_rng(1).integers(0, NODES, NODES // 2)
        self.out = np.empty((len(self.ids), WIDTH), np.float32)

    def teardown(self, format):
        self.narrow.close()
        super().teardown()

    def time_read_batch(self, format):
        self.narrow.read_batch(self.ids, self.out)

    def time_read_rows(self, format):
        for _ in self.narrow.iter_rows(8192):
            pass

    def track_bytes(self, format):
        return self.narrow.nbytes

    track_bytes.unit = "bytes"
