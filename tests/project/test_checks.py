import numpy as np
import pytest

from gnncy import _check, errors


@pytest.mark.parametrize("given, kept", [(np.float32, np.float32), (np.float64, np.float64), (np.int64, np.float32),
                                         (bool, np.float32), (np.float16, np.float32), (">f4", np.float32),
                                         (">f8", np.float64)])
def test_width_is_kept(given, kept):
    array = _check.check_array(np.ones((2, 3), given), "x")
    assert array.dtype == np.dtype(kept) and array.dtype.isnative and array.flags.c_contiguous


def test_a_fitting_array_is_not_copied():
    x = np.ones((2, 3), np.float32)
    x.setflags(write=False)
    assert _check.check_array(x, "x") is x


def test_the_callers_array_is_not_changed():
    x = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    array = _check.check_array(x, "x", dtype=np.float32)
    array[:] = 9
    assert x[0, 1] == 1 and array.flags.c_contiguous


@pytest.mark.parametrize("value, error, message", [
    (np.array([["a"]]), TypeError, "features must be numeric, got dtype <U1"),
    (np.array([[None]]), TypeError, "features must be numeric, got dtype object"),
    (np.ones((1, 1), complex), ValueError,
     "Complex data not supported: features has dtype complex128; pass its real part"),
    (np.ones(7), ValueError, r"features must be 2-dimensional, got shape \(7,\)\. Reshape your data"),
    (np.ones((1, 2, 3)), ValueError, r"features must be 2-dimensional, got shape \(1, 2, 3\)$"),
    (np.ones((0, 4)), ValueError, r"features is empty: 0 sample\(s\)"),
    (np.array([[1, 2], [3, np.nan]]), ValueError,
     r"features contains inf or nan values \(1 of 4, first at index \(1, 1\)\); remove or impute them first"),
    (np.array([[np.inf, -np.inf]]), ValueError, r"features contains inf or nan values \(2 of 2"),
])
def test_bad_arrays(value, error, message):
    with pytest.raises(error, match=message):
        _check.check_array(value, "features")


def test_large_finite_values_are_finite():
    x = np.full((2, 2), np.finfo(np.float64).max)
    assert _check.check_array(x, "x") is x


def test_empty_and_not_finite_where_allowed():
    assert _check.check_array(np.ones((0, 4)), "x", allow_empty=True).shape == (0, 4)
    assert np.isnan(_check.check_array([[np.nan]], "x", finite=False)).all()


def test_ids():
    ids = _check.check_ids([3, 0, 3], 4, "nodes")
    assert ids.dtype == np.int64 and ids.tolist() == [3, 0, 3]
    assert _check.check_ids(np.array([True, False, True]), 3, "nodes").tolist() == [0, 2]
    assert _check.check_ids(np.array([1], np.uint8), 3, "nodes").tolist() == [1]
    assert _check.check_ids([], 3, "nodes").shape == (0,)


@pytest.mark.parametrize("value, error, message", [
    ([0.5], TypeError, "nodes must be integers, got dtype float64"),
    ([[0]], ValueError, r"nodes must be 1-dimensional, got shape \(1, 1\)"),
    ([0, 4], IndexError, r"nodes must lie in 0\.\.3, got 4"),
    ([-1, 0], IndexError, r"nodes must lie in 0\.\.3, got -1"),
    (np.ones(3, bool), ValueError, r"nodes: a boolean mask must have shape \(4,\), got \(3,\)"),
])
def test_bad_ids(value, error, message):
    with pytest.raises(error, match=message):
        _check.check_ids(value, 4, "nodes")


@pytest.mark.parametrize("value, low, high, error, message", [
    (1.0, None, None, TypeError, r"k must be an integer, got 1\.0"),
    (True, None, None, TypeError, "k must be an integer, got True"),
    (0, 1, None, ValueError, "k must be at least 1, got 0"),
    (9, None, 8, ValueError, "k must be at most 8, got 9"),
    (9, 1, 8, ValueError, r"k must be in 1\.\.8, got 9"),
])
def test_bad_integers(value, low, high, error, message):
    with pytest.raises(error, match=message):
        _check.check_int(value, "k", low, high)


@pytest.mark.parametrize("value, bounds, error, message", [
    ("1", {}, TypeError, "rate must be a number, got '1'"),
    (float("nan"), {}, ValueError, "rate must be finite, got nan"),
    (0, {"above": 0}, ValueError, "rate must be greater than 0, got 0"),
    (1.5, {"low": 0, "high": 1}, ValueError, r"rate must be in 0\.\.1, got 1\.5"),
])
def test_bad_numbers(value, bounds, error, message):
    with pytest.raises(error, match=message):
        _check.check_float(value, "rate", **bounds)


def test_good_numbers():
    assert _check.check_int(np.int8(3), "k", 3, 3) == 3
    assert _check.check_float(np.float32(0.5), "rate", 0, 1) == 0.5
    assert _check.check_float(1, "rate", above=0) == 1.0


def test_choices():
    assert _check.check_choice("mean", "reduce", ("mean", "sum")) == "mean"
    with pytest.raises(ValueError, match="reduce must be one of 'mean', 'sum', got 'max'"):
        _check.check_choice("max", "reduce", ("mean", "sum"))


@pytest.mark.parametrize("error, caught", [
    (errors.GraphFormatError, ValueError), (errors.StorageError, OSError), (errors.MemoryLimitError, MemoryError),
    (errors.NotFittedError, ValueError), (errors.NotFittedError, AttributeError),
])
def test_errors_are_caught_as_what_users_already_catch(error, caught):
    assert issubclass(error, caught) and issubclass(error, errors.GnncyError)
