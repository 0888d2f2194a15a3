"""``python -m asv_bench.peers [NAME ...]``: medians of both sides, their ratio, and the ratio that is asked."""
import argparse
import json
import os
import sys
from pathlib import Path

from asv_bench.peers import REGISTRY, run

HEAD = ("name", "setting", "threads", "ours", "peer", "peer_value", "unit", "ratio", "asked")


def lines(rows):
    def cell(value):
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    table = [HEAD, *[tuple(cell(row[key]) for key in HEAD) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asv_bench.peers", description=__doc__,
                                     epilog=f"Comparisons: {', '.join(sorted(REGISTRY))}. GNNCY_BENCH=quick asks for "
                                            f"small sizes. A ratio above 1 means that ours is faster.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="comparisons to run; all if none is named")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows there too")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="threads of both sides (default 1)")
    parser.add_argument("--rounds", metavar="N", type=int, default=7, help="alternating rounds (default 7)")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in REGISTRY:
            parser.error(f"unknown comparison {name!r}; choose from {', '.join(sorted(REGISTRY))}")
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    quick = os.environ.get("GNNCY_BENCH") == "quick"
    rows = []
    for name in options.names or sorted(REGISTRY):
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += run(name, threads=options.threads, rounds=options.rounds, quick=quick)
    print(*lines(rows), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
