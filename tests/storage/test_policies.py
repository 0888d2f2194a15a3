"""Cache policies: each against a plain model of it, and what holds for all."""
from collections import OrderedDict, deque

import numpy as np
import pytest

from gnncy.graph import NeighborSampler
from gnncy.storage.policies import (
    LRU,
    S3FIFO,
    Belady,
    Clock,
    Frequency,
    Policy,
    Sieve,
    Static,
    Trace,
    hottest,
    make_policy,
    simulate,
)

DYNAMIC = ["frequency", "lru", "clock", "sieve", "s3fifo", "belady"]


class PlainLRU:
    def __init__(self, capacity):
        self.capacity, self.ids = capacity, OrderedDict()

    def access(self, node):
        """Whether it was a hit; None or the id that was evicted."""
        if node in self.ids:
            self.ids.move_to_end(node)
            return True, None
        gone = self.ids.popitem(last=False)[0] if len(self.ids) == self.capacity else None
        self.ids[node] = True
        return False, gone


class PlainClock:
    """A ring of slots and a hand, as in the textbooks."""

    def __init__(self, capacity):
        self.capacity, self.ids, self.bits, self.hand = capacity, [], [], 0

    def access(self, node):
        if node in self.ids:
            self.bits[self.ids.index(node)] = True
            return True, None
        if len(self.ids) < self.capacity:
            self.ids.append(node)
            self.bits.append(False)
            return False, None
        while self.bits[self.hand]:
            self.bits[self.hand] = False
            self.hand = (self.hand + 1) % self.capacity
        gone, self.ids[self.hand] = self.ids[self.hand], node
        self.hand = (self.hand + 1) % self.capacity
        return False, gone


class PlainSieve:
    """A list, new ids at its front, as in figure 1 of the paper."""

    def __init__(self, capacity):
        self.capacity, self.ids, self.visited, self.hand = capacity, [], set(), None

    def access(self, node):
        if node in self.ids:
            self.visited.add(node)
            return True, None
        gone = None
        if len(self.ids) == self.capacity:
            i = len(self.ids) - 1 if self.hand is None else self.ids.index(self.hand)
            while self.ids[i] in self.visited:
                self.visited.remove(self.ids[i])
                i = i - 1 if i > 0 else len(self.ids) - 1
            gone = self.ids[i]
            self.hand = self.ids[i - 1] if i > 0 else None
            del self.ids[i]
        self.ids.insert(0, node)
        return False, gone


