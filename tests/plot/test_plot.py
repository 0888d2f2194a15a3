import subprocess
import sys

import numpy as np
import pytest

from gnncy import plot
from gnncy.datasets import make_sbm

pytest.importorskip("matplotlib")


@pytest.fixture
def history():
    rng = np.random.default_rng(0)
    return [{"epoch": i + 1, "loss": 5 / (i + 1), "seconds": 2.0, "nodes_per_s": 1e5, "mb_read": 100 + rng.random(),
             "hit_rate": 0.5, "io_wait_share": 0.1, "rss": 2e8} for i in range(6)]


def test_history_draws_the_loss(history, tmp_path):
    ax = plot.history(history, save=tmp_path / "loss.png")
    line = ax.lines[0]
    assert line.get_xdata().tolist() == [1, 2, 3, 4, 5, 6]
    assert line.get_ydata()[-1] == pytest.approx(5 / 6)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_io_timeline_draws_rates_shares_and_memory(history, tmp_path):
    axes = plot.io_timeline(history, save=tmp_path / "io.pdf")
    assert len(axes) == 3
    assert axes[0].lines[0].get_ydata()[0] == pytest.approx(history[0]["mb_read"] / 2)
    assert [line.get_ydata()[0] for line in axes[1].lines] == [50, 10]
    assert axes[2].lines[0].get_ydata()[0] == 200
    assert (tmp_path / "io.pdf").read_bytes().startswith(b"%PDF")


def test_miss_ratio_draws_a_curve_a_policy(tmp_path):
    table = [{"policy": name, "capacity": capacity, "miss_ratio": ratio / capacity}
             for name, ratio in (("good", 0.4), ("bad", 0.9)) for capacity in (30, 10, 20)]
    ax = plot.miss_ratio(table, save=tmp_path / "miss.png")
    assert [line.get_label() for line in ax.lines] == ["bad", "good"]  # as they lie
    assert ax.lines[0].get_xdata().tolist() == [10, 20, 30]
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [4, 2, 40 / 30])
    assert (tmp_path / "miss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="table lacks 'miss_ratio'"):
        plot.miss_ratio([{"policy": "lru", "capacity": 3}])


def test_one_epoch_and_no_reads(history, tmp_path):
    first = {**history[0], "mb_read": 0.0, "seconds": 0.0}
    plot.history([first], save=tmp_path / "a.png")
    assert plot.io_timeline([first], save=tmp_path / "b.png")[0].get_ylim() == (0, 1)


def test_given_axes_are_drawn_on(history):
    from matplotlib.figure import Figure
    figure = Figure()
    axes = figure.subplots(4, 1)
    assert plot.history(history, ax=axes[0]) is axes[0]
    assert all(plot.io_timeline(history, ax=axes[1:]) == axes[1:])
    data = make_sbm(50, 2, n_features=4)
    assert plot.embedding(data.features, ax=axes[0]) is axes[0]
    with pytest.raises(ValueError, match="ax must be three axes, got 2"):
        plot.io_timeline(history, ax=axes[:2])


def test_embedding_separates_what_is_apart(tmp_path):
    data = make_sbm(600, 3, n_features=10, feature_noise=0.1)
    ax = plot.embedding(data.features, data.labels, class_names=data.class_names, save=tmp_path / "z.png")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["class 0", "class 1", "class 2"]
    points, colours = ax.collections[0].get_offsets(), ax.collections[0].get_facecolors()
    assert len(points) == 600 and ax.collections[0].get_rasterized()
    centres = [points[(colours == colour).all(axis=1)] for colour in np.unique(colours, axis=0)]
    assert [len(c) for c in centres] == [200] * 3
    apart = np.linalg.norm(centres[0].mean(axis=0) - centres[1].mean(axis=0))
    assert apart > 5 * max(c.std(axis=0).max() for c in centres)


def test_principal_components_match_svd():
    rows = np.random.default_rng(0).normal(size=(40, 6)) * np.arange(6, 0, -1)
    points, share = plot._principal(rows)
    u, s, vt = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    assert np.allclose(np.abs(points), np.abs(u[:, :2] * s[:2]))
    assert np.allclose(share, (s**2 / (s**2).sum())[:2])


def test_many_nodes_are_sampled_and_many_classes_grouped():
    data = make_sbm(3000, 12, n_features=4)
    labels = np.where(data.labels < 9, data.labels, 0)
    labels[:1500] = -1
    one = plot.embedding(data.features, labels, max_points=500)
    again = plot.embedding(data.features, labels, max_points=500)
    other = plot.embedding(data.features, labels, max_points=500, random_state=1)
    points = [ax.collections[0].get_offsets() for ax in (one, again, other)]
    assert len(points[0]) == 500 and np.array_equal(points[0], points[1]) and not np.array_equal(points[0], points[2])
    texts = [text.get_text() for text in one.get_legend().get_texts()]
    assert len(texts) == 9 and texts[-1] == "2 others" and "-1" not in texts
    assert one.get_title(loc="left") == "500 of 3,000 nodes"


def test_colours_are_those_of_okabe_and_ito():
    assert len(set(plot._COLOURS)) == 8 and {"#0072B2", "#E69F00", "#009E73", "#D55E00"} < set(plot._COLOURS)


@pytest.mark.parametrize("call, error, message", [
    (lambda h: plot.history([]), ValueError, "history must be a list of dicts"),
    (lambda h: plot.history("abc"), ValueError, "history must be a list of dicts"),
    (lambda h: plot.history([{"epoch": 1}]), ValueError, "history lacks 'loss' in entry 0; its keys are epoch"),
    (lambda h: plot.io_timeline([{**h[0], "rss": None}]), ValueError, "history lacks 'rss'"),
    (lambda h: plot.embedding(np.ones((5, 1))), ValueError, "at least two columns"),
    (lambda h: plot.embedding(np.full((5, 2), np.nan)), ValueError, "Z contains inf or nan"),
    (lambda h: plot.embedding(np.ones((5, 2)), [0, 1]), ValueError, "labels must be 5 integers"),
    (lambda h: plot.embedding(np.ones((5, 2)), max_points=1), ValueError, "max_points must be at least 2"),
])
def test_refusals(history, call, error, message):
    with pytest.raises(error, match=message):
        call(history)


def test_matplotlib_is_optional_and_pyplot_never_imported():
    code = """
import sys
from gnncy import plot
assert "matplotlib" not in sys.modules
plot.history([{"epoch": 1, "loss": 1.0}])
assert "matplotlib.pyplot" not in sys.modules
sys.modules["matplotlib"] = None
try:
    plot.history([{"epoch": 1, "loss": 1.0}])
except ImportError as error:
    assert "pip install 'gnncy[plot]'" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
