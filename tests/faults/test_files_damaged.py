"""Damage that the fuzzer found, or would find: files are named, and no answer is silently wrong."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy.datasets import open_graph, read_edges, read_graph, write_sbm
from gnncy.errors import GraphFormatError, StorageError
from gnncy.storage import FeatureStorage, SparseFeatureStorage
from gnncy.training import SnapshotFolder, read_snapshot, write_snapshot

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).normal(size=(90, 24)).astype(np.float32)
HEAD = "%%MatrixMarket matrix coordinate real general\n%\n30 30 2\n"


@pytest.mark.parametrize("body", ["1 2 1.205\x00816E-1\n1 3 1\n", "1 2 2.7\n1 25 2.73041\x18Q\xc4\xf9", "1 2 1\n1 3",
                                  "1 2 1\n31 3 1\n", "0 2 1\n1 3 1\n", "1 2 1\n", "1 2 1\n1 3 1e\n", "-1 2 1\n1 1 1\n"])
def test_a_damaged_matrix_market_file_does_not_crash_the_process(tmp_path, body):
    (tmp_path / "g.mtx").write_text(HEAD + body, encoding="latin-1")
    with pytest.raises(GraphFormatError, match="g.mtx holds no sparse matrix"):
        read_graph(tmp_path / "g.mtx")


@pytest.mark.filterwarnings("ignore:The default value for `spmatrix`:DeprecationWarning")  # of scipy 1.18
@pytest.mark.parametrize("symmetry, sign", [("general", 0), ("symmetric", 1), ("skew-symmetric", -1)])
@pytest.mark.parametrize("field", ["real", "integer", "pattern"])
def test_matrix_market_files_are_read_as_scipy_does(tmp_path, field, symmetry, sign):
    from scipy.io import mmread
    lines = [(2, 1, 3), (3, 2, 5), (4, 1, 7)]
    text = "\n".join(" ".join(map(str, line[:2 if field == "pattern" else 3])) for line in lines)
    (tmp_path / "g.mtx").write_text(f"%%MatrixMarket matrix coordinate {field} {symmetry}\n% note\n4 4 3\n{text}\n")
    if (field, symmetry) == ("pattern", "skew-symmetric"):
        return  # which makes no sense
    np.testing.assert_array_equal(read_graph(tmp_path / "g.mtx").toarray(), mmread(tmp_path / "g.mtx").toarray())


def test_an_empty_matrix_market_file(tmp_path):
    (tmp_path / "g.mtx").write_text("%%MatrixMarket matrix coordinate real general\n3 3 0\n")
    assert read_graph(tmp_path / "g.mtx").shape == (3, 3)


def test_weights_that_float32_cannot_hold_are_named(tmp_path):
    for name in ("e.csv", "e.txt"):
        (tmp_path / name).write_text("0,1,1e39\n")
        for read in (read_graph, read_edges):
            with pytest.raises(GraphFormatError, match=rf"{name}: as float32, weight contains inf"):
                read(tmp_path / name)


@pytest.mark.parametrize("change", [{"n_nodes": {}}, {"n_nodes": 10**30}, {"n_edges": -1}, {"version": "1"},
                                    {"name": 0}])
def test_a_graph_folder_with_other_numbers_is_named(tmp_path, change):
    write_sbm(tmp_path / "g", 30, 3, n_features=4, seed=0)
    meta = json.loads((tmp_path / "g" / "meta.json").read_text())
    if change == {"name": 0}:
        del meta["name"]
        change = {}
    (tmp_path / "g" / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(GraphFormatError, match="meta.json is damaged"):
        open_graph(tmp_path / "g")


def test_a_changed_number_of_columns_is_found(tmp_path):
    """The other arrays do not tell how many there are: 20 became 28 in silence."""
    SparseFeatureStorage.from_csr(sp.eye_array(20, dtype=np.float32).tocsr(), tmp_path / "w").close()
    meta = tmp_path / "w" / "meta.json"
    meta.write_text(meta.read_text().replace("20\n ]", "28\n ]"))
    with pytest.raises(StorageError, match=r"meta\.json: not as it was written, by its checksum"):
        SparseFeatureStorage(tmp_path / "w")


def test_files_without_a_checksum_of_their_own_open(tmp_path):
    FeatureStorage.from_array(X, tmp_path / "x.npy", order=np.arange(90)[::-1]).close()
    SparseFeatureStorage.from_csr(sp.csr_array(X), tmp_path / "w").close()
    for file in (tmp_path / "x.npy.json", tmp_path / "w" / "meta.json"):
        meta = json.loads(file.read_text())
        del meta["crc32"]
        file.write_text(json.dumps(meta))
    with FeatureStorage(tmp_path / "x.npy") as store, SparseFeatureStorage(tmp_path / "w") as words:
        np.testing.assert_array_equal(store[:], X)
        np.testing.assert_array_equal(words.read_rows(0, 90).toarray(), X)


@pytest.mark.parametrize("seed", range(3))
def test_snapshots_under_any_flipped_bit(tmp_path, seed):
    arrays = {"a": X[:4], "n": np.array(7)}
    write_snapshot(tmp_path / "s.npz", arrays, {"at": 1})
    data = (tmp_path / "s.npz").read_bytes()
    for place in np.random.default_rng(seed).choice(len(data), 150, replace=False):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        (tmp_path / "s.npz").write_bytes(changed)
        try:
            found, numbers = read_snapshot(tmp_path / "s.npz")
        except StorageError as error:
            assert str(tmp_path) in str(error)
            continue
        assert numbers == {"at": 1} and found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00", bytes(5000)])
def test_other_files_are_no_snapshots(tmp_path, content):
    (tmp_path / "checkpoint-00000001.npz").write_bytes(content)
    (tmp_path / "latest").write_text("checkpoint-00000001.npz\n")
    with pytest.raises(StorageError, match="is damaged or not a|is not a"):
        SnapshotFolder(tmp_path).load_latest()


def test_the_fuzzer_finds_nothing_new():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "fuzz.py"), "--inputs", "260"], cwd=ROOT,
                          env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
