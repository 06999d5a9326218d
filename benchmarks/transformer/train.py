"""Train a small transformer of Wan's layout on scenes of the demo's world.

    python -m benchmarks.transformer.train --comfyui PATH --cast DIR --out DIR --checkpoint FILE --minutes 120

--cast is the output folder of `demo.draw`, --checkpoint the demo's base, whose autoencoder is used. Training resumes from the state
of an earlier run in --out, or starts from seeded random weights. At the end it writes to --out what `measure` needs:
small_wan.safetensors, a file for Load Diffusion Model with the moving average of the weights, and the text encoder's vocabulary.
Individuals of the development and test splits are never used.

The scenes, their captions and the autoencoder are those of the demo's base (see `demo.train_base`); the text encoder is an
untrained UMT5 of two layers. The transformer learns the velocity of a flow, as Wan does, in pictures: videos of one frame.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo import base, world
from demo.train_base import EMPTY, SCENES, Scenes, Training, encoded, learn
from perfusion_fleet import inside

SIZES = {"dim": 384, "ffn_dim": 1536, "num_heads": 3, "num_layers": 8, "in_dim": 16, "out_dim": 16, "text_dim": 4096}
BATCH = {64: 96, 96: 48}
"""Side of a scene in pixels -> batch size."""
TEXT = 512
"""Tokens to which the host pads an encoding with zeros; each of them is read."""
MODEL = "small_wan.safetensors"
"""The name of the trained model's file."""
SHIFT = 2.0
"""Shift of the noise levels that are trained on: larger than 1 means more noise."""
EMPTIES = 0.1
"""Weight of the channels that are empty in all pictures."""
READING = (".cross_attn.k.", ".cross_attn.v.")
VOCABULARY_FROM = 20000
"""Captions from which the vocabulary is made."""


def transformer() -> nn.Module:
    """Return a newly initialised Wan of SIZES; the output layer is zero."""
    from comfy import ops
    from comfy.ldm.wan.model import WanModel

    model = WanModel(model_type="t2v", **SIZES, device="cpu", dtype=torch.float32, operations=ops.disable_weight_init)
    for name, weight in model.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(weight, std=SIZES["dim"] ** -0.5)
        elif weight.ndim < 2:
            nn.init.constant_(weight, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        elif name.startswith("head."):
            nn.init.zeros_(weight)
        elif name.startswith(("text_embedding", "time_")):
            nn.init.normal_(weight, std=0.02)
        else:
            nn.init.xavier_uniform_(weight.flatten(1))
    return model.train().requires_grad_(True)


class Encodings:
    """Encodings of captions without their padding, with what makes reading them the same as reading padded ones."""

    def __init__(self, encoder: Any, texts: list[str]) -> None:
        """Encode `texts` with a CLIP, whose inner model is called directly, in batches of equal length."""
        self.rows = [[token for token, *_ in encoder.tokenize(text)["umt5xxl"][0]] for text in texts]
        self.rows = [row[: row.index(1) + 1] for row in self.rows]  # up to the end token
        self.found: list[Tensor] = [torch.empty(0)] * len(texts)
        t5, by_length = encoder.cond_stage_model.umt5xxl.transformer, {}
        for i, row in enumerate(self.rows):
            by_length.setdefault(len(row), []).append(i)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for numbers in by_length.values():
                for some in (numbers[i : i + 64] for i in range(0, len(numbers), 64)):
                    tokens = torch.tensor([self.rows[i] for i in some])
                    encoded = t5(tokens, torch.ones_like(tokens))[0].bfloat16()
                    for i, each in zip(some, encoded, strict=True):
                        self.found[i] = each

    def batch(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Return encodings [B, L, 4096], the last of them zero, and what is added to attention's logits at them, [B, 1, 1, L].

        The last token is read as often as there is padding in TEXT tokens, which are all alike.
        """
        some = [self.found[i] for i in numbers]
        longest = max(map(len, some))
        context = torch.zeros(len(some), longest + 1, some[0].shape[1])
        bias = torch.full((len(some), 1, 1, longest + 1), -torch.inf)
        for i, each in enumerate(some):
            context[i, : len(each)], bias[i, ..., : len(each)] = each.float(), 0
            bias[i, ..., -1] = math.log(TEXT - len(each))
        return context, bias


def read_short(self: Any, x: Tensor, context: Tensor, transformer_options: dict, **_: Any) -> Tensor:
    """Cross-attention as Wan's, to encodings of `Encodings.batch`, whose bias is among the options."""
    parts = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
    q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in parts)
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=transformer_options["bias"].to(q.dtype))
    return self.o(found.transpose(1, 2).flatten(2))


