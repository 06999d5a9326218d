"""Runs programs in processes forked from this one, which has imported what takes each of them the longest.

`python -m tests.forked`, in the host's own interpreter, reads lines of JSON, each a `Job`. It prints a JSON object with the `pid`
of each process that it forks, and another one with its exit `code` as well once it has ended. Nothing of the host is imported
before the fork. The processes end with this one, which ends when its input is closed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

SLOW = ("torch", "torch._dynamo", "torch.onnx.ops", "transformers", "scipy.stats", "spandrel", "torchsde", "sqlalchemy", "aiohttp")

BEFORE = {number: signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)}
"""The handlers of a new process."""


@dataclass(frozen=True)
class Job:
    """A program: a module of tests, or the path of a script in its own folder; the files for what it says must exist."""

    module: str
    path: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    out: str
    errors: str

    def run(self) -> int:
        """Run it in this process, and return its exit status."""
        if self.path:
            self.enter()
        nothing = os.open(os.devnull, os.O_RDONLY)
        files = [nothing, *(os.open(file, os.O_WRONLY | os.O_APPEND) for file in (self.out, self.errors))]
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.argv = [self.path or self.module, *self.arguments]
        try:
            if self.path:
                runpy.run_path(self.path, run_name="__main__")
            else:
                runpy.run_module(f"tests.{self.module}", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0

    def enter(self) -> None:
        """Enter the script's folder and environment, as `python script.py` would, leaving nothing of this repository behind."""
        import torch

        os.chdir(self.folder)
        os.environ.clear()
        os.environ.update(self.environment)
        if "OMP_NUM_THREADS" in self.environment:
            torch.set_num_threads(int(self.environment["OMP_NUM_THREADS"]))
        sys.path[0] = self.folder
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]


def fork(job: Job) -> int:
    """Start a job in a process of its own, and return its id."""
    process = os.fork()
    if process == 0:
        signal.set_wakeup_fd(-1)
        for number, how in BEFORE.items():
            signal.signal(number, how)
        status = job.run()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return process


def main() -> None:
    """Fork for each line, and tell of each process that has ended."""
    for name in SLOW:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    # Each process would compile the host's modules again where PYTHONDONTWRITEBYTECODE is set.
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(Path(__file__).parents[1] / ".cache" / "bytecode")
    running: set[int] = set()
    heard, wakes = os.pipe()
    for end in (heard, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT):
        # Those who stop the tests signal all of their processes; this one must tell what the others ended with.
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(wakes)
    while True:
        ready, _, _ = select.select([sys.stdin, heard], [], [])
        if heard in ready:
            os.read(heard, 4096)
            for pid in list(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    running.remove(pid)
                    print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                break
            running.add(pid := fork(Job(**json.loads(line))))
            print(json.dumps({"pid": pid}), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
