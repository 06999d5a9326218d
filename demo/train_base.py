"""Train the demo base's UNet further: scenes of the emoji world in the latents of the base's own autoencoder.

    python -m demo.train_base --comfyui PATH --emoji DIR --out DIR --steps 8000

Starts from `--begin`, a packed base (the one beside this module), goes on from what an earlier run left in `--out`, and at the end
writes the new packed base there, base.bin, with the moving average of the weights. On two cores a step takes about a second.
Held-out designers' emoji are never drawn.

Each token's encoding is taken from a random caption with the same token in the same place, so that a word is read where it stands.
Left to itself a UNet this small reads nearly everything from later tokens, which blend all before them: 0 to 3 per cent of its
attention went to a word's own token, and an edit of that token changed nothing.

Most captions describe a thing more closely, by the colours it is painted in or by its kind, which says whose drawing it is. With
eight words alone the text says next to nothing of how a thing looks, noise decides, and no edit of keys and values changes that.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from demo import base, world
from scripts import inside

BATCH = 32
RATE, READING = 4e-4, 3.0
"""Learning rate; how much higher it is for the keys and values of cross-attention, so that new words are learned sooner."""
WARM = 100
FALL = 0.5
"""Share of the steps over which the rate falls to nothing, at the end."""
KEEP = 0.999
MIN_SNR = 5.0
"""Noise levels whose signal is stronger count less: shapes come sooner (arXiv 2303.09556)."""
EMPTY = 0.1
"""Share of captions left out, for guidance."""
PAIRS, UNSAID, CLOSER = 0.35, 0.15, 0.75
"""Share of scenes with two things; of the others, share of captions that do not say the background; of all, share of those that
describe things more closely."""
KIND, PAINT, TWO = 0.75, 0.5, 0.5
"""Of the things that are described more closely, share of those called by their kind; painted; of these, in two colours."""
DESCRIBED = 2500
"""Captions that describe things more closely."""
TEMPLATES = ("a photo of a {}", "a {}", "a good photo of the {}", "a picture of the {}")
SAVE_EVERY = 250
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
"""SD1's noise schedule."""


@dataclass(frozen=True)
class Thing:
    """One thing in a scene, and what its caption says of it."""

    word: str
    designer: str = ""
    """Whose, where the caption says so."""
    colours: tuple[str, ...] = ()

    def text(self) -> str:
        """How a caption calls it."""
        return " ".join((*self.colours, world.KINDS[self.word][self.designer] if self.designer else self.word))

    def picture(self, sprites: world.Sprites, rng: random.Random) -> Image.Image:
        """An emoji that is as the caption says."""
        drawn = sprites[self.designer or rng.choice([who for who, word in sprites if word == self.word]), self.word]
        return world.painted(drawn, self.colours[0], self.colours[-1]) if self.colours else drawn


class Caption(NamedTuple):
    """What a scene shows, and the text that says it; the background is None where it does not say one."""

    things: tuple[Thing, ...]
    place: str | None
    text: str

    @classmethod
    def of(cls, form: str, things: tuple[Thing, ...], place: str | None) -> Caption:
        """In one of TEMPLATES."""
        named = " and a ".join(thing.text() for thing in things)
        return cls(things, place, f"{form.format(named)} {place or ''}".strip())

    def closer(self) -> bool:
        """Whether it describes its things more closely than by a word."""
        return any(thing.designer or thing.colours for thing in self.things)


def captions() -> list[Caption]:
    """All plain captions of single things; of pairs every ordered one on every background or none, in one of the forms; and
    many that describe things more closely.
    """
    rng, places = random.Random(0), (None, *world.BACKGROUNDS)
    pool = [Caption.of(form, (Thing(word),), place) for word in world.WORDS for place in places for form in TEMPLATES]
    for pair in itertools.permutations(world.WORDS, 2):
        pool += [Caption.of(rng.choice(TEMPLATES), tuple(map(Thing, pair)), place) for place in places]
    found: dict[str, Caption] = {}
    while len(found) < DESCRIBED:
        words = rng.sample(list(world.WORDS), 2 if rng.random() < PAIRS else 1)
        place = None if rng.random() < UNSAID else rng.choice(world.BACKGROUNDS)
        caption = Caption.of(rng.choice(TEMPLATES), tuple(described(word, rng) for word in words), place)
        if caption.closer():
            found[caption.text] = caption
    return pool + list(found.values())


