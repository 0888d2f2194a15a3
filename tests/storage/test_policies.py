"""Cache policies: each against a plain model of it, and what holds for all."""
import numpy as np
import pytest

from gnncy.storage.policies import LRU, Belady, Frequency, Policy, Static, make_policy
from plain_policies import PLAIN, PlainBelady, PlainFrequency, draw

DYNAMIC = ["frequency", "lru", "clock", "sieve", "s3fifo", "belady"]


def agree(policy, plain, ids):
    """The same hits, and the same ids go, one access after the other."""
    for k, node in enumerate(ids.tolist()):
        before = policy.evictions
        hit, gone = plain.access(node)
        assert policy.replay([node]).tolist() == [hit], k
        assert policy.evictions - before == (gone is not None), k
        if gone is not None:
            assert policy.find([gone])[0] == -1, k


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("kind", PLAIN)
def test_queues_do_as_their_plain_models(kind, seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 40))
    agree(kind(capacity), PLAIN[kind](capacity), draw(rng, int(rng.integers(2, 5 * capacity + 3)), 500))


@pytest.mark.parametrize("seed", range(15))
def test_frequency_does_as_its_plain_model(seed):
    rng = np.random.default_rng(seed)
    capacity, ghosts = int(rng.integers(1, 30)), int(rng.integers(0, 40))
    policy, plain = Frequency(capacity, ghosts=ghosts), PlainFrequency(capacity, ghosts, n=400)
    for factor in rng.choice([1.0, 0.5, 0.25], 6):
        agree(policy, plain, draw(rng, int(rng.integers(2, 120)), 100))
        policy.decay(factor)
        plain.decay(factor)


@pytest.mark.parametrize("capacity, ghosts", [(1500, None), (3000, 2000), (2000, 0)])
def test_frequency_keeps_only_a_part_in_order_but_evicts_the_same(capacity, ghosts):
    rng = np.random.default_rng(capacity)
    policy, plain = Frequency(capacity, ghosts=ghosts), PlainFrequency(capacity, ghosts)
    for _ in range(15):
        ids = np.where(rng.random(2000) < 0.5, rng.zipf(1.1, 2000) % 20_000, rng.integers(0, 8000, 2000))
        np.testing.assert_array_equal(policy.replay(ids), [plain.access(i)[0] for i in ids.tolist()])
        np.testing.assert_array_equal(np.sort(policy.resident()[0]), np.flatnonzero(plain.rows < np.inf))
        state = policy.state_dict()
        np.testing.assert_array_equal(state["counts"] / state["unit"], plain.rows[plain.rows < np.inf])
        np.testing.assert_array_equal(state["ghost_ids"], np.flatnonzero(plain.ghosts < np.inf))
        policy.decay(0.5)
        plain.decay(0.5)
    assert policy.evictions > capacity / 2


@pytest.mark.parametrize("window", [1, 2, 5, 100])
@pytest.mark.parametrize("seed", range(8))
def test_belady_does_as_its_plain_model(window, seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 12))
    policy, plain = Belady(capacity), PlainBelady(capacity)
    batches = np.split(draw(rng, int(rng.integers(2, 40)), 300), 30)
    for ids in batches[:window]:
        policy.foresee(ids)
        plain.future += ids.tolist()
    for k, ids in enumerate(batches):
        agree(policy, plain, ids)
        assert sorted(policy.resident()[0]) == sorted(plain.ids)
        for ahead in batches[k + window:k + window + 1]:
            policy.foresee(ahead)
            plain.future += ahead.tolist()
    assert policy._table.known == 0


def best(ids, capacity):
    """The most hits that any sequence of decisions has, by going through all of them."""
    states = {frozenset(): 0}
    for node in ids:
        after = {}
        for cached, hits in states.items():
            if node in cached:
                choices = [(cached, hits + 1)]
            else:
                choices = [(cached, hits), *[(cached - {gone} | {node}, hits) for gone in cached]]
                if len(cached) < capacity:
                    choices.append((cached | {node}, hits))
            for state, value in choices:
                after[state] = max(after.get(state, 0), value)
        states = after
    return max(states.values())


@pytest.mark.parametrize("seed", range(10))
def test_belady_is_optimal(seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 7, 40)
    belady = Belady(3)
    belady.foresee(ids)
    assert belady.replay(ids).sum() == best(ids.tolist(), 3)


@pytest.mark.parametrize("seed", range(6))
def test_belady_is_never_worse_than_the_others(seed):
    rng = np.random.default_rng(seed)
    ids = draw(rng, 300, 4000)
    for capacity in (1, 20, 100, 299, 500):
        belady = Belady(capacity)
        belady.foresee(ids)
        most = belady.replay(ids).sum()
        assert most == len(ids) - len(np.unique(ids)) if capacity >= 300 else most > 0
        for other in (*(make_policy(name, capacity) for name in DYNAMIC[:-1]), Static(np.arange(capacity))):
            assert other.replay(ids).sum() <= most, other


