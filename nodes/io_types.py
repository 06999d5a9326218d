"""What flows between the pack's nodes, and where its files are."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..perfusion_core import PerfusionError

CATEGORY = "perfusion"
FOLDER = "perfusion"

ConceptType = io.Custom("PERFUSION_CONCEPT")
"""A stack of concepts: a tuple of `perfusion_core.concept.Concept`."""

CovarianceType = io.Custom("PERFUSION_COVARIANCE")
"""A `perfusion_core.covariance.Covariance`."""

AttentionType = io.Custom("PERFUSION_ATTENTION")
"""A `host.Recorder`: what was seen while a watched model sampled."""


def concept_outputs(meant_for: str = "For Apply Concept, or to be set and combined first.") -> list[io.Output]:
    """Outputs of a node that brings one concept; the first one's tooltip says what it is for."""
    return [
        ConceptType.Output(display_name="concept", tooltip=meant_for),
        io.String.Output(display_name="trigger", tooltip="The word that stands for the concept in prompts."),
        io.String.Output(display_name="superclass", tooltip="The plain word that the concept is a kind of."),
    ]


def size_input() -> io.Int.Input:
    """The input `size` of nodes that draw squares of the model's own size."""
    return io.Int.Input(
        "size",
        default=512,
        min=64,
        max=2048,
        step=8,
        tooltip="Pixels a side that the model was trained for: SD1 512, SD2 768, SDXL 1024.",
    )


def verdict(check: Callable[[], object]) -> bool | str:
    """What a node's `validate_inputs` says, before anything runs: True, or the sentence that `check` raises.

    Inputs that are linked come as None there: they are known when the node runs, and checked again then.
    """
    try:
        check()
    except PerfusionError as error:
        return str(error)
    return True


folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
_paths, _ = folder_paths.folder_names_and_paths[FOLDER]
folder_paths.folder_names_and_paths[FOLDER] = (_paths, {".safetensors"})

WORKROOM = ".work"
"""Sub-folder for what the pack keeps for itself: covariances and checkpoints of trainings that are not done."""


def listed(folder: str) -> list[str]:
    """Names of the files in one of the host's folders of models, as the host lists them."""
    try:
        return folder_paths.get_filename_list(folder)
    except FileNotFoundError:
        # The host remembers when each folder was changed and stumbles over one that is gone; without that it looks anew.
        folder_paths.filename_list_cache.pop(folder, None)
        return folder_paths.get_filename_list(folder)


def concept_files() -> list[str]:
    """Names of the concept files that the user has, as the host lists them."""
    return [name for name in listed(FOLDER) if not name.startswith((f"{WORKROOM}/", f"{WORKROOM}\\"))]


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
