import json

import numpy as np
import pytest

from gnncy.errors import StorageError
from gnncy.training import SnapshotFolder, read_snapshot


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


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "missing", "pointer", "later"])
def test_damage_is_named(tmp_path, damage):
    snapshots = SnapshotFolder(tmp_path)
    path = snapshots.save(1, {"a": np.arange(1000.0)}, {})
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[:len(data) // 2])
    elif damage == "flip":
        data[4000] ^= 1
        path.write_bytes(data)
    elif damage == "foreign":
        np.savez(path, other=np.zeros(3))
    elif damage == "missing":
        path.unlink()
    elif damage == "pointer":
        (tmp_path / "latest").write_text("../../etc/passwd\n")
    else:
        header = json.dumps({"format": "gnncy-checkpoint", "version": 99, "numbers": {}})
        np.savez(path, header=np.array(header))
    with pytest.raises(StorageError, match="damaged|not a gnncy|missing|should name|version 99"):
        snapshots.load_latest()


def test_pickles_are_not_read(tmp_path):
    np.savez(tmp_path / "x.npz", header=np.array([{"a": 1}], dtype=object))
    with pytest.raises(StorageError, match="damaged or not a checkpoint"):
        read_snapshot(tmp_path / "x.npz")
