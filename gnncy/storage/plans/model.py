"""What reading an epoch costs: the equations, from how often rows are needed and what the disk costs.

Rows that are needed are taken to be spread evenly over the file. Each function counts input and output by whole pages,
as the disk is read past the page cache.
"""
import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gnncy._check import check_array, check_float, check_int
from gnncy._kernels.storage import repack
from gnncy.storage._blocks import _PAGE_BITS, MAX_RUN, PAGE, _plan
from gnncy.storage.plans.disk import DiskModel

_MANTISSA = 19  # bits of a float32 that do not matter: a class spans 6 %
_CLASSES = 1 << (31 - _MANTISSA)
_CHUNK = 1 << 18
_PIECE = 32 << 20  # bytes of file, and rows in it, to which the rule of runs is applied
_ROWS = 2048, 65536
_PAGES = 1 << 15
_SAMPLE = 8 << 20  # bytes that are copied to see how fast it goes


@dataclass(frozen=True)
class IO:
    """Input and output: system calls and the bytes they move."""

    operations: float = 0.0
    bytes_read: float = 0.0
    bytes_written: float = 0.0

    def __add__(self, other: "IO") -> "IO":
        return IO(self.operations + other.operations, self.bytes_read + other.bytes_read,
                  self.bytes_written + other.bytes_written)

    def __mul__(self, times: float) -> "IO":
        return IO(self.operations * times, self.bytes_read * times, self.bytes_written * times)

    def seconds(self, disk: DiskModel) -> float:
        """Seconds that the disk needs."""
        return disk.read_seconds(self.operations, self.bytes_read) + disk.write_seconds(0, self.bytes_written)


@dataclass(frozen=True, eq=False)
class Accesses:
    """How often rows are needed, as classes of rows that are needed equally often, the most needed first.

    Attributes
    ----------
    counts : ndarray of float64
        Rows of each class.
    odds : ndarray of float64
        Probability of each of them to be in a minibatch.

    Examples
    --------
    >>> from gnncy.storage.plans.model import Accesses
    >>> accesses = Accesses.from_inclusion([0.5, 0.5, 0.125, 0.0])
    >>> accesses.rows, accesses.per_batch, accesses.distinct(2), accesses.without(1).per_batch
    (4.0, 1.125, 1.734375, 0.625)
    """

    counts: np.ndarray
    odds: np.ndarray

    @classmethod
    def from_inclusion(cls, inclusion, batches: Sequence[np.ndarray] = ()) -> "Accesses":
        """The classes of the probabilities of all rows.

        Parameters
        ----------
        inclusion : array, shape (n,)
        batches : sequence of arrays of int
            Node ids of a few minibatches that were drawn. The probabilities then say which rows are alike, and the
            minibatches how often each class is needed, so that what the probabilities leave out does not matter.
        """
        inclusion = check_inclusion(inclusion)
        counts, sums = np.zeros(_CLASSES), np.zeros(_CLASSES)
        for start in range(0, len(inclusion), _CHUNK):
            some = inclusion[start:start + _CHUNK]
            which = _class(some)
            counts += np.bincount(which, minlength=_CLASSES)
            sums += np.bincount(which, some, minlength=_CLASSES)
        some = np.flatnonzero(counts)[::-1]
        if len(batches):
            sums = np.zeros(_CLASSES)
            for ids in batches:
                sums += np.bincount(_class(inclusion[ids]), minlength=_CLASSES) / len(batches)
        return cls(counts[some], sums[some] / counts[some])

    @property
    def rows(self) -> float:
        """Number of rows."""
        return float(self.counts.sum())

    @property
    def per_batch(self) -> float:
        """Rows of a minibatch."""
        return float(self.counts @ self.odds)

    def distinct(self, batches: float) -> float:
        r"""Distinct rows of some minibatches: :math:`U(H) = \sum_v 1 - (1 - \pi_v)^H` (equation 4)."""
        with np.errstate(divide="ignore"):  # the log of no chance to be left out
            return float(self.counts @ -np.expm1(batches * np.log1p(-self.odds)))

    def without(self, hot: float) -> "Accesses":
        """The same without the ``hot`` rows that are needed most."""
        left = np.minimum(self.counts, np.maximum(np.cumsum(self.counts) - hot, 0))
        some = left > 0
        return Accesses(left[some], self.odds[some])


