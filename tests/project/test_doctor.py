import json
import os

import pytest

import gnncy
from gnncy import _doctor, _kernels, _threads


def test_report_is_data():
    found = json.loads(json.dumps(_doctor.report()))
    assert found["gnncy"] == gnncy.__version__
    assert found["packages"]["numpy"] and found["packages"]["scipy"] and found["packages"]["threadpoolctl"]
    assert found["simd"] == {"level": _kernels.LEVEL, "available": list(_kernels.AVAILABLE)}
    assert found["cpus"]["usable"] == _threads.usable_cpus()
    assert all(pool["threads"] >= 1 and pool["library"] for pool in found["blas"])
    assert found["blas"] and found["memory"]["available"] > 0 and found["disk"]["free"] > 0


def test_show_versions_prints_each_fact_once(capsys, monkeypatch):
    monkeypatch.setenv("GNNCY_NUM_THREADS", "1")
    gnncy.show_versions()
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[0].strip() for line in lines]
    for name in ("gnncy", "python", "numpy", "scipy", "threadpoolctl", "SIMD level", "CPUs", "memory", "disk",
                 "GNNCY_NUM_THREADS"):
        assert names.count(name) == 1
    assert "BLAS" in names


def test_a_bad_thread_variable_is_a_finding(monkeypatch):
    monkeypatch.setenv("GNNCY_NUM_THREADS", "many")
    found = _doctor.report()
    assert found["cpus"]["n_jobs"] is None
    assert "GNNCY_NUM_THREADS must be an integer, got 'many'" in found["advice"]


def test_a_path_that_is_not_there_yet(tmp_path):
    found = _doctor.report(tmp_path / "later" / "features.npy")
    assert found["disk"]["path"].endswith("features.npy") and found["disk"]["free"] > 0


MOUNTS = r"""rootfs / ext4 rw 0 0
proc /proc proc rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/me/ram\040disk tmpfs rw 0 0
overlay /srv ext4 rw 0 0
beegfs_nodev /srv beegfs rw 0 0
"""


@pytest.mark.parametrize("path, kind", [("/etc", "ext4"), ("/home/me/x.npy", "nfs4"), ("/home/me/ram disk/x", "tmpfs"),
                                        ("/homework", "ext4"), ("/srv/data", "beegfs")])
def test_file_system_of_a_path(tmp_path, path, kind):
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert _doctor.file_system(path, mounts) == kind


def test_no_mount_table(tmp_path):
    assert _doctor.file_system(tmp_path, tmp_path / "absent") is None


@pytest.mark.parametrize("kind, advice", [("nfs4", "network file system (nfs4): keep feature files on a local disk"),
                                          ("tmpfs", "which is memory"), ("ext4", None)])
def test_advice_on_the_disk(monkeypatch, tmp_path, kind, advice):
    monkeypatch.setattr(_doctor, "file_system", lambda path: kind)
    monkeypatch.setattr(_kernels, "LEVEL", _kernels.AVAILABLE[-1])
    found = _doctor.report(tmp_path)["advice"]
    assert found == [] if advice is None else advice in found[0] and os.fspath(tmp_path) in found[0]


@pytest.mark.skipif(len(_kernels.AVAILABLE) < 2, reason="one SIMD level only")
def test_advice_on_a_forced_level(monkeypatch):
    monkeypatch.setattr(_kernels, "LEVEL", "base")
    assert any("GNNCY_SIMD holds the kernels to base" in line for line in _doctor.report()["advice"])
