"""Injects a fault at every call that reads or writes, in turn, over all stores and trainers; prints how many.

    python tools/inject_faults.py [--stride N] [SCENARIO ...]

A process is killed before a call, the call is refused (ENOSPC, EIO), or all calls are short, interrupted or slow.
After each fault the files are whole, the run goes on to the same bits and nothing is left over; anything else ends the
script.
Scenarios stand in tests/faults/scenarios.py. All of them at every call take about 20 minutes.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FAULTS = Path(__file__).parents[1] / "tests" / "faults"
STORES = ("dense", "dense-new", "reorder", "reorder-writing", "in-place", "append", "sparse", "snapshots")
TRAINERS = ("fit", "phases", "cold", "propagate", "sage", "classifier", "table")
WAYS = {"killed": ("kill",), "disk full": ("refuse", "ENOSPC"), "write error": ("refuse", "EIO"),
        "read error": ("read", "EIO"), "short, interrupted, slow": ("noise",)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenarios", nargs="*", default=[*STORES, *TRAINERS])
    parser.add_argument("--stride", type=int, default=1, help="of trainers, take only every N-th call")
    options = parser.parse_args()
    total = dict.fromkeys(WAYS, 0)
    print(f"{'':<18}" + "".join(f"{way:>26}" for way in WAYS) + f"{'seconds':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "shim.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", shim, FAULTS / "shim.c", "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(shim), "OPENBLAS_NUM_THREADS": "1",
                                    "PYTHONPATH": str(FAULTS.parents[1])}
        for scenario in options.scenarios:
            began, cells = time.monotonic(), []
            stride = str(options.stride) if scenario in TRAINERS else "1"
            for way, how in WAYS.items():
                if way == "read error" and scenario == "dense-new":
                    cells.append("-")  # there is nothing to read yet
                    continue
                command = [sys.executable, str(FAULTS / "scenarios.py"), str(shim), folder, how[0], scenario, *how[1:]]
                done = subprocess.run(command + [stride] * (how[0] != "noise"), env=environment, capture_output=True,
                                      text=True)
                if done.returncode:
                    print(f"\n{scenario}, {way}:\n{done.stderr}", flush=True)
                    return 1
                count = sum(json.loads(done.stdout).values())
                total[way] += count
                cells.append(str(count))
            print(f"{scenario:<18}" + "".join(f"{cell:>26}" for cell in cells) + f"{time.monotonic() - began:>10.0f}",
                  flush=True)
    print(f"{'all':<18}" + "".join(f"{count:>26}" for count in total.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
