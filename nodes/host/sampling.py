"""Between pictures and latents, by the host's own VAE and samplers."""

import comfy.sample
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor


def latents_of(vae: VAE, model: ModelPatcher, pixels: Tensor) -> Tensor:
    """Latents [B, c, h, w] as the model sees them, of pictures [B, H, W, 3] in 0…1."""
    encoded = vae.encode(pixels[..., :3])
    return model.model.process_latent_in(encoded.to(torch.float32))


def draw(model: ModelPatcher, clip: CLIP, vae: VAE, prompt: str, size: int, seed: int, steps: int = 20, cfg: float = 6.0) -> Tensor:
    """One picture [1, size, size, 3] in 0…1 of a prompt, by the host's sampler."""
    with torch.inference_mode():
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
        scale = vae.spacial_compression_encode()
        latent = torch.zeros(1, model.model.latent_format.latent_channels, size // scale, size // scale)
        noise = comfy.sample.prepare_noise(latent, seed)
        samples = comfy.sample.sample(
            model, noise, steps, cfg, "ddim", "normal", positive, negative, latent, disable_pbar=True, seed=seed
        )
        return vae.decode(samples).clamp(0, 1)
