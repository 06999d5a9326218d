"""What a MODEL and a CLIP of the host are: their base family, their cross-attention layers, their text encoders."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import nn

from ....perfusion_core import PerfusionError


@dataclass(frozen=True)
class Family:
    """A base family: its name, and the text encoder, if any, whose pooled output its UNet reads beside the encoding."""

    name: str
    pooled: str = ""


FAMILIES = {768: Family("sd1"), 1024: Family("sd2"), 2048: Family("sdxl", "clip_g")}
"""Width of the encoding that cross-attention reads -> base family. What a family is, is said here and nowhere else."""


def layers_of(model: ModelPatcher) -> dict[str, int]:
    """Cross-attention layers of a MODEL and the width m of their projections, in the order that the model runs them.

    Raises:
        PerfusionError: the model has none, as models without a UNet of Stable Diffusion's kind.
    """
    unet = model.model.diffusion_model
    found = {
        name: module.to_v.out_features
        for name, module in unet.named_modules()
        if name.endswith(".attn2") and hasattr(module, "to_k") and module.to_k.in_features == width_of(model)
    }
    if not found:
        raise PerfusionError("Perfusion needs a Stable Diffusion 1, 2 or XL model; this model has no cross-attention of that kind.")
    return found


def width_of(model: ModelPatcher) -> int:
    """Width d of the encodings that a MODEL's cross-attention reads; 0 where it has none."""
    width = model.model.model_config.unet_config.get("context_dim") or 0
    return width if isinstance(width, int) else 0


def kind_of(model: ModelPatcher) -> Family:
    """Base family of a MODEL; raises PerfusionError where it is none that Perfusion knows."""
    family = FAMILIES.get(width_of(model))
    if family is None:
        raise PerfusionError("Perfusion needs a Stable Diffusion 1, 2 or XL model; this is another kind.")
    return family


def family_of(model: ModelPatcher) -> str:
    """Its name; raises PerfusionError likewise."""
    return kind_of(model).name


def encoders_of(clip: CLIP) -> dict[str, SDTokenizer]:
    """A CLIP's text encoders by name, and their tokenizers.

    Raises:
        PerfusionError: it has none of CLIP's kind.
    """
    found = {k: v for k, v in vars(clip.tokenizer).items() if isinstance(v, SDTokenizer)}
    if not found or any(not isinstance(clip_model(clip, name), SDClipModel) for name in found):
        raise PerfusionError("Perfusion needs the text encoder of a Stable Diffusion checkpoint; this CLIP is of another kind.")
    return found


def clip_model(clip: CLIP, name: str) -> nn.Module | None:
    """The text encoder of that name in a CLIP."""
    return getattr(clip.cond_stage_model, name, None)
