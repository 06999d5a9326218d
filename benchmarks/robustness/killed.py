"""Kill programs while they write: every kind of file that the pack writes, at every point of the write.

The points are before and after each system call, and after each piece of the content. Afterwards the next program must find the
complete old file or the complete new one, and nothing else that it would list or load.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.robustness import hostile, hostile_pictures
from perfusion_core import PerfusionError, lora_export, safe_files
from perfusion_core.concept import Concept
from perfusion_core.covariance import Covariance
from perfusion_core.training.state import TrainingState

PIECE = 1024
"""Number of bytes written at once."""
CALLS = ("mkdir", "open", "fsync", "chmod", "link", "replace", "unlink")
"""The functions of `os` through which files are changed."""
OLD, NEW, NONE, SOME = "old file", "new file", "no file yet", "some of several files"


@dataclass(frozen=True)
class Kind:
    """A kind of file: `write` writes its files into a folder, in version 0 or 1, and `read` reads one of them."""

    write: Callable[[Path, int], None]
    read: Callable[[Path], object]
    replaced: bool = True
    """Whether it may overwrite an old file."""


@dataclass
class Outcome:
    """The state of the folder after each kill."""

    counts: Counter = field(default_factory=Counter)
    scratch: int = 0
    """Number of temporary files that were left behind."""
    wrong: list[str] = field(default_factory=list)

    def points(self) -> int:
        """Return the number of kills."""
        return sum(self.counts.values())


class Doomed:
    """Kills its own process at the n-th point."""

    def __init__(self, point: int) -> None:
        self.left = point

    def step(self) -> None:
        """Count a point, and kill the process if it is the n-th."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable) -> Callable:
        """Wrap a call with a point before it and one after it."""

        def called(*arguments: Any, **named: Any) -> Any:
            self.step()
            found = call(*arguments, **named)
            self.step()
            return found

        return called

    def opened(self, descriptor: int, mode: str) -> io.FileIO:
        """Replace `os.fdopen`: return a file that writes piece by piece, with a point after each."""
        step = self.step

        class InPieces(io.FileIO):
            def write(self, content: bytes) -> int:
                for start in range(0, len(content), PIECE):
                    super().write(content[start : start + PIECE])
                    step()
                return len(content)

        return InPieces(descriptor, mode)

    def enter(self) -> None:
        """Install the points in this process."""
        for name in CALLS:
            setattr(os, name, self.around(getattr(os, name)))
        os.fdopen = self.opened


def killed(write: Callable[[], None], point: int) -> bool:
    """Fork a child that writes; return whether it reached this point and was killed there, or False if it finished writing."""
    child = os.fork()
    if child == 0:
        try:
            Doomed(point).enter()
            write()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("expected the child to write or to be killed, but it failed.")
    return os.WIFSIGNALED(status)


def listed(folder: Path) -> dict[str, str]:
    """Return the files that the host lists in a folder: by name, the content, or the reason why it cannot be read."""
    return {str(path.relative_to(folder)): held(path) for path in sorted(folder.rglob("*.safetensors"))}


def held(path: Path) -> str:
    """Return a file's content as text. Bytes cannot be compared, because safetensors writes metadata in any order."""
    try:
        tensors, metadata = safe_files.read(path, 2**24)
    except PerfusionError as error:
        return str(error)
    return repr((sorted(metadata.items()), [(name, tensors[name].tolist()) for name in sorted(tensors)]))


def versions(kind: Kind) -> list[dict[str, str]]:
    """Return what is listed in an empty folder, with the old version and with the new one."""
    found = [{}]
    for version in range(2):
        with tempfile.TemporaryDirectory() as folder:
            kind.write(Path(folder), version)
            found.append(listed(Path(folder)))
    return found


def run(kind: Kind) -> Outcome:
    """Kill at each point, in an empty folder and, if the kind may overwrite, over an old version."""
    nothing, old, new = versions(kind)
    outcome = Outcome()
    for there in [nothing, old] if kind.replaced else [nothing]:
        for point in itertools.count(1):
            with tempfile.TemporaryDirectory() as path:
                folder = Path(path)
                if there:
                    kind.write(folder, 0)
                if not killed(lambda: kind.write(folder, 1), point):  # noqa: B023
                    break
                judge(kind, folder, there, new, outcome)
    return outcome


def judge(kind: Kind, folder: Path, there: dict[str, str], new: dict[str, str], outcome: Outcome) -> None:
    """Examine the folder after a kill, and add the result to `outcome`."""
    found = listed(folder)
    scratch = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    outcome.scratch += len(scratch)
    if found == new:
        said = NEW
    elif found == there:
        said = OLD if there else NONE
    else:
        said = SOME if found.items() <= new.items() else "broken"
    outcome.counts[said] += 1
    if said == "broken":
        outcome.wrong.append(f"neither old nor new: {sorted(found)}")
    outcome.wrong += [f"left behind: {path.name}" for path in scratch if not (path.name[0] == "." and path.suffix == ".part")]
    for name in found:
        kind.read(folder / name)
    if kind.replaced or not found:
        kind.write(folder, 1)
        if listed(folder) != new:
            outcome.wrong.append(f"not written afterwards: {sorted(listed(folder))}")


# ---- the kinds -----------------------------------------------------------------------------------------------------------------


def kinds() -> dict[str, Kind]:
    """Return all kinds of files that the pack writes."""
    torch.set_num_threads(1)  # a forked process does not have its parent's threads
    concept, measured = hostile.concept(), hostile.estimate()
    (state, _), superclasses = safe_files.parse(hostile.training_state(), Path("state")), ("monster", "robot")
    picture = hostile_pictures.picture("JPEG", side=256)

    def save(folder: Path, version: int) -> None:
        of_version = replace(concept, superclass=superclasses[version], preview=picture)
        of_version.save(folder / "animals" / "concept.safetensors")

    def number(folder: Path, version: int) -> None:
        replace(concept, superclass=superclasses[version]).save(folder / "concept.safetensors", overwrite=False)

    def keep(folder: Path, version: int) -> None:
        losses = torch.ones(1 + version, dtype=torch.float64)
        safe_files.write(folder / ".work" / "training.safetensors", state | {"losses": losses}, {"version": "1"})

    def measure(folder: Path, version: int) -> None:
        replace(measured, identity=superclasses[version]).save(folder / ".work" / "covariance.safetensors")

    def give(folder: Path, version: int) -> None:
        stack = (replace(concept, superclass=superclasses[version]),)
        told = lora_export.metadata(stack, ["it"], "lora")
        tensors = {f"{name}.lora_up.weight": output[:, None] for name, output in concept.values.items()}
        safe_files.write_all(
            {
                folder / "embeddings" / "it.safetensors": (lora_export.embedding(concept.word), told),
                folder / "loras" / "it.safetensors": (tensors, told),
            }
        )

    def resumed(path: Path) -> TrainingState:
        return TrainingState.from_tensors(safe_files.read(path, 2**24)[0])

    return {
        "concept": Kind(save, Concept.load),
        "concept that may not overwrite one": Kind(number, Concept.load, replaced=False),
        "training checkpoint": Kind(keep, resumed),
        "covariance": Kind(measure, Covariance.load),
        "export of two files": Kind(give, lambda path: safe_files.read(path, 2**24), replaced=False),
    }
