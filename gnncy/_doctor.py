"""What a bug report needs: versions, BLAS, SIMD level, CPUs, memory, and the disk that a path lies on."""
import importlib
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gnncy import _memory, _threads

_PACKAGES = ("numpy", "scipy", "threadpoolctl", "scikit-learn", "matplotlib", "tqdm")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_NETWORK = {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
            "smb3", "smbfs"}
_MEMORY = {"ramfs", "tmpfs"}


def file_system(path: str | os.PathLike = ".", mounts: str | os.PathLike = "/proc/mounts") -> str | None:
    """Type of the file system that ``path`` lies on; None where the system does not list its mounts."""
    target = Path(path).resolve()
    try:
        lines = Path(mounts).read_text().splitlines()
    except OSError:
        return None
    found, depth = None, 0
    for line in lines:
        point, kind = line.split()[1:3]
        # The table writes a space as \040; of equally deep mounts the last one hides the others.
        where = Path(point.encode().decode("unicode_escape"))
        if len(where.parts) >= depth and target.is_relative_to(where):
            found, depth = kind, len(where.parts)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _blas() -> list[dict[str, Any]]:
    importlib.import_module("scipy.linalg")  # a library shows only once it is loaded; scipy carries its own
    from threadpoolctl import threadpool_info
    return [{"library": pool["internal_api"], "version": pool["version"], "threads": pool["num_threads"],
             "file": Path(pool["filepath"]).name} for pool in threadpool_info() if pool["user_api"] == "blas"]


def _advice(found: dict[str, Any]) -> list[str]:
    advice = []
    where, kind = found["disk"]["path"], found["disk"]["file_system"]
    if kind in _NETWORK:
        advice.append(f"{where} is on a network file system ({kind}): keep feature files on a local disk")
    elif kind in _MEMORY:
        advice.append(f"{where} is on {kind}, which is memory: features kept there count against the memory limit")
    if found["simd"]["level"] != found["simd"]["available"][-1]:
        advice.append(f"GNNCY_SIMD holds the kernels to {found['simd']['level']}; this CPU runs "
                      f"{found['simd']['available'][-1]}")
    return advice


def report(path: str | os.PathLike = ".") -> dict[str, Any]:
    """Facts about this installation, this machine and the disk that ``path`` is or would be on, ready for JSON."""
    from gnncy import __version__, _kernels
    where = Path(path).resolve()
    existing = next(folder for folder in (where, *where.parents) if folder.exists())
    try:
        n_jobs, complaint = _threads.effective_n_jobs(), []
    except ValueError as error:  # a bad variable is a finding here
        n_jobs, complaint = None, [str(error)]
    names = sorted(name for name in os.environ if name.startswith("GNNCY_") or name in _THREAD_VARIABLES)
    found: dict[str, Any] = {
        "gnncy": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "blas": _blas(),
        "simd": {"level": _kernels.LEVEL, "available": list(_kernels.AVAILABLE)},
        "cpus": {"present": os.cpu_count(), "usable": _threads.usable_cpus(), "n_jobs": n_jobs},
        "memory": {"available": _memory.available(), "cgroup_limit": _memory.cgroup_limit(), "held": _memory.rss()},
        "disk": {"path": str(where), "file_system": file_system(where), "free": shutil.disk_usage(existing).free},
        "environment": {name: os.environ[name] for name in names},
    }
    found["advice"] = complaint + _advice(found)
    return found


def text(found: dict[str, Any]) -> str:
    """A :func:`report` as lines for people."""
    size = _memory.format_bytes
    limit = found["memory"]["cgroup_limit"]
    rows = [("gnncy", found["gnncy"]), ("python", found["python"]), ("platform", found["platform"])]
    rows += [(name, given or "not installed") for name, given in found["packages"].items()]
    rows += [("BLAS", f"{b['library']} {b['version']}, {b['threads']} threads, {b['file']}") for b in found["blas"]]
    rows += [
        ("SIMD level", f"{found['simd']['level']} (of {', '.join(found['simd']['available'])})"),
        ("CPUs", f"{found['cpus']['usable']} usable of {found['cpus']['present']}; n_jobs=None means "
                 f"{found['cpus']['n_jobs']}"),
        ("memory", f"{size(found['memory']['available'])} available, {size(found['memory']['held'])} held, "
                   + (f"cgroup limit {size(limit)}" if limit else "no cgroup limit")),
        ("disk", f"{found['disk']['path']}: {found['disk']['file_system'] or 'unknown file system'}, "
                 f"{size(found['disk']['free'])} free"),
    ]
    if model := found["disk"].get("model"):
        rows.append(("disk costs", f"{1e6 * model['operation_seconds']:.3g} us an operation, "
                     f"reads {size(model['read_bandwidth'])}/s, writes {size(model['write_bandwidth'])}/s, best with "
                     f"{model['threads']} requests in flight ({model['origin']})"))
    rows += list(found["environment"].items())
    rows += [("advice", line) for line in found["advice"]]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def show_versions(path: str | os.PathLike = ".") -> None:
    """Print what a bug report needs: versions, BLAS, SIMD level, CPUs, memory and disk.

    Parameters
    ----------
    path : path-like, default "."
        Where the feature files are, or will be.

    Examples
    --------
    >>> import gnncy
    >>> gnncy.show_versions()
    gnncy ...
    python ...
    """
    print(text(report(path)))
