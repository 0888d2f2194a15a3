"""``NodeClassifier``: the classes of a graph's nodes from the labels of some, on the encoders of ``GraphEncoder``."""
import math
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gnncy import nn
from gnncy._check import check_array, check_choice, check_float, check_ids, check_int
from gnncy._linalg import matmul
from gnncy._random import derive, seed_from, stream
from gnncy._threads import working_threads
from gnncy.estimators.base import Estimator
from gnncy.estimators.encoders.convolutions import CONVOLUTIONS
from gnncy.estimators.encoders.sampled import SampledEncoder
from gnncy.estimators.encoders.smoothed import principal_directions
from gnncy.estimators.graph_encoder import GraphEncoder
from gnncy.graph import NeighborSampler
from gnncy.nn import Tensor, ops
from gnncy.optim import Adam
from gnncy.optim.logistic import Logistic, class_scores
from gnncy.storage import HyperbatchIterator
from gnncy.training import EarlyStopping, SnapshotFolder, Trainer

EPOCH_STEPS = 4  # least steps of an epoch: few labels are passed over several times
PRINCIPAL = 512  # directions of the smoothed rows that the perceptron sees, at most
WARM_ROWS = 8192  # training nodes from which the first solution is computed
STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C of the first solution, the best for validation or else 1
CHUNK = 4096  # rows that are classified at a time


