"""Snapshots of a run: arrays and numbers in one ``.npz``, whole or absent, the last few kept."""
import errno
import json
import logging
import math
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gnncy import _files
from gnncy._check import check_int
from gnncy.errors import StorageError

log = logging.getLogger("gnncy")

FORMAT = "gnncy-checkpoint"
VERSION = 2  # 1 did not list its arrays
_NAME = re.compile(r"checkpoint-(\d{8,})\.npz")
_ARRAY = "$array"  # stands for an array in what JSON holds
_REMEDY = "delete it and point 'latest' at an earlier one, or start anew in an empty folder"


class _DamagedError(StorageError):
    """A snapshot cannot be read, and one before may do."""


class SnapshotFolder:
    """Numbered snapshots ``checkpoint-00000012.npz`` in a folder, with a ``latest`` pointer.

    A snapshot is written under a temporary name, synced and renamed, then the pointer, then others are
    removed: a crash at any point leaves the last snapshot whole.

    Parameters
    ----------
    folder : path-like
        Made by the first snapshot if need be.
    keep : int, default 2
        Snapshots kept, at least 1. With 2 or more, one that the disk damaged costs what was done since the one before.

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
        self.keep = check_int(keep, "keep", 1)

    def save(self, number: int, arrays: Mapping[str, np.ndarray], numbers: Mapping) -> Path:
        """Write snapshot ``number``; ``numbers`` must be JSON. Returns its path.

        Of those before, ``keep - 1`` stay. Later ones belong to a run that was begun anew, and go.
        """
        path = self.folder / f"checkpoint-{number:08d}.npz"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_snapshot(path, arrays, numbers)
        _files.write_text(self.folder / "latest", path.name + "\n")
        before = [old for old in self._all() if _number(old) < number]
        kept = {path, *before[max(len(before) - self.keep + 1, 0):]}
        for old in self._all():
            if old not in kept:
                old.unlink()
        return path

    def load_latest(self) -> tuple[dict[str, np.ndarray], dict] | None:
        """Arrays and numbers of the snapshot that ``latest`` names; None where there is none yet.

        Where that one is damaged or missing, those before it are tried, with a warning.

        Raises
        ------
        StorageError
            If none can be read, or one is of a later format.
        """
        pointer = self.folder / "latest"
        if not pointer.exists():
            return None
        name = pointer.read_bytes().decode("utf-8", "replace").strip()
        there = self._all()[::-1]
        if _NAME.fullmatch(name):
            named = self.folder / name
            there = [named, *(path for path in there if _number(path) < _number(named))]
            error: _DamagedError | None = None
        else:
            error = _DamagedError(f"{pointer} should name a checkpoint, but holds {name[:80]!r}; write the name of a "
                                  "whole checkpoint-*.npz into it, or delete it to start anew")
        for path in there:
            try:
                found = read_snapshot(path)
            except _DamagedError as damaged:
                error = error or damaged
                continue
            if error is not None:
                log.warning("%s. Continuing from %s, the last that is whole", error, path.name)
            return found
        assert error is not None
        raise error

    def _all(self) -> list[Path]:
        return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-").removesuffix(".npz"))


def pack_state(state: Mapping) -> tuple[dict[str, np.ndarray], dict]:
    """What ``state_dict()`` of anything gives, or a dict of several, as arrays and numbers for a snapshot.

    Parameters
    ----------
    state : dict
        Of arrays and what JSON can hold, nested as you like; keys are strings. Arrays are not copied.

    Returns
    -------
    arrays : dict of str to ndarray
    numbers : dict

    Raises
    ------
    TypeError
        If a key is not a string or a value is neither array nor JSON.

    See Also
    --------
    unpack_state : the reverse.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn, optim
    >>> from gnncy.training import SnapshotFolder, pack_state, unpack_state
    >>> model = nn.Linear(2, 1, rng=0)
    >>> adam = optim.Adam(model.parameters(), lr=0.1)
    >>> snapshots = SnapshotFolder("mine")
    >>> _ = snapshots.save(1, *pack_state({"model": model.state_dict(), "adam": adam.state_dict()}))
    >>> state = unpack_state(*snapshots.load_latest())
    >>> adam.load_state_dict(state["adam"])
    >>> state["adam"]["lr"]
    0.1
    """
    arrays: dict[str, np.ndarray] = {}

    def plain(value, name: str):
        if isinstance(value, np.ndarray):
            while name in arrays:  # keys may hold slashes
                name += "'"
            arrays[name] = value
            return {_ARRAY: name}
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str) or key == _ARRAY:
                    raise TypeError(f"keys of a state must be strings other than {_ARRAY!r}, got {key!r} in {name!r}")
            return {key: plain(item, f"{name}/{key}" if name else key) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item, f"{name}/{i}") for i, item in enumerate(value)]
        if isinstance(value, np.generic):
            return value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"a state holds arrays, numbers, strings, dicts and lists, got {type(value).__name__} in "
                        f"{name!r}")

    return arrays, plain(state, "")


def unpack_state(arrays: Mapping[str, np.ndarray], numbers: Mapping) -> dict:
    """The state that :func:`pack_state` took apart; tuples have become lists.

    Parameters
    ----------
    arrays : dict of str to ndarray
    numbers : dict

    Returns
    -------
    dict

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training import pack_state, unpack_state
    >>> unpack_state(*pack_state({"slots": [np.zeros(1), np.ones(1)], "lr": 0.1}))
    {'slots': [array([0.]), array([1.])], 'lr': 0.1}
    """
    def whole(value) -> Any:
        if isinstance(value, Mapping):
            return arrays[value[_ARRAY]] if _ARRAY in value else {key: whole(item) for key, item in value.items()}
        return [whole(item) for item in value] if isinstance(value, list) else value

    return whole(numbers)


def write_snapshot(path, arrays: Mapping[str, np.ndarray], numbers: Mapping) -> None:
    """Write one snapshot file, whole or not at all, and wait until it is on the disk.

    Parameters
    ----------
    path : path-like
        A file that is there is replaced.
    arrays : dict of str to ndarray
        Of numbers, not of Python objects.
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
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"arrays[{name!r}] holds Python objects, which are not written; use an array of numbers")
        if "\0" in name:
            raise ValueError(f"arrays[{name!r}]: a name ends at its first NUL in a zip file; use another")
    header = json.dumps({"format": FORMAT, "version": VERSION, "numbers": numbers, "arrays": list(arrays)})
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
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as members:
            names = members.namelist()
            if "header.npy" not in names:
                raise _DamagedError(f"{path} is not a {FORMAT} file; {_REMEDY}")
            header = json.loads(str(_read_array(members, "header.npy")))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise _DamagedError(f"{path} is not a {FORMAT} file; {_REMEDY}")
            version = header["version"]
            if version > VERSION:
                raise StorageError(f"{path} has format version {version}, this gnncy reads up to {VERSION}; upgrade "
                                   "gnncy")
            wanted = names[:]
            wanted.remove("header.npy")
            if version >= 2:
                wanted = [f"array/{name}.npy" for name in header["arrays"]]
            arrays = {name.removeprefix("array/").removesuffix(".npy"): _read_array(members, name) for name in wanted}
            return arrays, header["numbers"]
    except FileNotFoundError as error:
        raise _DamagedError(f"{path} is missing; {_REMEDY}") from error
    except StorageError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, EOFError, RuntimeError, OverflowError,
            SyntaxError, tokenize.TokenError, OSError) as error:  # what zipfile and numpy make of bytes not theirs
        # zipfile takes whatever it cannot read for a file of another kind, and seeks to where a damaged one points.
        below = error if isinstance(error, OSError) else error.__context__
        if isinstance(below, OSError) and below.errno != errno.EINVAL:
            raise StorageError(below.errno, f"{os.strerror(below.errno or 0)} while reading", str(path)) from below
        raise _DamagedError(f"{path} is damaged or not a checkpoint ({error}); {_REMEDY}") from error


def _read_array(members: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of a ``.npz``, which must fill its member to the last byte: only then is the checksum looked at."""
    size = members.getinfo(name).file_size
    with members.open(name) as file:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        count = math.prod(shape)
        if count * dtype.itemsize != size - file.tell():
            raise ValueError(f"{name} has {size - file.tell()} bytes where shape {shape} of {dtype} needs "
                             f"{count * dtype.itemsize}")
        array = np.empty(shape[::-1] if fortran else shape, dtype)
        flat, done = array.reshape(-1).view(np.uint8) if array.nbytes else np.zeros(0, np.uint8), 0
        while done < len(flat):
            part = file.read(min(_PIECE, len(flat) - done))
            if not part:
                raise EOFError(f"{name} ends early")
            flat[done:done + len(part)] = np.frombuffer(part, np.uint8)
            done += len(part)
        if file.read(1):
            raise ValueError(f"{name} is longer than its array")
        return array.T if fortran else array


_PIECE = 1 << 24  # bytes that are read at a time
