"""Learnable tables: the same rows at any memory, and after a kill those of the last checkpoint."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from gnncy import _kernels
from gnncy._kernels.storage import tables as kernels
from gnncy._threads import working_threads
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.optim import RowAdagrad, SparseAdam
from gnncy.storage.tables import EmbeddingTable
from gnncy.storage.tables.cache import BlockCache
from gnncy.storage.tables.windows import EpochWindows, blocks_needed, chunk_count

N, D = 20_000, 20
OPTIMIZERS = ("rowwise_adagrad", "adam", "sgd")


def tight(dim=D, optimizer="rowwise_adagrad", blocks=4):
    """A memory limit that holds some blocks."""
    bits, size = EmbeddingTable.layout(dim, optimizer)
    return blocks * (size + (4 << bits))


def everything(table):
    rows, state = table.gather(np.arange(len(table)), state=True)
    return [rows, *state.values()]


def drive(table, steps=6, k=400, seed=0, checkpoint_at=None):
    rng = np.random.default_rng(seed)
    for step in range(steps):
        ids = rng.integers(0, len(table), k)
        ids[:5] = ids[5]
        table.update(ids, rng.standard_normal((k, table.dim), np.float32))
        table.prefetch(rng.integers(0, len(table), 3))
        if step == checkpoint_at:
            table.checkpoint({"step": step})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_same_bits_in_memory_on_disk_and_as_the_optimizers(tmp_path, optimizer):
    start = np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)
    found = []
    for k, (limit, direct, threads) in enumerate([(None, False, 1), (None, False, 2), (tight(D, optimizer), False, 2),
                                                  (tight(D, optimizer), True, 1)]):
        with working_threads(threads), EmbeddingTable.create(tmp_path / f"{k}.npy", N, D, optimizer=optimizer,
                                                             rows=start, memory_limit=limit, direct=direct) as table:
            assert table.resident == (limit is None)
            drive(table)
            found.append(everything(table))
            assert (table.stats.bytes_written > 0) == (limit is not None)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    if optimizer == "sgd":
        return
    rows = start.copy()
    reference = {"rowwise_adagrad": RowAdagrad, "adam": SparseAdam}[optimizer](rows, lr=table.lr)
    rng = np.random.default_rng(0)
    for _ in range(6):
        ids = rng.integers(0, N, 400)
        ids[:5] = ids[5]
        reference.step(ids, rng.standard_normal((400, D), np.float32))
        rng.integers(0, N, 3)
    np.testing.assert_allclose(found[0][0], rows, rtol=1e-5, atol=1e-6)


def test_numpy_reads_the_file(tmp_path):
    with EmbeddingTable.create(tmp_path / "t.npy", 1000, 3, seed=4, scale=0.5) as table:
        table.update([7], [[1.0, 2.0, 3.0]])
        table.checkpoint()
        rows, state = table.gather(np.arange(1000), state=True)
    records = np.load(tmp_path / "t.npy", mmap_mode="r")
    assert records.offset == 4096
    np.testing.assert_array_equal(records["row"], rows)
    np.testing.assert_array_equal(records["sum"], state["sum"])
    assert state["sum"][7] == pytest.approx(14 / 3)
    assert np.abs(np.delete(rows, 7, 0)).max() <= 0.5 and rows.std() > 0.2


def test_initial_rows_depend_on_the_seed_alone(tmp_path):
    first = [EmbeddingTable.create(tmp_path / f"{k}.npy", 3000, 2, optimizer=o, seed=s).gather([0, 2999])
             for k, (o, s) in enumerate([("sgd", 0), ("sgd", 0), ("sgd", 1)])]
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


@pytest.mark.parametrize("limit", [None, tight()])
def test_without_a_checkpoint_nothing_stays(tmp_path, limit):
    path = tmp_path / "t.npy"
    with EmbeddingTable.create(path, N, D, memory_limit=limit) as table:
        drive(table, checkpoint_at=3)
        assert table.steps == 6
    with EmbeddingTable.create(tmp_path / "same.npy", N, D) as table:
        drive(table, steps=4, checkpoint_at=3)
        want = everything(table)
    with EmbeddingTable(path, "r+", memory_limit=limit) as table:
        assert (table.steps, table.progress) == (4, {"step": 3})
        for a, b in zip(everything(table), want, strict=True):
            np.testing.assert_array_equal(a, b)
        drive(table, seed=5)
        table.rollback()
        for a, b in zip(everything(table), want, strict=True):
            np.testing.assert_array_equal(a, b)


CHILD = """
    import sys
    import numpy as np
    from gnncy.storage.tables import EmbeddingTable
    table = EmbeddingTable(sys.argv[1], "r+", memory_limit=int(sys.argv[2]))
    print("open", flush=True)
    while table.progress.get("step", 0) < 10**6:
        step = table.progress.get("step", 0) + 1
        rng = np.random.default_rng(step)
        for _ in range(3):
            table.update(rng.integers(0, len(table), 300), rng.standard_normal((300, table.dim), np.float32))
        table.checkpoint({"step": step})