class NodeClassifier(Estimator):
    """Classes of nodes, learned from the nodes that have labels, within a memory limit.

    The encoders, the cold tier and the memory plan are those of :class:`GraphEncoder`; the features of all nodes count,
    labelled or not. Training minimises the cross-entropy of the training nodes and stops when the validation nodes
    gain no more; the weights of the best epoch are kept.

    Parameters
    ----------
    n_components : int, default 128
        Columns of the embedding from which a linear layer tells the classes.
    encoder : {"propagate", "mlp", "sage", "gcn", "gat"}, default "propagate"
        See :class:`GraphEncoder`.
    n_neighbors : tuple of int, default (15, 10)
        Fan-outs of ``"sage"``, ``"gcn"`` and ``"gat"``.
    hidden, reduced_width : int, default 256
        See :class:`GraphEncoder`.
    dropout : float, default 0.5
        Share of an input row's columns that are dropped in a training step.
    learning_rate : float, default 1e-3
        Of Adam.
    weight_decay : float, default 1e-4
        L2 penalty on all weights.
    batch_size : int, default 1024
        Training nodes of a minibatch, at most.
    max_epochs : int, default 100
        An epoch passes over the training nodes as often as makes four steps.
    patience : int, default 20
        Epochs without a better validation score after which training stops.
    validation_fraction : float, default 0.1
        Share of each class's labelled nodes that is set aside for validation where ``fit`` gets no
        ``validation_mask``. 0 trains for ``max_epochs``.
    class_weight : dict or "balanced", optional
        Weights of the classes in the loss; ``"balanced"`` makes them inversely proportional to their counts.
    memory_limit, n_jobs, prefetch, random_state, verbose, checkpoint_dir, callbacks : optional
        See :class:`GraphEncoder`.

    Attributes
    ----------
    classes_ : array
        Of 0 .. c-1 where the labels are a table of several labels a node.
    transduction_ : array
        The classes predicted for all nodes of ``fit``.
    embedding_ : array of shape (n_nodes, n_components), float32
    validation_score_ : float
        Accuracy on the validation nodes (of a table: share of right entries); nan without such nodes.
    best_epoch_ : int
        From 1; the epoch whose weights are kept.
    history_ : list of dict
        One record an epoch; ``validation`` is the score, ``validation_loss`` the mean cross-entropy.
    plan_ : MemoryPlan
    n_iter_, n_features_in_, n_nodes_in_ : int

    See Also
    --------
    GraphEncoder : embeddings without labels.

    References
    ----------
    F. Wu et al., "Simplifying graph convolutional networks", ICML 2019.
    J. Gasteiger, A. Bojchevski, S. Guennemann, "Predict then propagate", ICLR 2019.

    Examples
    --------
    >>> import numpy as np, gnncy
    >>> data = gnncy.datasets.make_sbm(300, 3, n_features=16, seed=0)
    >>> y = np.where(np.arange(300) < 60, data.labels, -1)  # the others are unlabelled
    >>> model = gnncy.NodeClassifier(8, max_epochs=5, random_state=0)
    >>> model.fit(data.adjacency, y, features=data.features).transduction_.shape
    (300,)
    """

    _start_up: int | None = None
    embedding_: np.ndarray

    def __init__(self, n_components=128, *, encoder="propagate", n_neighbors=(15, 10), hidden=256, reduced_width=256,
                 dropout=0.5, learning_rate=1e-3, weight_decay=1e-4, batch_size=1024, max_epochs=100, patience=20,
                 validation_fraction=0.1, class_weight=None, memory_limit="auto", n_jobs=None, prefetch=True,
                 random_state=None, verbose=0, checkpoint_dir=None, callbacks=None):
        self.n_components = n_components
        self.encoder = encoder
        self.n_neighbors = n_neighbors
        self.hidden = hidden
        self.reduced_width = reduced_width
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.class_weight = class_weight
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs
        self.prefetch = prefetch
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint_dir = checkpoint_dir
        self.callbacks = callbacks

    def fit(self, X, y, sample_weight=None, *, features=None, train_mask=None, validation_mask=None):
        """Train on a graph and the labels of some of its nodes.

        Parameters
        ----------
        X : sparse array or matrix, shape (n, n)
            The adjacency.
        y : array_like of shape (n,), int, float or str, or of shape (n, c), 0 or 1
            -1 or nan marks a node without a label. A table says for each of c labels whether a node has it.
        sample_weight : array_like of shape (n,), optional
            Weights of the nodes in the loss.
        features : as in :meth:`GraphEncoder.fit`
        train_mask : bool array of shape (n,) or ids, optional
            Nodes whose labels may be trained on; all labelled ones by default.
        validation_mask : bool array of shape (n,) or ids, optional
            Nodes for validation, which are not trained on.

        Raises
        ------
        ValueError, TypeError, GraphFormatError
            If the graph, the labels or a parameter do not have the form that is needed.
        MemoryLimitError, StorageError
            As :meth:`GraphEncoder.fit`.
        """
        seed = seed_from(self.random_state)
        labels = _Labels.of(y)
        task = self._task(labels, sample_weight, train_mask, validation_mask, seed)
        model = _SupervisedEncoder.of(self, task, seed)
        model.fit(X, features=features)
        self._model, self._many, self.classes_ = model, labels.many, labels.classes
        for name in ("embedding_", "embedding_path_", "history_", "plan_", "n_iter_", "n_features_in_", "n_nodes_in_",
                     "best_epoch_", "validation_score_"):
            setattr(self, name, getattr(model, name))
        with working_threads(self.n_jobs):
            self.transduction_ = self._decide(self._probabilities(self.embedding_))
        return self

    def fit_transform(self, X, y, sample_weight=None, *, features=None, train_mask=None, validation_mask=None):
        """:meth:`fit`, then the embedding of the same nodes, ``n x n_components``."""
        return self.fit(X, y, sample_weight, features=features, train_mask=train_mask,
                        validation_mask=validation_mask).embedding_

    def predict_proba(self, X, *, features=None) -> np.ndarray:
        """Probabilities of the classes, of shape (m, classes), for the nodes of a graph, which may be another one.

        Parameters
        ----------
        X : sparse array or matrix, shape (m, m)
        features : as in :meth:`fit`, shape (m, ``n_features_in_``)

        Returns
        -------
        array, float64
            Of a table's labels each by itself, else rows that sum to 1.
        """
        embedding = self.transform(X, features=features)
        with working_threads(self.n_jobs):
            return self._probabilities(embedding)

    def predict(self, X, *, features=None) -> np.ndarray:
        """Classes of the nodes of a graph; see :meth:`predict_proba`. Those of ``fit``'s stand in ``transduction_``."""
        return self._decide(self.predict_proba(X, features=features))

    def transform(self, X, *, features=None, out=None):
        """The embedding from which the classes are told; see :meth:`GraphEncoder.transform`."""
        self._check_fitted()
        return self._model.transform(X, features=features, out=out)

    def score(self, X, y, sample_weight=None, *, features=None) -> float:
        """Accuracy over the nodes that have a label in ``y``.

        Parameters
        ----------
        X : sparse array or matrix, shape (m, m)
        y : array_like
            As in :meth:`fit`; nodes with -1 or nan do not count. Of a table all entries of a node must be right.
        sample_weight : array_like, optional
        features : as in :meth:`fit`
        """
        predicted = self.predict(X, features=features)
        y = np.asarray(y)
        if y.shape != predicted.shape:
            raise ValueError(f"y must have shape {predicted.shape}, one entry for each node of X, got {y.shape}")
        missing = _unlabelled(y)
        known = ~(missing.any(axis=1) if y.ndim == 2 else missing)
        right = predicted[known] == y[known]
        if not right.size:
            raise ValueError("y has no labels (all are -1 or nan): there is nothing to score")
        weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)[known]
        return float(np.average(right if right.ndim == 1 else right.all(axis=1), weights=weights))

    def get_feature_names_out(self, input_features=None):
        """Names of the embedding's columns: ``nodeclassifier0``, ``nodeclassifier1``, …"""
        self._check_fitted()
        return np.array([f"{type(self).__name__.lower()}{i}" for i in range(self.n_components)], dtype=object)

    def estimate(self, X, *, features=None):
        """The memory plan of :meth:`fit`, before anything is read or written."""
        return _SupervisedEncoder.of(self, None, 0).estimate(X, features=features)

    def _probabilities(self, embedding) -> np.ndarray:
        head = self._model.head_
        out = np.empty((len(embedding), head.weight.shape[1]))
        for start in range(0, len(out), CHUNK):
            rows = np.ascontiguousarray(embedding[start:start + CHUNK], np.float32)
            scores = matmul(rows, head.weight.data)
            scores += head.bias.data
            out[start:start + CHUNK] = _sigmoid(scores) if self._many else _softmax(scores)
        return out

    def _decide(self, probability: np.ndarray) -> np.ndarray:
        if self._many:
            return (probability > 0.5).astype(np.int64)
        return self.classes_[probability.argmax(axis=1)]

    def _task(self, labels: "_Labels", sample_weight, train_mask, validation_mask, seed: int) -> "_Task":
        n = len(labels.codes)
        fraction = check_float(self.validation_fraction, "validation_fraction", 0, 0.9)
        known = np.zeros(n, bool) if n == 0 else labels.known.copy()
        if train_mask is not None:
            known &= np.isin(np.arange(n), check_ids(train_mask, n, "train_mask"))
        if validation_mask is not None:
            validation = check_ids(validation_mask, n, "validation_mask")
            if bare := int((~labels.known[validation]).sum()):
                raise ValueError(f"validation_mask: {bare} of its nodes have no label")
            known[validation] = False
        else:
            validation = labels.held_out(np.flatnonzero(known), fraction, seed)
            known[validation] = False
        train = np.flatnonzero(known)
        if not len(train):
            raise ValueError(f"y has no training nodes: {int(labels.known.sum())} of {n} nodes have a label, "
                             f"{len(validation)} of them are for validation")
        weights = labels.class_weights(self.class_weight, train)
        if sample_weight is not None:
            given = check_array(sample_weight, "sample_weight", ndim=1, dtype=np.float32)
            if given.shape != (n,):
                raise ValueError(f"sample_weight must have shape ({n},), one weight a node, got {given.shape}")
            if given.min() < 0 or not given[train].any():
                raise ValueError("sample_weight must not be negative, nor zero for all training nodes")
            weights = weights * given
        train = train[weights[train] > 0]
        return _Task(labels.codes, weights, train, validation, seed, labels.many, len(labels.classes),
                     check_float(self.dropout, "dropout", 0, 0.99), check_float(self.weight_decay, "weight_decay", 0),
                     check_int(self.patience, "patience", 0), check_int(self.max_epochs, "max_epochs", 1))

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags
        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier"
        tags.classifier_tags = ClassifierTags(multi_label=True)
        tags.target_tags.required = tags.target_tags.multi_output = True
        return tags


