"""The simulator of cache policies, and traces of accesses."""
import numpy as np
import pytest

from gnncy.graph import NeighborSampler
from gnncy.storage.policies import LRU, Trace, hottest, simulate
from plain_policies import PlainBelady, PlainFrequency, draw


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
