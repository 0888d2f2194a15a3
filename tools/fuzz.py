"""Feeds damaged files to every reader; counts crashes, hangs, foreign exceptions and silent wrong answers.

    python tools/fuzz.py [--inputs 20000] [--seed 0] [--keep DIR] [TARGET ...]

Inputs are mutations of good files: flipped bits, other bytes, pieces cut, repeated or taken from a neighbour, other
numbers and words in text, missing files. What reaches lines of gnncy in a new order is mutated further. A reader must
give an error of its own kind that names the file, or the right answer; where a file has checksums, what ``verify`` lets
pass must be right. Exit status 1 if any input does otherwise; ``--keep`` writes these there.
"""
import argparse
import contextlib
import logging
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import scipy.io
import scipy.sparse as sp

import gnncy
from gnncy import datasets
from gnncy.errors import GnncyError, GraphFormatError
from gnncy.graph import aggregate, as_csr
from gnncy.storage import FeatureStorage, SparseFeatureStorage
from gnncy.training import SnapshotFolder

PACKAGE = str(Path(gnncy.__file__).parent)
SECONDS, MEMORY = 10, 4 << 30
RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 24)).astype(np.float32)
WORDS = sp.random_array((40, 30), density=0.15, rng=RNG, dtype=np.float32).tocsr()
GRAPH = sp.random_array((30, 30), density=0.1, rng=RNG, dtype=np.float32).tocsr()
NUMBERS = (b"0", b"-1", b"1", b"7", b"2147483648", b"9223372036854775808", b"1e400", b"nan", b"null", b"true", b"[]",
           b"{}", b'""', b"1" * 40)


# Targets: good files, and what reading them must give

class Dense:
    dtype, order, suffixes = np.float32, None, ("", ".json", ".crc32.npy")

    def make(self, folder):
        FeatureStorage.from_array(X, folder / "x.npy", order=self.order, dtype=self.dtype).close()

    def read(self, folder):
        with FeatureStorage(folder / "x.npy") as store:
            store.read_batch([0, store.n_nodes - 1])
            if not store.verify():
                return None  # which says what is damaged
            return [store[:], store.finite_checked]


class Ordered(Dense):
    order = RNG.permutation(len(X))


class Half(Dense):
    dtype = np.float16


class Writer(Ordered):
    """Opened for writing: nothing may be changed by that."""

    def read(self, folder):
        FeatureStorage(folder / "x.npy", "r+").close()
        return super().read(folder)


class Plain:
    """Without checksums: any rows may come of it, but no crash."""

    def make(self, folder):
        np.save(folder / "x.npy", X)

    def read(self, folder):
        with FeatureStorage(folder / "x.npy") as store:
            store.verify()
            store.read_batch([0, store.n_nodes - 1])


class Reference:
    def make(self, folder):
        words = np.array([24, 8, 4096], "<u8")
        rows = b"".join(row.tobytes().ljust(4096, b"\0") for row in X[:8])
        (folder / "x.npy").write_bytes(words.tobytes() + rows)

    read = Plain.read


class Sparse:
    def make(self, folder):
        SparseFeatureStorage.from_csr(WORDS, folder / "words").close()

    def read(self, folder):
        with SparseFeatureStorage(folder / "words") as store:
            store.read_batch([0, store.shape[0] - 1])
            if not store.verify():
                return None
            return [store.read_rows(0, store.shape[0]).toarray()]


class Snapshot:
    def make(self, folder):
        for number in (1, 2):
            arrays = {"w": X * number, "nothing": np.zeros((0, 2)), "f": np.asfortranarray(X[:5]),
                      "n": np.array(number)}
            SnapshotFolder(folder).save(number, arrays, {"at": number, "name": "run", "list": [1.5, None]})

    def read(self, folder):
        found = SnapshotFolder(folder).load_latest()
        if found is None:
            return None
        arrays, numbers = found
        number = numbers["at"]
        assert number in (1, 2) and arrays.keys() == {"w", "nothing", "f", "n"}, "another snapshot"
        assert numbers == {"at": number, "name": "run", "list": [1.5, None]}, "other numbers"
        arrays["w"] = arrays["w"] / np.float32(number)
        assert int(arrays.pop("n")) == number, "another array"
        return list(arrays.values())


