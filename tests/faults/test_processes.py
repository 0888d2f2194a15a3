"""Several processes: two that write, one that was forked, one that is told to end; folders that may not be written."""
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gnncy import GraphEncoder, _files, nn, optim
from gnncy.datasets import make_sbm
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage, SparseFeatureStorage
from gnncy.training import ExitOnSignal, GraphLoader, SnapshotFolder, Trainer

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
DATA = make_sbm(120, 3, n_features=8, seed=1)


def python(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, **options)


HOLDS = """
import sys, time
from gnncy.storage import FeatureStorage
store = FeatureStorage(sys.argv[1], "r+")
print("open", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    FeatureStorage.from_array(X, tmp_path / "x.npy").close()
    return tmp_path / "x.npy"


def test_a_second_writer_is_told_who_the_first_is_and_may_write_after_its_death(path):
    with python(HOLDS, path) as holder:
        assert holder.stdout.readline() == "open\n"
        for write in (lambda: FeatureStorage(path, "r+"), lambda: FeatureStorage.from_array(X, path, overwrite=True)):
            with pytest.raises(StorageError, match=rf"already open for writing in process {holder.pid} \(.*python"):
                write()
        with FeatureStorage(path) as reader, pytest.raises(StorageError, match="already open for writing"):
            reader.reorder(np.arange(200)[::-1])
        holder.kill()
    with FeatureStorage(path, "r+") as store:
        with pytest.raises(StorageError, match="already open for writing in this process"):
            FeatureStorage(path, "r+")
        assert store.verify()


def test_nobody_writes_to_a_file_that_is_being_rewritten(path):
    """What was written to the old file would be lost with it."""
    def blocks():
        with pytest.raises(StorageError, match="already open for writing"):
            FeatureStorage(path, "r+")
        yield X
    FeatureStorage.from_blocks(path, X.shape, blocks(), overwrite=True).close()
    FeatureStorage(path, "r+").close()


def test_temporaries_in_use_are_left_alone(path):
    made = []

    def blocks():
        made.extend(path.parent.glob(".*.tmp"))
        _files.remove_temporaries(path.parent)
        assert list(path.parent.glob(".*.tmp")) == made and len(made) == 1
        yield X
    FeatureStorage.from_blocks(path.parent / "y.npy", X.shape, blocks()).close()
    assert not list(path.parent.glob(".*"))


KILLED = """
import os, signal, sys
import numpy as np
from gnncy.storage import FeatureStorage
from gnncy.storage.layout import rewrite
def dies(*arguments): os.kill(os.getpid(), signal.SIGKILL)
rewrite.pick_rows = rewrite.permute_rows = dies
with FeatureStorage(sys.argv[1]) as store:
    store.reorder(np.arange(200)[::-1])
"""


def test_a_killed_reorder_is_cleaned_up_by_the_next_writer(path):
    (path.parent / ".x.npy.notes.tmp").write_text("the user's")
    process = python(KILLED, path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list(path.parent.glob(".x.npy.*-*.tmp"))) == 1
    with FeatureStorage(path) as reader:
        np.testing.assert_array_equal(reader[:], X)
    FeatureStorage(path, "r+").close()
    assert sorted(os.listdir(path.parent)) == [".x.npy.notes.tmp", "x.npy", "x.npy.crc32.npy", "x.npy.json"]


@pytest.mark.parametrize("between", ["renames", "rename and removal"])
def test_a_sparse_store_killed_in_its_swap_is_there(tmp_path, between):
    folder = tmp_path / "words"
    SparseFeatureStorage.from_csr(np_csr(1), folder).close()
    SparseFeatureStorage.from_csr(np_csr(2), tmp_path / "new").close()
    folder.rename(tmp_path / ".words.1-00000000.old")
    (tmp_path / "new").rename(tmp_path / ".words.1-00000000.tmp" if between == "renames" else folder)
    with SparseFeatureStorage(folder) as store:
        assert store.verify() and (store.read_batch([0]).toarray() == np_csr(2)[[0]].toarray()).all()
    SparseFeatureStorage.from_csr(np_csr(1), folder, overwrite=True).close()
    assert os.listdir(tmp_path) == ["words"]


def np_csr(seed):
    from scipy.sparse import csr_array
    return csr_array(np.random.default_rng(seed).integers(0, 2, (20, 5)).astype(np.float32))


def forked(function):
    """What a forked child makes of it."""
    receive, send = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            send.send(function())
        except Exception as error:
            send.send(repr(error))
        finally:
            os._exit(0)
    found = receive.recv()
    os.waitpid(child, 0)
    return found


def test_a_forked_child_reads_and_does_not_write(path):
    with FeatureStorage(path, "r+") as store:
        store.write_features(0, np.ones(4))
        np.testing.assert_array_equal(forked(lambda: store.read_batch([0, 5])), [np.ones(4), X[5]])
        assert "from which this one was forked" in forked(lambda: store.write_features(0, np.zeros(4)))
        assert "already open for writing in process" in forked(lambda: FeatureStorage(path, "r+"))
        store.write_features(1, np.ones(4))
    with FeatureStorage(path) as store:
        assert store.verify() and (store[:2] == 1).all()


def test_a_lock_does_not_outlive_its_store_in_a_forked_child(path):
    store = FeatureStorage(path, "r+")
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        store.close()
        FeatureStorage(path, "r+").close()
        with FeatureStorage(path) as reader:
            reader.reorder(np.arange(200)[::-1])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_child_forked_during_a_rewrite_holds_nothing(path):
    children = []

    def blocks():
        children.append(os.fork())
        if children[0] == 0:
            time.sleep(30)
            os._exit(0)
        yield X
    try:
        FeatureStorage.from_blocks(path, X.shape, blocks(), overwrite=True).close()
        FeatureStorage(path, "r+").close()
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)


def test_threads_write_to_one_store(tmp_path):
    rows = np.random.default_rng(2).normal(size=(4000, 64)).astype(np.float32)
    FeatureStorage.from_array(np.zeros_like(rows), tmp_path / "x.npy").close()
    with FeatureStorage(tmp_path / "x.npy", "r+") as store:
        def write(part):
            for ids in np.array_split(np.arange(part, 4000, 4), 10):
                store.write_features(ids, rows[ids])
                np.testing.assert_array_equal(store.read_batch(ids), rows[ids])
                store.flush()
        threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(store[:], rows)
    with FeatureStorage(tmp_path / "x.npy") as store:
        assert store.verify()


# Runs

RUN = """
import signal, sys, threading, time
import numpy as np
from gnncy import GraphEncoder
from gnncy.datasets import make_sbm
class Tell:
    def on_batch_end(self, estimator, info): print(estimator.total_steps, flush=True)
