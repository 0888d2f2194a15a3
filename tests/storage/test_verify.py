"""verify(): damage is found and named, good data never is, whatever wrote it and however it was interrupted."""
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy._threads import working_threads
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage, SparseFeatureStorage
from gnncy.storage.layout import checksums
from gnncy.storage.layout.checksums import RunningChecksums, merged, row_ranges

N, DIM = 500, 24  # 96 bytes a row, 48,000 in all


@pytest.fixture(autouse=True)
def small_extents(monkeypatch):
    monkeypatch.setattr(checksums, "EXTENT", 1000)
    monkeypatch.setattr(checksums, "_PIECE", 3)


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.npy"


def damage(path, byte):
    with open(path, "rb+") as file:
        file.seek(byte)
        old = file.read(1)
        file.seek(byte)
        file.write(bytes([old[0] ^ 16]))


def report_of(path):
    with FeatureStorage(path) as store:
        return store.verify()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", [None, "reverse"])
def test_every_writer_leaves_checksums_that_hold(path, tmp_path, x, dtype, order):
    order = None if order is None else np.arange(N)[::-1]
    stored = x if order is None else x[order]
    np.save(tmp_path / "plain.npy", x)
    sources = {"array": x, "map": np.load(tmp_path / "plain.npy", mmap_mode="r")}
    for source in sources.values():
        for chunk in (None, 7, 333):
            with FeatureStorage.from_array(source, path, order=order, dtype=dtype, chunk_rows=chunk,
                                           overwrite=True) as store:
                assert store.verify().ok and store.verify().n_rows == N
                np.testing.assert_array_equal(store[:], x.astype(dtype))
    with FeatureStorage.from_blocks(path, x.shape, (stored[i:i + 77] for i in range(0, N, 77)), order=order,
                                    dtype=dtype, overwrite=True) as store:
        assert store.verify()
    with FeatureStorage.create(path, N, DIM, order=order, dtype=dtype, overwrite=True) as store:
        assert store.verify()
        store.write_features(np.arange(N), x)
        assert store.verify()
        store.write_features([3, 490, 3], x[:3])
    assert report_of(path).ok


@pytest.mark.parametrize("byte, rows", [(0, (0, 11)), (999, (0, 11)), (1000, (10, 21)), (47_999, (489, 500)),
                                        (30_500, (312, 323))])
def test_damage_is_named_by_rows_and_nodes(path, x, byte, rows):
    order = np.random.default_rng(1).permutation(N)
    for given in (None, order):
        FeatureStorage.from_array(x, path, order=given, overwrite=True).close()
        damage(path, 4096 + byte)
        report = report_of(path)
        assert not report and not report.ok and report.damaged == (rows,) and report.unchecked == ()
        nodes = np.arange(*rows) if given is None else np.sort(order[slice(*rows)])
        np.testing.assert_array_equal(report.damaged_nodes, nodes)
        assert f"damaged rows {rows[0]}..{rows[1] - 1}" in str(report) and str(nodes[0]) in str(report)


def test_neighbouring_damage_is_one_range(path, x):
    FeatureStorage.from_array(x, path).close()
    for byte in (2_500, 3_500, 20_000):
        damage(path, 4096 + byte)
    assert report_of(path).damaged == ((20, 42), (208, 219))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(path, x, threads):
    FeatureStorage.from_array(x, path).close()
    damage(path, 5000)
    with working_threads(threads):
        assert report_of(path).damaged == ((0, 11),)


def test_what_another_program_writes_is_damage(path, x):
    FeatureStorage.from_array(x, path).close()
    mapped = np.load(path, mmap_mode="r+")
    mapped[200] = 7
    mapped.flush()
    assert report_of(path).damaged == ((197, 209),)


