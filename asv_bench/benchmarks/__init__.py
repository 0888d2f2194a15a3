"""Benchmarks for asv, one file per room.

``GNNCY_BENCH=quick`` asks for small sizes: a smoke run of everything in under two minutes.
"""
import os
import sys
from pathlib import Path

# asv finds this folder alone, and a few benchmarks share helpers with the comparisons. At the end of the path, so that
# the gnncy that is measured is the one installed.
sys.path.append(str(Path(__file__).parents[2]))

QUICK = os.environ.get("GNNCY_BENCH") == "quick"


def sized(full, quick):
    """``full``, or ``quick`` under the quick profile."""
    return quick if QUICK else full
