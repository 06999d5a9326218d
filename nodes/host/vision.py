"""Embeddings of pictures, by the host's CLIP vision models."""

import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor


def picture_embeddings(vision: ClipVisionModel, pictures: Tensor) -> Tensor:
    """Return the embeddings [B, d] of pictures [B, h, w, 3] in 0…1, float32 on the CPU, of length 1."""
    with torch.inference_mode():
        found = vision.encode_image(pictures)["image_embeds"].float().cpu()
    return torch.nn.functional.normalize(found, dim=-1)
