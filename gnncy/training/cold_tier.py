"""``ColdTierTrainer``: trains a graph encoder on features that lie on disk, within a memory limit."""
import tracemalloc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gnncy import _memory, nn
from gnncy._check import check_choice, check_float, check_ids, check_int
from gnncy._memory import format_bytes
from gnncy._random import derive, seed_from, stream
from gnncy._threads import working_threads
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.optim import Adam, Optimizer
from gnncy.storage import AdaptiveHotset, FeatureStorage, HyperbatchConfig, as_storage
from gnncy.storage.plans import DiskModel, EpochPlan
from gnncy.training.loader import GraphLoader
from gnncy.training.objective import Embedded, Objective
from gnncy.training.planner import MemoryPlan, resolve_limit
from gnncy.training.snapshot import read_snapshot, write_snapshot
from gnncy.training.trainer import Trainer

_HOTSET_SHARE = 16  # the hotset has at most this part of a memory limit: training has hot rows of its own
_HOTSET_ROW = 112  # bytes that the hotset keeps for each row beside it
_ROWS = 8192  # of embeddings that are copied at a time
_SLACK = 1.25  # of what a step holds: other minibatches are larger


@dataclass(frozen=True)
class ColdTierEpochResult:
    """What an epoch of :class:`ColdTierTrainer` did.

    Attributes
    ----------
    epoch : int
        From 1.
    avg_loss : float
        Mean over the anchors.
    batches : int
        Minibatches.
    hotset_hit_rate : float
        Share of the rows that this epoch looked up in memory and found there: among the plan's hot rows, or in the
        hotset where there is no plan.
    io_time : float
        Seconds in which minibatches were drawn and their rows read, in threads beside the training.
    compute_time : float
        Seconds of losses, gradients and updates.
    stall_time : float
        Seconds for which training waited for rows.
    seconds : float
        Of the epoch; less than ``io_time + compute_time`` where they overlap.
    bytes_read : int
    plan : EpochPlan or None
        What the epoch was read by.
    prediction_error : float or None
        Seconds over what the planner had predicted, less 1.
    """

    epoch: int
    avg_loss: float
    batches: int
    hotset_hit_rate: float
    io_time: float
    compute_time: float
    stall_time: float
    seconds: float
    bytes_read: int
    plan: EpochPlan | None
    prediction_error: float | None


