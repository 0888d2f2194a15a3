"""Memory: sizes as people write them, what the process holds, what it may hold, aligned arrays."""
import os
import re
import resource
from pathlib import Path

import numpy as np

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(size: int | float | str, name: str = "memory_limit") -> int:
    """Bytes from a number or a text such as ``"256MB"`` (10**6) or ``"1.5 GiB"`` (2**30).

    >>> parse_bytes("256MB"), parse_bytes("1 KiB")
    (256000000, 1024)
    """
    if isinstance(size, (int, float, np.number)) and not isinstance(size, bool):
        number, unit = float(size), ""
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?(?:[iI]?[bB])?)\s*", str(size))
        if not match:
            raise ValueError(f"{name} must be a number of bytes or a text such as '256MB' or '2GiB', got {size!r}")
        number, unit = float(match[1]), match[2].upper()
        if unit in ("K", "M", "G", "T"):
            unit += "B"
    if not number > 0 or number != number or number == float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {size!r}")
    return int(number * _UNITS[unit])


def format_bytes(n: float) -> str:
    """Bytes as a short text in powers of ten.

    >>> format_bytes(481_931_264)
    '482 MB'
    """
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if abs(n) < 1000 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" or abs(n) >= 100 else f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError


def _status(field: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def rss() -> int:
    """Bytes of memory that the process holds now (the peak where the system does not tell)."""
    return _status("VmRSS") or peak_rss()


def peak_rss() -> int:
    """Most bytes that the process has held since its start or the last :func:`reset_peak`."""
    peak = _status("VmHWM")
    if peak is None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    return peak


def reset_peak() -> bool:
    """Start a new measurement of :func:`peak_rss`; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False


def trim() -> None:
    """Give freed memory back to the system (glibc keeps it otherwise, and it would count as held)."""
    import ctypes
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        pass  # another C library: it has no such call


def map_large() -> None:
    """From now on, give arrays of 1 MiB and more back to the system when they are freed.

    glibc keeps freed arrays of up to 32 MiB for others, and where sizes vary, as those of sampled minibatches do, it
    comes to hold twice of what is in use. This holds for the whole process.
    """
    import ctypes
    try:
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
    except (AttributeError, OSError, TypeError):
        pass  # another C library: it has no such call


def cgroup_limit() -> int | None:
    """The smallest memory limit of the process's cgroup and its parents (v2, then v1); None without one."""
    limits = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, relative = line.split(":", 2)
        if controllers == "":
            root, file = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, file = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        folder = root / relative.lstrip("/")
        while True:
            try:
                text = (folder / file).read_text().strip()
                if text != "max" and int(text) < 2**60:
                    limits.append(int(text))
            except (OSError, ValueError):
                pass
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent
    return min(limits, default=None)


def available() -> int:
    """Bytes that the process may still take: free memory, cgroup limit and RLIMIT_AS, whichever is least."""
    amounts = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                amounts.append(int(line.split()[1]) * 1024)
    except OSError:
        amounts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    limit = cgroup_limit()
    if limit is not None:
        amounts.append(max(limit - rss(), 0))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        amounts.append(max(soft - (_status("VmSize") or rss()), 0))
    return min(amounts)


def aligned_empty(shape, dtype=np.float32, alignment: int = 64) -> np.ndarray:
    """An uninitialised C-contiguous array whose data begin at a multiple of ``alignment`` bytes."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start:start + size].view(dtype).reshape(shape)
