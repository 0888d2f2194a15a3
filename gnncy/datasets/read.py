"""Readers of users' own graphs."""
import csv
import errno
import gzip
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csr_array

from gnncy._check import check_finite
from gnncy.datasets.folder import index_dtype, open_adjacency
from gnncy.errors import GraphFormatError

_EDGE_LISTS = (".csv", ".tsv", ".txt", ".edges", ".edgelist", ".el")
_HEADER_WORDS = {"source", "target", "src", "dst", "from", "to", "head", "tail", "node1", "node2", "source_id",
                 "target_id", "from_node", "to_node", "fromnodeid", "tonodeid"}


_FIELDS = {"real": np.float64, "double": np.float64, "integer": np.float32, "unsigned-integer": np.float32,
           "pattern": np.float32}
_MIRRORED = {"general": 0, "symmetric": 1, "skew-symmetric": -1}


class EdgeList(NamedTuple):
    """A graph read from edges: row i of ``adjacency`` is the node that the file calls ``nodes[i]``."""

    adjacency: csr_array
    nodes: np.ndarray


def read_graph(path: str | os.PathLike, *, directed: bool = False) -> csr_array:
    r"""The adjacency matrix in a file, of the kind that its name says.

    ==================================================  ==========================================================
    ``.npz``                                            a sparse matrix saved by ``scipy.sparse.save_npz``
    ``.mtx``                                            Matrix Market
    ``.csv .tsv .txt .edges .edgelist .el``             a line an edge: two node ids ``0 .. n-1``, then optionally a
                                                        weight; comments begin with ``#`` or ``%``
    a folder                                            written by :func:`write_sbm` or :func:`write_rmat`
    ==================================================  ==========================================================

    Text files may be compressed (``.gz``). Of an edge list the separator (comma, tab, semicolon or spaces) and a
    header line are recognised, and the number of nodes is the largest id and one.

    Parameters
    ----------
    path : path
    directed : bool
        For edge lists: store an edge in the direction given only. Otherwise both directions are stored.

    Returns
    -------
    csr_array of shape (n, n)
        float32, or float64 where the file is. Columns ascend, repeated entries of a matrix are summed; an edge that
        a list repeats counts once, with its largest weight.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    GraphFormatError
        The file is not what its name says, is damaged, or its matrix is not square.

    See Also
    --------
    read_edges : edge lists whose nodes have names, or ids with gaps.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from gnncy.datasets import read_graph
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "edges.csv")
    ...     _ = path.write_text("source,target,weight\n0,1,0.5\n1,2,2\n")
    ...     read_graph(path).toarray()
    array([[0. , 0.5, 0. ],
           [0.5, 0. , 2. ],
           [0. , 2. , 0. ]], dtype=float32)
    """
    path = _existing(path)
    if path.is_dir():
        return open_adjacency(path)
    kind = _kind(path)
    if kind == ".npz":
        return _matrix(path, _npz)
    if kind == ".mtx":
        return _matrix(path, _matrix_market)
    if kind not in _EDGE_LISTS:
        raise GraphFormatError(f"{path}: unknown kind of graph file {kind!r}; known are .npz, .mtx, "
                               f"{', '.join(_EDGE_LISTS)} (also with .gz) and folders")
    table, weights = _read_table(path, names=False)
    if table.size and table.min() < 0:
        raise GraphFormatError(f"{path}: node ids must not be negative, got {table.min()}; gnncy.datasets.read_edges "
                               "numbers any ids")
    n = int(table.max(initial=-1)) + 1
    if n > max(10**6, 64 * len(table)):
        raise GraphFormatError(f"{path}: the largest node id is {n - 1:,} in {len(table):,} edges; "
                               "gnncy.datasets.read_edges numbers the nodes that occur")
    return _from_edges(table, weights, n, directed)


