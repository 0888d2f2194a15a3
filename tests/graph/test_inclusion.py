"""Inclusion probabilities against enumeration where they are exact, and against the sampler where nearly so."""
from collections import defaultdict
from itertools import combinations, product

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy._threads import working_threads
from gnncy.graph import NeighborSampler, inclusion_probabilities


def tree(parents, directed=""):
    """Node i + 1 hangs on parents[i]; arcs go both ways, or only "up" or "down"."""
    child, parent = np.arange(1, len(parents) + 1), np.array(parents)
    pairs = {"": [(child, parent), (parent, child)], "up": [(child, parent)], "down": [(parent, child)]}[directed]
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return sp.csr_array((np.ones(len(rows), np.float32), (rows, columns)), shape=2 * (len(parents) + 1,))


def enumerated(graph, starts, fanouts, replace=False):
    """The exact probabilities for seeds that are independent, ``starts[v]`` the probability of v."""
    neighbours = [graph.indices[graph.indptr[v]:graph.indptr[v + 1]].tolist() for v in range(graph.shape[0])]
    sets = {}
    for chosen in product([False, True], repeat=len(starts)):
        weight = np.prod([p if c else 1 - p for c, p in zip(chosen, starts, strict=True)])
        if weight:
            sets[frozenset(np.flatnonzero(chosen).tolist())] = weight
    for k in fanouts:
        after = defaultdict(float)
        for start, weight in sets.items():
            reached = {start: weight}
            for u in start:
                take = len(neighbours[u]) if k < 0 else min(k, len(neighbours[u]))
                draws = list(product(neighbours[u], repeat=k)) if replace and neighbours[u] \
                    else list(combinations(neighbours[u], take))
                grown = defaultdict(float)
                for nodes, p in reached.items():
                    for draw in draws:
                        grown[nodes | set(draw)] += p / len(draws)
                reached = grown
            for nodes, p in reached.items():
                after[nodes] += p
        sets = after
    return np.array([sum(p for nodes, p in sets.items() if v in nodes) for v in range(graph.shape[0])])


@pytest.mark.parametrize("directed", ["", "up", "down"])
@pytest.mark.parametrize("fanouts", [(1,), (2, 1), (1, 1, 1), (-1, 2, 1), (3, -1)])
@pytest.mark.parametrize("parents", [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1, 2], [0, 1, 1, 1, 0]])
def test_trees_are_exact(parents, fanouts, directed):
    graph = tree(parents, directed)
    n = graph.shape[0]
    got = inclusion_probabilities(graph, np.arange(n), fanouts, 2)
    np.testing.assert_allclose(got, enumerated(graph, np.full(n, 2 / n), fanouts), rtol=2e-6)


@pytest.mark.parametrize("replace", [False, True])
def test_skewed_seeds_and_replacement_are_exact_on_trees(replace):
    graph = tree([0, 0, 1, 1, 1])
    weights = [4.0, 1.0, 0.0, 3.0]
    got = inclusion_probabilities(graph, [0, 2, 3, 5], (2, 2), 1, weights=weights, replace=replace)
    starts = np.zeros(6)
    starts[[0, 2, 3, 5]] = np.array(weights) / 8
    np.testing.assert_allclose(got, enumerated(graph, starts, (2, 2), replace), rtol=2e-6)


def test_a_cycle_is_one_seed_exact_and_more_an_upper_bound():
    ring = sp.csr_array(np.roll(np.eye(5), 1, axis=1) + np.roll(np.eye(5), -1, axis=1))
    one = np.eye(5)[0]
    np.testing.assert_allclose(inclusion_probabilities(ring, [0], (1, 1), 1), enumerated(ring, one, (1, 1)), rtol=2e-6)
    exact = enumerated(ring, np.full(5, 0.4), (1, 1, 1))
    got = inclusion_probabilities(ring, np.arange(5), (1, 1, 1), 2)
    assert (got >= exact - 1e-6).all() and (got <= 1.05 * exact).all()


