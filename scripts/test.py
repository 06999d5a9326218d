"""Run the tests: `python scripts/test.py [pytest arguments]`. Sets up what they need first."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose demo.py would hide the package demo

from scripts import bootstrap, environment, steps  # noqa: E402


def main() -> int:
    """Set up, then run pytest inside the environment that was set up; its exit code is ours."""
    setup = bootstrap.prepare(dev=True)
    return environment.run_inside(setup.tools, ["-m", "pytest", *sys.argv[1:]], ROOT)


if __name__ == "__main__":
    steps.exit_with(main)
