"""``NodeClassifier``: the classes of a graph's nodes from the labels of some, on the encoders of ``GraphEncoder``."""
import numpy as np

from gnncy._check import check_array, check_float, check_ids, check_int
from gnncy._linalg import matmul
from gnncy._random import seed_from
from gnncy._threads import working_threads
from gnncy.estimators.base import Estimator
from gnncy.estimators.supervised.labels import Labels, Task, unlabelled
from gnncy.estimators.supervised.training import SupervisedEncoder

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
        X : sparse array or matrix, shape (n, n), or GraphStorage
            The adjacency, as in :meth:`GraphEncoder.fit`.
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
        labels = Labels.of(y)
        task = self._task(labels, sample_weight, train_mask, validation_mask, seed)
        model = SupervisedEncoder.of(self, task, seed)
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
        missing = unlabelled(y)
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
        return SupervisedEncoder.of(self, None, 0).estimate(X, features=features)

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

    def _task(self, labels: Labels, sample_weight, train_mask, validation_mask, seed: int) -> Task:
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
        return Task(labels.codes, weights, train, validation, seed, labels.many, len(labels.classes),
                    check_float(self.dropout, "dropout", 0, 0.99), check_float(self.weight_decay, "weight_decay", 0),
                    check_int(self.patience, "patience", 0), check_int(self.max_epochs, "max_epochs", 1))

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags
        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier"
        tags.classifier_tags = ClassifierTags(multi_label=True)
        tags.target_tags.required = tags.target_tags.multi_output = True
        return tags


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(scores, np.float64)))
