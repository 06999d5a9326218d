"""Nodes that give a small Wan of the demo's world its text encoder and its VAE; a server's base directory gets a copy of this file.

The model itself is an ordinary file for Load Diffusion Model. The host recognises UMT5-XXL only at its full size, so the text
encoder is built from the host's own classes with few layers. It is untrained, as the demo's CLIP is: its weights are seeded. The
VAE is the demo's, whose four channels are the first four of the sixteen that a Wan has; the others are empty.
"""

from __future__ import annotations

import io
from typing import Any

import comfy.latent_formats
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.wan
import folder_paths
import sentencepiece
import torch
from torch import Tensor, nn

CHANNELS, ALL_CHANNELS = 4, 16
SD_SCALE, SPREAD = 0.18215, 0.9
"""SD1.5's scale of latents, and the standard deviation of the demo's latents at this scale."""
T5 = {"num_layers": 2, "d_ff": 64, "num_heads": 8}
HEAD = 64
"""Width of T5's heads."""
LOCAL = 2.0
"""Standard deviation of the seeded biases for relative positions: each head reads a few places near a token."""
PIECES = 700
NODE = "SmallWanParts"
VOCABULARY = "small_wan_vocabulary.model"
"""The sentencepiece model's name in models/text_encoders."""


def vocabulary(texts: list[str], count: int = PIECES) -> bytes:
    """Return a sentencepiece model for these texts, of at most `count` pieces, with UMT5's numbers for padding and the end."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=file, vocab_size=count, hard_vocab_limit=False, minloglevel=2, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    return file.getvalue()


def text_encoder(pieces: bytes) -> comfy.sd.CLIP:
    """Return a CLIP of Wan's kind with this vocabulary, whose weights are seeded."""
    target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.wan.WanT5Tokenizer, comfy.text_encoders.wan.te())
    count = sentencepiece.SentencePieceProcessor(model_proto=pieces).vocab_size()
    options = {"umt5xxl_model_config": T5 | {"vocab_size": count}, "dtype": torch.float32}
    given = {"spiece_model": torch.frombuffer(bytearray(pieces), dtype=torch.uint8)}
    clip = comfy.sd.CLIP(target, tokenizer_data=given, model_options=options)
    seed(clip.cond_stage_model)
    return clip


@torch.no_grad()
def seed(module: nn.Module) -> None:
    """Set weights that keep the size of what passes through them, with attention that depends on the place more than on content."""
    random = torch.Generator().manual_seed(0)
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            weight.fill_(1.0)
            continue
        wide = {"shared.weight": 1.0, "relative_attention_bias.weight": LOCAL}
        std = next((each for end, each in wide.items() if name.endswith(end)), weight[0].numel() ** -0.5)
        # T5's attention does not divide by the root of a head's width.
        std *= HEAD**-0.5 if name.endswith("SelfAttention.q.weight") else 1
        weight.copy_(torch.randn(weight.shape, generator=random) * std)


class Padded:
    """A VAE for a Wan, which puts the demo's latents into the first channels."""

    latent_dim, latent_channels = 3, ALL_CHANNELS
    """Dimensions of a latent's places, of which the first is time."""

    def __init__(self, vae: comfy.sd.VAE) -> None:
        self.vae, self.first_stage_model = vae, vae.first_stage_model
        form = comfy.latent_formats.Wan21()
        self.mean, self.std = form.latents_mean[0], form.latents_std[0]

    def __getattr__(self, name: str) -> Any:
        """Return everything else from the demo's VAE."""
        return getattr(self.vae, name)

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pictures [F, H, W, 3], frames of a video of which only the first counts, as latents [1, 16, 1, h, w]."""
        own = self.vae.encode(pixels[:1, ..., :3])[:, :, None] * (SD_SCALE / SPREAD)
        found = self.mean.expand(len(own), -1, 1, *own.shape[-2:]).clone()
        found[:, :CHANNELS] += self.std[:CHANNELS] * own
        return found

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        """Decode latents [B, 16, 1, h, w] to pictures [B, H, W, 3]."""
        own = (latents.float() - self.mean) / self.std
        return self.vae.decode(own[:, :CHANNELS, 0] * (SPREAD / SD_SCALE))


class SmallWanParts:
    """Gives CLIP and VAE."""

    RETURN_TYPES = ("CLIP", "VAE")
    FUNCTION = "make"
    CATEGORY = "benchmarks"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """Return the inputs: the demo's VAE."""
        return {"required": {"vae": ("VAE",)}}

    def make(self, vae: comfy.sd.VAE) -> tuple:
        """Return both."""
        path = folder_paths.get_full_path_or_raise("text_encoders", VOCABULARY)
        with open(path, "rb") as file:
            return text_encoder(file.read()), Padded(vae)


NODE_CLASS_MAPPINGS = {NODE: SmallWanParts}