@pytest.mark.parametrize("name", DYNAMIC)
def test_capacity_is_kept_and_everything_that_fits_is_kept(name):
    rng = np.random.default_rng(0)
    policy = make_policy(name, 30)
    for _ in range(40):
        ids = draw(rng, 200, 50)
        if name == "belady":
            policy.foresee(ids)
        before = len(policy)
        hit, evicted = policy.replay(ids), policy.evictions
        assert len(policy) <= 30 and hit.dtype == bool
        known, slots = policy.resident()
        assert len(np.unique(slots)) == len(np.unique(known)) == len(policy) and slots.max() < 30
        np.testing.assert_array_equal(policy.find(known), slots)
        assert len(policy) >= min(before + 1, 30) or evicted
    everything = make_policy(name, 500)
    assert everything.replay(np.arange(500)).sum() == 0 and everything.replay(np.arange(500)).all()
    assert everything.evictions == 0


@pytest.mark.parametrize("name", DYNAMIC)
def test_s0_22_capacity_zero_caches_nothing(name):
    policy = make_policy(name, 0)
    if name == "belady":
        policy.foresee([1, 1, 2])
    assert not policy.replay([1, 1, 2]).any()
    assert (policy.admit([1, 2]) == -1).all() and (policy.lookup([1]) == -1).all()
    assert len(policy) == 0 and policy.evict() is None and policy.evictions == 0


def test_s0_21_nothing_grows_for_ids_never_cached():
    for name in DYNAMIC:
        policy = make_policy(name, 10)
        before = policy.nbytes
        policy.lookup(np.arange(20_000))
        policy.replay(np.arange(20_000))
        assert policy.nbytes == before and len(policy) <= 10, name


@pytest.mark.parametrize("name", DYNAMIC)
def test_s0_19_new_hot_ids_are_adopted(name):
    policy = make_policy(name, 10)
    old, new = np.repeat(np.arange(10), 8), np.tile(np.arange(50, 55), 12)
    if name == "belady":
        policy.foresee(np.concatenate([old, new]))
    policy.replay(old)
    for rest in np.split(new, 12):
        policy.replay(rest)
        policy.decay(0.5)
    assert policy.replay(np.arange(50, 55)).all()


@pytest.mark.parametrize("name", DYNAMIC)
def test_batches_of_any_size_give_the_same(name):
    rng = np.random.default_rng(2)
    ids = draw(rng, 3000, 6000)
    ids.flags.writeable = False
    whole, parts = make_policy(name, 400), make_policy(name, 400)
    for policy in (whole, parts):
        if name == "belady":
            policy.foresee(ids)
    hit = whole.replay(ids)
    cuts = np.sort(rng.integers(0, 6000, 60))
    np.testing.assert_array_equal(hit, np.concatenate([parts.replay(x) for x in np.split(ids, cuts)]))
    np.testing.assert_array_equal(hit, again(name, ids.astype(">i4")))
    for a, b in zip(whole.resident(), parts.resident(), strict=True):
        np.testing.assert_array_equal(a, b)


