"""Figures of a training run, of a step, of caches and of an embedding (needs ``pip install 'gnncy[plot]'``).

Every function takes the axes to draw on as ``ax``, or makes a figure of its own, and returns the axes; ``save``
writes the figure to a file. Nothing here touches pyplot, so no window opens and no figure stays behind.
"""
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gnncy._check import check_array, check_int
from gnncy._memory import format_bytes, parse_bytes
from gnncy._random import seed_from, stream

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["activations", "compression", "embedding", "history", "io_timeline", "miss_ratio"]

# Okabe and Ito's colours, distinguishable with any kind of colour vision, darkest last.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_GREY, _OTHERS = "#6B6B6B", "#C8C8C8"


def require_matplotlib() -> None:
    """Raise ImportError, naming the extra, where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("gnncy.plot needs matplotlib; run pip install 'gnncy[plot]'") from error


def _figure(size):
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(ax, size=(6.0, 3.8)) -> "Axes":
    return _figure(size).add_subplot() if ax is None else ax


def _tidy(ax) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["bottom", "left"]].set_color(_GREY)
    ax.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, color=_GREY)


def _save(ax, save) -> None:
    if save is not None:
        ax.figure.savefig(save, dpi=150)


def _column(table, key: str, name: str = "history") -> np.ndarray:
    if not isinstance(table, Sequence) or not table or not all(isinstance(row, Mapping) for row in table):
        what = "one for each epoch" if name == "history" else "as simulate returns it"
        raise ValueError(f"{name} must be a list of dicts, {what}, and not empty")
    missing = [i for i, row in enumerate(table) if row.get(key) is None]
    if missing:
        raise ValueError(f"{name} lacks {key!r} in entry {missing[0]}; its keys are {', '.join(table[missing[0]])}")
    return np.array([row[key] for row in table], np.float64)


def _epochs(ax, epochs) -> None:
    from matplotlib.ticker import MaxNLocator
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    margin = max(0.5, 0.04 * (epochs[-1] - epochs[0]))
    ax.set_xlim(epochs[0] - margin, epochs[-1] + margin)


def history(history: Sequence[Mapping[str, Any]], *, ax: "Axes | None" = None,
            save: str | os.PathLike | None = None) -> "Axes":
    """The loss of every epoch.

    Parameters
    ----------
    history : list of dict
        One for each epoch, with the keys ``epoch`` and ``loss``, as estimators keep it in ``history_``.
    ax : matplotlib Axes, optional
    save : path, optional
        File to write, of the kind that its ending says.

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> from gnncy import plot
    >>> ax = plot.history([{"epoch": 1, "loss": 5.1}, {"epoch": 2, "loss": 4.2}])
    >>> ax.get_ylabel()
    'loss'
    """
    epochs, loss = _column(history, "epoch"), _column(history, "loss")
    ax = _axes(ax)
    _tidy(ax)
    ax.plot(epochs, loss, color=_COLOURS[0], linewidth=1.8, marker="o" if len(loss) <= 40 else None, markersize=4)
    best = int(np.argmin(loss))
    ax.annotate(f"{loss[best]:.4g}", (epochs[best], loss[best]), xytext=(0, 8), textcoords="offset points",
                ha="center", fontsize=9, color=_GREY)
    ax.set_ylabel("loss")
    _epochs(ax, epochs)
    _save(ax, save)
    return ax


def io_timeline(history: Sequence[Mapping[str, Any]], *, ax=None, save: str | os.PathLike | None = None) -> np.ndarray:
    """What the cold tier did in every epoch: read rate, hit rate, share of time spent waiting, memory held.

    Parameters
    ----------
    history : list of dict
        One for each epoch, with the keys ``epoch``, ``seconds``, ``mb_read``, ``hit_rate`` and ``io_wait_share``
        (0 to 1) and ``rss`` (bytes).
    ax : sequence of three matplotlib Axes, optional
    save : path, optional

    Returns
    -------
    ndarray of three matplotlib Axes

    Examples
    --------
    >>> from gnncy import plot
    >>> epoch = {"epoch": 1, "seconds": 2.0, "mb_read": 300.0, "hit_rate": 0.4, "io_wait_share": 0.1, "rss": 2e8}
    >>> [ax.get_ylabel() for ax in plot.io_timeline([epoch])]
    ['MB/s read', '%', 'RSS, MB']
    """
    epochs = _column(history, "epoch")
    rate = _column(history, "mb_read") / np.maximum(_column(history, "seconds"), 1e-9)
    hits, wait = 100 * _column(history, "hit_rate"), 100 * _column(history, "io_wait_share")
    memory = _column(history, "rss") / 1e6
    if ax is None:
        ax = _figure((6.0, 6.0)).subplots(3, 1, sharex=True)
    axes = np.asarray(ax, dtype=object).ravel()
    if len(axes) != 3:
        raise ValueError(f"ax must be three axes, got {len(axes)}")
    marker = "o" if len(epochs) <= 40 else None
    for panel in axes:
        _tidy(panel)
    axes[0].fill_between(epochs, rate, color=_COLOURS[0], alpha=0.15, linewidth=0)
    axes[0].plot(epochs, rate, color=_COLOURS[0], linewidth=1.8, marker=marker, markersize=4)
    axes[0].set_ylabel("MB/s read")
    axes[1].plot(epochs, hits, color=_COLOURS[2], linewidth=1.8, marker=marker, markersize=4, label="hit rate")
    axes[1].plot(epochs, wait, color=_COLOURS[5], linewidth=1.8, marker=marker, markersize=4, linestyle="--",
                 label="time waiting for the disk")
    axes[1].set_ylim(-3, 103)
    axes[1].set_ylabel("%")
    axes[1].legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    axes[2].plot(epochs, memory, color=_COLOURS[3], linewidth=1.8, marker=marker, markersize=4)
    axes[2].set_ylabel("RSS, MB")
    for panel, values in ((axes[0], rate), (axes[2], memory)):
        panel.set_ylim(0, 1.15 * values.max() or 1)
    _epochs(axes[2], epochs)
    _save(axes[0], save)
    return axes


def miss_ratio(table: Sequence[Mapping[str, Any]], *, ax: "Axes | None" = None,
               save: str | os.PathLike | None = None) -> "Axes":
    """The share of accesses that miss a cache, by its capacity, a curve a policy.

    Parameters
    ----------
    table : list of dict
        With the keys ``policy``, ``capacity`` and ``miss_ratio``: what :func:`gnncy.storage.policies.simulate` returns.
    ax : matplotlib Axes, optional
    save : path, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> from gnncy import plot
    >>> from gnncy.storage.policies import simulate
    >>> minibatches = [[1, 2, 3], [1, 2, 4], [1, 2, 5]]
    >>> ax = plot.miss_ratio(simulate(minibatches, [1, 2, 3], ["oracle", "lru"]))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['lru', 'oracle']
    """
    capacity, ratio = _column(table, "capacity", "table"), _column(table, "miss_ratio", "table")
    names = [row["policy"] for row in table]
    curves = {name: np.array([name == other for other in names]) for name in dict.fromkeys(names)}
    ax = _axes(ax)
    _tidy(ax)
    # The legend lists curves as they lie, the worst on top.
    for k, (name, own) in enumerate(sorted(curves.items(), key=lambda item: -ratio[item[1]].mean())):
        order = np.argsort(capacity[own], kind="stable")
        ax.plot(capacity[own][order], 100 * ratio[own][order], color=_COLOURS[k % len(_COLOURS)], linewidth=1.8,
                linestyle=("-", "--", ":")[k // len(_COLOURS) % 3], marker="o", markersize=4, label=name)
    ax.set_xlabel("rows cached")
    ax.set_ylabel("% of accesses missed")
    ax.set_ylim(0, 103)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(ax, save)
    return ax


def activations(profile, *, budget: int | str | None = None, ax: "Axes | None" = None,
                save: str | os.PathLike | None = None) -> "Axes":
    """Bytes of activations over a training step: they grow in the forward pass and go in the backward pass.

    Parameters
    ----------
    profile : Profile
        From :func:`gnncy.nn.checkpointing.profile`.
    budget : int or str, optional
        Bytes, drawn as a line.
    ax : matplotlib Axes, optional
    save : path, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn, plot
    >>> from gnncy.nn.checkpointing import profile
    >>> step = profile(nn.MLP([8, 8, 8, 8], rng=0), np.ones((100, 8), np.float32), nn.RecomputationPolicy.sqrt())
    >>> plot.activations(step).get_xlabel()
    'seconds'
    """
    seconds, nbytes = profile.timeline.T
    ax = _axes(ax)
    _tidy(ax)
    ax.fill_between(seconds, nbytes / 1e6, step="post", color=_COLOURS[0], alpha=0.15, linewidth=0)
    ax.step(seconds, nbytes / 1e6, where="post", color=_COLOURS[0], linewidth=1.5)
    ax.axvline(profile.forward_seconds, color=_GREY, linewidth=0.8)
    ax.annotate("backward", (profile.forward_seconds, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
                textcoords="offset points", fontsize=9, color=_GREY)
    top = nbytes.max(initial=1)
    if budget is not None:
        limit = parse_bytes(budget, "budget")
        top = max(top, limit)
        ax.axhline(limit / 1e6, color=_COLOURS[5], linewidth=1.2, linestyle="--")
        ax.annotate("budget", (0, limit / 1e6), xytext=(4, 3), textcoords="offset points", fontsize=9,
                    color=_COLOURS[5])
    ax.set_ylim(0, 1.15 * top / 1e6)
    ax.set_xlim(0, seconds[-1] or 1)
    ax.set_xlabel("seconds")
    ax.set_ylabel("activations, MB")
    ax.set_title(f"{profile.policy}: at most {format_bytes(profile.peak_bytes)}", fontsize=10, color=_GREY, loc="left")
    _save(ax, save)
    return ax


def compression(rows: Sequence[Mapping[str, Any]], *, ax: "Axes | None" = None,
                save: str | os.PathLike | None = None) -> "Axes":
    """The cosine of what compressors give back against the bits they send, a line each.

    Parameters
    ----------
    rows : sequence of dict
        With ``name`` of the compressor, ``bits`` sent for each number and ``cosine``.
    ax : matplotlib Axes, optional
    save : path, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> from gnncy import plot
    >>> ax = plot.compression([{"name": "sign", "bits": 1.0, "cosine": 0.8}])
    >>> ax.get_ylabel()
    'cosine to the gradient'
    """
    ax = _axes(ax)
    _tidy(ax)
    for i, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
        points = sorted((row["bits"], row["cosine"]) for row in rows if row["name"] == name)
        ax.plot(*zip(*points, strict=True), marker="os^v"[i // len(_COLOURS) % 4], markersize=4, linewidth=1.5,
                color=_COLOURS[i % len(_COLOURS)], label=name)
    ax.set_xscale("log", base=2)
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("bits for each number")
    ax.set_ylabel("cosine to the gradient")
    if rows:
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(ax, save)
    return ax


def embedding(Z, labels=None, *, class_names: Sequence[str] | None = None, max_points: int = 20_000, random_state=0,
              ax: "Axes | None" = None, save: str | os.PathLike | None = None) -> "Axes":
    """An embedding on its first two principal components, a point a node, coloured by label.

    Parameters
    ----------
    Z : array or feature store of shape (n, d)
    labels : int array of shape (n,), optional
        The eight most frequent classes get a colour each; the others, and -1 for no label, are grey.
    class_names : sequence of str, optional
        Names for the labels 0, 1, ...
    max_points : int
        Of more nodes, so many drawn at random are shown; the components are those of the nodes shown.
    random_state : int, None or numpy Generator
    ax : matplotlib Axes, optional
    save : path, optional

    Returns
    -------
    matplotlib Axes

    Notes
    -----
    Two components show a small part of the variance (given on the axes): classes that overlap here may well be apart
    in the whole space. Measure with :func:`gnncy.evaluate.linear_probe`.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import plot
    >>> Z = np.random.default_rng(0).normal(size=(100, 8))
    >>> ax = plot.embedding(Z, labels=np.arange(100) % 3)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['0', '1', '2']
    """
    n = Z.shape[0] if hasattr(Z, "shape") else len(Z)
    max_points = check_int(max_points, "max_points", 2)
    shown = np.arange(n)
    if n > max_points:
        shown = np.sort(stream(seed_from(random_state), "plot").permutation(n)[:max_points])
    rows = check_array(Z[shown] if hasattr(Z, "shape") else np.asarray(Z)[shown], "Z", dtype=np.float64)
    if rows.shape[1] < 2:
        raise ValueError(f"Z must have at least two columns, got shape {(n, rows.shape[1])}")
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (n,) or labels.dtype.kind not in "iub":
            raise ValueError(f"labels must be {n} integers, got {labels.dtype} of shape {labels.shape}")
    points, share = _principal(rows)

    ax = _axes(ax, (6.0, 5.0))
    size = float(np.clip(3e4 / len(points), 3, 20))
    style: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.7, "rasterized": True}
    if labels is None:
        ax.scatter(*points.T, color=_COLOURS[0], **style)
    else:
        _scatter_classes(ax, points, labels[shown], class_names, style, stream(seed_from(random_state), "draw order"))
    ax.set_xlabel(f"component 1 ({share[0]:.1%} of variance)")
    ax.set_ylabel(f"component 2 ({share[1]:.1%})")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[["top", "right"]].set_visible(False)
    if n > len(shown):
        ax.set_title(f"{len(shown):,} of {n:,} nodes", fontsize=10, color=_GREY, loc="left")
    _save(ax, save)
    return ax


def _scatter_classes(ax, points, labels, class_names, style, random) -> None:
    from matplotlib.lines import Line2D
    classes, count = np.unique(labels, return_counts=True)
    frequent = classes[np.argsort(np.where(classes < 0, 0, -count), kind="stable")[:len(_COLOURS)]]
    frequent = frequent[frequent >= 0]
    colour = np.full(len(labels), _OTHERS, dtype=object)
    for value, label in zip(_COLOURS, frequent, strict=False):
        colour[labels == label] = value
    # Grey below, the rest in random order, so that no class hides another.
    coloured = random.permutation(np.flatnonzero(colour != _OTHERS))
    order = np.concatenate([np.flatnonzero(colour == _OTHERS), coloured])
    ax.scatter(*points[order].T, c=colour[order], **style)
    names = [str(label) if class_names is None else class_names[label] for label in frequent]
    if len(classes) > len(frequent):
        names.append(f"{len(classes) - len(frequent)} others")
    handles = [Line2D([], [], linestyle="", marker="o", markersize=6, color=value, label=name)
               for value, name in zip((*_COLOURS[:len(frequent)], _OTHERS), names, strict=False)]
    ax.legend(handles=handles, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2)


def _principal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows on the first two principal components, and these components' shares of the variance."""
    rows = rows - rows.mean(axis=0)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    axes = vectors[:, ::-1][:, :2]
    # The sign of a component is free: its largest entry is made positive, so that pictures can be compared.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    return rows @ axes, values[::-1][:2] / max(values.sum(), np.finfo(float).tiny)
