"""Train the judges and report their accuracy.

`python -m benchmarks.world.train_judges train --cast DIR` does both, `... report --cast DIR` only reports on the existing judges.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.world import judge_report, judge_training
from benchmarks.world.judges import Judges
from scripts.setup import bootstrap


def main() -> None:
    """Train the judges if requested, then write their report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("action", choices=("train", "report"), help="report: only measure what is there")
    parser.add_argument("--cast", type=Path, required=True, help="what demo.draw drew")
    options = parser.parse_args()
    comfyui = bootstrap.locate().comfyui
    if options.action == "train":
        judge_training.train_all(options.cast, comfyui)
    judge_report.write(Judges.load(), options.cast, comfyui)


if __name__ == "__main__":
    main()
