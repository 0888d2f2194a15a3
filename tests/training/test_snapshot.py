import json
import zipfile

import numpy as np
import pytest

from gnncy.errors import StorageError
from gnncy.training import SnapshotFolder, pack_state, read_snapshot, unpack_state, write_snapshot


def test_round_trip_keeps_types_and_the_last_two(tmp_path):
    snapshots = SnapshotFolder(tmp_path)
    assert snapshots.load_latest() is None
    for number in (1, 5, 9):
        snapshots.save(number, {"w/a": np.arange(number, dtype=np.float32), "m": np.ones((2, 3))}, {"step": number})
    arrays, numbers = snapshots.load_latest()
    assert numbers == {"step": 9}
    assert arrays["w/a"].dtype == np.float32 and len(arrays["w/a"]) == 9 and arrays["m"].shape == (2, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000005.npz", "checkpoint-00000009.npz",
                                                          "latest"]


def test_an_error_while_writing_leaves_the_last_whole(tmp_path, monkeypatch):
    snapshots = SnapshotFolder(tmp_path)
    snapshots.save(1, {"a": np.zeros(3)}, {})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        snapshots.save(2, {"a": np.ones(3)}, {})
    arrays, _ = snapshots.load_latest()
    assert not arrays["a"].any()
    assert len(list(tmp_path.iterdir())) == 2


def damage_file(path, damage):
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[:len(data) // 2])
    elif damage == "flip":
        data[4000] ^= 1
        path.write_bytes(data)
    elif damage == "foreign":
        np.savez(path, other=np.zeros(3))
    elif damage == "npy":
        np.save(path.with_suffix(".npy"), np.zeros(3))
        path.with_suffix(".npy").replace(path)
    elif damage == "missing":
        path.unlink()
    elif damage == "pointer":
        (path.parent / "latest").write_bytes(b"../../etc/passwd\xff")
    else:
        header = json.dumps({"format": "gnncy-checkpoint", "version": 99, "numbers": {}})
        np.savez(path, header=np.array(header))


DAMAGES = ["truncate", "flip", "foreign", "npy", "missing", "pointer"]


@pytest.mark.parametrize("damage", [*DAMAGES, "later"])
def test_damage_is_named(tmp_path, damage):
    snapshots = SnapshotFolder(tmp_path)
    path = snapshots.save(1, {"a": np.arange(1000.0)}, {})
    damage_file(path, damage)
    if damage == "pointer":
        path.unlink()
    with pytest.raises(StorageError, match="damaged|not a gnncy|missing|should name|version 99"):
        snapshots.load_latest()


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_is_taken_with_a_warning(tmp_path, damage, caplog):
    snapshots = SnapshotFolder(tmp_path, keep=3)
    for number in (1, 2, 3):
        path = snapshots.save(number, {"a": np.full(1000, float(number))}, {"at": number})
    damage_file(path, damage)
    arrays, numbers = snapshots.load_latest()
    at = 3 if damage == "pointer" else 2
    assert numbers == {"at": at} and (arrays["a"] == at).all()
    assert f"Continuing from checkpoint-0000000{at}.npz, the last that is whole" in caplog.text


def test_a_later_format_is_not_passed_over(tmp_path):
    snapshots = SnapshotFolder(tmp_path)
    snapshots.save(1, {}, {})
    damage_file(snapshots.save(2, {}, {}), "later")
    with pytest.raises(StorageError, match="upgrade gnncy"):
        snapshots.load_latest()


def test_a_disk_that_fails_is_not_taken_for_damage(tmp_path, monkeypatch):
    snapshots = SnapshotFolder(tmp_path)
    for number in (1, 2):
        snapshots.save(number, {"a": np.zeros(3)}, {})

    def failing(*args):
        raise OSError(5, "Input/output error")
    monkeypatch.setattr(zipfile.ZipExtFile, "read", failing)
    with pytest.raises(OSError, match="Input/output error"):
        snapshots.load_latest()


def test_a_run_begun_anew_keeps_its_own(tmp_path):
    """Snapshots of a longer run before used to push out those of the new one, which begin with lower numbers."""
    snapshots = SnapshotFolder(tmp_path)
    for number in (400, 800):
        snapshots.save(number, {}, {"run": 1})
    (tmp_path / "latest").unlink()
    assert snapshots.load_latest() is None
    snapshots.save(20, {}, {"run": 2})
    assert snapshots.load_latest() == ({}, {"run": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000020.npz", "latest"]


def test_numbers_may_be_long_and_keep_must_be_positive(tmp_path):
    snapshots = SnapshotFolder(tmp_path, keep=1)
    for number in (99_999_999, 100_000_000):
        snapshots.save(number, {}, {"at": number})
    assert snapshots.load_latest()[1] == {"at": 100_000_000} and len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match="keep"):
        SnapshotFolder(tmp_path, keep=0)


def test_version_1_is_read(tmp_path):
    header = json.dumps({"format": "gnncy-checkpoint", "version": 1, "numbers": {"epoch": 7}})
    np.savez(tmp_path / "old.npz", **{"header": np.array(header), "array/w/a": np.arange(3), "array/b": np.float32(2)})
    arrays, numbers = read_snapshot(tmp_path / "old.npz")
    assert numbers == {"epoch": 7} and arrays.keys() == {"w/a", "b"}
    assert arrays["w/a"].tolist() == [0, 1, 2] and arrays["b"].dtype == np.float32 and arrays["b"].shape == ()


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.array(2.5), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
                                   np.arange(4, dtype=">i4"), np.array(["ab", "c"]), np.ones((2, 3, 4))[:, ::2],
                                   np.array([True, False]), np.float16([1, np.nan])], ids=lambda a: str(a.dtype))