def check_inclusion(inclusion) -> np.ndarray:
    """Probabilities of rows as float32, checked."""
    inclusion = check_array(inclusion, "inclusion", ndim=1, dtype=np.float32)
    if inclusion.min() < 0 or inclusion.max() > 1:
        raise ValueError(f"inclusion must hold probabilities in 0..1, got {inclusion.min():g} .. {inclusion.max():g}")
    return inclusion


def _class(inclusion: np.ndarray) -> np.ndarray:
    """The class of each probability; a larger probability is never in a smaller class."""
    return np.ascontiguousarray(inclusion, np.float32).view(np.int32) >> _MANTISSA


def hottest(inclusion, rows: int) -> np.ndarray:
    """The nodes of the ``rows`` highest probabilities, ascending; of equal ones the lower ids.

    Examples
    --------
    >>> from gnncy.storage.plans.model import hottest
    >>> hottest([0.5, 0.25, 0.75, 0.5], 2)
    array([0, 2])
    """
    inclusion = check_inclusion(inclusion)
    rows = check_int(rows, "rows", 0, len(inclusion))
    counts = np.zeros(_CLASSES, np.int64)
    pieces = range(0, len(inclusion), _CHUNK)
    for start in pieces:
        counts += np.bincount(_class(inclusion[start:start + _CHUNK]), minlength=_CLASSES)
    above = np.cumsum(counts[::-1])[::-1]  # rows of this class and of all higher ones
    last = int(np.searchsorted(-above, -rows, side="right")) - 1  # the class of which some are hot, or all
    whole = np.concatenate([start + np.flatnonzero(_class(inclusion[start:start + _CHUNK]) > last)
                            for start in pieces])
    some = np.concatenate([start + np.flatnonzero(_class(inclusion[start:start + _CHUNK]) == last)
                           for start in pieces])
    some = some[np.argsort(-inclusion[some], kind="stable")[:rows - len(whole)]]
    return np.sort(np.concatenate([whole, some])).astype(np.int64)


