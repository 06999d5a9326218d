"""Train the demo base's autoencoder, of TAESD's architecture, from seeded random weights on scenes of the demo's world.

    python -m demo.train_autoencoder --comfyui PATH --cast DIR --out DIR --minutes 60

--cast is the output folder of `demo.draw`. Writes autoencoder.safetensors to --out, and resumes from the state of an earlier run
there. Encoder and decoder are trained jointly. With --decoder, the encoder is frozen, so that a UNet trained on its latents stays
valid, and only the decoder is trained. Individuals of the development split are used for validation only.
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
from perfusion_fleet import inside

SCENES, SMALL, CROP = 18000, 6000, 64
"""Number of full-size scenes, which are cropped to squares of CROP pixels; number of scenes of CROP pixels, the size that the
UNet's training begins with; CROP itself."""
LATENT_NOISE = 0.1
"""Largest standard deviation of the noise added to latents. A UNet's latents are not quite those of the encoder; a decoder that was
trained with a little noise does not show the difference."""
SPREAD, REACH = 0.9, 3.2
"""Target of the latents' standard deviation, and limit of their magnitude: about the values that SD's UNets expect."""


def scenes(cast: Path, split: str, count: int, rng: random.Random, side: int = world.SIDE) -> Tensor:
    """Compose scenes of one character each, [count, side, side, 3] uint8."""
    casts = [world.Cast(cast, kind, split) for kind in STYLES]
    images = np.zeros((count, side, side, 3), np.uint8)
    for image in images:
        who = rng.choice(casts)
        i = rng.randrange(len(who.individuals))
        standing = world.Standing(who.picture(i, rng.choice(list(who.pictures[i]))), rng.random() < 0.2)
        image[:] = np.asarray(world.compose([standing], rng.choice(world.PLACES), rng, side)[0])
    return torch.from_numpy(images)


def crops(images: Tensor, count: int) -> Tensor:
    """Crop `count` random squares from scenes uint8 [N, H, W, 3], float [count, 3, CROP, CROP] in 0..1, half of them mirrored."""
    found = []
    for i in torch.randint(0, len(images), (count,)).tolist():
        y, x = (random.randint(0, size - CROP) for size in images.shape[1:3])
        part = images[i, y : y + CROP, x : x + CROP].permute(2, 0, 1)
        found.append(part.flip(2) if random.random() < 0.5 else part)
    return torch.stack(found).float().div(255).contiguous(memory_format=torch.channels_last)


def initialise(model: nn.Module) -> nn.Module:
    """Initialise convolutions with PyTorch's defaults, because the host's layers leave their weights uninitialised."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)
    return model.to(memory_format=torch.channels_last)


def difference(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Return the loss between two images: the L1 and squared errors of pixels, and the L1 error of edges."""
    loss = (drawn - wanted).abs().mean() + 4 * ((drawn - wanted) ** 2).mean()
    for axis in (2, 3):
        loss = loss + (drawn.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean()
    return loss


def unevenness(z: Tensor) -> Tensor:
    """Penalise latents [B, 4, H, W] whose channels deviate from mean 0 and standard deviation SPREAD, or that exceed REACH."""
    flat = z.permute(1, 0, 2, 3).reshape(4, -1)
    return ((flat.std(1) - SPREAD) ** 2).mean() + (flat.mean(1) ** 2).mean() + F.relu(z.abs() - REACH).pow(2).mean()


def decibels(net: nn.ModuleDict, images: Tensor) -> float:
    """Return the peak signal-to-noise ratio of reconstructed images [N, H, W, 3] uint8, over all of them together."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = images.permute(0, 3, 1, 2).float() / 255
        y = torch.cat([net["decoder"](net["encoder"](part)).float() for part in x.split(64)]).clamp(0, 1)
    return -10 * math.log10(((y - x) ** 2).mean().item())


def train(comfyui: Path, cast: Path, out: Path, minutes: float, rate: float, batch: int, decoder: bool) -> None:
    """Train for `minutes`, over which the learning rate decays to almost 0; with `decoder`, train the decoder only."""
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
