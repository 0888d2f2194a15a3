"""What a plan holds in memory."""
from gnncy.storage._blocks import ARENA, PAGE
from gnncy.storage.plans.execution.repack import RepackBuffers, code_bytes
from gnncy.storage.plans.execution.rows import SLICE

AHEAD = 2  # minibatches that are ready or being put together while one is in use
ACCESS = 112  # bytes for each access of a minibatch that is being put together: ids, places, sorting


def peak_memory(name: str, *, n_nodes: int, row_bytes: int, batch_rows: int, hot_rows: int = 0, window: int = 1,
                cold_rows: int = 0, list_bytes: int | None = None, feature_bytes: int | None = None,
                extent: int = PAGE, io_threads: int = 16, prefetch: bool = True) -> int:
    """Bytes that a plan holds at most, beyond the sampled minibatches themselves.

    Parameters
    ----------
    name : {"A", "B", "C", "D"}
    n_nodes, row_bytes : int
        Rows of the file, and the bytes of one.
    batch_rows : int
        Accesses of the largest minibatch.
    hot_rows : int
        Rows that are held throughout; all of them in plan A.
    window : int
        Minibatches of a window (plan D).
    cold_rows : int
        Distinct cold rows of a window (plans B and C), or of a minibatch (plan D).
    list_bytes : int, optional
        Bytes of the lists of a window's rows (plan D); by default as expected of rows that are spread evenly.
    feature_bytes : int, optional
        Bytes of a row as it is given to the consumer, if not ``row_bytes``.
    extent : int
        Bytes of one write of plan D: the more, the faster; it takes what memory there is up to 256 KiB.
    io_threads : int
        Reads in flight.
    prefetch : bool
        Whether the next window and the next minibatches are read ahead.

    Returns
    -------
    int

    Examples
    --------
    >>> from gnncy.storage.plans import peak_memory
    >>> peak_memory("A", n_nodes=1_000_000, row_bytes=512, batch_rows=10_000, hot_rows=1_000_000)
    545507216
    """
    feature_bytes = row_bytes if feature_bytes is None else feature_bytes
    words = -(-n_nodes // 64) * 16
    total = hot_rows * row_bytes + words
    total += batch_rows * (feature_bytes * (AHEAD + 1 if prefetch else 2) + ACCESS)
    if feature_bytes != row_bytes:
        total += batch_rows * row_bytes
    if name in ("B", "C") or hot_rows:
        total += min(io_threads * ARENA, n_nodes * row_bytes)  # each thread reads through an arena of its own
    if name in ("B", "C"):
        total += (2 if prefetch else 1) * (words + cold_rows * row_bytes) + min(SLICE, n_nodes) * 40
    if name == "D":
        lists = window * code_bytes(cold_rows, n_nodes) if list_bytes is None else list_bytes
        total += n_nodes * row_bytes // PAGE + int(lists * 9 / 8)  # an array of bytes grows by an eighth
        total += RepackBuffers.of(extent, window, row_bytes).nbytes if window else 0
    return total
