"""Files of the reference layout: recognised, read as they are, converted; and none of their faults in our own."""
import os
import struct

import numpy as np
import pytest

from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage


def reference_file(path, x, page=4096):
    """Header of three little-endian u64, one row to a block of whole pages."""
    n, dim = x.shape
    block = -(-4 * dim // page) * page
    with open(path, "wb") as file:
        file.write(struct.pack("<QQQ", dim, n, block))
        for row in x:
            file.write(row.astype("<f4").tobytes().ljust(block, b"\0"))
    return block


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cold.bin"


@pytest.mark.parametrize("page", [4096, 16384])
@pytest.mark.parametrize("n, dim", [(1, 1), (40, 3), (300, 128), (9, 1024), (7, 1025), (5, 5000)])
def test_rows_are_read_at_their_strides(path, n, dim, page):
    """S0-13: a file made on a machine of other pages is read too."""
    rng = np.random.default_rng(dim)
    x = rng.standard_normal((n, dim)).astype(np.float32)
    reference_file(path, x, page)
    with FeatureStorage.open(path) as store:
        assert store.shape == (n, dim) and store.dtype == store.file_dtype == np.float32 and not store.finite_checked
        assert store.nbytes == x.nbytes and store.order is None
        ids = rng.integers(0, n, 3 * n)
        np.testing.assert_array_equal(store.read_batch(ids), x[ids])
        np.testing.assert_array_equal(store[:], x)
        np.testing.assert_array_equal(store.read_rows(n // 2, n), x[n // 2:])
        np.testing.assert_array_equal(np.concatenate(list(store.iter_rows(7, drop_cache=True))), x)
        report = store.verify()
        assert report.unchecked == ((0, n),) and not report.damaged


def test_it_opens_read_only_and_needs_no_permission_to_write(path):
    """S0-12: reading asks for no right to write."""
    x = np.ones((4, 5), np.float32)
    reference_file(path, x)
    path.chmod(0o444)
    with FeatureStorage.open(path) as store:
        np.testing.assert_array_equal(store[:], x)
        with pytest.raises(StorageError, match="read-only"):
            store.write_features(0, x[0])
    path.chmod(0o644)
    with pytest.raises(StorageError, match="reference layout opens read-only.*convert"):
        FeatureStorage.open(path, "r+")


@pytest.mark.parametrize("words, text", [
    ((0, 4, 4096), "not a .npy file"), ((5, 0, 4096), "not a .npy file"), ((2000, 4, 4096), "not a .npy file"),
    ((5, 4, 100), "not a .npy file"), ((5, 1 << 60, 4096), "reference layout.*truncated"),
    ((5, 5, 4096), "reference layout.*truncated"), ((5, 3, 4096), "reference layout"),
    ((1 << 62, 4, 4096), "not a .npy file"), ((5, (1 << 64) - 1, 4096), "truncated"),
    ((5, 4, (1 << 64) - 4096), "not a .npy file")])
def test_headers_that_cannot_be(path, words, text):
    """S0-10, S0-11: sizes are validated on opening, without overflow and before anything is allocated."""
    reference_file(path, np.ones((4, 5), np.float32))
    with open(path, "rb+") as file:
        file.write(struct.pack("<QQQ", *words))
    with pytest.raises(StorageError, match=text):
        FeatureStorage.open(path)


def test_a_truncated_file_is_named(path):
    reference_file(path, np.ones((4, 5), np.float32))
    for size in (24 + 4 * 4096 - 1, 24 + 4096, 24):
        os.truncate(path, size)
        with pytest.raises(StorageError, match=f"reference layout with 4 rows of 5 .*it has {size}: it is truncated"):
            FeatureStorage.open(path)
    os.truncate(path, 10)
    with pytest.raises(StorageError, match="not a .npy file"):
        FeatureStorage.open(path)


@pytest.mark.parametrize("ordered", [False, True])
def test_convert(path, tmp_path, ordered):
    x = np.random.default_rng(0).standard_normal((500, 24)).astype(np.float32)
    order = np.random.default_rng(1).permutation(500) if ordered else None
    reference_file(path, x)
    before = path.read_bytes()
    with FeatureStorage.convert(path, tmp_path / "new.npy", order=order, chunk_rows=37) as store:
        np.testing.assert_array_equal(store[:], x)
        assert store.verify().ok and store.finite_checked
        if ordered:
            np.testing.assert_array_equal(store.order, order)
    assert path.read_bytes() == before
    with pytest.raises(FileExistsError):
        FeatureStorage.convert(path, tmp_path / "new.npy")
    with FeatureStorage.convert(path, order=order) as store:  # in place
        np.testing.assert_array_equal(store[:], x)
        assert store.path == path and store.verify()
    np.testing.assert_array_equal(np.load(path), x if order is None else x[order])
    with FeatureStorage.open(path, "r+") as store:
        store.write_features(3, x[4])


def test_our_layout_has_none_of_its_faults(path, tmp_path):
    """S0-1, S0-2, S0-9: rows begin on a page, are packed, and are little-endian as the header says."""
    x = np.random.default_rng(2).standard_normal((200, 128)).astype(np.float32)
    reference_file(path, x)
    assert path.stat().st_size == 24 + 200 * 4096
    FeatureStorage.convert(path).close()
    data = path.read_bytes()
    assert len(data) == 4096 + 200 * 512
    assert data[4096:4096 + 512] == x[0].astype("<f4").tobytes() and b"'<f4'" in data[:4096]


def test_rows_that_are_not_finite_are_not_converted(path):
    x = np.ones((10, 4), np.float32)
    x[7, 2] = np.nan
    reference_file(path, x)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="inf or nan"):
        FeatureStorage.convert(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["cold.bin"]


def test_convert_gives_plain_files_checksums(tmp_path):
    x = np.random.default_rng(3).standard_normal((60, 5))
    np.save(tmp_path / "x.npy", x.astype(">f8"))
    with FeatureStorage.convert(tmp_path / "x.npy", dtype=np.float32) as store:
        np.testing.assert_array_equal(store[:], x.astype(np.float32))
        assert store.verify()
