import numpy as np
import pytest

from gnncy.losses import drop_blocks


def test_whole_blocks_go_and_one_stays():
    x = np.ones((4000, 12), np.float32)
    view = drop_blocks(x, 3, 0.6, key=5).reshape(4000, 4, 3)
    assert np.array_equal(view.min(axis=2), view.max(axis=2))
    kept = (view[:, :, 0] > 0).sum(axis=1)
    assert kept.min() == 1 and kept.max() == 4
    np.testing.assert_allclose(view[:, :, 0].sum(axis=1), 4, rtol=1e-6)  # scaled so that the row's sum stays
    assert abs(view.mean() - 1) < 1e-3
    assert np.array_equal(x, np.ones_like(x))


def test_the_key_is_the_draw():
    x = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    assert np.array_equal(drop_blocks(x, 2, 0.5, key=1), drop_blocks(x, 2, 0.5, key=1))
    assert not np.array_equal(drop_blocks(x, 2, 0.5, key=1), drop_blocks(x, 2, 0.5, key=2))
    assert drop_blocks(x.astype(np.float64), 2, 0.5, key=1).dtype == np.float64


@pytest.mark.parametrize("block, rate, message", [(3, 0.5, "multiple of block=3"), (0, 0.5, "block"), (2, 1.5, "rate")])
def test_bad_arguments(block, rate, message):
    with pytest.raises(ValueError, match=message):
        drop_blocks(np.ones((2, 8), np.float32), block, rate, key=0)
