"""Miners: against sorting everything, the laws of their draws, and every fault of the reference (S4-21 to S4-26)."""
import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import chisquare

from gnncy import FeatureStorage, _kernels
from gnncy._kernels.graph import hops
from gnncy._threads import working_threads
from gnncy.losses import GraphHardNegativeMiner, HardNegativeMiner, info_nce, mining

STRATEGIES = ["hardest", "semi_hard", "weighted", "mixed", "random"]


def data(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(norm < 1e-12, 0, x / np.maximum(norm, 1e-12))


def cosine(a, c):
    return unit(np.asarray(a, np.float64)) @ unit(np.asarray(c, np.float64)).T


def hardest(s, k, allowed=None):
    """Positions of the k largest of each row, ties by position; -1 where there are fewer."""
    s = np.where(np.ones(s.shape, bool) if allowed is None else allowed, s, -np.inf)
    order = np.argsort(-s, axis=1, kind="stable")[:, :k]
    order[np.take_along_axis(s, order, 1) == -np.inf] = -1
    return np.pad(order, ((0, 0), (0, k - order.shape[1])), constant_values=-1)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name))
               for name in ("indices", "mask", "similarities", "n_hard"))


def check(mined, s, k):
    """What holds for every strategy."""
    assert mined.indices.shape == mined.mask.shape == mined.similarities.shape == (len(s), k)
    assert mined.indices.dtype == np.int64 and mined.mask.dtype == bool
    np.testing.assert_array_equal(mined.indices >= 0, mined.mask)
    assert (mined.indices[~mined.mask] == -1).all() and not mined.similarities[~mined.mask].any()
    assert not (~mined.mask[:, :-1] & mined.mask[:, 1:]).any(), "a row begins with its negatives"
    for row, (chosen, mask) in enumerate(zip(mined.indices, mined.mask, strict=True)):
        assert len(set(chosen[mask])) == mask.sum()
        np.testing.assert_allclose(mined.similarities[row, mask], s[row, chosen[mask]], atol=1e-6)
    return mined


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


def test_s4_24_nan_is_refused_by_name_and_a_kernel_passes_it_over():
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


# In the graph

def distances(graph):
    """Of every pair, by powers of the dense pattern."""
    step = np.asarray(graph.toarray() != 0)
    reach, result = np.eye(len(step), dtype=bool), np.full(step.shape, 99)
    for hop in range(6):
        result[reach & (result == 99)] = hop
        reach = reach @ step
    return result


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(3)
    return sp.csr_array(rng.random((300, 300)) < 0.008)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("nearest, farthest", [(0, 0), (0, 2), (1, 1), (1, 3), (2, 2), (2, 3), (3, 5), (5, 5)])
def test_ring_kernel(graph, nearest, farthest, dtype):
    expected = distances(graph)
    seen, reached = np.zeros(300, np.uint8), np.empty(301, np.int64)
    for start in range(300):
        begin, end = hops.ring(graph.indptr.astype(dtype), graph.indices.astype(dtype), start, nearest, farthest, seen,
                               reached)
        wanted = np.flatnonzero((expected[start] >= nearest) & (expected[start] <= farthest))
        np.testing.assert_array_equal(np.sort(reached[begin:end]), wanted)
    assert not seen.any()


