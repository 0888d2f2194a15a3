"""Rows in int8 with a scale each, and float16: rounding, its bound, and the interface of FeatureStorage."""
import pickle

import numpy as np
import pytest

from gnncy import _kernels
from gnncy.errors import StorageError
from gnncy.storage import FeatureStorage, QuantizedFeatureStorage, as_storage

LENGTHS = [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100]


@pytest.fixture(params=_kernels.AVAILABLE)
def kernel(request):
    return _kernels.at_level(request.param, "narrow")


def coded(kernel, x):
    rows, back = np.empty((len(x), x.shape[1] + 4), np.uint8), np.full_like(x, np.nan)
    kernel.quantise(x, 0, len(x), rows)
    kernel.dequantise(rows, np.arange(len(x)), back)
    return rows, back


@pytest.mark.parametrize("d", LENGTHS)
def test_the_error_is_half_a_step_at_most(kernel, d):
    rng = np.random.default_rng(d)
    with np.errstate(under="ignore"):
        x = (rng.standard_normal((200, d)) * 10.0 ** rng.integers(-44, 37, (200, 1))).astype(np.float32)
    x[0], x[1] = 0, np.float32(1e-45)
    x[2, 0] = np.finfo(np.float32).max
    x.setflags(write=False)
    rows, back = coded(kernel, x)
    scale = rows[:, :4].copy().view(np.float32).ravel().astype(np.float64)
    q = rows[:, 4:].view(np.int8).astype(np.float64)
    top = np.abs(x).max(axis=1).astype(np.float64)
    assert (np.abs(q) <= 127).all()
    np.testing.assert_allclose(127 * scale, top, rtol=1e-6, atol=2e-43)
    assert (np.abs(x - q * scale[:, None]) <= scale[:, None] / 2).all()
    assert np.array_equal(back, (scale[:, None] * q).astype(np.float32)) and np.isfinite(back).all()
    assert not back[0].any()


def test_ties_go_to_even(kernel):
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.49]], np.float32)
    assert coded(kernel, x)[0][0, 4:].view(np.int8).tolist() == [127, 0, 2, 2, 0, -2, -2, 3]


def test_levels_agree():
    x = np.random.default_rng(0).standard_normal((300, 33)).astype(np.float32)
    first, *others = [coded(_kernels.at_level(level, "narrow"), x)
                      for level in _kernels.AVAILABLE]
    for other in others:
        assert np.array_equal(first[0], other[0]) and np.array_equal(first[1], other[1])


@pytest.mark.parametrize("d", LENGTHS)
def test_rows_go_to_their_places(kernel, d):
    x = np.random.default_rng(0).standard_normal((9, d)).astype(np.float32)
    rows, back = coded(kernel, x)
    places = np.array([8, 0, 3])
    for read_only in (rows, places):
        read_only.setflags(write=False)
    out = np.zeros((9, d), np.float32)
    kernel.dequantise(rows[:3], places, out)
    assert np.array_equal(out[places], back[:3]) and not out[[1, 2, 4, 5, 6, 7]].any()
    half, wide = x.astype(np.float16), np.zeros((9, d), np.uint32)
    kernel.widen(half[:3].view(np.uint16), places, wide)
    assert np.array_equal(wide.view(np.float32)[places], half[:3].astype(np.float32))


def test_every_float16_is_widened_to_its_float32(kernel):
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 64)
    out = np.empty(bits.shape, np.uint32)
    kernel.widen(bits, np.arange(len(bits)), out)
    assert np.array_equal(out, bits.view(np.float16).astype(np.float32).view(np.uint32))


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((1000, 21)).astype(np.float32)


def near(store, x):
    return np.abs(store - x).max() <= np.abs(x).max() / 254


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("order", [False, True])
def test_it_reads_as_a_feature_storage(tmp_path, x, order, direct):
    places = np.random.default_rng(1).permutation(1000) if order else None
    ids = np.random.default_rng(2).integers(0, 1000, 300)
    QuantizedFeatureStorage.from_array(x, tmp_path / "q.npy", order=places).close()
    with QuantizedFeatureStorage(tmp_path / "q.npy", direct=direct) as store:
        assert store.shape == (1000, 21) and store.dtype == np.float32 and store.file_dtype == np.int8
        assert store.nbytes == 25 * 1000 and store.finite_checked
        whole = store[:]
        assert whole.dtype == np.float32 and near(whole, x)
        out = np.empty((300, 21), np.float32)
        assert store.read_batch(ids, out) is out
        assert np.array_equal(out, whole[ids]) and np.array_equal(store.take(ids), out)
        assert np.array_equal(store.read_features(7), whole[7])
        stored = whole if places is None else whole[places]
        assert np.array_equal(store.read_rows(10, 700), stored[10:700])
        assert np.array_equal(np.concatenate(list(store.iter_rows(64, read_ahead=1))), stored)
        assert np.array_equal(np.asarray(store), whole)
        assert store.verify()
        assert repr(store).startswith("QuantizedFeatureStorage(") and "int8" in repr(store)
        with pickle.loads(pickle.dumps(store)) as again:
            assert type(again) is QuantizedFeatureStorage and np.array_equal(again[:], whole)
    raw = np.load(tmp_path / "q.npy")
    assert raw.shape == (1000, 25) and raw.dtype == np.int8
    assert np.array_equal(raw[:, :4].copy().view("<f4") * raw[:, 4:], stored)


