"""Properties of the host's MODEL and CLIP objects: base family, cross-attention layers, text encoders."""

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import nn

from ....perfusion_core import PerfusionError


@dataclass(frozen=True)
class Family:
    """A base family: its name, and the text encoder, if any, whose pooled output its UNet reads in addition to the encoding."""

    name: str
    pooled: str = ""


FAMILIES = {768: Family("sd1"), 1024: Family("sd2"), 2048: Family("sdxl", "clip_g")}
"""Width of the encoding that cross-attention reads -> base family. This is the only place where families are defined."""


def layers_of(model: ModelPatcher) -> dict[str, int]:
    """Return a MODEL's cross-attention layers and the width m of their projections, in the order in which the model runs them.

    Raises:
        PerfusionError: the model has none, for example because it has no Stable Diffusion UNet.
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
    """Return the width d of the encodings that a MODEL's cross-attention reads, or 0 if its configuration gives no single width.

    Raises:
        PerfusionError: there is no model; a loader gives none for a file that holds none.
    """
    if model is None:
        raise PerfusionError("There is no model: the file that it was loaded from holds none; load one with Load Diffusion Model.")
    width = model.model.model_config.unet_config.get("context_dim") or 0
    return width if isinstance(width, int) else 0


def kind_of(model: ModelPatcher) -> Family:
    """Return a MODEL's base family.

    Raises:
        PerfusionError: Perfusion does not support models of this kind.
    """
    family = FAMILIES.get(width_of(model))
    if family is None:
        raise PerfusionError("Perfusion needs a Stable Diffusion 1, 2 or XL model; this is another kind.")
    return family


def family_of(model: ModelPatcher) -> str:
    """Return the name of a MODEL's base family.

    Raises:
        PerfusionError: Perfusion does not support models of this kind.
    """
    return kind_of(model).name


def encoders_of(clip: CLIP) -> dict[str, SDTokenizer]:
    """Return the names of a CLIP's text encoders, and their tokenizers.

    Raises:
        PerfusionError: there is no text encoder of Stable Diffusion's kind, or one of another kind.
    """
    if clip is None:
        raise PerfusionError("There is no text encoder: the checkpoint holds none; load one with Load CLIP or DualCLIPLoader.")
    found = {k: v for k, v in vars(clip.tokenizer).items() if isinstance(v, SDTokenizer)}
    if not found or any(not isinstance(clip_model(clip, name), SDClipModel) for name in found):
        raise PerfusionError("Perfusion needs the text encoder of a Stable Diffusion checkpoint; this CLIP is of another kind.")
    return found


def clip_model(clip: CLIP, name: str) -> nn.Module | None:
    """Return a CLIP's text encoder of this name, or None if there is none."""
    return getattr(clip.cond_stage_model, name, None)


def clip_layer(clip: CLIP) -> int:
    """Return the layer whose output a CLIP gives, counted from the end: -1 is the last; of several encoders the first one's."""
    encoder = clip_model(clip, next(iter(encoders_of(clip))))
    kind, index, _ = encoder.options_default
    own = index if kind == "hidden" else -1
    return own if clip.layer_idx is None else clip.layer_idx
