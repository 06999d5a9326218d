"""Images and latents, by means of the host's own VAE and samplers."""

from collections.abc import Callable, Sequence
from typing import Any

import comfy.sample
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSampler
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...perfusion_core import PerfusionError
from .execution import check_interrupt
from .text.encoding import conditionings


def samplers() -> tuple[list[str], list[str]]:
    """Return the names of the host's samplers and of its schedulers, including those added by other node packs."""
    return KSampler.SAMPLERS, KSampler.SCHEDULERS


Preview = tuple[str, Any, int]
"""A format, a PIL image and its largest side, as the host's progress bar takes them."""


def latents_of(vae: VAE, model: ModelPatcher, pixels: Tensor) -> Tensor:
    """Encode images [B, H, W, 3] in 0…1 as latents [B, c, h, w] in the model's own scaling, [B, c, 1, h, w] for one of videos.

    Raises:
        PerfusionError: there is no VAE, or its latents are not numbers.
    """
    check_vae(vae)
    pixels = pixels[..., :3]
    # A video's VAE takes several pictures for the frames of one video.
    video = getattr(vae, "latent_dim", 2) == 3
    encoded = torch.cat([vae.encode(each[None]) for each in pixels]) if video else vae.encode(pixels)
    if not encoded.isfinite().all():
        raise PerfusionError(
            "The VAE returned NaN or infinity, as some do in half precision; start ComfyUI with --fp32-vae, or load another VAE "
            "with Load VAE."
        )
    return model.model.process_latent_in(encoded.to(torch.float32))


def decoded(vae: VAE, latents: Tensor) -> Tensor:
    """Return the pictures of latents, [B, H, W, 3] in 0…1; of videos the first frame."""
    pictures = vae.decode(latents)
    return pictures[:, 0] if pictures.ndim == 5 else pictures


def check_vae(vae: VAE | None) -> None:
    """Raise PerfusionError if there is no VAE; loaders give none, or an empty one, for a file that holds none."""
    if vae is None or vae.first_stage_model is None:
        raise PerfusionError("No VAE: the checkpoint does not contain one; load one with Load VAE.")


def pixels_per_latent(model: ModelPatcher) -> int:
    """Return how many pixels a side one latent of a MODEL covers."""
    return int(model.model.latent_format.spacial_downscale_ratio)


def empty_latents(model: ModelPatcher, count: int, height: int, width: int) -> Tensor:
    """Return empty latents of a MODEL's kind, [count, c, height, width], or [count, c, 1, height, width] for one of videos."""
    form = model.model.latent_format
    frames = (1,) if getattr(form, "latent_dimensions", 2) == 3 else ()
    return torch.zeros(count, form.latent_channels, *frames, height, width)


def draw(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    prompt: str,
    size: int,
    seed: int,
    negative: str = "",
    steps: int = 20,
    cfg: float = 6.0,
    sampler: str = "ddim",
    scheduler: str = "normal",
) -> Tensor:
    """Return one image [1, size, size, 3] in 0…1 for a prompt, drawn by the host's sampler."""
    with torch.inference_mode():
        encoded = conditionings(clip, (prompt, negative))
        scale = vae.spacial_compression_encode()
        latent = empty_latents(model, 1, size // scale, size // scale)
        noise = comfy.sample.prepare_noise(latent, seed)
        samples = comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, *encoded, latent, disable_pbar=True, seed=seed)
        return decoded(vae, samples).clamp(0, 1)


PREDICTION_DENOISE = 0.9
"""The `denoise` value at which a model is asked for its prediction; 1 is pure noise."""


def predict_from_noise(model: ModelPatcher, prompts: Sequence[list], size: int, count: int, seed: int) -> Tensor:
    """Return a model's one-step predictions from noise for K conditionings, [K, count, c, …, h, w]; all use the same noise."""
    found = []
    with torch.inference_mode():
        scale = model.model.latent_format.spacial_downscale_ratio
        latent = empty_latents(model, count, size // scale, size // scale)
        noise = comfy.sample.prepare_noise(latent, seed)
        for positive in prompts:
            check_interrupt()
            found.append(
                comfy.sample.sample(
                    model,
                    noise,
                    1,
                    1.0,
                    "euler",
                    "normal",
                    positive,
                    [],
                    latent,
                    denoise=PREDICTION_DENOISE,
                    disable_pbar=True,
                    seed=seed,
                )
            )
    return torch.stack(found)


def sample(
    model: ModelPatcher,
    positive: list,
    negative: list,
    latent_image: dict[str, Any],
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    denoise: float,
    after_step: Callable[[int, Preview | None], None],
) -> Tensor:
    """Return the latents [1, c, h, w] that the host's KSampler would produce for the first entry of a LATENT.

    `after_step` is called after each step with its number, counted from 1, and a preview, or None if the host makes none.
    """
    image = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"][:1], latent_image.get("downscale_ratio_spacial"))
    drawn = latent_image["batch_index"][:1] if "batch_index" in latent_image else None
    noise = comfy.sample.prepare_noise(image, seed, drawn)
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        after_step(step + 1, previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None)

    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        image,
        denoise=denoise,
        # Given several masks, the host itself uses the first for a batch of one.
        noise_mask=latent_image.get("noise_mask"),
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
