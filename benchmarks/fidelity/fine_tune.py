"""Fine-tune all weights of a UNet on a concept's pictures, as DreamBooth does (arXiv 2208.12242); no node of the host can.

    python -m benchmarks.fidelity.fine_tune JOB

JOB is a JSON file with the fields of `Job`. The weights stay in float32; layers compute in bfloat16 where Train Concept's do. The
text encoder stays as it is. With `prior` above 0 each step also sees as many pictures that the base drew of the superclass, whose
loss counts `prior` times. The file has half precision.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perfusion_core.prompts import TEMPLATES
from perfusion_core.training.base_model import processor_has_bfloat16
from perfusion_fleet import inside


@dataclass(frozen=True)
class Job:
    """A fine-tuning.

    Attributes:
        comfyui: The host's folder.
        checkpoint: The checkpoint to start from.
        out: The checkpoint to write.
        pictures: The concept's pictures.
        drawn: Pictures of the superclass that the base drew; unused if `prior` is 0.
        name: What names the concept in captions.
        superclass: What names the superclass.
        side: Side of the pictures in pixels.
    """

    comfyui: str
    checkpoint: str
    out: str
    pictures: list[str]
    drawn: list[str]
    name: str
    superclass: str
    side: int
    seed: int
    steps: int
    batch: int
    learning_rate: float
    prior: float

    def run(self, python: Path, folder: Path, root: Path) -> None:
        """Run the job in a process of its own; its file is kept in `folder` until it has ended."""
        file = folder / f"{Path(self.out).stem}.json"
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        subprocess.run([python, "-m", "benchmarks.fidelity.fine_tune", file], cwd=root, check=True)
        file.unlink()


def fine_tune(job: Job) -> None:
    """Train and save."""
    import comfy.sd

    torch.manual_seed(job.seed)
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(job.checkpoint)[:3]
    latents, prior = (encoded(job, model, vae, files) for files in (job.pictures, job.drawn if job.prior else []))
    captions, others = (said(clip, name) for name in (job.name, job.superclass))
    unet = model.model.diffusion_model.float().requires_grad_()
    optimizer = torch.optim.AdamW(unet.parameters(), job.learning_rate)
    rng = random.Random(job.seed)
    for step in range(job.steps):
        for group in optimizer.param_groups:
            group["lr"] = job.learning_rate * (1 + np.cos(np.pi * step / job.steps)) / 2
        optimizer.zero_grad()
        error(job, model.model, latents, captions, rng).backward()
        if job.prior:
            (job.prior * error(job, model.model, prior, others, rng)).backward()
        optimizer.step()
    unet.requires_grad_(False).half()
    comfy.sd.save_checkpoint(job.out, model, clip, vae)


@torch.no_grad()
def encoded(job: Job, model: Any, vae: Any, files: list[str]) -> Tensor:
    """Return the latents [n, c, h, w] of pictures."""
    if not files:
        return torch.zeros(0)
    shown = [Image.open(file).convert("RGB").resize((job.side, job.side), Image.Resampling.LANCZOS) for file in files]
    pixels = torch.stack([torch.from_numpy(np.asarray(each).copy()) for each in shown]).float() / 255
    return model.model.process_latent_in(vae.encode(pixels)).float().clone()


@torch.no_grad()
def said(clip: Any, name: str) -> Tensor:
    """Return the encodings of all training prompts with this name, [prompts, N, d]."""
    found = [clip.encode_from_tokens_scheduled(clip.tokenize(template.format(name)))[0][0] for template in TEMPLATES]
    return torch.cat(found).float().clone()


def error(job: Job, base: Any, latents: Tensor, captions: Tensor, rng: random.Random) -> Tensor:
    """Return the mean squared error of the noise that is predicted for one batch."""
    among = (latents, captions, base.model_sampling.sigmas)
    clean, encodings, sigmas = (each[[rng.randrange(len(each)) for _ in range(job.batch)]] for each in among)
    wide, noise = sigmas[:, None, None, None], torch.randn(clean.shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=processor_has_bfloat16()):
        denoised = base.apply_model(clean + wide * noise, sigmas, c_crossattn=encodings)
    return ((clean - denoised) / wide).square().mean()


if __name__ == "__main__":
    given = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    inside.enter(Path(given.comfyui))
    fine_tune(given)
