"""Replay: who is kept, with which probability, in memory and on disk; the shift of a stream; a step in a Trainer."""
import numpy as np
import pytest
from scipy.stats import chisquare

from gnncy import nn, optim
from gnncy._random import derive
from gnncy.errors import StorageError
from gnncy.storage import HyperbatchIterator
from gnncy.training import SnapshotFolder, Trainer, read_snapshot, write_snapshot
from gnncy.training.continual import DistributionShift, Rehearsal, ReplayMemory

ROWS = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)


def filled(n=100, capacity=10, parts=(100,), **options):
    memory = ReplayMemory(capacity, **options)
    labels, degrees = np.arange(n) % 7 // 5, np.arange(n) % 9
    for nodes in np.split(np.arange(n), np.cumsum(parts)[:-1]):
        memory.add(nodes, labels=labels[nodes], degrees=degrees[nodes], features=ROWS[nodes])
    return memory


# -- who is kept


def test_every_node_is_kept_equally_often():
    kept = np.zeros(20)
    for seed in range(1500):
        memory = ReplayMemory(5, seed=seed)
        memory.add(np.arange(20))
        kept[memory.nodes] += 1
    assert kept.sum() == 7_500
    assert chisquare(kept).pvalue > 1e-3


def test_every_set_of_nodes_is_kept_equally_often():
    counts = np.zeros((6, 6))
    for seed in range(1200):
        memory = ReplayMemory(2, seed=seed)
        for node in range(6):  # one after the other
            memory.add([node])
        counts[tuple(sorted(memory.nodes))] += 1
    sets = counts[np.triu_indices(6, 1)]
    assert sets.sum() == 1200 and chisquare(sets).pvalue > 1e-3


def test_priorities_are_of_the_counter_based_stream():
    memory = ReplayMemory(10, seed=5)
    memory.add(np.arange(4))
    assert memory._kept["priorities"].tolist() == [derive(5, "priority", i) for i in range(4)]