class Latents:
    """Latents of scenes, with the encodings of their captions; the last encoding is the empty caption's."""

    def __init__(self, images: np.ndarray, texts: list[str], encoder: nn.Module, clip: Any, spread: float) -> None:
        self.encodings = Encodings(clip, [*texts, ""])
        self.z = encoded(images, encoder) / spread

    def batch(self, count: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
        """Sample latents [B, 4, h, w], encodings and bias."""
        rows = [rng.randrange(len(self.z)) for _ in range(count)]
        texts = [len(self.z) if rng.random() < EMPTY else row for row in rows]
        return self.z[rows], *self.encodings.batch(texts)


def velocity_error(model: nn.Module, latents: Tensor, context: Tensor, bias: Tensor) -> Tensor:
    """Return the loss of the velocity that a transformer predicts in latents [B, 4, h, w], each at a random noise level."""
    share = torch.rand(len(latents))
    sigma = (SHIFT * share / (1 + (SHIFT - 1) * share))[:, None, None, None, None]
    clean = F.pad(latents[:, :, None], (0, 0, 0, 0, 0, 0, 0, SIZES["in_dim"] - latents.shape[1]))
    noise = torch.randn_like(clean)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(clean.lerp(noise, sigma), 1000 * sigma.flatten(), context, transformer_options={"bias": bias})
    error = (found.float() - (noise - clean)).square().mean((0, 2, 3, 4))
    own = latents.shape[1]
    return error[:own].mean() + EMPTIES * error[own:].mean()


def read_as_trained() -> None:
    """Make the host's model read `Encodings`, compute with functions that have gradients, and attend with torch's own."""
    import comfy.ldm.wan.model as wan
    import comfy.model_management
    from comfy.ldm.modules.attention import attention_pytorch

    comfy.model_management.in_training = True
    wan.WanT2VCrossAttention.forward, wan.optimized_attention = read_short, attention_pytorch


def train(comfyui: Path, cast: Path, out: Path, checkpoint: Path, side: int, minutes: float, rate: float, fall: float) -> None:
    """Train, and write the model and its vocabulary; see `learn`."""
    inside.enter(comfyui)
    from comfy.taesd.taesd import Encoder

    from benchmarks.transformer import small_wan

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    training, scenes = Training(transformer(), out / "wan.pt", READING), Scenes(cast)
    vocabulary = out / small_wan.VOCABULARY
    if not vocabulary.exists():
        texts = [text for n in SCENES for text in scenes.captions(VOCABULARY_FROM // 2, n, random.Random(n))]
        vocabulary.write_bytes(small_wan.vocabulary(texts))
    clip, encoder, start = small_wan.text_encoder(vocabulary.read_bytes()), Encoder(4), base.AUTOENCODER + "taesd_encoder."
    coder = {name.removeprefix(start): value for name, value in load_file(checkpoint).items() if name.startswith(start)}
    encoder.load_state_dict({name: value.float() for name, value in coder.items()})
    rng = random.Random(training.step)
    sets = {n: Latents(*scenes.make(count, n, rng, side), encoder, clip, small_wan.SPREAD) for n, count in SCENES.items()}
    print(f"{sum(each.numel() for each in training.model.parameters()) / 1e6:.1f} million weights", flush=True)
    read_as_trained()
    learn(training, sets, velocity_error, BATCH[side], minutes, rate, fall)
    save_file({name: value.half().contiguous() for name, value in training.mean.items()}, out / MODEL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("comfyui", "cast", "out", "checkpoint"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--side", type=int, choices=BATCH, default=world.SIDE)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--fall", type=float, default=0.3)
    train(**vars(parser.parse_args()))
