"""A CLIP model of ViT-L/14's layout with seeded random weights, which loads like a real one."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

VISION, TEXT = (1024, 24, 4096), (768, 12, 3072)
"""Hidden size, number of layers and intermediate size, of the image and the text encoder."""


def write(path: Path, seed: int = 0) -> None:
    """Write the model in float16, 860 MB."""
    generator, tensors = torch.Generator().manual_seed(seed), {}

    def weight(name: str, *shape: int) -> None:
        tensors[name] = (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).half()

    def norm(name: str, width: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(width).half(), torch.zeros(width).half()

    def linear(name: str, rows: int, columns: int) -> None:
        weight(f"{name}.weight", rows, columns)
        tensors[f"{name}.bias"] = torch.zeros(rows).half()

    for tower, (width, layers, between) in (("vision_model", VISION), ("text_model", TEXT)):
        for i in range(layers):
            layer = f"{tower}.encoder.layers.{i}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                linear(f"{layer}.self_attn.{part}", width, width)
            linear(f"{layer}.mlp.fc1", between, width)
            linear(f"{layer}.mlp.fc2", width, between)
            norm(f"{layer}.layer_norm1", width)
            norm(f"{layer}.layer_norm2", width)
    for name in ("pre_layrnorm", "post_layernorm"):
        norm(f"vision_model.{name}", VISION[0])
    norm("text_model.final_layer_norm", TEXT[0])
    weight("vision_model.embeddings.class_embedding", VISION[0])
    weight("vision_model.embeddings.patch_embedding.weight", VISION[0], 3, 14, 14)
    weight("vision_model.embeddings.position_embedding.weight", 257, VISION[0])
    weight("text_model.embeddings.token_embedding.weight", 49408, TEXT[0])
    weight("text_model.embeddings.position_embedding.weight", 77, TEXT[0])
    weight("visual_projection.weight", TEXT[0], VISION[0])
    weight("text_projection.weight", TEXT[0], TEXT[0])
    named: dict[str, Tensor] = tensors
    save_file(named, path)
