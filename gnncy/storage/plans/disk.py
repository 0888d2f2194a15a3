"""What a disk costs: the constants of the model ``seconds = operations * operation_seconds + bytes / bandwidth``."""
import errno
import json
import os
import re
import secrets
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from gnncy._check import check_float, check_int
from gnncy._files import write_text
from gnncy._kernels.storage import blockio
from gnncy._memory import format_bytes, parse_bytes
from gnncy.storage._blocks import ARENA, PAGE, arena, io_error, open_direct, reserve, together

VERSION = 1
VARIABLE = "GNNCY_DISK"
_SAMPLE = 48 * 1024 * 1024  # bytes that are written to be read back
_BURST = 0.05  # seconds of each measurement
_IN_FLIGHT = (4, 8, 16, 32)
_MOST = 100_000  # operations of a measurement
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class DiskModel:
    """Constants of a storage device with many requests in flight.

    Parameters
    ----------
    operation_seconds : float
        Fixed cost of one operation, in seconds, at ``threads`` requests in flight.
    read_bandwidth, write_bandwidth : float
        Bytes a second of large requests.
    threads : int
        Requests in flight that the device serves best.
    origin : str
        Where the constants come from; does not count in comparisons.

    Examples
    --------
    >>> from gnncy.storage.plans import DiskModel
    >>> disk = DiskModel(14e-6, 3.5e9, 2.6e9, threads=16)
    >>> disk.read_seconds(operations=1000, nbytes=4096 * 1000)
    0.0151...
    >>> round(disk.break_even_gap)
    49000
    >>> print(disk)
    operation=14us,read=3.5GB/s,write=2.6GB/s,threads=16
    >>> DiskModel.parse("operation=8ms,read=200MB/s,write=180MB/s,threads=4").operation_seconds
    0.008
    """

    operation_seconds: float
    read_bandwidth: float
    write_bandwidth: float
    threads: int = 16
    origin: str = field(default="given", compare=False)

    def __post_init__(self):
        check_float(self.operation_seconds, "operation_seconds", 0)
        for name in ("read_bandwidth", "write_bandwidth"):
            check_float(getattr(self, name), name, 1)
        check_int(self.threads, "threads", 1)

    @classmethod
    def parse(cls, text: str, name: str = "disk") -> "DiskModel":
        """The model that a text such as ``"operation=14.4us,read=3.5GB/s,write=2.6GB/s,threads=16"`` describes.

        Parameters
        ----------
        text : str
            What :func:`str` of a model gives. Times in ns, us, ms or s; bandwidths in bytes a second with B, KB,
            MB, GB (powers of ten) or KiB, MiB, GiB; ``threads`` may be left out.
        name : str
            What error messages call the text.

        Raises
        ------
        ValueError
            If the text is not of this form.
        """
        try:
            given = dict(part.split("=") for part in text.replace(" ", "").split(","))
            threads = int(given.pop("threads", 16))
            number, unit = re.fullmatch(r"([\d.eE+-]+)([nuµm]?s)", given.pop("operation")).groups()  # type: ignore[union-attr]
            read, write = (parse_bytes(given.pop(key).removesuffix("/s"), key) for key in ("read", "write"))
            if given:
                raise ValueError
            return cls(float(number) * _TIMES[unit], read, write, threads)
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{name} must be of the form 'operation=14.4us,read=3.5GB/s,write=2.6GB/s,threads=16', "
                             f"got {text!r}") from None

    def __str__(self) -> str:
        seconds = self.operation_seconds
        unit = next((unit for unit in ("s", "ms", "us") if seconds >= _TIMES[unit]), "ns")
        return (f"operation={seconds / _TIMES[unit]:.3g}{unit},"
                + ",".join(f"{name}={format_bytes(rate).replace(' ', '')}/s"
                           for name, rate in (("read", self.read_bandwidth), ("write", self.write_bandwidth)))
                + f",threads={self.threads}")

    @property
    def break_even_gap(self) -> float:
        """Bytes whose reading costs as much as one more operation."""
        return self.operation_seconds * self.read_bandwidth

    def read_seconds(self, operations: float, nbytes: float) -> float:
        """Seconds that reads take."""
        return operations * self.operation_seconds + nbytes / self.read_bandwidth

    def write_seconds(self, operations: float, nbytes: float) -> float:
        """Seconds that writes take."""
        return operations * self.operation_seconds + nbytes / self.write_bandwidth


DEFAULT = DiskModel(20e-6, 3e9, 2e9, threads=16, origin="assumed")


def known_disk(path) -> DiskModel:
    """The disk that ``path`` is on, without measuring: from ``GNNCY_DISK``, an earlier calibration, or assumed.

    Parameters
    ----------
    path : path-like
        A file or folder; it need not exist yet.

    Returns
    -------
    DiskModel
        Its ``origin`` says where it comes from.

    Raises
    ------
    ValueError
        If ``GNNCY_DISK`` is not of the form that :meth:`DiskModel.parse` reads.
    """
    text = os.environ.get(VARIABLE)
    if text:
        return replace(DiskModel.parse(text, VARIABLE), origin=VARIABLE)
    return _remembered(_existing(path)) or DEFAULT