def read_edges(path: str | os.PathLike, *, directed: bool = False) -> EdgeList:
    r"""A graph from a list of edges between nodes of any names.

    Parameters
    ----------
    path : path
        Text file as in :func:`read_graph`, whatever the ending of its name; the first two columns are strings or
        integers.
    directed : bool
        Store an edge in the direction given only. Otherwise both directions are stored.

    Returns
    -------
    EdgeList
        ``adjacency`` (csr_array, float32) and ``nodes``, the names that occur in the file, ascending.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    GraphFormatError
        A line does not have two or three columns, or a weight is not a number.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from gnncy.datasets import read_edges
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "friends.txt")
    ...     _ = path.write_text("ann bob\nbob cid\n")
    ...     graph = read_edges(path)
    >>> graph.nodes
    array(['ann', 'bob', 'cid'], dtype='<U3')
    >>> graph.adjacency.indices
    array([1, 0, 2, 1], dtype=int32)
    """
    table, weights = _read_table(_existing(path), names=True)
    nodes, ids = np.unique(table, return_inverse=True)
    return EdgeList(_from_edges(ids.reshape(table.shape), weights, len(nodes), directed), nodes)


def _existing(path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    return path


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _npz(path: Path):
    with open(path, "rb") as file:
        return sparse.load_npz(file)


def _matrix_market(path: Path):
    """A sparse matrix, by numpy's parser: that of scipy 1.17 crashes the process where a line is damaged."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as file:
        head = file.readline().lower().split()
    if len(head) != 5 or head[:2] != ["%%matrixmarket", "matrix"]:
        raise ValueError("its first line is not that of a Matrix Market file")
    form, field, symmetry = head[2:]
    if form != "coordinate" or field not in _FIELDS or symmetry not in _MIRRORED:
        raise ValueError(f"it is of kind {form} {field} {symmetry}; known are coordinate, {' or '.join(_FIELDS)}, "
                         f"{' or '.join(_MIRRORED)}")
    lines = _lines(path)
    rows, columns, count = (int(word) for word in next(lines, "").split())
    if min(rows, columns, count) < 0:
        raise ValueError("its sizes are negative")
    names = ["row", "column", "value"][:2 if field == "pattern" else 3]
    first = next(lines, None)
    table = np.zeros(0, [(name, np.float64 if name == "value" else np.int64) for name in names])
    if first is not None:
        table = np.loadtxt(chain([first], lines), table.dtype, comments=None, ndmin=1)
    if len(table) != count:
        raise ValueError(f"it has {len(table)} entries and announces {count}")
    row, column = table["row"] - 1, table["column"] - 1
    value = np.ones(count) if field == "pattern" else table["value"]
    sign = _MIRRORED[symmetry]
    if sign:
        other = row != column
        row, column, value = (np.r_[row, column[other]], np.r_[column, row[other]],
                              np.r_[value, sign * value[other]])
    return sparse.coo_array((value.astype(_FIELDS[field]), (row, column)), shape=(rows, columns))


def _matrix(path: Path, read) -> csr_array:
    try:
        matrix = read(path)
    except (ValueError, KeyError, EOFError, TypeError, OverflowError, RuntimeError, SyntaxError, AttributeError,
            OSError, IndexError, tokenize.TokenError, zipfile.BadZipFile, zlib.error) as error:
        # what readers make of damaged files; one seeks where there is nothing
        if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and error.errno != errno.EINVAL:
            raise
        raise GraphFormatError(f"{path} holds no sparse matrix: {error}; write it with scipy.sparse.save_npz or "
                               "scipy.io.mmwrite") from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise GraphFormatError(f"{path}: an adjacency matrix must be square, got shape {matrix.shape}")
    if matrix.dtype.kind not in "fiub":
        raise GraphFormatError(f"{path}: an adjacency matrix must be real, got dtype {matrix.dtype}")
    matrix = csr_array(matrix, dtype=np.float64 if matrix.dtype == np.float64 else np.float32)
    matrix.sum_duplicates()
    return matrix


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file that are neither empty nor comments."""
    # utf-8-sig leaves out the byte order mark that some programs write.
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        for line in file:
            text = line.lstrip()
            if text and text[0] not in "#%":
                yield text


class _Form(NamedTuple):
    """How the lines of an edge list are read: options of numpy.loadtxt, the columns, and whether there are no edges."""

    options: dict[str, Any]
    columns: list[tuple[str, type]]
    empty: bool


def _form(path: Path) -> _Form:
    first = list(islice(_lines(path), 2))
    if not first:
        return _Form({}, [], True)
    separator = next((c for c in "\t,;" if c in first[-1]), None)
    rows = [_fields(line, separator) for line in first]
    width = len(rows[-1])
    if width not in (2, 3):
        raise GraphFormatError(f"{path}: an edge needs two or three columns (two nodes, a weight), got {width}: "
                               f"{first[-1].strip()!r}")
    header = _is_header(rows)
    columns: list[tuple[str, type]] = [("u", np.int64), ("v", np.int64), ("w", np.float64)]
    return _Form({"delimiter": separator, "comments": None, "quotechar": '"', "skiprows": int(header)}, columns[:width],
                 header and len(rows) == 1)


@contextmanager
def _naming(path: Path, names: bool) -> Iterator[None]:
    """Say which file it is that cannot be read, and what was expected of it."""
    try:
        yield
    except GraphFormatError:
        raise
    except UnicodeDecodeError as error:
        raise GraphFormatError(f"{path} is not a text file: {error}") from error
    except ValueError as error:
        raise GraphFormatError(f"{path}: {error}; a line must be two nodes, then optionally a number as weight"
                               + ("" if names else ", the nodes integers (gnncy.datasets.read_edges takes any names)")
                               ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise GraphFormatError(f"{path} is damaged or truncated: {error}") from error


def _read_table(path: Path, names: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Both ends of every edge (m, 2), int64 or, if ``names`` are allowed, str; and the third column or None."""
    with _naming(path, names):
        form = _form(path)
        if form.empty:
            return np.empty((0, 2), np.int64), None
        weighted = len(form.columns) == 3
        try:
            table = np.loadtxt(_lines(path), form.columns, ndmin=1, **form.options)
            return np.stack([table["u"], table["v"]], axis=1), _weights(path, table["w"]) if weighted else None
        except ValueError:
            if not names:
                raise
        table = np.char.strip(np.loadtxt(_lines(path), str, ndmin=2, **form.options))
        return table[:, :2], _weights(path, table[:, 2].astype(np.float64)) if weighted else None


def edge_lines(path: str | os.PathLike, count: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Sources, targets and, if there are any, weights of an edge list with integer ids, ``count`` lines at a time."""
    path = _existing(path)
    with _naming(path, False):
        form = _form(path)
    lines = islice(_lines(path), form.options.pop("skiprows", 0), None)
    while not form.empty:
        with _naming(path, False):
            some = list(islice(lines, count))
            if not some:
                return
            table = np.loadtxt(some, form.columns, ndmin=1, **form.options)
        ends = np.ascontiguousarray(table["u"]), np.ascontiguousarray(table["v"])
        yield (*ends, _weights(path, table["w"])) if len(form.columns) == 3 else ends


def _weights(path: Path, values: np.ndarray) -> np.ndarray:
    """The third column as it will be stored."""
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    try:
        check_finite(values, "weight")
    except ValueError as error:
        raise GraphFormatError(f"{path}: as float32, {error}") from None
    return values


def _fields(line: str, separator: str | None) -> list[str]:
    if separator is None:
        return line.split()
    return [field.strip() for field in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _number(field: str, kind) -> bool:
    try:
        kind(field)
    except ValueError:
        return False
    return True


def _is_header(rows) -> bool:
    """Whether the first of two lines names the columns: its words are known, or numbers begin in the second."""
    if {field.lower() for field in rows[0][:2]} <= _HEADER_WORDS:
        return True
    return len(rows) == 2 and (
        all(_number(field, int) for field in rows[1][:2]) and not all(_number(field, int) for field in rows[0][:2])
        or len(rows[1]) == 3 and _number(rows[1][2], float) and not _number(rows[0][-1], float))


def _from_edges(ends: np.ndarray, weights: np.ndarray | None, n: int, directed: bool) -> csr_array:
    """The matrix of the edges; of repeated ones the largest weight."""
    source, target = ends.T
    values = np.ones(len(ends)) if weights is None else weights
    if not directed:
        source, target, values = np.r_[source, target], np.r_[target, source], np.r_[values, values]
    order = np.lexsort((target, source))
    source, target, values = source[order], target[order], values[order]
    first = np.ones(len(source), bool)
    first[1:] = (source[1:] != source[:-1]) | (target[1:] != target[:-1])
    start = np.flatnonzero(first)
    dtype = index_dtype(len(start))
    indptr = np.zeros(n + 1, dtype)
    np.cumsum(np.bincount(source[start], minlength=n), out=indptr[1:])
    data = np.maximum.reduceat(values, start) if start.size else values
    return csr_array((data.astype(np.float32, copy=False), target[start].astype(dtype), indptr), shape=(n, n))
