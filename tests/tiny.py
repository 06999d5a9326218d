"""Layouts of base families with few layers, and of SDXL's kin whole, made by the host's own classes; seeded weights know nothing.

The host knows T5-XXL and UMT5-XXL at full size alone, so their encoders are made by its classes with few layers and never loaded;
LTX-Video's and PixArt's are narrow too, since a vocabulary of T5 in full width has half a gigabyte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import comfy.ldm.anima.model
import comfy.model_base
import comfy.ops
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.anima
import comfy.text_encoders.cosmos
import comfy.text_encoders.lt
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.spiece_tokenizer
import comfy.text_encoders.wan
import comfy.utils
import tokenizers
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn
from transformers import PreTrainedTokenizerFast

from benchmarks.transformer import small_wan
from perfusion_fleet import inside
from scripts.harness.seeded_models import FEW, made, seeded

SD2 = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2] * 4,
    "channel_mult": [1] * 4, "transformer_depth": [1] + [0] * 7, "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 2 + [0] * 10, "use_linear_in_transformer": True, "context_dim": 1024,
    "num_heads": -1, "num_head_channels": 64, "adm_in_channels": None, "use_spatial_transformer": True,
    "use_temporal_attention": False, "legacy": False, "use_checkpoint": False,
}  # fmt: skip
"""As many blocks as SD2 has, for the host tells v-prediction by the last one; narrow, and most without attention."""
SD15 = SD2 | {
    "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
    "use_linear_in_transformer": False, "context_dim": 768, "num_heads": 8, "num_head_channels": -1,
}  # fmt: skip
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


def weightless(config: comfy.supported_models_base.BASE, kind: type = comfy.model_base.SDXL) -> ModelPatcher:
    """A MODEL that has the shapes and no numbers."""
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    return ModelPatcher(kind(config, device=torch.device("meta")), load_device=cpu, offload_device=cpu)


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


WAN = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 256, "ffn_dim": 256, "num_heads": 2, "num_layers": 2, "in_dim": 16,
    "out_dim": 16, "freq_dim": 256, "qk_norm": True, "cross_attn_norm": True,
}  # fmt: skip
PIECES = 400
"""Of the vocabulary that takes the place of UMT5's, which has no file here."""
NARROW = 64
"""Width of a T5 in place of XXL's 4096."""
LTXV = {
    "image_model": "ltxv", "num_layers": 2, "attention_head_dim": 8, "cross_attention_dim": 256, "caption_channels": NARROW,
}  # fmt: skip
HEAD = 64
"""Width of T5's heads."""
T5 = {"num_layers": 2, "d_ff": 64, "num_heads": 2}


class NarrowT5(comfy.text_encoders.lt.T5XXLTokenizer):
    """LTX-Video's tokenizer for a narrow T5."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.embedding_size = NARROW


def pieces() -> torch.Tensor:
    """A vocabulary learned from the pack's captions."""
    texts = inside.part("perfusion_core.captions").captions(1000)
    return torch.frombuffer(bytearray(small_wan.vocabulary(texts, PIECES)), dtype=torch.uint8)


def wan(folder: Path) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """A model of Wan's layout, read by the stock loader, and a UMT5 of full width with few layers and a small vocabulary."""
    torch.manual_seed(0)
    config = comfy.supported_models.WAN21_T2V(dict(WAN))
    target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.wan.WanT5Tokenizer, comfy.text_encoders.wan.te())
    few = {"umt5xxl_model_config": T5 | {"vocab_size": PIECES}}
    model, clip = made(config, comfy.model_base.WAN21, target, layers=few, vocabulary={"spiece_model": pieces()})
    return loaded(folder, model), softened(clip)


def wan_variants() -> dict[str, ModelPatcher]:
    """MODELs of the layouts of Wan's variants that read a picture: those of 2.1 by further keys and values, and those of 2.2."""
    made_of, found = comfy.supported_models, {}
    for name, config, more in (
        ("2.1, from a picture", made_of.WAN21_I2V, {"model_type": "i2v", "in_dim": 36}),
        ("2.2, from a picture", made_of.WAN21_T2V, {"in_dim": 36}),
        ("2.2 5B", made_of.WAN22_T2V, {"in_dim": 48, "out_dim": 48}),
    ):
        kind = comfy.model_base.WAN22 if "5B" in name else comfy.model_base.WAN21
        given, cpu = config(WAN | more), torch.device("cpu")
        given.set_inference_dtype(torch.float32, None)
        model = kind(given, image_to_video=True, device=cpu)
        seeded(model.diffusion_model)
        found[name] = ModelPatcher(model, load_device=cpu, offload_device=cpu)
    return found


