"""Gathering and scanning rows of a file: from the page cache beside a memory map and beside memory, and past it."""
import mmap
import os
import tempfile
import threading
from pathlib import Path

import numpy as np

from asv_bench.peers import Case, comparison

WIDTH = 128


def rows_on_disk(n, stack, **options):
    """Random rows, and a store that holds them."""
    from gnncy import FeatureStorage
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    x = np.random.default_rng(0).standard_normal((n, WIDTH), np.float32)
    FeatureStorage.from_array(x, folder / "features.npy").close()
    return x, stack.enter_context(FeatureStorage(folder / "features.npy", **options))


def rate(amount, unit="MB/s"):
    return {"unit": unit, "amount": amount, "same": np.testing.assert_array_equal}


@comparison
def gather(quick, stack):
    n, d = 20_000 if quick else 1_000_000, WIDTH
    x, store = rows_on_disk(n, stack, direct=False)
    rng = np.random.default_rng(1)
    mapped = np.load(store.path, mmap_mode="r")

    for what, ids in (("random", rng.integers(0, n, min(n // 5, 100_000))),
                      ("sorted", np.sort(rng.choice(n, n // 5, replace=False)))):
        out, other = np.empty((2, len(ids), d), np.float32)
        setting = f"{len(ids) / 1e3:.0f} k {what} rows of {4 * d} bytes, file of {x.nbytes / 1e6:.0f} MB, warm"

        def ours(ids=ids, out=out):
            return store.read_batch(ids, out=out)

        # mode="clip" lets numpy write to out without a buffer of its own.
        yield Case(setting, ours, "np.memmap, take", lambda: np.take(mapped, ids, 0, out=other, mode="clip"),  # noqa: B023
                   **rate(out.nbytes / 1e6))
        yield Case(setting, ours, "limit: take from memory", lambda: np.take(x, ids, 0, out=other, mode="clip"),  # noqa: B023
                   asked=0.8 if what == "sorted" else None, **rate(out.nbytes / 1e6))


@comparison
def gather_warm(quick, stack):
    n = 20_000 if quick else 1_000_000
    x, store = rows_on_disk(n, stack, direct=False)
    rng = np.random.default_rng(1)
    for share in (1.0, 0.5, 0.2):
        ids = np.sort(rng.choice(n, int(n * share), replace=False))
        out, other, rows = np.empty_like(x[ids]), np.empty_like(x[ids]), x[ids]

        def ours(ids=ids, out=out):
            return store.read_batch(ids, out=out)

        def copy(rows=rows, other=other):
            np.copyto(other, rows)
            return other

        yield Case(f"sorted ids, {share:.0%} of a file of {x.nbytes / 1e6:.0f} MB", ours,
                   "limit: np.copyto of the rows", copy, asked=0.8 if share == 1 else None, **rate(out.nbytes / 1e6))
    for count in (100, 10_000):
        ids = rng.integers(0, n, count)
        out = np.empty((count, WIDTH), np.float32)
        yield Case(f"{count} random rows of {4 * WIDTH} bytes", lambda: store.read_batch(ids, out=out),  # noqa: B023
                   "limit: fancy indexing in memory", lambda: x[ids], **rate(count / 1e3, "k rows/s"))  # noqa: B023


def pread_loop(path, offsets, size, threads):
    """Bytes read by bare positional reads past the page cache, each thread into a buffer of its own."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    todo, lock, got = iter(offsets), threading.Lock(), []

    def work():
        buffer = mmap.mmap(-1, max(size, 2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        buffer.madvise(mmap.MADV_HUGEPAGE)
        with buffer, memoryview(buffer) as view, view[:size] as piece:
            while True:
                with lock:
                    offset = next(todo, None)
                if offset is None:
                    return
                got.append(os.preadv(fd, [piece], offset))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.close(fd)
    return sum(got)


@comparison
def scan_cold(quick, stack):
    n = 100_000 if quick else 2_000_000
    x, store = rows_on_disk(n, stack, direct=True)
    size = x.nbytes
    del x
    assert store.direct, f"{store.path} is on a file system without O_DIRECT; set TMPDIR to a disk"

    def ours():
        return sum(block.nbytes for block in store.iter_rows(32_768, read_ahead=3, reuse=True)) + 4096

    for threads, piece in ((4, 1 << 20), (16, 1 << 20)):
        yield Case(f"file of {size / 1e6:.0f} MB past the page cache, blocks of 17 MB", ours,
                   f"limit: bare preads of {piece >> 10} KiB, {threads} in flight",
                   lambda: pread_loop(store.path, range(0, size, piece), piece, threads),  # noqa: B023
                   asked=0.9, **rate(size / 1e6))


@comparison
def gather_cold(quick, stack):
    from gnncy._kernels.storage import blockio
    from gnncy.storage._blocks import arena, open_direct, together
    from gnncy.storage.plans import calibrate
    n, count = (100_000, 1_000) if quick else (2_000_000, 20_000)
    x, store = rows_on_disk(n, stack, direct=True)
    assert store.direct, f"{store.path} is on a file system without O_DIRECT; set TMPDIR to a disk"
    ids = np.sort(np.random.default_rng(1).choice(n, count, replace=False))
    pages = np.unique((4096 + ids * 512) // 4096) * 4096
    want, out = x[ids], np.empty((count, WIDTH), np.float32)
    del x
    disk = calibrate(store.path, refresh=True)
    fd = open_direct(store.path)
    stack.callback(os.close, fd)

    def ours():
        assert store.read_batch(ids, out=out) is out
        return want if np.array_equal(out, want) else out

    def bare():
        ticket = np.zeros(1, np.int64)
        together(lambda: blockio.burst(fd, pages, 4096, False, 60.0, ticket, arena()), disk.threads, lambda: None)
        return want

    def rows():
        pread_loop(store.path, pages.tolist(), 4096, disk.threads)
        return want

    setting = f"{count / 1e3:.0f} k sorted random rows of {4 * WIDTH} bytes, file of {n * 512 / 1e6:.0f} MB ({disk})"
    yield Case(setting, ours, f"limit: its pages, bare reads, {disk.threads} in flight", bare, asked=0.9,
               **rate(count / 1e3, "k rows/s"))
    yield Case(setting, ours, f"its pages, {disk.threads} Python threads and os.preadv", rows,
               **rate(count / 1e3, "k rows/s"))
