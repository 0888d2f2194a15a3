"""Trains in many ways and compares SHA-256 of what comes out: for each trainer they must all be one. Prints a table.

    python tools/same_bits.py [--wordnet] [--epochs N] [--kills 3] [--folder DIR]

Ways: one, two and four threads; memory limits; plans of reading; features in memory and on disk; prefetch on and off; a
run killed with SIGKILL at random moments and gone on with. Trainers run on a generated graph; with ``--wordnet`` both
encoders of the command run on WordNet too, which takes some minutes. Exit status 1 if any differ. To add a trainer, add
a function to TRAINERS.
"""
import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from gnncy import GraphEncoder, NodeClassifier, NodeEmbedding, nn, optim
from gnncy.datasets import load_wordnet, make_sbm
from gnncy.storage import ArrayStorage, FeatureStorage, HyperbatchConfig, SparseFeatureStorage
from gnncy.storage.plans import DiskModel
from gnncy.training import ColdTierTrainer, GraphLoader, SnapshotFolder, Trainer
from gnncy.training.phases import PhaseConfig, PredictionConfig

DATA = make_sbm(2000, 4, n_features=24, seed=1)
PHASES = PhaseConfig(full_steps=2, predict_steps=2, prediction=PredictionConfig(min_correlation=None))
WAYS = {"1 thread": {"n_jobs": 1}, "2 threads": {"n_jobs": 2}, "4 threads": {"n_jobs": 4},
        "limit 64 MB": {"memory_limit": "64MB"}, "limit 400 MB": {"memory_limit": "400MB"},
        "features in memory": {"on_disk": False}, "no prefetch": {"prefetch": False},
        "plan A": {"plan": "A"}, "plan B": {"plan": "B"}, "plan C": {"plan": "C"}, "plan D": {"plan": "D"},
        "killed and resumed": {"killed": True}}


def encoder(kind: str, folder: Path, n_jobs=None, memory_limit="128MB", on_disk=True, prefetch=True) -> np.ndarray:
    model = GraphEncoder(16, encoder=kind, n_neighbors=(5, 5), hidden=32, max_epochs=4, random_state=0, n_jobs=n_jobs,
                         memory_limit=memory_limit, prefetch=prefetch, checkpoint_dir=folder / "run")
    with FeatureStorage(folder / "x.npy") as store:
        return model.fit_transform(DATA.adjacency, features=store if on_disk else DATA.features)


def propagate(folder: Path, **way) -> np.ndarray:
    return encoder("propagate", folder, **way)


def sage(folder: Path, **way) -> np.ndarray:
    return encoder("sage", folder, **way)


def fit(folder: Path, n_jobs=None, on_disk=True, prefetch=True, phases=None) -> np.ndarray:
    model = nn.GraphSequential(nn.SAGEConv(24, 32, rng=0), nn.ReLU(), nn.SAGEConv(32, 16, rng=1))
    with FeatureStorage(folder / "x.npy") as store:
        loader = GraphLoader(DATA.adjacency, store if on_disk else ArrayStorage(DATA.features), batch_size=200,
                             fanouts=(4, 4), prefetch=prefetch, seed=0)
        Trainer(model, optim.Adam(model.parameters()), seed=0, max_epochs=4, snapshots=SnapshotFolder(folder),
                snapshot_seconds=0.0, phases=phases).fit(loader, n_jobs=n_jobs)
    return weights(model)


def phases(folder: Path, **way) -> np.ndarray:
    return fit(folder, phases=PHASES, **way)


def cold(folder: Path, n_jobs=None, memory_limit="80MB", on_disk=True, prefetch=True, plan="auto") -> np.ndarray:
    config = HyperbatchConfig(batch_size=200, prefetch_factor=2 if prefetch else 1)
    with ColdTierTrainer(folder / "x.npy" if on_disk else DATA.features, DATA.adjacency, n_components=8, hidden=16,
                         fanouts=(4, 4), config=config, memory_limit=memory_limit, plan=plan, n_jobs=n_jobs,
                         disk=DiskModel(14e-6, 3.5e9, 2.6e9)) as trainer:
        saved = folder / "trainer.npz"
        if saved.exists():
            trainer.load_checkpoint(saved)
        while trainer.epoch < 4:
            trainer.train_epoch()
            trainer.save_checkpoint(saved)
        return weights(trainer.model)


def classifier(folder: Path, n_jobs=None, memory_limit="128MB", on_disk=True, prefetch=True) -> np.ndarray:
    labels = np.where(np.arange(2000) < 1000, DATA.labels, -1)
    model = NodeClassifier(16, hidden=32, max_epochs=10, random_state=0, n_jobs=n_jobs, memory_limit=memory_limit,
                           prefetch=prefetch, checkpoint_dir=folder / "run")
    with FeatureStorage(folder / "x.npy") as store:
        return model.fit_transform(DATA.adjacency, labels, features=store if on_disk else DATA.features)


