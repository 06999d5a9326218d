"""Processes forked from one that has imported what takes each of them the longest; see `forked`. Not on systems without a fork."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from scripts.setup.bootstrap import ROOT
from tests.forked import Job

PATIENCE = 300
"""Seconds within which it has imported everything."""


class Forking:
    """The process that others are forked from, and what it has told."""

    def __init__(self, python: str) -> None:
        command = [python, "-m", "tests.forked"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.told = threading.Condition()
        self.forked: list[int] = []
        self.codes: dict[int, int] = {}
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Take what it tells, until it ends."""
        assert self.process.stdout
        for line in self.process.stdout:
            found = json.loads(line)
            with self.told:
                if "code" in found:
                    self.codes[found["pid"]] = found["code"]
                else:
                    self.codes.pop(found["pid"], None)  # of an earlier process with this id
                    self.forked.append(found["pid"])
                self.told.notify_all()
        self.process.wait()
        with self.told:
            self.told.notify_all()

    def fork(self, job: Job) -> int:
        """Start a process and return its id."""
        with self.told:
            print(json.dumps(asdict(job)), file=self.process.stdin, flush=True)
            self.told.wait_for(lambda: self.forked or self.process.poll() is not None, PATIENCE)
            assert self.forked, "the process that others are forked from does not answer"
            return self.forked.pop()


@functools.cache
def forking(python: str) -> Forking:
    """The process that those of an interpreter are forked from; it ends with this one, which holds its input open."""
    return Forking(python)


class Forked:
    """What is needed of a Popen."""

    def __init__(self, python: str, job: Job) -> None:
        """Start it."""
        self.job, self.forking = job, forking(python)
        self.pid = self.forking.fork(job)

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self.forking.codes.get(self.pid)

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return its exit code."""
        with self.forking.told:
            if not self.forking.told.wait_for(
                lambda: self.returncode is not None or self.forking.process.poll() is not None, timeout
            ):
                raise subprocess.TimeoutExpired(self.job.arguments, timeout or 0)
        return self.forking.codes.get(self.pid, -signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def server(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: int, stdout: IO[bytes], stderr: int
) -> Forked | subprocess.Popen[bytes]:
    """Start a server as Popen would. With an accelerator, it is Popen that does: the host sets it up before it imports torch."""
    if "--cpu" not in command:
        return subprocess.Popen(command, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr)
    assert (stdin, stderr) == (subprocess.DEVNULL, subprocess.STDOUT)
    python, program, *arguments = command
    log = str(Path(stdout.name).absolute())
    return Forked(python, Job("", program, arguments, str(cwd), dict(env), log, log))
