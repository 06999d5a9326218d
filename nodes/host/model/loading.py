"""Models on their device, whole, and what their projections make of vectors."""

from collections.abc import Iterable, Mapping

import comfy.lora
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ....perfusion_core import PerfusionError
from .families import layers_of


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
