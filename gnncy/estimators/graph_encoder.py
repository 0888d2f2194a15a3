"""``GraphEncoder``: contrastive node embeddings of a graph whose features lie on disk."""
import errno
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import weakref
import zlib
from collections.abc import Iterable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, issparse

from gnncy import _files, _kernels, _memory
from gnncy._check import check_array, check_choice, check_float, check_int
from gnncy._random import seed_from
from gnncy._threads import effective_n_jobs, working_threads
from gnncy.errors import GraphFormatError, StorageError
from gnncy.estimators.base import Estimator
from gnncy.estimators.encoders.convolutions import CONVOLUTIONS
from gnncy.estimators.encoders.rows import RowEncoder
from gnncy.estimators.encoders.sampled import SampledEncoder
from gnncy.estimators.encoders.smoothed import SmoothedEncoder
from gnncy.estimators.growing import KeepClose, successor
from gnncy.estimators.stored import look_over
from gnncy.graph import as_csr
from gnncy.losses.joint_embedding.objective import JointEmbedding, check_objectives
from gnncy.optim import Adam, CosineSchedule, WarmupSchedule
from gnncy.storage import GraphStorage, as_storage
from gnncy.storage._blocks import ARENA, STREAMS
from gnncy.storage.passes import is_sparse
from gnncy.storage.plans.disk import known_disk
from gnncy.training import MemoryPlan, SnapshotFolder, Trainer, resolve_limit
from gnncy.training.phases import PhaseConfig

log = logging.getLogger("gnncy")

ENCODERS = ("propagate", "mlp", *CONVOLUTIONS)
GROWTH_STEPS = 50  # of a graph that grew
LEAST_BATCH = 256  # of a small graph; above it a minibatch is at most a fifth of the nodes
LEARNING_RATE = WarmupSchedule(CosineSchedule(1.0, 0.0, 0.95), length=0.05, start=1 / 21)
"""Factor of the learning rate over the run's progress: linear over the first twentieth, then half a cosine to 0."""
STREAMED = ("propagate", "mlp")  # encoders to which arcs may come from the disk
TILES_SHARE = 0.5  # of what smoothing leaves free, for more columns at a time
BUFFER_SHARE = 0.3  # of what a stage leaves free, for read buffers; the rest is for what BLAS and malloc hold