def test_it_is_written_in_place_and_reordered(tmp_path, x):
    with QuantizedFeatureStorage.create(tmp_path / "q.npy", 1000, 21) as store:
        assert not store[:].any()
        store.write_features(np.arange(1000), x)
        store.write_features(3, 2 * x[3])
        with pytest.raises(ValueError, match="inf or nan"):
            store.write_features([1], np.full((1, 21), np.nan))
        with pytest.raises(ValueError, match=r"must have shape \(n, 21\)"):
            store.write_features([1], np.zeros((1, 25)))
        store.flush()
        before = store[:]
        assert near(before[4:], x[4:]) and np.abs(before[3] - 2 * x[3]).max() <= np.abs(x[3]).max() / 127
        store.reorder(np.random.default_rng(0).permutation(1000), memory_limit="12MB")
        assert np.array_equal(store[:], before) and store.order is not None
        assert store.verify()


def test_from_blocks_and_from_a_file_with_an_order(tmp_path, x):
    with QuantizedFeatureStorage.from_blocks(tmp_path / "a.npy", x.shape, [x[:300], x[300:]]) as a:
        with FeatureStorage.from_array(x, tmp_path / "x.npy") as source:
            order = np.random.default_rng(0).permutation(1000)
            with QuantizedFeatureStorage.from_array(source, tmp_path / "b.npy", order=order) as b:
                assert np.array_equal(a[:], b[:]) and np.array_equal(b.order, order)


def test_convert_there_and_back(tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    with QuantizedFeatureStorage.convert(tmp_path / "x.npy", tmp_path / "q.npy") as store:
        whole = store[:]
    assert near(whole, x)
    with (as_storage(tmp_path / "q.npy") as source,
          FeatureStorage.from_array(source, tmp_path / "y.npy") as back):
        assert back.file_dtype == np.float32 and np.array_equal(back[:], whole)
    with QuantizedFeatureStorage.convert(tmp_path / "q.npy") as same:
        np.testing.assert_allclose(same[:], whole, atol=np.abs(whole).max() * 1e-6)


def test_values_that_are_not_finite_are_refused(tmp_path, x):
    for bad in (np.nan, np.inf, 1e300):
        y = x.astype(np.float64)
        y[5, 6] = bad
        with pytest.raises(ValueError, match="inf or nan"):
            QuantizedFeatureStorage.from_array(y, tmp_path / "q.npy")
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_told_apart(tmp_path, x):
    FeatureStorage.from_array(x, tmp_path / "x.npy").close()
    QuantizedFeatureStorage.from_array(x, tmp_path / "q.npy").close()
    np.save(tmp_path / "plain.npy", np.zeros((4, 9), np.int8))
    with pytest.raises(StorageError, match="not a file of quantised rows"):
        QuantizedFeatureStorage(tmp_path / "x.npy")
    with pytest.raises(StorageError, match="not a file of quantised rows"):
        QuantizedFeatureStorage(tmp_path / "plain.npy")
    with pytest.raises(StorageError, match="rows of dtype int8"):
        FeatureStorage(tmp_path / "q.npy")
    with as_storage(tmp_path / "q.npy") as store:
        assert type(store) is QuantizedFeatureStorage
    (tmp_path / "q.npy").write_bytes((tmp_path / "q.npy").read_bytes()[:-1])
    with pytest.raises(StorageError, match="truncated"):
        QuantizedFeatureStorage(tmp_path / "q.npy")


def test_float16_is_widened_on_every_way_in(tmp_path, x):
    half = x.astype(np.float16)
    with FeatureStorage.from_array(half, tmp_path / "h.npy") as store:
        assert np.array_equal(store[:], half.astype(np.float32))
        assert np.array_equal(store.read_batch([5, 999, 5]), half[[5, 999, 5]].astype(np.float32))


def test_rows_can_be_appended(tmp_path, x):
    with QuantizedFeatureStorage.from_array(x, tmp_path / "whole.npy") as whole:
        QuantizedFeatureStorage.from_array(x[:10], tmp_path / "grown.npy").close()
        with QuantizedFeatureStorage(tmp_path / "grown.npy", "r+") as store:
            store.append(x[10:])
            np.testing.assert_array_equal(store[:], whole[:])
            assert store.verify().ok
