"""What fails in an epoch is raised, and nothing is left behind: threads, descriptors, temporary files."""
import errno
import gc
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from epoch_plans import DIM, KINDS, N, check, descriptors, minibatches, own_threads, run
from gnncy._kernels.storage import repack as kernels
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage
from gnncy.storage.plans.execution.spill import SpillFile

# Errors

@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("name, window", KINDS)
def test_leaving_early_leaves_nothing(store, x, tmp_path, name, window, prefetch):
    feed = run(name, store, minibatches() * 20, window, prefetch=prefetch)
    before = descriptors()
    for _ in feed:
        break
    gc.collect()
    assert not own_threads() and descriptors() == before
    with pytest.raises(ZeroDivisionError):
        for _ in feed:
            raise ZeroDivisionError
    assert not own_threads() and descriptors() == before
    results = iter(feed)
    next(results)
    again = iter(feed)
    with pytest.raises(ValueError, match="closed, or ended by a newer one"):
        next(results)
    next(again)
    feed.close()
    feed.close()
    with pytest.raises(ValueError, match="closed"):
        next(again)
    iter(feed)  # never started
    assert not own_threads() and descriptors() == before
    assert sorted(os.listdir(tmp_path)) == ["x.npy", "x.npy.crc32.npy", "x.npy.json", "x.npy.order.npy"]


def test_temporary_files_stay_for_the_next_pass_and_are_closed(store, x):
    batches = minibatches()
    before = descriptors()
    feed = run("D", store, batches, 4)
    for _ in range(3):
        check(feed, x, batches)
        assert [spill.nbytes for spill in feed.spills] and not own_threads()
        held = descriptors()
    assert len(held - before) == 4  # two files, each with a descriptor for its reservation
    feed.close()
    assert descriptors() == before
    feed = run("D", store, batches, 99, spill=1_000_000)
    check(feed, x, batches)
    assert feed.statistics.spill_bytes == 1_000_000 and len(feed.spills) == 1
    del feed
    gc.collect()
    assert descriptors() == before


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("name, window", KINDS)
def test_errors_of_the_source_come_after_the_minibatches_before_them(store, x, name, window, prefetch):
    class Broken:
        def __iter__(self):
            for k in range(6):
                if k == 5:
                    raise KeyError("the sampler broke")
                yield [k]
    results = iter(run(name, store, Broken(), window, prefetch=prefetch))
    for k in range(5):
        np.testing.assert_array_equal(next(results).features, x[[k]])
    with pytest.raises(KeyError, match="sampler broke"):
        next(results)
    with pytest.raises(IndexError, match="node ids of minibatch 1 must lie in"):
        list(run(name, store, [[0], [N]], window, prefetch=prefetch))


@pytest.mark.parametrize("name, window", KINDS[1:])
def test_errors_of_the_disk_are_raised(tmp_path, name, window):
    x = np.random.default_rng(9).random((4000, 64)).astype(np.float32)
    with FeatureStorage.from_array(x, tmp_path / "x.npy") as store:
        os.truncate(store.path, 4096 + 2000 * 256)
        results = iter(run(name, store, [[1], [3999]], window))
        if window == 1:
            np.testing.assert_array_equal(next(results).features, x[[1]])
        with pytest.raises(StorageError, match="cut short") as caught:
            list(results)
        assert caught.value.filename == str(store.path) and caught.value.errno == errno.EIO


def test_errors_in_writing_and_reading_back_are_raised(store, monkeypatch):
    def fails(*args):
        args[-1][2] = 4096
        return errno.EIO
    real = kernels.read
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "write", fails)
        with pytest.raises(StorageError, match="Input/output error while writing the temporary file at byte 4096"):
            list(run("D", store, minibatches(), 4))
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "read", lambda fd, first, last, base, end, *rest:
                      real(fd, first, last, base, end, *rest) if end == 4096 + N * DIM * 4 else fails(*rest))
        with pytest.raises(StorageError, match="reading the temporary file"):
            list(run("D", store, minibatches(), 4))


