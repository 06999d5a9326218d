"""The training that ended last: a folder with its files in `.work/finished`, also while several processes end trainings at once.

Every process writes a folder of its own, which appears under its final name with one rename and is never changed afterwards. Names
begin with the time, and only folders older than the newest are removed, so that no process can remove what is to be kept. Nothing
is locked, and nothing here depends on the host.
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
    """Return the folders of ended trainings, the newest first; there is more than one only while processes end trainings."""
    return sorted((path for path in entries(work) if NAME.fullmatch(path.name)), reverse=True)


def keep(work: Path, names: Sequence[str], write: Callable[[Path], None]) -> None:
    """Keep the files that `write` writes into the folder that it is given, in place of those of the training that ended before.

    The files with these names in `work` itself are then removed, in this order; another process may have removed them.

    Raises:
        OSError, or what `write` raises: if that is before the new files are whole, the old ones and those in `work` are left.
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
    for left in entries(work):  # by a process that was killed, for none takes a day
        if NAME.fullmatch(left.name[1:]) and int(left.name[1:21]) < time.time_ns() - DAY:
            shutil.rmtree(left, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder, of which others see all or nothing; another process may have removed it."""
    aside = folder.with_name(f".{folder.name}")
    with contextlib.suppress(OSError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def entries(work: Path) -> list[Path]:
    """Return what lies in the folder FINISHED; nothing if there is none, or none that can be read."""
    try:
        return list((work / FINISHED).iterdir())
    except OSError:
        return []
