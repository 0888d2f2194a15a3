"""Mining hard negatives beside numpy and the bare product."""
import numpy as np

from asv_bench.peers import Case, comparison
from asv_bench.peers.losses import unit_rows


@comparison
def mining(quick, stack):
    from gnncy.losses import HardNegativeMiner
    rng = np.random.default_rng(0)
    n, m, d, k = (128, 5_000, 128, 20) if quick else (1024, 100_000, 128, 20)
    anchors, candidates = rng.standard_normal((n, d), np.float32), rng.standard_normal((m, d), np.float32)
    cosines = np.empty((n, m), np.float32)
    miner = HardNegativeMiner("hardest", k)

    def product():
        np.matmul(anchors, candidates.T, out=cosines)

    def numpy_top():
        np.matmul(unit_rows(anchors)[0], unit_rows(candidates)[0].T, out=cosines)
        top = np.argpartition(-cosines, k, axis=1)[:, :k]
        values = np.take_along_axis(cosines, top, 1)
        order = np.argsort(-values, axis=1)
        return np.take_along_axis(top, order, 1), np.take_along_axis(values, order, 1)

    def same(mined, theirs):
        assert np.mean(mined.indices == theirs[0]) > 0.999  # but for cosines that are equal to the last digits
        np.testing.assert_allclose(mined.similarities, theirs[1], atol=1e-5)

    def ours():
        return miner.mine(anchors, None, candidates)

    setting = f"top {k} of {m / 1e3:g} k for {n} anchors, {d}"
    yield Case(setting, ours, "numpy, product and argpartition", numpy_top, asked=2, same=same)
    yield Case(setting, ours, "limit: the bare product", product, asked=0.87)
    for strategy in ("weighted", "mixed"):
        other = HardNegativeMiner(strategy, k)
        yield Case(f"{strategy}, the same", lambda other=other: other.mine(anchors, None, candidates),
                   "limit: the bare product", product)
