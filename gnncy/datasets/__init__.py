"""Data sets: the embedded one, generators, readers of users' files."""
from gnncy.datasets.dataset import GraphDataset, Split
from gnncy.datasets.wordnet import load_wordnet

__all__ = ["GraphDataset", "Split", "load_wordnet"]