def embedding(folder: Path, n_jobs=None, memory_limit="128MB") -> np.ndarray:
    model = NodeEmbedding(16, epochs=10, random_state=0, n_jobs=n_jobs, memory_limit=memory_limit,
                          folder=folder / "run")
    return model.fit_transform(DATA.adjacency)


TRAINERS = {"propagate": propagate, "sage": sage, "Classifier": classifier, "Embedding": embedding, "Trainer": fit,
            "with phases": phases, "ColdTier": cold}
TAKES = {propagate: {"n_jobs", "memory_limit", "on_disk", "prefetch"},
         fit: {"n_jobs", "on_disk", "prefetch"}, cold: {"n_jobs", "memory_limit", "on_disk", "prefetch", "plan"}}
TAKES |= {sage: TAKES[propagate], phases: TAKES[fit], classifier: TAKES[propagate],
          embedding: {"n_jobs", "memory_limit"}}


def weights(model) -> np.ndarray:
    return np.concatenate([parameter.data.ravel() for parameter in model.parameters()])


def digest(train, folder: Path, way: dict, kills: int, moments: random.Random, seconds: float) -> str | None:
    """The hash of a way's result; None where a trainer has no such way."""
    killed = "killed" in way
    if not killed and not way.keys() <= TAKES[train]:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    FeatureStorage.from_array(DATA.features, folder / "x.npy").close()
    for _ in range(kills if killed else 0):
        child = os.fork()
        if child == 0:
            try:
                train(folder)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        time.sleep(moments.uniform(0.1, 0.9) * seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return hashlib.sha256(train(folder, **({} if killed else way)).tobytes()).hexdigest()


def table(folder: Path, kills: int, moments: random.Random) -> bool:
    print(f"{'':<20}" + "".join(f"{name:>14}" for name in TRAINERS), flush=True)
    seconds, expected, same = dict.fromkeys(TRAINERS, 0.0), {}, True
    for title, way in WAYS.items():
        cells = []
        for name, train in TRAINERS.items():
            began = time.monotonic()
            found = digest(train, folder / "run", way, kills, moments, seconds[name])
            seconds[name] = seconds[name] or time.monotonic() - began
            expected.setdefault(name, found)
            same &= found in (None, expected[name])
            cells.append("-" if found is None else found[:8] if found == expected[name] else f"NOT {found[:8]}")
        print(f"{title:<20}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    return same


def command(out: Path, epochs: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "gnncy", "train", "wordnet", "--out", str(out), "--epochs", epochs, "--quiet", *more]


def sha256(out: Path) -> str:
    return hashlib.sha256((out / "embedding.npy").read_bytes()).hexdigest()


def wordnet(folder: Path, kind: str, epochs: str, kills: int, moments: random.Random) -> bool:
    words = folder / "words"
    if not words.exists():
        SparseFeatureStorage.from_csr(load_wordnet().features, words).close()
    ways = {"1 thread, 96 MB": ["--threads", "1", "--memory-limit", "96MB"],
            "2 threads, 96 MB": ["--threads", "2", "--memory-limit", "96MB"],
            "128 MB": ["--memory-limit", "128MB"],
            "512 MB": ["--memory-limit", "512MB"],
            "no prefetch": ["--memory-limit", "96MB", "--no-prefetch"],
            "words on disk": ["--memory-limit", "96MB", "--features", str(words)]}
    found, seconds = {}, 0.0
    for i, (way, more) in enumerate(ways.items()):
        out, began = folder / f"{kind}{i}", time.monotonic()
        subprocess.run(command(out, epochs, "--encoder", kind, *more), check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - began
        found[way] = sha256(out)
        print(f"{kind + ', ' + way:<32} {found[way]}  {seconds:.0f} s", flush=True)
    out = folder / f"{kind}-killed"
    for _ in range(kills):
        process = subprocess.Popen(command(out, epochs, "--encoder", kind), stdout=subprocess.DEVNULL)
        moment = moments.uniform(0.1, 0.9) * seconds
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(f"  killed after {moment:.1f} s", flush=True)
    subprocess.run(command(out, epochs, "--encoder", kind), check=True, stdout=subprocess.DEVNULL)
    found["killed"] = sha256(out)
    print(f"{kind + f', killed {kills} times':<32} {found['killed']}", flush=True)
    return len(set(found.values())) == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wordnet", action="store_true", help="the command on WordNet, too")
    parser.add_argument("--epochs", default="2", help="on WordNet")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None, help="of the moments at which runs are killed")
    parser.add_argument("--folder", help="where runs are written (default: a temporary folder)")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        same = table(folder, options.kills, moments)
        if options.wordnet:
            for kind in ("propagate", "sage"):
                same &= wordnet(folder, kind, options.epochs, options.kills, moments)
    print("all the same" if same else "DIFFERENT", flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
