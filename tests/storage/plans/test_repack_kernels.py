"""The kernels that repack rows: lists of them, sets of them, and streams that wait."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gnncy._kernels.storage import repack as kernels
from gnncy._kernels.storage import rowset


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 2**40), max_size=60))
def test_lists_of_rows(rows):
    rows = np.array(sorted(rows), np.int64)
    code = np.empty(10 * len(rows), np.uint8)
    n = kernels.encode(rows, code)
    extents = np.empty((2, 4096), np.uint8)
    if len(rows) and rows[-1] < 3000:
        streams = kernels.Streams(code[:n], np.array([0, n]), np.array([0]), 1, extents)
        chunk = np.arange(3000).astype(np.uint8)
        assert streams.append(chunk, 0, 3000)
        streams.finish()
        (extent, offset, size), = streams.take(9)
        np.testing.assert_array_equal(extents[extent, :len(rows)], rows.astype(np.uint8))
        assert offset == 0 and size == 4096


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 299), max_size=100), st.lists(st.integers(0, 299), max_size=100), st.integers(64, 400))
def test_sets_of_rows(hot, cold, room):
    words, none = np.zeros((2, 5, 2), np.uint64)
    hot_words = words.copy()
    fresh = np.empty(200, np.int64)
    assert rowset.mark(np.array(hot, np.int64), none, hot_words, fresh) == len(set(hot))
    n = rowset.mark(np.array(cold, np.int64), hot_words, words, fresh)
    assert n == len(set(cold) - set(hot)) and set(fresh[:n]) == set(cold) - set(hot)
    assert rowset.count(hot_words) == len(set(hot)) and rowset.count(words) == n
    found, word = [], 0
    while word < 5:
        out = np.empty(room, np.int64)
        word, some = rowset.members(words, word, out)
        found += out[:some].tolist()
    assert found == sorted(set(cold) - set(hot))
    wanted = np.array(cold + hot, np.int64)
    place = np.empty(len(wanted), np.int64)
    assert rowset.places(wanted, hot_words, words, place) == sum(row in set(hot) for row in wanted)
    ranks = {row: -1 - k for k, row in enumerate(sorted(set(hot)))} | {row: k for k, row in enumerate(found)}
    assert place.tolist() == [ranks[row] for row in wanted]
    rowset.unmark(fresh[:n // 2].copy(), words)
    assert rowset.count(words) == n - n // 2


def test_streams_wait_for_free_extents():
    x = np.random.default_rng(10).integers(0, 256, (500, 100)).astype(np.uint8)
    lists, bounds = [], [0]
    wanted = [np.arange(500), np.arange(0, 500, 3), np.arange(0), np.array([499])]
    for rows in wanted:
        code = np.empty(10 * len(rows), np.uint8)
        lists.append(code[:kernels.encode(rows, code)])
        bounds.append(bounds[-1] + len(lists[-1]))
    offsets = np.array([0, 13, 18, 18]) * 4096
    extents = np.zeros((5, 4096), np.uint8)
    streams = kernels.Streams(np.concatenate(lists), np.array(bounds), offsets, 100, extents)
    file = np.zeros(20 * 4096, np.uint8)

    def write():
        full = streams.take(1)
        for extent, offset, size in full:
            file[offset:offset + size] = extents[extent, :size]
        streams.release(full)

    stalls = 0
    for start in range(0, 500, 250):
        while not streams.append(x[start:start + 250].reshape(-1), start * 100, start + 250):
            stalls += 1
            write()
    streams.finish()
    while streams.waiting:
        write()
    assert stalls > 3
    for rows, offset in zip(wanted, offsets, strict=True):
        np.testing.assert_array_equal(file[offset:offset + 100 * len(rows)], x[rows].reshape(-1))