def drawn(graph, seeds, fanouts, batch_size, epochs):
    """Times that each node lay in a minibatch, and the number of minibatches."""
    sampler, counts, batches = NeighborSampler(graph, fanouts, seed=5), np.zeros(graph.shape[0]), 0
    rng = np.random.default_rng(0)
    for epoch in range(epochs):
        order = rng.permutation(seeds)
        for batch, start in enumerate(range(0, len(seeds) - batch_size + 1, batch_size)):
            counts[sampler.sample(order[start:start + batch_size], epoch=epoch, batch=batch).nodes] += 1
            batches += 1
    return counts, batches


def forest(n, seed):
    """A random tree of unbounded degrees."""
    rng = np.random.default_rng(seed)
    return tree((rng.random(n - 1) ** 2 * np.arange(1, n)).astype(int))


@pytest.mark.parametrize("fanouts", [(3, 2), (2, 2, 2), (-1, 1)])
def test_the_sampler_draws_with_these_probabilities(fanouts):
    graph = forest(3000, seed=1)
    seeds = np.random.default_rng(2).choice(3000, 1000, replace=False)
    p = inclusion_probabilities(graph, seeds, fanouts, 5).astype(float)
    counts, batches = drawn(graph, seeds, fanouts, 5, epochs=20)
    errors = (counts - batches * p) / np.sqrt(np.maximum(batches * p * (1 - p), 0.25))
    assert batches == 4000 and p.min() < 0.05 and p.max() > 0.2
    assert np.sqrt((errors ** 2).mean()) < 1.1  # as far off as chance makes it
    assert np.abs(errors).max() < 5.2  # of 3000 nodes: four standard errors of one, for the largest of all
    assert abs(counts.sum() / (batches * p.sum()) - 1) < 4 / np.sqrt(counts.sum()) + 0.005


def test_a_dense_random_graph_is_overestimated_by_little(make_graph):
    graph = make_graph(n=2000, density=0.01, directed=False)
    p = inclusion_probabilities(graph, np.arange(2000), (5, 5), 2)
    counts, batches = drawn(graph, np.arange(2000), (5, 5), 2, epochs=3)
    assert 0.99 < batches * p.sum() / counts.sum() < 1.03


def test_bits_do_not_depend_on_threads():
    graph = sp.random_array((40_000, 40_000), density=2e-4, format="csr", rng=np.random.default_rng(0))
    seeds = np.arange(0, 40_000, 3)
    one = inclusion_probabilities(graph, seeds, (4, 3), 64)
    with working_threads(3):
        many = inclusion_probabilities(graph, seeds, (4, 3), 64)
    np.testing.assert_array_equal(one, many)
    assert one.dtype == np.float32 and one.std() > 0


def test_any_form_of_graph(graph):
    n = graph.shape[0]
    got = inclusion_probabilities(graph, np.arange(n), (2, 2), 4)
    assert got.shape == (n,) and np.isfinite(got).all() and (got >= np.float32(min(1, 4 / max(n, 1)))).all()
    assert got.max(initial=0) <= 1


def test_certainty():
    """With all seeds in one minibatch and all neighbours taken, what is reached is reached for certain."""
    graph = tree([0, 1, 2, 3, 4])
    got = inclusion_probabilities(graph, [0, 1], (-1, -1), 2)
    np.testing.assert_array_equal(got, [1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(inclusion_probabilities(graph, np.ones(6, bool), (1,), 100), np.ones(6))


@pytest.mark.parametrize("change, error, message", [
    ({"fanouts": 3}, TypeError, "fanouts must be a sequence"),
    ({"fanouts": (2, 0)}, ValueError, "at least 1, or -1"),
    ({"fanouts": (1,) * 33}, TypeError, "1 to 32"),
    ({"seeds": [1, 1]}, ValueError, "distinct"),
    ({"seeds": [9]}, IndexError, "seeds must lie in"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"weights": [1.0]}, ValueError, "weights must hold one number"),
    ({"weights": [0.0, 0.0]}, ValueError, "not all 0"),
])
def test_bad_input(change, error, message):
    arguments = {"seeds": [0, 1], "fanouts": (2,), "batch_size": 1} | change
    with pytest.raises(error, match=message):
        inclusion_probabilities(tree([0, 1]), **arguments)
