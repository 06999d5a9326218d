"""Train the demo base's autoencoder: TAESD's shape, in TAESD's latent space, for scenes of the emoji world.

The encoder learns to give the teacher's latents; the decoder learns to draw scenes from the teacher's latents. Neither starts
from the teacher's weights.

    python -m demo.train_autoencoder --comfyui PATH --teacher DIR --emoji DIR --out FILE --minutes 50

--teacher: a folder with TAESD's public taesd_encoder.safetensors. --emoji: where `demo.world.fetch` put the emoji sets.
"""

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from demo import world
from scripts import inside

BATCH = 32
RATE = 1.5e-3
# The UNet's latents are not quite the teacher's: a decoder that has seen a little noise does not show it.
LATENT_NOISE = 0.08


def scenes(emoji: Path, count: int, rng: random.Random) -> torch.Tensor:
    """[count, 64, 64, 3] uint8: half of the words that the base knows, half of any emoji."""
    known = list(world.sprites(emoji).values())
    other = []
    for designer in world.BASE_DESIGNERS:
        names = world.icon_names(emoji, designer)
        other += world.draw(emoji, designer, rng.sample(names, min(300, len(names)))).values()
    images = []
    for _ in range(count):
        pictures = [rng.choice(known if rng.random() < 0.5 else other) for _ in range(1 if rng.random() < 0.75 else 2)]
        images.append(np.asarray(world.compose(pictures, rng.choice(world.BACKGROUNDS), rng)[0]))
    return torch.from_numpy(np.stack(images))


def initialise(model: nn.Module) -> nn.Module:
    """The host's layers come without values: give convolutions PyTorch's own."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)
    return model.to(memory_format=torch.channels_last)


def difference(drawn: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Absolute error of the pixels and of their edges."""
    loss = (drawn - wanted).abs().mean()
    for axis in (2, 3):
        loss = loss + (drawn.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean()
    return loss


def train(comfyui: Path, teacher: Path, emoji: Path, out: Path, minutes: float, begin: Path | None) -> None:
    """Train for `minutes`, from nothing or from the file `begin`, and write their moving average to `out`, half precision."""
    inside.enter(comfyui)
    from comfy.taesd.taesd import Decoder, Encoder

    torch.manual_seed(0 if begin is None else 1)
    rng = random.Random(0 if begin is None else 1)
    images = scenes(emoji, 16000, rng)
    target = Encoder(4)
    target.load_state_dict({k: v.float() for k, v in load_file(teacher / "taesd_encoder.safetensors").items()})
    target.to(memory_format=torch.channels_last).requires_grad_(False)
    students = nn.ModuleDict({"encoder": initialise(Encoder(4)), "decoder": initialise(Decoder(4))})
    if begin:
        students.load_state_dict({k.removeprefix("taesd_"): v.float() for k, v in load_file(begin).items()})
    mean = {k: v.clone() for k, v in students.state_dict().items()}
    optimiser = torch.optim.Adam(students.parameters(), RATE, betas=(0.9, 0.99))

    def save() -> None:
        save_file({f"taesd_{k}": v.half().contiguous() for k, v in mean.items()}, out)

    start, step = time.time(), 0
    while (done := (time.time() - start) / (minutes * 60)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 200) * (0.5 * (1 + math.cos(math.pi * done)) + 0.005)
        x = images[torch.randint(0, len(images), (BATCH,))].permute(0, 3, 1, 2).float() / 255
        x = x.flip(3) if step % 2 else x
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latent = target(x).float()
            encoder_loss = F.smooth_l1_loss(students["encoder"](x).float(), latent, beta=0.1)
            noised = latent + torch.rand(BATCH, 1, 1, 1) * LATENT_NOISE * torch.randn_like(latent)
            decoder_loss = difference(students["decoder"](noised).float(), x)
        optimiser.zero_grad(set_to_none=True)
        (encoder_loss + decoder_loss).backward()
        nn.utils.clip_grad_norm_(students.parameters(), 1.0)
        optimiser.step()
        step += 1
        keep = min(0.999, (1 + step) / (20 + step))
        now = students.state_dict()
        torch._foreach_lerp_(list(mean.values()), [now[k] for k in mean], 1 - keep)
        if step % 50 == 0:
            print(f"{step} {time.time() - start:.0f}s encoder {encoder_loss:.4f} decoder {decoder_loss:.4f}", flush=True)
        if step % 500 == 0:
            save()
    save()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("comfyui", "teacher", "emoji", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--begin", type=Path, help="go on from such a file")
    train(**vars(parser.parse_args()))
