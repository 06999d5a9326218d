"""The training that came to its end last: its files stay, for ComfyUI may die before the concept is saved."""

import shutil
from collections.abc import Sequence
from pathlib import Path

FOLDER = "finished"
"""Beside checkpoints."""
_ended_here: set[Path] = set()
"""Checkpoints of trainings that this process ended."""


def bring_back(files: Sequence[Path]) -> None:
    """Have a training go on from its end, if it ended last, and another process did that.

    Who asks for it once more while ComfyUI runs has it done once more. `files` of a training: its checkpoint is the last of them,
    and the others are of no use without it.
    """
    checkpoint = files[-1]
    folder = checkpoint.parent / FOLDER
    if checkpoint not in _ended_here and (folder / checkpoint.name).exists():
        _move([folder / file.name for file in files], checkpoint.parent)


def set_aside(files: Sequence[Path]) -> None:
    """Put a training that has ended in the place of the one that ended before."""
    checkpoint = files[-1]
    folder = checkpoint.parent / FOLDER
    _ended_here.add(checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    _move(files, folder)


def _move(files: Sequence[Path], folder: Path) -> None:
    """Those that there are, in this order."""
    for file in files:
        if file.exists():
            file.replace(folder / file.name)
