"""Gathering rows from a file that is in the page cache, beside a memory map and beside memory."""
import tempfile
from pathlib import Path

import numpy as np

from asv_bench.peers import Case, comparison


@comparison
def gather(quick, stack):
    from gnncy import FeatureStorage
    n, d = (20_000, 128) if quick else (1_000_000, 128)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), np.float32)
    store = stack.enter_context(FeatureStorage.from_array(x, folder / "features.npy"))
    mapped = np.load(folder / "features.npy", mmap_mode="r")

    for what, ids in (("random", rng.integers(0, n, min(n // 5, 100_000))),
                      ("sorted", np.sort(rng.choice(n, n // 5, replace=False)))):
        out, other = np.empty((2, len(ids), d), np.float32)
        setting = f"{len(ids) / 1e3:.0f} k {what} rows of {4 * d} bytes, file of {x.nbytes / 1e6:.0f} MB, warm"
        rate = {"unit": "MB/s", "amount": out.nbytes / 1e6, "same": np.testing.assert_array_equal}

        def ours(ids=ids, out=out):
            return store.read_batch(ids, out=out)

        # mode="clip" lets numpy write to out without a buffer of its own.
        yield Case(setting, ours, "np.memmap, take", lambda: np.take(mapped, ids, 0, out=other, mode="clip"),  # noqa: B023
                   **rate)
        yield Case(setting, ours, "limit: take from memory", lambda: np.take(x, ids, 0, out=other, mode="clip"),  # noqa: B023
                   asked=0.8 if what == "sorted" else None, **rate)
