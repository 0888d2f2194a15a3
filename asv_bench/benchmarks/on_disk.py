"""Smoothing over arcs on disk, beside the same in memory: a product, and GraphEncoder."""
import shutil
import tempfile
from pathlib import Path

import numpy as np

from gnncy import GraphEncoder
from gnncy._threads import working_threads
from gnncy.datasets import open_graph, write_rmat
from gnncy.graph import normalize
from gnncy.storage import GraphStorage
from gnncy.storage.passes.diffuse import multiply

from . import sized


class OnDisk:
    """An R-MAT graph of many arcs a node; ``direct`` reads past the page cache."""

    params = [["memory", "cached", "direct"]]
    param_names = ["arcs"]
    timeout = 300

    def setup(self, arcs):
        self.folder = Path(tempfile.mkdtemp())
        write_rmat(self.folder / "graph", sized(17, 11), sized(64, 16), n_features=32)
        self.data = open_graph(self.folder / "graph")

    def teardown(self, arcs):
        self.data.features.close()
        shutil.rmtree(self.folder)


class Product(OnDisk):
    """16 columns through a matrix, on two threads."""

    def setup(self, arcs):
        super().setup(arcs)
        matrix = normalize(self.data.adjacency, "row")
        self.x = np.random.default_rng(0).standard_normal((matrix.shape[0], 16)).astype(np.float32)
        self.out = np.empty_like(self.x)
        self.matrix = matrix
        if arcs != "memory":
            GraphStorage.create(self.folder / "matrix", matrix).close()
            self.matrix = GraphStorage(self.folder / "matrix", direct=arcs == "direct")
            self.matrix.load_indptr()

    def teardown(self, arcs):
        if arcs != "memory":
            self.matrix.close()
        super().teardown(arcs)

    def time_product(self, arcs):
        with working_threads(2):
            multiply(self.matrix, self.x, self.out)


class Encode(OnDisk):
    """A fit, by the least memory that does."""

    def fit(self, arcs):
        encoder = GraphEncoder(32, max_epochs=1, random_state=0, n_jobs=2, batch_size=256)
        with GraphStorage(self.folder / "graph", direct=arcs == "direct") as graph:
            x = graph.to_csr() if arcs == "memory" else graph
            encoder.set_params(memory_limit=encoder.estimate(x, features=self.data.features).needed)
            return encoder.fit(x, features=self.data.features)

    def time_fit(self, arcs):
        self.fit(arcs)

    def peakmem_fit(self, arcs):
        self.fit(arcs)

    def track_needed(self, arcs):
        return self.fit(arcs).plan_.needed

    track_needed.unit = "bytes"
