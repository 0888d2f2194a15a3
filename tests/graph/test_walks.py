"""Random walks: along arcs, by the law, the same whatever else is drawn."""
import numpy as np
import pytest
import scipy.sparse as sp

from gnncy._threads import working_threads
from gnncy.datasets import make_sbm
from gnncy.graph import RandomWalks

GRAPH = make_sbm(200, 4, n_features=4, seed=3).adjacency


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_every_step_is_an_arc(index, count):
    graph = sp.csr_array((GRAPH.data, GRAPH.indices.astype(index), GRAPH.indptr.astype(index)), GRAPH.shape)
    starts = np.arange(count) * 7 % 200
    walks = RandomWalks(graph, length=6, n_walks=3, seed=1).sample(starts)
    assert walks.shape == (3 * count, 7) and np.array_equal(walks[:, 0], np.repeat(starts, 3))
    assert (GRAPH[walks[:, :-1].ravel(), walks[:, 1:].ravel()] > 0).all()


def test_steps_are_uniform_and_independent():
    star = sp.csr_array(np.array([[0, 1, 1, 1, 1], *[[1, 0, 0, 0, 0]] * 4], np.float32))
    walks = RandomWalks(star, length=4, n_walks=20_000).sample([0])
    pairs = np.bincount((walks[:, 1] - 1) * 4 + walks[:, 3] - 1, minlength=16)
    assert (walks[:, [0, 2, 4]] == 0).all()
    assert ((pairs - 1250) ** 2 / 1250).sum() < 40  # chi square, 15 degrees of freedom: 37.7 is the 0.1 % point


def test_a_walk_depends_on_its_key_start_and_number_alone():
    walks = RandomWalks(GRAPH, length=5, n_walks=2, seed=4)
    whole = walks.sample(np.arange(200), epoch=2, batch=3)
    assert np.array_equal(walks.sample([7, 150], epoch=2, batch=3), whole[[14, 15, 300, 301]])
    assert np.array_equal(RandomWalks(GRAPH, 5, 1, seed=4).sample([9], epoch=2, batch=3), whole[[18]])
    assert np.array_equal(RandomWalks(GRAPH, 3, 2, seed=4).sample([9], epoch=2, batch=3), whole[[18, 19], :4])
    for other in (walks.sample(np.arange(200), epoch=1, batch=3), walks.sample(np.arange(200), epoch=2, batch=4),
                  RandomWalks(GRAPH, 5, 2, seed=5).sample(np.arange(200), epoch=2, batch=3)):
        assert (other != whole).any(axis=1).mean() > 0.9
    assert (whole[::2] != whole[1::2]).any(axis=1).mean() > 0.9  # the two walks of a start


def test_threads_do_not_matter():
    walks = RandomWalks(GRAPH, length=3, n_walks=60)
    found = []
    for threads in (1, 2):
        with working_threads(threads):
            found.append(walks.sample(np.arange(200)))
    assert len(found[0]) > 2 * 4096 and np.array_equal(*found)


def test_a_walk_stays_where_no_arc_leads_on():
    assert RandomWalks([[0, 1, 0], [0, 0, 0], [0, 0, 0]], 3).sample([0, 2]).tolist() == [[0, 1, 1, 1], [2, 2, 2, 2]]


def test_bad_input():
    with pytest.raises(ValueError, match="length must be at least 1"):
        RandomWalks(GRAPH, 0)
    with pytest.raises(ValueError, match="n_walks must be at least 1"):
        RandomWalks(GRAPH, 2, 0)
    with pytest.raises(IndexError, match=r"starts must lie in 0\.\.199, got 200"):
        RandomWalks(GRAPH).sample([200])
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        RandomWalks(GRAPH).sample([1], epoch=-1)
