import gzip

import numpy as np
import pytest
from scipy import io, sparse

from gnncy.datasets import read_edges, read_graph
from gnncy.errors import GraphFormatError

DENSE = np.array([[0, 1, 0, 0], [1, 0, 2.5, 0], [0, 2.5, 0, 1], [0, 0, 1, 0]], np.float32)


def write(path, text):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csr_matrix, sparse.coo_matrix, sparse.csc_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool])
def test_npz(tmp_path, kind, dtype):
    dense = DENSE.astype(dtype)
    sparse.save_npz(tmp_path / "a.npz", kind(dense))
    graph = read_graph(tmp_path / "a.npz")
    assert isinstance(graph, sparse.csr_array) and graph.has_canonical_format
    assert graph.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert np.array_equal(graph.toarray(), dense)


@pytest.mark.parametrize("symmetry", ["general", "symmetric"])
@pytest.mark.parametrize("compress", [False, True])
def test_matrix_market(tmp_path, symmetry, compress):
    path = tmp_path / "a.mtx"
    io.mmwrite(path, sparse.coo_array(DENSE), symmetry=symmetry)
    if compress:
        path = write(tmp_path / "a.mtx.gz", path.read_text())
    assert np.array_equal(read_graph(path).toarray(), DENSE)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.edges", "a.txt.gz", "A.CSV"])
@pytest.mark.parametrize("separator", [",", "\t", ";", " ", "  ", ", "])
@pytest.mark.parametrize("header", ["", "source{}target{}weight\n", "# a comment\n\n% another\n", "\ufeffa{}b{}c\n"])
def test_edge_list_with_weights(tmp_path, name, separator, header):
    lines = (separator.join(map(str, edge)) for edge in ((0, 1, 1.0), (2, 1, 2.5), (2, 3, 1)))
    path = write(tmp_path / name, header.format(separator, separator) + "\n".join(lines) + "\n")
    graph = read_graph(path)
    assert graph.dtype == np.float32 and graph.has_canonical_format
    assert np.array_equal(graph.toarray(), DENSE)


def test_edge_list_without_weights(tmp_path):
    path = write(tmp_path / "a.txt", "0 1\n2 1\n1 2\n2 3\n")
    assert np.array_equal(read_graph(path).toarray(), DENSE > 0)
    directed = read_graph(path, directed=True)
    assert directed.nnz == 4 and directed[0, 1] == 1 and directed[1, 0] == 0


def test_repeated_edge_keeps_its_largest_weight(tmp_path):
    path = write(tmp_path / "a.csv", "0,1,2\n1,0,5\n0,1,3\n")
    assert read_graph(path).toarray().tolist() == [[0, 5], [5, 0]]
    assert read_graph(path, directed=True).toarray().tolist() == [[0, 3], [5, 0]]


def test_self_loop_is_kept_once(tmp_path):
    assert read_graph(write(tmp_path / "a.csv", "0,0,2\n0,1,1\n")).toarray().tolist() == [[2, 1], [1, 0]]


def test_empty_and_single_line(tmp_path):
    assert read_graph(write(tmp_path / "a.csv", "# nothing\n")).shape == (0, 0)
    assert read_graph(write(tmp_path / "b.csv", "source,target\n")).shape == (0, 0)
    assert read_graph(write(tmp_path / "c.csv", "0,1")).shape == (2, 2)
    assert read_edges(write(tmp_path / "d.csv", "")).nodes.size == 0


def test_large_edge_list_matches_scipy(tmp_path):
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 500, (5000, 2))
    np.savetxt(tmp_path / "a.txt", edges, fmt="%d")
    graph = read_graph(tmp_path / "a.txt", directed=True)
    expected = sparse.coo_array((np.ones(5000), edges.T), shape=(500, 500)).tocsr()
    assert np.array_equal(graph.toarray(), expected.toarray() > 0)


def test_names(tmp_path):
    path = write(tmp_path / "a.csv", 'source,target,weight\n"Ann, Lee",bob,2\nbob, cid ,0.5\n7,bob,1\n')
    graph = read_edges(path)
    assert graph.nodes.tolist() == ["7", "Ann, Lee", "bob", "cid"]
    assert graph.adjacency.toarray().tolist() == [[0, 0, 1, 0], [0, 0, 2, 0], [1, 2, 0, 0.5], [0, 0, 0.5, 0]]


