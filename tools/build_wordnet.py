"""Make gnncy/datasets/data/wordnet.npz from the database files of WordNet 3.0.

The files data.noun, data.verb, data.adj and data.adv are those of Debian's package wordnet-base, in
/usr/share/wordnet once it is installed. Their format is described in the manual page wndb(5WN).

Nodes are synsets, numbered by file (noun, verb, adj, adv) and place in the file. Every pointer between two
synsets, or between words of two synsets, is an undirected edge; self loops and repetitions are left out.
Features count the words of a synset's definition (its examples, in quotes, are left out); words in fewer than
5 definitions, or in more than one of twenty, are left out. The label is the lexicographer file.

    python tools/build_wordnet.py [--source /usr/share/wordnet] [--out gnncy/datasets/data/wordnet.npz]

The same bytes come out on every machine: time stamps are fixed and bzip2's encoder does not change.
"""
import argparse
import hashlib
import io
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

SOURCE = Path("/usr/share/wordnet")
SHIPPED = Path(__file__).parents[1] / "gnncy/datasets/data/wordnet.npz"

FILE_OF = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}
LETTER = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
LEAST, MOST = 5, 0.05  # synsets that a word must, share of synsets that it may occur in


class Synset(NamedTuple):
    key: tuple[str, int]  # file and byte offset, which pointers name
    label: int
    lemma: str
    pointers: list[tuple[str, int]]
    definition: str


def parse(line, file):
    """A line of a data file: offset label type n_words (word id)* n_pointers (symbol offset type words)* ... | gloss"""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    at = 4 + 2 * int(fields[3], 16)
    offsets, types = fields[at + 2::4], fields[at + 3::4]
    pointers = [(FILE_OF[types[i]], int(offsets[i])) for i in range(int(fields[at]))]
    lemma = re.sub(r"\((a|p|ip)\)$", "", fields[4]).lower()
    definition = re.sub(r'"[^"]*"?', " ", gloss).lower()
    return Synset((file, int(fields[0])), int(fields[1]), lemma, pointers, definition)


def read_synsets(source):
    synsets = []
    for file in LETTER:
        with open(Path(source) / f"data.{file}", encoding="utf-8") as lines:
            synsets += [parse(line, file) for line in lines if not line.startswith("  ")]  # the licence is indented
    return synsets


def adjacency(synsets):
    n = len(synsets)
    node = {synset.key: i for i, synset in enumerate(synsets)}
    pairs = np.array([(i, node[key]) for i, synset in enumerate(synsets) for key in synset.pointers])
    source, target = pairs[pairs[:, 0] != pairs[:, 1]].T
    arcs = np.unique(np.concatenate([source * n + target, target * n + source]))
    return np.bincount(arcs // n, minlength=n), arcs % n


def bag_of_words(synsets):
    bags = [Counter(re.findall(r"[a-z][a-z'-]*[a-z]|[a-z]", synset.definition)) for synset in synsets]
    frequency = Counter(word for bag in bags for word in bag)
    words = sorted(word for word, k in frequency.items() if LEAST <= k <= MOST * len(synsets))
    column = {word: j for j, word in enumerate(words)}
    rows = [sorted((column[word], count) for word, count in bag.items() if word in column) for bag in bags]
    columns, counts = np.array([entry for row in rows for entry in row]).T
    return words, np.array([len(row) for row in rows]), columns, counts


def split(n):
    """0 for training, 1 for validation, 2 for test nodes: 10, 10 and 80 % of a seeded permutation."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(n)
    part = np.full(n, 2)
    part[order[:n // 5]] = 1
    part[order[:n // 10]] = 0
    return part


def names(synsets):
    seen = Counter()
    for synset in synsets:
        stem = f"{synset.lemma}.{LETTER[synset.key[0]]}"
        seen[stem] += 1
        yield f"{stem}.{seen[stem]:02d}"


def text(strings):
    return np.frombuffer("\n".join(strings).encode(), np.uint8)


def build(source=SOURCE):
    """The arrays of the file, each of the narrowest type that holds it; degrees stand for row pointers."""
    synsets = read_synsets(source)
    degree, neighbours = adjacency(synsets)
    words, n_words, columns, counts = bag_of_words(synsets)
    return {
        "degree": degree.astype("<u2"), "neighbours": neighbours.astype("<i4"),
        "n_words": n_words.astype("<u1"), "words": columns.astype("<u2"), "counts": counts.astype("<u1"),
        "label": np.array([synset.label for synset in synsets], "<u1"), "split": split(len(synsets)).astype("<u1"),
        "vocabulary": text(words), "names": text(names(synsets)),
    }


def write(arrays, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, member.getvalue(), zipfile.ZIP_BZIP2, compresslevel=9)


def content_hash(arrays):
    """SHA-256 over names, types, shapes and values, whatever the compression."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=SOURCE, help="folder of the data files (%(default)s)")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="file to write")
    options = parser.parse_args()
    if not (options.source / "data.noun").exists():
        parser.error(f"no WordNet in {options.source}; install Debian's wordnet-base, or give its folder as --source")
    arrays = build(options.source)
    write(arrays, options.out)
    print("file   ", hashlib.sha256(options.out.read_bytes()).hexdigest())
    print("content", content_hash(arrays))


if __name__ == "__main__":
    main()
