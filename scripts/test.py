"""Run the tests, after setting up what they need: `python scripts/test.py [pytest arguments]`.

Test files are distributed over two processes, each with its own server; `-n 0` runs all in one process.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose demo.py would hide the package demo

from scripts.setup import bootstrap, environment, steps  # noqa: E402

SIDE_BY_SIDE = 2


def main() -> int:
    """Set up, run pytest in the environment that was set up, and return its exit code."""
    setup = bootstrap.prepare(dev=True)
    # With more compute threads than cores, the processes spend most of the time waiting for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // SIDE_BY_SIDE)))
    side_by_side = ["-n", str(SIDE_BY_SIDE), "--dist", "loadfile"]
    return environment.run_inside(setup.tools, ["-m", "pytest", *side_by_side, *sys.argv[1:]], ROOT)


if __name__ == "__main__":
    steps.exit_with(main)