def test_name_further_down_makes_all_names(tmp_path):
    graph = read_edges(write(tmp_path / "a.txt", "1 2\n2 3\nx 1\n"))
    assert graph.nodes.tolist() == ["1", "2", "3", "x"]


def test_integer_ids_with_gaps(tmp_path):
    path = write(tmp_path / "a.txt", "1000000000000 -5\n7 -5\n")
    graph = read_edges(path)
    assert graph.nodes.dtype == np.int64 and graph.nodes.tolist() == [-5, 7, 10**12]
    assert graph.adjacency.toarray().tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    with pytest.raises(GraphFormatError, match="must not be negative, got -5; gnncy.datasets.read_edges"):
        read_graph(path)
    with pytest.raises(GraphFormatError, match="largest node id is 2,000,000,000 in 1 edges; .*read_edges"):
        read_graph(write(tmp_path / "b.txt", "0 2000000000\n"))


@pytest.mark.parametrize("name, text, message", [
    ("a.csv", "0,1\n1,x\n", "'x' to int64 at row 1.*read_edges takes any names"),
    ("a.csv", "0,1,2\n1,2\n", "requires 2 columns but 3 were found"),
    ("a.csv", "0\n", "two or three columns .* got 1: '0'"),
    ("a.csv", "0,1,2,3\n", "two or three columns .* got 4"),
    ("a.csv", "0,1,x\n0,1,y\n", "'x' to float64"),
    ("a.txt", "ann bob\n", "'ann' to int64.*read_edges"),
])
def test_bad_lines(tmp_path, name, text, message):
    with pytest.raises(GraphFormatError, match=message):
        read_graph(write(tmp_path / name, text))


def test_weights_must_be_numbers_and_finite(tmp_path):
    with pytest.raises(GraphFormatError, match="a number as weight"):
        read_edges(write(tmp_path / "a.csv", "ann,bob,1\nbob,cid,x\n"))
    with pytest.raises(ValueError, match="weight contains inf or nan"):
        read_graph(write(tmp_path / "a.csv", "0,1,nan\n"))


def test_files_that_are_not_what_they_say(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*none.npz"):
        read_graph(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_edges(tmp_path / "none.csv")
    with pytest.raises(GraphFormatError, match="unknown kind of graph file '.docx'; known are .npz"):
        read_graph(write(tmp_path / "a.docx", ""))
    with pytest.raises(GraphFormatError, match="no meta.json"):
        read_graph(tmp_path)
    for name in ("a.npz", "a.mtx", "a.mtx.gz"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(GraphFormatError, match="holds no sparse matrix"):
            read_graph(tmp_path / name)
    np.savez(tmp_path / "b.npz", x=np.ones(3))
    with pytest.raises(GraphFormatError, match="holds no sparse matrix"):
        read_graph(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", format=np.array("csr", object), data=np.array([{}], object))
    with pytest.raises(GraphFormatError, match="holds no sparse matrix"):
        read_graph(tmp_path / "c.npz")
    (tmp_path / "d.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(GraphFormatError, match="is not a text file"):
        read_graph(tmp_path / "d.csv")
    whole = gzip.compress(b"0 1\n" * 1000)
    for cut in (whole[:-20], b"0 1\n"):
        (tmp_path / "e.txt.gz").write_bytes(cut)
        with pytest.raises(GraphFormatError, match="damaged or truncated"):
            read_graph(tmp_path / "e.txt.gz")


def test_matrix_must_be_square_and_real(tmp_path):
    sparse.save_npz(tmp_path / "a.npz", sparse.csr_array(np.ones((2, 3))))
    with pytest.raises(GraphFormatError, match=r"must be square, got shape \(2, 3\)"):
        read_graph(tmp_path / "a.npz")
    sparse.save_npz(tmp_path / "b.npz", sparse.csr_array(np.ones((2, 2), complex)))
    with pytest.raises(GraphFormatError, match="must be real, got dtype complex128"):
        read_graph(tmp_path / "b.npz")
