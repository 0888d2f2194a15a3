"""Hypervectors, and gradients written as one."""
import numpy as np
import pytest
from scipy.linalg import hadamard

from gnncy import _kernels
from gnncy.optim.compression import (
    Mod3VSACompressor,
    TernaryCompressor,
    VSAGradientCompressor,
    bind,
    bundle,
    permute,
    random_hypervector,
    similarity,
    ternary_quantize,
    unbind,
)

D = 10_000


def vectors(kind, count):
    return [random_hypervector(D, kind, name=str(i)) for i in range(count)]


def normal(*shapes):
    rng = np.random.default_rng(0)
    return {str(i): rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}


def flat(gradients):
    return np.concatenate([x.reshape(-1) for x in gradients.values()])


def packed(x):
    return ternary_quantize(x, ratio=0.0, block=None)


@pytest.mark.parametrize("kind", ["bipolar", "ternary", "real"])
def test_binding_hides_and_unbinding_finds(kind):
    value, key, other = vectors(kind, 3)
    bound = bind(value, key)
    assert abs(similarity(bound, value)) < 0.05 > abs(similarity(bound, key))
    found = unbind(bound, key)
    np.testing.assert_allclose(found, np.where(key != 0, value, 0), rtol=1e-5)
    assert abs(similarity(unbind(bound, other), value)) < 0.05
    assert {"bipolar": 2, "ternary": 3}.get(kind, D) == pytest.approx(len(np.unique(key)), rel=1e-2)


@pytest.mark.parametrize("kind", ["bipolar", "ternary"])
def test_packed_words_agree_with_arrays(kind):
    a, b = vectors(kind, 2)
    p, q = packed(a), packed(b)
    np.testing.assert_array_equal(bind(p, q).unpack(), bind(a, b))
    np.testing.assert_array_equal(unbind(bind(p, q), q).unpack(), unbind(bind(a, b), b))
    np.testing.assert_allclose(bundle([p, q], [2, 3]), bundle([a, b], [2, 3]))
    assert similarity(p, q) == pytest.approx(similarity(a, b))
    for shift in (0, 1, 63, 64, 100, -7, D + 3):
        np.testing.assert_array_equal(permute(p, shift).unpack(), permute(a, shift))
        np.testing.assert_array_equal(permute(permute(p, shift), -shift).plus, p.plus)


def test_s2_18_a_real_bundle_keeps_what_a_vote_loses():
    members = vectors("bipolar", 9)
    real, vote = bundle(members), np.sign(bundle(members))
    for member in members:
        assert similarity(real, member) == pytest.approx(1 / 3, abs=0.03)
        assert similarity(vote, member) < similarity(real, member)
    weighted = bundle(members, [3] + [1] * 8)
    assert similarity(weighted, members[0]) > 0.65
    assert abs(similarity(permute(members[0]), members[0])) < 0.05


def test_hypervector_arguments():
    with pytest.raises(ValueError, match="3 and 2 elements"):
        bind(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="vectors is empty"):
        bundle([])
    with pytest.raises(ValueError, match="vectors must have one length"):
        bundle([np.ones(3), np.ones(2)])
    with pytest.raises(ValueError, match="one entry per vector, 1, got 2"):
        bundle([np.ones(3)], [1, 2])
    with pytest.raises(ValueError, match="kind must be one of"):
        random_hypervector(3, "complex")
    with pytest.raises(ValueError, match="block=None"):
        permute(ternary_quantize(np.ones(300), block=64))
    assert similarity(np.zeros(3), np.ones(3)) == 0.0