@pytest.mark.parametrize("nearest, farthest", [(1, 1), (2, 2), (2, 3), (3, 4)])
def test_s4_26_ring_negatives_are_those_at_the_distances(graph, nearest, farthest):
    x, nodes = data(300, 5), np.arange(0, 300, 2)
    mined = GraphHardNegativeMiner(graph, n_negatives=6, min_distance=nearest, max_distance=farthest).mine(x, nodes)
    s, d = cosine(x[nodes], x), distances(graph)[nodes]
    np.testing.assert_array_equal(check(mined, s, 6).indices, hardest(s, 6, (d >= nearest) & (d <= farthest)))
    assert mined.mask.any(), "the graph must have such nodes"
    assert not mined.mask.all(), "and anchors with too few"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ring_strategies_labels_and_positives(graph, strategy):
    x, nodes = data(300, 5), np.arange(300)
    rng = np.random.default_rng(0)
    labels, positives = rng.integers(0, 3, 300), rng.integers(0, 300, 300)
    d = distances(graph)
    for i in range(150):  # positives inside the ring, where there is one
        ring = np.flatnonzero((d[i] >= 2) & (d[i] <= 3))
        positives[i] = ring[0] if len(ring) else positives[i]
    miner = GraphHardNegativeMiner(graph, strategy, 5, seed=1)
    mined = miner.mine(x, nodes, positive_ids=positives, labels=labels, key=2)
    check(mined, cosine(x, x), 5)
    allowed = (d >= 2) & (d <= 3) & (labels != labels[:, None]) & (np.arange(300) != positives[:, None])
    assert np.take_along_axis(allowed, mined.indices, 1)[mined.mask].all()
    if strategy in ("hardest", "weighted", "mixed", "random"):
        np.testing.assert_array_equal(mined.mask.sum(axis=1), np.minimum(allowed.sum(axis=1), 5))


def test_s4_26_an_anchors_cost_is_that_of_its_ring():
    # A path of a million nodes: a search that looked at all of them could not do ten thousand anchors in a moment.
    n = 1_000_000
    ends = np.arange(n - 1)
    path = sp.csr_array((np.ones(2 * n - 2, np.float32), (np.r_[ends, ends + 1], np.r_[ends + 1, ends])), shape=(n, n))
    miner = GraphHardNegativeMiner(path, n_negatives=4, min_distance=2, max_distance=3)
    x = np.ones((n, 1), np.float32)
    nodes = np.random.default_rng(0).integers(3, n - 3, 3000)
    mined = miner.mine(x, nodes)
    assert (np.sort(mined.indices - nodes[:, None], axis=1) == [-3, -2, 2, 3]).all()
    tracemalloc.start()
    miner.mine(x, nodes[:50])
    assert tracemalloc.get_traced_memory()[1] < n / 4
    tracemalloc.stop()


def test_ring_threads_and_batch_mates_do_not_matter(graph):
    x, nodes = data(300, 5, dtype=np.float32), np.random.default_rng(0).permutation(300)[:100]
    miner = GraphHardNegativeMiner(graph, "weighted", 4)
    with working_threads(1):
        one = miner.mine(x, nodes, key=3)
    with working_threads(3):
        assert same(one, miner.mine(x, nodes, key=3))
    alone = miner.mine(x, nodes[7:8], key=3)
    np.testing.assert_array_equal(alone.indices[0], one.indices[7])


def test_ring_passes_over_rows_that_are_not_finite(graph):
    x = data(300, 5)
    x[40:60] = np.nan
    mined = GraphHardNegativeMiner(graph, n_negatives=50).mine(x, np.arange(40))
    assert mined.mask.any() and not np.isin(mined.indices[mined.mask], np.arange(40, 60)).any()
    with pytest.raises(ValueError, match="embeddings contains inf or nan"):
        GraphHardNegativeMiner(graph).mine(x, [40])


@pytest.mark.parametrize("kwargs, error, text", [
    ({"min_distance": 0}, ValueError, "min_distance must be at least 1"),
    ({"min_distance": 3, "max_distance": 2}, ValueError, "max_distance must be at least 3, got 2")])
def test_s4_26_empty_rings_are_refused(graph, kwargs, error, text):
    with pytest.raises(error, match=text):
        GraphHardNegativeMiner(graph, **kwargs)


@pytest.mark.parametrize("arguments, kwargs, error, text", [
    ((np.ones((4, 2)), [0]), {}, ValueError, r"embeddings must have a row for each of 300 nodes, got shape \(4, 2\)"),
    ((np.ones((300, 2)), [300]), {}, IndexError, r"anchor_ids must lie in 0\.\.299, got 300"),
    ((np.ones((300, 2)), [0]), {"labels": [1]}, ValueError, r"labels must have shape \(300,\)"),
    ((np.ones((300, 2)), [0]), {"positive_ids": [300]}, IndexError, "positive_ids must lie in")])
