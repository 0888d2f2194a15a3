"""AdaptiveHotset: against a plain model, and the faults of its forerunners by name."""
import math

import numpy as np
import pytest

from gnncy._kernels.storage import hotset as kernels
from gnncy.storage import AdaptiveHotset
from gnncy.storage.policies import LRU, Static


def row(node, version=0):
    return np.array([node, version, -node], np.float32)


class Model:
    """The same promises, said plainly: counts in dictionaries, minima by looking at everything."""

    def __init__(self, capacity, decay, ghosts):
        self.capacity, self.decay, self.most_ghosts = capacity, decay, ghosts
        self.cached, self.ghosts, self.rows = {}, {}, {}

    def haunt(self, node, count):
        if self.most_ghosts:
            if len(self.ghosts) == self.most_ghosts:
                del self.ghosts[min(self.ghosts, key=lambda i: (self.ghosts[i], i))]
            self.ghosts[node] = count

    def access(self, node):
        for known in (self.cached, self.ghosts):
            if node in known:
                known[node] += 1
                return node in self.cached
        self.haunt(node, 1.0)
        return False

    def insert(self, node, value):
        if node not in self.cached:
            count = self.ghosts.get(node, 0.0)
            if len(self.cached) == self.capacity:
                least = min(self.cached, key=lambda i: (self.cached[i], i))
                if (count, node) < (self.cached[least], least):
                    return False
                self.ghosts.pop(node, None)
                self.haunt(least, self.cached.pop(least))
                del self.rows[least]
            self.ghosts.pop(node, None)
            self.cached[node] = count
        self.rows[node] = value
        return True


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_behaves_as_the_plain_model(seed, decay):
    rng = np.random.default_rng(seed)
    capacity, ghosts, n = int(rng.integers(1, 9)), int(rng.integers(0, 9)), 30
    hot, model = AdaptiveHotset(capacity, 3, decay=decay, ghosts=ghosts), Model(capacity, decay, ghosts)
    for step in range(150):
        ids = rng.zipf(1.3, rng.integers(1, 6)) % n
        action = rng.integers(4)
        if action == 0:
            hot.record_access(ids)
            for i in ids:
                model.access(int(i))
        elif action == 1:
            out = np.zeros((len(ids), 3), np.float32)
            mask = hot.lookup(ids, out)
            assert mask.tolist() == [model.access(int(i)) for i in ids]
            for i, hit, got in zip(ids, mask, out, strict=True):
                np.testing.assert_array_equal(got, model.rows[int(i)] if hit else 0)
        elif action == 2:
            rows = np.array([row(i, step) for i in ids])
            assert hot.insert(ids, rows).tolist() == [model.insert(int(i), r) for i, r in zip(ids, rows, strict=True)]
        else:
            hot.decay_counts()
            for known in (model.cached, model.ghosts):
                for i in known:
                    known[i] *= decay  # powers of two: exact
        assert hot.counts() == pytest.approx({**model.cached, **model.ghosts}, rel=1e-12)
        assert len(hot) == len(model.cached)
        assert np.flatnonzero(hot.contains(np.arange(n))).tolist() == sorted(model.cached)


def test_capacity_three_evicts_the_least_used():
    hot = AdaptiveHotset(3, 3)
    hot.insert([1, 2, 3], [row(1), row(2), row(3)])
    hot.record_access([1, 1, 3, 4, 4])
    assert hot.insert([4], [row(4)]).all()
    assert [i in hot for i in (1, 2, 3, 4)] == [True, False, True, True]


