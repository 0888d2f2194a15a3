"""Snapshots of a run: arrays and numbers in one ``.npz``, whole or absent, the last few kept."""
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gnncy import _files
from gnncy.errors import StorageError

FORMAT = "gnncy-checkpoint"
VERSION = 1
_NAME = re.compile(r"checkpoint-(\d{8})\.npz")


class SnapshotFolder:
    """Numbered snapshots ``checkpoint-00000012.npz`` in a folder, with a ``latest`` pointer.

    A snapshot is written under a temporary name, synced and renamed, then the pointer, then old ones are
    removed: a crash at any point leaves the last snapshot whole.

    Parameters
    ----------
    folder : path-like
        Made by the first snapshot if need be.
    keep : int, default 2
        Snapshots kept.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training import SnapshotFolder
    >>> snapshots = SnapshotFolder("run")
    >>> snapshots.save(3, {"weight": np.zeros(2)}, {"epoch": 1}).name
    'checkpoint-00000003.npz'
    >>> arrays, numbers = snapshots.load_latest()
    >>> numbers, arrays["weight"]
    ({'epoch': 1}, array([0., 0.]))
    """

    def __init__(self, folder, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep

    def save(self, number: int, arrays: dict[str, np.ndarray], numbers: dict) -> Path:
        """Write snapshot ``number``; ``numbers`` must be JSON. Returns its path."""
        path = self.folder / f"checkpoint-{number:08d}.npz"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_snapshot(path, arrays, numbers)
        _files.write_text(self.folder / "latest", path.name + "\n")
        for old in self._all()[:-self.keep]:
            old.unlink()
        return path

    def load_latest(self) -> tuple[dict[str, np.ndarray], dict] | None:
        """Arrays and numbers of the snapshot that ``latest`` names; None where there is none yet.

        Raises
        ------
        StorageError
            If the file is damaged, foreign or of a later format.
        """
        pointer = self.folder / "latest"
        if not pointer.exists():
            return None
        name = pointer.read_text(encoding="utf-8").strip()
        if not _NAME.fullmatch(name):
            raise StorageError(f"{pointer} should name a checkpoint, but holds {name[:80]!r}; "
                               "write the name of a whole checkpoint-*.npz into it, or delete it to start anew")
        return read_snapshot(self.folder / name)

    def _all(self) -> list[Path]:
        return sorted(p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))


def write_snapshot(path, arrays: Mapping[str, np.ndarray], numbers: Mapping) -> None:
    """Write one snapshot file, whole or not at all, and wait until it is on the disk.

    Parameters
    ----------
    path : path-like
        A file that is there is replaced.
    arrays : dict of str to ndarray
    numbers : dict
        What JSON can hold.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training import read_snapshot, write_snapshot
    >>> write_snapshot("mine.npz", {"weight": np.zeros(2)}, {"epoch": 1})
    >>> read_snapshot("mine.npz")[1]
    {'epoch': 1}
    """
    header = json.dumps({"format": FORMAT, "version": VERSION, "numbers": numbers})
    with _files.replacing(path) as temporary, open(temporary, "wb") as f:
        np.savez(f, **{"header": np.array(header)}, **{f"array/{k}": v for k, v in arrays.items()})  # type: ignore[arg-type]


def read_snapshot(path) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and numbers of one snapshot file, its checksums verified.

    Parameters
    ----------
    path : path-like
        What :func:`write_snapshot` or :meth:`SnapshotFolder.save` wrote.

    Returns
    -------
    arrays : dict of str to ndarray
    numbers : dict

    Raises
    ------
    StorageError
        If the file is missing, damaged, foreign or of a later format.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training import SnapshotFolder, read_snapshot
    >>> path = SnapshotFolder("run").save(3, {"weight": np.zeros(2)}, {"epoch": 1})
    >>> read_snapshot(path)
    ({'weight': array([0., 0.])}, {'epoch': 1})
    """
    remedy = "delete it and point 'latest' at an earlier one, or start anew in an empty folder"
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as data:
            if "header" not in data:
                raise StorageError(f"{path} is not a {FORMAT} file; {remedy}")
            header = json.loads(str(data["header"]))
            arrays = {k.removeprefix("array/"): data[k] for k in data.files if k != "header"}
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError) as error:
        raise StorageError(f"{path} is damaged or not a checkpoint ({error}); {remedy}") from error
    except FileNotFoundError as error:
        raise StorageError(f"{path} is missing; {remedy}") from error
    if header.get("format") != FORMAT:
        raise StorageError(f"{path} is not a {FORMAT} file; {remedy}")
    if header["version"] > VERSION:
        raise StorageError(f"{path} has format version {header['version']}, this gnncy reads up to {VERSION}; "
                           "upgrade gnncy")
    return arrays, header["numbers"]
