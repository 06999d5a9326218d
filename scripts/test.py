"""Run the tests: `python scripts/test.py [pytest arguments]`. Sets up what they need first.

Files of tests run in two processes side by side, each with a server of its own; `-n 0` runs all in one.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose demo.py would hide the package demo

from scripts.setup import bootstrap, environment, steps  # noqa: E402

SIDE_BY_SIDE = 2


def main() -> int:
    """Set up, then run pytest inside the environment that was set up; its exit code is ours."""
    setup = bootstrap.prepare(dev=True)
    # Processes that compute with more threads than there are cores wait for each other most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // SIDE_BY_SIDE)))
    side_by_side = ["-n", str(SIDE_BY_SIDE), "--dist", "loadfile"]
    return environment.run_inside(setup.tools, ["-m", "pytest", *side_by_side, *sys.argv[1:]], ROOT)


if __name__ == "__main__":
    steps.exit_with(main)
