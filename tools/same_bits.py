"""Trains WordNet in many ways and compares the embeddings' SHA-256: they must all be one.

    python tools/same_bits.py [--epochs N] [--kills 3] [--folder DIR]

Ways: one and two threads; limits of 96, 128 and 512 MB; words in memory and in a store on disk; prefetch on and off; a
run
killed with SIGKILL at random moments and resumed. Exit status 1 if any differ.
"""
import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gnncy.datasets import load_wordnet
from gnncy.storage import SparseFeatureStorage


def command(out: Path, epochs: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "gnncy", "train", "wordnet", "--out", str(out), "--epochs", epochs, "--quiet", *more]


def sha256(out: Path) -> str:
    return hashlib.sha256((out / "embedding.npy").read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", default="2")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None, help="of the moments at which runs are killed")
    parser.add_argument("--folder", help="where runs are written (default: a temporary folder)")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        words = Path(folder) / "words"
        SparseFeatureStorage.from_csr(load_wordnet().features, words).close()
        ways = {
            "1 thread, 96 MB": ["--threads", "1", "--memory-limit", "96MB"],
            "2 threads, 96 MB": ["--threads", "2", "--memory-limit", "96MB"],
            "128 MB": ["--memory-limit", "128MB"],
            "512 MB": ["--memory-limit", "512MB"],
            "no prefetch": ["--memory-limit", "96MB", "--no-prefetch"],
            "words on disk": ["--memory-limit", "96MB", "--features", str(words)],
        }
        found = {}
        seconds = 0.0
        for i, (way, more) in enumerate(ways.items()):
            out, began = Path(folder) / f"run{i}", time.monotonic()
            subprocess.run(command(out, options.epochs, *more), check=True, stdout=subprocess.DEVNULL)
            seconds = time.monotonic() - began
            found[way] = sha256(out)
            print(f"{way:<24} {found[way]}  {seconds:.0f} s", flush=True)
        out = Path(folder) / "killed"
        for _ in range(options.kills):
            process = subprocess.Popen(command(out, options.epochs), stdout=subprocess.DEVNULL)
            moment = moments.uniform(0.1, 0.9) * seconds
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            print(f"  killed after {moment:.1f} s", flush=True)
        subprocess.run(command(out, options.epochs), check=True, stdout=subprocess.DEVNULL)
        found[f"killed {options.kills} times"] = sha256(out)
        print(f"{f'killed {options.kills} times':<24} {sha256(out)}", flush=True)
    same = len(set(found.values())) == 1
    print("all the same" if same else "DIFFERENT", flush=True)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