def test_files_without_checksums_are_unchecked_not_fine(path, x):
    np.save(path, x)
    plain = report_of(path)
    assert not plain.ok and plain.damaged == () and plain.unchecked == ((0, N),) and "no checksum" in str(plain)
    FeatureStorage.from_array(x, path, overwrite=True).close()
    # As version 1 wrote it.
    sidecar, table = path.with_name("features.npy.json"), path.with_name("features.npy.crc32.npy")
    meta = json.loads(sidecar.read_text())
    del meta["checksums"], meta["extent_bytes"]
    sidecar.write_text(json.dumps(meta | {"version": 1}))
    table.unlink()
    assert report_of(path).unchecked == ((0, N),)
    with FeatureStorage(path, "r+") as store:
        store.write_features(1, x[5])
        np.testing.assert_array_equal(store[1], x[5])
        assert store.reorder(None).verify().ok  # which gives it checksums


def test_a_missing_or_foreign_table_is_named(path, x):
    FeatureStorage.from_array(x, path).close()
    table = path.with_name("features.npy.crc32.npy")
    np.save(table, np.zeros(3, np.int64))
    with FeatureStorage(path) as store, pytest.raises(StorageError, match="crc32.npy: holds .* need 48 checksums"):
        store.verify()
    table.unlink()
    with FeatureStorage(path) as store, pytest.raises(StorageError, match="checksums of the rows are missing"):
        store.verify()


# Written in place

def marks(path):
    return np.load(path.with_name("features.npy.crc32.npy")) == checksums.UNKNOWN


def test_extents_are_marked_before_they_are_written_and_summed_up_at_flush(path, x, monkeypatch):
    FeatureStorage.from_array(x, path).close()
    with FeatureStorage(path, "r+") as store:
        seen = []
        scatter = type(store._opened()).scatter
        monkeypatch.setattr(type(store._opened()), "scatter", lambda *args: (seen.append(np.flatnonzero(marks(path))),
                                                                        scatter(*args)))
        store.write_features([100, 10, 300], x[:3])  # row 10 lies across two extents
        assert [s.tolist() for s in seen] == [[0, 1, 9, 28]]
        report = report_of(path)
        assert report.damaged == () and report.unchecked == ((0, 21), (93, 105), (291, 303))
        store.flush()
        assert not marks(path).any() and report_of(path).ok
        for k in range(30):
            store.write_features([16 * k], x[:1])
        assert marks(path).all()  # after some calls all is marked, and later calls need not wait
        assert report_of(path).unchecked == ((0, N),)
    assert not marks(path).any() and report_of(path).ok


def test_rows_that_are_longer_than_an_extent(path):
    rows = np.random.default_rng(2).standard_normal((6, 1000)).astype(np.float32)
    with FeatureStorage.create(path, 6, 1000) as store:
        store.write_features([4], rows[:1])
        assert np.flatnonzero(marks(path)).tolist() == [16, 17, 18, 19]
    damage(path, 4096 + 8100)
    assert report_of(path).damaged == ((2, 3),)