class _Labels(NamedTuple):
    """What ``y`` says: codes of the classes (or a table of 0 and 1), and who has any."""

    codes: np.ndarray
    known: np.ndarray
    classes: np.ndarray
    many: bool

    @classmethod
    def of(cls, y) -> "_Labels":
        if y is None:
            raise ValueError("NodeClassifier requires y to be passed, but the target y is None")
        y = np.asarray(y)
        if y.dtype == object:
            y = np.array([str(label) for label in y.ravel()]).reshape(y.shape)
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.ndim not in (1, 2):
            raise ValueError(f"y must be 1- or 2-dimensional, got shape {y.shape}")
        if y.dtype.kind == "c":
            raise ValueError("Complex data not supported: y must be integers or strings")
        if y.dtype.kind not in "biufUS":
            raise ValueError(f"Unknown label type: y must be integers or strings, got dtype {y.dtype}")
        missing = _unlabelled(y)
        known = np.asarray(~(missing.any(axis=1) if y.ndim == 2 else missing))
        if not known.any():
            raise ValueError("y has no labels: all are -1 or nan")
        if y.dtype.kind == "f":
            if not np.isfinite(y[known]).all():
                raise ValueError("y contains infinity; labels are integers or strings, and -1 or nan marks a node "
                                 "without one")
            if (y[known] != np.floor(y[known])).any():
                raise ValueError("Unknown label type: continuous; y must be integers or strings, one class each")
        if y.ndim == 2:
            if not np.isin(y[known], (0, 1)).all():
                raise ValueError("Unknown label type: a table y must hold 0 and 1 (and -1 or nan where a node has no "
                                 "labels)")
            codes = np.where(known[:, None], np.nan_to_num(y.astype(np.float64)), 0).astype(np.int64)
            return cls(codes, known, np.arange(y.shape[1]), True)
        classes, found = np.unique(y[known], return_inverse=True)
        codes = np.full(len(y), -1, np.int64)
        codes[known] = found
        return cls(codes, known, classes, False)

    def held_out(self, nodes: np.ndarray, fraction: float, seed: int) -> np.ndarray:
        """A share of the nodes, of each class the same (and never all); ascending."""
        nodes = nodes[stream(seed, "validation").permutation(len(nodes))]
        if self.many:
            return np.sort(nodes[:int(fraction * len(nodes))])
        chosen = [found[:min(round(fraction * len(found)), len(found) - 1)]
                  for found in (nodes[self.codes[nodes] == c] for c in range(len(self.classes))) if len(found)]
        return np.sort(np.concatenate([*chosen, nodes[:0]]))

    def class_weights(self, given, train: np.ndarray) -> np.ndarray:
        """A weight for each node, by its class."""
        if given is None:
            return np.ones(len(self.codes), np.float32)
        if self.many:
            raise ValueError("class_weight is for one class a node; y is a table of labels")
        count = len(self.classes)
        if isinstance(given, str):
            check_choice(given, "class_weight", ("balanced",))
            sizes = np.bincount(self.codes[train], minlength=count)
            weights = len(train) / (np.count_nonzero(sizes) * np.maximum(sizes, 1))
        else:
            places = {label: i for i, label in enumerate(self.classes.tolist())}
            if unknown := [label for label in given if label not in places]:
                raise ValueError(f"class_weight names {unknown[0]!r}, which is not a class of y ({list(places)})")
            weights = np.ones(count)
            for label, weight in given.items():
                weights[places[label]] = check_float(weight, f"class_weight[{label!r}]", 0)
        return np.where(self.codes >= 0, weights[np.maximum(self.codes, 0)], 0).astype(np.float32)


