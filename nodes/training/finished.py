"""The training that finished last: a folder with its files in `.work/finished`, even while several processes finish trainings.

Every process writes its own folder, which appears under its final name with one rename and never changes afterwards. Names begin
with the time, and only folders older than the newest are removed, so no process can remove what must be kept. Nothing is locked,
and nothing here depends on the host.
"""

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

FINISHED = "finished"
NAME = re.compile(r"\d{20}-[0-9a-f]{16}")
"""Time in ns and a random number. The name of a folder that is being written or removed begins with a dot."""
DAY = 24 * 3600 * 10**9


def kept(work: Path) -> list[Path]:
    """Return the folders of finished trainings, newest first; there is more than one only while processes finish trainings."""
    return sorted((path for path in entries(work) if NAME.fullmatch(path.name)), reverse=True)


def keep(work: Path, names: Sequence[str], write: Callable[[Path], None]) -> None:
    """Keep the files that `write` writes into the folder it is given, instead of those of the training that finished before.

    The files with these names in `work` itself are then removed, in this order; another process may have removed them.

    Raises:
        OSError, or what `write` raises: until the new files are complete, the old ones and those in `work` are kept.
    """
    name = f"{time.time_ns():020}-{secrets.token_hex(8)}"
    own = work / FINISHED / f".{name}"
    try:
        own.mkdir(parents=True)
        write(own)
        own.rename(own.with_name(name))
    finally:
        shutil.rmtree(own, ignore_errors=True)
    for each in names:
        (work / each).unlink(missing_ok=True)
    for old in kept(work)[1:]:
        remove(old)
    for left in entries(work):  # by a process that was killed, since none takes a day
        if NAME.fullmatch(left.name[1:]) and int(left.name[1:21]) < time.time_ns() - DAY:
            shutil.rmtree(left, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder so that others see all of it or nothing; another process may have removed it."""
    aside = folder.with_name(f".{folder.name}")
    with contextlib.suppress(OSError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def entries(work: Path) -> list[Path]:
    """Return the content of the folder FINISHED; empty if it does not exist or cannot be read."""
    try:
        return list((work / FINISHED).iterdir())
    except OSError:
        return []
