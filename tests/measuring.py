"""What is measured in the host's own interpreter, in a process of its own: it enters the host, which tests must not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from scripts.setup.bootstrap import ROOT


def measure(python: Path, module: str, *arguments: Path | str) -> dict:
    """The JSON object that a module of tests prints last."""
    command = [str(part) for part in (python, "-m", f"tests.{module}", *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
