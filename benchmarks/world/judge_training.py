"""Train the judges."""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.world.judges import AT_ONCE, QUESTIONS, WEIGHTS, Network
from demo import base, world
from demo.individuals import SPLITS, STYLES, Individual
from demo.muon import Muon
from demo.world import SIDE
from perfusion_fleet import inside
from scripts.setup import steps

TAUGHT, STEPS, RATE = 2500, 1200, 2e-3
"""Number of training individuals of each kind, number of steps, and peak learning rate."""
A_KIND = 24
"""Number of individuals of each kind in a step, with two pictures of each."""
NEARNESS = 0.1
"""Temperature of the identity loss."""
GALLERY = 240
"""Number of individuals of each kind and split in the galleries; those of the base start with the named ones."""
UNKNOWN = -1
LATENT_NOISE = 0.25
"""Standard deviation of the noise on latents, relative to their own, because a sampler's latents are not exact either."""


# Scenes


@dataclass
class Looks:
    """N scenes of one character each, and what they show."""

    images: Tensor
    """uint8 [N, 96, 96, 3]."""
    answers: dict[str, Tensor]
    """For each question the index of the answer, int64 [N]; UNKNOWN where the picture does not show it."""
    shades: Tensor
    """RGB values of both colours, float32 [N, 2, 3] in 0..1."""


def truth(one: Individual, mood: str, place: str, carries: bool) -> dict[str, str | None]:
    """Return the right answer to each question; None where a picture does not show it."""
    parts = one.variants
    found: dict[str, str | None] = {"kind": one.kind, "place": place, "mood": mood or None, "balloon": "yes" if carries else "no"}
    found |= {"colour": one.colours[0], "second": one.colours[1] if one.two_coloured else None}
    return found | {part: one.said(part) if part in parts else None for part in ("body", "head", "pattern", "eyes")}


