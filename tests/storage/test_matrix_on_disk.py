"""Matrices on disk: written by rows, and what smooths over them."""
import numpy as np
import pytest
import scipy.sparse as sp

from gnncy import graph
from gnncy._threads import working_threads
from gnncy.errors import StorageError
from gnncy.storage import GraphStorage
from gnncy.storage.passes import TILE, ColumnTiles, Diffusion, FeatureReducer, diffuse, diffuse_tiles
from gnncy.storage.passes.diffuse import memory_needed, multiply

N = 1300


@pytest.fixture(scope="module")
def matrix():
    """Rows that sum to 1: some have hundreds of entries, the first and the last hundreds none."""
    rng = np.random.default_rng(0)
    rows, columns = 1 + (rng.random(6000)**3 * 600).astype(int), rng.integers(1, 700, 6000)
    weights = rng.random(6000).astype(np.float32)
    arcs = sp.csr_array((weights, (rows, columns)), shape=(N, N))
    return graph.normalize(graph.undirected(arcs), "row", self_loops=0.0)


@pytest.fixture(params=[np.float32, np.float64])
def on_disk(matrix, request, tmp_path, monkeypatch):
    monkeypatch.setattr(diffuse, "ARCS", 500)
    monkeypatch.setattr(diffuse, "_PIECE", 64)
    kept = matrix.astype(request.param)
    blocks = (kept[start:start + 97] for start in range(0, N, 97))
    with GraphStorage.from_rows(tmp_path / "matrix", blocks, N, dtype=request.param) as found:
        yield found


def test_rows_come_back_as_they_were_written(matrix, on_disk):
    whole = on_disk.to_csr()
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(matrix, name))
    assert on_disk.dtype == whole.dtype and on_disk.symmetric is False and on_disk.verify().ok
    for loaded in False, True:
        if loaded:
            on_disk.load_indptr()
        parts = list(on_disk.iter_blocks(500))
        assert len(parts) > 10 and sum(block.n_dst for _, block in parts) == N
        for (start, block), (first, rows) in zip(parts, on_disk.iter_rows(500), strict=True):
            assert start == first and block.n_src == N and block.indptr.dtype == block.indices.dtype
            for one, other in ((block.indptr, rows.indptr), (block.indices, rows.indices), (block.weights, rows.data)):
                np.testing.assert_array_equal(one, other)


def test_a_graph_without_weights_weighs_1(matrix, tmp_path):
    with GraphStorage.from_rows(tmp_path / "g", [matrix], N) as found:
        assert not found.weighted
        assert all((block.weights == 1).all() for _, block in found.iter_blocks())


def test_rows_that_are_missing_or_too_wide(matrix, tmp_path):
    with pytest.raises(ValueError, match="rows must be 1300, one a node, got 1299"):
        GraphStorage.from_rows(tmp_path / "g", [matrix[:1299]], N)
    with pytest.raises(ValueError, match="rows must have 1300 columns"):
        GraphStorage.from_rows(tmp_path / "g", [matrix[:, :9]], N)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 3])
def test_products_are_those_in_memory(matrix, on_disk, dtype, threads):
    for width in 1, 3, 16, 17:
        x = np.random.default_rng(0).standard_normal((2, N, width)).astype(dtype)
        x.flags.writeable = False
        inside, outside = np.empty_like(x), np.full_like(x, np.nan)
        with working_threads(threads):
            multiply(matrix, x, inside)
            multiply(on_disk, x, outside)
            np.testing.assert_array_equal(outside, inside)
            multiply(on_disk, x[0], outside[1])
        np.testing.assert_array_equal(outside[1], inside[0])
        np.testing.assert_array_equal(inside[1], graph.spmm(matrix, x[1]))


@pytest.mark.parametrize("tiles", [1, 2, 9])
def test_diffusion_and_reduction_of_several_tiles_at_a_time(matrix, on_disk, tiles, tmp_path):
    x = np.random.default_rng(0).standard_normal((N, 40)).astype(np.float32)
    schedule = [Diffusion("power", 1), Diffusion("appnp", 3, alpha=0.2), Diffusion("power", 2), Diffusion("power", 5),
                Diffusion("power", 0)]
    with ColumnTiles(tmp_path, N, 40) as source:
        source.write_rows(0, x)
        found = []
        for where, together in ((matrix, 1), (on_disk, tiles)):
            results = diffuse_tiles(where, source, schedule, tmp_path, together)
            found.append([result.read_rows(0, N) for result in results])
            for result in results:
                result.close()
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(other, one)
    np.testing.assert_allclose(found[1][3], np.linalg.matrix_power(matrix.toarray(), 5) @ x, atol=1e-5)
    np.testing.assert_array_equal(found[1][4], x)
    reducers = [FeatureReducer(8, seed=0).fit(x, where, schedule[1], tmp_path, together)
                for where, together in ((matrix, 1), (on_disk, tiles))]
    np.testing.assert_array_equal(reducers[1].basis_, reducers[0].basis_)
    assert memory_needed(N, tiles=tiles) == tiles * 3 * N * TILE * 4


def test_a_damaged_matrix_is_told(on_disk):
    with open(on_disk.path / "indices.npy", "r+b") as file:
        file.seek(-8, 2)
        file.write(b"\xff" * 8)
    x = np.zeros((N, 4), np.float32)
    with pytest.raises(StorageError, match="an arc ends outside"):
        multiply(on_disk, x, np.empty_like(x))
