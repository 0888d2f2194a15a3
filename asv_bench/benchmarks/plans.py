"""The four plans of an epoch, past the page cache, beside plain reads and writes of as many bytes."""
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gnncy.storage import FeatureStorage
from gnncy.storage._blocks import direct_empty, open_direct
from gnncy.storage.plans import EpochPlan, calibrate, run_plan
from gnncy.storage.plans.execution.spill import SpillFile

from . import sized

ROWS = sized(1 << 20, 1 << 15)
DIM = 128
BATCHES = sized(100, 10)
MEGABYTE = 1 << 20


def plan_of(name, window, share):
    """A plan with some share of the features as memory, a third of it for hot rows."""
    memory = int(ROWS * DIM * 4 * share) + 40 * MEGABYTE
    return EpochPlan(name, hot_rows=int(ROWS * share / 3), window=window, seconds=0, bytes_read=0, bytes_written=0,
                     operations=0, peak_memory=memory)


class OnDisk:
    """Features in ``GNNCY_BENCH_FOLDER`` (a folder on the disk to measure), and minibatches of 1 % of the rows."""

    timeout = 600

    def setup(self, *params):
        self.folder = tempfile.mkdtemp(dir=os.environ.get("GNNCY_BENCH_FOLDER"))
        path = os.path.join(self.folder, "features.npy")
        blocks = (np.full((1 << 15, DIM), k, np.float32) for k in range(ROWS >> 15))
        FeatureStorage.from_blocks(path, (ROWS, DIM), blocks).close()
        self.disk = calibrate(path)
        self.store = FeatureStorage(path, direct=True, disk=self.disk)
        self.batches = [np.random.default_rng(k).integers(0, ROWS, ROWS // 100) for k in range(BATCHES)]

    def teardown(self, *params):
        self.store.close()
        shutil.rmtree(self.folder)

    def feed(self, plan):
        return run_plan(plan, self.store, self.batches, disk=self.disk)


class Epoch(OnDisk):
    """An epoch of each plan; memory a fifth of the features and 40 MB."""

    params = [["A", "B", "C", "D"]]
    param_names = ["plan"]
    number, repeat = 1, 3

    def setup(self, plan):
        super().setup()
        self.run = self.feed(plan_of(plan, {"A": 1, "B": 1}.get(plan, BATCHES), 0.2))

    def teardown(self, plan):
        self.run.close()
        super().teardown()

    def epoch(self):
        for _ in self.run:
            pass

    def time_epoch(self, plan):
        self.epoch()

    def peakmem_epoch(self, plan):
        self.epoch()

    def track_bytes_read(self, plan):
        self.epoch()
        return self.run.statistics.bytes_read


class ScanAndRepack(OnDisk):
    """Plan D's share of what the disk does with the same bytes in plain large requests."""

    params = [[1, 2, 4]]
    param_names = ["windows"]

    def track_share_of_plain_requests(self, windows):
        with self.feed(plan_of("D", BATCHES // windows, 0.1)) as run:
            shares = []
            for _ in range(sized(3, 1)):
                begun = time.perf_counter()
                for _ in run:
                    pass
                seconds = time.perf_counter() - begun
                io = run.statistics.io
                shares.append(self.plain(io.bytes_read - io.bytes_written, io.bytes_written) / seconds)
        return float(np.median(shares))

    def plain(self, scanned, spilled):
        """Seconds to read the features and write beside that, and to read what was written."""
        size = MEGABYTE
        fd = open_direct(self.store.path)
        with SpillFile(self.folder, spilled + size) as spill, ThreadPoolExecutor(16) as pool:
            buffers = direct_empty((16, size))

            def move(call, descriptor, offsets, k):
                for offset in offsets[k::8]:
                    call(descriptor, [buffers[k].data], offset)

            def start(call, descriptor, nbytes, end):
                offsets = [at % (end - size) // 4096 * 4096 for at in range(0, nbytes, size)]
                return [pool.submit(move, call, descriptor, offsets, k) for k in range(8)]

            begun = time.perf_counter()
            reads = start(os.preadv, fd, scanned, ROWS * DIM * 4)
            for future in reads + start(os.pwritev, spill.fd, spilled, spill.nbytes):
                future.result()
            for future in start(os.preadv, spill.fd, spilled, spill.nbytes):
                future.result()
            seconds = time.perf_counter() - begun
        os.close(fd)
        return seconds
