"""Train the demo base's UNet on scenes of the demo's world, in the latent space of its autoencoder.

    python -m demo.train_base --comfyui PATH --cast DIR --out DIR --minutes 120

--cast is the output folder of `demo.draw`. --out is the folder in which `demo.train_autoencoder` saved autoencoder.safetensors.
Training resumes from the state of an earlier run there, or starts from seeded random weights. At the end it writes the packed
base, base.bin, to --out, with the moving average of the weights. Individuals of the development and test splits are never used.

Each token's encoding is taken from a random caption with the same token at the same position, so that the UNet reads a word at
the word's own token. Without this, a UNet this small reads nearly everything from later tokens, which blend all tokens before
them: 0 to 3 per cent of its attention went to a word's own token, and an edit of that token had no effect. Encodings for tokens
after "and" come only from tokens after "and", so that two characters stay distinguishable, and those for tokens after "with" only
from tokens after "with", so that of two colours it stays clear which one belongs to the horns.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from demo import base, world
from demo.individuals import STYLES
from demo.muon import Muon
from perfusion_fleet import inside

BATCH = {64: 48, 96: 24}
"""Side of a scene in pixels -> batch size; every third step has half as many scenes, of two characters."""
READING = 2.0
"""Factor on the learning rate for the key and value projections of cross-attention, so that new words are learned sooner."""
WARM, KEEP, EVERY = 100, 0.999, 4
"""Warm-up steps of the learning rate; decay per step of the weights' moving average; number of steps between its updates."""
MIN_SNR = 5.0
"""Noise levels with a signal-to-noise ratio above this get a lower weight, so that shapes are learned sooner (arXiv 2303.09556)."""
EMPTY = 0.1
"""Share of captions replaced by the empty one, for classifier-free guidance."""
NAMED, CARRIES, UNSAID = 0.25, 0.15, 0.12
"""Share of characters called by name; share of characters holding a balloon; share of captions that omit the place."""
SHARES = {"monster": 2, "blob": 3, "plant": 2, "robot": 4}
"""Relative frequency of each kind in scenes: what robots wear on their head and blobs' patterns are learned last."""
SCENES = {1: 16000, 2: 5000}
"""Characters per scene -> number of scenes; each run composes new ones."""
CAPTIONS = 6000
"""Number of captions from which tokens' encodings are taken; half of the captions describe two characters."""
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
"""Cumulative alphas of SD1's noise schedule."""
LAYOUT: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 1),
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "legacy": False,
    "use_linear_in_transformer": False,
}
"""SD1.5's UNet with two levels instead of four and one residual block each; the host's loader detects this automatically."""


class Scenes:
    """Scenes with captions, composed from the cast of the base split."""

    def __init__(self, cast: Path) -> None:
        self.casts = [world.Cast(cast, kind, "base") for kind in STYLES]

    def one(self, rng: random.Random, cast: world.Cast | None = None) -> tuple[world.Standing, world.Said]:
        """Draw a random character, of a random kind if no cast is given, and the traits that the caption mentions."""
        cast = cast or rng.choice(self.casts)
        called = rng.random() < NAMED
        i = rng.randrange(len(cast.names)) if called else rng.randrange(len(cast.names), len(cast.individuals))
        moods = cast.moods(i)
        mood, carries = rng.choice(list(moods)), rng.random() < CARRIES
        said = world.describe(cast.individuals[i], mood, carries, rng, cast.names[i] if called else "")
        return world.Standing(cast.picture(i, rng.choice(moods[mood])), carries), said

    def captions(self, count: int, characters: int, rng: random.Random) -> list[str]:
        """Generate captions like those of `make`, without the scenes."""
        return [self.caption([self.one(rng)[1] for _ in range(characters)], rng) for _ in range(count)]

    def make(self, count: int, characters: int, rng: random.Random, side: int) -> tuple[np.ndarray, list[str]]:
        """Compose scenes, uint8 [count, side, side * characters, 3], and their captions."""
        images, texts = np.zeros((count, side, side * characters, 3), np.uint8), []
        for image in images:
            casts = rng.choices(self.casts, list(SHARES.values()), k=characters)
            them, place = [self.one(rng, cast) for cast in casts], rng.choice(world.PLACES)
            image[:] = np.asarray(world.compose([standing for standing, _ in them], place, rng, side)[0])
            texts.append(self.caption([said for _, said in them], rng, place))
        return images, texts

    @staticmethod
    def caption(them: list[world.Said], rng: random.Random, place: str = "") -> str:
        """Return a caption in a random form, with or without the place; the place is random if none is given."""
        said = "" if rng.random() < UNSAID else place or rng.choice(world.PLACES)
        return world.Caption.of(rng.choice(world.FORMS), tuple(them), said).text


