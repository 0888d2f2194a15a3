"""``NodeEmbedding``: embeddings of a graph without features, in a table that may be bigger than memory."""
import json
import logging
import shutil
import tempfile
import time
import weakref
from pathlib import Path

import numpy as np
from scipy.sparse import issparse

from gnncy import _files, _memory
from gnncy._check import check_array, check_choice, check_float, check_int
from gnncy._kernels.storage import tables as kernels
from gnncy._random import derive, seed_from
from gnncy._threads import effective_n_jobs, working_threads
from gnncy.errors import GraphFormatError
from gnncy.estimators.base import Estimator
from gnncy.estimators.graph_encoder import GraphEncoder, _as_array, _checksum, _claim
from gnncy.estimators.pairs import GROUP, PairTraining
from gnncy.estimators.stored import LOOK, LOOKED, look_over
from gnncy.graph import as_csr, undirected
from gnncy.storage import FeatureStorage, GraphStorage
from gnncy.storage.tables import EmbeddingTable
from gnncy.storage.tables.windows import (
    LANES,
    EpochWindows,
    blocks_needed,
    chunk_blocks,
    chunk_count,
    group_size,
)
from gnncy.training import MemoryPlan, resolve_limit

log = logging.getLogger("gnncy")

RATES = {"edges": 0.02, "walks": 0.1}
_NODES = 1 << 12  # rows that are written at a time
_PAIR = 48  # bytes that a pair of a window takes: as found, and dealt to lanes, for two windows
_ODDS = 24  # bytes that a node takes of which negatives are drawn, with what is made anew when others join


