"""Which text encoder and which weights a graph has: digests that tell them from others."""

import hashlib
from collections.abc import Iterator

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from .families import clip_model, encoders_of


def identity_of(clip: CLIP) -> str:
    """A digest of a CLIP's text encoders: of its layer norms and some of its vocabulary, which every fine-tune moves."""
    digest = hashlib.sha256(str(clip.layer_idx).encode())
    for name in sorted(encoders_of(clip)):
        transformer = clip_model(clip, name).transformer
        norms = [(k, v) for k, v in sorted(transformer.state_dict().items()) if "norm" in k]
        vocabulary = transformer.get_input_embeddings().weight[::97]
        for key, tensor in [*norms, ("vocabulary", vocabulary)]:
            digest.update(key.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def identity_of_weights(model: ModelPatcher, vae: VAE) -> str:
    """A digest of a MODEL's and a VAE's weights: of their norms, which every fine-tune moves, and of LoRAs and other patches."""
    digest = hashlib.sha256()
    # What a patch changes is changed in place while it is loaded: the rest says which model it is, and the patches what they do.
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
    """A few hundred of a tensor's elements."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // 256)].float().cpu().numpy().tobytes()


def tensors_in(patch: object) -> Iterator[Tensor]:
    """The tensors of one of the host's weight patches: they lie in lists, and in adapters' `weights`."""
    if isinstance(patch, Tensor):
        yield patch
    elif isinstance(patch, (list, tuple)):
        for part in patch:
            yield from tensors_in(part)
    else:
        yield from tensors_in(getattr(patch, "weights", ()))
