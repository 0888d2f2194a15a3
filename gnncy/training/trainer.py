"""The training loop: epochs of minibatches, snapshots from which a killed run continues to the same bits."""
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

import numpy as np

from gnncy import _memory
from gnncy._random import derive
from gnncy.errors import StorageError
from gnncy.training.snapshot import SnapshotFolder

log = logging.getLogger("gnncy")


class Trainer:
    """Trains a model on minibatches, one call of ``step`` each.

    Everything random in a step must come from its key, which depends on the seed, the epoch and the step alone;
    so a run that is killed and continued from its last snapshot ends with the same bits as one that was not.

    Parameters
    ----------
    model : nn.Module
    optimizer : optim.Adam
    seed : int
    max_epochs : int
    snapshots : SnapshotFolder, optional
        Where to save; without one nothing is saved.
    snapshot_seconds : float, default 20
        A snapshot is taken at the end of each epoch and whenever this long has passed since the last. When
        it is taken does not change the result.
    fingerprint : dict, optional
        What the run depends on. A snapshot with another fingerprint is refused.
    schedule : callable, optional
        ``schedule(progress)`` with progress in 0..1 scales the learning rate at each step.
    callbacks : sequence, optional
        Objects with any of ``on_batch_end(trainer, info)`` and ``on_epoch_end(trainer, record)``; if an
        ``on_epoch_end`` returns True, training stops there.

    Attributes
    ----------
    history : list of dict
        One record an epoch: loss (mean over samples, summed in float64), nodes_per_s, mb_read, hit_rate,
        io_wait_share, rss, seconds.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn, optim, storage, training
    >>> features = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    >>> model = nn.Linear(4, 4, rng=0)
    >>> trainer = training.Trainer(model, optim.Adam(model.parameters(), lr=0.01), seed=0, max_epochs=3)
    >>> def batches(epoch, first):
    ...     return storage.HyperbatchIterator(features, [np.arange(64)][first:], buffer_bytes="1MB")
    >>> def step(batch, key):  # learns to return its input
    ...     error = model(batch.features) - batch.features
    ...     loss = (error * error).mean()
    ...     loss.backward()
    ...     return loss.item(), len(batch.features)
    >>> history = trainer.run(batches, step, steps_per_epoch=1)
    >>> history[2]["loss"] < history[0]["loss"]
    True
    """

    def __init__(self, model, optimizer, *, seed: int, max_epochs: int, snapshots: SnapshotFolder | None = None,
                 snapshot_seconds: float = 20.0, fingerprint: dict | None = None,
                 schedule: Callable[[float], float] | None = None, callbacks: Sequence = ()) -> None:
        self.model, self.optimizer = model, optimizer
        self.seed, self.max_epochs = seed, max_epochs
        self.snapshots, self.snapshot_seconds = snapshots, snapshot_seconds
        self.fingerprint = fingerprint or {}
        self.schedule = schedule
        self.callbacks = tuple(callbacks)
        self.epoch, self.step, self.total_steps = 0, 0, 0
        self.history: list[dict] = []
        self._loss_sum, self._samples, self._stopped = 0.0, 0, False
        self._learning_rate = optimizer.lr

    def run(self, batches: Callable[[int, int], Iterable], step: Callable, steps_per_epoch: int) -> list[dict]:
        """Train from the last snapshot, or from the start, to the end; returns the history.

        Parameters
        ----------
        batches : callable
            ``batches(epoch, first)`` gives an epoch's minibatches from number ``first`` on: an iterable with
            ``close()`` and ``statistics``, such as ``storage.HyperbatchIterator``.
        step : callable
            ``step(batch, key)`` computes loss and gradients of one minibatch: ``(mean loss, samples)``.
        steps_per_epoch : int
        """
        if self.snapshots is not None:
            self._restore(self.snapshots)
        self.model.train()
        while self.epoch < self.max_epochs and not self._stopped:
            self._run_epoch(batches, step, steps_per_epoch)
        self.model.eval()
        return self.history

    def _run_epoch(self, batches, step, steps_per_epoch) -> None:
        began = saved = time.monotonic()
        samples_before = self._samples
        with closing(batches(self.epoch, self.step)) as epoch_batches:
            for batch in epoch_batches:
                key = derive(self.seed, "step", self.epoch, self.step)
                if self.schedule is not None:
                    done = (self.epoch * steps_per_epoch + self.step) / (self.max_epochs * steps_per_epoch)
                    self.optimizer.lr = self._learning_rate * self.schedule(done)
                self.optimizer.zero_grad()
                loss, samples = step(batch, key)
                if not np.isfinite(loss):
                    raise FloatingPointError(f"the loss became {loss} in epoch {self.epoch + 1}, step {self.step + 1}; "
                                             "lower learning_rate or raise temperature")
                self.optimizer.step()
                self.step += 1
                self.total_steps += 1
                self._loss_sum += float(loss) * samples
                self._samples += samples
                self._call("on_batch_end", {"epoch": self.epoch, "step": self.step, "steps": steps_per_epoch,
                                            "loss": float(loss)})
                if self.snapshots is not None and time.monotonic() - saved > self.snapshot_seconds:
                    self._save(self.snapshots)
                    saved = time.monotonic()
            statistics = epoch_batches.statistics
        seconds = time.monotonic() - began
        samples = self._samples - samples_before
        record = {"epoch": self.epoch + 1, "loss": self._loss_sum / max(self._samples, 1), "seconds": seconds,
                  "nodes_per_s": samples / seconds if seconds else 0.0, "mb_read": statistics.bytes_read / 1e6,
                  "hit_rate": statistics.hit_rate,
                  "io_wait_share": statistics.wait_seconds / seconds if seconds else 0.0, "rss": _memory.rss()}
        self.history.append(record)
        self.epoch, self.step, self._loss_sum, self._samples = self.epoch + 1, 0, 0.0, 0
        left = (self.max_epochs - self.epoch) * seconds
        log.info("epoch %d/%d  loss %.4f  %.0f nodes/s  read %.0f MB  hit rate %.2f  I/O wait %.0f %%  RSS %s  "
                 "ETA %.0f s", self.epoch, self.max_epochs, record["loss"], record["nodes_per_s"], record["mb_read"],
                 record["hit_rate"], 100 * record["io_wait_share"], _memory.format_bytes(record["rss"]), left)
        self._stopped = self._call("on_epoch_end", record)
        if self.snapshots is not None:
            self._save(self.snapshots)

    def _call(self, hook: str, info: dict) -> bool:
        stop = False
        for callback in self.callbacks:
            method = getattr(callback, hook, None)
            if method is not None and method(self, info) is True:
                stop = True
        return stop

    def _save(self, snapshots: SnapshotFolder) -> None:
        # The arrays themselves, not copies: nothing changes them while they are written.
        arrays = {f"model/{name}": parameter.data for name, parameter in self.model.named_parameters()}
        arrays |= {f"optimizer/{slot}/{i}": x for slot, values in self.optimizer.state.items()
                   for i, x in enumerate(values)}
        numbers = {"epoch": self.epoch, "step": self.step, "total_steps": self.total_steps,
                   "loss_sum": self._loss_sum.hex(), "samples": self._samples, "stopped": self._stopped,
                   "history": self.history, "fingerprint": self.fingerprint,
                   "optimizer": self.optimizer.numbers()}
        snapshots.save(self.total_steps, arrays, numbers)

    def _restore(self, snapshots: SnapshotFolder) -> None:
        found = snapshots.load_latest()
        if found is None:
            return
        arrays, numbers = found
        if numbers["fingerprint"] != self.fingerprint:
            differ = sorted(k for k in {**numbers["fingerprint"], **self.fingerprint}
                            if numbers["fingerprint"].get(k) != self.fingerprint.get(k))
            raise StorageError(f"the checkpoint in {snapshots.folder} belongs to another run (different: "
                               f"{', '.join(differ)}); use the same settings or another folder")
        self.model.load_state_dict({k.removeprefix("model/"): v for k, v in arrays.items() if k.startswith("model/")})
        count = len(self.optimizer.params)
        self.optimizer.load_state_dict(numbers["optimizer"] | {
            slot: [arrays[f"optimizer/{slot}/{i}"] for i in range(count)] for slot in self.optimizer.slots})
        self.epoch, self.step, self.total_steps = numbers["epoch"], numbers["step"], numbers["total_steps"]
        self._loss_sum, self._samples = float.fromhex(numbers["loss_sum"]), numbers["samples"]
        self._stopped, self.history = numbers["stopped"], numbers["history"]
        log.info("continuing after epoch %d, step %d", self.epoch, self.step)
