"""Programs that are killed while they write: every kind of file that the pack writes, every point of its way to the disk.

Points are before and after each call to the system, and after each piece of what is written. What a program left is what the next
one finds: the old file or the new one, whole, and nothing else that it would list or load.
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

from benchmarks.robustness import hostile
from perfusion_core import PerfusionError, lora_export, safe_files
from perfusion_core.concept import Concept
from perfusion_core.covariance import Covariance
from perfusion_core.training.state import TrainingState

PIECE = 1024
"""Bytes that reach the disk at once."""
CALLS = ("mkdir", "open", "fsync", "chmod", "link", "replace", "unlink")
"""Of `os`, all through which files change."""
OLD, NEW, NONE, SOME = "old", "new", "none yet", "some of several"


@dataclass(frozen=True)
class Kind:
    """A kind of file: `write` makes its files in a folder, in the version 0 or 1, and `read` takes one of them."""

    write: Callable[[Path, int], None]
    read: Callable[[Path], object]
    replaced: bool = True
    """Whether it may be written over an old one."""


@dataclass
class Outcome:
    """What was found after each kill."""

    counts: Counter = field(default_factory=Counter)
    scratch: int = 0
    """Files of a temporary name that were left."""
    wrong: list[str] = field(default_factory=list)

    def points(self) -> int:
        """Kills."""
        return sum(self.counts.values())


class Doomed:
    """Kills its own process at the n-th point."""

    def __init__(self, point: int) -> None:
        self.left = point

    def step(self) -> None:
        """A point is reached."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable) -> Callable:
        """The same call, with a point before it and one after it."""

        def called(*arguments: Any, **named: Any) -> Any:
            self.step()
            found = call(*arguments, **named)
            self.step()
            return found

        return called

    def opened(self, descriptor: int, mode: str) -> io.FileIO:
        """A file that takes what is written piece by piece, with a point after each; in place of `os.fdopen`."""
        step = self.step

        class InPieces(io.FileIO):
            def write(self, content: bytes) -> int:
                for start in range(0, len(content), PIECE):
                    super().write(content[start : start + PIECE])
                    step()
                return len(content)

        return InPieces(descriptor, mode)

    def enter(self) -> None:
        """From here on, this process is watched."""
        for name in CALLS:
            setattr(os, name, self.around(getattr(os, name)))
        os.fdopen = self.opened


def killed(write: Callable[[], None], point: int) -> bool:
    """Whether a child that writes came to this point, where it was killed; else it wrote to the end."""
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
    """What the host lists of a folder: name -> all that it holds, or why it cannot be read."""
    return {str(path.relative_to(folder)): held(path) for path in sorted(folder.rglob("*.safetensors"))}


def held(path: Path) -> str:
    """All that a file holds. Not its bytes: safetensors writes metadata in any order."""
    try:
        tensors, metadata = safe_files.read(path, 2**24)
    except PerfusionError as error:
        return str(error)
    return repr((sorted(metadata.items()), [(name, tensors[name].tolist()) for name in sorted(tensors)]))


def versions(kind: Kind) -> list[dict[str, str]]:
    """What is listed where there was nothing yet, of the old version and of the new one."""
    found = [{}]
    for version in range(2):
        with tempfile.TemporaryDirectory() as folder:
            kind.write(Path(folder), version)
            found.append(listed(Path(folder)))
    return found


def run(kind: Kind) -> Outcome:
    """Kill at each point, with nothing there and, if it may be written over, with an old version there."""
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
    """Look at what one kill left."""
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
    """All that the pack writes."""
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    concept, measured = hostile.concept(), hostile.estimate()
    (state, _), superclasses = safe_files.parse(hostile.training_state(), Path("state")), ("monster", "robot")
    picture = b"\xff\xd8\xff" + bytes(8000)

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
        "concept that may not replace one": Kind(number, Concept.load, replaced=False),
        "training checkpoint": Kind(keep, resumed),
        "covariance": Kind(measure, Covariance.load),
        "export of two files": Kind(give, lambda path: safe_files.read(path, 2**24), replaced=False),
    }