class Text:
    """Graphs in files of other programs: any graph may come of it, but no crash."""

    name: str

    def make(self, folder):
        edges = np.stack(GRAPH.nonzero(), 1)
        lines = ["source,target,weight", *(f"{a},{b},{(a + b) / 2}" for a, b in edges)]
        (folder / self.name).write_text("\n".join(lines) + "\n")

    def read(self, folder):
        found = datasets.read_graph(folder / self.name)
        assert found.shape[0] == found.shape[1] and found.has_canonical_format
        if found.nnz:
            assert 0 <= found.indices.min() and found.indices.max() < found.shape[0]


class CSV(Text):
    name = "edges.csv"


class Names(Text):
    name = "edges.txt"

    def read(self, folder):
        found = datasets.read_edges(folder / self.name)
        assert len(found.nodes) == found.adjacency.shape[0]


class Market(Text):
    name = "graph.mtx"

    def make(self, folder):
        scipy.io.mmwrite(folder / self.name, GRAPH.tocoo())


class Npz(Text):
    name = "graph.npz"

    def make(self, folder):
        sp.save_npz(folder / self.name, GRAPH, compressed=False)


class Folder:
    def make(self, folder):
        datasets.write_sbm(folder / "graph", 30, 3, n_features=4, seed=0)

    def read(self, folder):
        data = datasets.open_graph(folder / "graph")
        with data.features:
            matrix = data.adjacency
            assert matrix.shape == (data.n_nodes, data.n_nodes) and len(data.labels) == data.n_nodes
            with contextlib.suppress(GraphFormatError):  # mapped, not read: what takes a graph checks it first
                matrix = as_csr(matrix)
                aggregate(matrix, np.ones((data.n_nodes, 4), np.float32))


TARGETS = {"dense": Dense, "ordered": Ordered, "float16": Half, "writer": Writer, "plain": Plain,
           "reference": Reference, "sparse": Sparse, "snapshot": Snapshot, "csv": CSV, "names": Names,
           "market": Market, "npz": Npz, "folder": Folder}


# Mutations

def mutate(files: dict[str, bytes], draw: random.Random) -> dict[str, bytes]:
    files = dict(files)
    for _ in range(1 + min(int(draw.expovariate(1.0)), 5)):
        name = draw.choice(sorted(files))
        if draw.random() < 0.02 and len(files) > 1:
            del files[name]
            continue
        files[name] = change(files[name], draw, files)
    return files


def change(data: bytes, draw: random.Random, files: dict[str, bytes]) -> bytes:
    data = bytearray(data)
    size = len(data)
    if not size:
        return draw.choice(NUMBERS)
    # headers and ends are small and say everything: half of the changes are there
    at = draw.choice((draw.randrange(size), draw.randrange(min(size, 200)), size - 1 - draw.randrange(min(size, 200))))
    length = min(int(draw.expovariate(0.1)) + 1, size - at)
    kind = draw.randrange(11)
    if kind <= 1:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 2:
        data[at] = draw.choice((0, 255, 127, 10, 32, 48, 57, draw.randrange(256)))
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at:at + length]
    elif kind == 5:
        data[at:at] = data[at:at + length]
    elif kind == 6:
        data[at:at + length] = bytes(length)
    elif kind == 7:
        other = files[draw.choice(sorted(files))]
        start = draw.randrange(max(len(other), 1))
        data[at:at + length] = other[start:start + length]
    elif kind == 8:
        data += draw.randbytes(length)
    else:
        found = [m for m in re.finditer(rb"-?\d+(?:\.\d+)?|true|false|null|\"[^\"\n]{0,40}\"", bytes(data[:4096]))]
        if found:
            token = draw.choice(found)
            data[token.start():token.end()] = draw.choice(NUMBERS + tuple(m.group() for m in found[:20]))
    return bytes(data)


