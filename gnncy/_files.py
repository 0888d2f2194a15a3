"""Files that are whole or absent: temporary name, fsync, rename."""
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def fsync_directory(path: str | os.PathLike) -> None:
    """Make renames in a directory durable (a no-op where directories cannot be opened)."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary file beside ``path``; on success sync it and rename it onto ``path``.

    On an error the temporary file is removed and ``path`` is left as it was.
    """
    path = Path(path)
    temporary, alive = new_temporary(path)
    try:
        os.utime(alive, ns=(0, 0))
        yield temporary
        with open(temporary, "rb+") as f:
            if os.fstat(f.fileno()).st_mtime_ns == 0:
                raise FileNotFoundError(errno.ENOENT, "nothing was written", str(path))
            os.fsync(f.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        release(alive)


def new_temporary(path: Path, *, folder: bool = False, mode: int = 0o666) -> tuple[Path, int]:
    """A new file, or folder, under a hidden name beside ``path``, and a descriptor that holds a lock on it.

    The lock ends with the process, however that ends: so :func:`remove_temporaries` knows what is left over.
    """
    while True:
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        if folder:
            temporary.mkdir()
            fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        else:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with suppress(OSError):  # a file system without locks: what a kill leaves there is left to the user
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(fd), os.stat(temporary)):
                return temporary, fd
        except FileNotFoundError:
            pass  # it was taken for a left-over in the moment before it was locked
        os.close(fd)


def release(fd: int) -> None:
    """Close a descriptor and let go of its lock, in processes too that were forked meanwhile."""
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def remove_temporaries(folder: str | os.PathLike, name: str = "*") -> None:
    """Remove what killed processes left in a folder of files that were to be called ``name``, a pattern.

    What a process is still writing is not touched.
    """
    for left in Path(folder).glob(f".{name}.*-{'[0-9a-f]' * 8}.tmp"):
        if not in_use(left):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)


def in_use(path: Path) -> bool:
    """Whether a process holds the lock of a file or folder; True where that cannot be known."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def lock(fd: int) -> bool:
    """Take the advisory lock of an open file or folder; False if another holds it.

    Where the file system has no locks there is nothing to take, and nobody else holds it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise
    return True


def lock_holder(fd: int) -> str:
    """Who holds the lock of an open file, for people to read; empty where the system does not tell."""
    status = os.fstat(fd)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and place in fields and fields[4].isdigit() and int(fields[4]) > 0:
                return "this process" if int(fields[4]) == os.getpid() else f"process {fields[4]}{_command(fields[4])}"
    return ""


def _command(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return f" ({' '.join(words).strip()[:80]})"


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
