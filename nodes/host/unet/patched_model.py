"""Clones of a MODEL whose cross-attention projections are edited only while it runs."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ....perfusion_core import PerfusionError
from ....perfusion_core.concept import Concept
from ....perfusion_core.prompts import word_key
from ....perfusion_core.stack import Stack, combine, with_outputs
from ..model.families import family_of, kind_of, layers_of, width_of
from .attention_recorder import Recorder, SamplingRun
from .layout_injection import Layout
from .perfusion_state import KEY, PerfusionState
from .sampling_run import prepare_conds
from .unet_call import ask_wrappers, run_edited


def check_fit(concept: Concept, model: ModelPatcher) -> None:
    """Raise PerfusionError unless the concept was trained on a model of the same family and shape."""
    family, layers = family_of(model), layers_of(model)
    if concept.family != family:
        theirs = f"{article(concept.family)} {concept.family}"
        raise PerfusionError(f"{concept.trigger} was trained on {theirs} model, but this one is {family}; use {theirs} checkpoint.")
    if (concept.values and concept.layers != layers) or len(concept.target_input) != width_of(model):
        raise PerfusionError(
            f"{concept.trigger} was trained on {article(family)} {family} model of a different shape "
            f"({shape_of(concept.layers, len(concept.target_input))}); this one has {shape_of(layers, width_of(model))}."
        )


def article(family: str) -> str:
    """Return a or an, as a family's name is spoken: an sd1 model, a wan model."""
    return "an" if family[:1] in "aefhilmnorsx" else "a"


def shape_of(layers: Mapping[str, int], width: int) -> str:
    """Return a description of a model's shape for error messages."""
    if not layers:
        return f"layers that read encodings of width {width}"
    widths = sorted(set(layers.values()))
    told = f"width{'s' if len(widths) > 1 else ''} {', '.join(map(str, widths))}"
    return f"{len(layers)} cross-attention layers of {told}, which read encodings of width {width}"


def get_perfusion_state(model: ModelPatcher) -> PerfusionState:
    """Return the Perfusion state that a MODEL carries; an empty one if it carries none."""
    return model.model_options.get("transformer_options", {}).get(KEY) or PerfusionState()


def model_with(model: ModelPatcher, applied: PerfusionState) -> ModelPatcher:
    """Return a clone of a MODEL that carries `applied` instead of its previous state."""
    to_sigma, family = model.get_model_object("model_sampling").percent_to_sigma, kind_of(model)
    applied = replace(applied, family=family, layers=tuple(layers_of(model)), to_sigma=to_sigma, made={})
    regional = any(concept.region is not None for concept in applied.stack)
    if not family.controlled and (regional or applied.recorder is not None or applied.layout is not None):
        raise PerfusionError(
            f"Regions and attention maps work only with Stable Diffusion 1, 2 and XL, but this model is {family.name}; remove the "
            "regions from its concepts, and leave out Watch Attention and Keep Layout."
        )
    # Detects concepts that do not fit together now, not in the middle of a graph.
    applied.edits(torch.device("cpu"))
    cloned = model.clone()
    cloned.model_options["transformer_options"] = cloned.model_options.get("transformer_options", {}) | {KEY: applied}
    wrappers = {WrappersMP.DIFFUSION_MODEL: run_edited, WrappersMP.SAMPLER_SAMPLE: prepare_conds}
    if not family.asks_wrappers:
        wrappers[WrappersMP.APPLY_MODEL] = ask_wrappers
    for where, wrapper in wrappers.items():
        cloned.remove_wrappers_with_key(where, KEY)
        cloned.add_wrapper_with_key(where, KEY, wrapper)
    return cloned


def model_with_edit(model: ModelPatcher, stack: Stack, mode: str) -> ModelPatcher:
    """Return a clone of a MODEL with the concepts applied in addition to those that it already carries.

    Concepts that are only a word edit no layer and concern only the CLIP; if there are no others, the MODEL itself is returned.

    Raises:
        PerfusionError: a concept does not fit the model, two concepts have the same trigger word, or the model carries concepts in
            another edit mode.
    """
    for concept in stack:
        check_fit(concept, model)
    stack = with_outputs(stack)
    if not stack:
        return model
    check_mode(model, mode)
    before = get_perfusion_state(model)
    return model_with(model, replace(before, stack=combine(before.stack, stack), mode=mode))


def stack_of(model: ModelPatcher) -> Stack:
    """Return the concepts that a MODEL carries."""
    return get_perfusion_state(model).stack


def check_mode(model: ModelPatcher, mode: str) -> None:
    """Raise PerfusionError if a MODEL carries concepts in another edit mode."""
    before = get_perfusion_state(model)
    if before.stack and before.mode != mode:
        raise PerfusionError(
            f"This model already has concepts in the edit mode {before.mode!r}; apply further ones in the same mode."
        )


def model_watched(model: ModelPatcher, recorder: Recorder) -> ModelPatcher:
    """Return a clone of a MODEL whose sampling runs are recorded."""
    return model_with(model, replace(get_perfusion_state(model), recorder=recorder))


def model_with_layout(model: ModelPatcher, run: SamplingRun, start: float, end: float) -> ModelPatcher:
    """Return a clone of a MODEL that keeps another image's layout; its own runs are not recorded.

    `start` and `end` (0 to 1) delimit the part of the way from noise to image in which the layout is kept.
    """
    sampling = model.get_model_object("model_sampling")
    span = (float(sampling.percent_to_sigma(share)) for share in (start, end))
    return model_with(model, replace(get_perfusion_state(model), layout=Layout(run, *span), recorder=None))


def model_with_settings(model: ModelPatcher, trigger: str, **settings: float) -> ModelPatcher:
    """Return a clone of a MODEL with changed settings for the concept of this trigger word or, if it is empty, for all concepts.

    Everything else that the model carries is kept, in the same order. A concept of strength 0 is dropped, just as it would not be
    applied in the first place; the text encoder still knows its word.

    Raises:
        PerfusionError: the model carries no concepts, or none with this trigger word.
    """
    before = get_perfusion_state(model)
    if not before.stack:
        raise PerfusionError("This model has no concepts; connect the model from Apply Concept.")
    known = [word_key(concept.trigger) for concept in before.stack]
    if trigger and word_key(trigger) not in known:
        raise PerfusionError(f"This model has no concept {trigger[:80]!r}; it has {', '.join(c.trigger for c in before.stack)}.")
    chosen = [not trigger or each == word_key(trigger) for each in known]
    changed = (c.with_settings(**settings) if chose else c for c, chose in zip(before.stack, chosen, strict=True))
    return model_with(model, replace(before, stack=tuple(concept for concept in changed if concept.strength > 0)))
