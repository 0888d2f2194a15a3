"""reorder(): the same rows under the same ids in another order, in little memory, whole or not at all."""
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from gnncy import _memory
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.graph import bfs_order
from gnncy.storage import FeatureStorage, _sidecar, features
from gnncy.storage.layout import rewrite
from gnncy.storage.layout import rows as rows_on_disk

N, DIM = 900, 17


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.npy"


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles where there would be one."""
    monkeypatch.setattr(features, "tile_rows", lambda n, row_bytes, limit: 70)


def some_order(seed):
    return np.random.default_rng(seed).permutation(N)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("before", [None, 1])
@pytest.mark.parametrize("after", [None, 2])
def test_ids_stay_and_rows_move(path, x, dtype, before, after, small_tiles):
    x = x.astype(dtype)
    wide = x.astype(np.float64 if dtype is np.float64 else np.float32)
    order = None if after is None else some_order(after)
    with FeatureStorage.from_array(x, path, order=None if before is None else some_order(before)) as store:
        assert store.reorder(order) is store
        np.testing.assert_array_equal(store[:], wide)
        np.testing.assert_array_equal(store.read_rows(0, N), wide if order is None else wide[order])
        assert store.verify().ok and store.finite_checked and store.dtype == wide.dtype
        if order is None:
            assert store.order is None
        else:
            np.testing.assert_array_equal(store.order, order)
    np.testing.assert_array_equal(np.load(path), x if order is None else x[order])
    assert {p.name for p in path.parent.iterdir()} == {"features.npy", "features.npy.json", "features.npy.crc32.npy",
                                                       *([] if order is None else ["features.npy.order.npy"])}


def test_any_memory_gives_the_same_file(tmp_path, x, monkeypatch):
    FeatureStorage.from_array(x, tmp_path / "a.npy", order=some_order(1)).close()
    files = []
    for rows in (1, 9, 449, 450, 899, 900):
        monkeypatch.setattr(features, "tile_rows", lambda *args, rows=rows: rows)
        with FeatureStorage(tmp_path / "a.npy") as store:
            store.reorder(some_order(2), tmp_path / "b.npy", overwrite=True).close()
        files.append([(tmp_path / f"b.npy{end}").read_bytes() for end in ("", ".order.npy", ".crc32.npy", ".json")])
    assert all(file == files[0] for file in files)
    FeatureStorage.from_array(x, tmp_path / "c.npy", order=some_order(2)).close()
    assert (tmp_path / "c.npy").read_bytes() == files[0][0]


def test_storage_order_makes_breadth_first_reads_sequential(path, make_ring):
    """S0-3: an order is one of the rows on disk, so a visit in that order is one ascending pass."""
    ring = make_ring(N)
    x = np.random.default_rng(0).standard_normal((N, 128)).astype(np.float32)
    order = bfs_order(ring)
    with FeatureStorage.from_array(x, path) as store:
        store.reorder(order)
        before = store.stats.snapshot()
        for start in range(0, N, 100):
            np.testing.assert_array_equal(store.read_batch(order[start:start + 100]), x[order[start:start + 100]])
        spent = store.stats - before
        assert spent.operations <= 2 * 9 and spent.bytes_read <= 1.2 * spent.bytes_requested


@pytest.fixture
def make_ring():
    import scipy.sparse as sp

    def make(n):
        shuffle = np.random.default_rng(4).permutation(n)
        ends = np.concatenate([shuffle, np.roll(shuffle, 1)]), np.concatenate([np.roll(shuffle, 1), shuffle])
        return sp.csr_array((np.ones(2 * n, np.float32), ends), shape=(n, n))
    return make


def test_another_path(path, tmp_path, x, small_tiles):
    order, other = some_order(3), tmp_path / "other.npy"
    with FeatureStorage.from_array(x, path) as store:
        before = path.read_bytes()
        with store.reorder(order, other) as new:
            np.testing.assert_array_equal(new[:], x)
            assert new.path == other and new.mode == "r"
        assert path.read_bytes() == before and store.order is None
        with pytest.raises(FileExistsError):
            store.reorder(order, other)
        with pytest.raises(FileExistsError):
            store.reorder(order, path)  # the same file by name, not asked to be replaced
        assert store.reorder(order, path, overwrite=True) is store
        np.testing.assert_array_equal(store.order, order)


def test_a_writer_may_reorder_its_file_and_goes_on(path, x, small_tiles):
    """S0-27: a second handle sees a whole file, the old one or the new one; there is one writer."""
    with FeatureStorage.from_array(x, path), FeatureStorage(path, "r+") as writer, FeatureStorage(path) as reader:
        writer.write_features(5, x[6])
        writer.reorder(some_order(5))
        writer.write_features([5, 8], x[[5, 9]])
        want = x.copy()
        want[8] = x[9]
        np.testing.assert_array_equal(writer[:], want)
        assert reader.read_features(5).tolist() == x[6].tolist() and reader.read_features(8).tolist() == x[8].tolist()
        with pytest.raises(StorageError, match="already open for writing"):
            FeatureStorage(path, "r+")
        with FeatureStorage(path) as again, pytest.raises(StorageError, match="already open for writing"):
            again.reorder(None)
    with FeatureStorage(path) as store:
        np.testing.assert_array_equal(store[:], want)
        assert store.verify()


def test_plain_files_go_to_another_path(tmp_path, x, small_tiles):
    np.save(tmp_path / "x.npy", x.astype(">f4"))
    with FeatureStorage(tmp_path / "x.npy") as store:
        with pytest.raises(StorageError, match="convert"):
            store.reorder(some_order(1))
        with store.reorder(some_order(1), tmp_path / "y.npy") as new:
            np.testing.assert_array_equal(new[:], x)
            assert new.file_dtype == "<f4" and not new.finite_checked and new.verify()


@pytest.mark.parametrize("order, error, text", [
    (np.zeros(N, int), ValueError, "each of 0..899 once"), (np.arange(N - 1), ValueError, "once, got 899"),
    (np.arange(N) + 1, IndexError, r"0\.\.899, got 900"), (np.arange(N) * 1.0, TypeError, "integers"),
    (np.arange(N) - 1, IndexError, "got -1")])
def test_bad_orders_leave_the_file(path, x, order, error, text):
    """S0-34: negative ids and ids out of range are refused."""
    with FeatureStorage.from_array(x, path) as store:
        before = path.read_bytes()
        with pytest.raises(error, match=text):
            store.reorder(order)
        assert path.read_bytes() == before
        np.testing.assert_array_equal(store[:], x)


def test_a_limit_too_small_names_the_least_that_does(path, x):
    with FeatureStorage.from_array(x, path) as store:
        with pytest.raises(MemoryLimitError, match="at least 8.* MB, got 100 KB"):
            store.reorder(None, memory_limit="100KB")
        with pytest.raises(ValueError, match="memory_limit"):
            store.reorder(None, memory_limit="much")
    rows = rewrite.tile_rows(10_000_000, 512, 512_000_000)
    assert rows * (512 + rewrite.ROW_OVERHEAD) + 8 * 10_000_000 < 512_000_000 and rows > 700_000


def test_a_full_disk_leaves_the_file(path, x, monkeypatch):
    with FeatureStorage.from_array(x, path) as store:
        def full(*args):
            raise OSError(28, "No space left on device")
        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StorageError, match="cannot reserve .*No space left"):
            store.reorder(some_order(1))
        np.testing.assert_array_equal(store[:], x)
    assert not [p for p in path.parent.iterdir() if ".tmp" in p.name]


def state_of(path):
    """Rows by id, and whether all is well."""
    with FeatureStorage(path) as store:
        return store[:], None if store.order is None else store.order.tolist(), store.verify().ok


@pytest.mark.parametrize("before", [None, 1])
@pytest.mark.parametrize("after", [None, 2])
@pytest.mark.parametrize("step", range(16))
def test_a_crash_at_any_step_pairs_every_row_with_its_id(path, x, before, after, step, monkeypatch, small_tiles):
    before, after = (None if seed is None else some_order(seed) for seed in (before, after))
    FeatureStorage.from_array(x, path, order=before).close()

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

    store = FeatureStorage(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(os, "unlink", counted(os.unlink))
        try:
            store.reorder(after)
        except Killed:
            pass
    store.close()
    rows, order, fine = state_of(path)
    np.testing.assert_array_equal(rows, x)
    assert fine and order in [None if o is None else o.tolist() for o in (before, after)]
    with FeatureStorage(path, "r+") as store:  # and life goes on
        store.reorder(some_order(9))
        np.testing.assert_array_equal(store[:], x)


def test_a_reader_that_meets_a_finished_swap_reads_again(path, x, monkeypatch):
    FeatureStorage.from_array(x, path, order=some_order(1)).close()
    read, swapped = rows_on_disk.read_sidecar, []

    def meanwhile(*args):
        if not swapped:
            swapped.append(True)
            with FeatureStorage(path) as other:
                other.reorder(some_order(2))
        return read(*args)

    monkeypatch.setattr(rows_on_disk, "read_sidecar", meanwhile)
    with FeatureStorage(path) as store:
        np.testing.assert_array_equal(store[:], x)


def test_an_interrupted_swap_in_a_read_only_folder_is_named(path, x, monkeypatch):
    FeatureStorage.from_array(x, path).close()
    with monkeypatch.context() as patch:
        patch.setattr(_sidecar, "_finish", lambda path: None)
        patch.setattr(os, "access", lambda *args: False)
        with FeatureStorage(path) as store, pytest.raises(StorageError, match="has to be finished"):
            store.reorder(some_order(1))
        with pytest.raises(StorageError, match="has to be finished, and .* is read-only"):
            FeatureStorage(path)
    np.testing.assert_array_equal(state_of(path)[0], x)
    assert state_of(path)[1] == some_order(1).tolist()


def test_killed_in_the_middle(path, x):
    FeatureStorage.from_array(x, path).close()
    code = textwrap.dedent("""
        import os, signal, sys
        import numpy as np
        from gnncy.storage import FeatureStorage, features
        from gnncy.storage.layout import rewrite
        features.tile_rows = lambda *args: 50
        permute = rewrite.permute_rows
        def dies(writer, read, source, rows):
            def reads(start, stop):
                if start > 400:
                    os.kill(os.getpid(), signal.SIGKILL)
                return read(start, stop)
            permute(writer, reads, source, rows)
        rewrite.permute_rows = dies
        FeatureStorage(sys.argv[1]).reorder(np.arange(900)[::-1])
    """)
    killed = subprocess.run([sys.executable, "-c", code, str(path)])
    assert killed.returncode == -signal.SIGKILL
    rows, order, fine = state_of(path)
    np.testing.assert_array_equal(rows, x)
    assert order is None and fine


def test_the_memory_limit_holds(tmp_path):
    rows, dim = 400_000, 64  # 102 MB under a limit of 16
    def blocks():
        for start in range(0, rows, 20_000):
            yield np.broadcast_to(np.arange(start, start + 20_000, dtype=np.float32)[:, None], (20_000, dim))
    path = tmp_path / "big.npy"
    order = np.random.default_rng(0).permutation(rows)
    with FeatureStorage.from_blocks(path, (rows, dim), blocks()) as store:
        store.read_batch([0])
        _memory.trim()
        if not _memory.reset_peak():
            pytest.skip("the system does not let the peak be measured again")
        base = _memory.rss()
        store.reorder(order, memory_limit="16MB")
        assert _memory.peak_rss() - base < 16e6
        np.testing.assert_array_equal(store.read_batch(order[:100])[:, 3], order[:100])
        np.testing.assert_array_equal(store.read_rows(500, 700)[:, 0], order[500:700])
    shutil.rmtree(tmp_path)
