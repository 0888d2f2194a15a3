"""Threads: one shared pool over GIL-free kernels, fixed pieces of work, BLAS held to one thread."""
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_pool: ThreadPoolExecutor | None = None
_pool_key: tuple[int, int] = (0, 0)
_lock = threading.Lock()
_state = threading.local()


def usable_cpus() -> int:
    """CPUs this process may use: affinity, and the cgroup's quota if it has one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return count


def effective_n_jobs(n_jobs: int | None = None) -> int:
    """Number of threads that ``n_jobs`` stands for.

    None means ``joblib.parallel_config``'s number if one is active, else ``GNNCY_NUM_THREADS``, else 1;
    negative numbers count from the usable CPUs as in joblib (-1 all of them).
    """
    if n_jobs is None:
        import sys
        if "joblib" in sys.modules:
            from joblib.parallel import get_active_backend
            backend_jobs = get_active_backend()[1]
            if backend_jobs not in (None, 1):
                return effective_n_jobs(int(backend_jobs))
        text = os.environ.get("GNNCY_NUM_THREADS", "1")
        try:
            n_jobs = int(text)
        except ValueError:
            raise ValueError(f"GNNCY_NUM_THREADS must be an integer, got {text!r}") from None
    if isinstance(n_jobs, bool) or not hasattr(n_jobs, "__index__"):
        raise TypeError(f"n_jobs must be None or an integer, got {n_jobs!r}")
    n_jobs = int(n_jobs)
    if n_jobs == 0:
        raise ValueError("n_jobs must not be 0; use 1 for one thread, -1 for all usable CPUs")
    return n_jobs if n_jobs > 0 else max(1, usable_cpus() + 1 + n_jobs)


def _shared_pool(workers: int) -> ThreadPoolExecutor:
    global _pool, _pool_key
    with _lock:
        # A forked child inherits the object but not its threads, so the process id is part of the key.
        if _pool is None or _pool_key[0] != os.getpid() or _pool_key[1] < workers:
            _pool = ThreadPoolExecutor(workers, thread_name_prefix="gnncy")
            _pool_key = (os.getpid(), workers)
        return _pool


def run_pieces(work: Callable[[int, int], object], n: int, size: int, n_jobs: int | None = None) -> None:
    """Call ``work(start, stop)`` for every piece of ``size`` of the range ``n``.

    Pieces do not depend on the number of threads (that of :func:`working_threads` unless given), so what
    each writes does not either. A single piece stays on the calling thread. The first error is raised
    after all threads have ended.
    """
    starts = range(0, n, size)
    if n_jobs is None:
        n_jobs = current_threads()
    if n_jobs <= 1 or len(starts) <= 1:
        for start in starts:
            work(start, min(start + size, n))
        return
    todo: Iterator[int] = iter(starts)
    guard = threading.Lock()
    errors: list[BaseException] = []

    def drain() -> None:
        _state.threads = 1  # work inside a piece stays on its thread
        while not errors:
            with guard:
                start = next(todo, None)
            if start is None:
                return
            try:
                work(start, min(start + size, n))
            except BaseException as error:  # raised again in the caller, below
                errors.append(error)

    workers = min(n_jobs, len(starts))
    pool = _shared_pool(n_jobs)
    futures = [pool.submit(drain) for _ in range(workers - 1)]
    before = current_threads()
    drain()
    _state.threads = before
    for future in futures:
        # A helper that has not started has nothing left to do: the pool may be busy with another caller's work.
        if not future.cancel():
            future.result()
    if errors:
        raise errors[0]


@contextmanager
def working_threads(n_jobs: int | None = None):
    """Inside the block :func:`run_pieces` uses ``n_jobs`` threads, and every BLAS pool is held to one.

    OpenBLAS's own threads beside ours are slower, and split sums by their number. Restored after.
    """
    from threadpoolctl import threadpool_limits
    before = current_threads()
    threads = effective_n_jobs(n_jobs)
    with threadpool_limits(1, "blas"):
        _state.threads = threads
        try:
            yield threads
        finally:
            _state.threads = before


def inherit_threads(threads: int) -> None:
    """Let :func:`run_pieces` on the calling thread use ``threads`` threads, those of the thread that started it."""
    _state.threads = threads


def current_threads() -> int:
    """Threads that the surrounding :func:`working_threads` allows; 1 outside."""
    return getattr(_state, "threads", 1)
