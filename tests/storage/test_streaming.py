"""Features smoothed from disk to disk: the bits of the products in memory, at any limit."""
import zlib

import numpy as np
import pytest
import scipy.sparse as sp

from gnncy._threads import working_threads
from gnncy.errors import MemoryLimitError, StorageError
from gnncy.graph import Block, community_order, normalize, spmm
from gnncy.storage import FeatureStorage, QuantizedFeatureStorage
from gnncy.storage._blocks import BlockFile, IOStatistics, direct_empty
from gnncy.storage.layout.checksums import EXTENT, RunningChecksums
from gnncy.storage.passes import propagate, sign_features
from gnncy.storage.passes.columns import plan_columns
from gnncy.storage.passes.direct import DirectWriter, Scratch, result
from gnncy.storage.passes.smoothing import Smoothing
from gnncy.storage.passes.stream import OVERHEAD, Source, plan_pass
from gnncy.storage.passes.windows import Costs, plan_windows
from gnncy.storage.plans import DiskModel

N, D = 5003, 37
SLABS = OVERHEAD + 1_300_000  # a few slabs of columns
SIGN = OVERHEAD + 3_150_000
DISK = DiskModel(14e-6, 3.5e9, 2.6e9)


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(0)
    a = sp.random_array((N, N), density=4 / N, random_state=rng, dtype=np.float32, format="csr")
    return a + a.T


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(scope="module")
def powers(graph, x):
    matrix, found = normalize(graph), [x]
    for _ in range(3):
        found.append(spmm(matrix, found[-1]))
    return found


def clean(folder):
    return not list(folder.glob(".*"))


@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize("direct", [False, True])
def test_the_bits_of_products_in_memory(tmp_path, graph, x, powers, order, direct):
    places = community_order(graph) if order else None
    FeatureStorage.from_array(x, tmp_path / "x.npy", order=places).close()
    with FeatureStorage(tmp_path / "x.npy", direct=direct) as store:
        for limit, method, threads in (("1GB", "auto", 1), (SLABS, "columns", 2), (SLABS, "windows", 1)):
            options = {"out": tmp_path / "y.npy", "overwrite": True, "memory_limit": limit, "method": method,
                       "n_jobs": threads, "disk": DISK}
            for k in (0, 1, 2, 3) if threads == 2 else (2,):
                with propagate(graph, store, k, **options) as found:
                    assert np.array_equal(found[:], powers[k])
                    assert found.verify() and found.finite_checked
                    assert (found.order is None) != order
            options["memory_limit"] = limit if limit == "1GB" else SIGN
            with sign_features(graph, store, 3, **options) as found:
                assert np.array_equal(found[:], np.hstack(powers))
                assert found.verify()
    assert clean(tmp_path)