def test_a_file_system_that_refuses_direct_reads(tmp_path, x, monkeypatch):
    real, refused = kernels.read, []

    def refuses(fd, *args):
        if os.path.samestat(os.fstat(fd), os.stat(tmp_path / "x.npy")) and not refused:
            refused.append(fd)
            return errno.EINVAL
        return real(fd, *args)

    FeatureStorage.from_array(x, tmp_path / "x.npy").close()
    with FeatureStorage(tmp_path / "x.npy", direct=True) as store:
        if not store._opened().direct:
            pytest.skip("the file system has no O_DIRECT")
        monkeypatch.setattr(kernels, "read", refuses)
        batches = minibatches()
        check(run("D", store, batches, 4), x, batches)
        assert refused and not store._opened().direct


# The temporary file

def test_spill_file_is_private_and_nameless(tmp_path, monkeypatch):
    seen = []
    real = os.unlink

    def watch(path, **options):
        seen.append((os.stat(path).st_mode & 0o777, os.path.basename(path)))
        return real(path, **options)
    monkeypatch.setattr(os, "unlink", watch)
    with SpillFile(tmp_path, 100_000) as spill:
        assert os.listdir(tmp_path) == [] and os.fstat(spill.fd).st_size == spill.nbytes == 100_000
        assert os.fstat(spill.fd).st_blocks * 512 >= 100_000
        spill.reserve(50_000)
        spill.reserve(200_000)
        assert os.fstat(spill.fd).st_size == spill.nbytes == 200_000
    spill.close()
    assert spill.fd == -1 and seen[0][0] == 0o600 and seen[0][1].startswith(f".gnncy-spill-{os.getpid()}-")


def test_what_a_crash_left_is_removed(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True,
                           check=True).stdout.strip()
    dead, mine = tmp_path / f".gnncy-spill-{ended}-0a.tmp", tmp_path / f".gnncy-spill-{os.getpid()}-0a.tmp"
    other = [tmp_path / name for name in (".gnncy-spill-x-0a.tmp", ".gnncy-spill-1-0a.tmp", "spill")]
    for path in (dead, mine, *other):
        path.touch()
    SpillFile(tmp_path).close()
    assert sorted(tmp_path.iterdir()) == sorted([mine, *other])


CRASH = """
import os, sys
import numpy as np
from gnncy.storage import FeatureStorage
from gnncy.storage.plans import EpochPlan, run_plan
plan = EpochPlan("D", hot_rows=0, window=4, seconds=0, bytes_read=0, bytes_written=0, operations=0, peak_memory=10**8)
store = FeatureStorage(sys.argv[1])
for result in run_plan(plan, store, [np.arange(100)] * 20):
    os.kill(os.getpid(), 9)
"""


def test_a_killed_process_leaves_no_file(store, tmp_path):
    before = sorted(os.listdir(tmp_path))
    assert subprocess.run([sys.executable, "-c", CRASH, str(store.path)], capture_output=True).returncode == -9
    assert sorted(os.listdir(tmp_path)) == before


def test_a_full_disk_is_an_error_at_once(store, tmp_path, monkeypatch):
    batches = minibatches()
    with pytest.raises(StorageError, match=r"temporary file needs 10\+?e?.* of disk.*are free.*spill_folder") as caught:
        list(run("D", store, batches, 99, spill=10**18))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["x.npy", "x.npy.crc32.npy", "x.npy.json", "x.npy.order.npy"]

    def full(fd, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="cannot reserve 2 MB: No space left on device.*another directory"):
        list(run("D", store, batches, 99, spill=2_000_000))


def test_a_limit_on_file_sizes_is_an_error_at_once(store):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot reserve 2 MB: File too large"):
            list(run("D", store, minibatches(), 99, spill=2_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_folder_that_cannot_be_written_to_is_named(store, x, tmp_path):
    with pytest.raises(StorageError, match="cannot make a temporary file.*spill_folder") as caught:
        list(run("D", store, minibatches(), 4, spill_folder=tmp_path / "nowhere"))
    assert caught.value.errno == errno.ENOENT
    other = tmp_path / "other"
    other.mkdir()
    batches = minibatches()
    check(run("D", store, batches, 4, spill_folder=other), x, batches)
