"""ColdTierTrainer: same bits however features are read, checkpoints, and the faults of the reference that it lacks."""
import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gnncy
from gnncy import losses, nn
from gnncy.datasets import make_sbm
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.optim import SGD
from gnncy.storage import FeatureStorage, HyperbatchConfig
from gnncy.storage.plans import DiskModel
from gnncy.training import ColdTierTrainer, GraphLoader, Objective, read_snapshot

DATA = make_sbm(400, 4, n_features=16, seed=1)
A, X = DATA.adjacency, DATA.features
DISK = DiskModel(14e-6, 3.5e9, 2.6e9)
AUGMENT = functools.partial(losses.drop_blocks, block=1, rate=0.3)
CONFIG = HyperbatchConfig(batch_size=100, hotset_fraction=0.1, buffer_bytes="1MB")


@pytest.fixture
def path(tmp_path):
    FeatureStorage.from_array(X, tmp_path / "x.npy").close()
    return tmp_path / "x.npy"


def trainer(storage, **options):
    options = {"n_components": 8, "hidden": 16, "fanouts": (4, 3), "config": CONFIG, "memory_limit": "60MB",
               "disk": DISK, "seed": 3} | options
    return ColdTierTrainer(storage, A, **options)


def weights(trained):
    return np.concatenate([parameter.data.ravel() for parameter in trained.model.parameters()])


def trained(storage, epochs=2, **options):
    with trainer(storage, **options) as one:
        results = [one.train_epoch() for _ in range(epochs)]
        return weights(one), [result.avg_loss for result in results], one.embed([5, 0, 399])


@pytest.fixture(scope="module")
def expected():
    return trained(X, memory_limit=None)


@pytest.mark.parametrize("options", [
    {"plan": "A"}, {"plan": "B"}, {"plan": "C"}, {"plan": "D"}, {"memory_limit": "400MB"}, {"memory_limit": None},
    {"plan": "D", "n_jobs": 2}, {"plan": "B", "config": HyperbatchConfig(100, prefetch_factor=1, hotset_fraction=0)},
    {"memory_limit": None, "n_jobs": 2, "config": HyperbatchConfig(100, 1, 64, 3, 1.0, "400kB")}],
    ids=lambda options: "-".join(f"{key}={value}" if key != "config" else key for key, value in options.items()))
def test_same_bits_at_any_plan_limit_and_threads(path, expected, options):
    before = sorted(path.parent.iterdir())
    got = trained(path, **options)
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert sorted(path.parent.iterdir()) == before  # no spill file is left


@pytest.mark.parametrize("options", [{"positives": "walks", "walk_length": 3}, {"anchors": np.arange(0, 400, 3)},
                                     {"negatives": losses.HardNegativeMiner(n_negatives=8), "candidates": 60},
                                     {"positives": "views", "augment": AUGMENT},
                                     {"fanouts": None, "model": "mlp"}], ids=lambda options: next(iter(options)))