class ColdTierTrainer:
    """Trains a graph encoder on features on disk, contrastively and within a memory limit.

    Features are only read. The same bits come of any plan, memory limit and number of threads, of features in memory,
    and of a run that was saved and loaded.

    Parameters
    ----------
    storage : storage, path-like or array, shape (n, d)
        Dense rows; a path is opened, and closed with the trainer. They must not change while the trainer is there.
    adjacency : sparse or dense array, shape (n, n)
    model : Module, optional
        Called as ``model(blocks, x)``, or as ``model(x)`` with ``fanouts=None``. Default: :class:`~gnncy.nn.SAGEConv`
        layers with ReLU between them, one for each of ``fanouts``, under a :class:`~gnncy.nn.ProjectionHead`.
    objective : Objective, optional
        Default: symmetric InfoNCE.
    optimizer : Optimizer, optional
        Of the model's (and a decoder's) parameters. Default: Adam.
    n_components, hidden : int
        Columns of the embedding, and of the layers before, in the default model.
    fanouts : sequence of int or None
        Most neighbours of a node at each hop, the anchor's first.
    learning_rate : float
        Of the default optimizer.
    seed : int or Generator
        Of the weights and of all draws.
    config : HyperbatchConfig, optional
        ``batch_size`` anchors make a minibatch. ``hotset_fraction`` is the share of rows that the hotset may hold, of
        a memory limit at most a sixteenth; ``prefetch_factor=1`` reads nothing ahead. The buffers are used where there
        is no memory limit.
    memory_limit : int, str or None
        Bytes that the trainer may hold, for example ``"1GB"``: what a step of training takes is measured, the rest is
        for features, see :class:`~gnncy.storage.ColdTierLoader`. The graph comes on top. None reads by ``config``. With
        a limit, the process gives the memory of arrays of 1 MiB and more back to the system when they are freed.
    plan, disk, spill_folder
        As in :class:`~gnncy.storage.ColdTierLoader`.
    n_jobs : int, optional
        Threads; None is 1 (or joblib's or ``GNNCY_NUM_THREADS``'s number), -1 all usable CPUs.
    **loader_options
        Further arguments of :class:`GraphLoader`, such as ``positives``, ``negatives``, ``anchors``.

    Attributes
    ----------
    model, optimizer, objective, storage, config
    loader : GraphLoader
        ``loader.planned`` has the plans that were compared, and a report of each epoch.
    hotset : AdaptiveHotset or None
        Rows of :meth:`get_features`, and where there is no memory limit of training.
    memory : MemoryPlan or None
        What the limit is divided into.

    Raises
    ------
    MemoryLimitError
        If the limit is too small.

    Examples
    --------
    >>> from gnncy.datasets import make_sbm
    >>> from gnncy.storage import FeatureStorage, HyperbatchConfig
    >>> from gnncy.training import ColdTierTrainer
    >>> data = make_sbm(600, 3, n_features=16, seed=0)
    >>> FeatureStorage.from_array(data.features, "features.npy").close()
    >>> with ColdTierTrainer("features.npy", data.adjacency, n_components=8, hidden=16, fanouts=(5, 5),
    ...                      config=HyperbatchConfig(batch_size=200), memory_limit="64MB") as trainer:
    ...     results = [trainer.train_epoch() for _ in range(4)]
    ...     trainer.save_checkpoint("trainer.npz")
    ...     with trainer.embed(path="embedding.npy") as embedding:
    ...         print(embedding.shape, results[-1].epoch, results[-1].batches)
    (600, 8) 4 3
    >>> results[-1].avg_loss < results[0].avg_loss
    True
    """

    def __init__(self, storage, adjacency, *, model: nn.Module | None = None, objective: Objective | None = None,
                 optimizer: Optimizer | None = None, n_components: int = 128, hidden: int = 256,
                 fanouts: Sequence[int] | None = (10, 10), learning_rate: float = 1e-3, seed=0,
                 config: HyperbatchConfig | None = None, memory_limit: int | str | None = "256MB", plan: str = "auto",
                 disk: DiskModel | None = None, spill_folder=None, n_jobs: int | None = None, **loader_options):
        self.config = HyperbatchConfig() if config is None else config
        self.n_jobs, self._sampled, seed = n_jobs, fanouts is not None, seed_from(seed)
        self._own = isinstance(storage, (str, bytes)) or hasattr(storage, "__fspath__")
        self.storage = as_storage(storage)
        try:
            options = {**loader_options, "batch_size": self.config.batch_size, "fanouts": fanouts, "seed": seed,
                       "buffer_bytes": self.config, "prefetch": self.config.prefetch_factor > 1}
            self.loader = GraphLoader(adjacency, self.storage, **options)
            self.model = model if model is not None else _sage(
                self.storage, fanouts, check_int(hidden, "hidden", 1), check_int(n_components, "n_components", 1), seed)
            self.objective = Objective() if objective is None else objective
            decoder = () if self.objective.decoder is None else self.objective.decoder.parameters()
            self.optimizer = Adam([*self.model.parameters(), *decoder], lr=learning_rate) if optimizer is None \
                else optimizer
            self.memory: MemoryPlan | None = None
            with working_threads(n_jobs):
                if memory_limit is None:
                    self.hotset = self.loader.hotset = self.config.hotset(self.storage)
                else:
                    _memory.map_large()
                    self._divide(resolve_limit(memory_limit))
                    self.loader = self._planned(options | {"plan": plan, "disk": disk, "spill_folder": spill_folder})
        except BaseException:
            self._close_own()
            raise
        plain = {name: value for name, value in loader_options.items() if isinstance(value, (int, float, str))}
        parameters = [[name, list(parameter.shape)] for name, parameter in self.model.named_parameters()]
        self._trainer = Trainer(self.model, self.optimizer, seed=seed, max_epochs=0, fingerprint={
            **plain, "seed": seed, "batch_size": self.config.batch_size, "edges": self.loader.adjacency.nnz,
            "fanouts": None if fanouts is None else [int(k) for k in fanouts],
            "features": [*map(int, self.storage.shape), np.dtype(self.storage.dtype).name],
            "parameters": parameters, "optimizer": type(self.optimizer).__name__})

    def _divide(self, limit: int) -> None:
        """Divide the limit between what training holds and the reading of features."""
        n, dim = self.storage.shape
        row = dim * np.dtype(self.storage.dtype).itemsize + _HOTSET_ROW
        capacity = min(int(n * self.config.hotset_fraction), limit // _HOTSET_SHARE // row)
        self.hotset = AdaptiveHotset(capacity, dim, dtype=self.storage.dtype) if capacity else None
        weights = sum(parameter.data.nbytes for parameter in self.model.parameters())
        self.memory = MemoryPlan(limit, {"train": {
            "a training step": int(_SLACK * self._step_bytes()), "weights and optimizer": 4 * weights,
            "hotset": capacity * row}})
        self.memory.check()

    def _planned(self, options: dict) -> GraphLoader:
        assert self.memory is not None
        left = self.memory.left("train")
        try:
            return GraphLoader(self.loader.adjacency, self.storage, memory_limit=left, **options)
        except MemoryLimitError as error:
            held = format_bytes(self.memory.limit - left)
            raise MemoryLimitError(f"training itself takes {held} of memory_limit={format_bytes(self.memory.limit)}, "
                                   f"and the rest does not do for features: {error}, and {held} on top") from error

    def _step_bytes(self) -> int:
        """Bytes that a step on a minibatch holds at most, beside its features; nothing is changed by it."""
        batch = self.loader.minibatch(0)
        x = stream(0, "probe").standard_normal((len(batch.nodes), self.storage.shape[1])).astype(self.storage.dtype)
        before = self.model.state_dict(), self.objective.state_dict()
        tracing = tracemalloc.is_tracing()
        if not tracing:
            tracemalloc.start()
        try:
            tracemalloc.reset_peak()
            held = tracemalloc.get_traced_memory()[0]
            self.model.set_step_key(0)
            z = self.loader.encode(self.model, batch, x, derive(0, "augment"))
            found = self.objective(Embedded(z, batch, x[:len(batch.seeds)], self.loader, 0))
            if found.gradient is not None:
                z.backward(found.gradient)
            return tracemalloc.get_traced_memory()[1] - held
        finally:
            if not tracing:
                tracemalloc.stop()
            for module in (self.model, self.objective.decoder):
                if module is not None:
                    module.zero_grad()
            self.model.load_state_dict(before[0])
            self.objective.load_state_dict(before[1])

    @property
    def epoch(self) -> int:
        """Epochs that were trained."""
        return self._trainer.epoch

    @property
    def history(self) -> list[dict]:
        """A record for each epoch, as in :class:`Trainer`."""
        return self._trainer.history

    def train_epoch(self, lr: float | None = None) -> ColdTierEpochResult:
        """Train for one epoch, or for what is left of one that an error ended.

        Parameters
        ----------
        lr : float, optional
            Learning rate from now on.

        Raises
        ------
        StorageError
            If the features cannot be read.
        FloatingPointError
            If the loss becomes nan or infinite.
        """
        if lr is not None:
            self.optimizer.lr = check_float(lr, "lr", above=0)
        planned = self.loader.planned
        plan, reports = (None, 0) if planned is None else (planned.plan, len(planned.report()))
        self._trainer.max_epochs = self.epoch + 1
        record = self._trainer.fit(self.loader, self.objective, n_jobs=self.n_jobs)[-1]
        if self.hotset is not None:
            self.hotset.decay_counts()
        noted = [] if planned is None else planned.report()[reports:]
        done = self.loader.statistics
        return ColdTierEpochResult(
            record["epoch"], record["loss"], done.minibatches, done.hit_rate, done.read_seconds,
            record["step_seconds"] + record["update_seconds"], record["read_seconds"], record["seconds"],
            done.bytes_read, plan, noted[0]["prediction_error"] if noted else None)

    def get_features(self, ids) -> np.ndarray:
        """Rows of features, from the hotset where it has them; others are read and offered to it.

        Parameters
        ----------
        ids : array of int, shape (k,), boolean mask, or one int

        Returns
        -------
        ndarray, shape (k, d), or (d,) for one id
        """
        if isinstance(ids, (int, np.integer)):
            return self.get_features([ids])[0]
        ids = check_ids(ids, self.storage.shape[0], "ids")
        if self.hotset is None:
            return self.storage.read_batch(ids)
        rows = np.empty((len(ids), self.storage.shape[1]), self.storage.dtype)
        missing = ~self.hotset.lookup(ids, rows)
        rows[missing] = self.storage.read_batch(ids[missing])
        self.hotset.insert(ids[missing], rows[missing])
        return rows

    def embed(self, nodes=None, *, path=None, neighbors: str | None = None):
        """Embeddings of nodes, without the projection head.

        Parameters
        ----------
        nodes : array of int or boolean mask, optional
            Distinct nodes; all by default.
        path : path-like, optional
            Write them there, so that they need not fit into memory.
        neighbors : {"all", "sampled"}, optional
            ``"all"``: by whole neighbourhoods, layer by layer over all nodes within the memory limit, see
            :func:`gnncy.nn.infer`; scratch files lie beside ``path``, or beside the features. ``"sampled"``: by one
            draw of neighbours, read as training reads. By default all, where the model is one of layers one after the
            other.

        Returns
        -------
        ndarray, shape (k, n_components), or with ``path`` a FeatureStorage

        Raises
        ------
        MemoryLimitError
            If the memory limit does not do for whole neighbourhoods.
        """
        model = self.model.encoder if isinstance(self.model, nn.Projected) else self.model
        layered = isinstance(model, (nn.GraphSequential, nn.GraphModule)) and self._sampled
        neighbors = check_choice(neighbors or ("all" if layered else "sampled"), "neighbors", ("all", "sampled"))
        if neighbors == "sampled":
            return self.loader.embed(model, nodes, path=path, n_jobs=self.n_jobs)
        if not layered:
            raise TypeError(f"neighbors='all' needs a model of layers one after the other, such as nn.GraphSequential, "
                            f"got {type(model).__name__}; take neighbors='sampled'")
        if nodes is not None:
            nodes = check_ids(nodes, self.storage.shape[0], "nodes")
            if len(nodes) == 0:
                raise ValueError("nodes must hold at least one node")
        return self._infer(model, nodes, path)

    def _infer(self, model: nn.Module, nodes: np.ndarray | None, path):
        """Embeddings by whole neighbourhoods, of all nodes; then those that are asked for."""
        limit: int | str = "1GB"
        aside: AbstractContextManager[None] = nullcontext()
        if self.memory is not None:
            assert self.loader.planned is not None
            kept = 0 if self.hotset is None else self.hotset.capacity * (self.hotset.dim * 8 + _HOTSET_ROW)
            weights = sum(parameter.data.nbytes for parameter in self.model.parameters())
            limit, aside = self.memory.limit - kept - 4 * weights, self.loader.planned.set_aside()
        beside = getattr(self.storage, "path", None) if path is None else path
        with aside, TemporaryDirectory(prefix=".embed-", dir=None if beside is None else Path(beside).parent) as folder:
            out = path if nodes is None and path is not None else Path(folder, "embedding.npy")
            with nn.infer(model, self.loader.adjacency, self.storage, out=out, memory_limit=limit, overwrite=True,
                          n_jobs=self.n_jobs) as found:
                if path is None:
                    return found[:] if nodes is None else found.read_batch(nodes)
                if nodes is not None:
                    rows = (found.read_batch(nodes[k:k + _ROWS]) for k in range(0, len(nodes), _ROWS))
                    return FeatureStorage.from_blocks(path, (len(nodes), found.dim), rows, dtype=found.dtype,
                                                      overwrite=True)
                if found.order is not None:
                    found.reorder(None, memory_limit=limit)
        return FeatureStorage(path)

    def save_checkpoint(self, path) -> None:
        """Write everything that the run depends on, and the hotset, to one file: whole or not at all.

        Parameters
        ----------
        path : path-like
            Replaced if it is there. Features are not in it.
        """
        arrays, numbers = self._trainer.state()
        if self.hotset is not None:
            state = self.hotset.state_dict()
            arrays |= {f"hotset/{name}": value for name, value in state.items() if isinstance(value, np.ndarray)}
            numbers["hotset"] = {name: value for name, value in state.items() if not isinstance(value, np.ndarray)}
        write_snapshot(path, arrays, numbers | {"capacity": 0 if self.hotset is None else self.hotset.capacity})

    def load_checkpoint(self, path) -> None:
        """Go on where a checkpoint was saved, by a trainer of the same arguments; the same bits follow.

        A hotset of another size begins anew, as that changes no result.

        Parameters
        ----------
        path : path-like
            From :meth:`save_checkpoint`.

        Raises
        ------
        StorageError
            If the file is damaged, of a later format, or of another run, or if features are not those that it was
            saved with. Nothing is changed then.
        """
        arrays, numbers = read_snapshot(path)
        if "capacity" not in numbers:
            raise StorageError(f"{path} is no checkpoint of a ColdTierTrainer; load what its save_checkpoint wrote")
        hotset = self._hotset(arrays, numbers, path)
        self._trainer.load_state(arrays, numbers, objective=self.objective, where=path)
        self.hotset = hotset
        if self.loader.planned is None:
            self.loader.hotset = hotset

    def _hotset(self, arrays, numbers, path) -> AdaptiveHotset | None:
        """The hotset of a checkpoint, its rows compared with the features; an empty one where sizes differ."""
        if self.hotset is None:
            return None
        hotset = AdaptiveHotset(self.hotset.capacity, self.hotset.dim, dtype=self.hotset.dtype)
        if numbers["capacity"] != hotset.capacity:
            return hotset
        try:
            hotset.load_state_dict(numbers["hotset"] | {
                name.removeprefix("hotset/"): value for name, value in arrays.items() if name.startswith("hotset/")})
        except (KeyError, ValueError) as error:
            raise StorageError(f"{path} belongs to another run, or its hotset is damaged: {error}") from error
        ids, rows = hotset.resident()
        if len(ids) and (ids.max() >= self.storage.shape[0] or not np.array_equal(self.storage.read_batch(ids), rows)):
            raise StorageError(f"{path} was saved with other features than those of {self.storage!r}; take these, or "
                               "train anew")
        return hotset

    def close(self) -> None:
        """End what reads, free the hot rows, and close the storage if it was given as a path."""
        self.loader.close()
        self._close_own()

    def _close_own(self) -> None:
        if self._own:
            self.storage.close()

    def __enter__(self) -> "ColdTierTrainer":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _sage(storage, fanouts: Sequence[int] | None, hidden: int, n_components: int, seed: int) -> nn.Module:
    """GraphSAGE under a projection head."""
    if fanouts is None:
        raise ValueError("fanouts=None is for models of single rows: pass model, for instance nn.MLP([d, 256, 128])")
    dtype = np.dtype(storage.dtype).type
    widths = [storage.shape[1], *[hidden] * (len(fanouts) - 1), n_components]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.SAGEConv(a, b, rng=stream(seed, "weights", i), dtype=dtype))
    head = nn.ProjectionHead(n_components, n_components, n_components, rng=stream(seed, "head"), dtype=dtype)
    return nn.Projected(nn.GraphSequential(*layers), head)
