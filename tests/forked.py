"""Runs modules of tests in processes forked from this one, which has imported what takes each of them the longest.

`python -m tests.forked`, in the host's own interpreter, reads lines of JSON: a module's name, its arguments, and the files for its
output and its errors. It prints the exit status of each once it has ended. Nothing of the host is imported before the fork.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import sys
import traceback

SLOW = ("torch", "torch._dynamo", "torch.onnx.ops", "transformers", "scipy.stats", "spandrel", "torchsde", "sqlalchemy", "aiohttp")


def run(module: str, arguments: list[str], *files: str) -> int:
    """Run a module of tests as a program, in this process, and return its exit status."""
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(f"tests.{module}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Fork for each line, one at a time."""
    for name in SLOW:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            status = run(*json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
