"""The run of ``GraphEncoder`` with a training on labels in its middle."""
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from gnncy import nn
from gnncy._random import stream
from gnncy.estimators.encoders.matrices import graph_plan
from gnncy.estimators.encoders.sampled import SampledEncoder
from gnncy.estimators.graph_encoder import GraphEncoder
from gnncy.estimators.supervised.labels import Task
from gnncy.estimators.supervised.minibatches import WARM_ROWS, RowMinibatches, SampledMinibatches
from gnncy.optim import Adam
from gnncy.storage import HyperbatchIterator
from gnncy.training import EarlyStopping, SnapshotFolder, Trainer

if TYPE_CHECKING:
    from gnncy.estimators.node_classifier import NodeClassifier

EPOCH_STEPS = 4  # least steps of an epoch: few labels are passed over several times


class SupervisedEncoder(GraphEncoder):
    """The run of :class:`GraphEncoder` with another training in its middle."""

    _task: Any
    head_: Any

    @classmethod
    def of(cls, classifier: "NodeClassifier", task: Task | None, seed: int) -> "SupervisedEncoder":
        own = GraphEncoder().get_params()
        model = cls(**{name: value for name, value in classifier.get_params().items() if name in own}
                    | {"random_state": seed})
        model._task, model._start_up = task, classifier._start_up
        return model

    def _plan(self, encoder, adjacency, features):
        plan, n = super()._plan(encoder, adjacency, features), adjacency.shape[0]
        held, *_ = graph_plan(adjacency, symmetric=True)
        outputs = 2 if self._task is None else self._task.outputs
        plan.stages["first solution"] = held | {  # float32 and float64, of training and of validation nodes
            "rows": min(n, WARM_ROWS) * (2 * 12 * self.n_components + 5 * 8 * outputs)}
        return plan

    def _fingerprint(self, *arguments) -> dict:
        return super()._fingerprint(*arguments) | {"task": self._task.fingerprint()}

    def _train(self, encoder, adjacency, store, folder, run, plan, *_) -> None:
        task = self._task
        if len(task.codes) != adjacency.shape[0]:
            raise ValueError(f"y must have one label per node: X has {adjacency.shape[0]} nodes, y {len(task.codes)} "
                             "entries (inconsistent numbers of samples)")
        sampled = isinstance(encoder, SampledEncoder)
        source = (SampledMinibatches if sampled else RowMinibatches)(encoder, adjacency, store, task.dropout)
        self.head_ = nn.Linear(self.n_components, task.outputs, rng=stream(encoder.seed, "head"))
        self.head_.weight.data[...] = 0
        model = nn.Sequential(source.body, self.head_)
        buffer = max(plan.stages["train"]["read buffers"] // 2, source.least_buffer(encoder.batch_size))
        read = partial(HyperbatchIterator, store, buffer_bytes=buffer, prefetch=self.prefetch)
        size = min(encoder.batch_size, len(task.train))
        a_pass = -(-len(task.train) // size)
        steps = a_pass * -(-EPOCH_STEPS // a_pass)

        def batches(epoch: int, first: int):
            def nodes():
                for i in range(first, steps):
                    order = stream(encoder.seed, "order", epoch, i // a_pass).permutation(task.train)
                    yield source.batch(order[i % a_pass * size:][:size], epoch, i)

            return read(nodes())

        def step(batch, key: int):
            ids, rows = source.encode(batch, key)
            loss = task.loss(self.head_(rows), ids)
            loss.backward()
            return loss.item(), len(ids)

        watch = Watch(task, source, self.head_, read, size)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        trainer = Trainer(model, Adam(trained, lr=self.learning_rate, weight_decay=task.weight_decay),
                          seed=encoder.seed, max_epochs=task.max_epochs, fingerprint=run,
                          snapshots=None if self.checkpoint_dir is None else SnapshotFolder(folder),
                          callbacks=[watch, *(self.callbacks or ())])
        self.history_ = trainer.run(batches, step, steps)
        self.n_iter_ = len(self.history_)
        self.best_epoch_ = self.n_iter_ if watch.best_epoch is None else watch.best_epoch
        self.validation_score_ = float("nan") if watch.best is None else watch.best
        self.loss_ = self.history_[-1]["loss"]


class Watch(EarlyStopping):
    """Starts from the first solution and stops when the validation nodes gain no more; without such nodes, never."""

    def __init__(self, task: Task, source, head, read, size: int) -> None:
        super().__init__("validation", patience=task.patience, mode="max")
        self.task, self.source, self.head, self.read, self.size = task, source, head, read, size

    def on_fit_task_begin(self, estimator, context) -> None:
        """Before the first step of all: the first solution, as epoch 0."""
        if context.parent is None and estimator.total_steps == 0:
            self.source.start(self.head, self.task)
            if len(self.task.validation):
                self.best, self.best_epoch = self._measure()["validation"], 0
                self._weights = estimator.model.state_dict()

    def on_fit_task_end(self, estimator, context) -> bool:
        """Measure at the end of an epoch."""
        if not len(self.task.validation):
            return False
        if context.parent is not None:
            estimator.history[-1] |= self._measure()
        return super().on_fit_task_end(estimator, context)

    def _measure(self) -> dict[str, float]:
        ids, loss, right = self.task.validation, 0.0, 0.0
        parts = (self.source.batch(ids[i:i + self.size], 0, i) for i in range(0, len(ids), self.size))
        with nn.no_grad(), closing(self.read(parts)) as batches:
            for batch in batches:
                part, rows = self.source.encode(batch, None)
                scores = self.head(rows)
                loss += len(part) * self.task.loss(scores, part).item()
                right += self.task.right(scores.data, part)
        return {"validation": right / len(ids), "validation_loss": loss / len(ids)}