def ltxv(folder: Path) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """A model of LTX-Video's layout, read by the stock loader, and a narrow T5 with few layers."""
    torch.manual_seed(0)
    config = comfy.supported_models.LTXV(dict(LTXV))
    target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.lt.LTXVT5Tokenizer, comfy.text_encoders.lt.ltxv_te())
    few = {"t5xxl_model_config": T5 | {"d_model": NARROW}}
    model, clip = made(config, comfy.model_base.LTXV, target, layers=few, vocabulary={"clip_t5xxl_tokenizer_class": NarrowT5})
    return loaded(folder, model, {"config": json.dumps({"transformer": {"caption_channels": NARROW}})}), softened(clip)


def softened(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """The same CLIP of T5's kind, whose attention does not divide by the root of a head's width, with weights that do instead."""
    with torch.no_grad():
        for name, weight in clip.cond_stage_model.named_parameters():
            if name.endswith("SelfAttention.q.weight"):
                weight.mul_(HEAD**-0.5)
    return clip


def loaded(folder: Path, model: ModelPatcher, metadata: Mapping[str, str] | None = None) -> ModelPatcher:
    """A MODEL with seeded biases, written to a file of its own and read from it in float32 as the stock loader reads one."""
    for name, weight in model.model.diffusion_model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(weight, std=0.1)
    path = folder / "model.safetensors"
    comfy.utils.save_torch_file(model.model.diffusion_model.state_dict(), str(path), metadata)
    found = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})
    path.unlink()
    return found


PIXART = {
    "image_model": "pixart_sigma", "num_heads": 16, "patch_size": 2, "hidden_size": 1152, "in_channels": 4, "depth": 1,
    "model_max_length": 300, "micro_condition": False,
}  # fmt: skip


def with_pieces(kind: type) -> type:
    """A T5 tokenizer of the host's with a small vocabulary."""

    class WithPieces(kind):
        def __init__(self, **kwargs: object) -> None:
            super().__init__(**kwargs)
            self.tokenizer = comfy.text_encoders.spiece_tokenizer.SPieceTokenizer(pieces())
            self.inv_vocab = {number: piece for piece, number in self.tokenizer.get_vocab().items()}

    return WithPieces


def pixart(folder: Path) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """A model of PixArt Sigma's width, read by the stock loader, and a T5 of full width with few layers and a small vocabulary."""
    torch.manual_seed(0)
    config = comfy.supported_models.PixArtSigma(dict(PIXART))
    few = {"t5xxl_model_config": T5 | {"vocab_size": PIECES}}
    model, clip = made(
        config,
        comfy.model_base.PixArt,
        config.clip_target(),
        layers=few,
        vocabulary={"clip_t5xxl_tokenizer_class": with_pieces(comfy.text_encoders.pixart_t5.T5XXLTokenizer)},
    )
    return loaded(folder, model), softened(clip)


COSMOS = {
    "image_model": "cosmos_predict2", "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16,
    "patch_spatial": 2, "patch_temporal": 1, "model_channels": 256, "concat_padding_mask": True, "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "use_adaln_lora": True,
    "adaln_lora_dim": 256, "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
    "rope_enable_fps_modulation": False,
}  # fmt: skip
"""The host reads a model so narrow as one of ten blocks."""


def cosmos(folder: Path) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """A model of Cosmos-Predict2's layout, read by the stock loader, and its T5 with few layers and a small vocabulary."""
    torch.manual_seed(0)
    config = comfy.supported_models.CosmosT2IPredict2(dict(COSMOS))
    few = {"t5xxl_model_config": T5 | {"vocab_size": PIECES}}
    vocabulary = {"clip_t5xxl_tokenizer_class": with_pieces(comfy.text_encoders.cosmos.T5XXLTokenizer)}
    model, clip = made(config, comfy.model_base.CosmosPredict2, config.clip_target(), layers=few, vocabulary=vocabulary)
    return loaded(folder, model), softened(clip)


