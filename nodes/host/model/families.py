"""Properties of the host's MODEL and CLIP objects: base family, cross-attention layers, text encoders."""

import re
from dataclasses import dataclass, replace

import comfy.ldm.cosmos.predict2
import comfy.ldm.lightricks.model
import comfy.ldm.pixart.pixartms
import comfy.ldm.wan.model
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, Upsample
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import Tensor, nn

from ....perfusion_core import PerfusionError


@dataclass(frozen=True)
class Family:
    """A base family: all in which models differ for the edit. Only the host's classes know more.

    Attributes:
        name: as concepts' files name it.
        architectures: the host's `image_model` of its models; UNets have none and are told by `width`.
        width: d of a UNet's encodings; 0 for other models, whose layers tell it.
        layers: regular expression for the names of its cross-attention modules.
        keys, values: names of their projections. If both are the same, one Linear gives keys, and values behind them.
        adapter: the module whose output layers read in place of the text encoder's. Empty if there is none.
        ids: the name, among a prompt's tokens, of ids that the adapter reads beside encodings: it gives a token for each id, and
            the host runs it before the model. Empty if the adapter maps each token by itself, within the model.
        inputs: positional arguments of the model's forward.
        asks_wrappers: whether its forward asks the host for the wrappers of the diffusion model.
        encoders: names of its text encoders.
        pooled: the text encoder, if any, whose pooled output the model reads in addition to the encoding.
        causal: whether a token that layers read is encoded from those before it alone.
        padded: whether short prompts are padded to one length.
        least: latents a side of the smallest picture that it draws, for looks at what happens inside.
        blocks: the parts of the model that are recomputed when memory is short; they hold most of the activations.
        in_place: whether these add to their own input in place.
        controlled: whether its attention can be watched, confined to regions and led by another picture's.
        loras: whether the host has LoRA names for its projections.
    """

    name: str
    architectures: tuple[str, ...] = ("",)
    width: int = 0
    layers: str = r".+\.attn2"
    keys: str = "to_k"
    values: str = "to_v"
    adapter: str = ""
    ids: str = ""
    inputs: tuple[str, ...] = ("x", "timesteps", "context", "y", "control", "transformer_options")
    asks_wrappers: bool = True
    encoders: tuple[str, ...] = ()
    pooled: str = ""
    causal: bool = True
    padded: bool = True
    least: int = 8
    blocks: tuple[type[nn.Module], ...] = (ResBlock, BasicTransformerBlock)
    in_place: bool = False
    controlled: bool = True
    loras: bool = True

    @property
    def fused(self) -> bool:
        """Whether one Linear gives both keys and values."""
        return self.keys == self.values

    @property
    def adapts_tokens(self) -> bool:
        """Whether the model itself adapts each token of the encodings that it is called with."""
        return bool(self.adapter) and not self.ids

    def projections(self, attention: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Return the modules that give the keys and the values of a cross-attention module."""
        return getattr(attention, self.keys), getattr(attention, self.values)

    def read(self, unet: nn.Module, context: Tensor) -> Tensor:
        """Return what the layers of a model read, [B, N, d], of the encodings that it is called with, [B, N, ·]."""
        return unet.get_submodule(self.adapter)(context) if self.adapts_tokens else context


PIXART = Family(
    "pixart_alpha",
    architectures=("pixart_alpha",),
    layers=r"blocks\.\d+\.cross_attn",
    keys="kv_linear",
    values="kv_linear",
    adapter="y_embedder.y_proj",
    inputs=("x", "timesteps", "context", "c_size", "c_ar"),
    asks_wrappers=False,
    encoders=("clip_t5xxl",),
    causal=False,
    padded=False,
    # Its places are counted in units of 64 latents, and none of them must be nothing.
    least=34,
    blocks=(comfy.ldm.pixart.pixartms.PixArtMSBlock,),
    controlled=False,
    loras=False,
)

COSMOS = Family(
    "cosmos_predict2",
    architectures=("cosmos_predict2",),
    layers=r"blocks\.\d+\.cross_attn",
    keys="k_proj",
    values="v_proj",
    inputs=("x", "timesteps", "context", "fps", "padding_mask"),
    encoders=("clip_t5xxl",),
    causal=False,
    blocks=(comfy.ldm.cosmos.predict2.Block,),
    controlled=False,
)

FAMILIES = (
    Family("sd1", width=768, encoders=("clip_l",)),
    Family("sd2", width=1024, encoders=("clip_h",)),
    Family("sdxl", width=2048, encoders=("clip_l", "clip_g"), pooled="clip_g"),
    Family(
        "wan",
        architectures=("wan2.1",),
        layers=r"blocks\.\d+\.cross_attn",
        keys="k",
        values="v",
        adapter="text_embedding",
        inputs=("x", "timesteps", "context", "clip_fea", "time_dim_concat", "transformer_options"),
        encoders=("clip_umt5xxl",),
        causal=False,
        blocks=(comfy.ldm.wan.model.WanAttentionBlock,),
        controlled=False,
    ),
    Family(
        "ltxv",
        architectures=("ltxv",),
        layers=r"transformer_blocks\.\d+\.attn2",
        adapter="caption_projection",
        inputs=("x", "timesteps", "context", "attention_mask", "frame_rate", "transformer_options", "keyframe_idxs"),
        encoders=("clip_t5xxl",),
        causal=False,
        blocks=(comfy.ldm.lightricks.model.BasicTransformerBlock,),
        in_place=True,
        controlled=False,
    ),
    PIXART,
    replace(PIXART, name="pixart_sigma", architectures=("pixart_sigma",)),
    COSMOS,
    replace(COSMOS, name="anima", architectures=("anima",), adapter="llm_adapter", ids="t5xxl", encoders=("qwen3_06b",)),
)
"""All base families. This is the only place where they are told apart."""

JOINT = {
    *("SD3", "AuraFlow", "Flux", "Flux2", "Chroma", "ChromaRadiance", "QwenImage", "Lumina2", "HiDream", "GenmoMochi"),
    *("HunyuanVideo", "HunyuanImage21", "Omnigen2", "Krea2", "ErnieImage", "CogVideoX"),
}
"""The host's classes of models in which text and picture share one attention."""

KNOWN = "Stable Diffusion 1, 2 or XL, Wan, LTX-Video, PixArt, Cosmos-Predict2 or Anima"
"""The models of FAMILIES, for sentences."""


def unet_config_of(model: ModelPatcher) -> dict:
    """Return the host's configuration of a MODEL.

    Raises:
        PerfusionError: there is no model; a loader gives none for a file that holds none.
    """
    if model is None:
        raise PerfusionError("No model: the loaded file does not contain one; load one with Load Diffusion Model.")
    return model.model.model_config.unet_config


def kind_of(model: ModelPatcher) -> Family:
    """Return a MODEL's base family.

    Raises:
        PerfusionError: Perfusion does not support models of this kind.
    """
    config = unet_config_of(model)
    for family in FAMILIES:
        if config.get("image_model", "") in family.architectures and family.width in (0, config.get("context_dim")):
            return family
    joint = [kind.__name__ for kind in type(model.model).__mro__ if kind.__name__ in JOINT]
    if joint:
        raise PerfusionError(
            f"In this model ({joint[0]}), text and image are processed together by joint attention, so there is no "
            f"cross-attention for Perfusion to edit; use a {KNOWN} model."
        )
    raise PerfusionError(f"Perfusion needs a {KNOWN} model; this is a different kind of model.")


def family_of(model: ModelPatcher) -> str:
    """Return the name of a MODEL's base family.

    Raises:
        PerfusionError: Perfusion does not support models of this kind.
    """
    return kind_of(model).name


def layers_of(model: ModelPatcher) -> dict[str, int]:
    """Return a MODEL's cross-attention layers and the width m of their projections, in the order in which the model runs them.

    Raises:
        PerfusionError: the model has none, or Perfusion does not support models of this kind.
    """
    family = kind_of(model)
    width, halves = width_of(model), 2 if family.fused else 1
    found = {
        name: family.projections(module)[1].out_features // halves
        for name, module in attentions(model, family).items()
        if family.projections(module)[0].in_features == width
    }
    if not found:
        raise PerfusionError(
            f"Perfusion needs a {KNOWN} model; this model does not have the cross-attention that those models have."
        )
    return found


def fine_layers_of(model: ModelPatcher) -> set[str]:
    """Return a MODEL's cross-attention layers of the highest resolution.

    Raises:
        PerfusionError: all of its layers have the same resolution, or Perfusion does not support models of this kind.
    """
    level, levels = 0, {}
    # In the order in which a UNet runs them: a level ends with the module that halves or doubles the resolution.
    for name, module in model.model.diffusion_model.named_modules():
        level += isinstance(module, Downsample) - isinstance(module, Upsample)
        levels[name] = level
    layers = layers_of(model)
    finest = min(levels[layer] for layer in layers)
    found = {layer for layer in layers if levels[layer] == finest}
    if len(found) == len(layers):
        raise PerfusionError(
            "lock cannot be fine for this model, because all of its layers have the same resolution; set lock to word or local."
        )
    return found


def attentions(model: ModelPatcher, family: Family) -> dict[str, nn.Module]:
    """Return a MODEL's modules whose names are those of the family's cross-attention."""
    named = model.model.diffusion_model.named_modules()
    return {name: module for name, module in named if re.fullmatch(family.layers, name) and hasattr(module, family.keys)}


def width_of(model: ModelPatcher) -> int:
    """Return the width d of the encodings that a MODEL's cross-attention reads, or 0 if it has none.

    Raises:
        PerfusionError: Perfusion does not support models of this kind.
    """
    family = kind_of(model)
    if family.width:
        return family.width
    return next((family.projections(module)[0].in_features for module in attentions(model, family).values()), 0)


def encoders_causal(clip: CLIP) -> bool:
    """Return whether a token that layers read of a CLIP's encodings is made from those before it alone."""
    names = set(encoders_of(clip))
    return all(family.causal for family in FAMILIES if names <= set(family.encoders))


def ids_beside(clip: CLIP) -> str:
    """Return the name of the ids, among a prompt's tokens, that models read beside a CLIP's encodings; empty if they read none."""
    names = set(encoders_of(clip))
    return next((family.ids for family in FAMILIES if family.ids and names == set(family.encoders)), "")


def encodings_adapted(clip: CLIP) -> bool:
    """Return whether the models that read a CLIP's encodings adapt them first, so that encodings are known by model and CLIP."""
    names = set(encoders_of(clip))
    return any(family.adapter for family in FAMILIES if names <= set(family.encoders))


def encoders_of(clip: CLIP) -> dict[str, SDTokenizer]:
    """Return the names of a CLIP's text encoders, and their tokenizers.

    Raises:
        PerfusionError: there is no text encoder of Stable Diffusion's kind, or one of another kind.
    """
    if clip is None:
        raise PerfusionError("No text encoder: the checkpoint does not contain one; load one with Load CLIP or DualCLIPLoader.")
    found = {k: v for k, v in vars(clip.tokenizer).items() if isinstance(v, SDTokenizer)}
    for family in FAMILIES:
        if family.ids and set(found) == {*family.encoders, family.ids}:
            del found[family.ids]
    if not found or any(not isinstance(clip_model(clip, name), SDClipModel) for name in found):
        raise PerfusionError(f"Perfusion needs the text encoder of a {KNOWN} model; this CLIP is of another kind.")
    return found


def clip_model(clip: CLIP, name: str) -> nn.Module | None:
    """Return a CLIP's text encoder of this name, or None if there is none."""
    # The host calls T5's tokenizer clip_t5xxl and its model t5xxl.
    return getattr(clip.cond_stage_model, name, None) or getattr(clip.cond_stage_model, name.removeprefix("clip_"), None)


def clip_layer(clip: CLIP) -> int:
    """Return the layer whose output a CLIP gives, counted from the end: -1 is the last; of several encoders the first one's."""
    encoder = clip_model(clip, next(iter(encoders_of(clip))))
    kind, index, _ = encoder.options_default
    own = index if kind == "hidden" else -1
    return own if clip.layer_idx is None else clip.layer_idx
