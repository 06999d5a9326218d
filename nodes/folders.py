"""Where the pack's files are, and what a new one is called."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import folder_paths

from ..perfusion_core import PerfusionError
from . import host
from .host.folders import FOLDER

WORKROOM = ".work"
"""Sub-folder for what the pack keeps for itself: covariances and checkpoints of trainings that are not done."""


def concept_files() -> list[str]:
    """Names of the concept files that the user has, as the host lists them."""
    return [name for name in host.listed(FOLDER) if not name.startswith((f"{WORKROOM}/", f"{WORKROOM}\\"))]


def version_of(name: str) -> str:
    """What tells a file of the user's from another one that takes its place, by time and size; the name where there is none."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        return name
    try:
        found = Path(path).stat()
    except FileNotFoundError:  # deleted since a moment ago
        return name
    return f"{name} {found.st_mtime_ns} {found.st_size}"


FOREIGN = {".pt", ".pth", ".ckpt", ".bin"}
"""How files of other implementations end; they lie beside ours, and Load Concept does not list them."""


def foreign_files() -> list[str]:
    """Names of the files of other implementations that the user has."""
    found = {
        name
        for folder in folder_paths.get_folder_paths(FOLDER)
        for name in folder_paths.recursive_search(folder, [".git", WORKROOM])[0]
    }
    return folder_paths.filter_files_extensions(found, FOREIGN)


def check_prefix(prefix: str) -> str:
    """What the user typed as the name of a file; raises PerfusionError where it is none, or leads out of the folder."""
    prefix = prefix.strip()
    if not prefix:
        raise PerfusionError("A name for the file is needed; type one into filename_prefix.")
    if Path(prefix).is_absolute() or ".." in Path(prefix).parts:
        raise PerfusionError(f"The file cannot be saved outside of ComfyUI's own folder, as {prefix!r} asks; give a name alone.")
    return prefix


def new_name(prefix: str, files: Mapping[Path, Sequence[str]], overwrite: bool = False, taken: Collection[str] = ()) -> str:
    """The name `sub-folder/name_00001` for what a node saves, its counter such that nothing is there yet.

    Args:
        prefix: what the user typed.
        files: folder -> what comes after the name in the files that will be written there, such as ".safetensors".
        overwrite: give the name itself, without a counter.
        taken: names of files, without folder and ending, that are not to come up in any folder again.

    Raises:
        PerfusionError: there is no name, or it leads out of the folder.
    """
    prefix = check_prefix(prefix)
    found = [folder_paths.get_save_image_path(prefix, str(folder)) for folder in files]
    _, name, counter, subfolder, _ = max(found, key=lambda each: each[2])
    name = (Path(subfolder) / name).as_posix()
    if overwrite:
        return name

    def there(path: Path) -> bool:
        return os.path.lexists(path) or path.stem in taken  # a link that leads nowhere has the name, too

    # The host's counter stops at gaps in names of its own pattern; a file that is there all the same is stepped over.
    while any(there(folder / f"{name}_{counter:05}{end}") for folder, ends in files.items() for end in ends):
        counter += 1
    return f"{name}_{counter:05}"


def home() -> Path:
    """The folder that concepts are saved to."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0])


def work_folder() -> Path:
    """The sub-folder of it for what the pack keeps for itself."""
    return home() / WORKROOM
