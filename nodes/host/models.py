"""What a MODEL and a CLIP of the host are, to Perfusion."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import comfy.lora
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import Tensor, nn

from ...perfusion_core import PerfusionError


@dataclass(frozen=True)
class Family:
    """A base family: its name, and the text encoder, if any, whose pooled output its UNet reads beside the encoding."""

    name: str
    pooled: str = ""


FAMILIES = {768: Family("sd1"), 1024: Family("sd2"), 2048: Family("sdxl", "clip_g")}
"""Width of the encoding that cross-attention reads -> base family. What a family is, is said here and nowhere else."""


def layers_of(model: ModelPatcher) -> dict[str, int]:
    """Cross-attention layers of a MODEL and the width m of their projections, in the order that the model runs them.

    Raises:
        PerfusionError: the model has none, as models without a UNet of Stable Diffusion's kind.
    """
    unet = model.model.diffusion_model
    found = {
        name: module.to_v.out_features
        for name, module in unet.named_modules()
        if name.endswith(".attn2") and hasattr(module, "to_k") and module.to_k.in_features == width_of(model)
    }
    if not found:
        raise PerfusionError("Perfusion needs a Stable Diffusion 1, 2 or XL model; this model has no cross-attention of that kind.")
    return found


def width_of(model: ModelPatcher) -> int:
    """Width d of the encodings that a MODEL's cross-attention reads; 0 where it has none."""
    width = model.model.model_config.unet_config.get("context_dim") or 0
    return width if isinstance(width, int) else 0


def kind_of(model: ModelPatcher) -> Family:
    """Base family of a MODEL; raises PerfusionError where it is none that Perfusion knows."""
    family = FAMILIES.get(width_of(model))
    if family is None:
        raise PerfusionError("Perfusion needs a Stable Diffusion 1, 2 or XL model; this is another kind.")
    return family


def family_of(model: ModelPatcher) -> str:
    """Its name; raises PerfusionError likewise."""
    return kind_of(model).name


def encoders_of(clip: CLIP) -> dict[str, SDTokenizer]:
    """A CLIP's text encoders by name, and their tokenizers.

    Raises:
        PerfusionError: it has none of CLIP's kind.
    """
    found = {k: v for k, v in vars(clip.tokenizer).items() if isinstance(v, SDTokenizer)}
    if not found or any(not isinstance(clip_model(clip, name), SDClipModel) for name in found):
        raise PerfusionError("Perfusion needs the text encoder of a Stable Diffusion checkpoint; this CLIP is of another kind.")
    return found


def clip_model(clip: CLIP, name: str) -> nn.Module | None:
    """The text encoder of that name in a CLIP."""
    return getattr(clip.cond_stage_model, name, None)


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


def load(*patchers: ModelPatcher) -> None:
    """Have models on their device, whole.

    In inference mode, as when the host runs a node: weights that move to a device outside of it become inference tensors by half,
    of which not even a row can be taken.
    """
    with torch.inference_mode():
        comfy.model_management.load_models_gpu(list(patchers), force_full_load=True)


def undivided(model: ModelPatcher) -> ModelPatcher:
    """A MODEL that can be loaded whole: with all its weights, LoRAs in them, where its module's parameters are.

    Raises:
        PerfusionError: the host moves it in parts, and cannot read it again.
    """
    if not model.is_dynamic():
        return model
    if model.cached_patcher_init is None and model.non_dynamic_delegate_model is None:
        raise PerfusionError(
            "This model was loaded by a node that leaves ComfyUI no way to read it again as a whole, which is needed here; load it "
            "with Load Checkpoint, or start ComfyUI with --disable-dynamic-vram."
        )
    with torch.inference_mode():
        return model.get_non_dynamic_delegate()


def undivided_clip(clip: CLIP) -> CLIP:
    """The same of a CLIP."""
    if not clip.patcher.is_dynamic():
        return clip
    whole = clip.clone()
    whole.patcher = undivided(clip.patcher)
    whole.cond_stage_model = whole.patcher.model
    return whole


def project(weights: Mapping[str, Tensor], layers: Iterable[str], vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> (W_K v, W_V v), float32 [J, m] each, of vectors [J, d] and a UNet's weights by name."""
    found = {}
    for layer in layers:
        to_k, to_v = (weights[f"{layer}.{which}.weight"].float() for which in ("to_k", "to_v"))
        found[layer] = vectors.float() @ to_k.T, vectors.float() @ to_v.T
    return found


def projections(model: ModelPatcher, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """`project` by a MODEL's own weights, its LoRAs among them; on the CPU."""
    model = undivided(model)
    load(model)
    with torch.no_grad():
        weights = dict(model.model.diffusion_model.named_parameters())
        found = project(weights, layers_of(model), vectors.to(model.load_device))
    return {layer: (k.cpu(), v.cpu()) for layer, (k, v) in found.items()}


def lora_names(model: ModelPatcher) -> dict[str, str]:
    """A MODEL's weight, as `layers_of` names its layers -> what a LoRA file calls it.

    Of the names that the host reads the last is the one that other programs share with it.
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    return {
        weight.removeprefix("diffusion_model.").removesuffix(".weight"): name
        for name, weight in known.items()
        if name.startswith("lora_unet_") and isinstance(weight, str)
    }


Interrupted = comfy.model_management.InterruptProcessingException
"""What the host raises where the user has asked to stop."""


def memory_ran_out(error: RuntimeError) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|can't allocate memory", str(error)))


def free_unused() -> None:
    """Give memory back that torch holds for later."""
    comfy.model_management.soft_empty_cache()


def check_interrupt() -> None:
    """Raise the host's own exception where the user has asked to stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()
