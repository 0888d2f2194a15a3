"""Passes over all nodes, out of core: column tiles, diffusion, reduction."""
import shutil
import tempfile

import numpy as np
from scipy.sparse import coo_array

from gnncy.datasets import make_sbm
from gnncy.evaluate import linear_probe
from gnncy.graph import normalize
from gnncy.storage.passes import ColumnTiles, Diffusion, FeatureReducer, diffuse_tiles, reduced_tiles

from . import sized

NODES = sized(100_000, 5_000)


class Scratch:
    """A folder of its own for each benchmark."""

    def setup(self, *parameters):
        self.folder = tempfile.mkdtemp()

    def teardown(self, *parameters):
        shutil.rmtree(self.folder)


class Tiles(Scratch):
    """A matrix in by rows and out by tiles, beside a transposing copy in memory."""

    params = [[64, 256]]
    param_names = ["width"]

    def setup(self, width):
        super().setup()
        self.x = np.random.default_rng(0).random((NODES, width), dtype=np.float32)
        self.tile = np.empty((NODES, 16), np.float32)

    def round_trip(self, width):
        with ColumnTiles(self.folder, NODES, width) as tiles:
            for start in range(0, NODES, 4096):
                tiles.write_rows(start, self.x[start:start + 4096])
            for tile in range(tiles.n_tiles):
                tiles.read_tile(tile, self.tile)

    def time_round_trip(self, width):
        self.round_trip(width)

    def peakmem_round_trip(self, width):
        self.round_trip(width)

    def time_transpose(self, width):
        np.ascontiguousarray(self.x.T)


class Propagate(Scratch):
    params = [["power", "appnp"], [32, 128]]
    param_names = ["diffusion", "width"]

    def setup(self, diffusion, width):
        super().setup()
        data = make_sbm(NODES, 8, n_features=width)
        self.matrix = normalize(data.adjacency)
        self.diffusion = {"power": Diffusion("power", 2), "appnp": Diffusion("appnp", 8, alpha=0.15)}[diffusion]
        self.source = reduced_tiles(data.features, None, self.folder)

    def teardown(self, diffusion, width):
        self.source.close()
        super().teardown()

    def propagate(self):
        [result] = diffuse_tiles(self.matrix, self.source, [self.diffusion], self.folder)
        result.close()

    def time_propagate(self, diffusion, width):
        self.propagate()

    def peakmem_propagate(self, diffusion, width):
        self.propagate()


class Reduce(Scratch):
    """A bag of words to 64 columns, and what a linear probe still finds in them."""

    params = [["svd", "hash"], [False, True]]
    param_names = ["method", "diffused"]

    def setup(self, method, diffused):
        super().setup()
        self.data = make_sbm(NODES, 8, n_features=1)
        rng = np.random.default_rng(0)
        words = sized(5_000, 1_000)
        topic = rng.integers(0, words, (8, words // 10))  # each class has words of its own, used now and then
        common, own = rng.integers(0, words, (NODES, 15)), rng.integers(0, words // 10, (NODES, 5))
        chosen = np.hstack([common, topic[self.data.labels[:, None], own]])
        counts = coo_array((np.ones(chosen.size, np.float32), (np.repeat(np.arange(NODES), 20), chosen.ravel())),
                           shape=(NODES, words))
        self.words = counts.tocsr()
        self.diffusion = normalize(self.data.adjacency), Diffusion("appnp", 8, alpha=0.15), self.folder
        if not diffused:
            self.diffusion = ()

    def fit(self, method):
        return FeatureReducer(64, method, seed=0).fit(self.words, *self.diffusion)

    def time_fit(self, method, diffused):
        self.fit(method)

    def peakmem_fit(self, method, diffused):
        self.fit(method)

    def track_accuracy(self, method, diffused):
        columns = self.fit(method).transform(self.words)
        return linear_probe(columns, self.data.labels, self.data.split).accuracy
