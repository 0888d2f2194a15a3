import resource

import numpy as np
import pytest

from gnncy import _memory


@pytest.mark.parametrize("text, expected", [
    (1, 1), (2.5, 2), (np.int64(7), 7), ("512", 512), ("1b", 1), ("1k", 1000), ("1kb", 1000), ("96MB", 96_000_000),
    (" 1.5 GiB ", 3 * 2**29), ("2g", 2 * 10**9), ("1MiB", 2**20), ("1TB", 10**12), ("0.5 TiB", 2**39),
])
def test_parse_bytes(text, expected):
    assert _memory.parse_bytes(text) == expected


@pytest.mark.parametrize("bad", ["", "MB", "-1MB", "1 PB", "1e6", "1,5GB", "auto", None, True, [1]])
def test_parse_bytes_of_what_is_no_size(bad):
    with pytest.raises(ValueError, match="memory_limit must be a number of bytes or a text such as '256MB'"):
        _memory.parse_bytes(bad)


@pytest.mark.parametrize("bad", [0, -5, float("inf"), float("nan"), "0MB"])
def test_parse_bytes_must_be_positive(bad):
    with pytest.raises(ValueError, match="budget must be positive and finite, got"):
        _memory.parse_bytes(bad, "budget")


@pytest.mark.parametrize("n, text", [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (12_345, "12.3 KB"), (1.5e9, "1.5 GB"),
                                     (482e6, "482 MB"), (3.2e15, "3200 TB")])
def test_format_bytes(n, text):
    assert _memory.format_bytes(n) == text


def test_what_is_held_shows_an_array():
    before = _memory.rss()
    held = np.ones(100_000_000, np.uint8)
    assert _memory.rss() - before > 0.5 * held.nbytes
    assert _memory.peak_rss() >= _memory.rss()


def test_the_peak_can_be_measured_anew():
    np.ones(60_000_000, np.uint8).sum()
    high = _memory.peak_rss()
    if not _memory.reset_peak():
        pytest.skip("this system does not allow it")
    assert _memory.peak_rss() < high


def test_available_is_bounded_by_an_address_space_limit():
    assert 0 < _memory.available()
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = _memory._status("VmSize") + 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        assert _memory.available() <= 2**30
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("shape", [7, (3, 5), (0, 4), ()])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("alignment", [64, 4096])
def test_aligned_empty(shape, dtype, alignment):
    array = _memory.aligned_empty(shape, dtype, alignment)
    assert array.shape == np.empty(shape).shape and array.dtype == dtype
    assert array.flags.c_contiguous and array.flags.writeable
    assert array.size == 0 or array.ctypes.data % alignment == 0