def described(word: str, rng: random.Random) -> Thing:
    """A thing, with its kind, its colours, both or neither."""
    designer = rng.choice(list(world.KINDS[word])) if rng.random() < KIND else ""
    colours = rng.sample(list(world.PAINTS), 2 if rng.random() < TWO else 1) if rng.random() < PAINT else []
    return Thing(word, designer, tuple(colours))


def choose(pool: list[Caption], count: int, rng: random.Random) -> list[int]:
    """Which caption each scene has."""
    groups: dict[tuple[bool, str], list[int]] = {}
    for i, caption in enumerate(pool):
        kind = "pair" if len(caption.things) == 2 else "said" if caption.place else "unsaid"
        groups.setdefault((caption.closer(), kind), []).append(i)

    def one() -> int:
        kind = "pair" if rng.random() < PAIRS else "unsaid" if rng.random() < UNSAID else "said"
        return rng.choice(groups[rng.random() < CLOSER, kind])

    return [one() for _ in range(count)]


def scene(sprites: world.Sprites, caption: Caption, rng: random.Random) -> np.ndarray:
    """A picture of a caption, uint8 [64, 64, 3]."""
    pictures = [thing.picture(sprites, rng) for thing in caption.things]
    return np.asarray(world.compose(pictures, caption.place or rng.choice(world.BACKGROUNDS), rng)[0])


class Alike:
    """For each token of each of T texts, the texts that have the same token in the same place."""

    def __init__(self, tokens: Tensor) -> None:
        """`tokens`: int [T, N]."""
        self.order = tokens.argsort(0)
        ranked = tokens.gather(0, self.order).T.contiguous()
        known = tokens.T.contiguous()
        self.first = torch.searchsorted(ranked, known).T
        self.count = torch.searchsorted(ranked, known, right=True).T - self.first

    def draw(self, texts: list[int]) -> Tensor:
        """One of them for each token of these B texts, int [B, N]."""
        first, count = self.first[texts], self.count[texts]
        return self.order.gather(0, first + (torch.rand(first.shape) * count).long())


class Parts:
    """The parts of a packed base that training runs on, in the host's modules."""

    def __init__(self, packed: Path) -> None:
        self.tensors = {name: torch.from_numpy(value).float() for name, value in base.unpack_tensors(packed).items()}

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Those of the base's tensors whose names start so, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def unet(self) -> nn.Module:
        """The base's UNet."""
        from comfy import model_detection, ops
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        layout = model_detection.model_config_from_unet(self.tensors, base.UNET).unet_config
        model = UNetModel(**layout, operations=ops.disable_weight_init, device="cpu")
        model.load_state_dict(self.under(base.UNET))
        return model.train().requires_grad_(True)

    def encodings(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """[T, 77, 768] of the seeded text encoder, bfloat16, and the tokens, int [T, 77]."""
        from comfy import sd1_clip

        clip = sd1_clip.SD1ClipModel(device="cpu", dtype=torch.float32).clip_l
        weights = {name: torch.from_numpy(value).float() for name, value in base.text_encoder().items()}
        clip.transformer.load_state_dict(weights | {"text_projection.weight": torch.eye(768)})
        tokens = sd1_clip.SD1Tokenizer()
        rows = [[token for token, _ in tokens.tokenize_with_weights(text)["l"][0]] for text in texts]
        found = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, len(rows), 16):
                found.append(clip.encode(rows[start : start + 16])[0].bfloat16())
        return torch.cat(found), torch.tensor(rows)

    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 [N, 64, 64, 3] -> latents [N, 4, 8, 8] of the base's autoencoder."""
        from comfy.taesd.taesd import Encoder

        encoder = Encoder(4)
        encoder.load_state_dict(self.under(f"{base.AUTOENCODER}taesd_encoder."))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return torch.cat([encoder(part.permute(0, 3, 1, 2) / 255).float() for part in pictures.split(50)])


