"""Helpers shared by all set-up steps: failures in one sentence, plain progress lines, and stamps of finished work."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class SetupError(Exception):
    """A failure reported to the user: what was expected, what happened instead, and what to do."""


def say(line: str) -> None:
    """Print a line without buffering, also into a pipe."""
    print(line, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print what is being done and, when it is finished, how long it took."""
    say(f"{what} ...")
    start = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - start:.0f} s")


def digest(*files: Path) -> str:
    """Hash the contents of files, in order."""
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def is_done(stamp: Path, wanted: str) -> bool:
    """Whether the work recorded by this stamp was finished for the value that is wanted now."""
    return stamp.is_file() and stamp.read_text() == wanted


def mark_done(stamp: Path, wanted: str) -> None:
    """Write the stamp atomically, as the last action of a step."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    part = stamp.with_name(stamp.name + ".part")
    part.write_text(wanted)
    os.replace(part, stamp)


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM; unlike Ctrl-C in a terminal, the signal does not reach its child processes."""


def stop_when_terminated() -> None:
    """Treat SIGTERM like Ctrl-C, so that a running server is stopped."""

    def stop(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)


@contextmanager
def child(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Make sure that a child process has ended before an interruption leaves the block that waits for it."""
    try:
        yield process
    except KeyboardInterrupt as stopped:
        if isinstance(stopped, Terminated):
            process.terminate()
        process.wait()
        raise


def exit_with(main: Callable[[], int]) -> None:
    """Run a script's main function and exit with its code; a known failure prints one sentence and exits with code 1."""
    stop_when_terminated()
    try:
        code = main()
    except SetupError as error:
        say(f"Failed: {error}")
        code = 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(f"Failed: expected room on the disk, but it is full ({error.filename}); free some and run this command again.")
        code = 1
    except KeyboardInterrupt:
        say("Interrupted. Run the same command again: it goes on with what is missing.")
        code = 130
    sys.exit(code)
