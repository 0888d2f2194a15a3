"""The training loop: epochs of minibatches, snapshots from which a killed run continues to the same bits."""
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import numpy as np

from gnncy import _memory
from gnncy._check import check_float, check_int
from gnncy._random import derive
from gnncy._threads import working_threads
from gnncy.errors import StorageError
from gnncy.nn import no_grad
from gnncy.optim import ReduceOnPlateau, clip_grad_norm_, clip_grad_value_
from gnncy.training.callbacks import Task, call_task_hooks
from gnncy.training.loader import GraphLoader
from gnncy.training.objective import Embedded, Objective
from gnncy.training.phases import PhaseConfig, PhaseTrainer
from gnncy.training.schedules import Schedules
from gnncy.training.snapshot import SnapshotFolder

log = logging.getLogger("gnncy")


class Trainer:
    """Trains a model on minibatches: :meth:`fit` contrastively on a graph, :meth:`run` with a step of your own.

    Everything random in a step comes from its key, which depends on the seed, the epoch and the step alone; so a run
    that is killed and continued from its last snapshot ends with the same bits as one that was not.

    Parameters
    ----------
    model : nn.Module
    optimizer : Optimizer
    seed : int
    max_epochs : int
    snapshots : SnapshotFolder, optional
        Where to save; without one nothing is saved.
    snapshot_seconds : float, default 20
        A snapshot is taken at the end of each epoch and whenever this long has passed since the last. When
        it is taken does not change the result.
    fingerprint : dict, optional
        What the run depends on. A snapshot with another fingerprint is refused.
    schedule : callable or ReduceOnPlateau, optional
        Of the learning rate: ``schedule(progress)`` with progress in 0..1 scales it at each step; a
        :class:`~gnncy.optim.ReduceOnPlateau` of the optimizer lowers it by the epochs' validation, or else loss.
    clip_norm, clip_value : float, optional
        Clip all gradients together to a norm, each element to a magnitude (first); ``max_norm`` of an optimizer does
        the former in one pass less.
    callbacks : sequence, optional
        See :class:`Callback`.
    phases : PhaseConfig, optional
        Predict gradients between minibatches: see :mod:`gnncy.training.phases`. A predicted step takes no minibatch, so
        an epoch has the same minibatches and more steps. Default: all gradients are true ones.
    continual : callable or sequence of callables, optional
        Further terms of the loss, such as those of :mod:`gnncy.training.continual`. ``term(batch, key)`` is called in
        each step after the gradients of the minibatch: it adds its own, and returns the loss that they are of. Their
        sum is the record's ``continual_loss``; a term with ``state_dict()`` is part of the snapshots.

    Attributes
    ----------
    history : list of dict
        One record an epoch: loss (mean over samples, summed in float64), learning rate, nodes_per_s, mb_read, hit_rate,
        io_wait_share, rss, seconds, and where these went: read (waiting for minibatches), step, update. :meth:`fit`
        adds each loss by itself, forward, backward, sample (drawing minibatches, beside the training if prefetched),
        validation, and what was scheduled when the epoch began; ``phases`` the predicted steps so far.
    epoch, step, steps, total_steps : int
        Where the run is: the present epoch, from 0; of its ``steps`` those that are done, and of all.
    phases : PhaseTrainer or None
        With its ``get_stats()``.

    Examples
    --------
    >>> import gnncy
    >>> from gnncy import nn, optim, training
    >>> data = gnncy.datasets.make_sbm(300, 3, n_features=16, seed=0)
    >>> model = nn.MLP([16, 32, 8], rng=0)
    >>> trainer = training.Trainer(model, optim.Adam(model.parameters(), lr=0.01), seed=0, max_epochs=5)
    >>> history = trainer.fit(training.GraphLoader(data.adjacency, data.features, batch_size=100))
    >>> history[-1]["loss"] < history[0]["loss"]
    True

    With a step of your own:

    >>> import numpy as np
    >>> from gnncy import storage
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
                 schedule: Callable[[float], float] | ReduceOnPlateau | None = None, clip_norm: float | None = None,
                 clip_value: float | None = None, callbacks: Sequence = (),
                 phases: PhaseConfig | None = None,
                 continual: Callable[[Any, int], float] | Sequence[Callable[[Any, int], float]] = ()) -> None:
        self.model, self.optimizer = model, optimizer
        self.seed, self.max_epochs = seed, max_epochs
        self.snapshots, self.snapshot_seconds = snapshots, snapshot_seconds
        self.fingerprint = fingerprint or {}
        self.schedule = schedule
        if isinstance(schedule, ReduceOnPlateau) and schedule.optimizer is not optimizer:
            raise ValueError("schedule must be a ReduceOnPlateau of the trainer's optimizer: "
                             "ReduceOnPlateau(optimizer, ...)")
        self.clip_norm = None if clip_norm is None else check_float(clip_norm, "clip_norm", above=0)
        self.clip_value = None if clip_value is None else check_float(clip_value, "clip_value", above=0)
        self.callbacks = tuple(callbacks)
        self.continual = (continual,) if callable(continual) else tuple(continual)
        self.phases = None if phases is None else PhaseTrainer.of(optimizer, phases)
        self.epoch, self.step, self.steps, self.total_steps = 0, 0, 0, 0
        self.history: list[dict] = []
        self._loss_sum, self._samples, self._stopped = 0.0, 0, False
        self._part_sums: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        self._objective: Objective | None = None
        self._learning_rate = optimizer.lr
        self._exit_status: int | None = None

    def fit(self, loader: GraphLoader, objective: Objective | None = None, *, schedules: Schedules | None = None,
            validation: Callable[[Any], float | None] | GraphLoader | None = None, n_jobs: int | None = None
            ) -> list[dict]:
        """Train contrastively on a graph, from the last snapshot or from the start; returns the history.

        Parameters
        ----------
        loader : GraphLoader
        objective : Objective, optional
            Default: symmetric InfoNCE.
        schedules : Schedules, optional
            Temperature, number of negatives and weights of the losses, in force at each step, and the difficulty up to
            which nodes are trained, in force in an epoch from its beginning.
        validation : callable or GraphLoader, optional
            Measured at the end of each epoch: ``validation(model)``, with the model in evaluation mode, gives a number
            (or None where it was not measured); of a loader the mean loss of its minibatches, always the same ones, by
            the temperature and weights of ``objective`` as it was made. Stands in the record as ``validation``.
        n_jobs : int, optional
            Threads; None is 1 (or joblib's or ``GNNCY_NUM_THREADS``'s number), -1 all usable CPUs. The result does not
            depend on it.

        Raises
        ------
        ValueError
            If the optimizer lacks a parameter of the model or decoder, or a difficulty is scheduled for a loader
            that knows none.
        FloatingPointError
            If the loss becomes nan or infinite.
        StorageError
            If the snapshots belong to another run.
        """
        objective = Objective() if objective is None else objective
        schedules = Schedules() if schedules is None else schedules
        trained = {id(parameter) for parameter in self.optimizer.params}
        for module in (self.model, objective.decoder):
            if module is not None and not all(id(parameter) in trained for parameter in module.parameters()):
                raise ValueError(f"optimizer must have all parameters of {type(module).__name__}, or they would not "
                                 "be trained")
        self._check_difficulty(loader, [schedules.at(epoch).difficulty for epoch in range(self.max_epochs)])
        self._objective = objective

        def batches(epoch: int, first: int):
            return loader.batches(epoch, first, schedules.at(epoch).difficulty)

        def step(batch, key: int):
            with self._timed("forward"):
                self.model.set_step_key(derive(key, "model"))
                z = loader.encode(self.model, batch.batch, batch.features, derive(key, "augment"))
                found = objective(_embedded(z, batch, loader, derive(key, "loss")),
                                  schedules.at(self.epoch, self.step, self.steps))
            with self._timed("backward"):
                if found.gradient is not None:
                    z.backward(found.gradient)
                objective.learn()
            return found.total, len(batch.batch.anchors), found.parts

        def more(record: dict) -> None:
            record["sample_seconds"] = loader.sample_seconds
            record |= {name: value for name, value in schedules.at(self.epoch)._asdict().items()
                       if value is not None and name != "loss_weights"}
            if validation is not None:
                self.model.eval()
                with self._timed("validation"):
                    record["validation"] = _held_out(self.model, validation, objective) if isinstance(
                        validation, GraphLoader) else validation(self.model)
                record["validation_seconds"] = self._seconds["validation"]
                self.model.train()

        with working_threads(n_jobs):
            return self._run(batches, step, lambda epoch: loader.steps(schedules.at(epoch).difficulty), more)

    @staticmethod
    def _check_difficulty(loader: GraphLoader, difficulties: list[float | None]) -> None:
        """Refuse a difficulty that chooses nothing; tell of nodes that it leaves out to the end."""
        least = min((1.0 if difficulty is None else difficulty for difficulty in difficulties), default=1.0)
        if least < 1 and loader.difficulty is None:
            raise ValueError(f"nodes up to difficulty {least:g} are scheduled, but the loader knows no difficulties: "
                             "give it difficulty=, for instance neighbor_difficulty(adjacency, features), or stages "
                             "with difficulty=1")
        easy = max((len(loader.included(difficulty)) for difficulty in difficulties), default=len(loader.anchors))
        if left_out := len(loader.anchors) - easy:
            log.warning("%d of %d nodes are never trained, being harder than any epoch's difficulty: train for more "
                        "epochs, or shorten the curriculum", left_out, len(loader.anchors))

    def run(self, batches: Callable[[int, int], Iterable], step: Callable,
            steps_per_epoch: int | Callable[[int], int]) -> list[dict]:
        """Train from the last snapshot, or from the start, to the end; returns the history.

        Parameters
        ----------
        batches : callable
            ``batches(epoch, first)`` gives an epoch's minibatches from number ``first`` on: an iterable with
            ``close()`` and ``statistics``, such as ``storage.HyperbatchIterator``.
        step : callable
            ``step(batch, key)`` computes loss and gradients of one minibatch: ``(mean loss, samples)``, and where you
            like a dict of further means for the record.
        steps_per_epoch : int or callable
            Of an epoch, or ``steps_per_epoch(epoch)``.
        """
        def steps(epoch: int) -> int:
            return steps_per_epoch(epoch) if callable(steps_per_epoch) else steps_per_epoch

        return self._run(batches, step, steps, lambda record: None)

    def _run(self, batches, step, steps, more) -> list[dict]:
        task = Task("fit", 0, self.max_epochs)
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.callback(call_task_hooks, (callback,), "teardown", self, task)
                call_task_hooks((callback,), "setup", self, task)
            if self.snapshots is not None:
                self._restore(self.snapshots)
            call_task_hooks(self.callbacks, "on_fit_task_begin", self, task)
            self.model.train()
            while self.epoch < self.max_epochs and not self._stopped:
                self._run_epoch(batches, step, steps(self.epoch), more, task)
            self.model.eval()
            call_task_hooks(self.callbacks, "on_fit_task_end", self, task)
        return self.history

    def _run_epoch(self, batches, step, steps: int, more, fit_task: Task) -> None:
        began = saved = time.monotonic()
        samples_before, self.steps = self._samples, steps
        self._seconds = {"read": 0.0, "step": 0.0, "update": 0.0}
        task = Task("epoch", self.epoch, 0, fit_task, root_uuid=fit_task.root_uuid)
        call_task_hooks(self.callbacks, "on_fit_task_begin", self, task)
        with closing(batches(self.epoch, self.step)) as epoch_batches:
            for batch in self._timed_reads(epoch_batches):
                key = derive(self.seed, "step", self.epoch, self.step)
                if self.schedule is not None and not isinstance(self.schedule, ReduceOnPlateau):
                    done = (self.epoch * steps + self.step) / (self.max_epochs * steps)
                    self.optimizer.lr = self._learning_rate * self.schedule(done)
                self.optimizer.zero_grad()
                with self._timed("step"):
                    loss, samples, *more_parts = step(batch, key)
                    parts = dict(*more_parts)
                    if self.continual:
                        parts["continual"] = sum(term(batch, derive(key, "continual", i))
                                                 for i, term in enumerate(self.continual))
                if not np.isfinite(loss):
                    raise FloatingPointError(f"the loss became {loss} in epoch {self.epoch + 1}, step {self.step + 1}; "
                                             "lower learning_rate or raise temperature")
                info = {"epoch": self.epoch, "step": self.step + 1, "steps": steps, "loss": float(loss)}
                with self._timed("update"):
                    self._update(info)
                self.step += 1
                self.total_steps += 1
                self._loss_sum += float(loss) * samples
                for name, value in parts.items():
                    self._part_sums[name] = self._part_sums.get(name, 0.0) + float(value) * samples
                self._samples += samples
                self._call("on_batch_end", info)
                if self._exit_status is not None:
                    self._leave(self._exit_status)
                if self.snapshots is not None and time.monotonic() - saved > self.snapshot_seconds:
                    self.save_snapshot()
                    saved = time.monotonic()
            statistics = epoch_batches.statistics
        if not self._samples:
            raise ValueError(f"epoch {self.epoch + 1} has no minibatches: there is no loss to speak of")
        seconds = time.monotonic() - began
        samples = self._samples - samples_before
        record = {"epoch": self.epoch + 1, "loss": self._loss_sum / self._samples, "seconds": seconds,
                  "nodes_per_s": samples / seconds if seconds else 0.0, "mb_read": statistics.bytes_read / 1e6,
                  "hit_rate": statistics.hit_rate,
                  "io_wait_share": statistics.wait_seconds / seconds if seconds else 0.0, "rss": _memory.rss(),
                  "learning_rate": self.optimizer.lr}
        record |= {f"{name}_loss": total / self._samples for name, total in self._part_sums.items()}
        record |= {f"{name}_seconds": spent for name, spent in self._seconds.items()}
        if self.phases is not None:
            record["predicted_steps"] = self.phases.get_stats().predict_steps
        more(record)
        self.history.append(record)
        self.epoch, self.step, self._loss_sum, self._samples, self._part_sums = self.epoch + 1, 0, 0.0, 0, {}
        left = (self.max_epochs - self.epoch) * seconds
        log.info("epoch %d/%d  loss %.4f  %.0f nodes/s  read %.0f MB  hit rate %.2f  I/O wait %.0f %%  RSS %s  "
                 "ETA %.0f s", self.epoch, self.max_epochs, record["loss"], record["nodes_per_s"], record["mb_read"],
                 record["hit_rate"], 100 * record["io_wait_share"], _memory.format_bytes(record["rss"]), left)
        if isinstance(self.schedule, ReduceOnPlateau):
            validation = record.get("validation")
            self.schedule.step(record["loss"] if validation is None else validation)
        stop = call_task_hooks(self.callbacks, "on_fit_task_end", self, task)
        self._stopped = self._call("on_epoch_end", record) or stop
        if self.snapshots is not None:
            self.save_snapshot()

    def _update(self, info: dict) -> None:
        self._call("on_backward_end", info)
        if self.phases is None:
            self._change()
        else:
            self.phases.drive(self.optimizer.params, info["loss"], self._change)

    def _change(self) -> None:
        if self.clip_value is not None:
            clip_grad_value_(self.optimizer.params, self.clip_value)
        if self.clip_norm is not None:
            clip_grad_norm_(self.optimizer.params, self.clip_norm)
        self.optimizer.step()

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self._seconds[what] = self._seconds.get(what, 0.0) + spent
        if self.phases is not None and what in ("forward", "backward"):
            self.phases.add_seconds(what, spent)

    def _timed_reads(self, batches: Iterable) -> Iterator:
        source = iter(batches)
        while True:
            with self._timed("read"):
                batch = next(source, None)
            if batch is None:
                return
            yield batch

    def _call(self, hook: str, info: dict) -> bool:
        stop = False
        for callback in self.callbacks:
            method = getattr(callback, hook, None)
            if method is not None and method(self, info) is True:
                stop = True
        return stop

    def _stateful(self) -> dict[str, Any]:
        """What a snapshot holds beside model and optimizer."""
        named: dict[str, Any] = {
            "objective": self._objective, "phases": self.phases,
            "schedule": self.schedule if isinstance(self.schedule, ReduceOnPlateau) else None}
        named |= {f"callback {i}": callback for i, callback in enumerate(self.callbacks)
                  if hasattr(callback, "state_dict")}
        named |= {f"continual {i}": term for i, term in enumerate(self.continual) if hasattr(term, "state_dict")}
        return {name: part for name, part in named.items() if part is not None}

    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        """Everything that the run depends on from here: arrays, not copied, and what JSON can hold.

        See :func:`write_snapshot`, and :meth:`load_state`.
        """
        arrays = {f"model/{name}": parameter.data for name, parameter in self.model.named_parameters()}
        arrays |= {f"model/{name}": buffer for name, buffer in self.model.named_buffers()}
        arrays |= {f"optimizer/{slot}/{i}": x for slot, values in self.optimizer.state.items()
                   for i, x in enumerate(values)}
        states: dict[str, dict] = {}
        for name, part in self._stateful().items():
            state = part.state_dict()
            arrays |= {f"{name}/{key}": value for key, value in state.items() if isinstance(value, np.ndarray)}
            states[name] = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
        return arrays, {
            "epoch": self.epoch, "step": self.step, "total_steps": self.total_steps, "loss_sum": self._loss_sum.hex(),
            "samples": self._samples, "part_sums": {name: value.hex() for name, value in self._part_sums.items()},
            "stopped": self._stopped, "history": self.history, "fingerprint": self.fingerprint,
            "optimizer": self.optimizer.numbers(), "states": states}

    def exit_after_step(self, status: int) -> None:
        """Save a snapshot after the step that is going on, and raise ``SystemExit(status)``; for signal handlers.

        Parameters
        ----------
        status : int
        """
        self._exit_status = check_int(status, "status")

    def _leave(self, status: int) -> None:
        self._exit_status = None
        self.save_snapshot()
        log.warning("saved after epoch %d, step %d, and ending with status %d: the same call goes on",
                    self.epoch, self.step, status)
        raise SystemExit(status)

    def save_snapshot(self) -> None:
        """Save where the run is now, between two steps, to :attr:`snapshots`.

        Raises
        ------
        ValueError
            If the trainer has none.
        """
        if self.snapshots is None:
            raise ValueError("there is nowhere to save: give the trainer snapshots=SnapshotFolder(...)")
        self.snapshots.save(self.total_steps, *self.state())

    def _restore(self, snapshots: SnapshotFolder) -> None:
        found = snapshots.load_latest()
        if found is not None:
            self.load_state(*found, where=snapshots.folder)

    def load_state(self, arrays: Mapping[str, np.ndarray], numbers: Mapping, *, objective: Objective | None = None,
                   where="what was saved") -> None:
        """Go on where :meth:`state` was taken.

        Parameters
        ----------
        arrays : dict of str to ndarray
        numbers : dict
        objective : Objective, optional
            What :meth:`fit` will be called with, if it is one that learns.
        where : object
            What errors call it.

        Raises
        ------
        StorageError
            If it belongs to another run.
        """
        self._objective = objective or self._objective
        if numbers["fingerprint"] != self.fingerprint:
            differ = sorted(k for k in {**numbers["fingerprint"], **self.fingerprint}
                            if numbers["fingerprint"].get(k) != self.fingerprint.get(k))
            raise StorageError(f"the checkpoint in {where} belongs to another run (different: "
                               f"{', '.join(differ)}); use the same settings or another folder")
        states = numbers.get("states", {})
        for name in self._stateful():
            if name not in states:
                raise StorageError(f"the checkpoint in {where} has no state of {name}: it was taken by a "
                                   "trainer without it; use the same objective, callbacks and continual terms, or "
                                   "another folder")
        self.model.load_state_dict({k.removeprefix("model/"): v for k, v in arrays.items() if k.startswith("model/")})
        count = len(self.optimizer.params)
        self.optimizer.load_state_dict(numbers["optimizer"] | {
            slot: [arrays[f"optimizer/{slot}/{i}"] for i in range(count)] for slot in self.optimizer.slots})
        self.epoch, self.step, self.total_steps = numbers["epoch"], numbers["step"], numbers["total_steps"]
        self._loss_sum, self._samples = float.fromhex(numbers["loss_sum"]), numbers["samples"]
        self._part_sums = {name: float.fromhex(value) for name, value in numbers.get("part_sums", {}).items()}
        self._stopped, self.history = numbers["stopped"], numbers["history"]
        for name, part in self._stateful().items():
            own = {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}
            part.load_state_dict(states[name] | own)
        log.info("continuing after epoch %d, step %d", self.epoch, self.step)


def _embedded(z, batch, loader: GraphLoader, key: int) -> Embedded:
    return Embedded(z, batch.batch, batch.features[:len(batch.batch.seeds)], loader, key)


def _held_out(model, loader: GraphLoader, objective: Objective) -> float:
    """The mean loss of a loader's anchors, in the minibatches of its first epoch."""
    total, count = 0.0, 0
    with no_grad(), closing(loader.batches(epoch=0)) as batches:
        for number, batch in enumerate(batches):
            key = derive(loader.seed, "held out", number)
            z = loader.encode(model, batch.batch, batch.features, key)
            anchors = len(batch.batch.anchors)
            total += anchors * objective.held_out(_embedded(z, batch, loader, key))
            count += anchors
    return total / count