"""


def test_killed_at_any_moment_it_is_the_last_checkpoint(tmp_path):
    path = tmp_path / "t.npy"
    n = 6 * 1024
    EmbeddingTable.create(path, n, D, seed=2).close()
    with EmbeddingTable.create(tmp_path / "whole.npy", n, D, seed=2) as whole:
        done, kept = 0, 0
        for turn in range(3):
            child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD), str(path), str(tight())],
                                     stdout=subprocess.PIPE)
            assert child.stdout.readline() == b"open\n"
            time.sleep(0.05 + 0.1 * turn)
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
            kept += (tmp_path / "t.npy.journal").stat().st_size > 0 if (tmp_path / "t.npy.journal").exists() else 0
            with EmbeddingTable(path, "r+", memory_limit=tight()) as table:
                step = table.progress.get("step", 0)
                assert step >= done
                while done < step:
                    done += 1
                    rng = np.random.default_rng(done)
                    for _ in range(3):
                        whole.update(rng.integers(0, n, 300), rng.standard_normal((300, D), np.float32))
                for a, b in zip(everything(table), everything(whole), strict=True):
                    np.testing.assert_array_equal(a, b)
        assert done and kept  # some were killed between two checkpoints


def crash(table):
    """What a kill leaves: files as they are."""
    table._cache.settle()
    table._file.close()
    table._journal.close()
    table._file = None


def test_an_entry_that_was_being_written_is_left_out(tmp_path):
    path, journal = tmp_path / "t.npy", tmp_path / "t.npy.journal"
    table = EmbeddingTable.create(path, N, D, memory_limit=tight())
    want = everything(table)
    table.checkpoint()
    drive(table)
    crash(table)
    size = journal.stat().st_size
    with open(journal, "ab") as f:
        f.write(journal.read_bytes()[:5000])  # the beginning of another one
    with pytest.raises(StorageError, match="rolls it back"):
        EmbeddingTable(path)
    with EmbeddingTable(path, "r+") as table:
        assert size > 0 and not journal.exists()
        for a, b in zip(everything(table), want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_journal_of_before_the_checkpoint_is_not_applied(tmp_path):
    # killed between the commit and the clearing of the journal
    path, journal = tmp_path / "t.npy", tmp_path / "t.npy.journal"
    table = EmbeddingTable.create(path, N, D, memory_limit=tight())
    table._journal.clear = lambda: None
    drive(table, checkpoint_at=5)
    want = everything(table)
    crash(table)
    assert journal.stat().st_size > 0
    for mode in ("r", "r+"):
        with EmbeddingTable(path, mode) as table:
            for a, b in zip(everything(table), want, strict=True):
                np.testing.assert_array_equal(a, b)


def test_without_a_journal_a_crash_is_seen(tmp_path):
    path = tmp_path / "t.npy"
    table = EmbeddingTable.create(path, N, D, memory_limit=tight(), journal=False)
    drive(table, checkpoint_at=5)
    want = everything(table)
    drive(table, seed=3)
    crash(table)
    with pytest.raises(StorageError, match="without a journal"):
        EmbeddingTable(path)
    assert len(want[0]) == N and not (tmp_path / "t.npy.journal").exists()


def test_a_block_read_ahead_has_its_pending_change(tmp_path):
    # S0-27: rows that are in memory and on disk are never of two minds
    with EmbeddingTable.create(tmp_path / "t.npy", N, D, rows=np.zeros((N, D)), optimizer="sgd", lr=1.0,
                               memory_limit=tight(D, "sgd")) as table:
        assert table.n_blocks > 2 * table.capacity
        count = np.zeros(N, np.float32)
        rng = np.random.default_rng(0)
        for _ in range(60):
            block = rng.integers(0, table.n_blocks - 1)
            ids = np.unique(rng.integers(0, table.block_rows, 9)) + block * table.block_rows
            table.prefetch(rng.integers(0, N, 2))
            table.update(ids, np.full((len(ids), D), -1.0, np.float32))
            count[ids] += 1
            table.prefetch(ids)
            np.testing.assert_array_equal(table.gather(ids), np.repeat(count[ids], D).reshape(-1, D))
        np.testing.assert_array_equal(table.gather(np.arange(N))[:, 0], count)


def test_one_writer(tmp_path):
    path = tmp_path / "t.npy"
    with EmbeddingTable.create(path, 300, 2) as table:
        with pytest.raises(StorageError, match="already open for writing"):
            EmbeddingTable(path, "r+")
        with pytest.raises(StorageError, match="already open for writing"):
            EmbeddingTable.create(path, 300, 2, overwrite=True)
        table.update([0], [[1.0, 1.0]])
    with EmbeddingTable(path) as table, pytest.raises(StorageError, match="open it with mode='r\\+'"):
        table.update([0], [[1.0, 1.0]])


def test_bad_arguments(tmp_path):
    path = tmp_path / "t.npy"
    with pytest.raises(StorageError, match="there is no such table"):
        EmbeddingTable(path)
    with EmbeddingTable.create(path, 300, 2) as table:
        with pytest.raises(IndexError, match=r"ids must lie in 0..299, got 300"):
            table.gather([300])
        with pytest.raises(ValueError, match=r"gradients must have shape \(1, 2\)"):
            table.update([0], [[1.0, 1.0, 1.0]])
        with pytest.raises(ValueError, match="gradients contains inf or nan"):
            table.update([0], [[1.0, np.nan]])
        with pytest.raises(TypeError, match="not JSON serializable"):
            table.checkpoint({"x": object()})
        given = np.ones((2, 2), np.float32)
        given.flags.writeable = False
        table.update([1, 1], given)
        assert given.sum() == 4 and table.steps == 1
    with pytest.raises(StorageError, match="the table is closed"):
        table.gather([0])
    with pytest.raises(StorageError, match="pass overwrite=True"):
        EmbeddingTable.create(path, 300, 2)
    with pytest.raises(ValueError, match="optimizer must be one of"):
        EmbeddingTable.create(tmp_path / "u.npy", 300, 2, optimizer="lbfgs")
    with pytest.raises(ValueError, match=r"rows must have shape \(300, 2\)"):
        EmbeddingTable.create(tmp_path / "u.npy", 300, 2, rows=np.ones((3, 2)))
    with EmbeddingTable.create(tmp_path / "big.npy", N, D):
        pass
    with pytest.raises(MemoryLimitError, match="need at least"):
        EmbeddingTable(tmp_path / "big.npy", memory_limit=1000)
    assert EmbeddingTable(tmp_path / "big.npy", memory_limit=tight()).capacity == 4


def test_damaged_files_are_named(tmp_path):
    path, sidecar = tmp_path / "t.npy", tmp_path / "t.npy.json"
    EmbeddingTable.create(path, 300, 2).close()
    text, data = sidecar.read_text(), path.read_bytes()
    fields = json.loads(text)
    for change, message in [("{", "is damaged"), (json.dumps(fields | {"format": "x"}), "not a table"),
                            (json.dumps(fields | {"version": 9}), "version 9 of the format"),
                            (json.dumps(fields | {"n_rows": 4}), "restore both"),
                            (json.dumps({k: v for k, v in fields.items() if k != "steps"}), "missing: steps")]:
        sidecar.write_text(change)
        with pytest.raises(StorageError, match=message):
            EmbeddingTable(path)
    sidecar.unlink()
    with pytest.raises(StorageError, match="not created to the end"):
        EmbeddingTable(path)
    sidecar.write_text(text)
    path.write_bytes(data[:-1])
    with pytest.raises(StorageError, match="restore both|truncated"):
        EmbeddingTable(path)


def test_a_failed_write_is_raised_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    path = tmp_path / "t.npy"
    with EmbeddingTable.create(path, N, D, memory_limit=tight()) as table:
        want = everything(table)
        monkeypatch.setattr("gnncy._kernels.storage.blockio.write_runs", lambda *a: 28)
        with pytest.raises(StorageError, match="No space left"):
            drive(table, steps=50)
        with pytest.raises(StorageError, match="failed before"):
            table.gather([0])
        monkeypatch.undo()
        table.rollback()
        for a, b in zip(everything(table), want, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("n_blocks, block_rows", [(1, 256), (7, 256), (40, 2048), (1000, 256)])
def test_every_pair_of_blocks_meets_once(n_blocks, block_rows):
    order = EpochWindows(n_blocks, block_rows, 0, 3)
    met = np.zeros((n_blocks, n_blocks), int)
    uses = {}
    for t, window in enumerate(order.windows):
        new = order.chunks[window.chunk]
        np.testing.assert_array_equal(
            order.blocks(t), np.sort(np.concatenate([new, *(order.chunks[c] for c in window.held)])))
        for c in window.held:
            met[np.ix_(new, order.chunks[c])] += 1
            met[np.ix_(order.chunks[c], new)] += 1
        if window.own:
            met[np.ix_(new, new)] += 1
        for c in window.chunks:
            uses.setdefault(c, []).append(t)
        assert len(order.blocks(t)) <= blocks_needed(n_blocks, block_rows)
    assert (met == 1).all()
    assert len(order.chunks) == chunk_count(n_blocks, block_rows)
    for c, times in uses.items():
        assert [order.due(c, t) for t in (-1, *times)] == [*times, len(order)]


@pytest.mark.parametrize("level", _kernels.AVAILABLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33])
def test_steps_on_records(level, dtype, d):
    module = _kernels.at_level(level, "records")
    rng = np.random.default_rng(d)
    records = rng.random((50, 3 * d + 2)).astype(dtype)
    where = rng.integers(0, 50, 40)
    grad = rng.standard_normal((40, d)).astype(dtype)
    distinct, begin, order = np.empty((3, 41), np.int64)
    count = kernels.group(where, np.full(50, -1, np.int32), distinct, begin, order)
    total = np.zeros((50, d))
    np.add.at(total, where, grad.astype(float))
    for name, scalars in [("sgd", (0.1,)), ("rowwise_adagrad", (0.1, 1e-3)),
                          ("adam", (0.1, 0.9, 0.1, 0.99, 0.01, 1.5, 1e-3))]:
        want = records.astype(float)
        row = want[:, :d]
        if name == "sgd":
            row -= 0.1 * total
        elif name == "rowwise_adagrad":
            want[:, d] += (total**2).mean(1)
            row -= 0.1 / (np.sqrt(want[:, d:d + 1]) + 1e-3) * total
        else:
            used = np.isin(np.arange(50), where)[:, None]
            m, v = want[:, d:2 * d], want[:, 2 * d:3 * d]  # views
            m[:], v[:] = np.where(used, 0.9 * m + 0.1 * total, m), np.where(used, 0.99 * v + 0.01 * total**2, v)
            row -= np.where(used, 0.1 * m / (np.sqrt(v) * 1.5 + 1e-3), 0)
        got, spare = records.copy(), grad.copy()
        getattr(module, name)(0, count, distinct[:count], order, begin, spare, *scalars, got)
        np.testing.assert_allclose(got, want, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-6)


def test_grouping_keeps_the_order():
    where = np.array([5, 2, 5, 9, 2, 5])
    where.flags.writeable = False
    mark = np.full(10, -1, np.int32)
    distinct, begin, order = np.empty((3, 7), np.int64)
    assert kernels.group(where, mark, distinct, begin, order) == 3
    assert distinct[:3].tolist() == [5, 2, 9] and begin[:4].tolist() == [0, 3, 5, 6]
    assert order[:6].tolist() == [0, 2, 5, 1, 4, 3] and (mark == -1).all()


def test_draws_have_their_odds():
    weight = np.array([0.0, 3.0, 0.0, 1.0, 4.0, 0.0])
    lots = (np.arange(8000) + 0.5) / 8000
    out, guide = np.empty(8000, np.int64), np.empty(6, np.int32)
    kernels.guide(np.cumsum(weight), guide)
    kernels.draw(np.cumsum(weight), guide, lots, out)
    assert np.bincount(out, minlength=6).tolist() == [0, 3000, 0, 1000, 4000, 0]


def test_paths(tmp_path):
    table = EmbeddingTable.create(os.fspath(tmp_path / "t.npy"), 300, 2)
    assert table.path == Path(tmp_path / "t.npy") and len(table) == 300 and table.shape == (300, 2)
    assert [len(rows) for rows in table.iter_rows(128)] == [128, 128, 44]
    assert "300 x 2, rowwise_adagrad" in repr(table)
    table.close()
    table.close()


@pytest.mark.parametrize("journal", [False, True])
def test_what_leaves_next_is_written_beside_the_reading(tmp_path, journal, monkeypatch):
    exchanges = []
    plan = BlockCache._plan

    def watched(*args, **rest):
        exchanges.append(plan(*args, **rest))
        return exchanges[-1]

    monkeypatch.setattr(BlockCache, "_plan", watched)
    with EmbeddingTable.create(tmp_path / "t.npy", N, D, rows=np.zeros((N, D)), memory_limit=tight(), journal=journal,
                               direct=False) as table:
        visits = np.random.default_rng(0).permuted(np.tile(np.arange(table.n_blocks), (6, 1)), axis=1).reshape(-1)
        expected = np.zeros(table.n_blocks)
        for block, following in zip(visits, np.append(visits[1:], visits[0]), strict=True):
            table.hold(np.array([block]))
            table.read_ahead(np.array([following]))
            slots, bits = table.places
            table.records[slots[block] << bits:slots[block] + 1 << bits, :D] += 1 + block
            table.changed(np.array([block]), 1)
            expected[block] += 1 + block
        table.checkpoint()
        rows = table.gather(np.arange(N))
        np.testing.assert_array_equal(rows, np.repeat(expected[np.arange(N) // table.block_rows, None], D, 1))
    ahead = exchanges[5:-table.n_blocks]
    waited = sum(len(exchange.leaving) for exchange in ahead)
    assert waited <= 0.1 * sum(len(exchange.cleaned) for exchange in ahead)
