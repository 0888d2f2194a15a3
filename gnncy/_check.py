"""Argument checks, made once, by the public function that takes the argument.

Every message says what was given, what is needed and, where it is not obvious, what to do.
"""
import math
import numbers

import numpy as np

from gnncy._memory import aligned_empty


def check_array(value, name: str, *, ndim: int = 2, dtype=None, finite: bool = True, allow_empty: bool = False):
    """A C-contiguous native float array of ``ndim`` dimensions; float32 and float64 are kept as they are.

    ``dtype`` forces a width. Integers, bools and float16 become float32. The caller's array is never changed.
    """
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind in "USVmM":
        raise TypeError(f"{name} must be numeric, got dtype {array.dtype}")
    if array.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} has dtype {array.dtype}; pass its real part")
    if array.ndim != ndim:
        vector = ndim == 2 and array.ndim == 1
        hint = ". Reshape your data: array.reshape(-1, 1) or array.reshape(1, -1)" if vector else ""
        raise ValueError(f"{name} must be {ndim}-dimensional, got shape {array.shape}{hint}")
    if dtype is None:
        dtype = np.float64 if array.dtype.kind == "f" and array.dtype.itemsize == 8 else np.float32
    array = np.ascontiguousarray(array, dtype=dtype)
    if not allow_empty and array.size == 0:
        what = "sample" if array.shape[0] == 0 else "feature"
        raise ValueError(f"{name} is empty: 0 {what}(s) (shape={array.shape}) while a minimum of 1 is required.")
    if finite:
        check_finite(array, name)
    return array


def check_finite(array, name: str) -> None:
    """Refuse nan and infinity, naming the first row that holds one."""
    # A sum is finite wherever all terms are, and costs one pass without a temporary array.
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(array, dtype=np.float64)):
            return
    bad = ~np.isfinite(array)
    if bad.any():
        first = np.argwhere(bad)[0]
        raise ValueError(f"{name} contains inf or nan values ({int(bad.sum())} of {array.size}, first at index "
                         f"{tuple(int(i) for i in first)}); remove or impute them first")


def check_out(out, shape: tuple[int, ...], dtype, *inputs) -> np.ndarray:
    """``out`` if it can receive a result of that shape and type and shares no memory with ``inputs``; new for None."""
    if out is None:
        return aligned_empty(shape, dtype)
    if not isinstance(out, np.ndarray) or (out.shape, out.dtype) != (shape, dtype) or not out.flags.c_contiguous:
        raise ValueError(f"out must be a C-contiguous array of shape {shape} and dtype {np.dtype(dtype)}, got "
                         f"{getattr(out, 'dtype', type(out).__name__)} of shape {getattr(out, 'shape', None)}")
    if not out.flags.writeable or any(np.may_share_memory(out, x) for x in inputs):
        raise ValueError("out must be writable and must not overlap the input")
    return out


def check_ids(value, n: int, name: str) -> np.ndarray:
    """Contiguous int64 node ids in ``0 .. n-1``; a boolean mask of length ``n`` becomes its true positions."""
    array = np.asarray(value)
    if array.dtype == bool:
        if array.shape != (n,):
            raise ValueError(f"{name}: a boolean mask must have shape ({n},), got {array.shape}")
        array = np.flatnonzero(array)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{name} must be 1-dimensional, got shape {array.shape}")
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= n:
            raise IndexError(f"{name} must lie in 0..{n - 1}, got {low if low < 0 else high}")
    return np.ascontiguousarray(array, dtype=np.int64)


def check_int(value, name: str, low: int | None = None, high: int | None = None) -> int:
    """An integer in ``low .. high`` (either end may be open)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    _check_range(value, name, low, high)
    return int(value)


def check_float(value, name: str, low: float | None = None, high: float | None = None, *, above: float | None = None):
    """A finite number in ``low .. high``, or strictly ``above`` a bound."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if above is not None and not number > above:
        raise ValueError(f"{name} must be greater than {above}, got {value!r}")
    _check_range(value, name, low, high)
    return number


def _check_range(value, name, low, high):
    if low is not None and value < low or high is not None and value > high:
        need = f"at least {low}" if high is None else f"at most {high}" if low is None else f"in {low}..{high}"
        raise ValueError(f"{name} must be {need}, got {value!r}")


def check_choice(value, name: str, choices) -> str:
    """One of a few names."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