class GraphEncoder(Estimator):
    """Node embeddings of a graph, trained without labels, within a memory limit.

    Parameters
    ----------
    n_components : int, default 128
        Columns of the embedding.
    encoder : {"propagate", "mlp", "sage", "gcn", "gat"}, default "propagate"
        ``"propagate"`` smooths the features over the graph once, out of core, and trains a residual MLP on shuffled
        rows; ``"mlp"`` does so on the features alone. The others train GraphSAGE, GCN or graph attention on sampled
        neighbourhoods.
    objective : str, list of str or dict of float, default "infonce"
        What the encoder is trained for: ``"infonce"``, ``"vicreg"``, ``"cca"``, ``"bgrl"``, ``"ggd"``,
        ``"reconstruction"``, or several with their weights, ``{"infonce": 1.0, "reconstruction": 0.5}``; see
        :class:`gnncy.losses.JointEmbedding`.
    n_neighbors : tuple of int, default (15, 10)
        Fan-outs of ``"sage"``, ``"gcn"`` and ``"gat"``, from the node outwards; their number is the number of layers.
    positives : {"neighbors", "views"}, default "neighbors"
        Of the sampled encoders: what a node's embedding shall be like, that of a random neighbour, or that of the node
        itself in another view. Rows (``"propagate"``, ``"mlp"``) always have two views.
    hidden : int, default 256
        Width of the hidden layer(s).
    reduced_width : int, default 256
        Columns to which sparse (and, for ``"propagate"``, wider dense) features are reduced by a randomised SVD.
    temperature : float, default 0.5
        Of InfoNCE.
    dropout : float, default 0.3
        Share of feature columns, and of smoothings (``"propagate"``) or edges (sampled encoders), dropped in a view.
    learning_rate : float or "auto", default "auto"
        Adam's step size at its highest; it follows a cosine after a short warm-up. ``"auto"`` is 1e-4 with
        ``"propagate"`` and InfoNCE, which start from principal directions, and 3e-4 otherwise.
    batch_size : int, default 1024
        At most; a small graph takes a fifth of its nodes, at least 256.
    max_epochs : int or "auto", default "auto"
        ``"auto"`` trains for about 50 steps with ``"propagate"`` and InfoNCE, which start from principal directions,
        and 150 otherwise; at least one epoch.
    memory_limit : int, str or "auto", default "auto"
        Bytes (or ``"256MB"``) that the process may hold beyond its size when ``fit`` is called; ``"auto"`` is half of
        what is available. Features given as a store or file do not count until they are read; arrays that the
        caller holds are the caller's. The result does not depend on the limit.
    n_jobs : int, optional
        Threads; None is 1 (or joblib's or ``GNNCY_NUM_THREADS``'s number), -1 all usable CPUs. The result does
        not depend on it.
    prefetch : bool, default True
        Read the next minibatches in a thread while the present ones are used. The result does not depend on it.
    random_state : int, numpy Generator or RandomState, optional
    verbose : int, default 0
        1 logs a line an epoch to standard error.
    checkpoint_dir : path-like, optional
        Where the run's files lie. The same call resumes there a run that was killed, to the same bits; without it a
        private temporary folder is used.
    callbacks : sequence, optional
        See :class:`gnncy.training.Trainer`.
    phases : PhaseConfig, optional
        Predict some of the gradients: see :mod:`gnncy.training.phases`, and there when that pays. Default: none.

    Attributes
    ----------
    embedding_ : array of shape (n_nodes, n_components), float32
        In memory if it takes at most a quarter of the limit, else memory-mapped from ``embedding_path_``.
    embedding_path_ : pathlib.Path
    history_ : list of dict
        One record an epoch.
    plan_ : MemoryPlan
    loss_ : float
    n_iter_, n_features_in_, n_nodes_in_ : int

    References
    ----------
    A. van den Oord, Y. Li, O. Vinyals, "Representation learning with contrastive predictive coding", 2018.
    A. Bardes, J. Ponce, Y. LeCun, "VICReg", ICLR 2022; H. Zhang et al., "From canonical correlation analysis to
    self-supervised graph neural networks", NeurIPS 2021; S. Thakoor et al., "Large-scale representation learning on
    graphs via bootstrapping", ICLR 2022; Y. Zheng et al., "Rethinking and scaling up graph contrastive learning",
    NeurIPS 2022.
    J. Gasteiger, A. Bojchevski, S. Guennemann, "Predict then propagate", ICLR 2019.
    W. Hamilton, R. Ying, J. Leskovec, "Inductive representation learning on large graphs", NeurIPS 2017.

    Examples
    --------
    >>> import gnncy
    >>> data = gnncy.datasets.make_sbm(300, 3, n_features=16, seed=0)
    >>> encoder = gnncy.GraphEncoder(8, max_epochs=1, random_state=0)
    >>> encoder.fit_transform(data.adjacency, features=data.features).shape
    (300, 8)
    """

    _start_up: int | None = None  # set by the command, whose limit counts from the process's start
    _growths = 0  # calls of partial_fit since fit

    def __init__(self, n_components=128, *, encoder="propagate", objective="infonce", n_neighbors=(15, 10),
                 positives="neighbors", hidden=256, reduced_width=256, temperature=0.5, dropout=0.3,
                 learning_rate="auto", batch_size=1024, max_epochs="auto", memory_limit="auto", n_jobs=None,
                 prefetch=True, random_state=None, verbose=0, checkpoint_dir=None, callbacks=None, phases=None):
        self.n_components = n_components
        self.encoder = encoder
        self.objective = objective
        self.n_neighbors = n_neighbors
        self.positives = positives
        self.hidden = hidden
        self.reduced_width = reduced_width
        self.temperature = temperature
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs
        self.prefetch = prefetch
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint_dir = checkpoint_dir
        self.callbacks = callbacks
        self.phases = phases

    def fit(self, X, y=None, *, features=None):
        """Train on a graph.

        Parameters
        ----------
        X : sparse array or matrix, shape (n, n), or GraphStorage
            The adjacency; weights count. ``"propagate"`` smooths both ways along an arc, and keeps the ratio of
            out-degree and in-degree as a column; the others follow arcs as given. A
            :class:`~gnncy.storage.GraphStorage` is for ``"propagate"``, where its edges must be stored in both
            directions, and ``"mlp"``: its arcs are read block by block, to the same bits as in memory.
        y : ignored
        features : array, sparse array, FeatureStorage, SparseFeatureStorage or path of a ``.npy``, shape (n, d)
            Without features, the adjacency's own rows are used.

        Raises
        ------
        GraphFormatError, ValueError, TypeError
            If the graph, the features or a parameter do not have the form that is needed.
        MemoryLimitError
            If ``memory_limit`` is too small; the message names the least that would do.
        StorageError
            If a file cannot be read or written, or ``checkpoint_dir`` holds another run.
        """
        with self._verbose_logging(), self._checked(X, features) as (adjacency, features):
            encoder = self._new_encoder(seed_from(self.random_state), adjacency.shape[0])
            self._learn(encoder, adjacency, features, self.max_epochs)
            self._growths = 0
        return self

    def partial_fit(self, X, y=None, *, features=None, max_epochs="auto", closeness=1.0):
        r"""Go on from the fitted encoder on the same graph when it has grown, and extend ``embedding_``.

        The graph may have new nodes, after those that it had, new arcs and new features. The encoder is trained on all
        nodes for a few epochs more; what it learned before from the features, such as their principal directions,
        stays. Nodes that had an embedding :math:`z^*` are drawn to it by

        .. math:: c \, \frac{\sum_i \|z_i - z^*_i\|^2}{\sum_i \|z^*_i\|^2}

        beside the loss, so that what was learned from the old embedding, such as a classifier, fits the new one.
        Without training, :meth:`transform` embeds the grown graph too. An encoder that is not fitted is fitted.

        Parameters
        ----------
        X : sparse array or matrix, shape (n, n), or GraphStorage
            The whole grown graph.
        y : ignored
        features : as in :meth:`fit`, shape (n, ``n_features_in_``)
            Of all its nodes.
        max_epochs : int or "auto", default "auto"
            ``"auto"`` trains for about 50 steps, at least one epoch.
        closeness : float, default 1.0
            :math:`c`, at least 0: how much old embeddings count.

        Raises
        ------
        ValueError
            If there are fewer nodes than before, or features of another width.
        GraphFormatError, TypeError, MemoryLimitError, StorageError
            As in :meth:`fit`. The encoder and its embedding stay what they were.
        """
        if not self.__sklearn_is_fitted__():
            return self.fit(X, y, features=features)
        closeness = check_float(closeness, "closeness", 0)
        if max_epochs != "auto":
            check_int(max_epochs, "max_epochs", 0)
        with self._verbose_logging(), self._checked_again(X, features) as (adjacency, features):
            if adjacency.shape[0] < self.n_nodes_in_:
                raise ValueError(f"X has {adjacency.shape[0]} nodes, but a graph that grew has at least the "
                                 f"{self.n_nodes_in_} of before, and first; fit() begins anew with another graph")
            encoder = successor(self._encoder, self._growths + 1)
            self._learn(encoder, adjacency, features, max_epochs, KeepClose(encoder, self.embedding_, closeness))
            self._growths += 1
        return self

    def fit_transform(self, X, y=None, *, features=None):
        """:meth:`fit`, then the embedding of the same nodes, ``n x n_components``."""
        return self.fit(X, y, features=features).embedding_

    def transform(self, X, *, features=None, out=None):
        """Embed the nodes of a graph, which may be another one, with the fitted encoder.

        Parameters
        ----------
        X : sparse array or matrix, shape (m, m), or GraphStorage
        features : as in :meth:`fit`, shape (m, ``n_features_in_``)
        out : path-like, optional
            Where to write the embedding as ``.npy``; it is then returned memory-mapped.

        Returns
        -------
        array, shape (m, n_components)
        """
        self._check_fitted()
        with self._verbose_logging(), self._checked_again(X, features) as (adjacency, features):
            plan = self._plan(self._encoder, adjacency, features)
            kept = ("look over", "smooth", "embed")
            plan.stages = {stage: parts for stage, parts in plan.stages.items() if stage in kept}
            plan.check()
            if isinstance(adjacency, GraphStorage):
                self._looked_over(adjacency)
            with (tempfile.TemporaryDirectory(prefix="gnncy-") as scratch, working_threads(self.n_jobs),
                  _prepared(self._encoder, adjacency, features, Path(scratch), fit=False) as store):
                path = Path(scratch) / "embedding.npy" if out is None else Path(out)
                self._encoder.embed(adjacency, store, path, Path(scratch))
                return np.load(path) if out is None else np.load(path, mmap_mode="r")

    def estimate(self, X, *, features=None) -> MemoryPlan:
        """The memory plan of :meth:`fit` with these arguments, before anything is read or written."""
        with self._checked(X, features) as (adjacency, features):
            return self._plan(self._new_encoder(0, adjacency.shape[0]), adjacency, features)

    def get_feature_names_out(self, input_features=None):
        """Names of the embedding's columns: ``graphencoder0``, ``graphencoder1``, …"""
        self._check_fitted()
        return np.array([f"{type(self).__name__.lower()}{i}" for i in range(self.n_components)], dtype=object)

    def _checked(self, X, features):
        """:func:`_checked`, where arcs may be on disk."""
        if isinstance(X, GraphStorage):
            if self.encoder not in STREAMED:
                raise ValueError(f"encoder={self.encoder!r} goes from arc to arc, which are in memory for it: give "
                                 "graph.to_csr(), or take encoder='propagate'")
            if X.symmetric is False and self.encoder != "mlp":
                raise _one_way(X)
        return _checked(X, features, on_disk=True)

    @contextmanager
    def _checked_again(self, X, features):
        """:meth:`_checked`, and features of the width that the encoder was fitted with."""
        X = X if issparse(X) or isinstance(X, GraphStorage) else check_array(X, "X")
        if features is None and X.shape[1] != self.n_features_in_:
            raise ValueError(self._other_width(X.shape[1]))
        with self._checked(X, features) as (adjacency, features):
            if features.shape[1] != self.n_features_in_:
                raise ValueError(self._other_width(features.shape[1]))
            yield adjacency, features

    def _other_width(self, columns: int) -> str:
        return (f"X has {columns} features, but {type(self).__name__} is expecting {self.n_features_in_} features as "
                "input")

    def _looked_over(self, adjacency: GraphStorage) -> list[int]:
        """Go once over arcs on disk, which must have what is needed of them; their checksums."""
        found = look_over(adjacency, type(self).__name__)
        if not found.symmetric and self.encoder != "mlp":
            raise _one_way(adjacency)
        return [found.checksum, found.weights]

    # -- the parts of fit

    def _learn(self, encoder, adjacency, features, max_epochs, keep: KeepClose | None = None) -> None:
        """Train the encoder, a new one or with ``keep`` one that goes on, and embed all nodes."""
        n = adjacency.shape[0]
        plan = self._plan(encoder, adjacency, features)
        plan.check()
        log.info("%s", plan)
        run = self._fingerprint(encoder.seed, n, adjacency, features)
        if keep is not None:
            run["grown"] = {"from": _checksum(as_storage(keep.embedding)), "closeness": keep.closeness,
                            "max_epochs": max_epochs}
        with _alone(self._folder("" if keep is None else f"grown-{self._growths + 1}")) as folder:
            work = folder / "work"
            work.mkdir(parents=True, exist_ok=True)
            # Each request in flight has a buffer of its own, which no stage of the plan counts.
            few = max(STREAMS, plan.left("train") // (4 * ARENA))
            encoder.io_threads = few if few < known_disk(work).threads else None
            _claim(folder, run)
            for place in (folder, work):
                _files.remove_temporaries(place)
            path = folder / "embedding.npy"
            with working_threads(self.n_jobs), _prepared(encoder, adjacency, features, work, fit=keep is None) as store:
                if keep is None:
                    encoder.build(store)
                steps = encoder.steps_per_epoch(n)
                if max_epochs == "auto":
                    max_epochs = max(1, -(-(encoder.auto_steps if keep is None else GROWTH_STEPS) // steps))
                continual = () if keep is None else keep
                self._train(encoder, adjacency, store, folder, run, plan, max_epochs, steps, continual)
                encoder.embed(adjacency, store, path, work)
            shutil.rmtree(work)
        _memory.trim()
        self.plan_, self._encoder, self.embedding_path_ = plan, encoder, path
        self.n_nodes_in_, self.n_features_in_ = n, encoder.n_features_in_
        self.embedding_ = _as_array(path, plan.limit)

    def _new_encoder(self, seed: int, n: int):
        check_choice(self.encoder, "encoder", ENCODERS)
        objectives = check_objectives(self.objective)
        common = {
            "n_components": check_int(self.n_components, "n_components", 1),
            "width": check_int(self.reduced_width, "reduced_width", 1),
            "hidden": check_int(self.hidden, "hidden", 1),
            "temperature": check_float(self.temperature, "temperature", above=0),
            "dropout": check_float(self.dropout, "dropout", 0.0, 0.99),
            "batch_size": min(check_int(self.batch_size, "batch_size", 2), max(LEAST_BATCH, n // 5), n),
            "seed": seed,
        }
        if self.learning_rate != "auto":
            check_float(self.learning_rate, "learning_rate", above=0)
        effective_n_jobs(self.n_jobs)
        if self.phases is not None and not isinstance(self.phases, PhaseConfig):
            raise TypeError(f"phases must be None or a PhaseConfig, got {type(self.phases).__name__}")
        if self.max_epochs != "auto":
            check_int(self.max_epochs, "max_epochs", 0)
        if self.encoder == "propagate" and list(objectives) == ["infonce"]:
            return SmoothedEncoder(**common)
        common["objectives"] = objectives
        if self.encoder in ("propagate", "mlp"):
            return RowEncoder(hops=self.encoder == "propagate", **common)
        fanouts = tuple(check_int(k, "n_neighbors", -1) for k in self.n_neighbors)
        if not fanouts:
            raise ValueError("n_neighbors must name at least one fan-out, got ()")
        return SampledEncoder(conv=self.encoder, n_neighbors=fanouts, positives=check_choice(
            self.positives, "positives", ("neighbors", "views")), **common)

    def _plan(self, encoder, adjacency, features) -> MemoryPlan:
        held = 0 if self._start_up is None else max(_memory.rss() - self._start_up, 0)
        plan = MemoryPlan(resolve_limit(self.memory_limit), encoder.plan(adjacency, features, 0), held)
        if isinstance(adjacency, GraphStorage):
            spare = min(plan.left(stage) for stage in ("reduce", "smooth") if stage in plan.stages)
            encoder.widen(features, int(spare * TILES_SHARE))
            plan.stages = encoder.plan(adjacency, features, 0)
        if self.phases is not None:  # recorded gradients, one being written, one predicted
            train = plan.stages["train"]
            train["gradient history"] = (self.phases.prediction.capacity + 2) * train["weights, gradients, Adam"] // 4
        spare = int(plan.left("train") * BUFFER_SHARE)
        if spare > 0:  # larger buffers, up to all rows twice
            train, (n, d) = plan.stages["train"], features.shape
            most = 2 * 8 * n * encoder.store_columns(n, d, is_sparse(features))
            train["read buffers"] = min(train["read buffers"] + spare, max(train["read buffers"], most))
        return plan

    def _fingerprint(self, seed: int, n: int, adjacency, features) -> dict:
        free = {"memory_limit", "n_jobs", "prefetch", "verbose", "checkpoint_dir", "callbacks", "random_state"}
        parameters = {k: v for k, v in self.get_params().items() if k not in free}
        if self.phases is None:
            parameters.pop("phases", None)  # so that folders of releases without it go on
        else:
            parameters["phases"] = self.phases.describe()
        for name, default in (("objective", "infonce"), ("positives", "neighbors")):  # likewise
            if parameters.get(name) == default:
                parameters.pop(name)
        checksum = self._looked_over(adjacency) if isinstance(adjacency, GraphStorage) else _checksum(adjacency)
        return json.loads(json.dumps({"parameters": parameters, "seed": seed, "nodes": n, "arcs": int(adjacency.nnz),
                                      "adjacency": checksum, "features": list(features.shape),
                                      "feature_checksum": _checksum(features)}))

    def _folder(self, inner: str) -> Path:
        if self.checkpoint_dir is not None:
            folder = Path(self.checkpoint_dir) / inner
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        folder = Path(tempfile.mkdtemp(prefix="gnncy-"))
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _train(self, encoder, adjacency, store, folder: Path, run: dict, plan: MemoryPlan, epochs: int, steps: int,
               continual) -> None:
        snapshots = SnapshotFolder(folder) if self.checkpoint_dir is not None else None
        model = encoder.model_
        if isinstance(model, JointEmbedding):
            model.total_steps = epochs * steps
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rate = encoder.auto_rate if self.learning_rate == "auto" else self.learning_rate
        trainer = Trainer(model, Adam(trained, lr=rate), seed=encoder.seed, max_epochs=epochs,
                          snapshots=snapshots, fingerprint=run, schedule=LEARNING_RATE,
                          callbacks=self.callbacks or (), phases=self.phases, continual=continual)
        buffer = plan.stages["train"]["read buffers"]
        open_epoch = encoder.epochs(adjacency, store, buffer=buffer, prefetch=self.prefetch)
        self.history_ = trainer.run(open_epoch, encoder.step, steps)
        _memory.trim()
        self.n_iter_ = len(self.history_)
        self.loss_ = self.history_[-1]["loss"] if self.history_ else float("nan")

    @contextmanager
    def _verbose_logging(self):
        if not self.verbose:
            yield
            return
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        level = log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        state.pop("_cleanup", None)
        if "embedding_" in state:
            state["embedding_"] = np.array(state["embedding_"])
        return state


@contextmanager
def _checked(X, features, *, on_disk: bool = False):
    """The adjacency in canonical form and the features as a storage; a file that is opened here is closed after."""
    if on_disk and isinstance(X, GraphStorage):
        adjacency = X
    else:
        adjacency = as_csr(X if issparse(X) or hasattr(X, "to_csr") else check_array(X, "X"), name="X")
    n = adjacency.shape[0]
    if isinstance(adjacency, csr_array) and adjacency.nnz and adjacency.data.min() < 0:
        raise GraphFormatError(f"Negative values in data passed to GraphEncoder: X has weights down to "
                               f"{adjacency.data.min():g}, and a mean over neighbours needs weights of at least 0; use "
                               "abs(X) or drop them")
    if n < 2:
        raise GraphFormatError(f"X must have at least 2 nodes to train on, got {n}: found array with {n} sample(s)")
    storage = adjacency if features is None else as_storage(features)
    if issparse(storage):
        storage = csr_array(storage)
    try:
        if storage.shape[0] != n:
            raise ValueError(f"features must have one row per node: X has {n} nodes, features have shape "
                             f"{storage.shape}")
        yield adjacency, storage
    finally:
        if isinstance(features, (str, os.PathLike)):
            storage.close()


def _one_way(graph: GraphStorage) -> GraphFormatError:
    return GraphFormatError(f"{graph.path} has arcs without a reverse of the same weight, and encoder='propagate' "
                            "needs both: store it by GraphStorage.from_edges(..., directed=False)")


@contextmanager
def _prepared(encoder, adjacency, features, work: Path, *, fit: bool):
    """The store that an encoder reads, closed after unless it is the caller's."""
    began = time.monotonic()
    store = encoder.prepare(adjacency, features, work, fit=fit)
    log.info("prepared %s of features in %.1f s", _memory.format_bytes(store.nbytes), time.monotonic() - began)
    try:
        yield store
    finally:
        if store is not features:
            store.close()


def _checksum(data) -> int:
    """CRC of a matrix's values: all of a sparse one, 64 rows spread over a dense one or a store."""
    parts: Iterable
    if isinstance(data, csr_array):
        parts = (part.astype(np.int64) if part.dtype.kind == "i" else part
                 for array in (data.indptr, data.indices, data.data)
                 for part in np.array_split(array, max(1, len(array) >> 18)))  # never a copy of the whole
    elif is_sparse(data):
        rows = data.read_rows(0, min(64, data.shape[0]))
        parts = rows.indices, rows.data
    else:
        ids = np.unique(np.linspace(0, data.shape[0] - 1, 64).astype(np.int64))
        parts = [data.read_batch(ids) if hasattr(data, "read_batch") else np.asarray(data[ids])]
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).data.cast("B"), value)
    return value


@contextmanager
def _alone(folder: Path):
    """The folder, in which no other process runs meanwhile."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not _files.lock(fd):
            raise StorageError(errno.EWOULDBLOCK, f"a run is going on here, in {_files.lock_holder(fd) or 'another'}; "
                                                  "wait for it, or use another folder", str(folder))
        yield folder
    finally:
        _files.release(fd)


def _claim(folder: Path, run: dict) -> None:
    """Write ``config.json``, or refuse a folder that holds the files of another run."""
    file = folder / "config.json"
    made_with = {"gnncy": version("gnncy"), "numpy": np.__version__, "scipy": version("scipy"), "simd": _kernels.LEVEL}
    if not file.exists():
        _files.write_text(file, json.dumps(run | {"made_with": made_with}, indent=1) + "\n")
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
        began_with = there.pop("made_with")
    except (ValueError, KeyError, AttributeError) as error:
        raise StorageError(f"{file} is damaged ({error!r}); use an empty folder") from error
    if began_with != made_with:
        log.warning("this run began with %s and continues with %s: its bits may differ from those of a run with either",
                    began_with, made_with)
    if there != run:
        differ = [k for k in run if run[k] != there.get(k)]
        if "parameters" in differ:
            differ.remove("parameters")
            differ += [k for k, v in run["parameters"].items() if there.get("parameters", {}).get(k) != v]
        raise StorageError(f"{folder} holds another run (different: {', '.join(differ)}); "
                           "use the same settings to resume it, or another folder")


def _as_array(path: Path, limit: int) -> np.ndarray:
    mapped = np.load(path, mmap_mode="r")
    return np.array(mapped) if mapped.nbytes <= limit // 4 else mapped
