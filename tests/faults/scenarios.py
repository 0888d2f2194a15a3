"""What tests do under the shim of ``shim.c``: run as a script, in a process that has it preloaded.

    python scenarios.py SHIM FOLDER kill|refuse|read|noise SCENARIO [ERRNO]

Prints as JSON how many faults were injected; any surprise is an exception.
"""
import contextlib
import ctypes
import errno
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from gnncy import GraphEncoder, NodeClassifier, NodeEmbedding, nn, optim
from gnncy.datasets import make_sbm
from gnncy.storage import FeatureStorage, HyperbatchConfig, SparseFeatureStorage
from gnncy.training import (
    ColdTierTrainer,
    CSVLogger,
    EarlyStopping,
    GraphLoader,
    SnapshotFolder,
    Trainer,
)
from gnncy.training.phases import PhaseConfig, PredictionConfig

NONE, SHORT, INTERRUPT, REFUSE, DELAY, KILL = range(6)
READS, WRITES, NAMES = 1, 2, 4
X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
Y = X[::-1] * 2
ORDER = np.random.default_rng(1).permutation(len(X))
SPARSE = {name: sp.random_array((50, 20), density=0.2, rng=np.random.default_rng(seed), dtype=np.float32).tocsr()
          for seed, name in enumerate(("old", "new"))}
DATA = make_sbm(120, 3, n_features=8, seed=1)


class Dense:
    """A store of dense rows; a rewrite leaves the rows before or those after."""

    old: np.ndarray | None = X

    def prepare(self, folder):
        FeatureStorage.from_array(X, folder / "x.npy").close()

    def act(self, folder):
        FeatureStorage.from_array(Y, folder / "x.npy", order=ORDER, overwrite=True).close()

    def read(self, folder):
        with FeatureStorage(folder / "x.npy") as store:
            assert store.verify(), store.verify()
            return store[:]

    def check(self, folder):
        """After a fault: what is there is whole; who writes next finds no left-over."""
        allowed = [x for x in (self.old, Y) if x is not None]
        if self.old is None and not (folder / "x.npy").exists():
            left = {name for name in names(folder) if not name.endswith((".next", ".tmp"))}
            assert not left, left
            self.act(folder)
        found = self.read(folder)
        assert any(np.array_equal(found, x) for x in allowed), "the rows are neither those before nor those after"
        FeatureStorage(folder / "x.npy", "r+").close()
        assert names(folder) <= {"x.npy", "x.npy.json", "x.npy.crc32.npy", "x.npy.order.npy"}, names(folder)


class DenseNew(Dense):
    old = None

    def prepare(self, folder):
        pass


class Reorder(Dense):
    old = X

    def act(self, folder):
        with FeatureStorage(folder / "x.npy") as store:
            store.reorder(ORDER)

    def check(self, folder):
        global Y
        kept, Y = Y, X
        try:
            super().check(folder)
        finally:
            Y = kept


class ReorderWriting(Reorder):
    def act(self, folder):
        with FeatureStorage(folder / "x.npy", "r+") as store:
            store.reorder(ORDER)


class InPlace(Dense):
    """Rows written in place: each is the one before or the one after, and none looks damaged."""

    def act(self, folder):
        with FeatureStorage(folder / "x.npy", "r+") as store:
            for start in range(0, len(X), 100):
                store.write_features(np.arange(start, start + 100), Y[start:start + 100])
            store.flush()

    def read(self, folder):
        with FeatureStorage(folder / "x.npy") as store:
            return store[:]

    def check(self, folder):
        with FeatureStorage(folder / "x.npy") as store:
            assert not store.verify().damaged, store.verify()
            rows = store[:]
        assert ((rows == X) | (rows == Y)).all()
        with FeatureStorage(folder / "x.npy", "r+") as store:  # and life goes on
            store.write_features(np.arange(len(X)), X)
        with FeatureStorage(folder / "x.npy") as store:
            assert not store.verify().damaged


class Append(Dense):
    """Rows added at the end: all of them, or none."""

    def prepare(self, folder):
        FeatureStorage.from_array(X[:200], folder / "x.npy", order=np.arange(200)[::-1]).close()

    def act(self, folder):
        with FeatureStorage(folder / "x.npy", "r+") as store:
            store.append(X[len(store):])

    def check(self, folder):
        found = self.read(folder)
        assert len(found) in (200, 300) and np.array_equal(found, X[:len(found)])
        self.act(folder)  # and life goes on
        np.testing.assert_array_equal(self.read(folder), X)
        assert names(folder) == {"x.npy", "x.npy.json", "x.npy.crc32.npy", "x.npy.order.npy"}, names(folder)


