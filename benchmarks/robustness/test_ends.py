"""Tests of trainings that finish at the same time: a short run of `ends.py` in a separate process, which does not import torch."""

from __future__ import annotations

import subprocess
import sys

from scripts.setup.bootstrap import ROOT


def test_sixteen_processes_that_end_trainings_at_once_all_succeed_and_one_whole_set_is_kept() -> None:
    command = [sys.executable, "-m", "benchmarks.robustness.ends", "--rounds", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("0 of 80 ends went wrong") == 2, done.stdout
