"""Locations of the pack's files, and names for new ones."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import folder_paths

from ..perfusion_core import PerfusionError
from . import host
from .host import FOLDER

WORKROOM = ".work"
"""Subfolder for the pack's own data: covariances, and the checkpoints of trainings."""


def concept_files() -> list[str]:
    """Return the names of the user's concept files, as the host lists them."""
    return [name for name in host.listed(FOLDER) if not name.startswith((f"{WORKROOM}/", f"{WORKROOM}\\"))]


def listed_as(name: str) -> str:
    """Return the name under which this system lists a concept file; a workflow from another system may have other separators."""
    names = concept_files()
    return name if name in names else next((n for n in names if n.replace("\\", "/") == name.replace("\\", "/")), name)


def version_of(name: str) -> str:
    """Return a string that changes when a file of the user's is replaced: its name, time and size, or its name if there is none."""
    # The page requests the versions of all files, so they are listed only for a name that is not found directly.
    path = folder_paths.get_full_path(FOLDER, name) or folder_paths.get_full_path(FOLDER, listed_as(name))
    if path is None:
        return name
    try:
        found = Path(path).stat()
    except FileNotFoundError:  # deleted in the meantime
        return name
    return f"{name} {found.st_mtime_ns} {found.st_size}"


FOREIGN = {".pt", ".pth", ".ckpt", ".bin"}
"""Extensions of other implementations' files; they are in the same folder as the pack's, but Load Concept does not list them."""


def foreign_files() -> list[str]:
    """Return the names of the user's files from other implementations."""
    found = {
        name
        for folder in folder_paths.get_folder_paths(FOLDER)
        for name in folder_paths.recursive_search(folder, [".git", WORKROOM])[0]
    }
    return folder_paths.filter_files_extensions(found, FOREIGN)


def check_prefix(prefix: str) -> str:
    """Return the file name that the user typed, stripped; raises PerfusionError if it is empty or leads out of the folder."""
    prefix = prefix.strip()
    if not prefix:
        raise PerfusionError("The file needs a name; type one into filename_prefix.")
    if Path(prefix).is_absolute() or ".." in Path(prefix).parts:
        raise PerfusionError(
            f"{prefix!r} points outside ComfyUI's own folder, so the file cannot be saved there; enter only a name."
        )
    return prefix


def new_name(prefix: str, files: Mapping[Path, Sequence[str]], overwrite: bool = False, taken: Collection[str] = ()) -> str:
    """Return a name `subfolder/name_00001` for the files that a node saves, with a counter for which no file exists yet.

    Args:
        prefix: what the user typed.
        files: folder -> suffixes, after the name, of the files that will be written there, such as ".safetensors".
        overwrite: whether to return the name itself, without a counter.
        taken: stems of files (without folder and extension) that must not be used again in any folder.

    Raises:
        PerfusionError: if the name is empty or leads out of the folder.
    """
    prefix = check_prefix(prefix)
    found = [folder_paths.get_save_image_path(prefix, str(folder)) for folder in files]
    _, name, counter, subfolder, _ = max(found, key=lambda each: each[2])
    name = (Path(subfolder) / name).as_posix()
    if overwrite:
        return name

    def there(path: Path) -> bool:
        return os.path.lexists(path) or path.stem in taken  # a dangling link occupies the name, too

    # The host's counter considers only names of its own pattern in these folders; skip any other name that is in use.
    while any(there(folder / f"{name}_{counter:05}{end}") for folder, ends in files.items() for end in ends):
        counter += 1
    return f"{name}_{counter:05}"


def home() -> Path:
    """Return the folder that concepts are saved to: the user's first writable folder, or the first one if none is."""
    folders = [Path(each) for each in folder_paths.get_folder_paths(FOLDER)]
    return next((each for each in folders if can_be_written(each)), folders[0])


def can_be_written(folder: Path) -> bool:
    """Return whether files can be written to a folder, which is created when it is first needed."""
    # Not Path.exists, which raises an error below a folder that cannot be read. A drive may be missing altogether.
    there = next((each for each in (folder, *folder.parents) if os.path.exists(each)), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def work_folder() -> Path:
    """Return the subfolder of `home` for the pack's own data."""
    return home() / WORKROOM