ANIMA = COSMOS | {"image_model": "anima", "crossattn_emb_channels": 256, "num_blocks": 2, "num_heads": 2}
ADAPTER = {"source_dim": 1024, "target_dim": 256, "model_dim": 128, "num_layers": 2, "num_heads": 4}
QWEN = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128}


class SmallAnima(comfy.text_encoders.anima.AnimaTokenizer):
    """Anima's tokenizers, with a small vocabulary in place of Qwen's."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        learned = tokenizers.ByteLevelBPETokenizer()
        learned.train_from_iterator(inside.part("perfusion_core.captions").captions(1000), PIECES, special_tokens=["<pad>"])
        self.qwen3_06b.tokenizer = PreTrainedTokenizerFast(tokenizer_object=learned._tokenizer)
        self.qwen3_06b.inv_vocab = {number: piece for piece, number in learned.get_vocab().items()}
        self.qwen3_06b.pad_token = 0


def anima(folder: Path) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """A model of Anima's layout with few layers, in its adapter too, and its Qwen with few layers and a small vocabulary.

    By the host's own classes: its loader takes the adapter at full size alone, and the text encoder likewise.
    """
    torch.manual_seed(0)
    config = comfy.supported_models.Anima(dict(ANIMA))
    target = comfy.supported_models_base.ClipTarget(SmallAnima, comfy.text_encoders.anima.te())
    few = {"qwen3_06b_model_config": QWEN | {"vocab_size": PIECES}}
    model, clip = made(config, FewLayers, target, layers=few)
    clip.cond_stage_model.qwen3_06b.special_tokens = {"pad": 0}
    return model, clip


class FewLayers(comfy.model_base.Anima):
    """Anima with a small adapter."""

    def __init__(self, config: comfy.supported_models_base.BASE, device: torch.device) -> None:
        super().__init__(config, device=device)
        operations = comfy.ops.manual_cast
        self.diffusion_model.llm_adapter = comfy.ldm.anima.model.LLMAdapter(
            **ADAPTER, device=device, dtype=torch.float32, operations=operations
        )


def transformers() -> dict[str, ModelPatcher]:
    """MODELs of transformers of the real sizes, without weights."""
    text = comfy.supported_models.WAN21_T2V, comfy.model_base.WAN21
    ltx = {"num_layers": 28, "attention_head_dim": 64, "cross_attention_dim": 2048, "caption_channels": 4096}
    sizes = {
        "Wan 2.1 1.3B": (*text, WAN | {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}),
        "Wan 14B": (*text, WAN | {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}),
        "LTX-Video 2B": (comfy.supported_models.LTXV, comfy.model_base.LTXV, LTXV | ltx),
        "Cosmos-Predict2 2B": (
            comfy.supported_models.CosmosT2IPredict2,
            comfy.model_base.CosmosPredict2,
            COSMOS | {"model_channels": 2048, "num_blocks": 28, "num_heads": 16},
        ),
        "Anima": (
            comfy.supported_models.Anima,
            comfy.model_base.Anima,
            ANIMA | {"model_channels": 2048, "crossattn_emb_channels": 1024, "num_blocks": 28, "num_heads": 16},
        ),
        "PixArt Sigma": (comfy.supported_models.PixArtSigma, comfy.model_base.PixArt, PIXART | {"depth": 28}),
    }
    return {name: weightless(config(dict(given)), kind) for name, (config, kind, given) in sizes.items()}


def vace() -> ModelPatcher:
    """A MODEL of Wan VACE's layout, without weights."""
    config = comfy.supported_models.WAN21_Vace(WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96})
    return weightless(config, comfy.model_base.WAN21_Vace)


def joint() -> dict[str, ModelPatcher]:
    """MODELs of the host's classes in which text and picture share one attention, without any model inside."""
    cpu, found = torch.device("cpu"), {}
    for name in ("SD3", "Flux", "Chroma", "QwenImage", "Lumina2"):
        config = getattr(comfy.supported_models, name)({"image_model": name.lower(), "disable_unet_model_creation": True})
        found[name] = ModelPatcher(getattr(comfy.model_base, name)(config), load_device=cpu, offload_device=cpu)
    return found