class Coverage:
    """Pairs of lines of gnncy that ran one after the other."""

    def __init__(self):
        self.seen: set = set()
        self.new = 0

    def __enter__(self):
        self.new = 0
        sys.settrace(self._call)

    def __exit__(self, *error):
        sys.settrace(None)

    def _call(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        before = 0

        def line(frame, event, argument):
            nonlocal before
            pair = (id(frame.f_code), before, frame.f_lineno, event == "exception")
            before = frame.f_lineno
            if pair not in self.seen:
                self.seen.add(pair)
                self.new += 1
            return line
        return line


class HangError(BaseException):
    pass


def hangs(*arguments):
    raise HangError


def judge(target, folder, expected) -> str:
    """What came of reading a folder; capital letters for what must not be."""
    try:
        signal.alarm(SECONDS)
        found = target.read(folder)
    except HangError:
        return "HANG"
    except (GnncyError, FileNotFoundError) as error:
        return "error" if str(folder) in str(error) else f"UNNAMED {error!r}"
    except MemoryError:
        return "error"  # a size that is not there to be had
    except AssertionError as error:
        return f"WRONG {error}"
    except BaseException as error:
        where = error.__traceback__
        while where.tb_next and where.tb_next.tb_frame.f_code.co_filename.startswith(PACKAGE):
            where = where.tb_next
        return f"FOREIGN {type(error).__name__} at {where.tb_frame.f_code.co_name}:{where.tb_lineno}: {error}"
    finally:
        signal.alarm(0)
    if found is None or expected is None:
        return "answered"
    same = len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    return "right" if same else "WRONG"


def load(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def store(files: dict[str, bytes], folder: Path, before: dict[str, bytes]) -> None:
    for name in before.keys() | files.keys():
        path = folder / name
        if name not in files:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.stat().st_mtime_ns != 0 or before.get(name) != files[name]:
            path.write_bytes(files[name])


def fuzz(name: str, inputs: int, seed: int, folder: Path, keep: Path | None, report) -> None:
    """In a process of its own: a crash ends it."""
    target, draw, coverage = TARGETS[name](), random.Random(f"{seed} {name}"), Coverage()
    good = folder / "good"
    good.mkdir()
    target.make(good)
    corpus, expected = [load(good)], target.read(good)
    work = folder / "work"
    shutil.copytree(good, work)
    before = corpus[0]
    for k in range(inputs):
        files = mutate(corpus[0] if draw.random() < 0.5 else draw.choice(corpus), draw)
        for extra in [p for p in work.rglob("*") if p.is_file() and str(p.relative_to(work)) not in before]:
            extra.unlink()
        store(files, work, before)
        before = files
        with coverage:
            verdict = judge(target, work, expected)
        if coverage.new:
            corpus.append(files)
        report(f"{verdict}\n")
        if verdict.split()[0].isupper() and keep is not None:
            place = keep / f"{name}-{zlib.crc32(verdict.encode()):08x}"
            if not place.exists():
                shutil.copytree(work, place)
                (place / "verdict.txt").write_text(f"{name}, seed {seed}, input {k}: {verdict}\n")


def run(name: str, inputs: int, seed: int, folder: Path, keep: Path | None) -> Counter:
    verdicts = folder / "verdicts"
    child = os.fork()
    if child == 0:
        status = 70
        try:
            logging.disable()
            warnings.simplefilter("error")
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.signal(signal.SIGALRM, hangs)
            with open(verdicts, "w", buffering=1) as file:
                fuzz(name, inputs, seed, folder, keep, file.write)
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = Counter(verdicts.read_text().splitlines())
    if status:
        found[f"CRASH with status {status} at input {sum(found.values())}"] += 1
        if keep is not None:
            with contextlib.suppress(FileExistsError):
                shutil.copytree(folder / "work", keep / f"{name}-crash")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--inputs", type=int, default=20_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that went wrong")
    options = parser.parse_args()
    total: Counter = Counter()
    print(f"{'reader':<12}{'inputs':>9}{'errors':>9}{'right':>9}{'answered':>9}{'crash':>8}{'hang':>8}{'foreign':>8}"
          f"{'wrong':>8}{'seconds':>9}", flush=True)
    kinds = ("error", "right", "answered", "CRASH", "HANG", "FOREIGN", "WRONG")
    for name in options.targets:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = run(name, -(-options.inputs // len(options.targets)), options.seed, Path(folder), options.keep)
        count = Counter()
        for verdict, times in found.items():
            kind = verdict.split()[0]
            count["FOREIGN" if kind == "UNNAMED" else kind] += times
        total += count
        print(f"{name:<12}{sum(count.values()):>9}" + "".join(
            f"{count[kind]:>{9 if kind.islower() else 8}}" for kind in kinds) + f"{time.monotonic() - began:>9.0f}",
            flush=True)
        for verdict, times in found.most_common():
            if verdict.split()[0].isupper():
                print(f"    {times:>6} x {verdict[:200]}", flush=True)
    print(f"{'all':<12}{sum(total.values()):>9}" + "".join(
        f"{total[kind]:>{9 if kind.islower() else 8}}" for kind in kinds))
    return 1 if any(total[kind] for kind in kinds if kind.isupper()) else 0


if __name__ == "__main__":
    sys.exit(main())
