"""Digests that identify the text encoders and the model weights that a graph uses."""

import hashlib
from collections.abc import Iterator

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from .families import clip_model, encoders_of


def identity_of(clip: CLIP) -> str:
    """Return a digest of a CLIP's text encoders.

    It covers the output layer that is set, the layer norms and part of the vocabulary; every fine-tune changes the latter two.
    """
    digest = hashlib.sha256(str(clip.layer_idx).encode())
    for name in sorted(encoders_of(clip)):
        transformer = clip_model(clip, name).transformer
        norms = [(k, v) for k, v in sorted(transformer.state_dict().items()) if "norm" in k]
        vocabulary = transformer.get_input_embeddings().weight[::97]
        for key, tensor in [*norms, ("vocabulary", vocabulary)]:
            digest.update(key.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def identity_of_weights(model: ModelPatcher, vae: VAE) -> str:
    """Return a digest of a MODEL's and a VAE's weights, and of the MODEL's LoRAs and other patches.

    It samples the UNet's one-dimensional parameters (norms and biases), which every fine-tune changes, and all of the VAE's.
    """
    digest = hashlib.sha256()
    # Patched weights are changed in place while the model is loaded, so they are skipped here: the other weights identify the
    # model, and the patches themselves are added below.
    own = {f"diffusion_model.{name}": weight for name, weight in model.model.diffusion_model.named_parameters()}
    coder = {f"vae.{name}": weight for name, weight in vae.first_stage_model.named_parameters()}
    for name, weight in sorted((own | coder).items()):
        if name not in model.patches and (weight.ndim == 1 or name.startswith("vae.")):
            digest.update(name.encode() + thinned(weight))
    for name, patches in sorted(model.patches.items()):
        for strength, patch, of_model, *_ in patches:
            digest.update(f"{name} {strength} {of_model}".encode())
            for tensor in tensors_in(patch):
                digest.update(thinned(tensor))
    return digest.hexdigest()[:32]


def thinned(tensor: Tensor) -> bytes:
    """Return a sample of at most a few hundred of a tensor's elements, as bytes."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes()


def tensors_in(patch: object) -> Iterator[Tensor]:
    """Yield the tensors of one of the host's weight patches, which are nested in lists and in the `weights` of adapters."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, (list, tuple)):
        for part in patch:
            yield from tensors_in(part)
    else:
        yield from tensors_in(getattr(patch, "weights", ()))