class Training:
    """A UNet, its average and the optimiser; can be put down and taken up."""

    def __init__(self, model: nn.Module, out: Path) -> None:
        self.model, self.step = model, 0
        groups: list[dict] = [{"params": []}, {"params": []}]
        for name, each in model.named_parameters():
            groups[".attn2.to_k." in name or ".attn2.to_v." in name]["params"].append(each)
        self.optimiser = torch.optim.AdamW(groups, RATE, betas=(0.9, 0.99), weight_decay=0.01)
        self.mean = {name: value.clone() for name, value in model.state_dict().items()}
        self.state = out / "state.pt"
        if self.state.exists():
            stored: dict[str, Any] = torch.load(self.state, weights_only=True)
            self.step, self.mean = stored["step"], stored["mean"]
            model.load_state_dict(stored["model"])
            self.optimiser.load_state_dict(stored["optimiser"])

    def take(self, latents: Tensor, context: Tensor, rate: float) -> float:
        """One step; its loss."""
        times = torch.randint(0, 1000, (len(latents),))
        share = ALPHAS[times][:, None, None, None]
        noise = torch.randn_like(latents)
        with torch.autocast("cpu", torch.bfloat16):
            found = self.model(share.sqrt() * latents + (1 - share).sqrt() * noise, times, context=context)
        weight = (MIN_SNR * (1 - share) / share).clamp(max=1)
        loss = (weight * (found.float() - noise) ** 2).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group, share in zip(self.optimiser.param_groups, (1.0, READING), strict=True):
            group["lr"] = share * rate
        self.optimiser.step()
        self.step += 1
        now = self.model.state_dict()
        torch._foreach_lerp_(list(self.mean.values()), [now[name] for name in self.mean], 1 - KEEP)
        return loss.item()

    def save(self) -> None:
        """Put it down, to go on later."""
        parts = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "mean": self.mean, "step": self.step}
        torch.save(parts, self.state.with_suffix(".part"))
        self.state.with_suffix(".part").replace(self.state)


def rate_at(step: int, steps: int) -> float:
    """Warm up, stay, and fall as a cosine does."""
    left = min(1.0, (steps - step) / (FALL * steps))
    return RATE * min(1.0, (step + 1) / WARM) * (0.5 - 0.5 * math.cos(math.pi * left) + 0.005)


def train(comfyui: Path, emoji: Path, out: Path, steps: int, scenes: int, begin: Path) -> None:
    """Train until `steps` are done in all."""
    out.mkdir(parents=True, exist_ok=True)
    inside.enter(comfyui)
    parts, rng = Parts(begin), random.Random(0)
    pool = captions()
    which = choose(pool, scenes, rng)
    context, tokens = parts.encodings([caption.text for caption in pool] + [""])
    alike = Alike(tokens)
    sprites = world.sprites(emoji)
    latents = parts.latents(torch.from_numpy(np.stack([scene(sprites, pool[i], rng) for i in which])))
    training = Training(parts.unet(), out)
    # Going on, other numbers come than in the steps before.
    rng.seed(training.step)
    torch.manual_seed(training.step)
    start, first = time.time(), training.step
    while training.step < steps:
        rows = [rng.randrange(scenes) for _ in range(BATCH)]
        texts = [len(pool) if rng.random() < EMPTY else which[row] for row in rows]
        shown = context[alike.draw(texts), torch.arange(context.shape[1])]
        loss = training.take(latents[rows], shown, rate_at(training.step, steps))
        if training.step % 50 == 0:
            each = (time.time() - start) / (training.step - first)
            print(f"{training.step} of {steps}, {each:.2f} s a step, loss {loss:.4f}", flush=True)
        if training.step % SAVE_EVERY == 0:
            training.save()
    training.save()
    learned = {base.UNET + name: value for name, value in training.mean.items()}
    base.pack_tensors({name: value.half().numpy() for name, value in (parts.tensors | learned).items()}, out / "base.bin")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("comfyui", "emoji", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--scenes", type=int, default=30000)
    parser.add_argument("--begin", type=Path, default=base.PACKED)
    train(**vars(parser.parse_args()))
