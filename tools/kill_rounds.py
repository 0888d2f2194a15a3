"""Kills training runs with SIGKILL at random moments, lets them go on, and compares their bits; prints a table.

    python tools/kill_rounds.py [--rounds 200] [--seed N] [TRAINER ...]

Each round kills a run one to three times and then lets it end. It must end with the bits of a run that was left alone,
and leave no file behind that that one does not, no lock and no damaged store. Exit status 1 if any did not.
To add a trainer, add it to SCENARIOS in tests/faults/scenarios.py, and here to TRAINERS.
"""
import argparse
import importlib.util
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
TRAINERS = ("propagate", "sage", "fit", "phases", "cold", "classifier", "table")


def load_scenarios():
    path = Path(__file__).parents[1] / "tests" / "faults" / "scenarios.py"
    spec = importlib.util.spec_from_file_location("scenarios", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SCENARIOS


def start(scenario, folder: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            scenario.act(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    return child


def kill_after(child: int, seconds: float) -> bool:
    """Whether the child was still at work; one that failed by itself is an error."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run ended with status {status} before it was killed")
    return status != 0


def fresh(scenario, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scenario.prepare(folder)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def run(name: str, scenario, folder: Path, rounds: int, moments: random.Random) -> tuple[int, int]:
    """Kills that hit, and rounds that ended badly."""
    fresh(scenario, folder)
    began = time.monotonic()
    os.waitpid(start(scenario, folder), 0)
    seconds, expected = time.monotonic() - began, files(folder)
    hit = bad = 0
    for k in range(rounds):
        fresh(scenario, folder)
        hits = [kill_after(start(scenario, folder), moments.uniform(0, seconds))
                for _ in range(moments.randint(1, 3))]
        hit += sum(hits)
        try:
            scenario.check(folder)
            left = files(folder) - expected
            assert not left, f"left behind: {sorted(left)}"
        except Exception:
            bad += 1
            print(f"{name}, round {k + 1}:", file=sys.stderr)
            traceback.print_exc()
    return hit, bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trainers", nargs="*", default=TRAINERS)
    parser.add_argument("--rounds", type=int, default=200, help="of all trainers together")
    parser.add_argument("--seed", type=int, help="of the moments")
    options = parser.parse_args()
    scenarios, moments, failed = load_scenarios(), random.Random(options.seed), 0
    print(f"{'trainer':<12}{'rounds':>8}{'kills':>8}{'other bits or left-overs':>28}{'seconds':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.trainers:
            rounds, began = -(-options.rounds // len(options.trainers)), time.monotonic()
            hit, bad = run(name, scenarios[name](), Path(folder) / "run", rounds, moments)
            failed += bad
            print(f"{name:<12}{rounds:>8}{hit:>8}{bad:>28}{time.monotonic() - began:>10.0f}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
