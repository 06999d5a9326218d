"""Digests that identify what a graph computes with: weights with their patches, the text encoders' layer, the objective."""

import hashlib
from collections.abc import Iterator

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor, nn

from .families import FAMILIES, encoders_of, kind_of

SAMPLES, SAMPLE = 4, 64
"""Number of a tensor's samples that a digest covers, and their length in elements."""


def identity_of(clip: CLIP, model: ModelPatcher | None = None) -> str:
    """Return a digest of a CLIP's text encoders, their LoRAs and other patches, and the output layer that is set.

    If the layers of `model` read encodings through an adapter, the digest covers that as well.
    """
    digest = hashlib.sha256(f"{clip.layer_idx} {sorted(encoders_of(clip))}".encode())
    _add_weights(digest, clip.patcher)
    adapter = kind_of(model).adapter if model is not None else ""
    if adapter:
        _add_weights(digest, model, f"diffusion_model.{adapter}.")
    return digest.hexdigest()[:32]


def identity_of_weights(model: ModelPatcher, vae: VAE) -> str:
    """Return a digest of a MODEL's and a VAE's weights, the MODEL's LoRAs and other patches, and its objective."""
    digest = hashlib.sha256()
    _add_weights(digest, model)
    for name, weight in sorted(vae.first_stage_model.named_parameters(), key=lambda pair: pair[0]):
        digest.update(f"vae.{name}".encode() + sampled(weight))
    sampling = model.get_model_object("model_sampling")
    digest.update(" ".join(each.__name__ for each in type(sampling).__mro__).encode() + sampled(sampling.sigmas))
    return digest.hexdigest()[:32]


def _add_weights(digest: "hashlib._Hash", patcher: ModelPatcher, prefix: str = "") -> None:
    """Add the weights of a patcher whose names begin with `prefix`, as they are without its patches, and the patches."""
    for name, weight in sorted(unpatched(patcher), key=lambda pair: pair[0]):
        if name.startswith(prefix):
            digest.update(name.encode() + sampled(weight))
    for name, patches in sorted(patcher.patches.items()):
        if not name.startswith(prefix):
            continue
        for strength, patch, of_model, *_ in patches:
            digest.update(f"{name} {strength} {of_model}".encode())
            for tensor in tensors_in(patch):
                digest.update(sampled(tensor))


def unpatched(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """Yield a patcher's weights by name, as they are without patches.

    While a model or another one that shares its module is loaded, patched weights are changed in place; the host keeps the
    original ones.
    """
    module: nn.Module = patcher.model
    pooled = {family.pooled for family in FAMILIES}
    for name, weight in module.named_parameters():
        # Checkpoints lack the projection of a pooled output that no UNet reads: the host leaves in it what was in memory.
        if ".text_projection." in name and name.split(".")[0] not in pooled:
            continue
        kept = patcher.backup.get(name)
        yield name, weight if kept is None else kept.weight


def sampled(tensor: Tensor) -> bytes:
    """Return samples of a tensor's elements, spread evenly over it, as bytes; whole samples touch few pages of a mapped file."""
    # Quantized weights hold their numbers in a plain tensor.
    flat = getattr(tensor, "_qdata", tensor).detach().as_subclass(Tensor).flatten()
    starts = {round(i * max(0, len(flat) - SAMPLE) / (SAMPLES - 1)) for i in range(SAMPLES)}
    parts = torch.cat([flat[start : start + SAMPLE] for start in sorted(starts)])
    return (parts.float() if parts.is_floating_point() else parts).cpu().numpy().tobytes()


def tensors_in(patch: object) -> Iterator[Tensor]:
    """Yield the tensors of one of the host's weight patches, which are nested in lists and in the `weights` of adapters."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, (list, tuple)):
        for part in patch:
            yield from tensors_in(part)
    else:
        yield from tensors_in(getattr(patch, "weights", ()))