def test_bad_ring_input(graph, arguments, kwargs, error, text):
    with pytest.raises(error, match=text):
        GraphHardNegativeMiner(graph).mine(*arguments, **kwargs)
    with pytest.raises(ValueError, match="pass positive_ids"):
        GraphHardNegativeMiner(graph, "semi_hard").mine(np.ones((300, 2)), [0])


# Kernels

@pytest.fixture(params=_kernels.AVAILABLE)
def topk(request):
    return _kernels.at_level(request.param, "topk")


def lists(n, k, dtype):
    return np.full((n, k), -np.inf), np.full((n, k), -1), np.zeros((n, k), dtype)


def frozen(*arrays):
    for array in arrays:
        array.setflags(write=False)
    return arrays


@pytest.mark.parametrize("m", [1, 7, 8, 31, 32, 33, 64, 65, 100])
@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_largest_kernel(topk, m, k, dtype):
    rng = np.random.default_rng([m, k])
    x = rng.integers(-3, 4, (6, 3 * m)).astype(dtype)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.1] = -np.inf
    x[0] = np.nan
    lower, upper = np.full(6, -9, dtype), np.full(6, 3, dtype)
    lower[1] = 0
    scores, chosen, values = lists(6, k, dtype)
    for first in range(0, 3 * m, m):
        topk.largest(*frozen(x[:, first:first + m].copy(), np.arange(first, first + m), lower, upper, np.full(6, -1),
                             np.empty(0, np.int64)), scores, chosen, values)
    wanted = hardest(np.nan_to_num(x, nan=-np.inf), k, (x > lower[:, None]) & (x < 3))
    np.testing.assert_array_equal(chosen, wanted)
    present = wanted >= 0
    np.testing.assert_array_equal(values[present], np.take_along_axis(x, wanted, 1)[present])
    np.testing.assert_array_equal(scores[present], values[present])


def mix64(x):
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def gumbel(key, anchors, ids):
    """The kernel's noise, by its formula."""
    streams = (mix64(np.uint64(key) ^ mix64(anchors.astype(np.uint64))) >> np.uint64(32)).astype(np.uint32)
    x = ids ^ streams[:, None]
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return -np.log(-np.log1p(-(x + 0.5) * 2.0**-32))


@pytest.mark.parametrize("m, k", [(1, 1), (31, 4), (64, 3), (1000, 20), (20_000, 5)])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drawn_kernel(topk, m, k, alpha, dtype):
    rng = np.random.default_rng([m, k])
    x = rng.uniform(-1, 1, (4, m)).astype(dtype)
    x[:, ::9] = np.nan
    x[:, 1::9] = -np.inf
    ids = rng.integers(0, 2**32, m, dtype=np.uint32)
    anchors = np.array([0, 1, 2**40, 5])
    lower, upper = np.full(4, -2, dtype), np.full(4, 0.9, dtype)
    scores, chosen, values = lists(4, k, dtype)
    topk.drawn(*frozen(x, np.arange(m), ids, anchors), 77, alpha, *frozen(lower, upper, np.full(4, -1)),
               np.empty(0, np.int64), scores, chosen, values)
    score = alpha * np.nan_to_num(x.astype(np.float64), neginf=0) + gumbel(77, anchors, ids)
    wanted = hardest(score, k, (x > -2) & (x < dtype(0.9)))
    np.testing.assert_array_equal(chosen, wanted)
    np.testing.assert_allclose(scores[wanted >= 0], np.take_along_axis(score, wanted, 1)[wanted >= 0], rtol=1e-9)


@pytest.mark.parametrize("d", [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cosines_kernel(topk, d, dtype):
    x = data(30, d, dtype=dtype)
    x[5] = 0
    nodes = np.array([5, 0, 29, 7, 7, 3, 1, 2, 4, 6, 8, 9])
    anchor = unit(data(1, d, seed=1, dtype=dtype))[0].astype(dtype)
    out = np.empty(len(nodes), dtype)
    topk.cosines(*frozen(x, nodes, anchor), out)
    np.testing.assert_allclose(out, cosine(anchor[None], x[nodes])[0], atol=1e-6 if dtype == np.float32 else 1e-14)
    assert out[0] == 0