def rgb(shade: str) -> list[float]:
    """Convert #rrggbb to three numbers in 0..1."""
    return [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def scenes(cast: world.Cast, which: list[int], each: int, rng: random.Random) -> Looks:
    """Compose `each` scenes of each of these individuals, in consecutive order, with different mouths as far as there are any."""
    images, answers, shades = [], [], []
    for i in which:
        one, mouths = cast.individuals[i], list(cast.pictures[i])
        chosen = rng.sample(mouths, min(each, len(mouths)))
        for mouth in (*chosen, *rng.choices(mouths, k=each - len(chosen))):
            place, carries = rng.choice(world.PLACES), rng.random() < 0.2
            picture = world.compose([world.Standing(cast.picture(i, mouth), carries)], place, rng)[0]
            images.append(np.asarray(picture))
            said = truth(one, world.MOUTHS[cast.kind][mouth], place, carries)
            answers.append([UNKNOWN if said[name] is None else QUESTIONS[name].index(str(said[name])) for name in QUESTIONS])
            shades.append([rgb(shade) for shade in one.shades[:2]])
    columns = torch.tensor(answers).unbind(1)
    return Looks(torch.from_numpy(np.stack(images)), dict(zip(QUESTIONS, columns, strict=True)), torch.tensor(shades))


def joined(parts: list[Looks]) -> Looks:
    """Concatenate scenes."""
    answers = {name: torch.cat([part.answers[name] for part in parts]) for name in QUESTIONS}
    return Looks(torch.cat([part.images for part in parts]), answers, torch.cat([part.shades for part in parts]))


def autoencoded(images: Tensor, comfyui: Path, noise: float, seed: int = 0) -> Tensor:
    """Pass images, uint8 [N, 96, 96, 3], through the base's autoencoder and return the same shape.

    The latents get Gaussian noise of a random strength, up to `noise` times their standard deviation.
    """
    inside.enter(comfyui)
    from comfy.taesd.taesd import Decoder, Encoder

    tensors = {name: torch.from_numpy(value).float() for name, value in base.unpack_tensors(base.PACKED).items()}
    coder = nn.ModuleDict({"taesd_encoder": Encoder(4), "taesd_decoder": Decoder(4)})
    coder.load_state_dict({k.removeprefix(base.AUTOENCODER): v for k, v in tensors.items() if k.startswith(base.AUTOENCODER)})
    coder.to(memory_format=torch.channels_last)
    dice, found = torch.Generator().manual_seed(seed), []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for part in images.split(100):
            z = coder["taesd_encoder"]((part.permute(0, 3, 1, 2) / 255).contiguous(memory_format=torch.channels_last)).float()
            z = z + noise * z.std() * torch.rand(len(z), 1, 1, 1, generator=dice) * torch.randn(z.shape, generator=dice)
            found.append((coder["taesd_decoder"](z).float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(found).contiguous()


# Training


def spoil(x: Tensor) -> Tensor:
    """Augment images [B, 3, 96, 96] with blur, colour changes, noise and a shift of random strength, as a sampler may cause."""

    def strength(low: float, high: float, *, rare: bool = False) -> Tensor:
        amount = low + (high - low) * torch.rand(len(x), 1, 1, 1)
        return amount * (torch.rand(len(x), 1, 1, 1) < 0.4) if rare else amount

    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x.lerp(smooth, strength(0, 1, rare=True))
    x = x * strength(0.93, 1.07) + strength(-0.04, 0.04)
    x = x + strength(0, 0.04, rare=True) * torch.randn_like(x)
    across, down = random.randint(-4, 4), random.randint(-4, 4)
    padded = F.pad(x, (4, 4, 4, 4), mode="replicate")
    return padded[:, :, 4 + down : 4 + down + SIDE, 4 + across : 4 + across + SIDE].clamp(0, 1)


def loss_of(network: Network, features: Tensor, looks: dict[str, Tensor], shades: Tensor) -> Tensor:
    """Return the cross entropy of all answers, plus the error of both shades, plus the contrastive loss of identity.

    Of the 2 n images, 2 i and 2 i + 1 show the same individual.
    """
    loss = features.new_zeros(())
    for name, head in network.heads.items():
        asked = looks[name] != UNKNOWN
        if asked.any():
            loss = loss + F.cross_entropy(head(features[asked]), looks[name][asked], label_smoothing=0.02)
    loss = loss + 4 * (network.shades(features).sigmoid().unflatten(1, (2, 3)) - shades).abs().mean()
    vectors = F.normalize(network.identity(features), dim=1)
    alike = vectors @ vectors.T / NEARNESS
    alike.fill_diagonal_(-math.inf)
    return loss + 2 * F.cross_entropy(alike, torch.arange(len(vectors)) ^ 1)


def train(data: dict[str, Looks], decoded: dict[str, Tensor]) -> Network:
    """Train from a fixed seed.

    Args:
        data: By kind, two scenes of each individual.
        decoded: By kind, the same images after the autoencoder.
    """
    torch.manual_seed(0)
    random.seed(0)
    network, start = Network().to(memory_format=torch.channels_last).train(), time.monotonic()
    optimiser = Muon(network.parameters(), 0.02)
    for step in range(STEPS):
        images, answers, shades = [], [], []
        for kind, looks in data.items():
            pairs = torch.randperm(len(looks.images) // 2)[:A_KIND]
            rows = torch.stack([2 * pairs, 2 * pairs + 1], 1).flatten()
            coded = torch.rand(len(rows), 1, 1, 1) < 0.6
            images.append(torch.where(coded, decoded[kind][rows], looks.images[rows]))
            answers.append({name: found[rows] for name, found in looks.answers.items()})
            shades.append(looks.shades[rows])
        x = spoil(torch.cat(images).permute(0, 3, 1, 2) / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            features = network(x)
        looks = {name: torch.cat([each[name] for each in answers]) for name in QUESTIONS}
        loss = loss_of(network, features.float(), looks, torch.cat(shades))
        loss.backward()
        optimiser.step(RATE * min(1, (step + 1) / 50) * (1 - step / STEPS))
        if step % 50 == 49:
            steps.say(f"  step {step + 1} of {STEPS}, {time.monotonic() - start:.0f} s, loss {loss:.3f}")
    return network.eval().requires_grad_(False)


def gallery(network: Network, looks: Looks, each: int) -> Tensor:
    """Return the mean identity vector of each individual's `each` scenes, [individuals, WIDTH]."""
    parts = [network.identity(network(part.permute(0, 3, 1, 2) / 255)) for part in looks.images.split(AT_ONCE)]
    return F.normalize(torch.cat(parts), dim=1).unflatten(0, (-1, each)).mean(1)


def train_all(cast: Path, comfyui: Path) -> None:
    """Train, and write the weights in half precision with a gallery of each kind and split."""
    data, decoded = {}, {}
    for kind in STYLES:
        with steps.step(f"Drawing scenes with a {kind}"):
            known = world.Cast(cast, kind, "base")
            data[kind] = scenes(known, list(range(TAUGHT)), 2, random.Random(f"judges {kind}"))
            decoded[kind] = autoencoded(data[kind].images, comfyui, LATENT_NOISE)
    network = train(data, decoded)
    state = {name: value.half().contiguous() for name, value in network.state_dict().items() if value.is_floating_point()}
    galleries = {}
    with torch.no_grad():
        for kind in STYLES:
            for split in SPLITS:
                looks = scenes(world.Cast(cast, kind, split), list(range(GALLERY)), 6, random.Random(f"gallery {kind} {split}"))
                galleries[f"gallery.{kind}.{split}"] = gallery(network, looks, 6).half()
    save_file(state | galleries, WEIGHTS, metadata={"galleries": json.dumps(sorted(galleries))})
