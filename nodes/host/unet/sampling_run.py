"""One run of a sampler with concepts: the notes of its prompts are passed to the model along with the encodings."""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import torch
from comfy.conds import CONDCrossAttn, CONDNoiseShape, CONDRegular
from comfy.patcher_extension import WrapperExecutor
from comfy.samplers import CFGGuider
from torch import Tensor, nn

from ....perfusion_core.gated_edit import EXACT
from ..model.loading import reader
from ..text.annotated_encoding import KEYS, REGIONAL
from ..text.encoding_notes import notes_of, token_words
from ..text.picture_window import WHOLE, Window, cut, window_of
from ..text.prompt_ids import sampled_context
from ..text.regional_prompts import OUTSIDE
from .attention_recorder import PromptRecord
from .named_tokens import decided_by_numbers, influenced_tokens, own_tokens
from .perfusion_state import KEY, PerfusionState, RunReport

log = logging.getLogger("perfusion")
Read = Callable[[Tensor], Tensor]
"""Returns what a model's layers read for an encoding, on the same device."""
STRETCHED = 0.05
"""Logarithm of the ratio of two aspect ratios from which a region counts as stretched; latents are rounded to 8 pixels."""


def prepare_conds(
    executor: WrapperExecutor,
    guider: CFGGuider,
    sigmas: Tensor,
    extra_args: dict,
    callback: Callable | None,
    noise: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Wrap a sampling run: pass the notes of encodings to the model along with them, and warn of what did not act."""
    options = extra_args["model_options"]["transformer_options"]
    # Hooks may change weights between steps.
    hooked = any(cond.get("hooks") is not None for conds in guider.conds.values() for cond in conds or ())
    # Patches of the noise levels may have been applied to the model after the concepts.
    to_sigma = guider.inner_model.model_sampling.percent_to_sigma
    applied: PerfusionState = replace(options[KEY], to_sigma=to_sigma, kept=None if hooked else {}, report=RunReport())
    size, prompts = tuple(noise.shape[-2:]), {}
    window = window_of(cond for conds in guider.conds.values() for cond in conds or ())
    # Inspect Gates runs one step on latents that are not those of an image.
    for line in () if applied.comparer is not None else stretched_regions(applied, size, window):
        log.warning("%s", line)
    named: set[str] = set()
    positives: set[UUID] = set()
    read = reader(guider.inner_model, applied.family, noise.device)
    for kind, conds in guider.conds.items():
        prepared = []
        for cond in conds or ():
            cross = cond.get("model_conds", {}).get("c_crossattn")
            # Outside of inference mode the host adapts with ids in the model itself; then numbers tell, in its call.
            if cross is not None and f"{applied.family.ids}_ids" not in cond["model_conds"]:
                encoding = sampled_context(guider.inner_model, applied.family, cross.cond, cond, applied.triggers)
                named |= named_by(encoding, applied, read)
                if kind == "positive":
                    # An id of its own: the host copies prompts of areas, with their ids, to the other kinds.
                    cond = cond | {"uuid": uuid4()}
                    positives.add(cond["uuid"])
                    if applied.recorder is not None:
                        prompts[cond["uuid"]] = new_prompt_record(encoding, applied, read)
                more = build_model_conds(encoding, applied, size, window, read)
                # Of the host's own kind, which differs between models.
                more["c_crossattn"] = type(cross)(encoding.as_subclass(Tensor))
                cond = cond | {"model_conds": cond["model_conds"] | more}
            prepared.append(cond)
        guider.conds[kind] = prepared
    add_neutral_encodings([cond["model_conds"] for conds in guider.conds.values() for cond in conds if "model_conds" in cond])
    applied = replace(applied, positives=frozenset(positives))
    extra_args = with_applied(extra_args, applied)
    alone = replace(applied, recorder=None, layout=None, comparer=None, kept=None, report=RunReport())
    recording = applied.recorder.recording(size, prompts, alone) if applied.recorder else contextlib.nullcontext()
    with recording as done:
        samples = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        if done is not None:
            done(guider.inner_model.process_latent_out(samples.float()))
    if len(sigmas) > 1:
        for line in idle_concepts(applied, named, guider.inner_model.diffusion_model) + lost_regions(applied.report):
            log.warning("%s", line)
    return samples


def plainly(encoding: Tensor) -> Tensor:
    """Return an encoding as a plain tensor, as layers without an adapter read it."""
    return encoding.as_subclass(Tensor)


def named_by(encoding: Tensor, applied: PerfusionState, read: Read = plainly) -> set[str]:
    """Return the trigger words that an encoding names, and warn if they had to be judged from its values."""
    if not applied.stack:
        return set()
    edit, numbers = applied.everywhere(encoding.device), read(encoding)
    # Other modes act wherever a token resembles the word in any case; Inspect Gates warns by itself.
    warns = applied.mode == EXACT and applied.comparer is None
    for trigger in decided_by_numbers(encoding, edit, applied.triggers, numbers) if warns else ():
        log.warning(
            "A node between CLIP Text Encode and the sampler has rebuilt an encoding, so it no longer records which trigger words "
            "it contains; %s now acts wherever a token resembles its own word.",
            trigger,
        )
    found = influenced_tokens(encoding, edit, applied.triggers, numbers, applied.family.causal).flatten(0, 1).any(0).tolist()
    return {trigger for trigger, there in zip(applied.triggers, found, strict=True) if there}


def idle_concepts(applied: PerfusionState, named: set[str], unet: nn.Module) -> list[str]:
    """Return a sentence for each concept that did not act in a run, with the reason as far as it is known."""
    acting, by = applied.report.acting(), module_of_forward(unet)
    lines = []
    for i, concept in enumerate(applied.stack):
        trigger, schedule = concept.trigger, concept.schedule
        # In other modes, gates are never quite shut.
        if i in acting and (applied.mode == EXACT or trigger in named):
            continue
        if not applied.report.calls:
            lines.append(
                f"The concept {trigger} is applied but did not act, and neither will any other concept: the module {by} has "
                "replaced the model's forward pass and skips what Apply Concept adds. Remove the node that patches the model, or "
                "the node pack that contains this module."
                if by
                else f"The concept {trigger} is applied but did not act, and neither will any other concept: a node runs the model "
                "itself and skips what Apply Concept adds. Remove the node that patches the model."
            )
        elif i not in applied.report.reached:
            lines.append(
                f"The concept {trigger} is applied but did not act: its part of the run ({schedule.start:g} to {schedule.end:g}) "
                "contains no step of this sampler; widen it in Concept Schedule, or use more steps."
            )
        elif trigger in named:
            lines.append(
                f"A prompt contains {trigger}, but its gate stayed closed in this run: either the word has too little weight in "
                "the prompt, or a node between CLIP Text Encode and the sampler changes the encoding; Inspect Gates shows how far "
                "it opens."
            )
        else:
            lines.append(
                f"The concept {trigger} is applied, but no prompt contains its trigger word: write {trigger} in a prompt whose "
                "CLIP comes from Apply Concept. Nodes that read <lora:…> tags may have removed it."
            )
    return lines


def module_of_forward(unet: nn.Module) -> str:
    """Return the name of the module that has replaced a model's forward; "" if it is the model's own."""
    forward = vars(unet).get("forward", type(unet).forward)
    module = getattr(forward, "__module__", "")
    return "" if module == type(unet).__module__ else module


def lost_regions(report: RunReport) -> list[str]:
    """Return a sentence for each way in which regions or maps had no effect in a run."""
    lines = []
    if report.unplaced:
        lines.append(
            "A node between Apply Concept and the sampler drops the regions of concepts, so they act in the whole image. Remove "
            "that node, or the regions."
        )
    if report.missed:
        lines.append(
            f"A patch of the model changes the number of tokens in {len(report.missed)} layers, so regions, Watch Attention and "
            "Keep Layout have no effect there. Remove the node that patches the model, or the regions."
        )
    return lines


def with_applied(extra_args: dict, applied: PerfusionState) -> dict:
    """Return a sampling run's `extra_args` with `applied` instead of the state that its MODEL carries."""
    options = extra_args["model_options"]
    return extra_args | {"model_options": options | {"transformer_options": options["transformer_options"] | {KEY: applied}}}


def new_prompt_record(encoding: Tensor, applied: PerfusionState, read: Read = plainly) -> PromptRecord:
    """Return the words of a prompt, and how far each concept's gate opens at each of its tokens."""
    gates = {}
    if applied.stack:
        edit, numbers = applied.everywhere(encoding.device), read(encoding)
        opened = edit.gates(numbers)[0]
        if applied.mode == EXACT:
            opened = opened * (influenced_tokens(encoding, edit, applied.triggers, numbers, applied.family.causal)[0] > 0)
        gates = dict(zip(applied.triggers, opened.unbind(1), strict=True))
    return PromptRecord(token_words(encoding), gates)


def stretched_regions(applied: PerfusionState, size: tuple[int, int], window: Window) -> list[str]:
    """Return a sentence for each concept whose region has another aspect ratio than the picture of which a run covers `window`."""
    left, top, right, bottom = window
    wanted, lines = size[0] / (bottom - top) * (right - left) / size[1], []
    for concept in applied.stack:
        region = concept.region
        if region is None or bool((region == region[0, 0]).all()):
            continue
        height, width = region.shape
        if abs(math.log(height / width / wanted)) > STRETCHED:
            turned = abs(math.log(width / height / wanted)) <= STRETCHED
            lines.append(
                f"The region of {concept.trigger} is {width} × {height} pixels and is stretched over an image of "
                f"{8 * size[1]} × {8 * size[0]} pixels"
                + ("; it appears to be turned on its side, as can happen with a mask made from a photo" if turned else "")
                + ". Paint it on an image of the same shape. If the image is being sampled in parts, the cause is that the "
                "sampling node does not report which part it is sampling."
            )
    return lines


def build_model_conds(
    encoding: Tensor, applied: PerfusionState, size: tuple[int, int], window: Window = WHOLE, read: Read = plainly
) -> dict[str, CONDRegular]:
    """Return the host's conditioning objects for an encoding's inputs in EXTRA_MODEL_INPUTS.

    `size` is that of the latents, and `window` the part of the picture that they cover.
    """
    plain = encoding.as_subclass(Tensor)
    keys = notes_of(encoding, KEYS)
    beside: dict[str, CONDRegular] = {}
    if applied.mode == EXACT and applied.stack:
        edit = applied.everywhere(plain.device)
        beside["named"] = CONDCrossAttn(influenced_tokens(encoding, edit, applied.triggers, read(encoding), applied.family.causal))
    if keys:
        beside |= {
            "locks": CONDCrossAttn(keys[""].to(plain.device)),
            "locked": CONDRegular(torch.ones(1, 1, 1, device=plain.device)),
        }
    places = [j for j, concept in enumerate(applied.stack) if concept.region is not None]
    if places:
        placed = [applied.stack[j] for j in places]
        masks = [cut(concept.region, window, size) for concept in placed]
        stands = own_tokens(encoding, applied.everywhere(plain.device), applied.triggers)[..., places]
        beside |= {"stands": CONDCrossAttn(stands), "regions": CONDNoiseShape(torch.cat(masks, 1).to(plain.device))}
        regional = notes_of(encoding, REGIONAL)
        if regional:
            names = (OUTSIDE, *(concept.trigger for concept in placed))
            beside["regional"] = CONDCrossAttn(torch.cat([regional.get(name, plain).to(plain) for name in names], 2))
    if applied.recorder is not None:
        rows, columns = (torch.arange(n, device=plain.device) for n in size)
        beside["where"] = CONDNoiseShape(torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None])
    if applied.layout is not None:
        beside["columns"] = CONDCrossAttn(applied.layout.columns(token_words(encoding)).to(plain.device))
    return {f"{KEY}_{name}": cond for name, cond in beside.items()}


def add_neutral_encodings(conds: list[dict[str, CONDRegular]]) -> None:
    """If any prompt has locked keys or regions that read other encodings, give the others neutral entries.

    The host only batches prompts with equal inputs.
    """
    locks, locked, regional = (f"{KEY}_{name}" for name in ("locks", "locked", "regional"))
    any_locked = any(locks in each for each in conds)
    width = max((each[regional].cond.shape[2] for each in conds if regional in each), default=0)
    for each in conds:
        if "c_crossattn" not in each:
            continue
        encoding = each["c_crossattn"].cond
        if any_locked and locks not in each:
            each[locks] = CONDCrossAttn(encoding)
            each[locked] = CONDRegular(torch.zeros(1, 1, 1, device=encoding.device))
        if width and regional not in each:
            each[regional] = CONDCrossAttn(encoding.repeat(1, 1, width // encoding.shape[2]))
