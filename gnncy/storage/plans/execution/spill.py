"""A private temporary file for rows on their way to their minibatches."""
import errno
import os
import secrets
from pathlib import Path

import numpy as np

from gnncy._memory import aligned_empty, format_bytes
from gnncy.errors import StorageError
from gnncy.storage._blocks import PAGE, open_direct, reserve

_PREFIX = ".gnncy-spill-"


class SpillFile:
    """Disk space of a process's own, without a name: nothing is left of it when it is closed or the process dies.

    The file is readable by its owner only, and its name is removed as soon as it is open. Reads and writes go past the
    page cache where the file system allows it: offsets, sizes and buffers must be multiples of 4096 bytes.

    Parameters
    ----------
    folder : path-like
        Where the file lies.
    nbytes : int
        Bytes that are reserved on the disk, one page at least.

    Attributes
    ----------
    fd : int
        The descriptor; -1 when closed.
    nbytes : int
    direct : bool
        Whether the page cache is passed by.

    Raises
    ------
    StorageError
        If the folder cannot be written to, or the disk has no room for so many bytes.

    Examples
    --------
    >>> import os
    >>> from gnncy.storage.plans.execution.spill import SpillFile
    >>> with SpillFile(".", 1 << 20) as spill:
    ...     os.fstat(spill.fd).st_size, os.listdir(".")
    (1048576, [])
    """

    def __init__(self, folder, nbytes: int = 0):
        self.folder = Path(folder)
        self.fd, self.nbytes, self.direct = -1, 0, False
        self._buffered = -1
        _sweep(self.folder)
        path = self.folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            try:
                self._buffered = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                direct = open_direct(path, os.O_RDWR)
            finally:
                path.unlink(missing_ok=True)
        except OSError as error:
            self.close()
            raise StorageError(error.errno, f"cannot make a temporary file ({os.strerror(error.errno or 0)}); choose "
                                            f"another spill_folder", str(self.folder)) from error
        self.direct = direct is not None
        self.fd = self._buffered if direct is None else direct
        try:
            self.reserve(max(nbytes, PAGE))
            self._check_direct()
        except BaseException:
            self.close()
            raise

    def reserve(self, nbytes: int) -> None:
        """Make the file at least ``nbytes`` long, on disk: a full disk is an error now and not later."""
        if nbytes <= self.nbytes:
            return
        disk = os.fstatvfs(self._buffered)
        free = disk.f_bavail * disk.f_frsize
        if nbytes - self.nbytes > free:  # before a reservation that fails fills the disk for everybody
            raise StorageError(errno.ENOSPC, f"the temporary file needs {format_bytes(nbytes)} of disk, "
                                             f"{format_bytes(self.nbytes + free)} are free; free some space, choose "
                                             f"another spill_folder or a smaller window", str(self.folder))
        reserve(self._buffered, self.folder, nbytes)
        self.nbytes = nbytes

    def _check_direct(self) -> None:
        """Go through the page cache where the file system takes the flag and refuses the reads."""
        try:
            os.preadv(self.fd, [aligned_empty(PAGE, np.uint8, PAGE).data], 0)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.direct:
                raise
            os.close(self.fd)
            self.fd, self.direct = self._buffered, False

    def close(self) -> None:
        """Give the disk space back. Closing twice does nothing."""
        for fd in {self.fd, self._buffered} - {-1}:
            os.close(fd)
        self.fd = self._buffered = -1

    def __del__(self):
        if hasattr(self, "_buffered"):
            self.close()

    def __enter__(self) -> "SpillFile":
        return self

    def __exit__(self, *exc) -> None:
        self.close()


def _sweep(folder: Path) -> None:
    """Remove what processes left that died between making a file and removing its name."""
    for left in folder.glob(_PREFIX + "*-*.tmp"):
        owner = left.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            left.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