class NodeEmbedding(Estimator):
    r"""Node embeddings of a graph without features: skip-gram with negative sampling over edges or random walks.

    .. math::
        -\log \sigma(z_u^\top c_v) - \sum_{k=1}^{K} \log \sigma(-z_u^\top c_{n_k})

    is made small over pairs of nodes (u, v), with :math:`n_k` drawn in proportion to degree\ :sup:`3/4`. Rows lie in an
    :class:`~gnncy.storage.tables.EmbeddingTable` on disk, of which as much is in memory as ``memory_limit`` allows;
    the result does not depend on it.

    Parameters
    ----------
    n_components : int, default 128
        Columns of the embedding.
    method : {"edges", "walks"}, default "edges"
        ``"edges"``: the pairs are the edges, once an epoch, and c = z (first-order proximity, LINE). ``"walks"``: the
        pairs are a node and those that a random walk from it comes to, and c is a second table (DeepWalk).
    walk_length : int, default 10
        Steps of a walk.
    n_walks : int, default 5
        Walks from each node in an epoch. Of a walk's pairs one half is used, chosen at random: those that meet in
        memory (see Notes).
    n_negatives : int, default 5
        K.
    epochs : int, default 20
    learning_rate : float, optional
        Of row-wise Adagrad; by default 0.02 with edges and 0.1 with walks.
    batch_size : int, default 1024
        Pairs of a step: a quarter of them in each of the four lanes (see Notes).
    memory_limit : int, str or "auto", default "auto"
        Bytes (or ``"256MB"``) that the process may hold beyond its size when ``fit`` is called; ``"auto"`` is half of
        what is available. The adjacency that the caller holds is the caller's.
    n_jobs : int, optional
        Threads that train; None is 1 (or joblib's or ``GNNCY_NUM_THREADS``'s number), -1 all usable CPUs. Where there
        are several, one more looks up the pairs of the next window. The result does not depend on it.
    direct : bool, optional
        Whether the table goes past the page cache; None means if it is larger than the page cache could get.
    random_state : int, numpy Generator or RandomState, optional
    verbose : int, default 0
        1 logs a line an epoch to standard error.
    folder : path-like, optional
        Where the run's files lie. The same call resumes there a run that was killed, after its last whole epoch and to
        the same bits; the trained table stays there. Without it a private temporary folder is used.

    Attributes
    ----------
    embedding_ : array of shape (n_nodes, n_components), float32
        In memory if it takes at most a quarter of the limit, else memory-mapped from ``embedding_path_``.
    embedding_path_ : pathlib.Path
    history_ : list of dict
        One record an epoch: mean loss of a pair, number of pairs, seconds, bytes read and written.
    plan_ : MemoryPlan
    loss_ : float
    n_iter_, n_features_in_, n_nodes_in_ : int

    Notes
    -----
    The blocks of the table are dealt anew to chunks in every epoch; a twelfth of them stays in memory while the
    others come by, chunk by chunk, and the pairs of a chunk with what is there are trained on in random order.
    For that both are cut into four lanes: each lane of the chunk meets a lane of what is there, all four at the same
    time, then the next one. Negatives are drawn from the lane, by groups of 16 pairs, so that none has to be read for
    its own sake. A pair
    of a walk is taken where its start comes by and its other node is there, which in a random deal is one half of
    them. Arcs count alike, whatever their weights.

    References
    ----------
    Tang et al., LINE: Large-scale Information Network Embedding, WWW 2015.
    Perozzi, Al-Rfou and Skiena, DeepWalk: online learning of social representations, KDD 2014.
    Mikolov et al., Distributed representations of words and phrases and their compositionality, NeurIPS 2013.
    Lerer et al., PyTorch-BigGraph: A Large-scale Graph Embedding System, MLSys 2019.

    Examples
    --------
    >>> import gnncy
    >>> from gnncy.estimators import NodeEmbedding
    >>> data = gnncy.datasets.make_sbm(300, 3, seed=0)
    >>> model = NodeEmbedding(8, epochs=3, random_state=0)
    >>> model.fit_transform(data.adjacency).shape
    (300, 8)
    >>> model.history_[-1]["loss"] < model.history_[0]["loss"]
    True
    """

    _verbose_logging = GraphEncoder._verbose_logging
    __getstate__ = GraphEncoder.__getstate__

    def __init__(self, n_components=128, *, method="edges", walk_length=10, n_walks=5, n_negatives=5, epochs=20,
                 learning_rate=None, batch_size=1024, memory_limit="auto", n_jobs=None, direct=None, random_state=None,
                 verbose=0, folder=None):
        self.n_components = n_components
        self.method = method
        self.walk_length = walk_length
        self.n_walks = n_walks
        self.n_negatives = n_negatives
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs
        self.direct = direct
        self.random_state = random_state
        self.verbose = verbose
        self.folder = folder

    def fit(self, X, y=None):
        """Train on a graph.

        Parameters
        ----------
        X : sparse array or matrix, shape (n, n), or GraphStorage
            The adjacency. ``"edges"`` takes an arc in either direction for an edge, ``"walks"`` go along the arcs. Of a
            :class:`~gnncy.storage.GraphStorage` the arcs of a chunk are read while the one before is trained on, to the
            same bits as in memory; its edges must be stored in both directions, and walks are not for it.
        y : ignored

        Raises
        ------
        GraphFormatError, ValueError, TypeError
            If the graph or a parameter does not have the form that is needed.
        MemoryLimitError
            If ``memory_limit`` is too small; the message names the least that would do.
        StorageError
            If a file cannot be read or written, or ``folder`` holds another run.
        """
        with self._verbose_logging(), working_threads(self.n_jobs):  # type: ignore[misc]
            self._check_parameters()
            adjacency = self._adjacency(X)
            n = adjacency.shape[0]
            seed = seed_from(self.random_state)
            self.plan_ = plan = self._plan(adjacency, seed)
            plan.check()
            log.info("%s", plan)
            folder = self._claimed(seed, adjacency, self._looked_over(adjacency))
            with self._table(folder, n, seed, _window(plan)) as table:
                self._train(table, adjacency, seed)
                path = folder / "embedding.npy"
                self._write(table, n, path)
            if self.folder is None:
                for left in folder.glob("table.npy*"):
                    left.unlink()
            _memory.trim()
            self.embedding_path_ = path
            self.n_nodes_in_ = self.n_features_in_ = n
            self.embedding_ = _as_array(path, plan.limit)
        return self

    def fit_transform(self, X, y=None):
        """:meth:`fit`, then the embedding of the nodes, ``n x n_components``."""
        return self.fit(X, y).embedding_

    def estimate(self, X) -> MemoryPlan:
        """The memory plan of :meth:`fit` with these arguments, before anything is read or written."""
        self._check_parameters()
        return self._plan(self._adjacency(X), 0)

    def get_feature_names_out(self, input_features=None):
        """Names of the embedding's columns: ``nodeembedding0``, ``nodeembedding1``, …"""
        self._check_fitted()
        return np.array([f"{type(self).__name__.lower()}{i}" for i in range(self.n_components)], dtype=object)

    # -- the parts of fit

    def _check_parameters(self) -> None:
        check_choice(self.method, "method", ("edges", "walks"))
        for name in ("n_components", "walk_length", "n_walks", "n_negatives", "batch_size"):
            check_int(getattr(self, name), name, 1)
        check_int(self.epochs, "epochs", 0)
        if self.learning_rate is not None:
            check_float(self.learning_rate, "learning_rate", above=0)
        effective_n_jobs(self.n_jobs)

    @property
    def _vectors(self) -> int:
        """Rows of a node in the table: with walks, the second is its context."""
        return 2 if self.method == "walks" else 1

    def _adjacency(self, X):
        if isinstance(X, GraphStorage):
            return self._stored(X)
        adjacency = as_csr(X if issparse(X) else check_array(X, "X"), name="X")
        n = adjacency.shape[0]
        if n < 2:
            raise GraphFormatError(f"X must have at least 2 nodes to train on, got {n}: found array with {n} sample(s)")
        if adjacency.nnz and adjacency.data.min() < 0:
            raise GraphFormatError(f"Negative values in data passed to {type(self).__name__}: X has weights down to "
                                   f"{adjacency.data.min():g}; use abs(X) or drop them")
        if self.method == "edges" and kernels.balance(adjacency.indptr, adjacency.indices, 0, n):
            return undirected(adjacency)
        return adjacency

    def _stored(self, graph: GraphStorage) -> GraphStorage:
        if self.method == "walks":
            raise ValueError("method='walks' goes from arc to arc, which are in memory for it: give graph.to_csr(), or "
                             "take method='edges'")
        if graph.n_nodes < 2:
            raise GraphFormatError(f"X must have at least 2 nodes to train on, got {graph.n_nodes}")
        return graph

    def _looked_over(self, graph) -> int | None:
        """Go once over arcs on disk: each must have its reverse, and no weight be negative. A checksum of them."""
        if not isinstance(graph, GraphStorage):
            return None
        found = look_over(graph, type(self).__name__)
        if not found.two_way:
            raise GraphFormatError(f"{graph.path} has arcs without a reverse, and method='edges' needs both: store it "
                                   f"by GraphStorage.from_edges(..., directed=False)")
        return found.checksum

    def _plan(self, adjacency, seed: int) -> MemoryPlan:
        n, d = adjacency.shape[0], self.n_components
        rows = n * self._vectors
        bits, block_bytes = EmbeddingTable.layout(d)
        n_blocks, stored = -(-rows >> bits), isinstance(adjacency, GraphStorage)
        chunks = chunk_count(n_blocks, 1 << bits)
        nodes = min(chunk_blocks(n_blocks, 1 << bits) * (1 << bits) // self._vectors, n)  # of a chunk
        pairs = 0
        if self.method == "edges":
            indptr = adjacency.load_indptr() if stored else adjacency.indptr
            arcs = np.diff(indptr[np.minimum(np.arange(n_blocks + 1) << bits, n)])
            for epoch in range(self.epochs):
                dealt = EpochWindows(n_blocks, 1 << bits, seed, epoch).chunks
                pairs = max(pairs, *(int(arcs[blocks].sum()) for blocks in dealt))
        else:
            pairs = nodes * self.walk_length
        batch = min(-(-self.batch_size // LANES), max(pairs, 1))
        places = 2 * batch + -(-batch // GROUP) * self.n_negatives
        window = {"window of the table": blocks_needed(n_blocks, 1 << bits) * (block_bytes + (4 << bits))}
        stages = {
            "train": {
                **window,
                "pairs of a window": _PAIR * pairs + (8 * pairs if self.method == "walks" else 0),
                "odds of the negatives": _ODDS * (group_size(chunks) + 1) * nodes,
                "minibatches": LANES * (places * (4 * d + 32) + batch * (4 * self.n_negatives + 12))},
            "write": {**window, "rows to write": 2 * 4 * d * min(_NODES, n)}}
        if stored:
            stages["train"]["arcs of two windows"] = 2 * pairs * adjacency.ends_dtype.itemsize
            stages["look over"] = {"arcs": LOOKED * max(LOOK, adjacency.longest_list())}
            for parts in stages.values():
                parts["row starts"] = adjacency.indptr_nbytes
        return MemoryPlan(resolve_limit(self.memory_limit), stages)

    def _claimed(self, seed: int, adjacency, checksum: int | None) -> Path:
        if self.folder is None:
            folder = Path(tempfile.mkdtemp(prefix="gnncy-"))
            self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            return folder
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        free = {"memory_limit", "n_jobs", "direct", "verbose", "folder", "random_state"}
        run = {"parameters": {k: v for k, v in self.get_params().items() if k not in free}, "seed": seed,
               "nodes": adjacency.shape[0], "arcs": int(adjacency.nnz),
               "adjacency": _checksum(adjacency) if checksum is None else checksum}
        _claim(folder, json.loads(json.dumps(run)))
        _files.remove_temporaries(folder)
        return folder

    def _table(self, folder: Path, n: int, seed: int, memory: int) -> EmbeddingTable:
        path = folder / "table.npy"
        if path.exists() and path.with_name(path.name + ".json").exists():
            return EmbeddingTable(path, "r+", memory_limit=memory, direct=self.direct)
        lr = RATES[self.method] if self.learning_rate is None else self.learning_rate
        return EmbeddingTable.create(path, n * self._vectors, self.n_components, lr=lr,
                                     scale=0.5 / self.n_components, seed=derive(seed, "rows"),
                                     journal=self.folder is not None, overwrite=True, memory_limit=memory,
                                     direct=self.direct)

    def _train(self, table: EmbeddingTable, adjacency, seed: int) -> None:
        progress = table.progress or {"epoch": 0, "history": []}
        self.history_ = list(progress["history"])
        pairs = PairTraining(adjacency, table, self, seed)
        for epoch in range(progress["epoch"], self.epochs):
            began, before = time.monotonic(), table.stats.snapshot()
            loss, count = pairs.train(epoch)
            moved = table.stats.snapshot() - before
            record = {"epoch": epoch, "loss": loss, "pairs": count, "seconds": time.monotonic() - began,
                      "bytes_read": moved.bytes_read, "bytes_written": moved.bytes_written}
            self.history_.append(record)
            if self.folder is not None:
                table.checkpoint({"epoch": epoch + 1, "history": self.history_})
                record["seconds"] = time.monotonic() - began  # with the checkpoint, which could not know
            log.info("epoch %d  loss %.4f  %.0f pairs/s  read %s, written %s", epoch, loss,
                     count / max(record["seconds"], 1e-9), _memory.format_bytes(moved.bytes_read),
                     _memory.format_bytes(moved.bytes_written))
        self.n_iter_ = self.epochs
        self.loss_ = self.history_[-1]["loss"] if self.history_ else float("nan")

    def _write(self, table: EmbeddingTable, n: int, path: Path) -> None:
        step = self._vectors
        blocks = (table.gather(np.arange(first, min(first + _NODES, n)) * step) for first in range(0, n, _NODES))
        FeatureStorage.from_blocks(path, (n, self.n_components), blocks, overwrite=True).close()


def _window(plan: MemoryPlan) -> int:
    """Bytes that a plan leaves for the window of the table."""
    return plan.stages["train"]["window of the table"] + min(plan.left("train"), plan.left("write"))
