"""What miners give, by sorting all cosines."""
import numpy as np

STRATEGIES = ["hardest", "semi_hard", "weighted", "mixed", "random"]


def data(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def unit(x):
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.where(norm < 1e-12, 0, x / np.maximum(norm, 1e-12))


def cosine(a, c):
    return unit(np.asarray(a, np.float64)) @ unit(np.asarray(c, np.float64)).T


def hardest(s, k, allowed=None):
    """Positions of the k largest of each row, ties by position; -1 where there are fewer."""
    s = np.where(np.ones(s.shape, bool) if allowed is None else allowed, s, -np.inf)
    order = np.argsort(-s, axis=1, kind="stable")[:, :k]
    order[np.take_along_axis(s, order, 1) == -np.inf] = -1
    return np.pad(order, ((0, 0), (0, k - order.shape[1])), constant_values=-1)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name))
               for name in ("indices", "mask", "similarities", "n_hard"))


def check(mined, s, k):
    """What holds for every strategy."""
    assert mined.indices.shape == mined.mask.shape == mined.similarities.shape == (len(s), k)
    assert mined.indices.dtype == np.int64 and mined.mask.dtype == bool
    np.testing.assert_array_equal(mined.indices >= 0, mined.mask)
    assert (mined.indices[~mined.mask] == -1).all() and not mined.similarities[~mined.mask].any()
    assert not (~mined.mask[:, :-1] & mined.mask[:, 1:]).any(), "a row begins with its negatives"
    for row, (chosen, mask) in enumerate(zip(mined.indices, mined.mask, strict=True)):
        assert len(set(chosen[mask])) == mask.sum()
        np.testing.assert_allclose(mined.similarities[row, mask], s[row, chosen[mask]], atol=1e-6)
    return mined
