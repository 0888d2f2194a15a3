import numpy as np
import pytest

from gnncy import losses, nn, optim
from gnncy.errors import StorageError
from gnncy.storage import HyperbatchIterator
from gnncy.training import SnapshotFolder, Trainer
from stopping import Stop, StopAfter

ROWS = np.random.default_rng(0).standard_normal((256, 8), dtype=np.float32)


def make(folder=None, *, callbacks=(), seconds=1000.0, epochs=3, fingerprint=None):
    model = nn.MLP([8, 16, 4], rng=0)
    snapshots = None if folder is None else SnapshotFolder(folder)
    trainer = Trainer(model, optim.Adam(list(model.parameters()), lr=1e-2), seed=7, max_epochs=epochs,
                      snapshots=snapshots, snapshot_seconds=seconds, callbacks=callbacks, fingerprint=fingerprint,
                      schedule=lambda p: 1 - 0.5 * p)
    return model, trainer


def run(model, trainer):
    def batches(epoch, first):
        order = np.random.default_rng(epoch).permutation(256).reshape(8, 32)
        return HyperbatchIterator(ROWS, list(order[first:]), buffer_bytes=10**6)

    def step(batch, key):
        x = nn.Tensor(batch.features)
        views = [model(nn.dropout(x, 0.2, key=key + i)) for i in range(2)]
        loss = losses.info_nce(*views, temperature=0.5)
        loss.backward()
        return float(loss.data), len(batch.features)

    return trainer.run(batches, step, steps_per_epoch=8)


def weights(model):
    return np.concatenate([p.data.ravel() for p in model.parameters()])


def test_loss_falls_and_records_say_what_happened():
    model, trainer = make(epochs=6)
    history = run(model, trainer)
    assert [r["epoch"] for r in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < history[0]["loss"] - 0.05
    for record in history:
        assert record["nodes_per_s"] > 0 and 0 <= record["io_wait_share"] <= 1 and record["rss"] > 10**6


@pytest.mark.parametrize("stop", [1, 3, 8, 9, 17, 23])
@pytest.mark.parametrize("seconds", [0.0, 1000.0])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path, stop, seconds):
    whole, trainer = make()
    expected = run(whole, trainer)
    model, trainer = make(tmp_path, callbacks=[StopAfter(stop)], seconds=seconds)
    with pytest.raises(Stop):
        run(model, trainer)
    model, trainer = make(tmp_path, seconds=seconds)
    history = run(model, trainer)
    assert np.array_equal(weights(model), weights(whole))
    assert [r["loss"] for r in history] == [r["loss"] for r in expected]


def test_a_finished_run_is_not_trained_again(tmp_path):
    model, trainer = make(tmp_path)
    run(model, trainer)
    again, trainer = make(tmp_path, callbacks=[StopAfter(1)])
    assert len(run(again, trainer)) == 3
    assert np.array_equal(weights(model), weights(again))


def test_a_snapshot_of_other_settings_is_refused(tmp_path):
    run(*make(tmp_path, fingerprint={"seed": 1, "lr": 2}))
    with pytest.raises(StorageError, match=r"belongs to another run \(different: lr\)"):
        run(*make(tmp_path, fingerprint={"seed": 1, "lr": 3}))


def test_a_callback_stops_the_training(tmp_path):
    class Enough:
        def on_epoch_end(self, trainer, record):
            return record["epoch"] == 2
    model, trainer = make(tmp_path, callbacks=[Enough()])
    assert len(run(model, trainer)) == 2
    model, trainer = make(tmp_path)
    assert len(run(model, trainer)) == 2  # it had ended


def test_a_loss_that_is_not_finite_ends_the_run():
    model, trainer = make()
    with pytest.raises(FloatingPointError, match="epoch 1, step 1; lower learning_rate"):
        trainer.run(lambda e, f: HyperbatchIterator(ROWS, [np.arange(4)], buffer_bytes=10**5),
                    lambda batch, key: (float("nan"), 4), 1)