data = make_sbm(120, 3, n_features=8, seed=1)
GraphEncoder(4, hidden=8, max_epochs=100000, batch_size=24, random_state=0, checkpoint_dir=sys.argv[1],
             callbacks=[Tell()]).fit(data.adjacency, features=data.features)
"""


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    with python(RUN, tmp_path / "run") as process:
        assert process.stdout.readline() == "1\n"
        with pytest.raises(StorageError, match=f"a run is going on here, in process {process.pid}"):
            GraphEncoder(4, checkpoint_dir=tmp_path / "run").fit(DATA.adjacency, features=DATA.features)
        process.kill()


def command(folder, *more):
    return [sys.executable, "-m", "gnncy", "train", str(folder / "graph.npz"), "--features", str(folder / "x.npy"),
            "--dim", "4", "--batch-size", "64", "--threads", "1", *more]


def test_a_run_told_to_end_goes_on_to_the_same_bits(tmp_path):
    from scipy.sparse import save_npz
    save_npz(tmp_path / "graph.npz", DATA.adjacency)
    np.save(tmp_path / "x.npy", DATA.features)
    run = command(tmp_path, "--epochs", "30", "--out")
    process = subprocess.Popen([*run, str(tmp_path / "told")], cwd=ROOT, text=True, stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL)
    while not (tmp_path / "told" / "latest").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "the same call goes on" in said, said
    again = subprocess.run([*run, str(tmp_path / "told")], cwd=ROOT, text=True, capture_output=True)
    assert again.returncode == 0 and "continuing after epoch" in again.stderr, again.stderr
    subprocess.run([*run, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "told" / "embedding.npy").read_bytes() == (tmp_path / "whole" / "embedding.npy").read_bytes()
    assert not list((tmp_path / "told").rglob("*.tmp"))


class At:
    """Sends a signal to this process at a step."""

    def __init__(self, step, number=signal.SIGUSR1):
        self.step, self.number, self.seen = step, number, []

    def on_batch_end(self, estimator, info):
        self.seen.append(estimator.total_steps)
        if estimator.total_steps == self.step:
            os.kill(os.getpid(), self.number)


def fit(folder, *callbacks, epochs=3):
    model = nn.MLP([8, 8, 4], dropout=0.1, rng=0)
    trainer = Trainer(model, optim.Adam(model.parameters()), seed=0, max_epochs=epochs, snapshot_seconds=1e9,
                      snapshots=None if folder is None else SnapshotFolder(folder), callbacks=callbacks)
    trainer.fit(GraphLoader(DATA.adjacency, DATA.features, batch_size=30))
    return np.concatenate([p.data.ravel() for p in model.parameters()])


@pytest.mark.parametrize("step", [1, 6, 12])
def test_a_trainer_saves_the_step_that_it_was_at(tmp_path, step, caplog):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    expected = fit(tmp_path / "whole")
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path / "told", At(step), ExitOnSignal())
    assert ended.value.code == 75
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    rest = At(99)
    np.testing.assert_array_equal(fit(tmp_path / "told", rest, ExitOnSignal()), expected)
    assert rest.seen == list(range(step + 1, 13))


def test_a_signal_outside_training_ends_at_once():
    with pytest.raises(SystemExit) as ended, ExitOnSignal([signal.SIGUSR2]) as ending:
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(1)
    assert ended.value.code == 75 and ending.received is signal.SIGUSR2
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_a_signal_after_the_last_step_ends_the_fit(tmp_path):
    class AtTheEnd:
        def on_fit_task_end(self, estimator, context):
            if context.task_name == "epoch" and context.task_id == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit), ExitOnSignal() as ending:
        fit(tmp_path, AtTheEnd(), ending)
    assert SnapshotFolder(tmp_path).load_latest()[1]["epoch"] == 3


def test_there_must_be_somewhere_to_save():
    with pytest.raises(ValueError, match="somewhere to save"):
        fit(None, ExitOnSignal())
    model = nn.MLP([8, 4], rng=0)
    with pytest.raises(ValueError, match="nowhere to save"):
        Trainer(model, optim.Adam(model.parameters()), seed=0, max_epochs=1).save_snapshot()


# Folders that may not be written to, and disks that are full

UNPRIVILEGED = """
import os, sys
import numpy as np
from gnncy.storage import FeatureStorage, SparseFeatureStorage
from gnncy.training import SnapshotFolder
folder = sys.argv[1]
assert SnapshotFolder(folder).load_latest() is not None  # what is imported for it, nobody may be able to read later
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
x = np.ones((3, 2), np.float32)
with FeatureStorage(folder + "/x.npy") as store, SparseFeatureStorage(folder + "/words") as words:
    assert store.verify() and words.verify()
