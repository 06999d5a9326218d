"""Loading whole models onto their device, and applying their key and value projections to vectors."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import comfy.lora
import comfy.model_management
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ....perfusion_core import PerfusionError
from .families import Family, kind_of, layers_of


def load(*patchers: ModelPatcher, room: float = 0) -> None:
    """Load whole models onto their device; the host unloads others until `room` bytes are free there as well, or none are left.

    This happens in inference mode, as when the host runs a node: weights that are moved to a device outside of it only half become
    inference tensors, and even selecting a row of them fails.
    """
    with torch.inference_mode():
        comfy.model_management.load_models_gpu(list(patchers), memory_required=room, force_full_load=True)


def unload_copies(copied: Iterable[tuple[ModelPatcher, ModelPatcher]]) -> None:
    """Unload whole copies, as `non_dynamic_model` makes them, and let go of them; pairs of a copy and what it was made of.

    Otherwise the host would keep a copy where it is for the next one who asks, without being able to unload it.
    """
    managed = comfy.model_management.current_loaded_models
    with torch.inference_mode():
        for copy, original in copied:
            for loaded in [each for each in managed if each.model is copy]:
                loaded.model_unload()
                managed.remove(loaded)
            original.non_dynamic_delegate_model = None


def check_reloadable(patcher: ModelPatcher, what: str = "model") -> None:
    """Raise PerfusionError if the host loads the model in parts and has no way to read it again."""
    if patcher.is_dynamic() and patcher.cached_patcher_init is None and patcher.non_dynamic_delegate_model is None:
        raise PerfusionError(
            f"This {what} must be reloaded in full, but the node that loaded it does not let ComfyUI do that; load it with "
            "Load Checkpoint, or start ComfyUI with --disable-dynamic-vram."
        )


def non_dynamic_model(model: ModelPatcher) -> ModelPatcher:
    """Return a MODEL that can be loaded whole, so that its module's parameters hold all its weights with LoRAs merged in.

    Raises:
        PerfusionError: the host loads the model in parts and has no way to read it again.
    """
    check_reloadable(model)
    if not model.is_dynamic():
        return model
    with torch.inference_mode():
        return model.get_non_dynamic_delegate()


def non_dynamic_clip(clip: CLIP) -> CLIP:
    """Return a CLIP that can be loaded whole; see `non_dynamic_model`."""
    check_reloadable(clip.patcher, "text encoder")
    if not clip.patcher.is_dynamic():
        return clip
    whole = clip.clone()
    whole.patcher = non_dynamic_model(clip.patcher)
    whole.cond_stage_model = whole.patcher.model
    return whole


def layer_encodings(model: ModelPatcher, encodings: Tensor, beside: Mapping[str, Any] | None = None) -> Tensor:
    """Return what a MODEL's cross-attention layers read of text encodings [..., N, ·]: [..., N, d], on the same device.

    `beside` are the further entries of the conditioning that the encodings are from; models that read ids need them.
    """
    family = kind_of(model)
    if not family.adapter:
        return encodings
    load(model)
    if family.ids:
        return adapt(model.model, family, model.load_device, encodings, beside or {}).to(encodings.device)
    return reader(model.model, family, model.load_device)(encodings)


def adapt(base: BaseModel, family: Family, device: torch.device, encodings: Tensor, beside: Mapping[str, Any]) -> Tensor:
    """Return what a model's adapter makes of text encodings [B, N, ·] and of the ids beside them: [B, n, d], on the device.

    It computes and pads as the host does before it samples. `beside` holds, as `IDS_ids` and `IDS_weights` for the family's IDS,
    int and float [n], or [B, n] if they are not the same in all prompts.
    """
    dtype = base.get_dtype_inference()
    ids, weights = (beside[f"{family.ids}_{what}"].to(device) for what in ("ids", "weights"))
    with torch.no_grad():
        plain = encodings.as_subclass(Tensor).to(device, dtype)
        rows = ids.expand(len(plain), -1), weights.expand(len(plain), -1)[..., None].to(dtype)
        return base.diffusion_model.preprocess_text_embeds(plain, *rows)


def reader(base: BaseModel, family: Family, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function that `layer_encodings` computes, for a model that is loaded on a device.

    It computes as the model itself does when it samples, in the same precision.
    """

    def read(encodings: Tensor) -> Tensor:
        plain = encodings.as_subclass(Tensor)
        if not family.adapts_tokens:
            return plain
        with torch.no_grad():
            found = family.read(base.diffusion_model, plain.to(device, base.get_dtype_inference()))
        return found.to(encodings.device)

    return read


def project(
    weights: Mapping[str, Tensor], family: Family, layers: Iterable[str], vectors: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return layer -> (W_K v, W_V v), float32 [J, m] each, without biases, for vectors [J, d] and a model's weights by name."""
    found = {}
    for layer in layers:
        # The host may keep some weights off the device that computes.
        to_k, to_v = (weights[f"{layer}.{which}.weight"].to(vectors.device).float() for which in (family.keys, family.values))
        if family.fused:
            to_k, to_v = to_k.chunk(2)[0], to_v.chunk(2)[1]
        found[layer] = vectors.float() @ to_k.T, vectors.float() @ to_v.T
    return found


def projections(model: ModelPatcher, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the result of `project` with a MODEL's own weights, LoRAs included, on the CPU."""
    whole = non_dynamic_model(model)
    try:
        load(whole)
        with torch.no_grad():
            weights = dict(whole.model.diffusion_model.named_parameters())
            found = project(weights, kind_of(whole), layers_of(whole), vectors.to(whole.load_device))
    finally:
        unload_copies([(whole, model)] if whole is not model else [])
    return {layer: (k.cpu(), v.cpu()) for layer, (k, v) in found.items()}


def lora_names(model: ModelPatcher) -> dict[str, str]:
    """Return `LAYER.to_k` and `LAYER.to_v`, of all of a MODEL's layers -> the name of that projection's weight in LoRA files.

    Of the several names that the host accepts for a weight, this is the last, which other programs use as well.
    """
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    names = {weight: name for name, weight in known.items() if name.startswith("lora_unet_") and isinstance(weight, str)}
    family = kind_of(model)
    return {
        f"{layer}.{which}": names[f"diffusion_model.{layer}.{own}.weight"]
        for layer in layers_of(model)
        for which, own in (("to_k", family.keys), ("to_v", family.values))
    }