@pytest.mark.parametrize("level", _kernels.AVAILABLE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_projection_kernels(level, dtype):
    kernels = _kernels.at_level(level, "projection")
    rng = np.random.default_rng(0)
    for size in (1, 2, 4, 8, 16, 32, 64, 256):
        x = rng.normal(size=3 * size + 5).astype(dtype)
        out = x.copy()
        kernels.hadamard(1, 3, 5, size, out)
        np.testing.assert_array_equal(out[:5 + size], x[:5 + size])
        expected = x[5 + size:].reshape(2, size) @ hadamard(size) / np.sqrt(size)
        np.testing.assert_allclose(out[5 + size:].reshape(2, size), expected, rtol=1e-5, atol=1e-6)
    x = rng.normal(size=1000).astype(dtype)
    x.flags.writeable = False
    out = np.empty_like(x)
    kernels.flip(0, 448, 7, x, out)
    kernels.flip(448, 1000, 7, x, out)
    signs = out / x
    assert set(signs) == {-1, 1} and abs(signs.sum()) < 150
    kernels.flip(0, 1000, 7, out.copy(), out)
    np.testing.assert_array_equal(out, x)
    # The estimate is the sketch's transpose.
    table, y = np.zeros((3, 50), dtype), rng.normal(size=(3, 50)).astype(dtype)
    kernels.sketch(0, 3, 9, x, table)
    lifted = np.empty((3, 1000), dtype)
    kernels.estimate(0, 1000, 9, y, lifted)
    np.testing.assert_allclose((table * y).sum(axis=1), lifted @ x, rtol=1e-4, atol=1e-4)
    assert (lifted[0] != lifted[1]).mean() > 0.9


SETS = {"one tensor": [(10304,)], "sizes of three": [(8192,), (64,), (2048,)],
        "six tensors": [(64, 64), (64,), (64, 32), (32,), (64, 64), (32,)]}


@pytest.mark.parametrize("name", SETS)
def test_s2_18_cosine_at_the_references_bytes(name):
    gradients = normal(*SETS[name])
    reference, ours = Mod3VSACompressor(), VSAGradientCompressor(0.775)
    message, theirs = ours.compress(gradients), reference.compress(gradients)
    assert message.nbytes <= theirs.nbytes <= 2100
    assert similarity(flat(ours.decompress(message)), flat(gradients)) > 0.75
    if name == "sizes of three":
        assert similarity(flat(reference.decompress(theirs)), flat(gradients)) < 0.35


@pytest.mark.parametrize("projection", ["hadamard", "sparse"])
def test_s2_19_s2_23_cosine_and_norm_are_those_of_theory(projection):
    gradients = normal((20_000,))
    x = flat(gradients)
    for ratio in (0.1, 0.25, 0.5):
        compressor = VSAGradientCompressor(ratio, projection=projection, values="float")
        back = flat(compressor.decompress(compressor.compress(gradients)))
        best = np.sqrt(ratio if projection == "hadamard" else ratio / (1 + ratio))
        assert similarity(back, x) == pytest.approx(best, abs=0.02)
        # The scale is the best for the direction: the error is a right angle to what comes back.
        assert abs(back @ (x - back)) < 0.03 * (x @ x)
        quantised = VSAGradientCompressor(ratio, projection=projection)
        back = flat(quantised.decompress(quantised.compress(gradients)))
        assert 0.88 * best - 0.01 < similarity(back, x) < best


@pytest.mark.parametrize("projection", ["hadamard", "sparse"])
def test_s2_20_unbiased_over_ten_thousand_draws(projection):
    gradients, draws = normal((11,), (5,)), 10_000
    x, compressor = flat(gradients), VSAGradientCompressor(0.4, projection=projection, values="float", unbiased=True)
    backs = np.array([flat(compressor.decompress(compressor.compress(gradients))) for _ in range(draws)])
    errors = backs.std(axis=0, dtype=np.float64) / np.sqrt(draws)
    assert errors.min() > 0
    assert np.all(np.abs(backs.mean(axis=0, dtype=np.float64) - x) < 4 * errors)


def test_s2_21_nothing_but_the_message_is_stored():
    n = 768 * 768  # the reference's projection of this layer had 19 to 139 GB
    gradients = {"w": np.random.default_rng(0).standard_normal((768, 768), np.float32)}
    compressor = VSAGradientCompressor(0.1, error_feedback=False)
    message = compressor.compress(gradients)
    assert message.nbytes == 16 + 4 + 2 * 8 * -(-round(0.1 * n) // 64)
    state = compressor.state_dict()
    assert not state["residual"] and not any(isinstance(value, np.ndarray) for value in vars(compressor).values())
    with pytest.raises(ValueError, match="needs 139.*GB; use VSAGradientCompressor"):
        Mod3VSACompressor(58_982).compress(gradients)


@pytest.mark.parametrize("n", [1, 5, 64, 500, 8191])
def test_s2_22_messages_are_smaller_than_gradients(n):
    compressor = VSAGradientCompressor(0.5)
    assert compressor.coordinates(n) == max(1, round(n / 2))
    message = compressor.compress({"w": np.ones(n)})
    assert message.nbytes <= 16 + 8 + 16 * (n // 128 + 1)


@pytest.mark.parametrize("n", [1, 2, 3, 63, 64, 65, 100, 4095, 4096, 4097, 10_000])
def test_all_coordinates_give_the_gradient_back(n):
    x = np.random.default_rng(n).normal(size=n)
    compressor = VSAGradientCompressor(1.0, values="float")
    np.testing.assert_allclose(compressor.decompress(compressor.compress({"w": x}))["w"], x, atol=1e-12)


def test_every_tensor_has_its_own_scale():
    gradients = normal((5000,), (5000,))
    gradients["0"] *= 1000
    compressor = VSAGradientCompressor(1.0)
    back = compressor.decompress(compressor.compress(gradients))
    for name, x in gradients.items():
        assert similarity(back[name], x) == pytest.approx(0.9, abs=0.02)


def test_a_rotation_helps_against_outliers():
    x = np.random.default_rng(0).standard_t(2, size=8192)
    direct, rotated = TernaryCompressor(block=None), VSAGradientCompressor(1.0)
    one, other = (similarity(c.decompress(c.compress({"w": x}))["w"], x) for c in (direct, rotated))
    assert other > one + 0.05