class PlainS3FIFO:
    """Three queues, as in algorithm 1 of the paper; bits are cleared on the way to the main queue (its section 4)."""

    def __init__(self, capacity):
        self.capacity, self.small_size = capacity, max(capacity // 10, 1)
        self.small, self.main, self.ghosts, self.freq = deque(), deque(), deque(), {}

    def access(self, node):
        if node in self.freq:
            self.freq[node] = min(self.freq[node] + 1, 3)
            return True, None
        gone = None
        while gone is None and len(self.freq) == self.capacity:
            gone = self.evict_small() if self.small and len(self.small) >= self.small_size else self.evict_main()
        if node in self.ghosts:
            self.ghosts.remove(node)
            self.main.append(node)
        else:
            self.small.append(node)
        self.freq[node] = 0
        return False, gone

    def evict_small(self):
        node = self.small.popleft()
        if self.freq[node] > 1:
            self.freq[node] = 0
            self.main.append(node)
            return None
        self.ghosts.append(node)
        if len(self.ghosts) > self.capacity - self.small_size:
            self.ghosts.popleft()
        del self.freq[node]
        return node

    def evict_main(self):
        node = self.main.popleft()
        if self.freq[node] > 0:
            self.freq[node] -= 1
            self.main.append(node)
            return None
        del self.freq[node]
        return node


class PlainFrequency:
    """Counts in arrays by id, least ones found by argmin, which takes the lowest id of equals."""

    def __init__(self, capacity, ghosts=None, n=20_000):
        self.room = (capacity, max(capacity, 1024) if ghosts is None else ghosts)
        self.rows, self.ghosts = np.full((2, n), np.inf)
        self.size = [0, 0]

    def haunt(self, node, count):
        if self.room[1]:
            if self.size[1] == self.room[1]:
                self.ghosts[self.ghosts.argmin()] = np.inf
            else:
                self.size[1] += 1
            self.ghosts[node] = count

    def access(self, node):
        if self.rows[node] < np.inf:
            self.rows[node] += 1
            return True, None
        if self.ghosts[node] < np.inf:
            self.ghosts[node] += 1
        else:
            self.haunt(node, 1.0)
        count = self.ghosts[node] if self.room[1] else 0.0
        gone = None
        if self.size[0] == self.room[0]:
            least = int(self.rows.argmin())
            if (count, node) < (self.rows[least], least):
                return False, None
            gone, evicted = least, self.rows[least]
            self.rows[least] = np.inf
        else:
            self.size[0] += 1
        if self.ghosts[node] < np.inf:
            self.ghosts[node] = np.inf
            self.size[1] -= 1
        if gone is not None:
            self.haunt(gone, evicted)
        self.rows[node] = count
        return False, gone

    def decay(self, factor):
        self.rows *= factor
        self.ghosts *= factor


class PlainBelady:
    """Looks through the future at every decision."""

    def __init__(self, capacity):
        self.capacity, self.future, self.ids = capacity, [], []

    def next(self, node):
        return self.future.index(node) if node in self.future else None

    def access(self, node):
        self.future.remove(node)  # the first
        if node in self.ids:
            self.ids.remove(node)
            self.ids.append(node)
            return True, None
        if len(self.ids) == self.capacity:
            unknown = [i for i in self.ids if self.next(i) is None]
            if unknown:
                gone = unknown[0]
            else:
                gone = max(self.ids, key=self.next)
                if self.next(node) is None or self.next(node) > self.next(gone):
                    return False, None
            self.ids.remove(gone)
        else:
            gone = None
        self.ids.append(node)
        return False, gone


PLAIN = {LRU: PlainLRU, Clock: PlainClock, Sieve: PlainSieve, S3FIFO: PlainS3FIFO}


def draw(rng, n, size):
    """Skewed accesses with bursts, over ids of several sizes."""
    ids = np.where(rng.random(size) < 0.7, rng.zipf(1.2, size) % n, rng.integers(0, n, size))
    ids[size // 2:size // 2 + n // 4] = np.arange(n // 4)[:max(size - size // 2, 0)]
    return ids


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


# The simulator.

def test_simulated_hits_are_those_of_the_policies():
    rng = np.random.default_rng(3)
    batches = np.split(draw(rng, 400, 3000), 30)
    ids, freq = np.concatenate(batches), rng.random(400)
    table = simulate(batches, [5, 80, 1000], scores={"given": freq}, windows=[4, None], decay=0.5, decay_every=7)
    got = {(row["policy"], row["capacity"]): row for row in table}
    assert len(got) == len(table) == 3 * 9
    for row in table:
        assert row["hits"] + row["misses"] == 3000
        assert row["hit_rate"] == row["hits"] / 3000 and row["miss_ratio"] == pytest.approx(1 - row["hit_rate"])
    for capacity in (5, 80, 1000):
        assert got["lru", capacity]["hits"] == LRU(capacity).replay(ids).sum()
        assert got["given", capacity]["hits"] == np.isin(ids, np.argsort(-freq)[:capacity]).sum()
        top = np.argsort(-np.bincount(ids), kind="stable")[:capacity]
        assert got["oracle", capacity]["hits"] == np.isin(ids, top).sum()
        plain, hits = PlainFrequency(capacity, n=400), 0
        for k, batch in enumerate(batches):
            hits += sum(plain.access(i)[0] for i in batch.tolist())
            if k % 7 == 6:
                plain.decay(0.5)
        assert got["frequency", capacity]["hits"] == hits
        plain, hits = PlainBelady(capacity), 0
        plain.future = np.concatenate(batches[:4]).tolist()
        if capacity == 80:
            for k, batch in enumerate(batches):
                hits += sum(plain.access(i)[0] for i in batch.tolist())
                plain.future += np.concatenate([*batches[k + 4:k + 5], []]).astype(int).tolist()
            assert got["belady 4", capacity]["hits"] == hits
        for name in ("frequency", "lru", "clock", "sieve", "s3fifo", "belady 4"):
            assert got["belady", capacity]["hits"] >= got[name, capacity]["hits"]
    assert got["oracle", 1000]["hits"] == 3000


def test_a_trace_of_a_sampler_is_what_the_sampler_draws():
    rng = np.random.default_rng(0)
    a = rng.random((200, 200)) < np.linspace(0.001, 0.2, 200)
    seeds = np.arange(0, 200, 2)
    trace = Trace.sample(a, seeds, (3, 2), 16, seed=5, epoch=1)
    assert len(trace) == 7 and trace.starts[-1] == len(trace.ids) == trace.counts(200).sum()
    sampler = NeighborSampler(a, (3, 2), seed=5)
    drawn = np.concatenate([trace.minibatch(k)[:16] for k in range(7)])
    first = sampler.sample(trace.minibatch(0)[:16], epoch=1, batch=0)
    np.testing.assert_array_equal(trace.minibatch(0), first.nodes)
    assert set(seeds) <= set(drawn) and trace.counts(200).shape == (200,)
    np.testing.assert_array_equal(Trace.of([first]).ids, first.nodes)
    other = Trace.sample(a, seeds, (3, 2), 16, seed=5, epoch=2)
    assert not np.array_equal(other.minibatch(0)[:16], trace.minibatch(0)[:16])
    again = Trace.sample(a, seeds, (3, 2), 16, seed=5, epoch=1)
    np.testing.assert_array_equal(again.ids, trace.ids)
    # In-degree, the number of ways to a node, tells what is hot; a sampled epoch does too.
    table = simulate(trace, [40], ["oracle", "lru"], scores={"degree": a.sum(axis=0), "presampled": other.counts(200)})
    hits = {row["policy"]: row["hits"] for row in table}
    assert hits["lru"] < hits["degree"] <= hits["oracle"] and hits["lru"] < hits["presampled"] <= hits["oracle"]


def test_hottest_takes_the_lowest_of_equals():
    scores = np.random.default_rng(0).integers(0, 4, 50).astype(np.float32)
    want = sorted(range(50), key=lambda i: (-scores[i], i))
    assert hottest(scores, 20).tolist() == want[:20] and hottest(scores, 99).tolist() == want
    with pytest.raises(ValueError, match="inf or nan"):
        hottest([np.nan, 1], 1)


@pytest.mark.parametrize("options, message", [
    (dict(policies=["oracle", "mru"]), "policies must be one of"), (dict(capacities=[-1]), "capacities must be"),
    (dict(windows=[0]), "windows must be"), (dict(decay=0.0), "decay must be"), (dict(decay_every=0), "decay_every"),
    (dict(scores={"x": np.ones(3)}), "entry for each of the 9 ids"), (dict(trace=[]), "trace is empty")])
def test_bad_simulations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(**{"trace": [[1, 2, 8]], "capacities": [2], **options})


def test_bad_traces_are_refused():
    for starts in ([0, 2], [1, 3], [0, 3, 2, 3], []):
        with pytest.raises(ValueError, match="starts must rise"):
            Trace(np.arange(3), np.array(starts, int))
    with pytest.raises(IndexError, match="minibatches must lie in"):
        Trace.of([[-1]])
