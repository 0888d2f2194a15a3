"""Data sets: loading, drawing and writing graphs, reading edge lists."""
import tempfile
from pathlib import Path

import numpy as np

from gnncy import datasets


class WordNet:
    def time_load(self):
        datasets.load_wordnet()

    def peakmem_load(self):
        datasets.load_wordnet()


class Generate:
    params = (["sbm", "rmat"], [14, 17])
    param_names = ("model", "scale")

    def setup(self, model, scale):
        self.folder = tempfile.TemporaryDirectory()
        if model == "sbm":
            self.make, self.write, self.arguments = datasets.make_sbm, datasets.write_sbm, (2**scale, 8)
        else:
            self.make, self.write, self.arguments = datasets.make_rmat, datasets.write_rmat, (scale, 8)

    def teardown(self, model, scale):
        self.folder.cleanup()

    def _write(self):
        with tempfile.TemporaryDirectory(dir=self.folder.name) as folder:
            self.write(folder, *self.arguments, n_features=16, memory_limit="16MB")

    def time_make(self, model, scale):
        self.make(*self.arguments, n_features=16)

    def time_write(self, model, scale):
        self._write()

    def peakmem_write(self, model, scale):
        self._write()


class ReadEdges:
    def setup(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "edges.csv")
        edges = np.random.default_rng(0).integers(0, 10_000, (100_000, 2))
        np.savetxt(self.path, edges, fmt="%d", delimiter=",")

    def teardown(self):
        self.folder.cleanup()

    def time_read_graph(self):
        datasets.read_graph(self.path)

    def time_read_edges(self):
        datasets.read_edges(self.path)
