import os
import subprocess
import sys
from pathlib import Path

import pytest

from gnncy import _files


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("old")
    with _files.replacing(path) as temporary:
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "^C"])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "state.json"
    path.write_text("old")
    with pytest.raises(type(error)), _files.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), _files.replacing(tmp_path / "state.json"):
        pass
    assert os.listdir(tmp_path) == []


def test_the_file_is_synced_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(f"sync {Path(f'/proc/self/fd/{fd}').resolve().name}"),
                                                 fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    _files.write_text(tmp_path / "note", "text")
    assert [call.split(".")[0] for call in calls] == ["sync ", "rename", f"sync {tmp_path.name}"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    killed = ("import os, sys; from gnncy import _files\n"
              "with _files.replacing(sys.argv[1]) as f: f.write_text('half'); os.kill(os.getpid(), 9)")
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path / "state.json")]).returncode == -9
    (tmp_path / ".notes.tmp").write_text("the user's")
    assert len(os.listdir(tmp_path)) == 2
    _files.remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == [".notes.tmp"]


def test_write_text(tmp_path):
    path = tmp_path / "note"
    _files.write_text(path, "Â²X\n")
    assert path.read_bytes() == "Â²X\n".encode()
    with pytest.raises(FileNotFoundError):
        _files.write_text(tmp_path / "absent" / "note", "text")
