"""ColdTierEWC: the mean squares of samples, tasks, what a crash leaves, and one writer."""
import json
import tracemalloc

import numpy as np
import pytest

from gnncy import nn
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage
from gnncy.training.continual import ColdTierEWC, ElasticWeightConsolidation
from gnncy.training.continual import cold_tier as cold_tier_module


def samples(count=6, n=40, dim=3, seed=0):
    """Gradients of samples: some of all rows, some of a few."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(count, n, dim))
    dense[::2, rng.random(n) < 0.7] = 0
    pairs = [(np.flatnonzero(rows.any(axis=1)), rows[rows.any(axis=1)]) for rows in dense]
    return dense, pairs


@pytest.mark.parametrize("form", ["array", "list", "pairs", "generator"])
def test_disk_has_the_mean_square_of_samples(tmp_path, form, monkeypatch):
    monkeypatch.setattr(cold_tier_module, "_CHUNK_BYTES", 7 * 3 * 8)  # rows come in several parts
    dense, pairs = samples()
    given = {"array": dense, "list": list(dense), "pairs": pairs, "generator": (g for g in dense)}[form]
    with ColdTierEWC.create(tmp_path, 40, 3, strength=2.0) as ewc:
        ewc.compute_fisher(given)
        assert ewc.n_samples == 6 and not ewc.is_active
        table = np.random.default_rng(3).normal(size=(40, 3)).astype(np.float32)
        ewc.consolidate(table)
        fisher = (dense**2).mean(axis=0)
        np.testing.assert_allclose(ewc.gradient(table + 1), 2 * fisher, rtol=1e-5)
        assert ewc.penalty(table) == 0
        assert ewc.penalty(table + 1) == pytest.approx(fisher.sum(), rel=1e-5)


def test_the_reference_facts(tmp_path):
    """One sample: F = g^2; penalty 0 at the anchor; gradient 100 F 1."""
    gradient = np.arange(6, dtype=np.float32).reshape(1, 3, 2)
    with ColdTierEWC.create(tmp_path, n_params=3, dim=2, strength=100.0) as ewc:
        ewc.compute_fisher(gradient)
        ewc.consolidate(np.zeros((3, 2)))
        assert ewc.penalty(np.zeros((3, 2))) == 0
        assert ewc.penalty(np.ones((3, 2))) == 50 * (gradient**2).sum()
        np.testing.assert_array_equal(ewc.gradient(np.ones(2), 1), 100 * gradient[0, 1]**2)


def test_disk_and_memory_agree_over_tasks_in_parts_of_any_size(tmp_path, monkeypatch):
    class Table(nn.Module):
        def __init__(self):
            self.rows = nn.Parameter(np.zeros((40, 3), np.float32))

    for decay in (None, 0.9):
        bits = []
        for rows_a_chunk in (7, 1000):
            monkeypatch.setattr(cold_tier_module, "_CHUNK_BYTES", rows_a_chunk * 3 * 8)
            model = Table()
            memory = ElasticWeightConsolidation(model, 5.0, decay=decay)
            with ColdTierEWC.create(tmp_path, 40, 3, 5.0, decay=decay, overwrite=True) as disk:
                for task in range(3):
                    dense, pairs = samples(seed=task)
                    model.rows.data[...] = np.random.default_rng(task).normal(size=(40, 3))
                    disk.compute_fisher(pairs)
                    disk.consolidate(model.rows.data)
                    memory.consolidate({"rows": (dense**2).mean(axis=0)})
                table = model.rows.data + np.float32(0.5)
                np.testing.assert_allclose(disk.gradient(table), memory.gradient({"rows": table})["rows"], rtol=1e-4,
                                           atol=1e-4)
                assert disk.penalty(table) == pytest.approx(memory.penalty({"rows": table}), rel=1e-5)
                bits.append(disk.gradient(table))
        assert all((other == bits[0]).all() for other in bits)


def test_tables_may_be_on_disk_and_rows_asked_for(tmp_path):
    dense, _ = samples()
    table = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    with (ColdTierEWC.create(tmp_path / "ewc", 40, 3, 2.0) as ewc,
          FeatureStorage.from_array(table, tmp_path / "table.npy") as store,
          FeatureStorage.from_array(table + 1, tmp_path / "later.npy") as later):
        ewc.compute_fisher(dense)
        ewc.consolidate(store)
        assert ewc.penalty(store) == 0 and ewc.penalty(later) > 0
        ids = np.array([7, 2, 7])
        np.testing.assert_array_equal(ewc.gradient(table[ids] + 1, ids), ewc.gradient(table + 1)[ids])
        parts = sum(ewc.penalty(table[[i]] + 1, [i]) for i in range(40))
        assert parts == pytest.approx(ewc.penalty(later))
        rows = (table[ids] + 1).astype(np.float64)
        assert nn.check_gradient(lambda rows: ewc.loss(rows, ids), [rows]) < 1e-6
        assert ewc.loss(nn.Tensor(rows), ids).item() == pytest.approx(ewc.penalty(rows, ids))


def test_a_table_passes_through_memory_in_small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(cold_tier_module, "_CHUNK_BYTES", 1 << 16)
    rows, dim = 30_000, 32
    table = FeatureStorage.create(tmp_path / "table.npy", rows, dim)
    rng = np.random.default_rng(0)
    with table, ColdTierEWC.create(tmp_path / "ewc", rows, dim) as ewc:
        tracemalloc.start()
        ewc.compute_fisher((rng.integers(0, rows, 1), rng.normal(size=(1, dim))) for _ in range(50))
        ewc.consolidate(table)
        assert ewc.penalty(table) == 0
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < rows * dim * 4 / 3, peak


@pytest.mark.parametrize(("given", "message"), [
    (np.ones((2, 39, 3)), r"shape \(samples, 40, 3\), got \(2, 39, 3\)"),
    (np.ones((80, 3)), r"shape \(samples, 40, 3\)"),
    (np.ones((0, 40, 3)), "no sample"),
    ([np.ones((40, 3)), np.ones((40, 2))], r"got \(40, 2\) for sample 1"),
    ([([1, 1], np.ones((2, 3)))], "repeat"),
    ([([1, 2], np.ones((3, 3)))], r"shape \(2, 3\), got \(3, 3\)"),
    ([([1], np.full((1, 3), np.nan))], "nan"),
])
def test_s0_29_what_is_no_row_of_samples_is_refused_and_nothing_changes(tmp_path, given, message):
    """S0-29: no remainder dropped, no row cut or filled up, no count by hand."""
    with ColdTierEWC.create(tmp_path, 40, 3) as ewc:
        ewc.compute_fisher(np.ones((2, 40, 3)))
        files = sorted(tmp_path.iterdir())
        with pytest.raises(ValueError, match=message):
            ewc.compute_fisher(given)
        assert sorted(tmp_path.iterdir()) == files and ewc.n_samples == 2


def test_s0_29_sums_are_of_float64(tmp_path):
    """S0-29: float32 would lose the small squares beside a large one."""
    with ColdTierEWC.create(tmp_path, 1, 1, strength=1.0) as ewc:
        ewc.compute_fisher(np.r_[4096.0, np.ones(1000)].reshape(-1, 1, 1))
        ewc.consolidate(np.zeros((1, 1)))
        assert ewc.gradient(np.ones((1, 1)))[0, 0] == pytest.approx((4096.0**2 + 1000) / 1001, rel=1e-7)

def test_a_size_of_zero_is_refused(tmp_path):
    for size, message in (((0, 1), "n_params"), ((1, 0), "dim")):
        with pytest.raises(ValueError, match=f"{message} must be at least 1"):
            ColdTierEWC.create(tmp_path / "none", *size)
    assert not (tmp_path / "none").exists()


def test_s0_30_the_disk_needs_a_fisher_too(tmp_path):
    """S0-30."""
    with ColdTierEWC.create(tmp_path, 4, 2) as ewc:
        with pytest.raises(RuntimeError, match="call compute_fisher"):
            ewc.consolidate(np.zeros((4, 2)))
        assert ewc.penalty(np.ones((4, 2))) == 0 and (ewc.gradient(np.ones((4, 2))) == 0).all()
        assert ewc.loss(nn.Tensor(np.ones((1, 2))), [0]).item() == 0


def test_s0_31_weights_of_another_shape_are_refused(tmp_path):
    """S0-31."""
    with ColdTierEWC.create(tmp_path, 4, 2) as ewc:
        for tasks in range(2):
            for weights, ids in ((np.zeros((3, 2)), None), (np.zeros((5, 2)), None), (np.zeros((4, 1)), None),
                                 (np.zeros((2, 2)), [1])):
                for call in (ewc.penalty, ewc.gradient):
                    with pytest.raises(ValueError, match="weights must have shape"):
                        call(weights, ids)
            with pytest.raises(IndexError, match=r"0\.\.3"):
                ewc.gradient(np.zeros(2), 4)
            ewc.compute_fisher(np.ones((1, 4, 2)))
            with pytest.raises(ValueError, match="weights must have shape"):
                ewc.consolidate(np.zeros((3, 2)))
            assert ewc.n_tasks == tasks
            ewc.consolidate(np.zeros((4, 2)))


def test_s0_32_state_is_stored_and_opened_again(tmp_path):
    """S0-32: strength and tasks are kept, and making a new one does not destroy the old."""
    dense, _ = samples()
    table = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    with ColdTierEWC.create(tmp_path, 40, 3, 7.0) as ewc:
        ewc.compute_fisher(dense)
    with ColdTierEWC.open(tmp_path) as ewc:
        assert ewc.n_samples == 6 and ewc.strength == 7.0
        ewc.consolidate(table)
        ewc.compute_fisher(dense[:2])
        ewc.consolidate(table + 1)
        ewc.strength = 8.0
        penalty, gradient = ewc.penalty(table), ewc.gradient(table)
    with ColdTierEWC(tmp_path) as ewc:
        assert (ewc.strength, ewc.n_tasks, ewc.is_active) == (8.0, 2, True)
        assert ewc.penalty(table) == penalty > 0 and (ewc.gradient(table) == gradient).all()
    with pytest.raises(FileExistsError, match="open"):
        ColdTierEWC.create(tmp_path, 40, 3)
    ColdTierEWC.create(tmp_path, 4, 2, overwrite=True).close()
    assert [file.name for file in tmp_path.iterdir()] == ["ewc.json"]


@pytest.mark.parametrize("call", ["compute_fisher", "consolidate"])
def test_a_crash_leaves_the_state_before_or_after(tmp_path, monkeypatch, call):
    table = np.ones((40, 3), np.float32)
    dense, _ = samples()

    class Crash(BaseException):
        pass

    def prepared(folder):
        ewc = ColdTierEWC.create(folder, 40, 3, 2.0)
        ewc.compute_fisher(dense)
        ewc.consolidate(table)
        if call == "consolidate":
            ewc.compute_fisher(dense[:1])
        return ewc

    def change(ewc):
        ewc.compute_fisher(dense[1:]) if call == "compute_fisher" else ewc.consolidate(table + 1)

    with prepared(tmp_path / "reference") as ewc:
        before = ewc.n_tasks, ewc.n_samples, ewc.penalty(table + 2)
        change(ewc)
        after = ewc.n_tasks, ewc.n_samples, ewc.penalty(table + 2)
    assert before != after
    seen = set()
    for point, target in enumerate(["gnncy.storage.FeatureStorage.write_features",
                                    "gnncy.training.continual.cold_tier._write_state",
                                    "gnncy.training.continual.cold_tier.ColdTierEWC._attach",
                                    "gnncy.training.continual.cold_tier.ColdTierEWC._remove_others"]):
        ewc = prepared(tmp_path / str(point))
        with monkeypatch.context() as patch:
            # What a kill leaves: nothing is tidied up.
            patch.setattr(cold_tier_module, "_remove", lambda path: None)

            def crash(*arguments, **options):
                raise Crash
            patch.setattr(target, crash)
            with pytest.raises(Crash):
                change(ewc)
        ewc.close()
        with ColdTierEWC.open(tmp_path / str(point)) as ewc:
            found = ewc.n_tasks, ewc.n_samples, ewc.penalty(table + 2)
            assert found in (before, after)
            seen.add(found)
            files = {file.name.split("-")[0] for file in ewc.folder.iterdir()}
            assert files == {"ewc.json", "fisher", "anchor"} | ({"squares"} if ewc.n_samples else set())
            assert len(list(ewc.folder.iterdir())) == 1 + 3 * (len(files) - 1)
    assert seen == {before, after}


def test_damaged_and_foreign_folders_are_named(tmp_path):
    with pytest.raises(StorageError, match="missing"):
        ColdTierEWC.open(tmp_path / "none")
    with ColdTierEWC.create(tmp_path, 40, 3) as ewc:
        ewc.compute_fisher(samples()[0])
        ewc.consolidate(np.zeros((40, 3)))
    file = tmp_path / "ewc.json"
    whole = json.loads(file.read_text())
    for text, message in (("{", "damaged"), ("[]", "damaged"), ('{"format": "other"}', "not a gnncy-ewc"),
                          (json.dumps(whole | {"version": 99}), "upgrade"),
                          (json.dumps({k: v for k, v in whole.items() if k != "strength"}), "lacks strength"),
                          (json.dumps(whole | {"n_params": 41}), "belongs to another state")):
        file.write_text(text)
        with pytest.raises(StorageError, match=message):
            ColdTierEWC.open(tmp_path)
    file.write_text(json.dumps(whole))
    next(tmp_path.glob("anchor-??????.npy")).unlink()
    with pytest.raises(OSError):
        ColdTierEWC.open(tmp_path)


def test_one_writer_of_a_state_on_disk(tmp_path):
    rng = np.random.default_rng(3)
    dense, table = rng.normal(size=(3, 40, 3)), np.zeros((40, 3))
    with ColdTierEWC.create(tmp_path / "ewc", 40, 3, 2.0) as ewc:
        with ColdTierEWC.open(tmp_path / "ewc") as other:
            def gradients():  # in the midst of a change of the one, the other may look, but not change or tidy up
                yield dense[0]
                with pytest.raises(StorageError, match="being changed by another"):
                    other.compute_fisher(dense)
                with pytest.raises(StorageError, match="being changed by another"):
                    other.strength = 1.0
                with pytest.raises(StorageError, match="being changed by another"):
                    ColdTierEWC.create(tmp_path / "ewc", 40, 3, overwrite=True)
                with ColdTierEWC.open(tmp_path / "ewc") as third:
                    assert third.penalty(table) == 0
                yield dense[1]

            ewc.compute_fisher(gradients())
            assert ewc.n_samples == 2
            with pytest.raises(StorageError, match="open it again"):
                other.compute_fisher(dense)
        ewc.consolidate(table)
    with ColdTierEWC.open(tmp_path / "ewc") as again:
        assert again.n_tasks == 1 and again.strength == 2.0
