"""A checkpoint with SD1.5's shapes and seeded random UNet weights, and concepts for it, for measuring time and memory."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perfusion_fleet import inside
from scripts.setup import bootstrap

NAME = "seeded-sd15.safetensors"
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2] * 4,
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3, "use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8,
    "use_spatial_transformer": True, "use_checkpoint": False, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False, "use_temporal_resblock": False,
}  # fmt: skip
"""Configuration of SD1.5's UNet, by the host's names."""
PREFIX = "model.diffusion_model."


def checkpoint(setup: bootstrap.Setup) -> Path:
    """Return the file among the set-up's checkpoints, 2 GB; it is written if missing. The host must have been entered.

    Its text encoder and VAE are those of the demo's base.
    """
    folder = setup.base / "models" / "checkpoints"
    path = folder / NAME
    if not path.exists():
        made = {name: each for name, each in load_file(folder / bootstrap.CHECKPOINT).items() if not name.startswith(PREFIX)}
        layout = importlib.import_module("comfy.ldm.modules.diffusionmodules.openaimodel")
        unet = layout.UNetModel(**UNET, device="meta", operations=importlib.import_module("comfy.ops").disable_weight_init)
        generator = torch.Generator().manual_seed(0)
        for name, weight in unet.state_dict().items():
            made[PREFIX + name] = seeded(weight.shape, name.endswith("weight"), generator)
        save_file(made, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    return path


def seeded(shape: torch.Size, weight: bool, generator: torch.Generator) -> Tensor:
    """Return a random weight that preserves the scale of its input; ones for weights of norms, zeros for biases."""
    if len(shape) < 2:
        return torch.full(shape, float(weight)).half()
    return (torch.randn(shape, generator=generator) * shape[1:].numel() ** -0.5).half()


def concepts(host: Any, model: Any, clip: Any, count: int) -> tuple[Any, ...]:
    """Return random concepts for a MODEL and a CLIP; they cost as much computation as learned ones."""
    kind, layers, width = inside.part("perfusion_core.concept").Concept, host.layers_of(model), host.width_of(model)
    found = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        word = {
            name: torch.randn(1, tokenizer.embedding_size, generator=generator) / 50
            for name, tokenizer in host.encoders_of(clip).items()
        }
        values = {layer: torch.randn(rows, generator=generator) for layer, rows in layers.items()}
        target, above = (torch.randn(width, generator=generator) for _ in range(2))
        found.append(kind(f"<c{i}>", "monster", host.family_of(model), word, target, target, above, values))
    return tuple(found)
