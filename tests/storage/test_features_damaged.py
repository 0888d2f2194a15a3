"""FeatureStorage: truncated, foreign, damaged and changed files, and disks that fail."""
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest

from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage, features
from gnncy.storage._blocks import npy_header


def store_bytes(path, x, **options):
    FeatureStorage.from_array(x, path, **options).close()
    return path.read_bytes()


@pytest.mark.parametrize("size", [0, 3, 9, 100, 4095, 4096, 4097, -1])
def test_a_truncated_file_is_named(path, x, size):
    data = store_bytes(path, x)
    path.write_bytes(data[:size])
    with pytest.raises(StorageError, match="truncated|not a .npy file"):
        FeatureStorage.open(path)


def test_every_flipped_bit_of_the_header_is_found(path, x):
    data = store_bytes(path, x)
    rng = np.random.default_rng(9)
    for byte in [*range(130), *rng.integers(130, 4096, 50)]:
        damaged = bytearray(data)
        damaged[byte] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(StorageError):
            FeatureStorage.open(path)


@pytest.mark.parametrize("content, text", [
    (b"PK\x03\x04 some zip file", "not a .npy file"),
    (b"\x93NUMPY\x04\x00" + bytes(200), "version of the format other than"),
    (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(200), "too long"),
    (b"\x93NUMPY\x01\x00" + bytes(200), "damaged"),
    (b"\x93NUMPY\x01\x00\x30\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': 3}".ljust(200), "damaged"),
    (np.arange(6.0).reshape(2, 3, order="F")[:, ::-1].T.copy(order="F"), "Fortran"),
    (np.arange(6), "int64, need float"),
    (np.arange(6).reshape(2, 3), "int64, need float"),
    (np.ones((2, 2), np.complex64), "complex64, need float"),
    (np.ones(6), "need .n_nodes, dim."),
    (np.ones((0, 6)), "need .n_nodes, dim."),
    (np.ones((2, 3, 4)), "need .n_nodes, dim."),
])
def test_foreign_files_are_named(path, content, text):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(StorageError, match=text):
        FeatureStorage.open(path)


def test_a_missing_file(path):
    with pytest.raises(FileNotFoundError):
        FeatureStorage.open(path)


@pytest.mark.parametrize("change, text", [
    (dict(version=0), "format version 0"), (dict(version=3), "format version 3"),
    (dict(format="zarr"), "another program"),
    (dict(shape=[300, 8]), "not the one that"), (dict(dtype="float64"), "not the one that"),
    (dict(header_crc32=5), "not the one that"), (dict(dtype=None), "damaged|not the one"),
    (dict(shape=None), "damaged"),
    (dict(order="features.npy.order.npy"), "by its checksum"),
    (dict(finite=False), "by its checksum"), (None, "damaged or foreign"),
])
def test_a_changed_sidecar_is_named(path, x, change, text):
    store_bytes(path, x)
    sidecar = path.with_name("features.npy.json")
    sidecar.write_text("{" if change is None else json.dumps(json.loads(sidecar.read_text()) | change))
    with pytest.raises(StorageError, match=text):
        FeatureStorage.open(path)


def test_a_sidecar_says_what_the_file_is(path, x):
    data = store_bytes(path, x, order=np.arange(300)[::-1])
    meta = json.loads(path.with_name("features.npy.json").read_text())
    assert meta["format"] == "gnncy-features" and meta["version"] == 2 and meta["shape"] == [300, 7]
    assert meta["dtype"] == "float32" and meta["finite"] is True and meta["order"] == "features.npy.order.npy"
    assert meta["header_crc32"] == zlib.crc32(data[:4096]) and data[:4096] == npy_header((300, 7), np.dtype("<f4"))


def test_rows_are_never_paired_with_the_wrong_ids(path, x):
    store_bytes(path, x, order=np.random.default_rng(10).permutation(300))
    order_file, sidecar = path.with_name("features.npy.order.npy"), path.with_name("features.npy.json")
    kept, meta = order_file.read_bytes(), sidecar.read_bytes()
    sidecar.unlink()  # as after a crash in the middle of an overwrite
    with pytest.raises(StorageError, match="order of the rows is not known|so the order"):
        FeatureStorage.open(path)
    sidecar.write_bytes(meta)
    np.save(order_file, np.arange(300))
    with pytest.raises(StorageError, match="not the order that"):
        FeatureStorage.open(path)
    order_file.write_bytes(kept[:200])
    with pytest.raises(StorageError, match="damaged|not the order"):
        FeatureStorage.open(path)
    order_file.unlink()
    with pytest.raises(StorageError, match="missing"):
        FeatureStorage.open(path)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_cut_short_while_open_raises(path, x, threads):
    FeatureStorage.from_array(x, path).close()
    with FeatureStorage.open(path, io_threads=threads) as store:
        os.truncate(path, 4096 + 100 * 28)
        np.testing.assert_array_equal(store.read_batch([99, 3]), x[[99, 3]])
        with pytest.raises(StorageError, match="cut short while open") as caught:
            store.read_batch([3, 250])
        assert caught.value.errno == errno.EIO and caught.value.filename == str(path)
        with pytest.raises(StorageError, match="cut short"):
            store.read_rows(50, 150)


def test_a_failed_call_keeps_its_errno(path, x):
    with FeatureStorage.from_array(x, path) as store:
        folder = os.open(path.parent, os.O_RDONLY)
        os.dup2(folder, store._opened().fd)
        os.close(folder)
        with pytest.raises(StorageError, match="while reading at byte 4208") as caught:
            store.read_batch([4])
        assert caught.value.errno == errno.EISDIR
        with pytest.raises(StorageError, match="while reading"):
            store.read_rows(0, 3)


@pytest.mark.parametrize("make", ["FeatureStorage.create(path, 1000, 1000)",
                                  "FeatureStorage.from_array(np.ones((1000, 1000), np.float32), path)"])
def test_a_full_disk_is_an_error_at_once(tmp_path, make):
    code = f"""
import errno, os, resource, signal, sys
import numpy as np
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = sys.argv[1]
try:
    {make}
except StorageError as error:
    assert error.errno == errno.EFBIG and "cannot reserve 4 MB" in str(error), error
    assert os.listdir(os.path.dirname(path)) == []
    print("refused")
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(features.__file__))))
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.npy")], capture_output=True, text=True,
                          cwd=root)
    assert done.stdout == "refused\n", done.stderr


def test_a_failed_write_is_an_error(path):
    with FeatureStorage.create(path, 100, 100) as store:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            with pytest.raises(StorageError, match="while writing at byte") as caught:
                store.write_features(np.arange(100), np.ones((100, 100)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert caught.value.errno == errno.EFBIG
        store.write_features([1], np.ones((1, 100)))