class Sparse:
    def prepare(self, folder):
        SparseFeatureStorage.from_csr(SPARSE["old"], folder / "words").close()

    def act(self, folder):
        SparseFeatureStorage.from_csr(SPARSE["new"], folder / "words", overwrite=True).close()

    def read(self, folder):
        with SparseFeatureStorage(folder / "words") as store:
            assert store.verify(), store.verify()
            return store.read_rows(0, 50).toarray()

    def check(self, folder):
        found = self.read(folder)
        assert any(np.array_equal(found, x.toarray()) for x in SPARSE.values())
        SparseFeatureStorage.from_csr(SPARSE["new"], folder / "words", overwrite=True).close()
        assert names(folder) == {"words"}, names(folder)
        np.testing.assert_array_equal(self.read(folder), SPARSE["new"].toarray())


class Snapshots:
    def prepare(self, folder):
        for number in (1, 2):
            SnapshotFolder(folder).save(number, {"x": X * number}, {"at": number})

    def act(self, folder):
        SnapshotFolder(folder).save(3, {"x": X * 3}, {"at": 3})

    def read(self, folder):
        arrays, numbers = SnapshotFolder(folder).load_latest()
        assert np.array_equal(arrays["x"], X * numbers["at"])
        return arrays["x"]

    def check(self, folder):
        self.read(folder)
        from gnncy import _files
        _files.remove_temporaries(folder)
        assert not [name for name in names(folder) if name.startswith(".")]
        self.act(folder)
        assert names(folder) == {"checkpoint-00000002.npz", "checkpoint-00000003.npz", "latest"}, names(folder)


class Run:
    """A run that begins again after a fault, and must end with the same bits."""

    expected: np.ndarray | None = None

    def prepare(self, folder):
        if self.expected is None:
            self.act(folder)
            self.expected = self.read(folder)
            shutil.rmtree(folder)
            folder.mkdir()

    def check(self, folder):
        self.act(folder)
        np.testing.assert_array_equal(self.read(folder), self.expected)
        assert not [name for name in names(folder) if name.startswith(".")], names(folder)

    def read(self, folder):
        return np.load(folder / "result.npy")


class Encoder(Run):
    name = "propagate"

    def act(self, folder):
        encoder = GraphEncoder(4, encoder=self.name, n_neighbors=(3,), hidden=8, reduced_width=8, max_epochs=2,
                               random_state=0, checkpoint_dir=folder / "run", memory_limit="64MB")
        np.save(folder.parent / "result.npy", encoder.fit_transform(DATA.adjacency, features=DATA.features))

    def read(self, folder):
        return np.load(folder.parent / "result.npy")

    def check(self, folder):
        super().check(folder)
        left = names(folder / "run") - {"config.json", "embedding.npy", "embedding.npy.json", "embedding.npy.crc32.npy",
                                        "latest", "smoothing.npz"}
        assert all(name.startswith("checkpoint-") for name in left), left


class SageEncoder(Encoder):
    name = "sage"


class Classifier(Run):
    def act(self, folder):
        y = np.where(np.arange(120) < 60, DATA.labels, -1)
        model = NodeClassifier(4, hidden=8, reduced_width=8, max_epochs=3, random_state=0, memory_limit="64MB",
                               checkpoint_dir=folder / "run").fit(DATA.adjacency, y, features=DATA.features)
        np.save(folder.parent / "result.npy", model.embedding_)

    def read(self, folder):
        return np.load(folder.parent / "result.npy")


class Table(Run):
    def act(self, folder):
        model = NodeEmbedding(8, epochs=4, random_state=0, folder=folder / "run", memory_limit="64MB")
        np.save(folder.parent / "result.npy", model.fit_transform(DATA.adjacency))

    def read(self, folder):
        return np.load(folder.parent / "result.npy")

    def check(self, folder):
        super().check(folder)
        journal = folder / "run" / "table.npy.journal"
        assert not journal.exists() or not journal.stat().st_size


class Fit(Run):
    phases: PhaseConfig | None = None

    def act(self, folder):
        model = nn.MLP([8, 8, 4], dropout=0.1, rng=0)
        loader = GraphLoader(DATA.adjacency, DATA.features, batch_size=30)
        trainer = Trainer(model, optim.Adam(model.parameters()), seed=0, max_epochs=2, snapshots=SnapshotFolder(folder),
                          snapshot_seconds=0.0, phases=self.phases,
                          callbacks=[EarlyStopping(patience=3), CSVLogger(folder / "history.csv")])
        trainer.fit(loader)
        np.save(folder.parent / "result.npy", np.concatenate([p.data.ravel() for p in model.parameters()]))

    def read(self, folder):
        return np.load(folder.parent / "result.npy")

    def check(self, folder):
        from gnncy import _files
        _files.remove_temporaries(folder)
        super().check(folder)


class Phases(Fit):
    phases = PhaseConfig(full_steps=2, predict_steps=2, prediction=PredictionConfig(min_correlation=None))