def row_reads(accesses: float, row_bytes: int) -> IO:
    r"""One read of whole pages for each access: :math:`A (c_0 + \lceil d \rceil_B / BW)` (equation 1)."""
    return IO(accesses, accesses * (-(-row_bytes // PAGE) * PAGE))


def gathered(rows: float, n: float, row_bytes: int, disk: DiskModel) -> IO:
    """Distinct rows read by one ascending pass of a gather, in runs that read short gaps along (equations 2 and 3).

    The rule that joins rows to runs is applied to a piece of the file with rows drawn at random; closed forms of it are
    off by up to a third where the gaps are about as long as is worth reading.
    """
    if rows <= 0:
        return IO()
    operations, nbytes = _runs(float(f"{min(rows / n, 1):.3g}"), row_bytes, int(disk.break_even_gap))
    return IO(rows * operations, rows * nbytes)


@lru_cache(maxsize=4096)
def _runs(share: float, row_bytes: int, gap: int) -> tuple[float, float]:
    """Operations and bytes for each row of a piece of file of which a share of the rows is read."""
    count = int(np.clip(_PIECE * share / row_bytes, *_ROWS))
    rows = np.cumsum(np.random.default_rng(0).geometric(share, count)).astype(np.int64)
    start, length = rows * row_bytes, np.broadcast_to(np.int64(row_bytes), count)
    first, runs = _plan(start, length, _PAGE_BITS, gap, MAX_RUN, gap)
    low = start[first[:runs]] // PAGE
    high = (start[first[1:runs + 1] - 1] + row_bytes - 1) // PAGE + 1
    return runs / count, float((high - low).sum() * PAGE) / count


def hyperbatches(cold: Accesses, batches: int, window: int, read: Callable[[float], IO]) -> IO:
    """An epoch that ``read``s the distinct cold rows of ``window`` minibatches at a time (equation 4)."""
    whole, rest = divmod(batches, window)
    total = read(cold.distinct(window)) * whole
    return total + read(cold.distinct(rest)) if rest else total


def scanned(rows: float, n: float, row_bytes: int, disk: DiskModel, chunk: int) -> IO:
    r"""Distinct rows read by a scan, which reads ``chunk`` bytes at a time and skips long gaps (equations 2 and 3).

    They lie on a share :math:`1 - (1 - u/n)^r` of the pages, where parts of r rows are on a page: B/d of them and,
    where rows straddle pages, nearly one more. The rule of the scan is applied to pages drawn at random.
    """
    on_page = PAGE / row_bytes + 1 - np.gcd(PAGE, row_bytes) / row_bytes
    share = -np.expm1(on_page * np.log1p(-min(rows / n, 1 - 1e-9)))
    if share <= 0:
        return IO()
    runs, read = _skips(float(f"{share:.3g}"), int(disk.break_even_gap) // PAGE, chunk // PAGE)
    return IO(runs, read * PAGE) * (n * row_bytes / PAGE)


@lru_cache(maxsize=4096)
def _skips(share: float, gap: int, chunk: int) -> tuple[float, float]:
    """Operations and pages read for each page of a file of which a share is needed."""
    total = _PAGES // chunk * chunk
    needed = (np.random.default_rng(0).random(total) < share).astype(np.uint8)
    first, last = np.empty((2, chunk + 1), np.int64)
    runs = read = 0
    for low in range(0, total, chunk):
        count = repack.runs(needed, low, low + chunk, gap, first, last)
        runs, read = runs + count, read + int((last[:count] - first[:count]).sum()) // PAGE
    return runs / total, read / total


def repacked(cold: Accesses, row_bytes: int, batches: int, extent: int) -> tuple[IO, IO]:
    r"""The accesses of an epoch written by ``extent`` bytes, and read back: :math:`A (1-h) d (1/BW_w + 1/BW_r)`.

    With the scans for windows of W minibatches this is equation 5.
    """
    packed = batches * np.ceil(cold.per_batch * row_bytes / PAGE) * PAGE
    writes = packed / extent + (batches if packed else 0)
    return IO(writes, 0, packed), IO(packed / min(MAX_RUN, 16 * extent), packed)


def overlap(first: float, second: float, windows: float) -> float:
    """Seconds of two stages of which the second works on a window while the first makes the next (equation 8).

    The first window of the one and the last window of the other have nothing to run beside.
    """
    return float(max(first, second) + min(first, second) / max(windows, 1))


@dataclass(frozen=True)
class Host:
    """What the processor needs beside the disk.

    Parameters
    ----------
    row_seconds : float
        To look up, number and place a row, once for each time that a plan handles it.
    copy_bandwidth : float
        Bytes of scattered rows that are copied in a second.
    batch_seconds : float
        To sample a minibatch.
    """

    row_seconds: float = 50e-9
    copy_bandwidth: float = 4e9
    batch_seconds: float = 0.0

    def __post_init__(self):
        check_float(self.row_seconds, "row_seconds", 0)
        check_float(self.copy_bandwidth, "copy_bandwidth", above=0)
        check_float(self.batch_seconds, "batch_seconds", 0)

    @classmethod
    def measure(cls, row_bytes: int, batch_seconds: float = 0.0) -> "Host":
        """Constants of this machine, by copying a few scattered rows of ``row_bytes`` to memory that is new."""
        count = max(_SAMPLE // row_bytes, 1)
        rows = np.ones((count, row_bytes), np.uint8)
        ids = np.random.default_rng(0).permutation(count)
        seconds = np.inf
        for _ in range(3):  # the fastest: others may be at work beside
            begun = time.perf_counter()
            with mmap.mmap(-1, rows.nbytes) as memory:
                out = np.frombuffer(memory, np.uint8).reshape(rows.shape)
                np.take(rows, ids, axis=0, out=out, mode="clip")
                seconds = min(seconds, time.perf_counter() - begun)
                del out
        return cls(copy_bandwidth=rows.nbytes / max(seconds, 1e-9), batch_seconds=batch_seconds)

    def copy_seconds(self, nbytes: float) -> float:
        """Seconds to copy scattered rows of so many bytes in all."""
        return nbytes / self.copy_bandwidth
