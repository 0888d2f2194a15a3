"""Miners: against sorting everything, the laws of their draws, and the faults of the reference (S4-21 to S4-25)."""
import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import chisquare

from gnncy import FeatureStorage
from gnncy._threads import working_threads
from gnncy.losses import HardNegativeMiner, info_nce, mining
from mining_reference import STRATEGIES, check, cosine, data, hardest, same, unit

# Hardest

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n, m, d, k", [(1, 1, 1, 1), (3, 5, 2, 7), (40, 1700, 16, 20), (1030, 65, 4, 3),
                                        (5, 7000, 3, 33)])
def test_hardest_is_what_sorting_gives(n, m, d, k, dtype):
    a, c = data(n, d, dtype=dtype), data(m, d, seed=1, dtype=dtype)
    s = cosine(a, c)
    mined = check(HardNegativeMiner("hardest", k).mine(a, None, c), s, k)
    assert mined.similarities.dtype == dtype
    wanted = hardest(s, k)
    np.testing.assert_array_equal(wanted >= 0, mined.mask)
    close = np.take_along_axis(s, wanted, 1)
    np.testing.assert_allclose(mined.similarities[mined.mask], close[mined.mask], atol=1e-6)
    if dtype == np.float64 and d > 1:
        np.testing.assert_array_equal(mined.indices, wanted)
    assert (np.diff(mined.similarities, axis=1)[mined.mask[:, 1:]] <= 0).all()
    np.testing.assert_array_equal(mined.n_hard, mined.mask.sum(axis=1))


def exact(n, seed=0):
    """Rows whose unit rows and cosines have no rounding, and many equal cosines."""
    return np.random.default_rng(seed).integers(0, 2, (n, 16)).astype(np.float32) * 2 - 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_of_equal_cosines_the_first_wins_whatever_the_blocks(strategy, monkeypatch):
    a, c = exact(30), exact(2000, 1)
    miner = HardNegativeMiner(strategy, 12, seed=4)
    mined = miner.mine(a, exact(30, 2), c, key=3)
    check(mined, cosine(a, c), 12)
    if strategy == "hardest":
        np.testing.assert_array_equal(mined.indices, hardest(cosine(a, c), 12))
    for tile, block, anchors in [(1, 1, 30), (7, 21, 4), (100, 300, 1), (4096, 4096, 512)]:
        monkeypatch.setattr(mining, "_TILE", tile)
        monkeypatch.setattr(mining, "_BLOCK", block)
        monkeypatch.setattr(mining, "_ANCHORS", anchors)
        assert same(mined, miner.mine(a, exact(30, 2), c, key=3))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_threads_do_not_matter(strategy):
    a, c = data(1200, 8, dtype=np.float32), data(5000, 8, seed=1, dtype=np.float32)
    miner = HardNegativeMiner(strategy, 5)
    runs = []
    for threads in (1, 2, 3):
        with working_threads(threads):
            runs.append(miner.mine(a, a[::-1], c, key=1))
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


# Draws

def test_s4_21_weighted_draws_are_without_replacement_and_complete():
    a, c = data(50, 4), data(9, 4, seed=1)
    mined = check(HardNegativeMiner("weighted", 9, alpha=20).mine(a, None, c), cosine(a, c), 9)
    np.testing.assert_array_equal(np.sort(mined.indices, axis=1), np.tile(np.arange(9), (50, 1)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 6.0])
def test_the_first_weighted_draw_follows_the_softmax(alpha, dtype):
    n, m = 20_000, 12
    c, a = data(m, 3, seed=7, dtype=dtype), data(1, 3, seed=2, dtype=dtype)
    mined = HardNegativeMiner("weighted", 1, alpha=alpha, seed=1).mine(np.repeat(a, n, axis=0), None, c)
    odds = np.exp(alpha * cosine(a, c)[0])
    counts = np.bincount(mined.indices[:, 0], minlength=m)
    assert 1e-4 < chisquare(counts, n * odds / odds.sum()).pvalue < 1 - 1e-4