class Cold(Run):
    def prepare(self, folder):
        super().prepare(folder)
        if not (folder / "x.npy").exists():
            FeatureStorage.from_array(DATA.features, folder / "x.npy").close()

    def act(self, folder):
        if not (folder / "x.npy").exists():
            FeatureStorage.from_array(DATA.features, folder / "x.npy").close()
        FeatureStorage(folder / "x.npy", "r+").close()  # takes its lock, and removes what a killed writer left
        with ColdTierTrainer(folder / "x.npy", DATA.adjacency, n_components=4, hidden=8, fanouts=(3,),
                             config=HyperbatchConfig(batch_size=40), memory_limit="64MB") as trainer:
            if (folder / "trainer.npz").exists():
                trainer.load_checkpoint(folder / "trainer.npz")
            while trainer.epoch < 3:
                trainer.train_epoch()
                trainer.save_checkpoint(folder / "trainer.npz")
            np.save(folder.parent / "result.npy",
                    np.concatenate([p.data.ravel() for p in trainer.model.parameters()]))

    def read(self, folder):
        return np.load(folder.parent / "result.npy")

    def check(self, folder):
        from gnncy import _files
        _files.remove_temporaries(folder)
        super().check(folder)


SCENARIOS = {"dense": Dense, "dense-new": DenseNew, "reorder": Reorder, "reorder-writing": ReorderWriting,
             "in-place": InPlace, "sparse": Sparse, "snapshots": Snapshots, "propagate": Encoder, "sage": SageEncoder,
             "fit": Fit, "phases": Phases, "cold": Cold, "append": Append, "classifier": Classifier, "table": Table}


def names(folder):
    return set(os.listdir(folder))


def fresh(scenario, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    scenario.prepare(folder)


def kill(shim, scenario, folder, stride=1):
    """Killed before each call that writes, in turn."""
    at, killed = 1, 0
    while True:
        fresh(scenario, folder)
        child = os.fork()
        if child == 0:
            status = 70
            try:
                shim.gnncy_arm(KILL, WRITES | NAMES, ctypes.c_long(at), 1, 0)
                scenario.act(folder)
                status = 0
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -9), f"call {at}: exit status {status}"
        try:
            scenario.check(folder)
        except BaseException as error:
            error.add_note(f"killed before call {at}")
            raise
        if status == 0:
            return {"killed": killed}
        killed, at = killed + 1, at + stride


def refuse(shim, scenario, folder, number, classes, stride=1):
    """One call refused with an errno, in turn; returns how often that was an error and how often it did no harm."""
    at, errors, harmless = 1, 0, 0
    while True:
        fresh(scenario, folder)
        shim.gnncy_arm(REFUSE, classes, ctypes.c_long(at), 1, number)
        try:
            (scenario.act if classes & WRITES or isinstance(scenario, Run) else scenario.read)(folder)
        except OSError as error:
            failed: OSError | None = error
        else:
            failed = None
        made = shim.gnncy_count()
        shim.gnncy_arm(NONE, 0, ctypes.c_long(0), 0, 0)
        if made < at:
            assert failed is None
            return {"errors": errors, "harmless": harmless}
        try:
            if failed is not None:
                assert failed.errno == number, repr(failed)
            left = [str(p) for p in folder.rglob("*.tmp")]
            assert not left or shim.gnncy_last() in (b"unlink", b"unlinkat", b"rmdir"), left
            scenario.check(folder)
        except BaseException as error:
            error.add_note(f"refused call {at}")
            raise
        errors, harmless, at = errors + (failed is not None), harmless + (failed is None), at + stride


def noise(shim, scenario, folder):
    """Every call cut short, every other interrupted, every one delayed: nothing changes."""
    made = 0
    fresh(scenario, folder)
    scenario.act(folder)
    expected = scenario.read(folder)
    for what, classes, how in ((SHORT, READS | WRITES, 0), (INTERRUPT, READS | WRITES, 0), (DELAY, READS, 200)):
        fresh(scenario, folder)
        shim.gnncy_arm(what, classes, ctypes.c_long(1), -1, how)
        scenario.act(folder)
        found = scenario.read(folder)
        made += shim.gnncy_count()
        shim.gnncy_arm(NONE, 0, ctypes.c_long(0), 0, 0)
        np.testing.assert_array_equal(found, expected)
        scenario.check(folder)
    return {"calls": made}


def main():
    library, folder, what, name, *more = sys.argv[1:]
    shim = ctypes.CDLL(library)
    shim.gnncy_count.restype, shim.gnncy_last.restype = ctypes.c_long, ctypes.c_char_p
    folder = Path(folder).resolve() / "watched"
    shim.gnncy_watch(str(folder).encode())
    scenario = SCENARIOS[name]()
    if what == "kill":
        result = kill(shim, scenario, folder, *map(int, more))
    elif what == "noise":
        result = noise(shim, scenario, folder)
    else:
        number = getattr(errno, more[0])
        result = refuse(shim, scenario, folder, number, READS if what == "read" else WRITES | NAMES,
                        *map(int, more[1:]))
    print(json.dumps(result))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
