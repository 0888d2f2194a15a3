"""SparseFeatureStorage: round trips and damaged directories."""
import json
import os
import pickle

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy.errors import StorageError
from gnncy.storage import SparseFeatureStorage, _blocks


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    x = sp.csr_array((rng.standard_normal((300, 50)) * (rng.random((300, 50)) < 0.1)).astype(np.float32))
    x = sp.vstack([x, sp.csr_array((20, 50), dtype=np.float32)], format="csr")  # empty rows among others
    x = x[rng.permutation(320)]
    x.sum_duplicates()
    return x


@pytest.fixture
def path(tmp_path):
    return tmp_path / "words"


def same(a, b):
    assert isinstance(a, sp.csr_array) and a.shape == b.shape and a.dtype == b.dtype
    assert a.indices.dtype == a.indptr.dtype
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    copy = a.copy()
    copy.has_canonical_format = False
    copy.sum_duplicates()
    assert copy.nnz == a.nnz


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trips(path, x, dtype):
    x = x.astype(dtype)
    rng = np.random.default_rng(1)
    with SparseFeatureStorage.from_csr(x, path) as store:
        assert store.shape == x.shape and store.nnz == x.nnz and store.dtype == dtype and len(store) == 320
        for size in (0, 1, 5, 100, 1000):
            ids = rng.integers(0, 320, size)
            same(store.read_batch(ids), x[ids] if size else x[:0])
        same(store.read_batch(np.arange(320) % 3 == 0), x[np.arange(320) % 3 == 0])
        same(store.read_rows(20, 90), x[20:90])
        same(store.read_rows(20, 20), x[20:20])
        same(sp.vstack(list(store.iter_rows(33)), format="csr"), x)
        same(sp.vstack(list(store.iter_rows()), format="csr"), x)
        assert store.stats.bytes_read > 0 and f"{x.nnz} stored" in repr(store)
    np.testing.assert_array_equal(np.load(path / "data.npy"), x.data)


@pytest.mark.parametrize("threads", [1, 3])
def test_short_runs_and_threads(path, x, threads, monkeypatch):
    monkeypatch.setattr(_blocks, "MAX_RUN", 64)
    SparseFeatureStorage.from_csr(x, path).close()
    ids = np.random.default_rng(2).integers(0, 320, 500)
    with SparseFeatureStorage.open(path, io_threads=threads) as store:
        same(store.read_batch(ids), x[ids])
        same(store.read_rows(0, 320), x)


@pytest.mark.parametrize("form", ["csr_matrix", "csc_array", "coo_array", "lil_array"])
def test_any_format_and_the_callers_is_left_alone(path, x, form):
    given = getattr(sp, form)(x)
    with SparseFeatureStorage.from_csr(given, path) as store:
        same(store.read_batch(np.arange(320)), x)
    messy = sp.csr_array((np.array([1.0, 2.0, 3.0], np.float32), np.array([3, 1, 3]), np.array([0, 3])), shape=(1, 5))
    kept = messy.data.copy(), messy.indices.copy()
    with SparseFeatureStorage.from_csr(messy, path, overwrite=True) as store:
        assert store.read_batch([0]).toarray().tolist() == [[0, 2, 0, 4, 0]] and store.nnz == 2
    np.testing.assert_array_equal(messy.data, kept[0])
    np.testing.assert_array_equal(messy.indices, kept[1])


def test_integers_become_float32_and_wide_columns_get_wide_indices(path):
    wide = sp.csr_array((np.array([1, 2]), (np.array([0, 1]), np.array([3, 1 << 40]))), shape=(2, (1 << 40) + 1))
    with SparseFeatureStorage.from_csr(wide, path) as store:
        assert store.index_dtype == np.int64 and store.dtype == np.float32
        assert store.read_batch([1]).indices.tolist() == [1 << 40]


def test_from_blocks(path, x):
    with SparseFeatureStorage.from_blocks(path, 50, (x[i:i + 70] for i in range(0, 320, 70))) as store:
        same(store.read_batch(np.arange(320)), x)


def test_no_entries_at_all(path):
    with SparseFeatureStorage.from_csr(sp.csr_array((4, 3), dtype=np.float32), path) as store:
        assert store.nnz == 0 and store.read_batch([3, 0]).shape == (2, 3)


