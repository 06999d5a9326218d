"""Layouts of SD2 and SDXL with few layers, and of SDXL's kin whole, made by the host's own classes; seeded weights know nothing."""

from __future__ import annotations

from pathlib import Path

import comfy.model_base
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.sd2_clip
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from scripts.harness.seeded_models import FEW, made

SD2 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2] * 4,
    "channel_mult": [1] * 4, "transformer_depth": [1] + [0] * 7, "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 2 + [0] * 10, "use_linear_in_transformer": True, "context_dim": 1024,
    "num_heads": -1, "num_head_channels": 64, "adm_in_channels": None, "use_spatial_transformer": True,
    "use_temporal_attention": False, "legacy": False, "use_checkpoint": False,
}  # fmt: skip
"""As many blocks as SD2 has, for the host tells v-prediction by the last one; narrow, and most without attention."""
WHOLE = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": [1, 2, 4],
    "use_linear_in_transformer": True, "context_dim": 2048, "num_head_channels": 64, "num_classes": "sequential",
    "adm_in_channels": 2816, "use_spatial_transformer": True, "use_temporal_attention": False, "legacy": False,
    "use_checkpoint": False,
}  # fmt: skip
DEPTHS = {
    "SDXL": ([0, 0, 2, 2, 10, 10], 10, [0, 0, 0, 2, 2, 2, 10, 10, 10]),
    "SSD1B": ([0, 0, 2, 2, 4, 4], -1, [0, 0, 0, 1, 1, 2, 10, 4, 4]),
    "Segmind_Vega": ([0, 0, 1, 1, 2, 2], -1, [0, 0, 0, 1, 1, 1, 2, 2, 2]),
    "KOALA_700M": ([0, 2, 5], -2, [0, 0, 2, 2, 5, 5]),
    "KOALA_1B": ([0, 2, 6], 6, [0, 0, 2, 2, 6, 6]),
}
"""SDXL and those that were made of it, by the host's names -> transformer blocks on the way in, in the middle, on the way out."""
SDXL = WHOLE | {
    "model_channels": 32, "num_head_channels": 16, "num_res_blocks": [1, 1, 1], "transformer_depth": [0, 1, 2],
    "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 1, 1, 2, 2],
}  # fmt: skip


def sdxl(folder: Path) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """MODEL and CLIP, in float32 on the processor; no loader knows an SDXL so narrow."""
    torch.manual_seed(0)
    config = comfy.supported_models.SDXL(dict(SDXL))
    target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    return made(config, comfy.model_base.SDXL, target)


def whole(name: str) -> comfy.supported_models_base.BASE:
    """The host's configuration of one of DEPTHS."""
    down, middle, up = DEPTHS[name]
    config = {"transformer_depth": down, "transformer_depth_middle": middle, "transformer_depth_output": up}
    blocks = [len(down) // len(WHOLE["channel_mult"])] * len(WHOLE["channel_mult"])
    return getattr(comfy.supported_models, name)(WHOLE | config | {"num_res_blocks": blocks})


def weightless(name: str) -> ModelPatcher:
    """A MODEL of one of DEPTHS that has the shapes and no numbers."""
    config = whole(name)
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    return ModelPatcher(comfy.model_base.SDXL(config, device=torch.device("meta")), load_device=cpu, offload_device=cpu)


def koala(folder: Path) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """A checkpoint of KOALA-700M, in half precision on the disk, read by the stock loader."""
    torch.manual_seed(0)
    config = whole("KOALA_700M")
    return reloaded(folder, *made(config, comfy.model_base.SDXL, config.clip_target(), torch.float16))


def sd2(folder: Path) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """A checkpoint of SD2 with v-prediction, read by the stock loader."""
    torch.manual_seed(0)
    config = comfy.supported_models.SD20(dict(SD2))
    model, clip = made(config, comfy.model_base.BaseModel, config.clip_target())
    nn.init.normal_(model.model.diffusion_model.output_blocks[11][1].transformer_blocks[0].norm1.bias)
    return reloaded(folder, model, clip)


def reloaded(folder: Path, model: ModelPatcher, clip: comfy.sd.CLIP) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """Both, written to a checkpoint and read from it in float32, as the stock loader reads one."""
    path, options = folder / "checkpoint.safetensors", {"dtype": torch.float32}
    comfy.sd.save_checkpoint(str(path), model, clip)
    found = comfy.sd.load_checkpoint_guess_config(
        str(path), output_vae=False, model_options=options, te_model_options={**FEW, **options}
    )
    path.unlink()
    return found[:2]
