"""Ternary vectors: rules, packing, products by counting bits; the same bits at any level and thread count."""
import numpy as np
import pytest

from gnncy import _kernels
from gnncy._threads import working_threads
from gnncy.optim.compression import TernaryVector, ternary_quantize

LENGTHS = [0, 1, 3, 7, 8, 9, 15, 31, 33, 63, 64, 65, 127, 128, 200, 255, 256, 257, 1000]
RULES = ["twn", "terngrad", "reference_deterministic", "reference_stochastic"]


@pytest.fixture(params=_kernels.AVAILABLE)
def kernels(request):
    return _kernels.at_level(request.param, "ternary")


def draw(n, dtype=np.float32, seed=0):
    x = np.random.default_rng(seed).normal(size=n).astype(dtype)
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels(kernels, n, dtype):
    x, block, words = draw(n, dtype, n), 128, -(-n // 64)
    blocks = -(-n // block)
    parts = [x[b * block:(b + 1) * block].astype(np.float64) for b in range(blocks)]
    sums, stats = np.empty(blocks), np.empty((blocks, 3))
    kernels.sum_abs(0, blocks, block, x, sums)
    kernels.moments(0, blocks, block, x, stats)
    np.testing.assert_allclose(sums, [np.abs(p).sum() for p in parts], rtol=1e-6)
    expected = np.array([[p.sum(), (p**2).sum(), np.abs(p).max()] for p in parts]).reshape(blocks, 3)
    np.testing.assert_allclose(stats, expected, rtol=1e-6, atol=1e-5)

    threshold = np.linspace(0.2, 0.9, blocks).astype(dtype)
    plus, minus = np.full((2, words), 1 << 63, np.uint64)
    kept, again, planes = np.empty((blocks, 2)), np.empty((blocks, 2)), np.empty((2, words), np.uint64)
    kernels.pack_above_mean(0, blocks, block, x, 0.7, sums, plus, minus, kept)
    means = np.array([0.7 * np.abs(p).mean() for p in parts], dtype)
    kernels.pack(0, blocks, block, x, (0.7 * sums / [p.size for p in parts]).astype(dtype), *planes, again)
    np.testing.assert_array_equal((plus, minus), planes)
    np.testing.assert_array_equal(kept, again)
    np.testing.assert_allclose(kept[:, 1], [(np.abs(p) > t).sum() for p, t in zip(parts, means, strict=True)])
    kernels.pack(0, blocks, block, x, threshold, plus, minus, kept)
    wide = np.repeat(threshold, block)[:n]
    q = (x > wide).astype(int) - (x < -wide)
    vector = TernaryVector(plus, minus, np.ones(1, dtype), (n,))
    np.testing.assert_array_equal(vector.signs(), q)
    assert vector.sum() == q.sum()  # bits past the end would count
    np.testing.assert_allclose(kept[:, 1], [np.count_nonzero(q[b * block:(b + 1) * block]) for b in range(blocks)])
    total = [np.abs(p)[q[b * block:(b + 1) * block] != 0].sum() for b, p in enumerate(parts)]
    np.testing.assert_allclose(kept[:, 0], total, rtol=1e-6)

    y = draw(n, dtype, 1).copy()
    before = y.copy()
    kernels.axpy(0, blocks, block, plus, minus, threshold, y)
    np.testing.assert_allclose(y, before + wide * q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_do_not_depend_on_the_level(dtype):
    x, limit = draw(1000, dtype), np.full(8, 2.0, dtype)
    results = []
    for level in _kernels.AVAILABLE:
        plus, minus = np.zeros((2, 16), np.uint64)
        _kernels.at_level(level, "ternary").draw(0, 8, 128, x, limit, 12345, plus, minus)
        results.append((plus, minus))
    for plus, minus in results:
        np.testing.assert_array_equal(plus, results[0][0])
        np.testing.assert_array_equal(minus, results[0][1])
    assert np.any(results[0][0]) and np.any(results[0][1])


def test_s3_5_twn_scale_is_the_best_for_its_signs():
    x = draw(20_000)
    for block in (None, 1024):
        packed = ternary_quantize(x, block=block)
        q = packed.signs().astype(np.float64)
        for b in range(packed.scale.size):
            part = slice(None) if block is None else slice(b * block, (b + 1) * block)
            best = x[part] @ q[part] / (q[part] @ q[part])
            assert packed.scale[b] == pytest.approx(best, rel=1e-5)
            assert q[part].any() and (q[part] == 0).any()
            np.testing.assert_array_equal(q[part] != 0, np.abs(x[part]) > 0.7 * np.abs(x[part]).mean())
        assert np.linalg.norm(packed.unpack() - x) / np.linalg.norm(x) < 0.45


@pytest.mark.parametrize("sigma", [0.1, 0.01, 1e-30])
def test_s3_4_small_gradients_do_not_vanish(sigma):
    x = draw(5000, np.float64) * sigma
    assert ternary_quantize(x).count_nonzero() > 2000
    if sigma == 0.1:
        assert ternary_quantize(x, "reference_deterministic").count_nonzero() < 10


def test_s3_6_clipping_keeps_an_outlier_from_flooding_the_rest():
    x = draw(8192).copy()
    x[17] = 500.0
    clipped, flooded = (np.linalg.norm((ternary_quantize(x, rule).unpack() - x)[np.arange(8192) != 17])
                        for rule in ("terngrad", "reference_stochastic"))
    assert clipped < 0.5 * flooded


def test_terngrad_is_unbiased_given_the_clip():
    x, draws = draw(50, np.float64).copy(), 10_000
    x[3], x[4] = 0.0, 9.0
    sigma = x.std()
    clipped = np.clip(x, -2.5 * sigma, 2.5 * sigma)
    total, squares = np.zeros((2, 50))
    for step in range(draws):
        y = ternary_quantize(x, "terngrad", step=step).unpack()
        total += y
        squares += y**2
    mean, s = total / draws, 2.5 * sigma
    error = np.sqrt(np.maximum(np.abs(clipped) * (s - np.abs(clipped)), 0) / draws)
    assert np.all(np.abs(mean - clipped) <= 4 * error + 1e-7 * s)
    variance = (squares / draws - mean**2).sum()
    assert variance == pytest.approx(s * np.abs(clipped).sum() - clipped @ clipped, rel=0.05)


def test_s3_7_draws_depend_on_seed_step_name_and_place_alone():
    x = draw(300_000)
    first = ternary_quantize(x, "terngrad", seed=1, step=2, name="w")
    for threads in (1, 2, 3):
        with working_threads(threads):
            again = ternary_quantize(x, "terngrad", seed=1, step=2, name="w")
        np.testing.assert_array_equal(first.plus, again.plus)
        np.testing.assert_array_equal(first.minus, again.minus)
    for other in ({"seed": 2, "step": 2, "name": "w"}, {"seed": 1, "step": 3, "name": "w"},
                  {"seed": 1, "step": 2, "name": "v"}):
        assert ternary_quantize(x, "terngrad", **other).hamming(first) > 1000
    # Whoever computes a part of the tensor gets the same part.
    part = ternary_quantize(x[:64 * 1000], "terngrad", seed=1, step=2, name="w", block=64)
    whole = ternary_quantize(x, "terngrad", seed=1, step=2, name="w", block=64)
    np.testing.assert_array_equal(part.plus, whole.plus[:1000])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("block", [None, 64])
def test_s3_12_what_is_not_finite_raises(rule, bad, block):
    x = draw(500).copy()
    x[300] = bad
    with pytest.raises(ValueError, match=r"contains inf or nan values \(1 of 500\)"):
        ternary_quantize(x, rule, block=block)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("block", [None, 64])
def test_special_vectors(rule, block):
    for x in (np.zeros(100), np.full(100, -3.0), np.array([2.0]), np.full(70, 1e-310), np.zeros((0, 3)),
              np.ones((2, 3, 4))):
        packed = ternary_quantize(x, rule, block=block)
        assert packed.unpack().shape == x.shape
        assert np.isfinite(packed.unpack()).all()
        if rule != "reference_deterministic" and x.size and np.ptp(x) == 0:
            np.testing.assert_allclose(packed.unpack(), x, rtol=1e-6)


def test_packing_and_back():
    signs = np.random.default_rng(0).integers(-1, 2, 1000)
    packed = ternary_quantize(signs.astype(float), ratio=0.0, block=None)
    np.testing.assert_array_equal(packed.signs(), signs)
    np.testing.assert_array_equal(packed.unpack(), signs)
    assert packed.plus.nbytes + packed.minus.nbytes == 2 * 8 * 16
    assert packed.nbytes == 2 * 8 * 16 + packed.scale.nbytes


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_products_by_counting_bits(n):
    a, b = np.random.default_rng(n).integers(-1, 2, (2, n))
    p, q = (ternary_quantize(x.astype(np.float32), ratio=0.0) for x in (a, b))
    assert p.dot(q) == a @ b
    assert p.hamming(q) == (a != b).sum()
    assert p.sum() == a.sum()
    assert p.count_nonzero() == np.count_nonzero(a)
    size = np.sqrt((a @ a) * (b @ b))
    assert p.cosine(q) == pytest.approx(a @ b / size if size else 0)
    np.testing.assert_array_equal(p.product(q).signs(), a * b)
    np.testing.assert_array_equal(p.product(q).unpack(), a * b)


def test_add_to_in_one_pass():
    x, y = draw((30, 100)), draw((30, 100), seed=1).copy()
    before, packed = y.copy(), ternary_quantize(x, block=128)
    assert packed.add_to(y, -0.5) is y
    np.testing.assert_allclose(y, before - 0.5 * packed.unpack(), rtol=1e-6)
    wide = before.astype(np.float64)
    packed.add_to(wide, 2.0)
    np.testing.assert_allclose(wide, before + 2.0 * packed.unpack(np.float64))


def test_planes_are_written_over():
    x, old = draw(1000), ternary_quantize(draw(1000, seed=1))
    new = ternary_quantize(x, out=old)
    assert new.plus is old.plus and new.minus is old.minus
    np.testing.assert_array_equal(new.unpack(), ternary_quantize(x).unpack())
    with pytest.raises(ValueError, match="out must be a TernaryVector of 1000 elements"):
        ternary_quantize(x, out=ternary_quantize(x[:10]))


def test_bad_arguments():
    x = draw(100)
    with pytest.raises(ValueError, match="rule must be one of"):
        ternary_quantize(x, "sign")
    with pytest.raises(ValueError, match="block must be a multiple of 64, got 100"):
        ternary_quantize(x, block=100)
    with pytest.raises(TypeError, match="x must be real numbers"):
        ternary_quantize(x.astype(complex))
    packed = ternary_quantize(x)
    with pytest.raises(ValueError, match="the vectors have 100 and 99 elements"):
        packed.dot(ternary_quantize(x[:99]))
    with pytest.raises(TypeError, match="other must be a TernaryVector"):
        packed.dot(x)
    for y in (np.zeros(99), np.zeros(100, int), [0.0] * 100):
        with pytest.raises(ValueError, match="y must be a float32 or float64 array"):
            packed.add_to(y)
    with pytest.raises(ValueError, match="must be C-contiguous, writable"):
        packed.add_to(x)


def test_any_memory_order_and_type():
    x = draw((20, 30))
    expected = ternary_quantize(x)
    for other in (np.asfortranarray(x), x.astype(">f4"), x.astype(np.float64), x.copy()[:, ::1]):
        np.testing.assert_array_equal(ternary_quantize(other).signs(), expected.signs())
    assert ternary_quantize(x.astype(np.float64)).scale.dtype == np.float64
    assert ternary_quantize(np.arange(5)).scale.dtype == np.float32
