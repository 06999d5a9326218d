"""A node that gives a small Wan, for graphs of tests; a server's base directory gets a copy of this file.

Model and VAE are made by the host's own loaders of files, from seeded weights. The host knows UMT5-XXL at full size alone, so the
text encoder is made by its classes with few layers and a vocabulary learned from a few words.
"""

from __future__ import annotations

import io

import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.wan
import sentencepiece
import torch
from torch import nn

SIZES = {"dim": 256, "ffn_dim": 256, "num_heads": 2, "num_layers": 2, "in_dim": 16, "out_dim": 16, "text_dim": 4096}
VAE = {"dim": 8, "z_dim": 16, "temperal_downsample": [False, True, True]}
WORDS = "a photo of the monster on grass in snow at night , one good picture shows an image cropped red cup dog room".split()
PIECES = 60


def seeded(module: nn.Module) -> nn.Module:
    """The module with weights that keep the size of what passes through them."""
    for weight in module.parameters():
        if weight.ndim < 2:
            nn.init.constant_(weight, 0.5)
        else:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return module


def text_encoder() -> comfy.sd.CLIP:
    """A CLIP of Wan's kind."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 3), model_writer=file, vocab_size=PIECES, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.wan.WanT5Tokenizer, comfy.text_encoders.wan.te())
    few = {"num_layers": 1, "d_ff": 64, "num_heads": 2, "vocab_size": PIECES}
    vocabulary = {"spiece_model": torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)}
    clip = comfy.sd.CLIP(target, tokenizer_data=vocabulary, model_options={"umt5xxl_model_config": few, "dtype": torch.float32})
    seeded(clip.cond_stage_model)
    return clip


class SmallWan:
    """Gives MODEL, CLIP and VAE."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    def make(self) -> tuple:
        torch.manual_seed(0)
        plain = {"device": torch.device("cpu"), "dtype": torch.float32, "operations": comfy.ops.manual_cast}
        weights = seeded(comfy.ldm.wan.model.WanModel(model_type="t2v", **SIZES, **plain)).state_dict()
        model = comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})
        return model, text_encoder(), comfy.sd.VAE(sd=seeded(comfy.ldm.wan.vae.WanVAE(**VAE)).state_dict())


NODE_CLASS_MAPPINGS = {"TestSmallWan": SmallWan}
