"""A checkpoint of SD1.5's layout with seeded weights in half precision; the host must have been entered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import torch

from benchmarks.performance.seeded import UNET
from scripts.harness.seeded_models import FEW, made, seeded

SMALL = UNET | {
    "channel_mult": [1] * 4, "transformer_depth": [1] + [0] * 7, "transformer_depth_output": [1] * 2 + [0] * 10,
}  # fmt: skip
"""The host's loader detects the same family, with few layers."""


def write(path: Path, small: bool) -> None:
    """Write the checkpoint, with a seeded text encoder and a seeded TAESD for its autoencoder: 2 GB, or 0.2 GB if it is small."""
    torch.manual_seed(0)
    config, coder = comfy.supported_models.SD15(dict(SMALL if small else UNET)), comfy.taesd.taesd.TAESD(latent_channels=4)
    layers = FEW if small else {}
    model, clip = made(config, comfy.model_base.BaseModel, config.clip_target(), torch.float16, layers)
    seeded(coder)
    vae = comfy.sd.VAE(sd={name: weight for name, weight in coder.state_dict().items() if name.startswith("taesd_")})
    comfy.sd.save_checkpoint(str(path), model, clip, vae)


def load(path: Path, small: bool) -> tuple[Any, Any, Any]:
    """Return MODEL, CLIP and VAE, as the stock loader reads them."""
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(path), te_model_options=FEW if small else {})[:3]
