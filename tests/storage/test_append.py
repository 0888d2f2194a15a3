"""FeatureStorage.append: all new rows or none, whatever comes between, and nothing old is touched."""
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage
from gnncy.storage.layout import checksums
from gnncy.storage.layout import rows as rows_on_disk


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((900, 7)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.npy"


@pytest.fixture
def small_extents(monkeypatch):
    monkeypatch.setattr(checksums, "EXTENT", 4096)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("chunk_rows", [None, 1, 64])
def test_the_file_is_that_of_all_rows(path, tmp_path, x, ordered, dtype, chunk_rows, small_extents):
    x = x.astype(dtype)
    order = np.random.default_rng(1).permutation(500) if ordered else None
    FeatureStorage.from_array(x[:500], path, order=order).close()
    with FeatureStorage(path, "r+") as store:
        assert store.append(x[500:510], chunk_rows=chunk_rows).tolist() == list(range(500, 510))
        store.append(x[510:], chunk_rows=chunk_rows)
        np.testing.assert_array_equal(store[:], x)
        assert store.verify().ok
        store.write_features([3, 899], x[[4, 5]])
    (tmp_path / "other").mkdir()
    whole = tmp_path / "other" / path.name
    FeatureStorage.from_array(x, whole, order=None if order is None else [*order, *range(500, 900)]).close()
    with FeatureStorage(whole, "r+") as store:
        store.write_features([3, 899], x[[4, 5]])
    for suffix in ("", ".json", ".crc32.npy", *([".order.npy"] if ordered else [])):
        one, other = (p.with_name(p.name + suffix).read_bytes() for p in (path, whole))
        assert one == other, suffix
    assert np.load(path).shape == (900, 7)


def test_any_source_with_slices(path, tmp_path, x):
    FeatureStorage.from_array(x, path).close()
    np.save(tmp_path / "more.npy", x[:5])
    with FeatureStorage.from_array(x[:3], tmp_path / "other.npy") as other, FeatureStorage(path, "r+") as store:
        store.append(np.load(tmp_path / "more.npy", mmap_mode="r"))
        store.append(other)
        store.append(x[:2].tolist())
        assert store.append(np.zeros((0, 7))).tolist() == [] and store.shape == (910, 7)
        np.testing.assert_array_equal(store[900:], np.concatenate([x[:5], x[:3], x[:2]]))


@pytest.mark.parametrize(("rows", "text"), [
    (np.zeros((3, 6)), r"\(k, 7\), got \(3, 6\)"),
    (np.zeros(7), r"\(k, 7\), got \(7,\)"),
    (np.full((3, 7), np.nan), "nan"),
    (np.concatenate([np.zeros((5, 7)), np.full((1, 7), np.inf)]), "inf"),
])
def test_what_is_refused_changes_nothing(path, x, rows, text):
    FeatureStorage.from_array(x, path).close()
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    with FeatureStorage(path, "r+") as store:
        with pytest.raises(ValueError, match=text):
            store.append(rows, chunk_rows=2)
        assert store.shape == x.shape
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


def test_a_reader_may_not(path, x):
    with FeatureStorage.from_array(x, path) as store, pytest.raises(StorageError, match="mode='r\\+'"):
        store.append(x)


def test_a_full_disk_leaves_the_file(path, x):
    """S0-7: a write that fails is an error, and nothing is lost."""
    FeatureStorage.from_array(x, path).close()
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    code = textwrap.dedent("""
        import resource, signal, sys
        import numpy as np
        from gnncy.errors import StorageError
        from gnncy.storage import FeatureStorage
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        with FeatureStorage(sys.argv[1], "r+") as store:
            try:
                store.append(np.ones((1000, 7), np.float32))
            except StorageError as error:
                print(error)
    """)
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert "File too large" in said
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("step", range(14))
def test_a_crash_at_any_step_leaves_the_file_before_or_after(path, x, ordered, step, monkeypatch, small_extents):
    order = np.random.default_rng(1).permutation(500) if ordered else None
    FeatureStorage.from_array(x[:500], path, order=order).close()

    class Killed(BaseException):
        pass

    calls = []

    def counted(function):
        def call(*args, **options):
            if len(calls) >= step:
                raise Killed  # and whatever would tidy up is not done either
            calls.append(function.__name__)
            return function(*args, **options)
        return call

    store = FeatureStorage(path, "r+")
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "fsync", "ftruncate"):
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            store.append(x[500:])
        except Killed:
            pass
    store._rows.file.close()
    store._closed = True
    with FeatureStorage(path, "r+") as store:
        assert len(store) in (500, 900) and store.verify().ok
        np.testing.assert_array_equal(store[:], x[:len(store)])
        store.append(x[len(store):])  # and life goes on
        np.testing.assert_array_equal(store[:], x)
        assert store.verify().ok


def test_damage_done_before_is_still_found_after(path, x, small_extents):
    FeatureStorage.from_array(x[:500], path).close()
    with open(path, "rb+") as file:
        file.seek(-3, 2)
        file.write(b"!")
    with FeatureStorage(path, "r+") as store:
        store.append(x[500:])
        report = store.verify()
    assert not report.ok and 499 in report.damaged_nodes


def test_extents_not_known_before_stay_so(path, x, small_extents):
    FeatureStorage.from_array(x[:500], path).close()
    size = 500 * 28
    table = checksums.load_table(path.with_name("features.npy.crc32.npy"), size)
    table[-1] = checksums.UNKNOWN  # as a writer leaves it that was killed
    checksums.save_table(path.with_name("features.npy.crc32.npy"), table)
    with FeatureStorage(path, "r+") as store:
        store.append(x[500:])
        report = store.verify()
    assert not report.damaged and report.unchecked == ((438, 586),)


def test_other_storages_of_the_file_go_on(path, x, monkeypatch):
    FeatureStorage.from_array(x[:500], path).close()
    read, grown = rows_on_disk.read_sidecar, []

    def meanwhile(*args):
        if not grown:
            grown.append(True)
            with FeatureStorage(path, "r+") as writer:
                writer.append(x[500:])
        return read(*args)

    with FeatureStorage(path) as old:
        monkeypatch.setattr(rows_on_disk, "read_sidecar", meanwhile)
        with FeatureStorage(path) as new:
            np.testing.assert_array_equal(new[:], x)
        np.testing.assert_array_equal(old[:], x[:500])
