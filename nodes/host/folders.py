"""Registration of the concepts folder among the host's model folders."""

from pathlib import Path

import folder_paths

FOLDER = "perfusion"

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
_paths, _ = folder_paths.folder_names_and_paths[FOLDER]
folder_paths.folder_names_and_paths[FOLDER] = (_paths, {".safetensors"})


def listed(folder: str) -> list[str]:
    """Return the names of the files in one of the host's model folders, as the host lists them."""
    try:
        return folder_paths.get_filename_list(folder)
    except FileNotFoundError:
        # The host caches each folder's modification time and raises if the folder has since been deleted. Without the cache entry
        # it scans the folders again.
        folder_paths.filename_list_cache.pop(folder, None)
        return folder_paths.get_filename_list(folder)