def test_a_first_draw_among_many_follows_the_softmax():
    # Far more candidates than draws: most are refused before their logarithms are taken.
    m, alpha = 4000, 5.0
    c, a = data(m, 8, seed=7, dtype=np.float32), data(1, 8, seed=2, dtype=np.float32)
    miner = HardNegativeMiner("weighted", 3, alpha=alpha, seed=1)
    mined = miner.mine(np.repeat(a, 5000, axis=0), None, c)
    odds = np.exp(alpha * cosine(a, c)[0])
    # Draws in ten bins of equal odds, candidates in the order of their cosines.
    order = np.argsort(odds)
    bins = np.empty(m, np.int64)
    bins[order] = np.minimum(10 * np.cumsum(odds[order]) / odds.sum(), 9)
    expected = np.bincount(bins, odds) / odds.sum() * 5000
    assert 1e-4 < chisquare(np.bincount(bins[mined.indices[:, 0]], minlength=10), expected).pvalue < 1 - 1e-4
    assert mined.indices[:, 0].std() > 0


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_pairs_of_draws_have_the_enumerated_odds(alpha):
    n = 20_000
    c, a = data(3, 2, seed=5), data(1, 2, seed=3)
    mined = HardNegativeMiner("weighted", 2, alpha=alpha, seed=9).mine(np.repeat(a, n, axis=0), None, c)
    w = np.exp(alpha * cosine(a, c)[0])
    pairs = list(itertools.permutations(range(3), 2))
    expected = [n * w[i] / w.sum() * w[j] / (w.sum() - w[i]) for i, j in pairs]
    counts = [int(((mined.indices[:, 0] == i) & (mined.indices[:, 1] == j)).sum()) for i, j in pairs]
    assert sum(counts) == n
    assert 1e-4 < chisquare(counts, expected).pvalue < 1 - 1e-4


def test_random_draws_are_uniform_and_differ_by_seed_key_and_anchor():
    c, a = data(40, 3), data(1, 3)
    miner = HardNegativeMiner("random", 8, seed=0)
    same_anchor = np.repeat(a, 2000, axis=0)
    mined = miner.mine(same_anchor, None, c)
    counts = np.bincount(mined.indices.ravel(), minlength=40)
    assert chisquare(counts).pvalue > 1e-4 and counts.std() > 0
    assert not mined.n_hard.any()
    base = miner.mine(same_anchor[:20], None, c).indices
    others = [miner.mine(same_anchor[:20], None, c, key=1).indices,
              HardNegativeMiner("random", 8, seed=1).mine(same_anchor[:20], None, c).indices,
              miner.mine(same_anchor[:20], None, c, anchor_ids=np.arange(100, 120)).indices]
    assert not any(np.array_equal(base, other) for other in others)
    assert np.array_equal(base, miner.mine(same_anchor[:20], None, c).indices)


def test_draws_depend_on_ids_not_on_places():
    a, c = data(20, 4), data(300, 4, seed=1)
    ids = np.arange(300) * 7_000_000_011
    order = np.random.default_rng(0).permutation(300)
    miner = HardNegativeMiner("weighted", 6, seed=2)
    one = miner.mine(a, None, c, candidate_ids=ids, anchor_ids=np.arange(1, 21))
    other = miner.mine(a[::-1], None, c[order], candidate_ids=ids[order], anchor_ids=np.arange(20, 0, -1))
    np.testing.assert_array_equal(ids[one.indices], ids[order][other.indices[::-1]])


def test_global_random_state_is_not_touched():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    HardNegativeMiner("weighted", 2).mine(data(2, 3), None, data(5, 3))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


# Semi-hard and mixed

@pytest.mark.parametrize("fill", ["random", "hardest", "none"])
def test_s4_22_semi_hard_keeps_to_its_margin_and_never_passes_the_positive(fill):
    a, p, c = data(60, 6), data(60, 6, seed=1), data(200, 6, seed=2)
    p = a + 0.6 * p
    s, sp_ = cosine(a, c), np.einsum("ij,ij->i", unit(a), unit(p))[:, None]
    k, margin = 25, 0.5
    mined = check(HardNegativeMiner("semi_hard", k, margin=margin, fill=fill).mine(a, p, c), s, k)
    window = (s < sp_) & (s > sp_ - margin / 2)
    wanted = hardest(s, k, window)
    np.testing.assert_array_equal(mined.n_hard, np.minimum(window.sum(axis=1), k))
    assert 0 < mined.n_hard.min() < k and mined.n_hard.max() == k, "both cases must occur"
    for row in range(60):
        h = mined.n_hard[row]
        np.testing.assert_array_equal(mined.indices[row, :h], wanted[row, :h])
        rest = mined.indices[row, h:]
        if fill == "none":
            assert not mined.mask[row, h:].any()
            continue
        assert mined.mask[row].all()
        assert (s[row, rest] <= sp_[row] - margin / 2).all()
        if fill == "hardest":
            np.testing.assert_array_equal(mined.indices[row], hardest(s[row:row + 1], k, s[row:row + 1] < sp_[row])[0])
    if fill == "random":
        # Not the hardest again: the fill is spread over all that are easier.
        easy = [s[row, mined.indices[row, h:]].mean() for row, h in enumerate(mined.n_hard) if h < k]
        pool = [s[row][s[row] <= sp_[row] - margin / 2].mean() for row, h in enumerate(mined.n_hard) if h < k]
        assert abs(np.mean(easy) - np.mean(pool)) < 0.1


