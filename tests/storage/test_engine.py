"""The I/O engine: reads past the page cache and through it, many in flight, and what goes wrong with them."""
import errno
import mmap
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gnncy._kernels.storage import blockio
from gnncy._threads import working_threads
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage, SparseFeatureStorage, _blocks
from gnncy.storage._blocks import PAGE, BlockFile, ahead, arena, direct_empty, open_direct, together
from gnncy.storage.plans import DiskModel

DISK = DiskModel(1e-5, 2e9, 2e9, threads=4)  # joins gaps of 20 KB


def has_direct(folder):
    probe = folder / "probe"
    probe.write_bytes(bytes(PAGE))
    fd = open_direct(probe)
    if fd is None:
        return False
    os.close(fd)
    return True


@pytest.fixture
def folder(tmp_path):
    if not has_direct(tmp_path):
        pytest.skip("this file system has no O_DIRECT")
    return tmp_path


def contents(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def entries(size, length, count, rng):
    """Ascending places of rows of ``length`` bytes in a file of ``size``, with repeats, and places in memory."""
    start = np.sort(rng.integers(0, size // length, count)) * length
    return start, np.full(count, length), rng.permutation(count) * length


# The same bytes

@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("length", [4, 100, 512, 4096, 5000, 20_000])
def test_direct_and_buffered_reads_are_equal(folder, length, threads):
    path, rng = folder / "x", np.random.default_rng(length)
    data = contents(40 * PAGE + length // 2 + 1)  # the file ends within a page
    path.write_bytes(data.tobytes())
    for start in (0, 7, 128, PAGE):  # rows that lie on page bounds, and that do not
        at, size, place = entries(len(data) - start, length, 60, rng)
        want = np.zeros(60 * length, np.uint8)
        for a, p in zip(at + start, place, strict=True):
            want[p:p + length] = data[a:a + length]
        for direct in (True, False):
            with BlockFile(path, direct=direct, io_threads=threads, disk=DISK) as file:
                assert file.direct == direct
                out = np.zeros_like(want)
                file.gather(at + start, size, place, out)
                assert out.tobytes() == want.tobytes()


@pytest.mark.parametrize("skip, size", [(0, 40 * PAGE + 9), (PAGE, 3 * PAGE), (1, 40 * PAGE), (PAGE - 1, 2),
                                        (5 * PAGE, 35 * PAGE + 9), (40 * PAGE, 9), (17, 0)])
@pytest.mark.parametrize("memory", [0, 16, 4095])
def test_ranges_at_any_alignment(folder, skip, size, memory, monkeypatch):
    data = contents(40 * PAGE + 9)
    (folder / "x").write_bytes(data.tobytes())
    monkeypatch.setattr(_blocks, "MAX_RUN", 3 * PAGE + 100)
    out = direct_empty(memory + size)[memory:]
    for call in (_blocks.MAX_CALL, 2 * PAGE + 5, 100):  # short calls are continued at a page's start
        monkeypatch.setattr(_blocks, "MAX_CALL", call)
        out[:] = 0
        with BlockFile(folder / "x", direct=True, disk=DISK) as file:
            file.read_range(skip, out)
            assert file.direct and out.tobytes() == data[skip:skip + size].tobytes()
            assert file.stats.bytes_requested == size


def test_long_entries_pass_through_the_arena_in_parts(folder):
    data = contents(5 * _blocks.ARENA + 777)
    (folder / "x").write_bytes(data.tobytes())
    start, length = np.array([3, 2 * _blocks.ARENA + 3]), np.array([2 * _blocks.ARENA, 3 * _blocks.ARENA + 774])
    with BlockFile(folder / "x", direct=True, disk=DISK) as file:
        out = np.zeros(len(data) - 3, np.uint8)
        file.gather(start, length, start - 3, out)
        assert out.tobytes() == data[3:].tobytes()
        twice = np.zeros(2 * int(length[0]), np.uint8)
        file.gather(start[[0, 0]], length[[0, 0]], np.array([0, length[0]]), twice)
        assert (twice.reshape(2, -1) == data[3:3 + length[0]]).all()


@pytest.mark.parametrize("dtype, dim", [("float32", 25), ("float16", 7), ("float64", 512)])
@pytest.mark.parametrize("direct", [True, False, None])
def test_stores_read_the_same_either_way(folder, dtype, dim, direct):
    rng = np.random.default_rng(dim)
    x = rng.standard_normal((1000, dim)).astype(dtype)
    path = folder / "x.npy"
    FeatureStorage.from_array(x, path, order=rng.permutation(1000)).close()
    ids = rng.integers(0, 1000, 700)
    with FeatureStorage(path, direct=direct, disk=DISK) as store:
        assert store.direct is bool(direct)  # None: the page cache could hold so small a file
        assert store.read_batch(ids).tobytes() == x[ids].astype(store.dtype).tobytes()
        want = [block.copy() for block in store.iter_rows(90)]
        assert np.array_equal(np.concatenate(want), store.read_rows(0, 1000))
        for depth in (1, 3, 50):
            for block, rows in zip(store.iter_rows(90, read_ahead=depth, reuse=depth < 4), want, strict=True):
                assert block.tobytes() == rows.tobytes()


def test_none_is_direct_for_a_file_larger_than_the_page_cache_could_get(folder, monkeypatch):
    FeatureStorage.from_array(np.ones((100, 100), np.float32), folder / "x.npy").close()
    for available, direct in ((10_000, True), (10_000_000, False)):
        monkeypatch.setattr(_blocks, "available", lambda available=available: available)
        with FeatureStorage(folder / "x.npy") as store:
            assert store.direct is direct


def test_sparse_features_are_read_directly_too(folder):
    import pickle

    import scipy.sparse as sp
    x = sp.random_array((500, 80), density=0.1, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    SparseFeatureStorage.from_csr(x, folder / "words").close()
    ids = np.random.default_rng(1).integers(0, 500, 300)
    with SparseFeatureStorage(folder / "words", direct=True, disk=DISK) as store:
        assert all(file.direct for file in store._opened())
        with pickle.loads(pickle.dumps(store)) as again:
            assert all(file.direct and file.disk == DISK for file in again._opened())
            assert (abs(again.read_batch(ids) - x[ids])).nnz == (abs(store.read_batch(ids) - x[ids])).nnz == 0


def test_what_is_written_is_read_directly(folder):
    with FeatureStorage.create(folder / "x.npy", 300, 30) as store:
        store.close()
    with FeatureStorage(folder / "x.npy", "r+", direct=True) as store:
        rng, x = np.random.default_rng(0), np.zeros((300, 30), np.float32)
        for _ in range(5):
            ids = rng.choice(300, 50, replace=False)
            x[ids] = rng.standard_normal((50, 30))
            store.write_features(ids, x[ids])
            assert store.direct and np.array_equal(store.read_batch(np.arange(300)), x)


# Where the file system refuses

def test_no_flag_and_no_file_system_is_no_error(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    x = np.random.default_rng(0).standard_normal((400, 50)).astype(np.float32)
    FeatureStorage.from_array(x, path).close()
    real = os.open

    def refuses(target, flags, *args, **kwargs):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "refused")
        return real(target, flags, *args, **kwargs)

    advised = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, size, advice: advised.append(advice))
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuses)
        assert open_direct(path) is None
        store = FeatureStorage(path, direct=True)
    with store:
        assert not store.direct and advised == [os.POSIX_FADV_RANDOM]
        assert np.array_equal(store.read_batch([3, 390, 7]), x[[3, 390, 7]])
        assert advised[1:] == [os.POSIX_FADV_DONTNEED]
    monkeypatch.delattr(os, "O_DIRECT")
    assert open_direct(path) is None


def test_other_errors_of_opening_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_direct(tmp_path / "absent")


def test_a_refused_first_read_falls_back(folder, monkeypatch):
    data = contents(10 * PAGE)
    (folder / "x").write_bytes(data.tobytes())
    kernel = blockio.read_runs

    def refuses(fd, pages, *args):
        return errno.EINVAL if pages else kernel(fd, pages, *args)

    monkeypatch.setattr(_blocks.blockio, "read_runs", refuses, raising=True)
    with BlockFile(folder / "x", direct=True, disk=DISK) as file:
        out = np.zeros(9 * PAGE, np.uint8)
        file.read_range(33, out)
        assert not file.direct and out.tobytes() == data[33:33 + 9 * PAGE].tobytes()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no file system in memory")
def test_a_file_system_in_memory():
    path = Path("/dev/shm") / f"gnncy-test-{os.getpid()}-{time.monotonic_ns()}.npy"
    x = np.random.default_rng(0).standard_normal((400, 50)).astype(np.float32)
    try:
        FeatureStorage.from_array(x, path).close()
        for direct in (True, False, None):
            with FeatureStorage(path, direct=direct) as store:
                assert np.array_equal(store.read_batch([3, 390, 7]), x[[3, 390, 7]])
                assert np.array_equal(store[:], x)
    finally:
        path.unlink()
        path.with_name(path.name + ".json").unlink()


# How much is read, and by how many

def test_runs_follow_the_disk(folder):
    x = np.zeros((4000, 128), np.float32)
    FeatureStorage.from_array(x, folder / "x.npy").close()
    ids = np.arange(0, 4000, 80)  # 40 KiB apart: 36 KiB between their pages
    for disk, operations in ((DiskModel(1e-6, 1e9, 1e9), 50), (DiskModel(8e-3, 2e8, 2e8), 2)):
        with FeatureStorage(folder / "x.npy", direct=True, disk=disk) as store:
            store.read_batch(ids)
            assert store.stats.operations == operations
    # Past the length that costs as much as an operation, at most 3 bytes are read for each byte needed.
    with FeatureStorage(folder / "x.npy", direct=True, disk=DiskModel(4e-5, 1e9, 1e9)) as store:
        store.read_batch(ids)
        assert store.stats.operations == 50
        store.read_batch(np.arange(0, 4000, 20))  # every third page
        assert store.stats.bytes_read <= 3 * 4096 * 250
        assert store.stats.operations < 50 + 30


def test_the_page_cache_is_noticed(folder):
    x = np.zeros((4000, 128), np.float32)
    FeatureStorage.from_array(x, folder / "x.npy").close()
    ids = np.arange(0, 4000, 40)  # 20 KiB apart
    with FeatureStorage(folder / "x.npy", direct=False, disk=DiskModel(8e-3, 2e8, 2e8)) as store:
        store.read_rows(0, 4000)
        fd = store._opened().fd
        at = ids * 512 + 4096
        if blockio.cached(fd, at, 16) < 0:
            pytest.skip("this file system does not tell what is in the page cache")
        assert blockio.cached(fd, at, 16) == 16
        before = store.stats.snapshot()
        store.read_batch(ids)
        assert (store.stats - before).operations == 100  # copying 20 KB costs more than a call
        os.fdatasync(fd)
        store._opened().drop(0, 0)
        assert blockio.cached(fd, at + 2 * PAGE, 16) < 16  # elsewhere: what is asked for comes into the cache
        before = store.stats.snapshot()
        store.read_batch(ids)
        assert (store.stats - before).operations < 10


def test_no_more_are_in_flight_than_asked_for(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(_blocks, "together", lambda work, threads, cancel: (seen.append(threads), work()))
    FeatureStorage.from_array(np.zeros((100_000, 128), np.float32), folder / "x.npy").close()
    ids = np.arange(0, 100_000, 1000)
    for options in ({"disk": DISK}, {"io_threads": 7}):
        with FeatureStorage(folder / "x.npy", direct=True, **options) as store:
            store.read_batch(ids)
            store.read_batch(ids[:2])
            store.read_rows(0, 100_000)
    assert seen == [4, 2, 4, 7, 2, 7]
    seen.clear()
    with FeatureStorage(folder / "x.npy", direct=False) as store:
        store.read_rows(0, 100_000)
        seen.clear()
        if blockio.cached(store._opened().fd, np.array([4096]), 1) < 1:
            pytest.skip("this file system does not tell what is in the page cache")
        store.read_batch(np.arange(100_000))
        assert seen == [1]
        with working_threads(2):
            store.read_batch(np.arange(100_000))
            store.read_batch(ids[:10])
        assert seen == [1, 2, 1]  # a small request is not worth waking a thread


# Errors, and what they leave behind

def io_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("gnncy-io")]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("threads", [1, 6])
def test_a_file_cut_short_is_named_with_its_byte(folder, direct, threads):
    path = folder / "x"
    path.write_bytes(contents(500 * PAGE).tobytes())
    with BlockFile(path, direct=direct, io_threads=threads, disk=DiskModel(0, 1e9, 1e9)) as file:
        os.truncate(path, 200 * PAGE + 50)
        start = np.arange(500) * PAGE
        out = np.zeros(500 * 100, np.uint8)
        with pytest.raises(StorageError, match="cut short while open") as caught:
            file.gather(start, np.full(500, 100), np.arange(500) * 100, out)
        assert caught.value.errno == errno.EIO and caught.value.filename == str(path)
        file.gather(start[:200], np.full(200, 100), np.arange(200) * 100, out)
        file.gather(start[200:201], np.array([50]), np.array([0]), out)


@pytest.mark.parametrize("direct", [True, False])
def test_a_failed_call_is_raised_with_file_offset_and_cause(folder, direct):
    path = folder / "x"
    path.write_bytes(bytes(500 * PAGE))
    with BlockFile(path, direct=direct, io_threads=6, disk=DiskModel(0, 1e9, 1e9)) as file:
        other = os.open(folder, os.O_RDONLY)
        os.dup2(other, file._aligned_fd if direct else file.fd)
        os.close(other)
        for _ in range(5):
            with pytest.raises(StorageError, match="while reading at byte") as caught:
                file.gather(np.arange(0, 500, 7) * PAGE, np.full(72, 100), np.arange(72) * 100,
                            np.zeros(7200, np.uint8))
            assert caught.value.errno == errno.EISDIR and caught.value.filename == str(path)
    assert len(io_threads()) <= _blocks.IN_FLIGHT


def test_an_error_stops_the_others_and_all_have_ended():
    busy, started = [], threading.Barrier(4)
    stop = threading.Event()

    def work():
        busy.append(1)
        try:
            if started.wait() == 0:
                raise StorageError(errno.EIO, "broken")
            assert stop.wait(10)
        finally:
            busy.pop()

    # Whichever thread fails, the caller gets its error after the others have returned.
    def run():
        try:
            together(work, 4, stop.set)
        finally:
            assert not busy

    timer = threading.Timer(0.05, stop.set)
    timer.start()
    with pytest.raises(StorageError, match="broken"):
        run()
    timer.join()


def test_an_interrupt_cancels_what_is_in_flight():
    stop, ended = threading.Event(), []

    def work():
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        ended.append(stop.wait(10))

    with pytest.raises(KeyboardInterrupt):
        together(work, 3, stop.set)
    assert all(ended)


def test_threads_are_shared_and_do_not_pile_up(folder):
    FeatureStorage.from_array(np.zeros((10_000, 128), np.float32), folder / "x.npy").close()
    disk = DiskModel(0, 1e9, 1e9, threads=8)
    with FeatureStorage(folder / "x.npy", direct=True, disk=disk) as store:
        def read():
            for seed in range(5):
                store.read_batch(np.random.default_rng(seed).integers(0, 10_000, 300))
        readers = [threading.Thread(target=read) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert store.stats.bytes_requested == 8 * 5 * 300 * 512
    assert 0 < len(io_threads()) <= _blocks.IN_FLIGHT


def test_blocks_ahead_come_in_order_and_their_errors_too():
    made = []

    def call(k):
        made.append(k)
        if k == 5:
            raise StorageError(errno.EIO, "fifth")
        return k

    results = ahead(call, 10, 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(StorageError, match="fifth"):
        next(results)
    assert max(made) <= 7
    assert list(ahead(call, 3, 0)) == [0, 1, 2] and list(ahead(call, 0, 2)) == []


def test_leaving_early_waits_for_what_is_being_read():
    running = []

    def call(k):
        running.append(k)
        time.sleep(0.02)
        running.remove(k)
        return k

    results = ahead(call, 100, 3)
    assert next(results) == 0
    results.close()
    assert running == []


def test_arrays_for_direct_reads_are_aligned():
    for shape in (1, 5000, 2 << 20, (3 << 20, 3)):
        array = direct_empty(shape, np.float32)
        assert array.ctypes.data % (mmap.PAGESIZE if array.nbytes < 2 << 20 else 2 << 20) == 0
        array[...] = 1
    assert arena() is arena() and arena().ctypes.data % PAGE == 0 and len(arena()) == _blocks.ARENA


def test_a_path_given_to_another_file_is_not_read(folder, monkeypatch):
    path = folder / "x"
    path.write_bytes(b"a" * PAGE)
    real = os.open

    def swapped(target, flags, *args, **kwargs):
        if flags & os.O_DIRECT:
            (folder / "y").write_bytes(b"b" * PAGE)
            os.replace(folder / "y", path)
        return real(target, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", swapped)
    with BlockFile(path, direct=True) as file:
        out = np.zeros(PAGE, np.uint8)
        file.read_range(0, out)
        assert not file.direct and out.tobytes() == b"a" * PAGE


def test_nothing_stays_open(folder):
    (folder / "x").write_bytes(bytes(PAGE))
    before = len(os.listdir("/proc/self/fd"))
    for direct in (True, False):
        file = BlockFile(folder / "x", direct=direct)
        file.close()
        file.close()
        assert not file.direct and len(os.listdir("/proc/self/fd")) == before


# After a fork

def child(store, connection):
    try:
        readers = [threading.Thread(target=lambda: store.read_batch(np.arange(0, 5000, 103))) for _ in range(4)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        connection.send((store.read_batch(np.arange(0, 5000, 7)), store.direct, len(io_threads())))
    finally:
        connection.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_has_descriptors_and_threads_of_its_own(folder):
    x = np.random.default_rng(0).standard_normal((5000, 20)).astype(np.float32)
    FeatureStorage.from_array(x, folder / "x.npy").close()
    context = multiprocessing.get_context("fork")
    with FeatureStorage(folder / "x.npy", direct=True, disk=DiskModel(0, 1e9, 1e9, threads=5)) as store:
        store.read_batch(np.arange(0, 5000, 103))
        assert io_threads()
        here, there = context.Pipe()
        process = context.Process(target=child, args=(store, there))
        process.start()
        there.close()
        assert here.poll(20)
        rows, direct, threads = here.recv()
        process.join()
        assert process.exitcode == 0 and direct and 0 < threads
        assert np.array_equal(rows, x[::7])
        assert np.array_equal(store.read_batch(np.arange(0, 5000, 7)), x[::7])