def again(name, ids):
    """Hits, accesses and offers being calls of their own."""
    policy = make_policy(name, 400)
    if name == "belady":
        policy.foresee(ids)
    hit = np.empty(len(ids), bool)
    for k in range(len(ids)):
        hit[k] = policy.lookup(ids[k:k + 1])[0] >= 0
        if not hit[k]:
            policy.admit(ids[k:k + 1])
    return hit


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("capacity", [1, 7, 60, 1200])
def test_a_restored_state_goes_on_as_before(name, capacity):
    rng = np.random.default_rng(capacity)
    ids = draw(rng, 5 * capacity, 12 * capacity)
    later = draw(rng, 5 * capacity, 12 * capacity)
    policy, other = make_policy(name, capacity), make_policy(name, capacity)
    for one in (policy, other):
        if name == "belady":
            one.foresee(ids)
    if name == "belady":
        policy.foresee(later[:len(later) // 2])
    policy.replay(ids)
    policy.decay(0.7)
    policy.evict()
    other.replay(ids[::-1])
    state = policy.state_dict()
    slots = other.load_state_dict({key: np.array(value) if isinstance(value, list) else value
                                   for key, value in state.items()}, rows=len(policy))
    np.testing.assert_array_equal(slots, other.find(state["ids"][:len(policy)]))
    assert sorted(other.resident()[0]) == sorted(policy.resident()[0]) and (slots >= 0).all()
    if name == "belady":
        for one in (policy, other):
            one.foresee(later[len(later) // 2:])
    np.testing.assert_array_equal(policy.replay(later), other.replay(later))
    assert sorted(other.resident()[0]) == sorted(policy.resident()[0])
    assert [policy.evict() for _ in range(capacity)] == [other.evict() for _ in range(capacity)]
    assert len(policy) == 0 and policy.evict() is None


@pytest.mark.parametrize("name", DYNAMIC)
def test_damaged_states_are_refused_and_change_nothing(name):
    policy = make_policy(name, 4)
    policy.replay([1, 2, 3, 4, 5, 5, 1])
    state, known = policy.state_dict(), sorted(policy.resident()[0])
    ids = state["ids"]
    for change in (dict(capacity=5), dict(policy="fifo"), dict(ids=np.r_[ids[0], ids[:-1]]), dict(ids=ids - 10),
                   dict(ids=np.r_[ids, 90:96]), dict(ids=ids * 1.5), dict(ids=None)):
        with pytest.raises(ValueError, match="state"):
            policy.load_state_dict({**state, **change})
    for key in set(state) - {"policy", "capacity"}:
        with pytest.raises(ValueError, match="state"):
            policy.load_state_dict({k: v for k, v in state.items() if k != key})
    with pytest.raises(ValueError, match="its rows must be"):
        policy.load_state_dict(state, rows=9)
    assert sorted(policy.resident()[0]) == known


@pytest.mark.parametrize("name, change", [
    ("frequency", dict(ghosts=3)), ("frequency", dict(counts=np.array([1.0, np.nan, 1, 1]))),
    ("frequency", dict(unit=0.0)), ("lru", dict(lengths=np.array([3, 0, 0]))), ("sieve", dict(hand=4)),
    ("s3fifo", dict(lengths=np.array([5, -1, 1]))), ("belady", dict(used=np.zeros(1))),
    ("belady", dict(upcoming=np.array([-1])))])
def test_other_damage_is_refused(name, change):
    policy = make_policy(name, 4)
    policy.replay([1, 2, 3, 4])
    with pytest.raises(ValueError, match="state|unit|upcoming"):
        policy.load_state_dict({**policy.state_dict(), **change})


def test_static_keeps_what_it_was_given():
    static = Static([5, 2, 9])
    assert static.capacity == 3 and len(static) == 0
    assert not static.replay([2, 7]).any() and static.replay([2, 7, 5]).tolist() == [True, False, False]
    ids, slots = static.resident()
    assert ids.tolist() == [5, 2] and slots.tolist() == [0, 1]
    static.admit([9])
    other = Static([5, 2, 9])
    other.load_state_dict(static.state_dict())
    assert [other.evict() for _ in range(4)] == [9, 2, 5, None]
    with pytest.raises(ValueError, match="other ids"):
        Static([5, 2, 8]).load_state_dict(static.state_dict())
    with pytest.raises(ValueError, match="distinct"):
        Static([1, 1])
    assert not Static([]).replay([1]).any()


def test_belady_forgets_and_takes_accesses_that_it_did_not_foresee():
    belady = Belady(2)
    belady.foresee([1, 2, 3, 1, 2])
    assert not belady.replay([1, 2, 8, 1, 9])[[0, 1, 2, 4]].any()
    belady.forget()
    assert belady._table.known == 0 and len(belady) == 2
    belady.foresee([4, 4])
    assert belady.replay([4, 4]).tolist() == [False, True]


@pytest.mark.parametrize("name", DYNAMIC)
def test_ids_out_of_range_are_refused(name):
    policy = make_policy(name, 3)
    calls = [policy.lookup, policy.find, policy.admit, policy.replay]
    for call in [*calls, policy.foresee] if name == "belady" else calls:
        for ids in ([-1], [2**32 - 1], [0, 2**40]):
            with pytest.raises(IndexError, match="ids must lie in"):
                call(ids)
        with pytest.raises(TypeError, match="ids must be integers"):
            call([0.5])
    largest = 2**32 - 2
    assert policy.admit([largest])[0] >= 0 and policy.find([largest])[0] >= 0 and policy.evict() == largest


def test_bad_arguments():
    with pytest.raises(ValueError, match="capacity must be"):
        LRU(-1)
    with pytest.raises(ValueError, match="ghosts must be"):
        Frequency(3, ghosts=-1)
    for factor in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="factor must be"):
            Frequency(3).decay(factor)
    with pytest.raises(ValueError, match="policy must be one of"):
        make_policy("mru", 3)
    assert isinstance(make_policy("lru", 3), Policy)
