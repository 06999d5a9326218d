"""SDXL's layout with few channels and layers and seeded weights, made by the host's own classes; it knows nothing."""

from __future__ import annotations

import comfy.model_base
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 4], "transformer_depth": [0, 1, 2], "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 1, 1, 2, 2], "use_linear_in_transformer": True, "context_dim": 2048,
    "num_head_channels": 16, "num_classes": "sequential", "adm_in_channels": 2816, "use_spatial_transformer": True,
    "legacy": False, "use_checkpoint": False,
}  # fmt: skip


def make(seed: int = 0) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """MODEL and CLIP, in float32 on the processor."""
    torch.manual_seed(seed)
    config = comfy.supported_models.SDXL(dict(UNET))
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.SDXL(config, device=torch.device("cpu"))
    target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    few = {f"{name}_model_config": {"num_hidden_layers": 3} for name in ("clip_l", "clip_g")}
    clip = comfy.sd.CLIP(target, model_options={**few, "dtype": torch.float32})
    for module in (model.diffusion_model, clip.cond_stage_model):
        seeded(module)
    cpu = torch.device("cpu")
    return ModelPatcher(model, load_device=cpu, offload_device=cpu), clip


def seeded(module: nn.Module) -> None:
    """Give weights that keep the size of what passes through them; norms 1, biases 0, embeddings small."""
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            nn.init.constant_(weight, float(name.endswith("weight")))
        else:
            nn.init.normal_(weight, std=0.02 if "embedding" in name else weight[0].numel() ** -0.5)