def _unlabelled(y: np.ndarray) -> np.ndarray:
    if y.dtype.kind not in "if":
        return np.zeros(y.shape, bool)
    return (y == -1) | (np.isnan(y) if y.dtype.kind == "f" else False)


@dataclass
class _Task:
    """What is trained for: nodes, targets, weights and the settings of the supervised training."""

    codes: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    train: np.ndarray = field(repr=False)
    validation: np.ndarray = field(repr=False)
    seed: int
    many: bool
    outputs: int
    dropout: float
    weight_decay: float
    patience: int
    max_epochs: int

    def fingerprint(self) -> dict:
        """What the run depends on, as JSON."""
        checksum = 0
        for part in (self.codes, self.weights, self.train, self.validation):
            checksum = zlib.crc32(np.ascontiguousarray(part).data.cast("B"), checksum)
        return {"labels": checksum, "outputs": self.outputs, "dropout": self.dropout,
                "weight_decay": self.weight_decay, "patience": self.patience, "max_epochs": self.max_epochs}

    def loss(self, scores: Tensor, ids: np.ndarray) -> Tensor:
        """The weighted mean cross-entropy of nodes."""
        weights = self.weights[ids] / max(float(self.weights[ids].sum()), np.finfo(np.float32).tiny)
        if self.many:  # each label is a choice between the scores 0 and z
            flat = scores.reshape(-1, 1)
            scores = ops.concatenate([Tensor(np.zeros(flat.shape, np.float32)), flat], axis=1)
            codes, weights = self.codes[ids].ravel(), np.repeat(weights / self.outputs, self.outputs)
        else:
            codes = self.codes[ids]
        target = np.zeros(scores.shape, np.float32)
        target[np.arange(len(codes)), codes] = -weights
        return (ops.log_softmax(scores) * target).sum()

    def right(self, scores: np.ndarray, ids: np.ndarray) -> float:
        """How many nodes are told right; of a table the share of its entries."""
        if self.many:
            return float(((scores > 0) == self.codes[ids]).mean(axis=1).sum())
        return float((scores.argmax(axis=1) == self.codes[ids]).sum())


