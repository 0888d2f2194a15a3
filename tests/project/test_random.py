"""Random streams are part of the format: a resumed run must draw what the first would have drawn."""
import numpy as np
import pytest

from gnncy import _random


def test_mix64_is_splitmix64():
    # The first outputs of splitmix64 from seed 0, published with the algorithm: state k * golden gamma.
    gamma = 0x9E3779B97F4A7C15
    outputs = [_random.mix64(k * gamma & (2**64 - 1)) for k in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("key, expected", [
    ((0,), 0xE220A8397B1DCDAF),
    ((1, "epoch", 2), 0x84496CA5F3BF7343),
    ((2**64 - 1, -1), 0x6309143E67A47936),
    ((7, 2**70), 0xD2765A35C289E333),
    ((7, "neighbours", 3, 0), 0xCBA4587A1B7C26E1),
])
def test_keys_do_not_change(key, expected):
    assert _random.derive(*key) == expected


def test_streams_do_not_change():
    assert _random.stream(3, "shuffle", 1).integers(0, 1000, 6).tolist() == [975, 732, 762, 898, 120, 851]
    assert _random.stream(3, "dropout").random(2).tolist() == [0.8141706466430788, 0.25388262152412766]


def test_keys_differ_wherever_their_parts_do():
    parts = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), ("a",), ("ab",), ("a", "b"), ("b", "a"), (3 * 2**64,), (-1,)]
    keys = {_random.derive(seed, *ids) for seed in (0, 1, 2) for ids in parts}
    assert len(keys) == 3 * len(parts)


def test_seed_and_id_are_not_interchangeable():
    assert _random.derive(0, 1) != _random.derive(1, 0)
    assert len({_random.derive(seed, seed) for seed in range(100)}) == 100


def test_a_stream_does_not_depend_on_what_was_drawn_before():
    first = _random.stream(0, "a").random(4)
    _random.stream(0, "b").random(1000)
    np.testing.assert_array_equal(first, _random.stream(0, "a").random(4))


def test_seed_from():
    assert _random.seed_from(5) == _random.seed_from(np.int32(5)) == 5
    assert _random.seed_from(None) != _random.seed_from(None)
    generator = np.random.default_rng(0)
    assert _random.seed_from(generator) != _random.seed_from(generator)
    assert _random.seed_from(np.random.default_rng(1)) == _random.seed_from(np.random.default_rng(1))
    assert _random.seed_from(np.random.RandomState(1)) == _random.seed_from(np.random.RandomState(1))


def test_the_global_state_is_not_touched():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    _random.stream(0, "a").random(10)
    _random.seed_from(None)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("bad, error, message", [
    (-1, ValueError, "random_state must be non-negative, got -1"),
    ("0", TypeError, "random_state must be None, an int, a numpy Generator or RandomState, got str"),
    (1.0, TypeError, "random_state must be None, an int, a numpy Generator or RandomState, got float"),
    (True, TypeError, "random_state must be None, an int, a numpy Generator or RandomState, got bool"),
])
def test_bad_seeds(bad, error, message):
    with pytest.raises(error, match=message):
        _random.seed_from(bad)
