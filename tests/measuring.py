"""What is measured in the host's own interpreter, in a process of its own: it enters the host, which tests must not."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from scripts.setup.bootstrap import ROOT
from tests.forked import Job
from tests.forking import Forked


def measure(python: Path, module: str, *arguments: Path | str) -> dict:
    """The JSON object that a module of tests prints last."""
    given = [str(each) for each in arguments]
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        with out.open("w") as told, errors.open("w") as wrong:
            if hasattr(os, "fork"):
                status = Forked(str(python), Job(module, "", given, str(ROOT), {}, str(out), str(errors))).wait()
            else:
                command = [str(python), "-m", f"tests.{module}", *given]
                status = subprocess.run(command, stdout=told, stderr=wrong, check=False, cwd=ROOT).returncode
        assert status == 0, errors.read_text(encoding="utf-8")[-4000:]
        return json.loads(out.read_text(encoding="utf-8").strip().splitlines()[-1])
