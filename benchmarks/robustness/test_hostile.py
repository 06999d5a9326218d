"""Tests of broken and malicious files: a short run of `hostile.py`, in a separate process, because its audit hook is permanent."""

from __future__ import annotations

import subprocess
import sys

from scripts.setup.bootstrap import ROOT

RUN = """
import sys
from benchmarks.robustness import hostile
found = hostile.run(700, 1)
print(*found.wrong, found.slowest, found.largest, dict(found.counts), sep="\\n")
sys.exit(0 if found.good() and sum(found.counts.values()) == 700 else 1)
"""


def test_no_file_crashes_the_pack_runs_code_or_is_refused_unclearly() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RUN], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