def test_arrays_of_any_kind_come_back(tmp_path, array):
    write_snapshot(tmp_path / "x.npz", {"a": array}, {})
    found = read_snapshot(tmp_path / "x.npz")[0]["a"]
    assert found.dtype == array.dtype and found.shape == array.shape
    np.testing.assert_array_equal(found, array)


def test_a_shape_that_shrank_is_damage(tmp_path):
    """A flipped bit in a shape used to shorten the array in silence: its checksum is only seen at its end."""
    write_snapshot(tmp_path / "x.npz", {"a": np.arange(5000.0)}, {})
    data = bytearray((tmp_path / "x.npz").read_bytes())
    place = data.index(b"(5000,)") + 1
    data[place] ^= 4  # 5 -> 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(StorageError, match="damaged"):
        read_snapshot(tmp_path / "x.npz")


def test_objects_are_not_written(tmp_path):
    with pytest.raises(TypeError, match="Python objects"):
        write_snapshot(tmp_path / "x.npz", {"a": np.array([{}])}, {})
    assert not list(tmp_path.iterdir())


def test_states_of_any_shape_are_packed():
    state = {"a": {"b": [np.arange(3), {"c": np.ones(2)}], "n": None}, "x": np.float32(0.5), "t": (1, True, "s"),
             "nan": float("inf"), "": np.zeros(1)}
    arrays, numbers = pack_state(state)
    back = unpack_state(arrays, json.loads(json.dumps(numbers)))
    assert back["a"]["b"][0].tolist() == [0, 1, 2] and back["a"]["b"][1]["c"].tolist() == [1, 1]
    assert back["a"]["n"] is None and back["x"] == 0.5 and back["t"] == [1, True, "s"] and back["nan"] == float("inf")
    assert back[""].tolist() == [0] and len(arrays) == 3
    same_name = {"a/b": np.zeros(1), "a": {"b": np.ones(1)}}
    assert unpack_state(*pack_state(same_name))["a"]["b"] == 1 and unpack_state(*pack_state(same_name))["a/b"] == 0
    for bad in ({1: 2}, {"$array": 1}, {"f": print}):
        with pytest.raises(TypeError):
            pack_state(bad)


def test_pickles_are_not_read(tmp_path):
    np.savez(tmp_path / "x.npz", header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(StorageError, match="damaged or not a checkpoint"):
        read_snapshot(tmp_path / "x.npz")


def test_a_name_that_a_zip_file_would_cut_is_refused(tmp_path):
    with pytest.raises(ValueError, match="NUL"):
        write_snapshot(tmp_path / "s.npz", {"a\0b": np.zeros(1)}, {})
    assert not list(tmp_path.iterdir())
