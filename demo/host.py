"""The host's own modules, for scripts that train on them without a server."""

import sys
from pathlib import Path


def enter(comfyui: Path) -> None:
    """Make `comfy` importable from a ComfyUI folder, to compute on the processor; call it before the first import of `comfy`."""
    sys.path.append(str(comfyui))
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
