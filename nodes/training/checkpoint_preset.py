"""The preset that suits a checkpoint, for the page: known from the shapes in its header, without loading any weights."""

import json
from pathlib import Path

import folder_paths
from safetensors import SafetensorError, safe_open

from ...perfusion_core import PerfusionError

KEYS = "attn2.to_k.weight"
BLOCKS = ("input_blocks.", "down_blocks.")
"""How the blocks of a UNet are named in checkpoints and in Diffusers' files."""
PRESETS = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}
"""Maps the width of the encodings that a UNet reads to its preset."""
DEMO_CHANNELS = 320
"""Channels of all cross-attention layers of the demo's model; SD1.5 reads encodings of the same width, but widens to 1,280."""


def preset_for(name: str) -> bytes:
    """Return JSON {"preset": name of the preset} for a file of the host's, "" if none suits it.

    Args:
        name: folder of models and name of the file in it, as in checkpoints/sd_xl_base_1.0.safetensors.

    Raises:
        PerfusionError: if there is no such file, or it cannot be read.
    """
    folder, _, file = name.partition("/")
    path = folder_paths.get_full_path(folder, file) if folder in ("checkpoints", "diffusion_models") else None
    if path is None:
        raise PerfusionError(
            f"There is no file {file!r} in models/{folder}; choose an existing checkpoint, or choose a preset by name."
        )
    return json.dumps({"preset": preset_of(Path(path))}).encode()


def preset_of(path: Path) -> str:
    """Return the preset for a checkpoint, "" if none suits it; raise PerfusionError for a file that is not a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            names = (name for name in file.keys() if name.endswith(KEYS) and any(block in name for block in BLOCKS))  # noqa: SIM118
            shapes = [file.get_slice(name).get_shape() for name in names]
    except (SafetensorError, OSError) as error:
        raise PerfusionError(
            f"{path.name} cannot be read as a safetensors file, so its family is unknown; choose a preset by name."
        ) from error
    if not shapes:
        return ""
    channels, width = max(shapes)
    preset = PRESETS.get(width, "")
    return "demo" if preset == "SD1.5" and channels <= DEMO_CHANNELS else preset