class _SupervisedEncoder(GraphEncoder):
    """The run of :class:`GraphEncoder` with another training in its middle."""

    _task: Any
    head_: Any

    @classmethod
    def of(cls, classifier: NodeClassifier, task: _Task | None, seed: int) -> "_SupervisedEncoder":
        own = GraphEncoder().get_params()
        model = cls(**{name: value for name, value in classifier.get_params().items() if name in own}
                    | {"random_state": seed})
        model._task, model._start_up = task, classifier._start_up
        return model

    def _plan(self, encoder, adjacency, features):
        plan, n = super()._plan(encoder, adjacency, features), adjacency.shape[0]
        outputs = 2 if self._task is None else self._task.outputs
        plan.stages["first solution"] = {  # float32 and float64, of training and of validation nodes
            "graph": 12 * adjacency.nnz + 16 * n,
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
        source = (_Neighborhoods if sampled else _Rows)(encoder, adjacency, store, task.dropout)
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

        watch = _Watch(task, source, self.head_, read, size)
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


class _Rows:
    """Single rows of the smoothed store."""

    def __init__(self, encoder, adjacency, store, dropout: float) -> None:
        k = max(encoder.n_components, min(PRINCIPAL, store.shape[1]))
        directions = principal_directions(store, k, encoder.seed, encoder.n_blocks, encoder.n_place)
        missing = max(encoder.n_components - directions.shape[1], 0)  # of rows that span fewer
        directions = np.pad(directions, ((0, 0), (0, missing)))
        self.body = _PrincipalMLP(directions, encoder.hidden, encoder.n_components, stream(encoder.seed, "body"))
        encoder.model_ = nn.Projected(self.body, nn.Sequential())
        self.store, self.dropout, self.columns = store, dropout, store.shape[1]

    def least_buffer(self, batch_size: int) -> int:
        return HyperbatchIterator.buffer_bytes_for(batch_size, self.columns)

    def batch(self, ids: np.ndarray, epoch: int, number: int):
        return ids

    def encode(self, batch, key: int | None) -> tuple[np.ndarray, Tensor]:
        """The ids of a minibatch and their embeddings, with dropout where there is a key."""
        return batch.node_ids, self.body(Tensor(batch.features), self.dropout, key)

    def start(self, head, task: "_Task") -> None:
        """Set the head to logistic regression on the untrained embedding."""
        def rows(ids):
            with nn.no_grad():
                parts = [self.body(Tensor(self.store.read_batch(ids[i:i + CHUNK]))).data
                         for i in range(0, len(ids), CHUNK)]
            return np.concatenate(parts).astype(np.float64) / self.body.length if parts else np.empty((0, 0))

        def best(codes, wanted, classes):
            """Weights and bias for the C with the highest share of right answers, the smaller of equals."""
            model, most, found = Logistic(x, codes, classes, weights), -1.0, np.empty(0)
            for strength in STRENGTHS if len(wanted) else (1.0,):
                model.fit(strength, 100)
                right = np.mean(class_scores(other, model.parameters).argmax(axis=1) == wanted) if len(wanted) else 0.0
                if right > most:
                    most, found = right, model.parameters.copy()
            return found

        train, validation = (np.sort(stream(task.seed, name).permutation(ids)[:WARM_ROWS])
                             for name, ids in (("warm", task.train), ("warm validation", task.validation)))
        x, other, weights = rows(train), rows(validation), task.weights[train]
        if task.many:
            each = [best(task.codes[train, j], task.codes[validation, j], 2) for j in range(task.outputs)]
            parameters = np.stack([pair[:, 1] - pair[:, 0] for pair in each], axis=1)
        else:
            parameters = best(task.codes[train], task.codes[validation], task.outputs)
        head.weight.data[...] = parameters[:-1] / self.body.length
        head.bias.data[...] = parameters[-1]


class _PrincipalMLP(nn.Module):
    """The leading principal components of a row, of length 1, plus a perceptron of more of them that begins at 0."""

    def __init__(self, directions: np.ndarray, hidden: int, out: int, rng) -> None:
        columns, k = directions.shape
        self.directions = nn.Linear(columns, k, bias=False, rng=rng)
        self.directions.weight.data[...] = directions
        self.directions.requires_grad_(False)
        self.first, self.second = nn.Linear(k, hidden, rng=rng), nn.Linear(hidden, out, bias=False, rng=rng)
        self.second.weight.data[...] = 0
        self.length = math.sqrt(out)  # of a row, so that its entries have mean square 1

    def forward(self, x, dropout: float = 0.0, key: int | None = None) -> Tensor:
        x = self.directions(x)
        if key is not None:
            x = nn.dropout(x, dropout, key=derive(key, "dropout"))
        own = ops.l2_normalise(x[:, :self.second.weight.shape[1]]) * self.length
        return own + self.second(ops.relu(self.first(ops.l2_normalise(x) * self.length)))


class _Seeds(NamedTuple):
    """A minibatch of ``_Neighborhoods``."""

    ids: np.ndarray
    sample: Any

    @property
    def nodes(self) -> np.ndarray:
        return self.sample.nodes


class _Neighborhoods:
    """Sampled neighbourhoods of nodes and their features."""

    def __init__(self, encoder, adjacency, store, dropout: float) -> None:
        self.body, self.scale, self.dropout = encoder.model_.encoder, encoder.scale_, dropout
        self.convolution = CONVOLUTIONS[encoder.conv](adjacency)
        self.sampler = NeighborSampler(self.convolution.graph, encoder.n_neighbors, seed=derive(encoder.seed, "sample"),
                                       weighted=self.convolution.weighted)
        self._least = encoder.least_buffer(adjacency, store.shape[1], store.dtype.itemsize)

    def least_buffer(self, batch_size: int) -> int:
        return self._least

    def start(self, head, task: "_Task") -> None:
        """The head begins at 0."""

    def batch(self, ids: np.ndarray, epoch: int, number: int) -> _Seeds:
        ids = np.sort(ids)
        return _Seeds(ids, self.sampler.sample(ids, epoch=epoch, batch=number))

    def encode(self, batch, key: int | None) -> tuple[np.ndarray, Tensor]:
        x, sample = Tensor(np.asarray(batch.features, np.float32) * self.scale), batch.batch.sample
        for i, (layer, block) in enumerate(zip(self.body.layers, sample.blocks, strict=True)):
            if key is not None:
                x = nn.dropout(x, self.dropout, key=derive(key, "dropout", i))
            x = layer(self.convolution.hear(block, sample.nodes), x if i == 0 else nn.relu(x))
        return batch.batch.ids, x


class _Watch(EarlyStopping):
    """Starts from the first solution and stops when the validation nodes gain no more; without such nodes, never."""

    def __init__(self, task: _Task, source, head, read, size: int) -> None:
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


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(scores, np.float64)))
