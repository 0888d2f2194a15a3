"""Graphs with labels from files: CSR arrays ``adj_indptr`` and ``adj_indices`` without weights in ``NAME.npz``.

Features are ``x``, or ``x_indptr``, ``x_indices``, ``x_data`` and ``x_shape``, or there are none; labels ``y``, -1
where unknown; splits ``train_idx``, ``val_idx`` and ``test_idx``, or masks with a column a split.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

PARTS = "train", "val", "test"


@dataclass
class LabelledGraph:
    """What a file holds; ``splits`` are triples of node ids for training, validation and test."""

    adjacency: sp.csr_array
    features: np.ndarray | sp.csr_array | None
    labels: np.ndarray
    splits: list[tuple[np.ndarray, ...]]


def adjacency_of(file) -> sp.csr_array:
    """The adjacency matrix of an open file."""
    indptr, indices = file["adj_indptr"], file["adj_indices"]
    return sp.csr_array((np.ones(len(indices), np.float32), indices, indptr), shape=(len(indptr) - 1,) * 2)


def read_graph(name: str, folder: Path | None) -> LabelledGraph | None:
    """The graph ``name`` of a folder, None if it has none; ``wordnet`` is the embedded data set where it has none."""
    path = None if folder is None else folder / f"{name}.npz"
    if path is None or not path.exists():
        if name != "wordnet":
            return None
        from gnncy.datasets import load_wordnet
        data = load_wordnet()
        return LabelledGraph(data.adjacency, data.features, data.labels, [data.split])
    with np.load(path, allow_pickle=False) as file:
        features = file.get("x")
        if "x_data" in file:
            features = sp.csr_array((file["x_data"].astype(np.float32), file["x_indices"], file["x_indptr"]),
                                    shape=tuple(file["x_shape"]))
        splits = []
        if "train_mask" in file:
            masks = zip(*(file[f"{part}_mask"].T for part in PARTS), strict=True)
            splits = [tuple(np.flatnonzero(mask) for mask in split) for split in masks]
        elif "train_idx" in file:
            splits = [tuple(file[f"{part}_idx"] for part in PARTS)]
        return LabelledGraph(adjacency_of(file), features, file["y"], splits)


def rst_table(lines: list[list[str]]) -> list[str]:
    """A simple table in reStructuredText; the first line is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [rule, text[0], rule, *text[1:], rule]
