"""A checkpoint of SD1.5's layout with seeded weights in half precision; the host must have been entered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

SD15 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2] * 4,
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3, "use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8,
    "use_spatial_transformer": True, "use_checkpoint": False, "legacy": False, "adm_in_channels": None,
    "use_temporal_attention": False,
}  # fmt: skip
"""The host's configuration of SD1.5's UNet."""
SMALL = SD15 | {
    "channel_mult": [1] * 4, "transformer_depth": [1] + [0] * 7, "transformer_depth_output": [1] * 2 + [0] * 10,
}  # fmt: skip
"""The same family to the host's loader, with few layers."""
FEW = {"clip_l_model_config": {"num_hidden_layers": 3}}


def write(path: Path, small: bool) -> None:
    """Write the checkpoint, with a seeded text encoder and a seeded TAESD for its autoencoder: 2 GB, or 0.2 GB if it is small."""
    torch.manual_seed(0)
    config, cpu = comfy.supported_models.SD15(dict(SMALL if small else SD15)), torch.device("cpu")
    config.set_inference_dtype(torch.float16, None)
    model = comfy.model_base.BaseModel(config, device=cpu)
    clip = comfy.sd.CLIP(config.clip_target(), model_options={**(FEW if small else {}), "dtype": torch.float16})
    coder = comfy.taesd.taesd.TAESD(latent_channels=4)
    for module in (model.diffusion_model, clip.cond_stage_model, coder):
        seeded(module)
    vae = comfy.sd.VAE(sd={name: weight for name, weight in coder.state_dict().items() if name.startswith("taesd_")})
    comfy.sd.save_checkpoint(str(path), ModelPatcher(model, load_device=cpu, offload_device=cpu), clip, vae)


def seeded(module: nn.Module) -> None:
    """Give weights that keep the size of what passes through them; norms 1, biases 0, embeddings small."""
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            nn.init.constant_(weight, float(name.endswith("weight")))
        else:
            nn.init.normal_(weight, std=0.02 if "embedding" in name else weight[0].numel() ** -0.5)


def load(path: Path, small: bool) -> tuple[Any, Any, Any]:
    """Return MODEL, CLIP and VAE, as the stock loader reads them."""
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(path), te_model_options=FEW if small else {})[:3]