assert SnapshotFolder(folder).load_latest() is not None
for write in (lambda: FeatureStorage(folder + "/x.npy", "r+"), lambda: FeatureStorage.from_array(x, folder + "/y.npy"),
              lambda: FeatureStorage.from_array(x, folder + "/x.npy", overwrite=True),
              lambda: SnapshotFolder(folder).save(2, {}, {})):
    try:
        write()
    except PermissionError as error:
        assert folder in str(error.filename), error
        print("refused")
"""


def test_folders_without_permission_are_read_and_named():
    with tempfile.TemporaryDirectory() as folder:
        FeatureStorage.from_array(X, f"{folder}/x.npy").close()
        SparseFeatureStorage.from_csr(np_csr(1), f"{folder}/words").close()
        SnapshotFolder(folder).save(1, {"x": X}, {})
        os.chmod(folder, 0o555)
        for file in Path(folder).glob("*.npy"):
            file.chmod(0o444)
        process = python(UNPRIVILEGED, folder)
        said, errors = process.communicate()
        os.chmod(folder, 0o755)
    assert process.returncode == 0 and said.split() == ["refused"] * 4, errors


FULL = """
import errno, sys
import numpy as np
from gnncy.storage import FeatureStorage, SparseFeatureStorage
from gnncy.training import SnapshotFolder
from pathlib import Path
folder = Path(sys.argv[1])
small, large = np.ones((1000, 16), np.float32), np.ones((40_000, 16), np.float32)
FeatureStorage.from_array(small, folder / "x.npy").close()
SnapshotFolder(folder).save(1, {"x": small}, {"at": 1})
import scipy.sparse as sp
for write in (lambda: FeatureStorage.from_array(large, folder / "x.npy", overwrite=True),
              lambda: FeatureStorage.create(folder / "y.npy", 40_000, 16),
              lambda: SparseFeatureStorage.from_csr(sp.csr_array(large), folder / "words"),
              lambda: SnapshotFolder(folder).save(2, {"x": large}, {"at": 2})):
    try:
        write()
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        print("full")
left = sorted(p.name for p in folder.iterdir())
assert left == ["checkpoint-00000001.npz", "latest", "x.npy", "x.npy.crc32.npy", "x.npy.json"], left
with FeatureStorage(folder / "x.npy") as store:
    assert store.verify() and (store[:] == small).all()
assert SnapshotFolder(folder).load_latest()[1] == {"at": 1}
"""


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of one megabyte in memory."""
    script = f"mount -t tmpfs -o size=1m none '{tmp_path}' && exec '{sys.executable}' -c \"$1\" '{tmp_path}'"
    isolated = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*isolated, "sh", "-c", f"mount -t tmpfs -o size=1m none '{tmp_path}'"],
                      capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    done = subprocess.run([*isolated, "sh", "-c", script, "sh", FULL], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["full"] * 4, done.stderr


def test_rounds_of_kills():
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "kill_rounds.py"), "--rounds", "2", "fit", "sage"],
                          cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_error_of_a_locked_store_has_an_errno(path):
    with FeatureStorage(path, "r+"), pytest.raises(StorageError) as caught:
        FeatureStorage(path, "r+")
    assert caught.value.errno == errno.EWOULDBLOCK