def test_s4_22_where_all_are_harder_than_the_positive_nothing_is_chosen():
    a = np.eye(2)
    mined = HardNegativeMiner("semi_hard", 3).mine(a, -a, np.abs(data(10, 2)))
    assert not mined.mask.any() and not mined.n_hard.any()


def test_s4_22_semi_hard_and_its_fill_share_no_candidate_on_the_edge():
    # Cosines 1, 0.5, 0, -0.5 and the margin's edge at exactly 0.
    c = np.repeat(np.array([[1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [1, -1, -1, -1]], np.float32), 5, axis=0)
    a = np.ones((1, 4), np.float32)
    mined = HardNegativeMiner("semi_hard", 20, margin=1.0, fill="hardest").mine(a, c[5:6], c)
    assert mined.n_hard == [0] and mined.mask.sum() == 10  # nothing lies between 0 and 0.5
    assert set(mined.indices[0, :10]) == set(range(10, 20))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_s4_23_mixed_repeats_nothing(ratio):
    a, c = exact(200), exact(30, 1)  # with many equal cosines
    s, k = cosine(a, c), 20
    mined = check(HardNegativeMiner("mixed", k, hard_ratio=ratio).mine(a, None, c), s, k)
    h = int(k * ratio)
    assert mined.mask.all() and (mined.n_hard == h).all()
    np.testing.assert_array_equal(mined.indices[:, :h], hardest(s, k)[:, :h])
    if 0 < h < k:
        # Of 30 candidates less the hard ones, every one is drawn about equally often.
        times = np.zeros(len(c))
        for row in mined.indices:
            times[:len(c) - h] += np.isin(np.setdiff1d(np.arange(len(c)), row[:h]), row[h:])
        assert abs(times[:len(c) - h] / len(a) - (k - h) / (len(c) - h)).max() < 0.15


@pytest.mark.parametrize("ratio", [-0.1, 1.5])
def test_s4_23_a_ratio_beyond_one_is_refused(ratio):
    with pytest.raises(ValueError, match=r"hard_ratio must be in 0\.\.1"):
        HardNegativeMiner("mixed", hard_ratio=ratio)


# Shape, exclusions

@pytest.mark.parametrize("k", [4, 9])
def test_s4_24_gradients_go_back_through_the_indices(k):
    a, p, c = data(6, 5), data(6, 5, seed=1), data(9, 5, seed=2)
    mined = HardNegativeMiner("hardest", k).mine(a, p, c, anchor_ids=np.arange(6), positive_ids=np.arange(6)[::-1])
    assert mined.mask.all() == (k == 4)
    value, grads = info_nce(a, p, mined.indices, table=c)
    assert value == pytest.approx(info_nce(a, p, c[mined.indices], false_negatives=~mined.mask)[0], rel=1e-12)
    direction, eps = data(9, 5, seed=3), 1e-6
    up, down = (info_nce(a, p, mined.indices, table=c + step * direction)[0] for step in (eps, -eps))
    numeric = (up - down) / (2 * eps)
    assert abs(numeric - (grads.table * direction).sum()) < 1e-6 * abs(numeric)


def test_s4_24_nan_is_refused_by_name():
    a, c = data(3, 4), data(6, 4)
    c[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"candidates contains inf or nan values .1 of 24, first at index \(4, 1\)"):
        HardNegativeMiner("hardest", 2).mine(a, None, c)
    with pytest.raises(ValueError, match="anchors contains inf or nan"):
        HardNegativeMiner("hardest", 2).mine(c, None, a)
    with pytest.raises(ValueError, match="positives contains inf or nan"):
        HardNegativeMiner("semi_hard", 2).mine(a, c[3:], a)
    with pytest.raises(ValueError, match="rows too long for float32"):
        HardNegativeMiner("hardest", 2).mine(np.full((1, 4), 1e30, np.float32), None, np.eye(4, dtype=np.float32))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_s4_25_fewer_candidates_than_asked_are_masked(strategy):
    a, c = data(4, 3), data(5, 3, seed=1)
    mined = HardNegativeMiner(strategy, 9).mine(a, a, c, anchor_ids=np.arange(4))
    check(mined, cosine(a, c), 9)
    assert (mined.mask.sum(axis=1) == 4).all()
    assert all(i not in row[mask] for i, (row, mask) in enumerate(zip(mined.indices, mined.mask, strict=True)))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_anchor_its_positives_and_its_neighbours_are_left_out(strategy):
    rng = np.random.default_rng(0)
    n, m = 40, 1900
    c = data(m, 6)
    ids = rng.permutation(5000)[:m]
    nodes, positives = ids[:n], ids[rng.integers(0, m, (n, 3))]
    graph = sp.csr_array(rng.random((5000, 5000), np.float32) < 0.1)
    mined = HardNegativeMiner(strategy, 50).mine(c[:n], c[:n], c, anchor_ids=nodes, positive_ids=positives,
                                                 candidate_ids=ids, exclude=graph)
    check(mined, cosine(c[:n], c), 50)
    dense = graph.toarray() != 0
    allowed = ~dense[nodes][:, ids] & (ids != nodes[:, None]) & ~(ids == positives[:, :, None]).any(1)
    assert (~allowed).sum() > 5000
    assert np.take_along_axis(allowed, mined.indices, 1)[mined.mask].all()
    if strategy == "hardest":
        np.testing.assert_array_equal(mined.indices, hardest(cosine(c[:n], c), 50, allowed))


def test_nodes_listed_twice_are_left_out_twice():
    c = data(6, 3)
    ids = [4, 2, 4, 1, 2, 9]
    mined = HardNegativeMiner("hardest", 6).mine(c[:1], None, c, anchor_ids=[4], positive_ids=[2], candidate_ids=ids)
    assert sorted(mined.indices[0]) == [-1, -1, -1, -1, 3, 5]


def test_ids_without_a_candidate_are_no_matter():
    c = data(3, 3)
    mined = HardNegativeMiner("hardest", 3).mine(c, None, c, anchor_ids=[7, 1, 900], positive_ids=[8, 2, 0])
    assert mined.mask.sum(axis=1).tolist() == [3, 1, 2]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_labels(strategy):
    rng = np.random.default_rng(0)
    a, c = data(50, 4), data(3000, 4, seed=1)
    own, labels = rng.integers(-1, 3, 50), rng.integers(-1, 3, 3000)
    mined = check(HardNegativeMiner(strategy, 20).mine(a, a, c, anchor_labels=own, candidate_labels=labels),
                  cosine(a, c), 20)
    allowed = (labels != own[:, None]) | (own[:, None] < 0)
    assert np.take_along_axis(allowed, mined.indices, 1)[mined.mask].all() and mined.mask.any(axis=1).all()
    if strategy == "hardest":
        np.testing.assert_array_equal(mined.indices, hardest(cosine(a, c), 20, allowed))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_max_similarity(strategy):
    a, c = data(30, 4), data(800, 4, seed=1)
    mined = check(HardNegativeMiner(strategy, 15, max_similarity=0.6).mine(a, a, c), cosine(a, c), 15)
    assert mined.mask.all() and (mined.similarities < 0.6).all()
    if strategy == "hardest":
        np.testing.assert_array_equal(mined.indices, hardest(cosine(a, c), 15, cosine(a, c) < 0.6))


def test_a_row_of_zeros_has_cosine_zero():
    c = np.array([[0, 0], [1, 0], [-1, 0]], float)
    mined = HardNegativeMiner("hardest", 3).mine([[1.0, 0.0], [0.0, 0.0]], None, c)
    assert mined.indices.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert mined.similarities.tolist() == [[1, 0, -1], [0, 0, 0]]


# Candidates of every kind

@pytest.mark.parametrize("form", ["fortran", "frozen", "sliced", "big-endian", "float16", "int", "list", "store",
                                  "part"])
def test_candidates_of_every_kind_give_the_same(form, tmp_path):
    x = np.random.default_rng(0).integers(-9, 9, (700, 5))
    a = data(10, 5, dtype=np.float32)
    miner = HardNegativeMiner("weighted", 8)
    ids = None
    plain = miner.mine(a, None, x.astype(np.float32))
    given = x.astype(np.float32)
    if form == "fortran":
        given = np.asfortranarray(given)
    elif form == "frozen":
        given.setflags(write=False)
    elif form == "sliced":
        given = np.repeat(given, 2, axis=0)[::2]
    elif form == "big-endian":
        given = given.astype(">f4")
    elif form == "float16":
        given = given.astype(np.float16)
    elif form == "int":
        given = x
    elif form == "list":
        given = x.tolist()
    else:
        given = FeatureStorage.from_array(given, tmp_path / "x.npy", order=np.random.default_rng(1).permutation(700))
    if form == "part":
        ids = np.arange(699, 200, -2)
        plain = miner.mine(a, None, x[ids].astype(np.float32), candidate_ids=ids)
    assert same(plain, miner.mine(a, None, given, candidate_ids=ids))
    if hasattr(given, "close"):
        given.close()


def test_memory_does_not_hold_all_cosines():
    a, c = data(2000, 4, dtype=np.float32), data(20_000, 4, dtype=np.float32)
    miner = HardNegativeMiner("mixed", 4)
    miner.mine(a[:2], None, c[:2])
    tracemalloc.start()
    miner.mine(a, None, c)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 20_000 * 4 / 10


def test_arguments_are_not_changed():
    a, c = data(5, 3), data(9, 3)
    before = a.copy(), c.copy()
    HardNegativeMiner("hardest", 2).mine(a, a, c)
    assert np.array_equal(a, before[0]) and np.array_equal(c, before[1])


@pytest.mark.parametrize("kwargs, error, text", [
    ({"strategy": "hard"}, ValueError, "strategy must be one of 'hardest', 'semi_hard'"),
    ({"n_negatives": 0}, ValueError, "n_negatives must be at least 1"),
    ({"margin": 0}, ValueError, "margin must be greater"), ({"fill": "easy"}, ValueError, "fill must be one of"),
    ({"alpha": -1}, ValueError, "alpha must be at least 0"),
    ({"max_similarity": 2}, ValueError, "max_similarity must be in"), ({"seed": "x"}, TypeError, "random_state")])
def test_bad_options(kwargs, error, text):
    with pytest.raises(error, match=text):
        HardNegativeMiner(**kwargs)


@pytest.mark.parametrize("kwargs, error, text", [
    ({"anchors": np.zeros((0, 3))}, ValueError, "anchors is empty"),
    ({"candidates": np.zeros((0, 3))}, ValueError, "candidates must have shape"),
    ({"candidates": np.zeros(3)}, ValueError, "candidates must have shape"),
    ({"candidates": np.ones((4, 2))}, ValueError, "equally wide, got 3 and 2"),
    ({"anchor_ids": [0]}, ValueError, "anchor_ids must have one id for each of 2 anchors, got 1"),
    ({"anchor_ids": [0, -1]}, IndexError, "anchor_ids must lie in"),
    ({"positive_ids": [[0], [1], [2]]}, ValueError, r"positive_ids must have shape \(2,\) or \(2, p\), got \(3, 1\)"),
    ({"candidate_ids": [0, 1]}, ValueError, "candidate_ids must have one id for each of 4 candidates, got 2"),
    ({"exclude": np.eye(4)}, ValueError, "exclude has a row for every node: pass anchor_ids"),
    ({"exclude": sp.eye_array(2), "anchor_ids": [0, 2]}, IndexError, r"anchor_ids must lie in 0\.\.1, got 2"),
    ({"anchor_labels": [0, 1]}, ValueError, "pass both anchor_labels and candidate_labels"),
    ({"anchor_labels": [0, 1], "candidate_labels": [0]}, ValueError, r"candidate_labels must have shape \(4,\)"),
    ({"anchor_labels": [0.5, 1], "candidate_labels": [0, 1, 2, 3]}, TypeError, "anchor_labels must be integers"),
    ({"key": -1}, ValueError, "key must be at least 0")])
def test_bad_input(kwargs, error, text):
    arguments = {"anchors": data(2, 3), "positives": None, "candidates": data(4, 3)} | kwargs
    with pytest.raises(error, match=text):
        HardNegativeMiner("hardest", 2).mine(**arguments)


@pytest.mark.parametrize("positives, text", [(None, "pass positives"),
                                             (np.ones((3, 3)), "must have the shape of anchors")])
def test_semi_hard_needs_positives(positives, text):
    with pytest.raises(ValueError, match=text):
        HardNegativeMiner("semi_hard", 2).mine(data(2, 3), positives, data(4, 3))
