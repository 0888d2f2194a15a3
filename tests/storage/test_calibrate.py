"""The calibration of a disk: what is measured, what is remembered, and where neither can be."""
import dataclasses
import errno
import json
import os
import time

import numpy as np
import pytest

from gnncy import cli
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage
from gnncy.storage.plans import DiskModel, calibrate, known_disk
from gnncy.storage.plans import disk as disks

GIVEN = "operation=14.4us,read=3.5GB/s,write=2.6GB/s,threads=8"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and bursts that are over at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(disks.VARIABLE, raising=False)
    monkeypatch.setattr(disks, "_BURST", 0.004)
    return tmp_path / "cache" / "gnncy"


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements, and makes them without a disk."""
    calls = []

    def measure(path):
        calls.append(path)
        return DiskModel(1e-5 * len(calls), 2e9, 1e9, 16, origin="measured")

    monkeypatch.setattr(disks, "_measure", measure)
    return calls


def test_a_measurement_is_plausible_quick_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "_BURST", 0.02)
    (tmp_path / "data").mkdir()
    begun = time.perf_counter()
    disk = calibrate(tmp_path / "data" / "later" / "x.npy")
    assert time.perf_counter() - begun < 5  # 0.3 s on an idle machine
    assert disk.origin.startswith("measured")
    assert 1e-9 <= disk.operation_seconds < 0.1
    assert 1e6 < disk.write_bandwidth < 1e12 and 1e6 < disk.read_bandwidth < 1e12
    assert disk.threads in disks._IN_FLIGHT
    assert os.listdir(tmp_path / "data") == []
    assert known_disk(tmp_path) == disk


def test_a_large_file_is_read_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "_SAMPLE", 4 << 20)
    (tmp_path / "x").write_bytes(bytes(6 << 20))
    read = []
    burst = disks._burst

    def spy(fd, path, offsets, nbytes, threads, writes=False):
        read.append((os.fstat(fd).st_size, bool(writes), int(offsets.max()) + nbytes))
        return burst(fd, path, offsets, nbytes, threads, writes)

    monkeypatch.setattr(disks, "_burst", spy)
    calibrate(tmp_path / "x")
    assert read[0] == (4 << 20, True, 4 << 20)
    assert len(read) > 3 and all(size == 6 << 20 and not writes and last <= size for size, writes, last in read[1:])


def test_once_for_each_device(tmp_path, cache, measured):
    first = calibrate(tmp_path)
    assert calibrate(tmp_path / "other" / "file") == first and len(measured) == 1
    assert calibrate(tmp_path, refresh=True) != first and len(measured) == 2
    assert known_disk(tmp_path).operation_seconds == 2e-5
    device = os.stat(tmp_path).st_dev
    assert os.listdir(cache) == [f"disk-{os.major(device)}-{os.minor(device)}.json"]


def test_the_home_folder_is_the_default(tmp_path, monkeypatch, measured):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    calibrate(tmp_path)
    assert len(list((tmp_path / ".cache" / "gnncy").iterdir())) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"version": 1}', '{"version": 99, "disk": {}}',
                                     '{"version": 1, "disk": {"operation_seconds": -1, "read_bandwidth": 1e9, '
                                     '"write_bandwidth": 1e9}}',
                                     '{"version": 1, "disk": {"speed": 3}}', "\x00\xff"])
def test_a_damaged_cache_is_no_error(tmp_path, cache, measured, content):
    calibrate(tmp_path)
    [file] = cache.iterdir()
    file.write_text(content, encoding="latin-1")
    assert known_disk(tmp_path) == disks.DEFAULT
    assert calibrate(tmp_path).operation_seconds == 2e-5 and json.loads(file.read_text())["version"] == 1


def test_an_unwritable_cache_is_no_error(tmp_path, monkeypatch, measured):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert calibrate(tmp_path) != calibrate(tmp_path) and len(measured) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert calibrate(tmp_path).operation_seconds == pytest.approx(3e-5)


# The variable, and the text

def test_the_variable_is_believed(tmp_path, monkeypatch, measured):
    monkeypatch.setenv("GNNCY_DISK", GIVEN)
    disk = calibrate(tmp_path, refresh=True)
    assert disk == known_disk(tmp_path) == DiskModel(14.4e-6, 3.5e9, 2.6e9, 8) and disk.origin == "GNNCY_DISK"
    assert measured == []
    FeatureStorage.from_array(np.ones((5, 5), np.float32), tmp_path / "x.npy").close()
    with FeatureStorage(tmp_path / "x.npy") as store:
        assert store._opened().disk == disk
    with FeatureStorage(tmp_path / "x.npy", disk=DiskModel(1, 1, 1)) as store:  # an argument is believed more
        assert store._opened().disk == DiskModel(1, 1, 1)


@pytest.mark.parametrize("text", ["fast", "operation=14us", "operation=14us,read=1GB/s",
                                  "operation=14,read=1GB/s,write=1GB/s", "operation=1us,read=quick,write=1GB/s",
                                  "operation=1us,read=1GB/s,write=-1GB/s",
                                  "operation=1us,read=1GB/s,write=1GB/s,threads=0",
                                  "operation=1us,read=1GB/s,write=1GB/s,threads=many",
                                  "operation=1us,read=1GB/s,write=1GB/s,colour=3"])
def test_bad_text_is_a_clear_error(tmp_path, monkeypatch, text):
    monkeypatch.setenv("GNNCY_DISK", text)
    for call in (calibrate, known_disk):
        with pytest.raises(ValueError, match="GNNCY_DISK must be of the form 'operation=14.4us") as caught:
            call(tmp_path)
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text, want", [
    (GIVEN, DiskModel(14.4e-6, 3.5e9, 2.6e9, 8)),
    ("operation=8 ms, read=200MB/s, write=180MB/s", DiskModel(8e-3, 2e8, 1.8e8, 16)),
    ("read=1GiB/s,write=5e8,operation=250ns", None),
    ("operation=2s,read=1KB/s,write=2KB,threads=1", DiskModel(2.0, 1e3, 2e3, 1)),
    ("operation=333µs,read=1GiB/s,write=1MiB/s", DiskModel(333e-6, 2.0**30, 2.0**20, 16)),
])
def test_texts(text, want):
    if want is None:
        with pytest.raises(ValueError, match="disk must be of the form"):
            DiskModel.parse(text)
    else:
        disk = DiskModel.parse(text)
        assert disk == dataclasses.replace(want, operation_seconds=disk.operation_seconds)
        assert disk.operation_seconds == pytest.approx(want.operation_seconds)
        assert str(DiskModel.parse(str(disk))) == str(disk)


# Where something is missing

def test_without_direct_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(disks, "_SAMPLE", 4 << 20)
    monkeypatch.setattr(disks, "open_direct", lambda path, flags=os.O_RDONLY: None)
    disk = calibrate(tmp_path)
    assert disk.origin == "measured, without O_DIRECT" and disk.read_bandwidth > 1e6


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_without_permission_or_space_to_write(tmp_path, cache, monkeypatch, number):
    monkeypatch.setattr(disks, "_SAMPLE", 4 << 20)
    (tmp_path / "x").write_bytes(bytes(5 << 20))
    (tmp_path / "small").write_bytes(bytes(5))

    def refuse(folder, stack):
        raise OSError(number, "refused")

    monkeypatch.setattr(disks, "_written", refuse)
    disk = calibrate(tmp_path / "x")
    assert disk.origin == "measured, write bandwidth assumed" and disk.write_bandwidth == disk.read_bandwidth
    for file in cache.iterdir():
        file.unlink()
    for nothing in (tmp_path, tmp_path / "small"):
        assert calibrate(nothing) is disks.DEFAULT and disks.DEFAULT.origin == "assumed"
    assert list(cache.iterdir()) == []


def test_a_failing_disk_is_an_error(tmp_path, monkeypatch):
    def refuse(folder, stack):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(disks, "_written", refuse)
    with pytest.raises(OSError, match="broken"):
        calibrate(tmp_path)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(StorageError, match="calibrating") as caught:
            disks._burst(fd, tmp_path, np.zeros(10, np.int64), 4096, 3)
        assert caught.value.errno == errno.EISDIR
    finally:
        os.close(fd)


# The command

def test_doctor_prints_it(tmp_path, capsys, monkeypatch, measured):
    assert cli.main(["doctor", "--disk", str(tmp_path)]) == 0
    assert "10 us an operation, reads 2 GB/s, writes 1 GB/s, best with 16 requests in flight (measured)" \
        in capsys.readouterr().out
    assert cli.main(["doctor", str(tmp_path), "--disk", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["disk"]["model"]
    assert found == {"operation_seconds": 2e-5, "read_bandwidth": 2e9, "write_bandwidth": 1e9, "threads": 16,
                     "origin": "measured"}
    assert cli.main(["doctor", str(tmp_path), "--json"]) == 0
    assert "model" not in json.loads(capsys.readouterr().out)["disk"] and len(measured) == 2
    monkeypatch.setenv("GNNCY_DISK", "fast")
    assert cli.main(["doctor", "--disk", str(tmp_path)]) == 2
    assert "GNNCY_DISK must be of the form" in capsys.readouterr().err
