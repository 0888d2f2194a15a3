"""What all compressors promise: exact bytes, error feedback that adds up, state, the same message every time."""
import numpy as np
import pytest

from gnncy._threads import working_threads
from gnncy.optim.compression import (
    CountSketchCompressor,
    Mod3VSACompressor,
    PowerSGDCompressor,
    SignCompressor,
    TernaryCompressor,
    TopKCompressor,
    VSAGradientCompressor,
    similarity,
)

KINDS = {
    "ternary": TernaryCompressor,
    "terngrad": lambda: TernaryCompressor("terngrad"),
    "sign": SignCompressor,
    "top-k": lambda: TopKCompressor(0.05),
    "count sketch": lambda: CountSketchCompressor(0.2),
    "power": lambda: PowerSGDCompressor(2),
    "vsa": VSAGradientCompressor,
    "vsa sparse": lambda: VSAGradientCompressor(0.5, projection="sparse"),
    "vsa float": lambda: VSAGradientCompressor(0.25, values="float"),
    "mod 3": lambda: Mod3VSACompressor(1024),
}
SHAPES = {"w": (40, 30), "b": (30,), "v": (3, 4, 5), "one": (1,)}
FEEDBACK = [kind for kind, make in KINDS.items() if make().error_feedback]


def draw(seed=0, dtype=np.float32, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def flat(gradients):
    return np.concatenate([np.ravel(gradients[name]) for name in sorted(gradients)])


@pytest.fixture(params=KINDS)
def make(request):
    return KINDS[request.param]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_come_back(make, dtype):
    gradients, compressor = draw(dtype=dtype), make()
    for gradient in gradients.values():
        gradient.flags.writeable = False
    message = compressor.compress(gradients)
    out = compressor.decompress(message)
    assert list(out) == list(gradients)
    for name, x in out.items():
        assert (x.shape, x.dtype) == (SHAPES[name], dtype)
    least = 0.02 if isinstance(compressor, CountSketchCompressor) else 0.2
    assert similarity(flat(out), flat(gradients)) > least
    assert message.nbytes < flat(gradients).nbytes
    assert message.nbytes == 16 + sum(x.nbytes for part in message.parts.values() for x in part.values())


def test_s2_17_messages_depend_on_seed_and_step_alone(make):
    gradients = draw()
    first = make().compress(gradients)
    assert first.parts.keys() == make().compress(gradients).parts.keys()
    for threads in (1, 3):
        with working_threads(threads):
            again = make().compress(gradients)
        for name, part in first.parts.items():
            for field, array in part.items():
                np.testing.assert_array_equal(again.parts[name][field], array)
    # Read by another compressor, made with the same options, which has not sent anything.
    np.testing.assert_array_equal(flat(make().decompress(first)), flat(make().decompress(again)))


def test_s2_17_order_of_names_does_not_matter_to_what_comes_back(make):
    gradients = draw()
    turned = dict(reversed(gradients.items()))
    one, other = (c.decompress(c.compress(g)) for c, g in ((make(), gradients), (make(), turned)))
    np.testing.assert_array_equal(flat(one), flat(other))


@pytest.mark.parametrize("kind", FEEDBACK)
def test_error_feedback_adds_up_and_stays_bounded(kind):
    compressor, sent, given, norms = KINDS[kind](), 0, 0, []
    for step in range(60):
        gradients = draw(step, np.float64)
        sent = sent + flat(compressor.decompress(compressor.compress(gradients)))
        given = given + flat(gradients)
        norms.append(np.linalg.norm(flat(compressor.residual)) / np.linalg.norm(flat(gradients)))
    np.testing.assert_allclose(sent + flat(compressor.residual), given, atol=1e-9)
    # Each message takes a share of the residual with it; independent gradients add up to less than the bound.
    assert norms[-1] < (40 if kind == "count sketch" else 8)
    assert np.mean(norms[40:]) < 1.6 * np.mean(norms[20:40])


def test_state_goes_on_bit_for_bit(make):
    straight, first, second = make(), make(), make()
    for step in range(3):
        straight.compress(draw(step))
        first.compress(draw(step))
    state = first.state_dict()
    first.compress(draw(9))  # the state is a copy
    second.load_state_dict(state)
    expected, got = (flat(c.decompress(c.compress(draw(3)))) for c in (straight, second))
    np.testing.assert_array_equal(got, expected)


def test_bad_input(make):
    compressor = make()
    with pytest.raises(ValueError, match="gradients is empty"):
        compressor.compress({})
    with pytest.raises(ValueError, match="gradient of 'b' contains inf or nan"):
        compressor.compress(draw() | {"b": np.array([1.0, np.nan])})
    with pytest.raises(TypeError, match="b must be real numbers"):
        compressor.compress({"b": np.array([1j])})
    assert compressor.step == 0 and not compressor.residual
    compressor.compress(draw())
    if compressor.error_feedback:
        with pytest.raises(ValueError, match=r"had shape \(30,\) and now has \(31,\)"):
            compressor.compress({"b": np.ones(31)})
    other = SignCompressor() if not isinstance(compressor, SignCompressor) else TopKCompressor()
    with pytest.raises(ValueError, match="cannot be loaded into"):
        compressor.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="the message is a"):
        other.decompress(compressor.compress(draw()))


