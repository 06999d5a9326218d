"""What is measured in the host's own interpreter, in a process of its own: it enters the host, which tests must not."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path

from scripts.setup.bootstrap import ROOT


def measure(python: Path, module: str, *arguments: Path | str) -> dict:
    """The JSON object that a module of tests prints last."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder) / "out", Path(folder) / "errors"
        status = (
            forked(python, module, arguments, out, errors)
            if hasattr(os, "fork")
            else started(python, module, arguments, out, errors)
        )
        assert status == 0, errors.read_text(encoding="utf-8")[-4000:]
        return json.loads(out.read_text(encoding="utf-8").strip().splitlines()[-1])


def started(python: Path, module: str, arguments: tuple[Path | str, ...], out: Path, errors: Path) -> int:
    """The exit status of a new process."""
    command = [str(part) for part in (python, "-m", f"tests.{module}", *arguments)]
    with out.open("w") as told, errors.open("w") as wrong:
        return subprocess.run(command, stdout=told, stderr=wrong, check=False, cwd=ROOT).returncode


def forked(python: Path, module: str, arguments: tuple[Path | str, ...], out: Path, errors: Path) -> int:
    """The exit status of a process that need not import torch and the like again; see `tests.forked`."""
    parent = forking(python)
    assert parent.stdin and parent.stdout
    parent.stdin.write(json.dumps([module, [str(each) for each in arguments], str(out), str(errors)]) + "\n")
    parent.stdin.flush()
    status = parent.stdout.readline()
    assert status, "the process that the others are forked from has ended; see what it wrote"
    return int(status)


@functools.cache
def forking(python: Path) -> subprocess.Popen[str]:
    """The process that the others are forked from; it ends with this one, which holds its input open."""
    return subprocess.Popen([python, "-m", "tests.forked"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
