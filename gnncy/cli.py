"""The ``gnncy`` command. Results go to standard output, what happens on the way to standard error."""
import argparse
import csv
import dataclasses
import json
import logging
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gnncy import _doctor, _files, _memory, plot
from gnncy._threads import working_threads
from gnncy.datasets import GraphDataset, load_wordnet, open_graph, read_graph
from gnncy.errors import GnncyError
from gnncy.estimators import GraphEncoder
from gnncy.evaluate import embedding_health, linear_probe, majority_baseline, run_protocol
from gnncy.storage import FeatureStorage, SparseFeatureStorage, VerifyReport, as_storage
from gnncy.storage.plans import calibrate
from gnncy.training import ExitOnSignal

log = logging.getLogger("gnncy")

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """What the user asked for cannot be: a missing file, an unknown data set, options that contradict."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status (0 done, 1 failed, 2 usage, 130 interrupted).

    A run that SIGTERM or SIGUSR1 ends raises ``SystemExit(75)``: it is saved, and the same command goes on.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before, level = list(log.handlers), log.level
    log.handlers[:] = [handler]
    log.setLevel(logging.WARNING if getattr(options, "quiet", False) else logging.INFO)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("interrupted; the same command continues the run", file=sys.stderr)
        return INTERRUPTED
    except (UsageError, TypeError, ValueError, FileNotFoundError, ImportError) as error:
        print(f"gnncy {options.command}: {error}", file=sys.stderr)
        return USAGE
    except (GnncyError, OSError, MemoryError, FloatingPointError) as error:
        print(f"gnncy {options.command}: {error}", file=sys.stderr)
        return FAILED
    finally:
        log.handlers[:], log.level = before, level


def _parser() -> argparse.ArgumentParser:
    from gnncy import __version__
    parser = argparse.ArgumentParser(prog="gnncy", description="Contrastive node embeddings on a CPU, for graphs whose "
                                     "features are bigger than memory.")
    parser.add_argument("--version", action="version", version=f"gnncy {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train embeddings of a graph; the same call resumes a killed run")
    _graph_options(train)
    train.add_argument("--out", default="run", metavar="DIR", help="folder of the run (default: run)")
    train.add_argument("--plot", action="store_true",
                       help="write figures too: loss, embedding, I/O (needs gnncy[plot])")
    train.add_argument("--json", action="store_true", help="print the results as JSON")
    train.add_argument("--quiet", action="store_true", help="only warnings and results")
    train.add_argument("--no-prefetch", action="store_true", help="read in the training thread (same bits, slower)")
    train.set_defaults(run=_train)

    estimate = commands.add_parser("estimate", help="print the memory plan of a run, before anything is read")
    _graph_options(estimate)
    estimate.add_argument("--json", action="store_true")
    estimate.set_defaults(run=_estimate)

    evaluate = commands.add_parser("evaluate", help="linear probe of an embedding by one of the field's protocols, and "
                                   "its health")
    evaluate.add_argument("embedding", help="a .npy or feature store of one row a node, or the folder of a run")
    evaluate.add_argument("graph", nargs="?", help="as for train; its labels, split and edges are used")
    evaluate.add_argument("--labels", metavar="FILE", help=".npy of integers, -1 for none")
    evaluate.add_argument("--protocol", choices=("public", "random", "planetoid"),
                          help="public: the graph's split; random: 10, 10 and 80 %%; planetoid: 20 a class, 500 and "
                          "1000 (default: public if the graph has a split, else random)")
    evaluate.add_argument("--runs", type=int, default=20, help="random splits (default: %(default)s)")
    evaluate.add_argument("--metric", default="accuracy", choices=("accuracy", "macro_f1", "roc_auc"),
                          help="by which the probe is chosen on the validation nodes (default: %(default)s)")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--threads", type=int, default=-1, help="default: all usable CPUs")
    evaluate.add_argument("--json", action="store_true")
    evaluate.set_defaults(run=_evaluate, features=None)

    info = commands.add_parser("info", help="describe a feature store, a graph or a run")
    info.add_argument("path")
    info.add_argument("--verify", action="store_true", help="read all features and hold them against their checksums; "
                      "names the damaged rows, and fails if there are any")
    info.add_argument("--json", action="store_true")
    info.set_defaults(run=_info)

    doctor = commands.add_parser("doctor", help="versions, BLAS, SIMD level, threads, memory, disk")
    doctor.add_argument("path", nargs="?", default=".", help="folder whose disk is looked at (default: here)")
    doctor.add_argument("--disk", action="store_true", help="measure what the disk costs (a third of a second, "
                        "writes and removes 48 MiB)")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_run_doctor)
    return parser


def _graph_options(parser: argparse.ArgumentParser) -> None:
    defaults = GraphEncoder()
    parser.add_argument("graph", help="'wordnet' (embedded), or a path: .npz of scipy.sparse, .mtx, an edge list, "
                        "a graph folder")
    parser.add_argument("--features", metavar="FILE", help=".npy, a feature store, or .npz of scipy.sparse")
    parser.add_argument("--labels", metavar="FILE", help=".npy of integers, to report a linear probe")
    parser.add_argument("--memory-limit", default="auto", metavar="SIZE",
                        help="such as 256MB: what the process may hold beyond its start-up "
                        "size (default: half of what is free)")
    parser.add_argument("--encoder", default=defaults.encoder, choices=("propagate", "mlp", "sage", "gcn", "gat"))
    parser.add_argument("--dim", type=int, default=defaults.n_components,
                        help="columns of the embedding (default: %(default)s)")
    parser.add_argument("--epochs", default=defaults.max_epochs, help="number of epochs (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--learning-rate", default=defaults.learning_rate,
                        help="Adam's step size (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=defaults.temperature)
    parser.add_argument("--reduced-width", type=int, default=defaults.reduced_width,
                        help="columns that sparse features are reduced to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=-1, help="default: all usable CPUs")


def _auto_or(kind, options, name: str):
    """The value of an option that may be ``auto``."""
    value = getattr(options, name)
    try:
        return value if value == "auto" else kind(value)
    except ValueError:
        raise UsageError(f"--{name.replace('_', '-')} must be a number or 'auto', got {value!r}") from None


def _encoder(options, start_up: int, **more) -> GraphEncoder:
    if options.memory_limit != "auto":
        _memory.parse_bytes(options.memory_limit, "--memory-limit")
    encoder = GraphEncoder(options.dim, encoder=options.encoder, max_epochs=_auto_or(int, options, "epochs"),
                           batch_size=options.batch_size, learning_rate=_auto_or(float, options, "learning_rate"),
                           temperature=options.temperature, reduced_width=options.reduced_width,
                           memory_limit=options.memory_limit, random_state=options.seed, n_jobs=options.threads, **more)
    encoder._start_up = start_up
    return encoder


@contextmanager
def _loaded(options):
    """The graph that the options name, with features and labels where there are any; its files are closed after."""
    data = _load(options)
    try:
        yield data
    finally:
        if hasattr(data.features, "close"):
            data.features.close()


def _load(options) -> GraphDataset:
    path = Path(options.graph)
    if options.graph == "wordnet" and not path.exists():
        data = load_wordnet()
    elif path.is_dir():
        data = open_graph(path)
    elif path.exists():
        adjacency = read_graph(path)
        data = GraphDataset(path.stem, adjacency, None, np.zeros(0, np.int64), (), None, "")
    else:
        raise UsageError(f"unknown data set or missing file: {options.graph!r}; give 'wordnet', or a path to a .npz "
                         "(scipy.sparse.save_npz), .mtx, edge list or graph folder")
    changes: dict = {}
    if options.labels is not None:
        labels = np.load(options.labels, allow_pickle=False)
        if labels.shape != (data.n_nodes,) or labels.dtype.kind not in "iu":
            raise UsageError(f"--labels must hold one integer per node ({data.n_nodes}), got shape {labels.shape}, "
                             f"dtype {labels.dtype}")
        changes["labels"] = labels.astype(np.int64)
    if options.features is not None:
        changes["features"] = _open_features(Path(options.features))
    return dataclasses.replace(data, **changes)


def _open_features(path: Path):
    if not path.exists():
        raise FileNotFoundError(f"--features: no such file or folder: {path}")
    if path.is_dir():
        return SparseFeatureStorage.open(path)
    if path.suffix == ".npz":
        from scipy.sparse import load_npz
        return as_storage(load_npz(path))
    return FeatureStorage.open(path)


def _train(options) -> int:
    if options.plot:
        plot.require_matplotlib()  # before the work, not after it
    began = time.monotonic()
    resettable = _memory.reset_peak()
    start_up = _memory.rss()
    with ExitOnSignal() as ending, _loaded(options) as data:
        return _train_on(data, options, began, start_up, resettable, ending)


def _train_on(data: GraphDataset, options, began: float, start_up: int, resettable: bool, ending: ExitOnSignal) -> int:
    folder = Path(options.out)
    callbacks: list = [ending]
    if sys.stderr.isatty() and not options.quiet:
        callbacks.append(ProgressBar())
    encoder = _encoder(options, start_up, checkpoint_dir=folder, prefetch=not options.no_prefetch, callbacks=callbacks)
    log.info("%r", data)
    encoder.fit(data.adjacency, features=data.features)
    seconds = time.monotonic() - began
    _write_history(folder / "history.csv", encoder.history_)
    results = {"data": data.name, "nodes": data.n_nodes, "arcs": int(data.adjacency.nnz),
               "embedding": str(encoder.embedding_path_), "dim": options.dim, "epochs": encoder.n_iter_,
               "loss": encoder.loss_ if encoder.history_ else None, "seconds": seconds}
    with working_threads(options.threads):
        results |= _scores(encoder, data)
    results["memory"] = {"limit": options.memory_limit, "start_up": start_up,
                         "peak_above_start_up": _memory.peak_rss() - start_up if resettable else None}
    if options.plot:
        _figures(folder, encoder, data)
    _files.write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1) if options.json else _text(results))
    return OK


def _scores(encoder: GraphEncoder, data: GraphDataset) -> dict:
    """Linear probe of the embedding, of the raw features and of a majority guess, where there are labels."""
    if not len(data.labels):
        return {}
    log.info("probing the embedding and the raw features")
    with FeatureStorage.open(encoder.embedding_path_) as embedding:
        probe = linear_probe(embedding, data.labels, data.split)
    _memory.trim()
    scores: dict = {"embedding": probe}
    if data.features is not None:
        scores["raw features"] = linear_probe(data.features, data.labels, data.split)
    scores["majority"] = majority_baseline(data.labels, data.split)
    return {"probe": {name: {"accuracy": float(s.accuracy), "macro_f1": float(s.macro_f1)}
                      for name, s in scores.items()}}


def _evaluate(options) -> int:
    path = Path(options.embedding)
    path = path / "embedding.npy" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"no such embedding: {path}")
    with FeatureStorage.open(path) as embedding, working_threads(options.threads):
        adjacency = split = None
        if options.graph is not None:
            with _loaded(options) as data:
                adjacency, labels, split = data.adjacency, data.labels, data.split
        elif options.labels is not None:
            labels = np.load(options.labels, allow_pickle=False)
        if options.graph is None and options.labels is None or not len(labels):
            raise UsageError("there are no labels: give --labels, or a graph that has some")
        if options.protocol == "public" and split is None:
            raise UsageError("--protocol public needs a graph with a split of its own")
        result = run_protocol(embedding, labels, split if options.protocol in (None, "public") else None,
                              protocol=options.protocol, runs=options.runs, metric=options.metric,
                              random_state=options.seed)
        health = embedding_health(embedding, adjacency)
    found = result.as_dict() | {"health": {name: value for name, value in health._asdict().items()
                                           if not np.isnan(value)}}
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print(f"{path}: {found['protocol']} split, {found['runs']} run{'s' if found['runs'] > 1 else ''}")
        for name in ("accuracy", "macro_f1", "roc_auc"):
            if name in found:
                print(f"  {name:<16} {100 * found[name]['mean']:.1f} ± {100 * found[name]['std']:.1f}")
        for name, value in found["health"].items():
            print(f"  {name.replace('_', ' '):<16} {value:.2f}")
    return OK


def _text(results: dict) -> str:
    lines = [f"{results['data']}: {results['nodes']:,} nodes, {results['dim']} columns, {results['epochs']} epochs, "
             f"loss {results['loss'] or float('nan'):.4f}, {results['seconds']:.1f} s -> {results['embedding']}"]
    if "probe" in results:
        lines.append(f"{'linear probe, test nodes':<28}{'accuracy':>10}{'macro-F1':>10}")
        lines += [f"  {name:<26}{100 * s['accuracy']:>9.1f} {100 * s['macro_f1']:>9.1f}"
                  for name, s in results["probe"].items()]
    peak = results["memory"]["peak_above_start_up"]
    if peak is not None:
        lines.append(f"peak memory above start-up: {_memory.format_bytes(peak)} (limit {results['memory']['limit']})")
    return "\n".join(lines)


def _write_history(path: Path, history: list[dict]) -> None:
    with _files.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fieldnames=list(history[0]) if history else ["epoch"])
        writer.writeheader()
        writer.writerows(history)


def _figures(folder: Path, encoder: GraphEncoder, data: GraphDataset) -> None:
    plot.history(encoder.history_, save=folder / "loss.png")
    plot.io_timeline(encoder.history_, save=folder / "io.png")
    labels = data.labels if len(data.labels) else None
    plot.embedding(np.load(encoder.embedding_path_, mmap_mode="r"), labels, class_names=data.class_names or None,
                   save=folder / "embedding.png")


class ProgressBar:
    """A tqdm bar over the steps of an epoch, for a terminal; quietly absent where tqdm is not installed."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_batch_end(self, trainer, info: dict) -> None:
        """Advance by one step."""
        try:
            from tqdm import tqdm
        except ImportError:
            return
        if self._bar is None:
            self._bar = tqdm(total=info["steps"], initial=info["step"] - 1, desc=f"epoch {info['epoch'] + 1}",
                             leave=False, file=sys.stderr)
        self._bar.update()

    def on_epoch_end(self, trainer, record: dict) -> None:
        """Take the bar away; the epoch's line has just been written."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _estimate(options) -> int:
    start_up = _memory.rss()
    with _loaded(options) as data:
        plan = _encoder(options, start_up).estimate(data.adjacency, features=data.features)
    print(json.dumps(plan.as_dict(), indent=1) if options.json else plan)
    plan.check()
    return OK


def _info(options) -> int:
    path = Path(options.path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    facts = _describe(path)
    report = _verify(path) if options.verify else None
    if report is not None:
        facts |= {"verified": report.ok}
        if not report.ok:
            facts |= {"damaged rows": report.damaged, "damaged nodes": report.damaged_nodes.tolist(),
                      "unchecked rows": report.unchecked} if options.json else {"report": str(report)}
    print(json.dumps(facts, indent=1) if options.json else "\n".join(f"{k:<12} {v}" for k, v in facts.items()))
    return OK if report is None or report.ok else FAILED


def _verify(path: Path) -> VerifyReport:
    """The report on the features at ``path``, or on those of the graph folder there."""
    inside = path / "features.npy"
    if inside.exists() or path.suffix == ".npy":
        store: FeatureStorage | SparseFeatureStorage = FeatureStorage(inside if inside.exists() else path)
    elif _is_sparse_store(path):
        store = SparseFeatureStorage(path)
    else:
        raise UsageError(f"--verify reads feature stores, which have checksums; {path} is not one")
    with store, working_threads(-1):
        return store.verify()


def _is_sparse_store(path: Path) -> bool:
    return (path / "indices.npy").exists() and (path / "data.npy").exists() and not (path / "features.npy").exists()


def _describe(path: Path) -> dict:
    if path.is_dir() and (path / "config.json").exists():
        run = json.loads((path / "config.json").read_text(encoding="utf-8"))
        results = path / "results.json"
        done = json.loads(results.read_text(encoding="utf-8")) if results.exists() else None
        facts = {"kind": "run", "finished": done is not None, "nodes": run["nodes"], "arcs": run["arcs"],
                 "seed": run["seed"]}
        return facts if done is None else facts | {k: done.get(k) for k in ("epochs", "loss", "probe")}
    if path.suffix == ".npy":
        with FeatureStorage.open(path) as store:
            return {"kind": "feature store", "nodes": store.shape[0], "columns": store.shape[1],
                    "dtype": str(store.dtype), "bytes": store.nbytes, "reordered": store.order is not None}
    if _is_sparse_store(path):
        with SparseFeatureStorage.open(path) as sparse:
            return {"kind": "sparse feature store", "nodes": sparse.shape[0], "columns": sparse.shape[1],
                    "dtype": str(sparse.dtype), "stored": sparse.nnz}
    if path.is_dir():
        data = open_graph(path)
        data.features.close()
    adjacency = data.adjacency if path.is_dir() else read_graph(path)
    degree = np.diff(adjacency.indptr)
    return {"kind": "graph", "nodes": adjacency.shape[0], "arcs": int(adjacency.nnz),
            "isolated": int((degree == 0).sum()), "max degree": int(degree.max(initial=0)),
            "mean degree": round(float(degree.mean()), 2)}


def _run_doctor(options) -> int:
    found = _doctor.report(options.path)
    if options.disk:
        found["disk"]["model"] = dataclasses.asdict(calibrate(options.path, refresh=True))
    print(json.dumps(found, indent=1) if options.json else _doctor.text(found))
    return OK