class Encodings:
    """Encodings of captions, [T, 77, 768], from which each token's encoding is sampled among equal tokens at the same position."""

    def __init__(self, texts: list[str], kept: Path) -> None:
        """Encode `texts`, or load their encodings.

        Args:
            texts: The captions.
            kept: File that the encodings are loaded from if it was made from the same texts, and saved to otherwise.
        """
        from comfy import sd1_clip

        self.tokenizer = sd1_clip.SD1Tokenizer()
        tokens = torch.tensor([self.row(text) for text in texts])
        stored: dict[str, Tensor] = torch.load(kept, weights_only=True) if kept.exists() else {}
        if not torch.equal(stored.get("tokens", torch.empty(0)), tokens):
            stored = {"tokens": tokens, "context": self.encoded(tokens.tolist())}
            torch.save(stored, kept)
        self.context = stored["context"]
        told = self.told_apart(tokens)
        self.order = told.argsort(0)
        self.ranked = told.gather(0, self.order).T.contiguous()

    @staticmethod
    def encoded(rows: list[list[int]]) -> Tensor:
        """Encode rows of tokens with the base's text encoder, in bfloat16."""
        from comfy import sd1_clip

        clip = sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float32).clip_l
        weights = {name: torch.from_numpy(value).float() for name, value in base.text_encoder().items()}
        clip.transformer.load_state_dict(weights | {"text_projection.weight": torch.eye(768)})
        found = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(rows), 16):
                found.append(clip.encode(rows[start : start + 16])[0].bfloat16())
        return torch.cat(found)

    def row(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return [token for token, _ in self.tokenizer.tokenize_with_weights(text)["l"][0]]

    def told_apart(self, tokens: Tensor) -> Tensor:
        """Return tokens [T, 77], offset to ids of their own from "and" on, and from a character's first "with" on."""
        ands, withs = (tokens == self.row(word)[1] for word in ("and", "with"))
        before = (withs.cumsum(1) * ands).cummax(1).values
        return tokens + 49408 * (ands.cumsum(1) + 2 * (withs.cumsum(1) > before))

    def places(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return, for each token of texts, the start in `order` of the tokens equal to it, and their number, int [T, 77] each."""
        columns = self.told_apart(torch.tensor([self.row(text) for text in texts])).T.contiguous()
        first = torch.searchsorted(self.ranked, columns)
        return first.T, (torch.searchsorted(self.ranked, columns, right=True) - first).T

    def draw(self, first: Tensor, count: Tensor) -> Tensor:
        """Sample encodings [B, 77, 768] for tokens with these `places`."""
        pick = first + (torch.rand(first.shape) * count).long()
        return self.context[self.order.gather(0, pick), torch.arange(77)]


@torch.no_grad()
def encoded(images: np.ndarray, encoder: nn.Module) -> Tensor:
    """Return the latents of pictures, uint8 [B, h, w, 3], as an autoencoder encodes them in bfloat16."""
    parts = np.array_split(images, max(1, len(images) // 100))
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([encoder(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255).float() for part in parts])


class Latents:
    """Latents of scenes, with the `places` of their captions' tokens."""

    def __init__(self, images: np.ndarray, texts: list[str], encoder: nn.Module, encodings: Encodings) -> None:
        self.encodings = encodings
        self.first, self.count = encodings.places([*texts, ""])
        self.usable = [i for i in range(len(texts)) if bool((self.count[i] > 0).all())]
        self.z = encoded(images, encoder)

    def batch(self, count: int, rng: random.Random) -> tuple[Tensor, Tensor]:
        """Sample a batch of latents and encodings."""
        rows = [rng.choice(self.usable) for _ in range(count)]
        texts = [-1 if rng.random() < EMPTY else row for row in rows]
        return self.z[rows], self.encodings.draw(self.first[texts], self.count[texts])


def unet() -> nn.Module:
    """Return a newly initialised UNet of the base's layout; the last layer of each block is zero, as in SD."""
    from comfy import ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model = UNetModel(**LAYOUT, operations=ops.disable_weight_init, device="cpu")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            (nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear).reset_parameters(module)
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model.train().requires_grad_(True)


class Training:
    """A model in training, with its moving average and its optimisers; can be saved and resumed."""

    def __init__(self, model: nn.Module, state: Path, reading: tuple[str, ...] = (".attn2.to_k.", ".attn2.to_v.")) -> None:
        """Begin, or resume from the file `state` if it exists; keys and values have one of `reading` in their names."""
        self.model, self.state, self.step = model, state, 0
        reads = [any(part in name for part in reading) for name, _ in model.named_parameters()]
        every = list(model.parameters())
        self.optimisers = [
            Muon((each for each, reading in zip(every, reads, strict=True) if reading is which), 0.01) for which in (False, True)
        ]
        self.mean = {name: value.clone() for name, value in model.state_dict().items()}
        if self.state.exists():
            stored: dict[str, Any] = torch.load(self.state, weights_only=True)
            self.step, self.mean = stored["step"], stored["mean"]
            model.load_state_dict(stored["model"])
            for optimiser, each in zip(self.optimisers, stored["optimisers"], strict=True):
                optimiser.load_state_dict(each)

    def take(self, loss: Tensor, rate: float) -> float:
        """Take one training step that lowers a loss, and return the loss."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, higher in zip(self.optimisers, (1.0, READING), strict=True):
            optimiser.step(higher * rate)
        self.step += 1
        if self.step % EVERY == 0:
            now = self.model.state_dict()
            keep = min(KEEP, (1 + self.step) / (20 + self.step)) ** EVERY
            torch._foreach_lerp_(list(self.mean.values()), [now[name] for name in self.mean], 1 - keep)
        return loss.item()

    def save(self) -> None:
        """Save the state, from which a later run resumes."""
        parts = {"model": self.model.state_dict(), "mean": self.mean, "step": self.step}
        torch.save(parts | {"optimisers": [each.state_dict() for each in self.optimisers]}, self.state.with_suffix(".part"))
        self.state.with_suffix(".part").replace(self.state)


def denoising(model: nn.Module, latents: Tensor, context: Tensor) -> Tensor:
    """Return the loss of the noise that a UNet predicts in latents [B, c, h, w], each at a random time."""
    times = torch.randint(0, 1000, (len(latents),))
    share, noise = ALPHAS[times][:, None, None, None], torch.randn_like(latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(share.sqrt() * latents + (1 - share).sqrt() * noise, times, context=context)
    weight = (MIN_SNR * (1 - share) / share).clamp(max=1)
    return (weight * (found.float() - noise) ** 2).mean()


def learn(
    training: Training, sets: Mapping[int, Any], loss: Callable[..., Tensor], batch: int, minutes: float, rate: float, fall: float
) -> None:
    """Train for `minutes` on sets of scenes of one character and of two, which every third step has, and save the state.

    `loss` is called with the model and what a set's `batch` returns. The learning rate follows a cosine down to almost 0 over the
    last share `fall` of the time.
    """
    torch.manual_seed(training.step)
    rng = random.Random(training.step)
    start, first, saved, losses = time.time(), training.step, time.time(), []
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        pair = training.step % 3 == 2
        given = sets[2].batch(batch // 2, rng) if pair else sets[1].batch(batch, rng)
        left = min(1.0, (1 - done) / fall) if fall else 1.0
        now = rate * min(1, (training.step - first + 1) / WARM) * (0.5 - 0.5 * math.cos(math.pi * left) + 0.005)
        losses.append(training.take(loss(training.model, *given), now))
        if training.step % 50 == 0:
            each = (time.time() - start) / (training.step - first)
            print(f"{training.step}, {each:.2f} s a step, loss {np.mean(losses[-50:]):.4f}", flush=True)
        if time.time() - saved > 300:
            training.save()
            saved = time.time()
    training.save()


def train(comfyui: Path, cast: Path, out: Path, side: int, minutes: float, rate: float, fall: float) -> None:
    """Train the base and pack it; see `learn`."""
    inside.enter(comfyui)
    from comfy.taesd.taesd import Encoder

    torch.manual_seed(0)
    training = Training(unet(), out / "unet.pt")
    rng = random.Random(training.step)
    scenes = Scenes(cast)
    made = {characters: scenes.make(count, characters, rng, side) for characters, count in SCENES.items()}
    pool = [text for characters in SCENES for text in scenes.captions(CAPTIONS // 2, characters, random.Random(characters))]
    encodings = Encodings([*pool, ""], out / "encodings.pt")
    encoder, coder = Encoder(4), load_file(out / "autoencoder.safetensors")
    encoder.load_state_dict(
        {name.removeprefix("taesd_encoder."): value.float() for name, value in coder.items() if "encoder" in name}
    )
    sets = {characters: Latents(*each, encoder, encodings) for characters, each in made.items()}
    print(", ".join(f"{len(each.usable)} of {SCENES[n]} scenes of {n}" for n, each in sets.items()), flush=True)
    learn(training, sets, denoising, BATCH[side], minutes, rate, fall)
    learned = {base.UNET + name: value.half().numpy() for name, value in training.mean.items()}
    base.pack_tensors(learned | {base.AUTOENCODER + name: value.numpy() for name, value in coder.items()}, out / "base.bin")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("comfyui", "cast", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument(
        "--side", type=int, choices=BATCH, default=world.SIDE, help="begin with small scenes: they are learned sooner"
    )
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--fall", type=float, default=0.3)
    train(**vars(parser.parse_args()))