def test_what_is_refused(path, x):
    bad = x.copy()
    bad.data[100] = np.nan
    with pytest.raises(ValueError, match="inf or nan"):
        SparseFeatureStorage.from_csr(bad, path)
    with pytest.raises(TypeError, match="FeatureStorage.from_array"):
        SparseFeatureStorage.from_csr(x.toarray(), path)
    with pytest.raises(TypeError, match="real numbers"):
        SparseFeatureStorage.from_csr(x.astype(np.complex64), path)
    with pytest.raises(ValueError, match="block at row 320 must have 50 columns"):
        SparseFeatureStorage.from_blocks(path, 50, [x, x[:, :5]])
    with pytest.raises(ValueError, match="blocks are empty"):
        SparseFeatureStorage.from_blocks(path, 50, [])
    with pytest.raises(ValueError, match="float32 or float64"):
        SparseFeatureStorage.from_blocks(path, 50, [x], dtype=np.float16)
    assert list(path.parent.iterdir()) == []
    SparseFeatureStorage.from_csr(x, path).close()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        SparseFeatureStorage.from_csr(x, path)
    (path.parent / "mine").mkdir()
    (path.parent / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="left alone"):
        SparseFeatureStorage.from_csr(x, path.parent / "mine", overwrite=True)
    assert sorted(f.name for f in path.parent.iterdir()) == ["mine", "words"]


@pytest.mark.parametrize("name, damage, text", [
    ("data.npy", lambda b: b[:-1], "truncated"), ("indices.npy", lambda b: b[:4000], "truncated"),
    ("indptr.npy", lambda b: b[:100], "truncated"), ("data.npy", lambda b: b"PK" + b, "not a .npy file"),
    ("indptr.npy", lambda b: b[:4096] + b[:8][::-1] + b[4104:], "do not ascend"),
    ("indices.npy", lambda b: b.replace(b"<i4", b"<f4"), "dtype float32.*needs"),
    ("meta.json", lambda b: b[:-10], "damaged or foreign"),
    ("meta.json", lambda b: b.replace(b'"version": 2', b'"version": 7'), "format version 7"),
    ("meta.json", lambda b: b.replace(b"gnncy-sparse", b"other"), "another program"),
    ("meta.json", lambda b: b.replace(b'"nnz": ', b'"nnz": 1'), "by its checksum"),
    ("meta.json", lambda b: b.replace(b'"nnz": ', b'"nnz": -'), "damaged"),
])
def test_damage_is_named(path, x, name, damage, text):
    SparseFeatureStorage.from_csr(x, path).close()
    data = (path / name).read_bytes()
    assert damage(data) != data
    (path / name).write_bytes(damage(data))
    with pytest.raises(StorageError, match=text):
        SparseFeatureStorage.open(path)


@pytest.mark.parametrize("name", ["meta.json", "data.npy", "indices.npy", "indptr.npy"])
def test_a_missing_file_is_named(path, x, name):
    SparseFeatureStorage.from_csr(x, path).close()
    (path / name).unlink()
    with pytest.raises(StorageError, match="missing|it has no meta.json"):
        SparseFeatureStorage.open(path)


def test_damaged_indices_never_reach_the_caller(path, x):
    SparseFeatureStorage.from_csr(x, path).close()
    with open(path / "indices.npy", "r+b") as file:
        file.seek(4096)
        file.write(np.int32(50).tobytes())
    with SparseFeatureStorage.open(path) as store, pytest.raises(StorageError, match="column indices outside"):
        store.read_rows(0, 320)


def test_a_file_cut_short_while_open_raises(path, x):
    with SparseFeatureStorage.from_csr(x, path) as store:
        os.truncate(path / "data.npy", 4096 + 40)
        with pytest.raises(StorageError, match="cut short"):
            store.read_batch(np.arange(300))


def test_ids_are_checked_and_a_closed_store_says_so(path, x):
    store = SparseFeatureStorage.from_csr(x, path)
    with pytest.raises(IndexError, match=r"0\.\.319"):
        store.read_batch([320])
    with pytest.raises(ValueError, match="must be in"):
        store.read_rows(5, 321)
    with pickle.loads(pickle.dumps(store)) as other:
        same(other.read_batch([5]), x[[5]])
    store.close()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.read_batch([1])
    with pytest.raises(FileNotFoundError):
        SparseFeatureStorage.open(path.parent / "nowhere")


def test_an_unclosed_store_warns(path, x):
    store = SparseFeatureStorage.from_csr(x, path)
    with pytest.warns(ResourceWarning, match="unclosed SparseFeatureStorage"):
        del store


def test_meta_says_what_it_is(path, x):
    SparseFeatureStorage.from_csr(x, path).close()
    meta = json.loads((path / "meta.json").read_text())
    assert isinstance(meta.pop("crc32"), int) and meta == {
        "format": "gnncy-sparse-features", "version": 2, "shape": [320, 50], "nnz": x.nnz, "finite": True}