def test_unknown_extents_of_a_killed_writer_stay_unknown(path, x):
    """S0-8 in reverse: a crash never makes good data look damaged, nor damaged data good."""
    FeatureStorage.from_array(x, path).close()
    code = textwrap.dedent("""
        import os, signal, sys
        import numpy as np
        from gnncy.storage import FeatureStorage
        from gnncy.storage.layout import checksums
        checksums.EXTENT = 1000
        store = FeatureStorage(sys.argv[1], "r+")
        store.write_features([100, 101], np.ones((2, 24), np.float32))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    # The sidecar says the extent size of the format; the test's smaller one is put there by the fixture.
    killed = subprocess.run([sys.executable, "-c", code, str(path)], cwd=os.getcwd())
    assert killed.returncode == -signal.SIGKILL
    report = report_of(path)
    assert report.damaged == () and report.unchecked == ((93, 105),)
    with FeatureStorage(path, "r+") as store:
        store.write_features([300], x[:1])
    assert report_of(path).unchecked == ((93, 105),)  # another session does not vouch for them
    with FeatureStorage(path, "r+") as store:
        store.write_features([100, 101], x[100:102])
    assert report_of(path).ok


def test_a_writer_at_work_is_not_damage(path, x, monkeypatch):
    FeatureStorage.from_array(x, path).close()
    compute, calls = checksums.compute, []
    with FeatureStorage(path, "r+") as writer:
        def meanwhile(file, *args):
            if not calls:
                calls.append(1)
                writer.write_features([50], x[:1])
            return compute(file, *args)
        with FeatureStorage(path) as store:
            monkeypatch.setattr(checksums, "compute", meanwhile)
            report = store.verify()
    assert calls and report.damaged == () and report.unchecked == ((41, 53),)


def test_a_replaced_file_is_not_verified_in_its_place(path, x):
    with FeatureStorage.from_array(x, path) as store:
        FeatureStorage.from_array(x + 1, path, overwrite=True).close()
        np.testing.assert_array_equal(store[:], x)
        with pytest.raises(StorageError, match="replaced by another file"):
            store.verify()


# The parts

@pytest.mark.parametrize("step", [1, 999, 1000, 1001, 4096])
def test_running_checksums_do_not_depend_on_the_pieces(step):
    import zlib
    data = np.random.default_rng(3).integers(0, 256, 5500, dtype=np.uint8)
    running = RunningChecksums()
    for start in range(0, len(data), step):
        running.add(data[start:start + step])
    assert running.table().tolist() == [zlib.crc32(data[i:i + 1000].data) for i in range(0, 5500, 1000)]
    np.testing.assert_array_equal(checksums.of_zeros(5500)[[0, -1]], [zlib.crc32(bytes(1000)), zlib.crc32(bytes(500))])


def test_ranges():
    assert row_ranges(np.array([], np.int64), 96, 500) == ()
    assert row_ranges(np.array([0, 1, 5]), 1000, 6) == ((0, 2), (5, 6))
    assert merged([(5, 7), (0, 2), (1, 4), (4, 5)]) == ((0, 7),)


# Sparse

@pytest.mark.parametrize("name, byte, row", [("data", 3000, 75), ("indices", 3000, 75), ("indptr", 1600, 199)])
def test_sparse_damage_is_named(tmp_path, name, byte, row):
    rng = np.random.default_rng(4)
    entries = np.repeat(np.arange(300), 10), np.concatenate([rng.choice(50, 10, replace=False) for _ in range(300)])
    words = sp.csr_array((np.ones(3000, np.float32), entries), shape=(300, 50))
    with SparseFeatureStorage.from_csr(words, tmp_path / "words") as store:
        assert store.verify().ok
    with open(tmp_path / "words" / f"{name}.npy", "rb+") as file:
        if name == "indptr":
            file.seek(4096 + byte)
            value = int.from_bytes(file.read(8), "little")
            file.seek(4096 + byte)
            file.write((value + 1).to_bytes(8, "little"))
        else:
            file.seek(4096 + byte)
            file.write(b"\x05")
    with SparseFeatureStorage(tmp_path / "words") as store:
        report = store.verify()
    assert not report.ok and len(report.damaged) == 1
    start, stop = report.damaged[0]
    assert start <= row < stop and stop - start < 130
    np.testing.assert_array_equal(report.damaged_nodes, np.arange(start, stop))


def test_sparse_of_version_1_is_unchecked(tmp_path):
    SparseFeatureStorage.from_csr(sp.eye_array(40, format="csr"), tmp_path / "eye").close()
    meta = tmp_path / "eye" / "meta.json"
    meta.write_text(meta.read_text().replace('"version": 2', '"version": 1'))
    for table in (tmp_path / "eye").glob("*.crc32.npy"):
        table.unlink()
    with SparseFeatureStorage(tmp_path / "eye") as store:
        assert store.verify().unchecked == ((0, 40),)
        assert (store.read_batch([3, 0]).toarray()[0] == np.eye(40)[3]).all()
