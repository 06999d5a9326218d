"""A MODEL whose cross-attention projections are edited while it runs, and only then."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.conds import CONDCrossAttn
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy.samplers import CFGGuider
from torch import Tensor, nn

from ...perfusion_core import PerfusionError
from ...perfusion_core.concept import Concept, Stack, combine, edit_of, with_outputs
from ...perfusion_core.edit import EXACT, Coefficients, Edit, Project
from .models import family_of, layers_of, width_of

KEY = "perfusion"
NAMED = "perfusion_named"

log = logging.getLogger("perfusion")


@dataclass
class Applied:
    """What a MODEL carries: concepts with outputs and their edit, on every device that it has been asked for on."""

    stack: Stack
    mode: str
    edits: dict[torch.device, Edit] = field(default_factory=dict)

    def edit(self, device: torch.device) -> Edit:
        """The edit on a device."""
        if device not in self.edits:
            self.edits[device] = edit_of(self.stack, self.mode).to(device)
        return self.edits[device]


@contextlib.contextmanager
def edited(unet: nn.Module, edit: Edit, encoding: Tensor, by: Coefficients, named: Tensor | None) -> Iterator[None]:
    """While it is open, the UNet's cross-attention projections give the edited keys and values.

    The edit adds to whatever the host's own Linear gives, so weight patches, offloading and quantised weights keep working,
    and attention patches that call to_k and to_v themselves meet it as well.
    """

    def coefficients(x: Tensor) -> Coefficients:
        if x is encoding:
            return by
        # An attention patch has put other tokens here: those that it appended were reached by no trigger word.
        if named is None or x.shape[0] != named.shape[0]:
            return edit.coefficients(x)
        missing = x.shape[1] - named.shape[1]
        return edit.coefficients(x, nn.functional.pad(named, (0, 0, 0, max(missing, 0)))[:, : x.shape[1]])

    def hook(layer: str, correction: Callable[[str, Coefficients, Project], Tensor]) -> Callable:
        def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            x = args[0]
            corrected = correction(layer, coefficients(x), lambda vectors: module.forward(vectors.to(x.device, x.dtype)))
            return output + corrected.to(output.dtype)

        return add

    handles = []
    try:
        for layer in edit.values:
            attention = unet.get_submodule(layer)
            handles.append(attention.to_k.register_forward_hook(hook(layer, edit.key_correction)))
            handles.append(attention.to_v.register_forward_hook(hook(layer, edit.value_correction)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_edited(
    executor: WrapperExecutor,
    x: Tensor,
    timesteps: Tensor | None = None,
    context: Tensor | None = None,
    y: Tensor | None = None,
    control: dict | None = None,
    transformer_options: dict | None = None,
    **kwargs: Any,
) -> Tensor:
    """Wraps a UNet's forward: with the edit that its options carry."""
    transformer_options = transformer_options if transformer_options is not None else {}
    named = kwargs.pop(NAMED, None)
    edit = transformer_options[KEY].edit(context.device)
    by = edit.coefficients(context, named)
    # Where no gate is open nothing is wrapped at all: such a prompt is the base model's to the last bit.
    around = edited(executor.class_obj, edit, context, by, named) if by.any() else contextlib.nullcontext()
    with around:
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def prepare_conds(
    executor: WrapperExecutor, guider: CFGGuider, sigmas: Tensor, extra_args: dict, *args: Any, **kwargs: Any
) -> Tensor:
    """Wraps a sampling run: hands what the encodings know of trigger words to the model, beside them."""
    applied: Applied = extra_args["model_options"]["transformer_options"][KEY]
    triggers = [concept.trigger for concept in applied.stack]
    said: set[str] = set()
    for kind, conds in guider.conds.items():
        prepared = []
        for cond in conds or ():
            cross = cond.get("model_conds", {}).get("c_crossattn")
            if cross is not None:
                known = getattr(cross.cond, "named", {})
                said |= set(known)
                encoding = cross.cond.as_subclass(Tensor)
                blank = torch.zeros(*encoding.shape[:2], 1, device=encoding.device)
                named = torch.cat([known[t].to(encoding.device) if t in known else blank for t in triggers], dim=2)
                mine = {"c_crossattn": CONDCrossAttn(encoding)}
                if applied.mode == EXACT:
                    mine[NAMED] = CONDCrossAttn((named != 0).float())
                cond = cond | {"model_conds": cond["model_conds"] | mine}
            prepared.append(cond)
        guider.conds[kind] = prepared
    for trigger in triggers:
        if trigger not in said:
            log.warning(
                "The concept %s is applied, but no prompt names it: write %s in a prompt whose CLIP comes from Perfusion Apply.",
                trigger,
                trigger,
            )
    return executor(guider, sigmas, extra_args, *args, **kwargs)


def check_fit(concept: Concept, model: ModelPatcher) -> None:
    """Raise PerfusionError unless the concept was taught to a model of this one's family and shape."""
    family, layers = family_of(model), layers_of(model)
    if concept.family != family:
        raise PerfusionError(
            f"{concept.trigger} was taught to a {concept.family} model and this one is {family}; use a {concept.family} checkpoint."
        )
    outputs = {layer: len(o) for layer, o in concept.values.items()}
    if (outputs and outputs != layers) or len(concept.target_input) != width_of(model):
        raise PerfusionError(
            f"{concept.trigger} was taught to a {family} model of another shape, with {len(concept.values)} cross-attention "
            f"layers; this one has {len(layers)}."
        )


def model_with_edit(model: ModelPatcher, stack: Stack, mode: str) -> ModelPatcher:
    """A clone of a MODEL that the concepts are applied to, beside those that it carries already.

    Words alone edit nothing: they are the CLIP's, and where there is nothing else the MODEL itself is given back.

    Raises:
        PerfusionError: a concept does not fit the model, two have one trigger word, or the model carries another edit mode.
    """
    for concept in stack:
        check_fit(concept, model)
    stack = with_outputs(stack)
    if not stack:
        return model
    carried: Applied | None = model.model_options.get("transformer_options", {}).get(KEY)
    if carried is not None and carried.mode != mode:
        raise PerfusionError(f"This model carries concepts in the edit mode {carried.mode!r}; apply further ones in the same mode.")
    applied = Applied(combine(carried.stack if carried else (), stack), mode)
    applied.edit(torch.device("cpu"))
    cloned = model.clone()
    cloned.model_options["transformer_options"] = cloned.model_options.get("transformer_options", {}) | {KEY: applied}
    for where, wrapper in ((WrappersMP.DIFFUSION_MODEL, run_edited), (WrappersMP.SAMPLER_SAMPLE, prepare_conds)):
        cloned.remove_wrappers_with_key(where, KEY)
        cloned.add_wrapper_with_key(where, KEY, wrapper)
    return cloned