@pytest.mark.parametrize("balance", ["none", "class", "degree"])
@pytest.mark.parametrize("parts", [(1,) * 100, (3, 50, 0, 47)])
def test_who_is_kept_does_not_depend_on_how_nodes_come(balance, parts):
    memory, whole = filled(balance=balance, parts=parts), filled(balance=balance)
    assert (memory.nodes == whole.nodes).all() and (memory.labels == whole.labels).all()
    assert (memory.features() == whole.features()).all() and (memory.features() == ROWS[memory.nodes]).all()
    assert memory.seen == 100 and len(memory) == 10
    assert (memory.labels == memory.nodes % 7 // 5).all()


def test_other_seeds_keep_others():
    assert filled(seed=1).nodes.tolist() != filled(seed=2).nodes.tolist()


def test_all_are_kept_while_there_is_room():
    memory = ReplayMemory(10)
    for node in range(10):
        memory.add([node])
        assert memory.nodes.tolist() == list(range(node + 1))


def test_classes_have_equally_many_places():
    memory = ReplayMemory(30, balance="class", seed=1)
    labels = np.random.default_rng(0).permutation(np.repeat([3, 8, 5, 9], [900, 60, 20, 4]))
    for nodes in np.array_split(np.arange(984), 50):
        memory.add(nodes, labels=labels[nodes])
        counts, there = np.bincount(memory.labels, minlength=10), np.bincount(labels[:memory.seen], minlength=10)
        assert counts.sum() == min(30, memory.seen)
        full = counts < there  # the classes that had to leave out nodes have the most places, to one
        assert not full.any() or counts[full].min() >= counts.max() - 1
    assert counts[[3, 5, 8, 9]].tolist() == [9, 9, 8, 4]


def test_a_class_is_sampled_uniformly_whatever_comes_beside_it():
    kept = np.zeros(40)
    for seed in range(1000):
        memory = ReplayMemory(8, balance="class", seed=seed)
        memory.add(np.arange(20), labels=np.zeros(20, int))
        memory.add(np.arange(20, 40), labels=np.arange(20, 40) % 2)  # a class more, the first goes on
        kept[memory.nodes] += 1
    labels = np.r_[np.zeros(20, int), np.arange(20, 40) % 2]
    for label in (0, 1):
        assert kept[labels == label].sum() == 4000
        assert chisquare(kept[labels == label]).pvalue > 1e-3


def test_degrees_are_balanced_by_powers_of_two():
    degrees = np.repeat([0, 1, 2, 3, 4, 7, 8], [100, 100, 50, 50, 50, 50, 2])
    memory = ReplayMemory(42, balance="degree", seed=0)
    memory.add(np.arange(len(degrees)), degrees=degrees)
    kept = degrees[memory.nodes]
    assert [int(((kept >= low) & (kept < high)).sum()) for low, high in ((0, 1), (1, 2), (2, 4), (4, 8), (8, 16))] == [
        10, 10, 10, 10, 2]


# -- draws


def test_draws_are_without_replacement_uniform_and_keyed():
    memory = ReplayMemory(10, seed=3)
    memory.add(np.arange(100, 110))
    counts = np.zeros(110)
    for key in range(2000):
        nodes = memory.draw(3, key).nodes
        assert len(set(nodes.tolist())) == 3
        counts[nodes] += 1
    assert chisquare(counts[100:]).pvalue > 1e-3
    assert (memory.draw(3, 7).nodes == memory.draw(3, 7).nodes).all()
    assert sorted(memory.draw(99, 0).nodes) == list(range(100, 110))
    assert len(ReplayMemory(3).draw(5, 0).nodes) == 0


def test_what_is_drawn_belongs_together(tmp_path):
    for folder in (None, tmp_path):
        with filled(folder=folder) as memory:
            drawn = memory.draw(4, 1)
            assert (drawn.features == ROWS[drawn.nodes]).all() and (drawn.labels == drawn.nodes % 7 // 5).all()
    bare = ReplayMemory(3)
    bare.add([1, 2])
    assert bare.draw(2, 0).labels is None and bare.draw(2, 0).features is None and bare.labels is None


# -- refusals


@pytest.mark.parametrize(("arguments", "error", "message"), [
    (((0,), {}), ValueError, "capacity must be at least 1"),
    (((5,), {"balance": "degrees"}), ValueError, "balance must be one of"),
    (((5,), {"seed": -1}), ValueError, "non-negative"),
])
def test_a_memory_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        ReplayMemory(*arguments[0], **arguments[1])


@pytest.mark.parametrize(("options", "more", "error", "message"), [
    ({}, {"nodes": [1.5]}, TypeError, "nodes must be integers"),
    ({}, {"nodes": [[1]]}, ValueError, "nodes must be 1-dimensional"),
    ({}, {"labels": [1]}, ValueError, "labels must be one integer for each of 2"),
    ({}, {"features": np.ones((1, 3))}, ValueError, "features must have a row"),
    ({}, {"features": np.full((2, 3), np.nan)}, ValueError, "nan"),
    ({"balance": "class"}, {}, ValueError, "needs labels"),
    ({"balance": "degree"}, {}, ValueError, "needs degrees"),
    ({"balance": "degree"}, {"degrees": [1, -1]}, ValueError, "degrees must be at least 0"),
])
def test_an_addition_is_refused_whole(options, more, error, message):
    memory = ReplayMemory(5, **options)
    with pytest.raises(error, match=message):
        memory.add(**{"nodes": [1, 2]} | more)
    assert memory.seen == 0 and len(memory) == 0


def test_labels_and_features_come_always_or_never():
    memory = filled()
    for more in ({}, {"labels": [0]}, {"features": ROWS[:1]}):
        with pytest.raises(ValueError, match="at each call of add or at none"):
            memory.add([5], **more)
    with pytest.raises(ValueError, match="row of 3 numbers"):
        memory.add([5], labels=[0], features=np.ones((1, 4)))
    assert memory.seen == 100


# -- how it is kept


@pytest.mark.parametrize("balance", ["none", "class"])
def test_disk_and_memory_keep_the_same(tmp_path, balance):
    with filled(balance=balance, folder=tmp_path, parts=(20, 30, 50)) as disk:
        memory = filled(balance=balance)
        assert (disk.nodes == memory.nodes).all() and (disk.features() == memory.features()).all()
        assert (disk.draw(4, 2).features == memory.draw(4, 2).features).all()


def test_open_finds_the_last_commit_whatever_came_after(tmp_path):
    for stop in (5, 30, 60, 100):
        folder = tmp_path / str(stop)
        with ReplayMemory(10, folder=folder, seed=4) as memory:
            memory.add(np.arange(stop), features=ROWS[:stop])
            memory.commit()
            nodes = memory.nodes
            for node in range(stop, 100):  # overwrites free places only
                memory.add([node], features=ROWS[[node]])
        with ReplayMemory.open(folder) as memory:
            assert (memory.nodes == nodes).all() and memory.seen == stop
            assert (memory.features() == ROWS[nodes]).all()
            memory.add(np.arange(stop, 100), features=ROWS[stop:])
            memory.commit()
        whole = ReplayMemory(10, seed=4)
        whole.add(np.arange(100), features=ROWS)
        with ReplayMemory.open(folder) as memory:
            assert (memory.nodes == whole.nodes).all() and (memory.features() == whole.features()).all()


def test_a_write_that_fails_leaves_the_memory_as_it_was(monkeypatch, tmp_path):
    with filled(folder=tmp_path) as memory:
        before = memory.state_dict()

        def full(*arguments):
            raise StorageError("disk full")
        monkeypatch.setattr("gnncy.storage.FeatureStorage.write_features", full)
        with pytest.raises(StorageError, match="disk full"):
            memory.add(np.arange(100), labels=np.arange(100), features=ROWS)
        after = memory.state_dict()
        assert all(np.array_equal(value, after[name]) for name, value in before.items())


def test_folders_are_not_mistaken(tmp_path):
    with pytest.raises(StorageError, match="missing"):
        ReplayMemory.open(tmp_path)
    with pytest.raises(ValueError, match="pass folder"):
        ReplayMemory(3).commit()
    write_snapshot(tmp_path / "memory.npz", {}, {"epoch": 1})
    with pytest.raises(StorageError, match="no memory of nodes"):
        ReplayMemory.open(tmp_path)
    with pytest.raises(FileExistsError, match="open"):
        ReplayMemory(3, folder=tmp_path)
    (tmp_path / "memory.npz").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(StorageError, match="damaged"):
        ReplayMemory.open(tmp_path)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_state_goes_on_in_another_memory(tmp_path, on_disk):
    memory, other = filled(parts=(40, 60), balance="class"), ReplayMemory(
        10, balance="class", folder=tmp_path if on_disk else None)
    first = filled(n=40, parts=(40,), balance="class")
    write_snapshot(tmp_path / "state.npz", {k: v for k, v in first.state_dict().items() if isinstance(v, np.ndarray)},
                   {k: v for k, v in first.state_dict().items() if not isinstance(v, np.ndarray)})
    arrays, numbers = read_snapshot(tmp_path / "state.npz")
    with other:
        other.load_state_dict(arrays | numbers)
        rest = np.arange(40, 100)
        other.add(rest, labels=rest % 7 // 5, features=ROWS[rest])
        assert (other.nodes == memory.nodes).all() and (other.features() == memory.features()).all()
    with pytest.raises(ValueError, match="capacity=10"):
        ReplayMemory(9, balance="class").load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="seed=0"):
        ReplayMemory(10, balance="class", seed=1).load_state_dict(first.state_dict())


# -- in a training


class Stop(Exception):
    pass


def train(memory, folder=None, stop=None):
    """Every minibatch is added to the memory, of which a few nodes are trained with the next."""
    model = nn.Linear(3, 2, rng=0)

    def batches(epoch, first):
        return HyperbatchIterator(ROWS, list(np.arange(100).reshape(10, 10)[first:]), buffer_bytes=10**6)

    def step_of(nodes, features):
        loss = -nn.log_softmax(model(nn.Tensor(features)))[np.arange(len(nodes)), nodes % 2].mean()
        loss.backward()
        return loss.item()

    def step(batch, key):
        return step_of(batch.batch, batch.features), len(batch.batch)

    class Adding:
        def on_batch_end(self, trainer, info):
            nodes = np.arange(100).reshape(10, 10)[info["step"] - 1]
            memory.add(nodes, features=ROWS[nodes])
            if trainer.total_steps == stop:
                raise Stop

    rehearsal = Rehearsal(memory, lambda replayed, key: step_of(replayed.nodes, replayed.features), 4)
    trainer = Trainer(model, optim.Adam(model.parameters(), lr=0.1), seed=0, max_epochs=2, continual=rehearsal,
                      callbacks=[Adding()], snapshots=None if folder is None else SnapshotFolder(folder),
                      snapshot_seconds=0.0)
    return model, trainer.run(batches, step, 10)


def test_a_trainer_rehearses_and_goes_on_after_a_kill_to_the_same_bits(tmp_path):
    memory = ReplayMemory(20)
    whole, history = train(memory)
    assert history[0]["continual_loss"] > 0 and memory.seen == 200
    with pytest.raises(Stop):
        train(ReplayMemory(20), tmp_path, stop=13)
    again = ReplayMemory(20)
    model, _ = train(again, tmp_path)
    # What was added after the last snapshot is added again.
    assert (again.nodes == memory.nodes).all() and (model.weight.data == whole.weight.data).all()


def test_an_empty_memory_has_no_loss():
    def never(replayed, key):
        raise AssertionError

    assert Rehearsal(ReplayMemory(3), never, 2)(None, 0) == 0.0
    memory = ReplayMemory(3)
    memory.add([1])
    with pytest.raises(ValueError, match="loss of a replay step must be finite"):
        Rehearsal(memory, lambda replayed, key: float("nan"), 2)(None, 0)


# -- shift


def test_the_window_holds_the_last_rows_and_the_rest_is_before_them():
    rows = np.random.default_rng(0).normal(size=(60, 4)) * [1, 2, 3, 4] + 5
    for parts in ([60], [1] * 60, [7, 13, 40]):
        shift = DistributionShift(10)
        for part in np.split(rows, np.cumsum(parts)[:-1]):
            shift.add(part)
        past, recent = rows[:50], rows[50:]
        expected = (np.abs(recent.mean(axis=0) - past.mean(axis=0)) / past.std(axis=0)).mean()
        assert shift.score() == pytest.approx(expected, rel=1e-12) and shift.seen == 60


def test_only_a_shift_of_the_latest_rows_is_seen():
    rng, shift = np.random.default_rng(0), DistributionShift(200)
    assert np.isnan(shift.score())
    shift.add(rng.normal(size=(200, 16)))
    assert np.isnan(shift.score())
    shift.add(rng.normal(size=(5000, 16)))
    calm = shift.score()
    assert calm == pytest.approx(0.8 / np.sqrt(200), rel=0.5)
    shift.add(rng.normal(size=(200, 16)) + 1)
    assert shift.score() == pytest.approx(1, rel=0.1)
    shift.add(rng.normal(size=(200, 16)))  # back again
    assert shift.score() < 2 * calm + 0.05


def test_columns_that_never_vary():
    shift = DistributionShift(3)
    shift.add(np.full((30, 2), 0.1))
    assert shift.score() == 0
    shift.add([[0.1, 0.2]])
    assert shift.score() == np.inf


def test_the_state_of_a_shift_goes_on():
    rng = np.random.default_rng(0)
    shift, other = DistributionShift(20), DistributionShift(20)
    other.load_state_dict(shift.state_dict())
    shift.add(rng.normal(size=(50, 3)))
    other.load_state_dict(shift.state_dict())
    more = rng.normal(size=(30, 3))
    shift.add(more)
    other.add(more)
    assert other.score() == shift.score() > 0
    with pytest.raises(ValueError, match="window of 20"):
        DistributionShift(21).load_state_dict(shift.state_dict())
    with pytest.raises(ValueError, match="3 columns"):
        shift.add(np.ones((1, 4)))
    with pytest.raises(ValueError, match="window must be at least 1"):
        DistributionShift(0)
