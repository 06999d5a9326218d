"""The folder of concepts among the host's folders of models."""

from pathlib import Path

import folder_paths

FOLDER = "perfusion"

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
_paths, _ = folder_paths.folder_names_and_paths[FOLDER]
folder_paths.folder_names_and_paths[FOLDER] = (_paths, {".safetensors"})


def listed(folder: str) -> list[str]:
    """Names of the files in one of the host's folders of models, as the host lists them."""
    try:
        return folder_paths.get_filename_list(folder)
    except FileNotFoundError:
        # The host remembers when each folder was changed and stumbles over one that is gone; without that it looks anew.
        folder_paths.filename_list_cache.pop(folder, None)
        return folder_paths.get_filename_list(folder)