@pytest.mark.parametrize("method", ["columns", "windows"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_personalised_pagerank(tmp_path, graph, x, k, method):
    z, matrix = x, normalize(graph, "row")
    for _ in range(k):
        z = spmm(matrix, z)
        z *= np.float32(0.8)
        z += np.float32(0.2) * x
    with propagate(graph, x, k, alpha=0.2, normalization="row", out=tmp_path / "z.npy", memory_limit=SLABS,
                   method=method) as found:
        assert np.array_equal(found[:], z)
    with propagate(graph, x, k, alpha=0.0, out=tmp_path / "z.npy", memory_limit=SLABS, method=method,
                   overwrite=True) as found, propagate(graph, x, k, out=tmp_path / "p.npy") as power:
        assert np.array_equal(found[:], power[:])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types(tmp_path, graph, x, dtype):
    FeatureStorage.from_array(x.astype(dtype), tmp_path / "x.npy").close()
    matrix, wide = normalize(graph), x.astype(dtype).astype(np.float64 if dtype == np.float64 else np.float32)
    expected = spmm(matrix, spmm(matrix, wide))
    for method in ("columns", "windows"):
        with propagate(graph, tmp_path / "x.npy", 2, out=tmp_path / "y.npy", overwrite=True, memory_limit=SLABS + 10**6,
                       method=method) as found:
            assert found.dtype == wide.dtype
            assert np.array_equal(found[:], expected)
        with propagate(graph, tmp_path / "x.npy", 2, out=tmp_path / "h.npy", overwrite=True, dtype=np.float16,
                       method=method) as found:
            assert found.file_dtype == np.float16
            assert np.array_equal(found[:], expected.astype(np.float16).astype(np.float32))


def test_rows_of_int8(tmp_path, graph, x):
    with QuantizedFeatureStorage.from_array(x, tmp_path / "x.npy") as store:
        expected = spmm(normalize(graph), store[:])
        for method in ("columns", "windows"):
            with propagate(graph, store, 1, out=tmp_path / "y.npy", overwrite=True, memory_limit=SLABS,
                           method=method) as found:
                assert np.array_equal(found[:], expected)


def test_a_matrix_as_it_is(tmp_path, graph, x):
    for given in (graph, Block.from_csr(graph)):
        with propagate(given, x, 1, normalization=None, out=tmp_path / "y.npy", overwrite=True) as found:
            assert np.array_equal(found[:], spmm(graph, x))
    long = sp.csr_array((graph.data, graph.indices.astype(np.int64), graph.indptr.astype(np.int64)), shape=graph.shape)
    with propagate(long, x, 1, normalization=None, out=tmp_path / "y.npy", overwrite=True) as found:
        assert np.array_equal(found[:], spmm(graph, x))


def test_columns_of_a_slab_and_rows_of_a_chunk_are_what_was_planned(graph):
    for d, kept, rooms in ((1, 1, 2), (37, 1, 2), (768, 1, 2), (64, 3, 2), (100, 1, 3)):
        for memory in (10**5, 10**6, 10**7, 10**8, 10**9):
            plan = plan_columns(20_000, d, 4, kept, rooms, memory, kept > 1)
            if plan is not None:
                assert plan.memory <= memory and 1 <= plan.columns <= d and plan.slabs == -(-d // plan.columns)
                assert (plan.slabs == 1) == (plan.columns == d)
                read, written, operations = plan.traffic()
                assert (read == 0) == (plan.slabs * kept == 1) == (operations == 0)
                assert read <= 2 * plan.slabs * kept * plan.slab_bytes and written <= read
    assert plan_columns(10**6, 64, 4, 1, 2, 10**6) is None


@pytest.mark.parametrize("direct", [False, True])
def test_panels_lie_in_the_place_of_the_rows(tmp_path, graph, direct, monkeypatch):
    reserved, reserve = [], BlockFile.reserve

    def noted(file, size):
        reserved.append(size)
        reserve(file, size)

    monkeypatch.setattr(BlockFile, "reserve", noted)
    wide = np.random.default_rng(2).standard_normal((N, 48)).astype(np.float32)
    FeatureStorage.from_array(wide, tmp_path / "x.npy").close()
    block = Block.from_csr(normalize(graph))
    expected = spmm(block, wide)
    hops = np.hstack([wide, expected])
    base = OVERHEAD + block.indptr.nbytes + block.indices.nbytes + block.weights.nbytes
    options = {"out": tmp_path / "y.npy", "method": "columns", "disk": DISK, "overwrite": True, "n_jobs": 2}
    with FeatureStorage(tmp_path / "x.npy", direct=direct) as store:
        # Slabs of 16 columns; the same, with a result of another width; slabs of 13 columns and a narrower one.
        for memory, dtype, inside in ((1_300_000, np.float32, True), (1_300_000, np.float16, False),
                                      (1_140_000, np.float32, False)):
            plan = plan_columns(N, 48, 4, 1, 2, memory, inside=dtype == np.float32)
            assert plan.slabs > 1 and N % plan.chunk and plan.inside == inside == (plan.scratch_bytes == 0)
            reserved.clear()
            with propagate(graph, store, 1, dtype=dtype, memory_limit=base + memory, **options) as found:
                assert np.array_equal(found[:], expected.astype(dtype).astype(np.float32))
                assert found.verify()
            assert reserved == [4096 + expected.size * np.dtype(dtype).itemsize, plan.scratch_bytes][:2 - inside]
        reserved.clear()
        with sign_features(graph, store, 1, memory_limit=base + 2_000_000, **options) as found:
            assert np.array_equal(found[:], hops) and found.verify()
        assert reserved == [4096 + hops.nbytes]


def test_no_more_bytes_are_moved_than_were_planned(tmp_path, graph, x, monkeypatch):
    found = {}
    made = IOStatistics

    def kept():
        found["stats"] = made()
        return found["stats"]

    monkeypatch.setattr("gnncy.storage.passes.stream.IOStatistics", kept)
    matrix = normalize(graph)
    with FeatureStorage.from_array(x, tmp_path / "x.npy") as store:
        for method in ("columns", "windows"):
            plan = plan_pass(Source(store), Smoothing(Block.from_csr(matrix), 2, None, (2,)), SLABS, 0, DISK,
                             written=x.nbytes, method=method)
            propagate(Block.from_csr(matrix), store, 2, normalization=None, out=tmp_path / "y.npy", overwrite=True,
                      memory_limit=SLABS, method=method, disk=DISK).close()
            moved = found["stats"].as_dict()
            scratch_read = plan.bytes_read - (x.nbytes if method == "columns" else plan.bytes_read // 2)
            assert moved["bytes_written"] <= plan.bytes_written
            assert moved["bytes_requested"] <= scratch_read * 1.01
            assert plan.memory <= SLABS


def test_windows_cover_all_rows_and_keep_their_memory(graph):
    block = Block.from_csr(normalize(graph))
    for memory in (2**19, 2**21, 2**24):
        plan = plan_windows(block, True, 4 * D, Costs(4 * D, 8, 8 * D), memory, 4096)
        if memory == 2**19:
            assert plan is None
            continue
        assert plan.memory <= memory
        starts, stops = zip(*plan.ranges, strict=True)
        assert starts[0] == 0 and stops[-1] == N and starts[1:] == stops[:-1]
        assert all(start % 256 == 0 for start in starts)


def test_windows_are_planned_no_further_than_they_are_wanted(graph):
    block, options = Block.from_csr(normalize(graph)), (True, 4 * D, Costs(4 * D, 8, 8 * D), 2**21, 4096)
    plan = plan_windows(block, *options)
    assert plan_windows(block, *options, most=plan.bytes_read) == plan
    assert plan_windows(block, *options, most=plan.bytes_read - 1) is None


def test_the_plan_follows_the_cost(graph, x):
    # A path in the order of the ids: windows read every row about once, columns thrice.
    path = normalize(sp.diags_array([np.ones(N - 1, np.float32)] * 2, offsets=[-1, 1]).tocsr())
    limit = OVERHEAD + 750_000
    source = Source(type("Rows", (), {"shape": x.shape, "dtype": x.dtype})())
    for matrix, method in ((path, "windows"), (normalize(graph), "columns")):
        assert plan_pass(source, Smoothing(Block.from_csr(matrix)), limit, 0, DISK, written=x.nbytes).method == method
    text = str(plan_pass(source, Smoothing(Block.from_csr(path)), limit, 0, DISK))
    assert text.startswith("by windows: ") and "of scratch" in text


def test_what_it_refuses(tmp_path, graph, x):
    out = tmp_path / "y.npy"
    with pytest.raises(MemoryLimitError, match="too small for 5003 rows; raise it to [0-9]+MB or more"):
        propagate(graph, x, 2, out=out, memory_limit=OVERHEAD)
    with pytest.raises(ValueError, match=r"adjacency must have shape \(5003, 5003\)"):
        propagate(graph[:9, :9], x, 1, out=out)
    with pytest.raises(ValueError, match="normalization must be one of 'sym', 'row', 'col'"):
        propagate(graph, x, 1, out=out, normalization="both")
    with pytest.raises(ValueError, match="method must be one of"):
        propagate(graph, x, 1, out=out, method="tiles")
    with pytest.raises(ValueError, match="k must be at least 0"):
        propagate(graph, x, -1, out=out)
    with pytest.raises(ValueError, match="hops must be at least 0"):
        sign_features(graph, x, -1, out=out)
    with pytest.raises(ValueError, match="alpha must be"):
        propagate(graph, x, 1, alpha=1.5, out=out)
    with pytest.raises(TypeError, match="needs dense features, got sparse ones"):
        propagate(graph, sp.csr_array(x), 1, out=out)
    with pytest.raises(ValueError, match="inf or nan"):
        huge = sp.csr_array((np.full(graph.nnz, 3e38, np.float32), graph.indices, graph.indptr), shape=graph.shape)
        with np.errstate(over="ignore"):
            propagate(huge, np.abs(x) + 1, 1, out=out, normalization=None)
    out.write_bytes(b"")
    with pytest.raises(FileExistsError, match="overwrite"):
        propagate(graph, x, 1, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["y.npy"]


@pytest.mark.parametrize("fails", ["reserve", "write", "read"])
def test_an_error_of_the_disk_is_raised_and_leaves_nothing(tmp_path, graph, x, monkeypatch, fails):
    def broken(*arguments, **options):
        raise StorageError(5, "Input/output error")
    target = {"reserve": "gnncy.storage._blocks.BlockFile.reserve", "read": "gnncy.storage._blocks.BlockFile.gather",
              "write": "gnncy.storage.passes.direct.DirectWriter.write"}[fails]
    monkeypatch.setattr(target, broken)
    for method in ("columns", "windows"):
        with pytest.raises(StorageError, match="Input/output error"):
            propagate(graph, x, 2, out=tmp_path / "y.npy", memory_limit=SLABS, method=method)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("last", [False, True])
def test_an_error_of_a_write_in_the_background_is_raised(tmp_path, monkeypatch, last):
    write, calls = DirectWriter.write, []

    def broken(self, data, offset):
        calls.append(offset)
        if len(calls) == 2:
            raise StorageError(28, "No space left on device")
        write(self, data, offset)

    monkeypatch.setattr(DirectWriter, "write", broken)
    with pytest.raises(StorageError, match="No space"):
        with result(tmp_path / "y.npy", (3000, 4), np.float32, None, False, False, IOStatistics()) as rows:
            for _ in range(2 if last else 3):
                rows.append(np.ones((1000, 4), np.float32))
    assert len(calls) == 2 and list(tmp_path.iterdir()) == []


def test_a_file_system_that_refuses_direct_writes_is_written_through_its_cache(tmp_path, monkeypatch):
    data = np.arange(3 * 4096, dtype=np.uint8)
    whole = np.zeros(4 * 4096, np.uint8)
    start = -whole.ctypes.data % 4096
    aligned = whole[start:start + 3 * 4096]
    aligned[:] = data
    real = __import__("os").pwrite

    def refusing(fd, part, offset):
        if fd == scratch._writer._direct:
            raise OSError(22, "Invalid argument")
        return real(fd, part, offset)

    scratch = Scratch(tmp_path, 3 * 4096, True, DISK, IOStatistics())
    try:
        monkeypatch.setattr("os.pwrite", refusing)
        scratch.write(aligned, 0)
        assert scratch._writer._direct is None
        back = np.empty_like(data)
        scratch.file.read_range(0, back)
        assert np.array_equal(back, data)
    finally:
        scratch.close()


def test_writes_at_any_offset(tmp_path):
    rng = np.random.default_rng(0)
    with open(tmp_path / "f", "wb+") as file:
        stats, expected, end = IOStatistics(), bytearray(), 0
        writer = DirectWriter(file.fileno(), tmp_path / "f", True, stats)
        for size in (4096, 5000, 100, 8192, 3 << 20, 7):
            part = rng.integers(0, 256, size, dtype=np.uint8)
            writer.write(part, end)
            expected += part.tobytes()
            end += size
        blocks = np.frombuffer(rng.bytes(5 * 4096 + 100), np.uint8), np.frombuffer(rng.bytes(3 << 20), np.uint8)
        aligned = direct_empty(8192)
        aligned[:] = 7
        first, second = -(-end // 4096) * 4096, -(-(end + (3 << 20)) // 4096) * 4096 + 1
        expected += bytes(first - end) + aligned.tobytes()
        expected += bytes(second - len(expected)) + blocks[1].tobytes() + blocks[0].tobytes()
        writer.write_parts([(aligned, first), (blocks[1], second), (blocks[0], second + (3 << 20))])
        writer.close()
        file.seek(0)
        assert file.read() == bytes(expected)
        assert stats.bytes_written == end + sum(map(len, blocks)) + len(aligned)


def test_checksums_are_the_same_on_any_number_of_threads():
    data = np.random.default_rng(0).integers(0, 256, 9 * EXTENT + 5, dtype=np.uint8)
    sizes = [0, 5, EXTENT - 5, EXTENT, 3 * EXTENT + 1, 2, EXTENT - 3, 0, 3 * EXTENT, 5]
    cuts = np.cumsum(sizes)
    assert cuts[-1] == len(data)
    expected = [zlib.crc32(data[k:k + EXTENT]) for k in range(0, len(data), EXTENT)]
    for threads in (1, 3):
        running = RunningChecksums()
        with working_threads(threads):
            for part in np.split(data, cuts[:-1]):
                running.add(part)
        assert running.table().tolist() == expected