def test_s0_18_eviction_is_not_a_scan():
    def steps(capacity):
        """Heap levels and slots gone through, for each of many accesses and evictions."""
        hot = AdaptiveHotset(capacity, 1)
        hot.insert(np.arange(capacity), np.zeros((capacity, 1)))
        rng, table = np.random.default_rng(0), hot.policy._table
        before, evicted = table.steps, table.evictions
        for _ in range(20):
            ids = rng.integers(0, 3 * capacity, capacity // 4)
            hot.record_access(ids)
            hot.insert(ids, np.zeros((len(ids), 1)))
            hot.decay_counts()
        assert table.evictions - evicted > capacity / 2
        return (table.steps - before) / (20 * (capacity // 4))
    few, many = steps(4000), steps(128_000)
    assert many < 150 and many < 1.5 * few + 10  # a scan would be of 128,000 for each eviction


def test_s0_19_a_full_cache_adopts_new_hot_rows():
    hot = AdaptiveHotset(10, 3, decay=0.5)
    old, new = np.arange(10), np.arange(50, 60)
    hot.record_access(np.repeat(old, 8))
    hot.insert(old, [row(i) for i in old])
    for _ in range(6):
        out = np.zeros((10, 3), np.float32)
        hit = hot.lookup(new, out)
        hot.insert(new[~hit], np.array([row(i) for i in new])[~hit])
        hot.decay_counts()
    assert hot.contains(new).all() and not hot.contains(old).any()


def test_s0_19_eviction_is_reproducible_and_takes_the_lowest_id_of_equals():
    for ids in ([4, 9, 2], [9, 2, 4], [2, 4, 9]):
        hot = AdaptiveHotset(3, 3)
        hot.insert(ids, [row(i) for i in ids])
        hot.record_access([4, 9, 2, 7])
        hot.insert([7], [row(7)])
        assert [i for i in range(10) if i in hot] == [4, 7, 9]


def test_s0_20_decay_is_geometric():
    hot = AdaptiveHotset(2, 3, decay=0.95)
    hot.record_access([5, 6, 6])
    for _ in range(40):
        hot.decay_counts()
    assert hot.counts() == pytest.approx({5: 0.95**40, 6: 2 * 0.95**40}, rel=1e-12)
    hot.record_access([5])
    assert hot.counts()[5] == pytest.approx(1 + 0.95**40, rel=1e-12)


def test_decay_for_ever_keeps_the_order():
    hot = AdaptiveHotset(3, 3, decay=0.01)
    hot.insert([1, 2, 3], [row(1), row(2), row(3)])
    for age in range(1, 500):
        hot.record_access([1, 1, 2])
        hot.decay_counts()
        counts = hot.counts()
        assert all(math.isfinite(c) for c in counts.values()) and counts[1] > counts[2] > counts[3] == 0, age
    for _ in range(500):  # counts vanish, and are then ordered by id
        hot.decay_counts()
    assert hot.counts() == {1: 0, 2: 0, 3: 0}
    hot.record_access([1, 8])
    hot.insert([8], [row(8)])
    assert [i for i in range(10) if i in hot] == [1, 3, 8]


def test_s0_21_counts_are_bounded():
    hot = AdaptiveHotset(10, 3, ghosts=100)
    before = hot.nbytes
    hot.record_access(np.arange(50_000))
    assert len(hot.counts()) == 100 and hot.nbytes == before
    hot.record_access([7] * 3)
    hot.record_access(np.arange(100, 199))
    assert hot.counts()[7] == 3  # the greatest counts are remembered longest


def test_s0_22_capacity_zero_is_off():
    hot = AdaptiveHotset(0, 3)
    assert not hot.insert([1, 2], [row(1), row(2)]).any() and len(hot) == 0
    hot.record_access([1, 1])
    hot.decay_counts()
    out = np.full((1, 3), 9, np.float32)
    assert not hot.lookup([1], out).any() and (out == 9).all() and 1 not in hot
    assert hot.lookups == 1 and hot.hit_rate == 0 and hot.counts() == {}
    hot.load_state_dict(hot.state_dict())


def test_s0_23_hit_rate_is_per_epoch():
    hot = AdaptiveHotset(2, 3)
    out = np.zeros((2, 3), np.float32)
    assert hot.hit_rate == 0
    hot.lookup([1, 2], out)
    hot.insert([1, 2], [row(1), row(2)])
    hot.lookup([1, 2], out)
    assert (hot.hits, hot.lookups, hot.hit_rate) == (2, 4, 0.5)
    hot.start_epoch()
    assert hot.hit_rate == 0 and len(hot) == 2
    hot.lookup([2, 1], out)
    assert hot.hit_rate == 1 and np.array_equal(out, [row(2), row(1)])


def test_a_row_of_a_cached_id_is_replaced():
    hot = AdaptiveHotset(2, 3, dtype=np.float64)
    hot.insert([1], [row(1)])
    hot.insert([1], [row(1, 5)])
    out = np.zeros((1, 3))
    hot.lookup([1], out)
    assert np.array_equal(out[0], row(1, 5)) and len(hot) == 1


def test_a_restored_state_goes_on_as_before():
    rng = np.random.default_rng(3)
    hot = AdaptiveHotset(20, 3, ghosts=30)
    def work(hot, seed):
        rng, masks = np.random.default_rng(seed), []
        for _ in range(30):
            ids = rng.zipf(1.2, 40) % 200
            out = np.zeros((40, 3), np.float32)
            hit = hot.lookup(ids, out)
            masks += [hit, out, hot.insert(ids[~hit], np.array([row(i) for i in ids[~hit]]).reshape(-1, 3))]
            hot.decay_counts()
        return masks
    work(hot, 1)
    other = AdaptiveHotset(20, 3, ghosts=30)
    other.record_access(rng.integers(0, 99, 99))
    other.load_state_dict(hot.state_dict())
    assert other.counts() == hot.counts() and other.hit_rate == hot.hit_rate
    for a, b in zip(work(hot, 2), work(other, 2), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("change", [dict(capacity=3), dict(dim=4), dict(dtype="float64"), dict(version=1),
                                    dict(version=None)])
def test_a_state_of_another_hotset_is_refused(change):
    state = AdaptiveHotset(2, 3).state_dict()
    with pytest.raises(ValueError, match=f"state has {next(iter(change))}="):
        AdaptiveHotset(2, 3).load_state_dict({**state, **change})


def test_a_damaged_state_is_refused_and_changes_nothing():
    hot = AdaptiveHotset(2, 3)
    hot.insert([1, 2], [row(1), row(2)])
    state = hot.state_dict()
    for change in (dict(ids=[1, 1]), dict(counts=[1.0]), dict(rows=np.zeros((1, 3))), dict(ghost_ids=[1],
                                                                                           ghost_counts=[0.0]),
                   dict(ids=[1, 2, 3], counts=[1.0] * 3, rows=np.zeros((3, 3)))):
        with pytest.raises(ValueError, match="damaged"):
            hot.load_state_dict({**state, **change})
    assert hot.contains([1, 2]).all()


@pytest.mark.parametrize("policy", ["frequency", "lru", "clock", "sieve", "s3fifo", "belady"])
def test_rows_follow_their_ids_whatever_the_policy(policy):
    rng = np.random.default_rng(1)
    hot, x = AdaptiveHotset(17, 3, policy=policy), np.array([row(i) for i in range(100)])
    assert hot.is_empty and repr(hot) == f"AdaptiveHotset(0 of 17 rows of 3, {policy}, hit rate 0.000)"
    for step in range(60):
        ids = rng.zipf(1.3, 12) % 100
        out = np.zeros((12, 3), np.float32)
        hit = hot.lookup(ids, out)
        np.testing.assert_array_equal(out, np.where(hit[:, None], x[ids], 0))
        hot.insert(ids[~hit], x[ids[~hit]])
        if step % 10 == 9:
            assert hot.evict_cold() is not None
        known, rows = hot.resident()
        np.testing.assert_array_equal(rows, x[known])
        assert len(known) == len(hot) <= 17 and not rows.flags.writeable and not hot.is_empty
        if step == 40:  # go on in another
            state, hot = hot.state_dict(), AdaptiveHotset(17, 3, policy=policy)
            hot.load_state_dict(state)


def test_resident_rows_are_not_copied():
    hot = AdaptiveHotset(5, 3)
    hot.insert([4, 9, 2], [row(4), row(9), row(2)])
    ids, rows = hot.resident()
    assert ids.tolist() == [4, 9, 2] and np.shares_memory(rows, hot.resident()[1])
    hot.insert(9, row(9, 1))
    assert np.array_equal(rows[1], row(9, 1))
    assert AdaptiveHotset(0, 3).resident()[1].shape == (0, 3)


def test_resident_rows_are_candidates_for_hard_negatives():
    from gnncy.losses import HardNegativeMiner
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    hot = AdaptiveHotset(20, 8)
    hot.insert(np.arange(30, 10, -1), x[30:10:-1])
    ids, rows = hot.resident()
    mined = HardNegativeMiner("hardest", 3).mine(x[:5], None, rows, anchor_ids=np.arange(5), candidate_ids=ids)
    cosines = (x[:5] @ x[11:31].T) / np.linalg.norm(x[11:31], axis=1)
    np.testing.assert_array_equal(ids[mined.indices], 11 + np.argsort(-cosines, axis=1)[:, :3])


def test_one_row_at_a_time():
    hot = AdaptiveHotset(2, 3)
    assert hot.get(5) is None and hot.insert(5, row(5)).tolist() == [True]
    assert np.array_equal(hot.get(5), row(5)) and (hot.hits, hot.lookups) == (1, 2)
    hot.insert(3, row(3))
    hot.record_access(3)
    hot.record_access(3)
    hot.record_access(3)
    assert hot.evict_cold() == 5 and hot.evict_cold() == 3 and hot.evict_cold() is None and hot.is_empty


def test_s0_23_statistics_are_per_epoch():
    hot, out = AdaptiveHotset(2, 1, policy="lru"), np.zeros((3, 1), np.float32)
    hot.lookup([1, 2, 3], out)
    hot.insert([1, 2, 3], out)
    hot.lookup([1, 2, 3], out)
    hot.insert([3], out[:1])
    state = hot.state_dict()
    first = hot.start_epoch()
    assert (first.lookups, first.hits, first.admissions, first.evictions) == (6, 2, 3, 1)
    assert first.hit_rate == pytest.approx(1 / 3) and hot.statistics.lookups == 0 and hot.hit_rate == 0
    hot.load_state_dict(state)
    assert hot.statistics == first


def test_a_policy_object():
    static = Static([7, 3])
    hot = AdaptiveHotset(2, 3, policy=static)
    assert hot.insert([1, 3, 7], [row(1), row(3), row(7)]).tolist() == [False, True, True]
    assert hot.policy is static and hot.resident()[0].tolist() == [7, 3] and hot.counts() == {}
    for policy, options, message in ((Static([1]), {}, "capacity 1, not 2"), (LRU(2), {"ghosts": 3}, "ghosts"),
                                     ("lru", {"ghosts": 3}, "ghosts"), ("mru", {}, "policy must be one of"),
                                     (static, {}, "must be empty")):
        with pytest.raises(ValueError, match=message):
            AdaptiveHotset(2, 3, policy=policy, **options)


def test_bad_arguments():
    for options, error in ((dict(capacity=-1), ValueError), (dict(capacity=1.5), TypeError), (dict(dim=0), ValueError),
                           (dict(decay=0.0), ValueError), (dict(decay=1.5), ValueError), (dict(decay=np.nan),
                                                                                          ValueError),
                           (dict(dtype=np.int32), ValueError), (dict(ghosts=-1), ValueError)):
        with pytest.raises(error, match=next(iter(options))):
            AdaptiveHotset(**{"capacity": 2, "dim": 3, **options})
    hot = AdaptiveHotset(2, 3)
    for node in (-1, 2**32 - 1):
        with pytest.raises(IndexError, match="ids must lie in"):
            hot.record_access([node])
    with pytest.raises(ValueError, match="rows must have shape"):
        hot.insert([1], np.zeros((1, 4)))
    for out in (np.zeros((2, 3)), np.zeros((1, 3), np.float32), np.zeros((3, 2), np.float32).T, [[0.0] * 3] * 2):
        with pytest.raises(ValueError, match="out must be"):
            hot.lookup([1, 2], out)


@pytest.mark.parametrize("seed", range(5))
def test_numbering_of_distinct_ids(seed):
    rng = np.random.default_rng(seed)
    keys, values, unique = np.full(256, -1, np.int64), np.zeros(256, np.int32), np.zeros(100, np.int64)
    seen: list[int] = []
    for _ in range(40):
        ids = rng.integers(0, 1 << 60 if seed else 150, rng.integers(1, 30))
        ids.flags.writeable = False
        local = np.zeros(len(ids), np.int32)
        before = keys.copy()
        want = list(dict.fromkeys([*seen, *ids.tolist()]))
        count = kernels.number(ids, len(seen), keys, values, unique, local)
        if len(want) > 100:
            assert count == -1
            np.testing.assert_array_equal(keys, before)
        else:
            seen = want
            assert count == len(seen) and unique[:count].tolist() == seen
            assert [seen[i] for i in local] == ids.tolist()
    assert len(seen) > 50
