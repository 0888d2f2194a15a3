"""Data sets: the embedded one, generators, readers of users' files."""
from gnncy.datasets.dataset import GraphDataset, Split
from gnncy.datasets.folder import open_graph
from gnncy.datasets.generate import make_rmat, make_sbm, write_rmat, write_sbm
from gnncy.datasets.ingest import ingest_edges
from gnncy.datasets.links import EdgeSplit, sample_non_edges, split_edges
from gnncy.datasets.read import EdgeList, read_edges, read_graph
from gnncy.datasets.wordnet import load_wordnet

__all__ = ["EdgeList", "EdgeSplit", "GraphDataset", "Split", "ingest_edges", "load_wordnet", "make_rmat", "make_sbm",
           "open_graph", "read_edges", "read_graph", "sample_non_edges", "split_edges", "write_rmat", "write_sbm"]
