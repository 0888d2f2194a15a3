import numpy as np
import pytest
import scipy.sparse as sp

from gnncy._threads import working_threads
from gnncy.errors import StorageError
from gnncy.graph import normalize
from gnncy.storage import FeatureStorage, SparseFeatureStorage
from gnncy.storage.passes import TILE, ColumnTiles, Diffusion, FeatureReducer, diffuse_tiles, reduced_tiles, unit_rows


@pytest.fixture
def graph():
    rng = np.random.default_rng(0)
    a = sp.random_array((300, 300), density=0.03, random_state=rng, dtype=np.float32, format="csr")
    return normalize(a + a.T, "sym", self_loops=1.0)


@pytest.fixture
def words():
    x = sp.random_array((300, 90), density=0.08, random_state=np.random.default_rng(1), dtype=np.float32, format="csr")
    x.data[:] = np.random.default_rng(2).integers(1, 4, x.nnz)
    return x


@pytest.mark.parametrize("d", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiles_give_back_rows_and_columns(tmp_path, d, dtype):
    x = np.random.default_rng(0).standard_normal((53, d)).astype(dtype)
    with ColumnTiles(tmp_path, 53, d, dtype) as tiles:
        for start in range(0, 53, 10):
            tiles.write_rows(start, x[start:start + 10])
        assert np.array_equal(tiles.read_rows(0, 53), x)
        assert np.array_equal(tiles.read_rows(7, 9), x[7:9])
        buffer = np.empty((53, TILE), dtype)
        for tile in range(tiles.n_tiles):
            part = x[:, tile * TILE:(tile + 1) * TILE]
            tiles.read_tile(tile, buffer)
            assert np.array_equal(buffer[:, :part.shape[1]], part)
            assert not buffer[:, part.shape[1]:].any()
            tiles.write_tile(tile, 2 * buffer)
        assert np.array_equal(np.concatenate([rows.copy() for _, rows in tiles.iter_rows(20)]), 2 * x)
    assert list(tmp_path.iterdir()) == []


def test_tiles_on_a_full_disk_say_so(tmp_path, monkeypatch):
    def full(fd, offset, size):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match="cannot reserve .* scratch space .*No space left"):
        ColumnTiles(tmp_path, 10, 10)
    assert list(tmp_path.iterdir()) == []


def test_propagation_is_the_formula(tmp_path, graph):
    x = np.random.default_rng(3).standard_normal((300, 21)).astype(np.float32)
    schedule = [Diffusion("appnp", 3, alpha=0.2), Diffusion("power", 0), Diffusion("power", 1), Diffusion("power", 4),
                Diffusion("power", 2)]
    with ColumnTiles(tmp_path, *x.shape) as source:
        source.write_rows(0, x)
        results = [tiles.read_rows(0, 300) for tiles in diffuse_tiles(graph, source, schedule, tmp_path)]
    z = x.astype(np.float64)
    for _ in range(3):
        z = 0.8 * (graph @ z) + 0.2 * x
    expected = [z, x, graph @ x, graph @ (graph @ (graph @ (graph @ x))), graph @ (graph @ x)]
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [("walk", 1, 0.0), ("power", -1, 0.0), ("appnp", 2, 1.5)])
def test_diffusion_refuses_what_it_cannot_do(bad):
    with pytest.raises(ValueError, match="kind|steps|alpha"):
        Diffusion(*bad)


def test_the_basis_is_that_of_a_full_decomposition(words):
    reducer = FeatureReducer(6, seed=0, n_iter=25).fit(words)
    idf = np.log(301 / (1 + np.bincount(words.indices, minlength=90)))
    dense = words.toarray() * idf
    norm = np.linalg.norm(dense, axis=1, keepdims=True)
    dense = np.divide(dense, norm, out=np.zeros_like(dense), where=norm > 0)
    _, s, vt = np.linalg.svd(dense, full_matrices=False)
    np.testing.assert_allclose(reducer.singular_values_, s[:6], rtol=1e-3)
    overlap = np.linalg.svd(vt[:6] @ reducer.basis_)[1]
    assert overlap.min() > 0.99
    np.testing.assert_allclose(reducer.transform(words[5:9]), dense[5:9] @ reducer.basis_, atol=1e-5)


