"""``LinkPredictor``: how likely an edge is between two nodes, from features and graph, out of core."""
import json
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array, triu
from scipy.stats import rankdata

from gnncy import _files, _memory
from gnncy._check import check_float, check_ids, check_int
from gnncy._random import derive, seed_from, stream
from gnncy._threads import working_threads
from gnncy.datasets import sample_non_edges
from gnncy.errors import GraphFormatError
from gnncy.estimators.base import Estimator
from gnncy.estimators.encoders.smoothed import BLOCKS, PLACE, choose_propagation
from gnncy.estimators.graph_encoder import GraphEncoder, _checked, _claim
from gnncy.graph import as_csr, undirected
from gnncy.optim.logistic import Logistic, class_scores
from gnncy.storage import FeatureStorage
from gnncy.storage.passes import chunk_rows

MOST_HELD_OUT = 50_000  # pairs from which the decoder is learned: it has a dozen weights
NEIGHBOURS = 1 << 20  # neighbours that are looked up at a time
CHANNELS = ("features", "structure")
PAIR_SIGNALS = ("common neighbours", "Adamic-Adar", "resource allocation", "sum of log degrees",
                "difference of log degrees", "product of log degrees")
SCALE = 10.0  # of a common neighbour's weight under the logarithm


class LinkPredictor(Estimator):
    """The probability of an edge between two nodes, within a memory limit.

    A pair's signals are the cosines of its nodes' smoothed features, at several reaches of the smoothing, the same of
    the graph's own rows in the place of features, the common neighbours (counted, and weighted after Adamic and Adar
    and by 1 / degree) and the degrees. Their weights are learned: a tenth of the edges is held out of the graph, the
    signals of these and of as many pairs without an edge are computed in the rest, and logistic regression tells them
    apart. The final signals come from the whole graph.

    Parameters
    ----------
    reduced_width, structure_width : int, default 256 and 128
        Columns to which features, and rows of the adjacency, are reduced before they are smoothed.
    holdout : float, default 0.1
        Share of the edges from which the weights are learned (50,000 at most).
    C : float, default 1.0
        Inverse strength of their regularisation.
    memory_limit, n_jobs, random_state, verbose : optional
        See :class:`GraphEncoder`. The result depends on neither memory nor threads.
    checkpoint_dir : path-like, optional
        Where the smoothed features lie, which prediction reads; without it a private temporary folder is used. The same
        call continues there a run that was killed, to the same bits.

    Attributes
    ----------
    classes_ : array
        0 (no edge) and 1.
    signal_names_ : tuple of str
    coef_, intercept_ : array, float
        Weights of the signals, each scaled to mean 0 and variance 1 over the pairs that were learned from.
    plan_ : MemoryPlan
    n_features_in_, n_nodes_in_ : int

    See Also
    --------
    gnncy.datasets.split_edges : hold out edges for a test.
    gnncy.evaluate.link_scores : AUC, average precision, MRR, Hits@k.

    Notes
    -----
    Pairs have no direction, and weights of edges do not count. Probabilities are against a random pair without an
    edge, at even odds.

    References
    ----------
    L. A. Adamic, E. Adar, "Friends and neighbors on the web", Social Networks 25, 2003.
    D. Liben-Nowell, J. Kleinberg, "The link-prediction problem for social networks", JASIST 58, 2007.
    M. Zhang, Y. Chen, "Link prediction based on graph neural networks", NeurIPS 2018 (why links to be learned from are
    taken out of the graph).

    Examples
    --------
    >>> import gnncy
    >>> data = gnncy.datasets.make_sbm(400, 4, n_features=16, seed=0)
    >>> split = gnncy.datasets.split_edges(data.adjacency)
    >>> model = gnncy.LinkPredictor(random_state=0).fit(split.train, features=data.features)
    >>> model.predict_proba(split.test).shape == (len(split.test), 2)
    True
    """

    _start_up: int | None = None

    def __init__(self, *, reduced_width=256, structure_width=128, holdout=0.1, C=1.0, memory_limit="auto", n_jobs=None,
                 random_state=None, verbose=0, checkpoint_dir=None):
        self.reduced_width = reduced_width
        self.structure_width = structure_width
        self.holdout = holdout
        self.C = C
        self.memory_limit = memory_limit
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint_dir = checkpoint_dir

    def fit(self, X, y=None, *, features=None):
        """Learn from a graph.

        Parameters
        ----------
        X : sparse array or matrix, shape (n, n)
            The adjacency, without the edges that are to be tested.
        y : ignored
        features : as in :meth:`GraphEncoder.fit`
            Without features, the graph alone tells.

        Raises
        ------
        GraphFormatError, ValueError, TypeError
            If the graph, the features or a parameter do not have the form that is needed.
        MemoryLimitError, StorageError
            As :meth:`GraphEncoder.fit`.
        """
        share = check_float(self.holdout, "holdout", 0, 0.9)
        strength = check_float(self.C, "C", above=0)
        runs = self._runs()
        seed = seed_from(self.random_state)
        with runs[-1]._verbose_logging(), _checked(X, features) as (adjacency, given):
            graph = _pattern(adjacency)
            n, edges = graph.shape[0], graph.nnz // 2
            if edges < 2:
                raise GraphFormatError(f"X must have at least 2 edges between different nodes, got {edges}")
            inputs = [given, None] if features is not None else [None]
            self.plan_ = self._plan(runs, graph, inputs)
            self.plan_.check()
            folder = self._folder()
            _claim(folder, self._fingerprint(seed, graph, given, runs[0]))
            with working_threads(self.n_jobs):
                count = min(max(int(share * edges), 1), MOST_HELD_OUT)
                rest, linked, others = _hold_out(graph, count, derive(seed, "holdout"))
                propagation = choose_propagation(rest)  # of the whole graph the same, so that signals are alike
                stores = self._stores(runs, rest, inputs, folder / "rest", seed, propagation)
                signals = np.concatenate([_signals(rest, stores, pairs) for pairs in (linked, others)])
                _close(stores)
                self._learn(signals, np.repeat([1, 0], [len(linked), len(others)]), strength)
                shutil.rmtree(folder / "rest")
                _close(self._stores(runs, graph, inputs, folder / "whole", seed, propagation))
            self._graph, self._place = graph, folder / "whole"
            self._names = CHANNELS[-len(inputs):]
            self.signal_names_ = tuple(f"cosine of {name}, block {b}" for name in self._names
                                       for b in range(BLOCKS)) + PAIR_SIGNALS
            self.classes_ = np.array([0, 1])
            self.n_nodes_in_, self.n_features_in_ = n, given.shape[1]
        _memory.trim()
        return self

    def predict_proba(self, pairs) -> np.ndarray:
        """Probabilities that there is no edge, and that there is one, for pairs of nodes.

        Parameters
        ----------
        pairs : array_like of int, shape (m, 2)

        Returns
        -------
        ndarray of shape (m, 2), float64
        """
        score = self.decision_function(pairs)
        return 0.5 * (1 + np.tanh(0.5 * np.stack([-score, score], axis=1)))

    def decision_function(self, pairs) -> np.ndarray:
        """The logarithm of the odds of an edge for pairs of nodes, of shape (m,); positive where one is likely.

        Parameters
        ----------
        pairs : array_like of int, shape (m, 2)
        """
        self._check_fitted()
        pairs = _check_pairs(pairs, self.n_nodes_in_)
        stores = [FeatureStorage.open(self._place / name / "work" / "smoothed.npy") for name in self._names]
        try:
            with working_threads(self.n_jobs):
                return self._scores(_signals(self._graph, stores, pairs))
        finally:
            _close(stores)

    def predict(self, pairs) -> np.ndarray:
        """1 where an edge is likelier than not, else 0, for pairs of nodes of shape (m, 2)."""
        return (self.decision_function(pairs) > 0).astype(np.int64)

    def score(self, pairs, y) -> float:
        """Area under the ROC curve, which depends on no threshold.

        Parameters
        ----------
        pairs : array_like of int, shape (m, 2)
        y : array_like of shape (m,)
            1 for a pair with an edge, 0 for one without.
        """
        score, y = self.decision_function(pairs), np.asarray(y)
        if y.shape != score.shape or not np.array_equal(np.unique(y), [0, 1]):
            raise ValueError(f"y must hold 0 or 1 for each of {len(score)} pairs, and both of them, got shape "
                             f"{y.shape}")
        count = int(y.sum())
        return float((rankdata(score)[y == 1].sum() - count * (count + 1) / 2) / (count * (len(y) - count)))

    def estimate(self, X, *, features=None):
        """The memory plan of :meth:`fit`, before anything is read or written."""
        with _checked(X, features) as (adjacency, given):
            return self._plan(self._runs(), _pattern(adjacency), [given, None] if features is not None else [None])

    # -- the parts of fit

    def _runs(self) -> list[GraphEncoder]:
        """Whose smoothing is used: one for features, one for the graph's own rows."""
        runs = []
        for name in ("reduced_width", "structure_width"):
            run = GraphEncoder(1, reduced_width=check_int(getattr(self, name), name, 1), memory_limit=self.memory_limit,
                               n_jobs=self.n_jobs, verbose=self.verbose)
            run._start_up = self._start_up
            runs.append(run)
        return runs

    @staticmethod
    def _plan(runs, graph, inputs):
        plan: Any = None
        for run, source in zip(runs[-len(inputs):], inputs, strict=True):
            own = run._plan(run._new_encoder(0, graph.shape[0]), graph, graph if source is None else source)
            stages = {stage: parts | {"graphs": 24 * graph.nnz} for stage, parts in own.stages.items()
                      if stage in ("reduce", "smooth")}
            if plan is None:
                plan, plan.stages = own, {}
            for stage, parts in stages.items():
                if sum(parts.values()) > sum(plan.stages.get(stage, {}).values()):
                    plan.stages[stage] = parts
        held = min(graph.nnz // 2, MOST_HELD_OUT)
        plan.stages["signals"] = {"graphs": 40 * graph.nnz, "signals": 8 * 6 * 2 * held * 14,
                                  "neighbours": 40 * NEIGHBOURS, "rows": 6 * 4 * chunk_rows(1)}
        return plan

    def _stores(self, runs, graph, inputs, folder: Path, seed: int, propagation: str) -> list[FeatureStorage]:
        """The smoothed features, and the smoothed rows of the graph; what lies there already is taken."""
        stores = []
        for name, run, source in zip(CHANNELS[-len(inputs):], runs[-len(inputs):], inputs, strict=True):
            work = folder / name / "work"
            work.mkdir(parents=True, exist_ok=True)
            for place in (work, work.parent):
                _files.remove_temporaries(place)
            encoder = run._new_encoder(derive(seed, name), graph.shape[0])
            encoder.given = propagation
            stores.append(encoder.prepare(graph, graph if source is None else source, work, fit=True))
        return stores

    def _learn(self, signals: np.ndarray, linked: np.ndarray, strength: float) -> None:
        self._mean, deviation = signals.mean(axis=0), signals.std(axis=0)
        self._deviation = np.where(deviation > 0, deviation, 1)
        model = Logistic((signals - self._mean) / self._deviation, linked, 2)
        model.fit(strength, 100)
        self.coef_ = model.parameters[:-1, 1] - model.parameters[:-1, 0]
        self.intercept_ = float(model.parameters[-1, 1] - model.parameters[-1, 0])

    def _scores(self, signals: np.ndarray) -> np.ndarray:
        scaled = (signals - self._mean) / self._deviation
        return class_scores(scaled, np.append(self.coef_, self.intercept_)[:, None])[:, 0]

    def _fingerprint(self, seed: int, graph, given, run: GraphEncoder) -> dict:
        parameters = {name: getattr(self, name) for name in ("reduced_width", "structure_width", "holdout", "C")}
        return json.loads(json.dumps(run._fingerprint(seed, graph.shape[0], graph, given) | {"parameters": parameters}))

    def _folder(self) -> Path:
        if self.checkpoint_dir is not None:
            folder = Path(self.checkpoint_dir)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        folder = Path(tempfile.mkdtemp(prefix="gnncy-"))
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_cleanup"}


def _pattern(adjacency: csr_array) -> csr_array:
    """Which pairs are linked in either direction: a symmetric graph of ones without self-loops."""
    graph = undirected(adjacency).tocoo()
    apart = (graph.row != graph.col) & (graph.data != 0)
    return _of_arcs(graph.row[apart], graph.col[apart], graph.shape[0])


def _of_arcs(row: np.ndarray, col: np.ndarray, n: int) -> csr_array:
    return as_csr(csr_array(coo_array((np.ones(len(row), np.float32), (row, col)), shape=(n, n))))


def _hold_out(graph: csr_array, count: int, seed: int) -> tuple[csr_array, np.ndarray, np.ndarray]:
    """The graph without some random edges, these, and as many pairs without an edge.

    Where nearly all pairs are linked, random ones stand in for the last.
    """
    n, upper = graph.shape[0], triu(graph, 1).tocoo()
    order = stream(seed, "edges").permutation(upper.nnz)
    row, col = upper.row[order], upper.col[order]
    rest = _of_arcs(np.concatenate([row[count:], col[count:]]), np.concatenate([col[count:], row[count:]]), n)
    if n * (n - 1) // 2 - upper.nnz >= count:
        others = sample_non_edges(graph, count, random_state=derive(seed, "others"))
    else:
        others = stream(seed, "others").integers(0, n, (count, 2))
    return rest, np.stack([row[:count], col[:count]], axis=1).astype(np.int64), others


def _signals(graph: csr_array, stores, pairs: np.ndarray) -> np.ndarray:
    """A row of signals for each pair: cosines of each block of each store, then ``PAIR_SIGNALS``."""
    parts = [_cosines(store, pairs) for store in stores]
    return np.concatenate([*parts, _neighbour_signals(graph, pairs)], axis=1)


def _cosines(store, pairs: np.ndarray) -> np.ndarray:
    """Cosines of the blocks of the pairs' rows (a row's blocks have lengths of their own, or are 0)."""
    out, size = np.empty((len(pairs), BLOCKS)), chunk_rows(store.shape[1])
    for start in range(0, len(pairs), size):
        ids, place = np.unique(pairs[start:start + size], return_inverse=True)
        rows = store.read_batch(ids).reshape(len(ids), BLOCKS, -1)[:, :, :-PLACE]  # without the structure
        norm = np.sqrt(np.einsum("ijk,ijk->ij", rows, rows))
        rows = rows / np.where(norm > 0, norm, 1)[:, :, None]
        left, right = place.reshape(-1, 2).T
        out[start:start + size] = np.einsum("ijk,ijk->ij", rows[left], rows[right])
    return out


def _neighbour_signals(graph: csr_array, pairs: np.ndarray) -> np.ndarray:
    """Common neighbours, counted and weighted, and degrees.

    The neighbours of the node that has fewer are looked up among those of the other.
    """
    n, out = graph.shape[0], np.zeros((len(pairs), len(PAIR_SIGNALS)))
    degree = np.diff(graph.indptr).astype(np.int64)
    arcs = np.repeat(np.arange(n, dtype=np.int64), degree) * n + graph.indices
    turned = degree[pairs[:, 0]] > degree[pairs[:, 1]]
    few, many = (np.where(turned, pairs[:, 1 - i], pairs[:, i]) for i in range(2))
    ends = np.cumsum(degree[few])
    stop = 0
    while stop < len(pairs):
        start, before = stop, ends[stop - 1] if stop else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + NEIGHBOURS, side="right")))
        count = degree[few[start:stop]]
        pair = np.repeat(np.arange(stop - start), count)
        first = np.repeat(graph.indptr[few[start:stop]] - (ends[start:stop] - count - before), count)
        common = graph.indices[first + np.arange(len(pair))].astype(np.int64)
        wanted = many[start:stop][pair] * n + common
        found = np.searchsorted(arcs, wanted)
        hit = arcs[np.minimum(found, len(arcs) - 1)] == wanted if len(arcs) else np.zeros(len(wanted), bool)
        pair, common = pair[hit], degree[common[hit]]
        for column, weight in enumerate((np.ones(len(pair)), 1 / np.log(common + 1.0), 1 / common)):
            out[start:stop, column] = np.log1p(SCALE * np.bincount(pair, weight, stop - start))
    left, right = np.log(np.maximum(degree, 1))[pairs].T
    out[:, 3:] = np.stack([left + right, np.abs(left - right), left * right], axis=1)
    return out


def _check_pairs(pairs, n: int) -> np.ndarray:
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must have shape (m, 2), two node ids a row, got {pairs.shape}")
    return check_ids(pairs.ravel(), n, "pairs").reshape(-1, 2)


def _close(stores) -> None:
    for store in stores:
        store.close()
