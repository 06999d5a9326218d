"""Loading whole models onto their device, and applying their key and value projections to vectors."""

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
    """Load whole models onto their device.

    This happens in inference mode, as when the host runs a node: weights that are moved to a device outside of it only half become
    inference tensors, and even selecting a row of them fails.
    """
    with torch.inference_mode():
        comfy.model_management.load_models_gpu(list(patchers), force_full_load=True)


def non_dynamic_model(model: ModelPatcher) -> ModelPatcher:
    """Return a MODEL that can be loaded whole, so that its module's parameters hold all its weights with LoRAs merged in.

    Raises:
        PerfusionError: the host loads the model in parts and has no way to read it again.
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


def non_dynamic_clip(clip: CLIP) -> CLIP:
    """Return a CLIP that can be loaded whole; see `non_dynamic_model`."""
    if not clip.patcher.is_dynamic():
        return clip
    whole = clip.clone()
    whole.patcher = non_dynamic_model(clip.patcher)
    whole.cond_stage_model = whole.patcher.model
    return whole


def project(weights: Mapping[str, Tensor], layers: Iterable[str], vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return layer -> (W_K v, W_V v), float32 [J, m] each, for vectors [J, d] and a UNet's weights by name."""
    found = {}
    for layer in layers:
        to_k, to_v = (weights[f"{layer}.{which}.weight"].float() for which in ("to_k", "to_v"))
        found[layer] = vectors.float() @ to_k.T, vectors.float() @ to_v.T
    return found


def projections(model: ModelPatcher, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the result of `project` with a MODEL's own weights, LoRAs included, on the CPU."""
    model = non_dynamic_model(model)
    load(model)
    with torch.no_grad():
        weights = dict(model.model.diffusion_model.named_parameters())
        found = project(weights, layers_of(model), vectors.to(model.load_device))
    return {layer: (k.cpu(), v.cpu()) for layer, (k, v) in found.items()}


def lora_names(model: ModelPatcher) -> dict[str, str]:
    """Return the name of each of a MODEL's weights, with layers named as in `layers_of` -> its name in LoRA files.

    Of the several names that the host accepts for a weight, this is the last, which other programs use as well.
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    return {
        weight.removeprefix("diffusion_model.").removesuffix(".weight"): name
        for name, weight in known.items()
        if name.startswith("lora_unet_") and isinstance(weight, str)
    }