def test_the_basis_of_diffused_features(words, graph, tmp_path):
    diffusion = Diffusion("appnp", 4, alpha=0.2)
    reducer = FeatureReducer(5, seed=0, n_iter=25).fit(words, graph, diffusion, tmp_path)
    plain = FeatureReducer(5, seed=0).fit(words)
    assert plain.column_weight_ is not None
    weighted = words.toarray() * plain.column_weight_
    norm = np.linalg.norm(weighted, axis=1, keepdims=True)
    x = np.divide(weighted, norm, out=np.zeros_like(weighted), where=norm > 0)
    smooth = x
    for _ in range(4):
        smooth = 0.8 * (graph @ smooth) + 0.2 * x
    s = np.linalg.svd(smooth, compute_uv=False)
    np.testing.assert_allclose(reducer.singular_values_, s[:5], rtol=1e-3)


@pytest.mark.parametrize("method", ["svd", "hash"])
def test_the_same_bits_from_memory_and_disk_on_any_number_of_threads(words, graph, tmp_path, method):
    on_disk = SparseFeatureStorage.from_csr(words, tmp_path / "words")
    results = []
    for features, threads in ((words, 1), (words, 2), (on_disk, 2)):
        with working_threads(threads):
            reducer = FeatureReducer(8, method, seed=3).fit(features, graph, Diffusion("appnp", 3, alpha=0.1), tmp_path)
            with reduced_tiles(features, reducer, tmp_path) as tiles:
                results.append(tiles.read_rows(0, 300))
    on_disk.close()
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    assert results[0].std() > 0


def test_dense_features_from_array_and_store_reduce_to_the_same_bits(tmp_path):
    x = np.random.default_rng(0).standard_normal((200, 30), dtype=np.float32)
    with FeatureStorage.from_array(x, tmp_path / "x.npy") as store:
        a, b = (FeatureReducer(4, seed=0).fit(features) for features in (x, store))
    assert a.column_weight_ is None
    assert np.array_equal(a.basis_, b.basis_)


@pytest.mark.parametrize("method", ["svd", "hash"])
def test_a_reducer_is_saved_and_loaded(words, tmp_path, method):
    reducer = FeatureReducer(8, method, seed=3)
    assert not reducer.load(tmp_path, 90)
    reducer.fit(words).save(tmp_path)
    again = FeatureReducer(8, method, seed=3)
    assert again.load(tmp_path, 90)
    assert np.array_equal(again.transform(words[:5]), reducer.transform(words[:5]))


def test_signed_hashing_keeps_inner_products_in_expectation(words):
    reducers = [FeatureReducer(64, "hash", seed=seed).fit(words) for seed in range(60)]
    weighted = words.toarray() * reducers[0].column_weight_
    norm = np.linalg.norm(weighted, axis=1, keepdims=True)
    x = np.divide(weighted, norm, out=np.zeros_like(weighted), where=norm > 0)
    i, j = np.unravel_index(np.triu(x @ x.T, 1).argmax(), (300, 300))
    products = [float(np.dot(*r.transform(words[[i, j]]))) for r in reducers]
    assert abs(np.mean(products) - x[i] @ x[j]) < 4 * np.std(products) / np.sqrt(60)


def test_a_width_beyond_the_rank_is_refused(words):
    with pytest.raises(ValueError, match=r"width must be at most min\(n, d\) = 90"):
        FeatureReducer(91).fit(words)


def test_unit_rows_leave_zero_rows_zero():
    x = np.array([[3, 4], [0, 0]], np.float32)
    assert unit_rows(x).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]
