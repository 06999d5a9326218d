"""Train the demo base's autoencoder: TAESD's shape, from seeded weights, both halves together, on scenes of the demo's world.

    python -m demo.train_autoencoder --comfyui PATH --cast DIR --out DIR --minutes 60

--cast: what `demo.draw` drew. Goes on from what an earlier run left in --out, where it writes autoencoder.safetensors. With
--decoder the encoder stays as it is, so that a UNet trained on its latents stays right, and the decoder alone learns. Individuals
of the development split are looked at now and then, never learned from.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from demo import world
from demo.individuals import STYLES
from demo.muon import Muon
from scripts.harness import inside

SCENES, SMALL, CROP = 18000, 6000, 64
"""Scenes of the world's size, of which squares of CROP pixels are seen, and scenes as small as that, the UNet's first lessons."""
LATENT_NOISE = 0.1
"""A UNet's latents are not quite the encoder's: a decoder that has seen a little noise does not show it."""
SPREAD, REACH = 0.9, 3.2
"""What the latents' standard deviation and largest value are held to: about what SD's UNets expect."""


def scenes(cast: Path, split: str, count: int, rng: random.Random, side: int = world.SIDE) -> Tensor:
    """[count, side, side, 3] uint8: one character each."""
    casts = [world.Cast(cast, kind, split) for kind in STYLES]
    images = np.zeros((count, side, side, 3), np.uint8)
    for image in images:
        who = rng.choice(casts)
        i = rng.randrange(len(who.individuals))
        standing = world.Standing(who.picture(i, rng.choice(list(who.pictures[i]))), rng.random() < 0.2)
        image[:] = np.asarray(world.compose([standing], rng.choice(world.PLACES), rng, side)[0])
    return torch.from_numpy(images)


def crops(images: Tensor, count: int) -> Tensor:
    """`count` squares out of scenes uint8 [N, H, W, 3], float [count, 3, CROP, CROP] in 0..1, half of them mirrored."""
    found = []
    for i in torch.randint(0, len(images), (count,)).tolist():
        y, x = (random.randint(0, size - CROP) for size in images.shape[1:3])
        part = images[i, y : y + CROP, x : x + CROP].permute(2, 0, 1)
        found.append(part.flip(2) if random.random() < 0.5 else part)
    return torch.stack(found).float().div(255).contiguous(memory_format=torch.channels_last)


def initialise(model: nn.Module) -> nn.Module:
    """The host's layers come without values: give convolutions PyTorch's own."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)
    return model.to(memory_format=torch.channels_last)


def difference(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Of the pixels, and of their edges."""
    loss = (drawn - wanted).abs().mean() + 4 * ((drawn - wanted) ** 2).mean()
    for axis in (2, 3):
        loss = loss + (drawn.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean()
    return loss


def unevenness(z: Tensor) -> Tensor:
    """How far latents [B, 4, H, W] are from SPREAD about 0 in every channel, and from lying within REACH."""
    flat = z.permute(1, 0, 2, 3).reshape(4, -1)
    return ((flat.std(1) - SPREAD) ** 2).mean() + (flat.mean(1) ** 2).mean() + F.relu(z.abs() - REACH).pow(2).mean()


def decibels(net: nn.ModuleDict, images: Tensor) -> float:
    """Peak signal to noise ratio of all these pictures [N, H, W, 3] uint8 together, coded and drawn again."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = images.permute(0, 3, 1, 2).float() / 255
        y = torch.cat([net["decoder"](net["encoder"](part)).float() for part in x.split(64)]).clamp(0, 1)
    return -10 * math.log10(((y - x) ** 2).mean().item())


def train(comfyui: Path, cast: Path, out: Path, minutes: float, rate: float, batch: int, decoder: bool) -> None:
    """Train for `minutes`; the rate falls to nothing at their end."""
    inside.enter(comfyui)
    from comfy.taesd.taesd import Decoder, Encoder

    out.mkdir(parents=True, exist_ok=True)
    state = out / "autoencoder.pt"
    torch.manual_seed(0)
    net, step = nn.ModuleDict({"encoder": initialise(Encoder(4)), "decoder": initialise(Decoder(4))}), 0
    mean = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = Muon(net.parameters())
    if state.exists():
        stored = torch.load(state, weights_only=True)
        net.load_state_dict(stored["mean"])
        optimiser.load_state_dict(stored["optimiser"])
        mean, step = {name: value.clone() for name, value in stored["mean"].items()}, stored["step"]
    net["encoder"].requires_grad_(not decoder)
    large = scenes(cast, "base", SCENES, random.Random(step))
    small = scenes(cast, "base", SMALL, random.Random(step + 1), CROP)
    unseen = scenes(cast, "development", 256, random.Random(1))
    judged = nn.ModuleDict({"encoder": Encoder(4), "decoder": Decoder(4)}).to(memory_format=torch.channels_last)

    def save() -> None:
        torch.save({"mean": mean, "optimiser": optimiser.state_dict(), "step": step}, state)
        save_file({f"taesd_{name}": value.half().contiguous() for name, value in mean.items()}, out / "autoencoder.safetensors")

    torch.manual_seed(step)
    start, first, looked = time.time(), step, 0.0
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        x = crops(small if step % 4 == 3 else large, batch)
        with torch.autocast("cpu", torch.bfloat16):
            z = net["encoder"](x).float()
            y = net["decoder"](z + torch.rand(batch, 1, 1, 1) * LATENT_NOISE * torch.randn_like(z)).float()
        loss = difference(y, x) + 0.05 * unevenness(z)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step(rate * min(1, (step - first + 1) / 100) * (0.5 * (1 + math.cos(math.pi * done)) + 0.003))
        step += 1
        keep = min(0.999, (1 + step) / (20 + step))
        now = net.state_dict()
        torch._foreach_lerp_(list(mean.values()), [now[name] for name in mean], 1 - keep)
        if time.time() - looked > 60:
            judged.load_state_dict(mean)
            print(f"{step} {time.time() - start:.0f} s, loss {loss:.4f}, unseen {decibels(judged, unseen):.2f} dB", flush=True)
            save()
            looked = time.time()
    save()
    judged.load_state_dict(mean)
    print(f"{step} steps, unseen {decibels(judged, unseen):.2f} dB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("comfyui", "cast", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone")
    train(**vars(parser.parse_args()))
