"""Models of the host's own classes with seeded weights, and LoRA-like changes to them; the host must have been entered."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.sd
import comfy.supported_models_base
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from perfusion_fleet import inside

FEW = {f"{name}_model_config": {"num_hidden_layers": 3} for name in ("clip_l", "clip_g", "clip_h")}
"""The host's options for text encoders with few layers."""


def made(
    config: comfy.supported_models_base.BASE,
    kind: type,
    target: comfy.supported_models_base.ClipTarget,
    dtype: torch.dtype = torch.float32,
    layers: dict[str, dict] = FEW,
    vocabulary: dict[str, Any] | None = None,
) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """Return MODEL and CLIP on the CPU, with seeded weights.

    `layers` are the host's options of the text encoders, and `vocabulary` those of their tokenizers.
    """
    config.set_inference_dtype(dtype, None)
    model, cpu = kind(config, device=torch.device("cpu")), torch.device("cpu")
    clip = comfy.sd.CLIP(target, tokenizer_data=vocabulary or {}, model_options={**layers, "dtype": dtype})
    for module in (model.diffusion_model, clip.cond_stage_model):
        seeded(module)
    return ModelPatcher(model, load_device=cpu, offload_device=cpu), clip


def seeded(module: nn.Module) -> None:
    """Set weights that preserve the scale of their input; norms 1, biases 0, embeddings small."""
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            nn.init.constant_(weight, float(name.endswith("weight")))
        else:
            # In float32, which torch draws several times as fast as half precision.
            with torch.no_grad():
                weight.copy_(torch.empty(weight.shape).normal_(std=0.02 if "embedding" in name else weight[0].numel() ** -0.5))


def change(patcher: ModelPatcher, name: str, by: float) -> None:
    """Patch one weight of a model with seeded numbers of this size, as a LoRA does; the weight itself is not changed.

    Raises:
        RuntimeError: the host does not accept a patch of this weight.
    """
    shape = dict(patcher.model.named_parameters())[name].shape
    difference = by * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if not patcher.add_patches({name: ("diff", (difference,))}, 1.0):
        raise RuntimeError(f"the host takes no patch of {name}")


def with_changed_values(model: ModelPatcher, by: float) -> ModelPatcher:
    """Return a MODEL with the values of its first cross-attention changed; see `change`."""
    changed, layer = model.clone(), next(iter(inside.part("nodes.host").layers_of(model)))
    change(changed, f"diffusion_model.{layer}.to_v.weight", by)
    return changed


def covariance_of(clip: comfy.sd.CLIP) -> Any:
    """Return a covariance for a CLIP, from seeded numbers instead of measured encodings."""
    host = inside.part("nodes.host")
    estimate = inside.part("perfusion_core.covariance").Estimate(host.encoding_width(clip))
    estimate.add(torch.randn(4 * host.encoding_width(clip), host.encoding_width(clip), generator=torch.Generator().manual_seed(0)))
    return estimate.finish(host.identity_of(clip))
