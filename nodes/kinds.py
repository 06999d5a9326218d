"""What flows between the pack's nodes, and where its files are."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

CATEGORY = "perfusion"
FOLDER = "perfusion"

ConceptType = io.Custom("PERFUSION_CONCEPT")
"""A stack of concepts: a tuple of `perfusion_core.concept.Concept`."""

CovarianceType = io.Custom("PERFUSION_COVARIANCE")
"""A `perfusion_core.covariance.Covariance`."""

AttentionType = io.Custom("PERFUSION_ATTENTION")
"""A `host.Recorder`: what was seen while a watched model sampled."""

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
_paths, _ = folder_paths.folder_names_and_paths[FOLDER]
folder_paths.folder_names_and_paths[FOLDER] = (_paths, {".safetensors"})

WORKROOM = ".work"
"""Sub-folder for what the pack keeps for itself: covariances and checkpoints of trainings that are not done."""


def concept_files() -> list[str]:
    """Names of the concept files that the user has, as the host lists them."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if Path(name).parts[0] != WORKROOM]


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


def home() -> Path:
    """The folder that concepts are saved to."""
    return Path(folder_paths.get_folder_paths(FOLDER)[0])
