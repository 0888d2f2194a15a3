import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gnncy import datasets
from gnncy.datasets import wordnet

FILE_HASH = "724fc610fbd423d84107aed5c826893453d3f13f9eb7a79bc0003028b854e38e"
CONTENT_HASH = "d478a9bf1c4fb81be2fbf5b5dd9825a332e40775c0ed96d64df7a993ac83ae7f"
BUILDER = Path(__file__).parents[2] / "tools" / "build_wordnet.py"


@pytest.fixture(scope="module")
def data():
    return datasets.load_wordnet()


@pytest.fixture(scope="module")
def builder():
    if not BUILDER.exists():
        pytest.skip("tools/build_wordnet.py is not here (tests of an installed package)")
    spec = importlib.util.spec_from_file_location("build_wordnet", BUILDER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sizes_are_those_of_wordnet(data):
    assert (data.n_nodes, data.n_edges, data.n_features, data.n_classes) == (117_659, 183_789, 15_518, 45)
    assert data.features.nnz == 694_963
    assert repr(data) == "GraphDataset(wordnet: 117,659 nodes, 183,789 edges, 15,518 features, 45 classes)"


def test_adjacency_is_simple_symmetric_and_canonical(data):
    adjacency = data.adjacency
    assert adjacency.dtype == np.float32 and adjacency.indices.dtype == adjacency.indptr.dtype == np.int32
    assert (adjacency != adjacency.T).nnz == 0
    assert not adjacency.diagonal().any()
    assert (adjacency.data == 1).all()
    inside = np.ones(adjacency.nnz, bool)
    inside[adjacency.indptr[1:-1][np.diff(adjacency.indptr)[1:] > 0]] = False  # first entry of a row
    assert (np.diff(adjacency.indices)[inside[1:]] > 0).all()


def test_degrees_and_homophily(data):
    degree = np.diff(data.adjacency.indptr)
    assert degree.max() == 674 and (degree == 0).sum() == 1_009
    same = np.repeat(data.labels, degree) == data.labels[data.adjacency.indices]
    assert round(float(same.mean()), 4) == 0.7088


def test_labels_cover_all_classes(data):
    count = dict(zip(data.class_names, np.bincount(data.labels), strict=True))
    assert data.labels.dtype == np.int64
    assert count["adj.all"] == 14_435 and count["noun.motive"] == 42 and count["verb.weather"] == 81


def test_split_is_fixed_and_whole(data):
    assert [len(part) for part in data.split] == [11_765, 11_766, 94_128]
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in data.split)
    assert np.array_equal(np.sort(np.concatenate(data.split)), np.arange(data.n_nodes))
    order = np.random.Generator(np.random.PCG64(0)).permutation(data.n_nodes)
    assert np.array_equal(data.split.train, np.sort(order[:11_765]))


def test_names_are_read_on_demand(data):
    assert len(data.node_names) == data.n_nodes and len(data.feature_names) == data.n_features
    dog = data.node_names.index("dog.n.01")
    assert data.class_names[data.labels[dog]] == "noun.animal"
    words = {data.feature_names[j] for j in data.features[[dog]].indices}
    assert {"canis", "wolf", "domesticated"} <= words


def test_licence_comes_along(data):
    assert "Copyright 2006 by Princeton University" in data.licence


def test_dataset_cannot_be_changed(data):
    with pytest.raises(AttributeError):
        data.labels = None


def test_file_is_the_pinned_one(builder):
    assert hashlib.sha256(wordnet._FILE.read_bytes()).hexdigest() == FILE_HASH
    with np.load(wordnet._FILE, allow_pickle=False) as file:
        assert builder.content_hash(dict(file)) == CONTENT_HASH


def test_builder_makes_the_very_same_file(builder, tmp_path):
    if not (builder.SOURCE / "data.noun").exists():
        pytest.skip(f"no WordNet in {builder.SOURCE}: Debian's package wordnet-base is not installed")
    arrays = builder.build()
    assert builder.content_hash(arrays) == CONTENT_HASH
    builder.write(arrays, tmp_path / "wordnet.npz")
    assert hashlib.sha256((tmp_path / "wordnet.npz").read_bytes()).hexdigest() == FILE_HASH


def test_builder_reads_a_line_of_the_database(builder):
    line = ("00001740 29 v 02 breathe 0 take_a_breath(p) 1 002 @ 00005041 v 0000 + 00831191 n 0102 02 + 02 00 + 08 00 "
            '| draw air into the lungs; "I can breathe"; keep breathing\n')
    synset = builder.parse(line, "verb")
    assert synset.key == ("verb", 1740) and synset.label == 29 and synset.lemma == "breathe"
    assert synset.pointers == [("verb", 5041), ("noun", 831191)]
    assert synset.definition.split() == ["draw", "air", "into", "the", "lungs;", ";", "keep", "breathing"]


def test_loading_is_quick_and_small():
    code = """
import time
from gnncy import _memory, datasets
_memory.reset_peak()
start, begin = _memory.rss(), time.process_time()
data = datasets.load_wordnet()
print(time.process_time() - begin, (_memory.peak_rss() - start) / 1e6)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, run.stdout.split())
    assert seconds < 0.5
    assert megabytes < 40