def test_zeros_stay_zeros(make):
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    compressor = make()
    for _ in range(2):
        assert not flat(compressor.decompress(compressor.compress(zeros))).any()


def test_what_is_known_of_each():
    gradients = draw(shapes={"w": (50, 40)})
    x = gradients["w"]
    sign = SignCompressor()
    back = sign.decompress(sign.compress(gradients))["w"]
    np.testing.assert_allclose(back, np.abs(x).mean() * np.where(x >= 0, 1, -1), rtol=1e-6)
    top = TopKCompressor(0.1)
    message = top.compress(gradients)
    assert message.nbytes == 16 + 200 * 8
    back = top.decompress(message)["w"]
    assert np.count_nonzero(back) == 200
    assert np.abs(x[back == 0]).max() <= np.abs(back[back != 0]).min()
    np.testing.assert_array_equal(top.residual["w"], np.where(back == 0, x, 0))
    assert TernaryCompressor().compress(gradients).nbytes == 16 + 2 * 8 * 32 + 4
    ties = TopKCompressor(0.5)
    assert np.flatnonzero(ties.decompress(ties.compress({"w": np.ones(6)}))["w"]).tolist() == [0, 1, 2]


def test_power_iteration_finds_the_best_rank():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(30, 3)) @ np.diag([5.0, 2.0, 0.1]) @ rng.normal(size=(3, 20))
    compressor = PowerSGDCompressor(2, error_feedback=False)
    for _ in range(5):
        back = compressor.decompress(compressor.compress({"w": matrix}))["w"]
    u, s, v = np.linalg.svd(matrix)
    np.testing.assert_allclose(back, u[:, :2] * s[:2] @ v[:2], atol=1e-3 * s[0])
    assert compressor.compress({"w": matrix}).nbytes == 16 + 8 * 2 * (30 + 20)
    small = {"w": np.ones((2, 3)), "b": np.arange(4.0)}  # would not become smaller
    np.testing.assert_array_equal(flat(compressor.decompress(compressor.compress(small))), flat(small))


def test_count_sketch_finds_heavy_hitters_and_each_row_is_unbiased():
    rng = np.random.default_rng(0)
    x = 0.01 * rng.normal(size=5000)
    heavy = rng.permutation(5000)[:20]
    x[heavy] = rng.choice([-1, 1], 20) * rng.uniform(1, 2, 20)
    compressor = CountSketchCompressor(1.0, heavy=0.004, error_feedback=False)
    back = compressor.decompress(compressor.compress({"w": x}))["w"]
    assert set(np.flatnonzero(back)) == set(heavy)
    np.testing.assert_allclose(back[heavy], x[heavy], atol=0.3)

    x, draws = rng.normal(size=20), 10_000
    compressor = CountSketchCompressor(0.5, rows=1, heavy=None, error_feedback=False)
    backs = np.array([compressor.decompress(compressor.compress({"w": x}))["w"] for _ in range(draws)])
    assert np.abs((backs.mean(axis=0) - x) * np.sqrt(draws) / backs.std(axis=0)).max() < 4


@pytest.mark.parametrize(("make", "message"), [
    (lambda: TernaryCompressor("twn", block=100), "block must be a multiple of 64"),
    (lambda: TernaryCompressor("terngrad", error_feedback=True), "diverges"),
    (lambda: CountSketchCompressor(heavy=None), "diverges"),
    (lambda: TopKCompressor(1.5), "ratio must be in 0..1"),
    (lambda: PowerSGDCompressor(0), "rank must be at least 1"),
    (lambda: VSAGradientCompressor(0), "ratio must be greater than 0"),
    (lambda: VSAGradientCompressor(unbiased=True, error_feedback=True), "diverges"),
    (lambda: VSAGradientCompressor(projection="dense"), "projection must be one of"),
])
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
