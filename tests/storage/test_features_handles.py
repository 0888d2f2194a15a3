"""FeatureStorage: several handles, a fork, pickling, and the end."""
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage, features


def test_one_writer_many_readers(path):
    code = ("import sys; from gnncy.storage import FeatureStorage; from gnncy.errors import StorageError\n"
            "try: FeatureStorage(sys.argv[1], 'r+')\nexcept StorageError as error: print(error)")
    with FeatureStorage.create(path, 5, 2) as store:
        with pytest.raises(StorageError, match="already open for writing"):
            FeatureStorage.open(path, "r+")
        with pytest.raises(StorageError, match="already open for writing"):
            FeatureStorage.create(path, 5, 2, overwrite=True)
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(features.__file__))))
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=root)
        assert "already open for writing" in done.stdout, done.stderr
        with FeatureStorage.open(path) as reader:
            store.write_features(1, [3, 4])
            assert (reader.read_features(1) == [3, 4]).all()
    with FeatureStorage.open(path, "r+") as store:
        assert (store.read_features(1) == [3, 4]).all()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write any file")
def test_a_file_without_write_permission_opens_read_only(path, x):
    FeatureStorage.from_array(x, path).close()
    path.chmod(0o444)
    with FeatureStorage.open(path) as store:
        np.testing.assert_array_equal(store[3], x[3])
    with pytest.raises(PermissionError):
        FeatureStorage.open(path, "r+")


def child(store, connection):
    try:
        read = store.read_batch([4, 2])
        try:
            store.write_features(0, np.zeros(7))
            wrote = ""
        except StorageError as error:
            wrote = str(error)
        connection.send((read, wrote))
    finally:
        connection.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_reads_through_its_own_descriptor(path, x):
    context = multiprocessing.get_context("fork")
    FeatureStorage.from_array(x, path).close()
    with FeatureStorage.open(path, "r+") as store:
        here, there = context.Pipe()
        process = context.Process(target=child, args=(store, there))
        process.start()
        there.close()
        read, wrote = here.recv()
        process.join()
        assert process.exitcode == 0 and np.array_equal(read, x[[4, 2]])
        assert f"open for writing in process {os.getpid()}" in wrote
        store.write_features(0, np.ones(7))  # the child's end has not taken the lock away
        with pytest.raises(StorageError, match="already open"):
            FeatureStorage.open(path, "r+")


def test_pickle_is_path_and_mode(path, x):
    with FeatureStorage.from_array(x, path) as store, pickle.loads(pickle.dumps(store)) as other:
        assert other.path == path and other.mode == "r" and other._opened().fd != store._opened().fd
        np.testing.assert_array_equal(other[:], x)
    assert len(pickle.dumps(store)) < 500


def test_closing(path, x):
    store = FeatureStorage.from_array(x, path)
    assert "300 x 7 float32" in repr(store) and not store.closed
    store.close()
    store.close()
    assert store.closed and "closed" in repr(store)
    for call in (lambda: store.read_batch([1]), lambda: store.read_rows(0, 2), lambda: next(store.iter_rows())):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_an_unclosed_storage_warns_and_lets_go(path, x):
    store = FeatureStorage.from_array(x, path)
    fd = store._opened().fd
    with pytest.warns(ResourceWarning, match="unclosed FeatureStorage"):
        del store
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_failed_open_leaves_no_descriptor(path, x):
    before = len(os.listdir("/proc/self/fd"))
    path.write_bytes(b"nothing")
    for _ in range(5):
        with pytest.raises(StorageError):
            FeatureStorage.open(path)
    assert len(os.listdir("/proc/self/fd")) == before