def calibrate(path, *, refresh: bool = False) -> DiskModel:
    """Measure what the disk costs that ``path`` is on, once: the result is kept for later calls and processes.

    Takes about a third of a second. It writes a temporary file of up to 48 MiB in the folder and reads it back past
    the page cache, in bursts of 4 KiB and of 1 MiB with several requests in flight; a large file is read where it is.
    Results are kept for each device in ``$XDG_CACHE_HOME/gnncy`` or ``~/.cache/gnncy``. If the environment variable
    ``GNNCY_DISK`` is set, it is believed and nothing is measured.

    Parameters
    ----------
    path : path-like
        A file or folder on the disk; it need not exist yet.
    refresh : bool
        Measure again.

    Returns
    -------
    DiskModel
        ``origin`` says whether it was measured, and how; constants are assumed where nothing can be read or written.

    Raises
    ------
    StorageError
        If reading or writing fails.
    ValueError
        If ``GNNCY_DISK`` is not of the form that :meth:`DiskModel.parse` reads.

    Examples
    --------
    >>> from gnncy.storage.plans import calibrate
    >>> disk = calibrate(".")
    >>> 0 <= disk.operation_seconds < 1 and disk.read_bandwidth > 0
    True
    """
    existing = _existing(path)
    known = known_disk(path)
    if known.origin == VARIABLE or known is not DEFAULT and not refresh:
        return known
    measured = _measure(existing)
    if measured is not DEFAULT:
        _remember(existing, measured)
    return measured


def _existing(path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = Path(path).absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _cache_file(path: Path) -> Path | None:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    device = path.stat().st_dev
    return folder / "gnncy" / f"disk-{os.major(device)}-{os.minor(device)}.json" if folder.is_absolute() else None


def _remembered(path: Path) -> DiskModel | None:
    """The model of an earlier calibration; none if there is no such file, or no such file any more."""
    file = _cache_file(path)
    try:
        kept = json.loads(file.read_text(encoding="utf-8")) if file else {}
        return DiskModel(**kept["disk"]) if kept["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(path: Path, disk: DiskModel) -> None:
    file = _cache_file(path)
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"version": VERSION, "disk": asdict(disk)}, indent=1) + "\n")
    except OSError:
        pass  # measured again next time


def _measure(path: Path) -> DiskModel:
    with ExitStack() as stack:
        source, write_bandwidth, notes = None, None, []
        try:
            source, size, write_bandwidth = _written(path if path.is_dir() else path.parent, stack)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            notes.append("write bandwidth assumed")
        if path.is_file() and path.stat().st_size >= _SAMPLE:
            source, size = _open(path, os.O_RDONLY, stack), path.stat().st_size
        if source is None:
            return DEFAULT
        fd, direct = source
        if not direct:
            notes.append("without O_DIRECT")
        rng = np.random.default_rng()  # which pages are read does not matter, only that they are not in a cache

        def reads(nbytes: int, threads: int) -> float:
            if not direct and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            offsets = rng.permutation(size // nbytes)[:_MOST] * nbytes
            if direct:
                offsets = np.tile(offsets, -(-_MOST // len(offsets)))
            return _burst(fd, path, offsets, nbytes, threads)[0]

        rates = {threads: reads(PAGE, threads) for threads in _IN_FLIGHT}
        threads = next(threads for threads in _IN_FLIGHT if rates[threads] >= 0.9 * max(rates.values()))
        bandwidth = ARENA * reads(ARENA, threads)
        operation = max(1 / rates[threads] - PAGE / bandwidth, 1e-9)
        return DiskModel(_rounded(operation), _rounded(bandwidth), _rounded(write_bandwidth or bandwidth), threads,
                         ", ".join(["measured", *notes]))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _open(path: Path, flags: int, stack: ExitStack) -> tuple[int, bool]:
    """A descriptor, and whether it goes past the page cache."""
    fd = open_direct(path, flags)
    direct = fd is not None
    if fd is None:
        fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o600)
    stack.callback(os.close, fd)
    return fd, direct


def _written(folder: Path, stack: ExitStack) -> tuple[tuple[int, bool], int, float]:
    """A new file without a name that holds a sample, its size, and the bytes a second that it was written with."""
    path = folder / f".gnncy-calibration-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    fd, direct = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, stack)
    path.unlink()
    reserve(fd, path, _SAMPLE)
    offsets = np.arange(0, _SAMPLE, ARENA)
    begun = time.perf_counter()
    _, count = _burst(fd, path, offsets, ARENA, 16, writes=True)
    if not direct:
        os.fsync(fd)
    return (fd, direct), count * ARENA, count * ARENA / (time.perf_counter() - begun)


def _burst(fd: int, path: Path, offsets: np.ndarray, nbytes: int, threads: int,
           writes: bool = False) -> tuple[float, int]:
    """Operations a second, and how many there were, in a short while."""
    ticket = np.zeros(1, np.int64)
    done: list[int] = []
    noise = np.frombuffer(os.urandom(PAGE), np.uint8)  # a file system that compresses must not find zeros

    def work() -> None:
        buffer = arena()
        if writes:
            buffer.reshape(-1, PAGE)[:] = noise
        done.append(blockio.burst(fd, offsets, nbytes, writes, _BURST, ticket, buffer))

    def cancel() -> None:
        ticket[0] = len(offsets)

    begun = time.perf_counter()
    together(work, threads, cancel)
    seconds = time.perf_counter() - begun
    if min(done) < 0:
        raise io_error(path, -min(done), 0, "calibrating")
    return max(1, sum(done)) / seconds, sum(done)
