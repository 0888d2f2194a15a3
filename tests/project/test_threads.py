import os
import threading

import numpy as np
import pytest

from gnncy import _linalg, _threads


def test_pieces_cover_the_range_once_and_do_not_depend_on_threads():
    seen = []
    for threads in (1, 2, 3):
        pieces = []
        _threads.run_pieces(lambda start, stop, into=pieces: into.append((start, stop)), 10, 4, threads)
        seen.append(sorted(pieces))
    assert seen[0] == [(0, 4), (4, 8), (8, 10)]
    assert seen[0] == seen[1] == seen[2]


def test_nothing_to_do():
    _threads.run_pieces(lambda start, stop: pytest.fail("called for an empty range"), 0, 4, 2)


def test_a_single_piece_stays_on_the_calling_thread():
    names = []
    _threads.run_pieces(lambda start, stop: names.append(threading.get_ident()), 3, 4, 2)
    assert names == [threading.get_ident()]


def test_pieces_run_side_by_side():
    # Each piece waits for the other, so this ends only if two threads work at the same time.
    barrier = threading.Barrier(2, timeout=20)
    _threads.run_pieces(lambda start, stop: barrier.wait(), 2, 1, 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_error_is_raised_and_the_pool_lives_on(threads):
    def work(start, stop):
        if start >= 4:
            raise ZeroDivisionError(f"piece {start}")

    with pytest.raises(ZeroDivisionError, match="piece"):
        _threads.run_pieces(work, 100, 1, threads)
    done = np.zeros(100, bool)
    _threads.run_pieces(lambda start, stop: done.__setitem__(slice(start, stop), True), 100, 3, threads)
    assert done.all()


def test_pieces_inside_pieces_stay_on_their_thread():
    inner = []

    def outer_piece(start, stop):
        mine = threading.get_ident()
        _threads.run_pieces(lambda a, b: inner.append(threading.get_ident() == mine), 8, 1)

    with _threads.working_threads(2):
        _threads.run_pieces(outer_piece, 4, 1)
        assert _threads.current_threads() == 2
    assert inner == [True] * 32


def test_threads_of_the_surrounding_work():
    assert _threads.current_threads() == 1
    with _threads.working_threads(3) as threads:
        assert threads == _threads.current_threads() == 3
        with _threads.working_threads(1):
            assert _threads.current_threads() == 1
        assert _threads.current_threads() == 3
    assert _threads.current_threads() == 1


def test_threads_are_restored_after_an_error():
    with pytest.raises(KeyError), _threads.working_threads(2):
        raise KeyError
    assert _threads.current_threads() == 1


def test_blas_is_held_to_one_thread_and_restored():
    from threadpoolctl import threadpool_info, threadpool_limits

    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    with threadpool_limits(2, "blas"):
        before = blas()
        assert before and set(before) == {2}
        with _threads.working_threads(2):
            assert set(blas()) == {1}
        assert blas() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_pool():
    _threads.run_pieces(lambda start, stop: None, 4, 1, 2)
    pid = os.fork()
    if pid == 0:
        done = np.zeros(64, bool)
        _threads.run_pieces(lambda start, stop: done.__setitem__(slice(start, stop), True), 64, 1, 2)
        os._exit(0 if done.all() else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_n_jobs(monkeypatch):
    monkeypatch.delenv("GNNCY_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "usable_cpus", lambda: 6)
    assert [_threads.effective_n_jobs(n) for n in (None, 1, 3, -1, -2, -100)] == [1, 1, 3, 6, 5, 1]
    assert _threads.effective_n_jobs(np.int64(2)) == 2
    monkeypatch.setenv("GNNCY_NUM_THREADS", "4")
    assert _threads.effective_n_jobs() == 4
    assert _threads.effective_n_jobs(1) == 1


@pytest.mark.parametrize("value, error, message", [
    (0, ValueError, "n_jobs must not be 0; use 1 for one thread, -1 for all usable CPUs"),
    (1.5, TypeError, "n_jobs must be None or an integer, got 1.5"),
    ("2", TypeError, "n_jobs must be None or an integer, got '2'"),
    (True, TypeError, "n_jobs must be None or an integer, got True"),
])
def test_bad_n_jobs(value, error, message):
    with pytest.raises(error, match=message):
        _threads.effective_n_jobs(value)


def test_bad_thread_variable(monkeypatch):
    monkeypatch.setenv("GNNCY_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="GNNCY_NUM_THREADS must be an integer, got 'many'"):
        _threads.effective_n_jobs()


def test_joblib_decides_where_it_is_asked_to():
    joblib = pytest.importorskip("joblib")
    with joblib.parallel_config(n_jobs=3):
        assert _threads.effective_n_jobs() == 3
        assert _threads.effective_n_jobs(1) == 1


def test_usable_cpus():
    assert 1 <= _threads.usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_have_the_same_bits_at_any_thread_count(dtype, transposed):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((700, 65)).astype(dtype), rng.standard_normal((65, 33)).astype(dtype)
    if transposed:
        a, b = np.asfortranarray(a), np.asfortranarray(b)
    results = []
    for threads in (1, 2, 3):
        with _threads.working_threads(threads):
            results.append(_linalg.matmul(a, b))
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    assert results[0].dtype == dtype
    tolerance = 1000 * np.finfo(dtype).eps
    np.testing.assert_allclose(results[0], a.astype(float) @ b.astype(float), rtol=0, atol=tolerance)


def test_products_into_a_given_array():
    a = np.arange(6.0).reshape(2, 3)
    out = np.empty((2, 2))
    assert _linalg.matmul(a, a.T, out=out) is out
    np.testing.assert_array_equal(out, [[5, 14], [14, 50]])
