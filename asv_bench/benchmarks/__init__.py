"""Benchmarks for asv, one file per room.

``GNNCY_BENCH=quick`` asks for small sizes: a smoke run of everything in under two minutes.
"""
import os

QUICK = os.environ.get("GNNCY_BENCH") == "quick"


def sized(full, quick):
    """``full``, or ``quick`` under the quick profile."""
    return quick if QUICK else full