def test_every_kind_of_minibatch_is_planned(path, options):
    def run(**more):
        model = {"model": nn.MLP([16, 12, 8], rng=0)} if "model" in options else {}
        return trained(path, 1, **options | more | model)
    for mine, theirs in zip(run(plan="D"), run(memory_limit=None), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_model_loss_and_optimizer_of_ones_own(path):
    model = nn.Projected(nn.GraphSequential(nn.SAGEConv(16, 8, "max", rng=0), nn.BatchNorm(8)), nn.Linear(8, 4, rng=1))
    before = model.state_dict()
    objective = Objective({"infonce": losses.InfoNCELoss(0.3), "size": lambda e: (e.embeddings * e.embeddings).mean()},
                          losses.MultiObjectiveLoss({"infonce": 1, "size": 0.1}, "uncertainty"))
    own = SGD(model.parameters(), lr=0.05, momentum=0.9)
    with trainer(path, model=model, objective=objective, optimizer=own, fanouts=(4,)) as one:
        for name, array in model.state_dict().items():  # measuring a step changes nothing
            np.testing.assert_array_equal(array, before[name])
        results = [one.train_epoch() for _ in range(4)]
        one.save_checkpoint(path.parent / "saved.npz")
        assert one.embed().shape == (400, 8)
        assert results[-1].avg_loss < results[0].avg_loss
        assert any(name.startswith("model/") and "running" in name
                   for name in read_snapshot(path.parent / "saved.npz")[0])


# What an epoch tells


def test_an_epoch_tells_its_plan_and_where_time_was_spent(path):
    with trainer(path, plan="C") as one:
        results = [one.train_epoch(), one.train_epoch()]
        assert [result.epoch for result in results] == [1, 2] and one.epoch == 2
        assert all(result.batches == 4 and result.plan.name == "C" for result in results)
        reports = [record["prediction_error"] for record in one.loader.planned.report()]
        assert [result.prediction_error for result in results] == reports
        assert one.memory.needed < one.memory.limit


def test_s0_23_hit_rate_is_of_one_epoch(path):
    with trainer(path, memory_limit=None, config=HyperbatchConfig(100, hotset_fraction=1.0)) as one:
        first, second = one.train_epoch(), one.train_epoch()
        assert first.hotset_hit_rate < second.hotset_hit_rate == 1.0
        assert second.bytes_read == 0 < first.bytes_read


def test_s0_24_times_are_measured_where_they_are_spent(path, monkeypatch):
    read = FeatureStorage.read_batch

    def slow_read(self, ids, out=None):
        time.sleep(0.02)
        return read(self, ids, out)

    class Slow(Objective):
        def __call__(self, *args):
            time.sleep(0.05)
            return super().__call__(*args)
    monkeypatch.setattr(FeatureStorage, "read_batch", slow_read)
    config = HyperbatchConfig(100, prefetch_factor=1, hotset_fraction=0, buffer_bytes="200kB")
    with trainer(path, memory_limit=None, objective=Slow(), config=config) as one:
        result = one.train_epoch()
    assert result.compute_time >= 4 * 0.05 and result.io_time >= 0.02
    assert result.io_time + result.compute_time <= result.seconds
    assert result.io_time < result.seconds - 4 * 0.05


def test_s0_25_the_loss_is_a_mean_over_samples(path):
    """A loss that is 1 for every sample is 1, whatever the size of the minibatches."""
    def one_each(embedded):
        return (embedded.embeddings * 0.0).sum() + 1.0
    for size in (50, 170, 400):
        config = HyperbatchConfig(size)
        with trainer(path, objective=Objective({"one": one_each}), config=config) as one:
            result = one.train_epoch()
            assert result.avg_loss == pytest.approx(1.0) and result.batches == -(-400 // size)


def likeness(z):
    """Mean cosine of neighbours, where that of all pairs is about 0."""
    z = (z - z.mean(0)) / np.linalg.norm(z - z.mean(0), axis=1, keepdims=True)
    arcs = A.tocoo()
    return (z[arcs.row] * z[arcs.col]).sum(1).mean()


def test_s0_p1_training_uses_model_and_graph(path):
    with trainer(path, memory_limit="400MB") as one, FeatureStorage.open(path) as store:
        before = likeness(one.embed())
        results = [one.train_epoch(lr=0.01) for _ in range(8)]
        np.testing.assert_array_equal(store[:], X)  # and features stay as they are
        assert results[-1].avg_loss < 0.97 * results[0].avg_loss
        assert likeness(one.embed()) > before + 0.05


def test_s0_35_the_learning_rate_keeps_its_bits(path):
    with trainer(path) as one:
        one.train_epoch(lr=0.1)
        assert one.optimizer.lr == 0.1 != float(np.float32(0.1))
        for lr in (0, -1, np.nan):
            with pytest.raises(ValueError, match="lr must be"):
                one.train_epoch(lr=lr)


# Errors and memory


def test_s0_7_an_epoch_that_cannot_be_read_is_no_epoch(path, expected):
    with trainer(path, memory_limit=None, config=HyperbatchConfig(100, hotset_fraction=0)) as one:
        one.train_epoch()
        size = os.path.getsize(path)
        os.truncate(path, 5000)
        with pytest.raises(StorageError, match=re.escape(str(path))):
            one.train_epoch()
        assert one.epoch == 1 and len(one.history) == 1
        os.truncate(path, size)
        with FeatureStorage.open(path, "r+") as store:
            store.write_features(np.arange(400), X)
        one.train_epoch()
        np.testing.assert_array_equal(weights(one), expected[0])
    with pytest.raises(FileNotFoundError):
        trainer(path.parent / "absent.npy")


def test_a_limit_too_small_is_refused_with_the_least_that_would_do(path):
    with pytest.raises(MemoryLimitError, match=r"at least \d+ MB"):
        trainer(path, memory_limit="2MB")
    with trainer(path) as one:
        least = one.memory.needed
    with pytest.raises(MemoryLimitError, match="training itself takes .* on top"):
        trainer(path, memory_limit=least + 10_000)


LIMITED = """
import numpy as np
from gnncy import _memory
from gnncy.datasets import make_sbm
from gnncy.storage import HyperbatchConfig
from gnncy.storage.plans import DiskModel
from gnncy.training import ColdTierTrainer
A = make_sbm(100_000, n_features=1, seed=0).adjacency
with ColdTierTrainer("x.npy", A, fanouts=(5, 3), n_components=32, hidden=32, anchors=np.arange(0, 100_000, 25),
                     config=HyperbatchConfig(batch_size=256), memory_limit=None, n_jobs=2) as one:
    one.loader.minibatch(0)
_memory.reset_peak()
before = _memory.rss()
with ColdTierTrainer("x.npy", A, fanouts=(5, 3), n_components=32, hidden=32, anchors=np.arange(0, 100_000, 25),
                     config=HyperbatchConfig(batch_size=256), memory_limit="80MB", n_jobs=2,
                     disk=DiskModel(14e-6, 3.5e9, 2.6e9)) as one:
    for _ in range(2):
        one.train_epoch()
print(_memory.peak_rss() - before)
"""


def test_what_the_process_holds_stays_within_the_limit(tmp_path):
    """Features of 102 MB, a limit of 80 MB."""
    rows = (np.full((1000, 256), k, np.float32) for k in range(100))
    FeatureStorage.from_blocks(tmp_path / "x.npy", (100_000, 256), rows).close()
    run = subprocess.run([sys.executable, "-c", LIMITED], cwd=tmp_path, check=True, capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(Path(gnncy.__file__).parent.parent)})
    assert int(run.stdout) < 1.1 * 80e6


def test_the_hotset_stays_within_its_part_of_the_limit(path):
    with trainer(path, config=HyperbatchConfig(100, hotset_fraction=1.0)) as one:
        assert one.hotset.capacity == 400
    config = HyperbatchConfig(100, hotset_fraction=0)
    with trainer(path, config=config) as one:
        assert one.hotset is None
        np.testing.assert_array_equal(one.get_features([7, 7, 3]), X[[7, 7, 3]])


def test_get_features_asks_the_hotset_first(path):
    with trainer(path) as one:
        np.testing.assert_array_equal(one.get_features([3, 8, 3]), X[[3, 8, 3]])
        before = one.storage.stats.snapshot().bytes_read
        np.testing.assert_array_equal(one.get_features([8, 3]), X[[8, 3]])
        np.testing.assert_array_equal(one.get_features(3), X[3])
        assert one.storage.stats.snapshot().bytes_read == before and one.hotset.hits == 3
        with pytest.raises(IndexError):
            one.get_features([400])


def test_embeddings_are_written_a_minibatch_at_a_time(path):
    with trainer(path) as one:
        one.train_epoch()
        with one.embed(path=path.parent / "z.npy") as store:
            np.testing.assert_array_equal(store[:], one.embed())
        assert one.model.training is False
        plain = GraphLoader(A, X, batch_size=100, fanouts=(4, 3), seed=3)
        np.testing.assert_array_equal(plain.embed(one.model.encoder), one.embed(neighbors="sampled"))
        with pytest.raises(ValueError, match="at least one node"):
            one.embed([])


def test_s0_26_a_store_is_never_created_or_changed(path):
    before = path.read_bytes()
    with trainer(path) as one:
        one.train_epoch()
        assert one.storage.mode == "r"
    assert path.read_bytes() == before
    assert one.storage.closed
    with FeatureStorage.open(path) as store, trainer(store):
        pass
    absent = path.parent / "absent.npy"
    with pytest.raises(FileNotFoundError):
        trainer(absent)
    assert not absent.exists()


# Checkpoints


@pytest.mark.parametrize("other", [{}, {"plan": "D"}, {"memory_limit": "90MB", "n_jobs": 2}, {"memory_limit": None}],
                         ids=str)
def test_s0_28_a_loaded_run_ends_with_the_same_bits(path, other):
    saved = path.parent / "näme with space.npz"
    with trainer(path, plan="B") as one:
        one.get_features([1, 2, 2, 3])
        one.train_epoch()
        one.save_checkpoint(saved)
        one.get_features([2, 9])
        last = one.train_epoch()
        one.get_features([5])
    with trainer(path, **other) as two:
        two.load_checkpoint(saved)
        assert two.epoch == 1 and [record["epoch"] for record in two.history] == [1]
        two.get_features([2, 9])
        assert two.train_epoch().avg_loss == last.avg_loss
        two.get_features([5])
        np.testing.assert_array_equal(weights(two), weights(one))
        if "memory_limit" not in other:
            mine, theirs = two.hotset.state_dict(), one.hotset.state_dict()
            assert mine.keys() == theirs.keys() and mine["decay"] == 0.95 and mine["hits"] > 0
            for name, value in theirs.items():
                np.testing.assert_array_equal(mine[name], value)


def test_s0_28_what_is_learned_beside_the_model_is_saved(path):
    def make():
        objective = Objective({"infonce": losses.InfoNCELoss(), "local": losses.LocalContrastiveLoss(negatives=1)},
                              losses.MultiObjectiveLoss({"infonce": 1, "local": 1}, "gradnorm"))
        return trainer(path, objective=objective)
    saved = path.parent / "saved.npz"
    with make() as one:
        one.train_epoch()
        one.save_checkpoint(saved)
        last = one.train_epoch()
    with make() as two:
        two.load_checkpoint(saved)
        assert two.train_epoch().avg_loss == last.avg_loss
        np.testing.assert_array_equal(weights(two), weights(one))


@pytest.mark.parametrize("change, text", [({"hidden": 12}, "parameters"), ({"seed": 4}, "seed"),
                                          ({"fanouts": (3, 3)}, "fanouts"), ({"positives": "walks"}, "positives"),
                                          ({"config": HyperbatchConfig(90)}, "batch_size")])
def test_s0_28_a_checkpoint_of_another_run_changes_nothing(path, change, text):
    saved = path.parent / "saved.npz"
    with trainer(path) as one:
        one.train_epoch()
        one.save_checkpoint(saved)
    with trainer(path, **change) as two:
        before = weights(two)
        with pytest.raises(StorageError, match=text):
            two.load_checkpoint(saved)
        np.testing.assert_array_equal(weights(two), before)
        assert two.epoch == 0 and len(two.hotset) == 0


def test_s0_28_checkpoints_are_whole_or_absent(path, monkeypatch):
    saved = path.parent / "saved.npz"
    with trainer(path) as one:
        one.save_checkpoint(saved)
        good = saved.read_bytes()
        one.train_epoch()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space"):
                one.save_checkpoint(saved)
        assert saved.read_bytes() == good
        assert not [p for p in path.parent.iterdir() if p.suffix == ".tmp"]
        for bad, text in ((good[:-40], "damaged"), (b"{}", "damaged")):
            saved.write_bytes(bad)
            with pytest.raises(StorageError, match=text):
                one.load_checkpoint(saved)
        with pytest.raises(StorageError, match="missing"):
            one.load_checkpoint(path.parent / "absent.npz")
        assert one.epoch == 1


def test_s0_27_rows_that_went_stale_are_found(path):
    saved = path.parent / "saved.npz"
    with trainer(path) as one:
        one.get_features([1, 2])
        one.save_checkpoint(saved)
    with FeatureStorage.open(path, "r+") as store:
        store.write_features(2, X[2] + 1)
    with trainer(path) as one, pytest.raises(StorageError, match="other features"):
        one.load_checkpoint(saved)


def test_the_acceptance_fact_of_an_epoch(tmp_path):
    """An epoch over 16 nodes with batch 4 gives epoch 1, 4 batches, loss > 0."""
    data = make_sbm(16, 2, degree=4, n_features=8, seed=0)
    with FeatureStorage.from_array(data.features, tmp_path / "x.npy") as store, ColdTierTrainer(
            store, data.adjacency, config=HyperbatchConfig(batch_size=4), memory_limit="60MB", disk=DISK) as one:
        result = one.train_epoch(lr=0.01)
    assert (result.epoch, result.batches) == (1, 4) and result.avg_loss > 0
