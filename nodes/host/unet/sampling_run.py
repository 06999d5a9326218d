"""One run of a sampler with concepts: the notes of its prompts are passed to the model along with the encodings."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import torch
from comfy.conds import CONDCrossAttn, CONDNoiseShape, CONDRegular
from comfy.patcher_extension import WrapperExecutor
from comfy.samplers import CFGGuider
from torch import Tensor, nn

from ....perfusion_core.gated_edit import EXACT
from ....perfusion_core.stack import Stack
from ..text.encoding_notes import KEYS, REGIONAL, TRIGGER_INFLUENCE, WORD_POSITIONS, note_mask, notes_of, token_words
from ..text.regional_prompts import OUTSIDE
from .attention_recorder import PromptRecord
from .perfusion_state import KEY, PerfusionState

log = logging.getLogger("perfusion")


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
    """Wrap a sampling run: pass the notes that encodings carry to the model along with them."""
    applied: PerfusionState = extra_args["model_options"]["transformer_options"][KEY]
    size = tuple(noise.shape[-2:])
    prompts: dict[UUID, PromptRecord] = {}
    said: set[str] = set()
    for kind, conds in guider.conds.items():
        prepared = []
        for cond in conds or ():
            cross = cond.get("model_conds", {}).get("c_crossattn")
            if cross is not None:
                said |= set(notes_of(cross.cond, TRIGGER_INFLUENCE))
                if kind == "positive":
                    prompts[cond["uuid"]] = new_prompt_record(cross.cond, applied)
                cond = cond | {"model_conds": cond["model_conds"] | build_model_conds(cross.cond, applied, size)}
            prepared.append(cond)
        guider.conds[kind] = prepared
    add_neutral_encodings([cond["model_conds"] for conds in guider.conds.values() for cond in conds if "model_conds" in cond])
    for trigger in (concept.trigger for concept in applied.stack):
        if trigger not in said:
            log.warning(
                "The concept %s is applied, but no prompt names it: write %s in a prompt whose CLIP comes from Apply Concept.",
                trigger,
                trigger,
            )
    if not any(cond.get("hooks") is not None for conds in guider.conds.values() for cond in conds or ()):
        extra_args = with_applied(extra_args, replace(applied, kept={}))
    if applied.recorder is None:
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
    with applied.recorder.recording(size, prompts) as done:
        samples = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        done(guider.inner_model.process_latent_out(samples.float()))
    return samples


def with_applied(extra_args: dict, applied: PerfusionState) -> dict:
    """Return a sampling run's `extra_args` with `applied` in place of the state that its MODEL carries."""
    options = extra_args["model_options"]
    return extra_args | {"model_options": options | {"transformer_options": options["transformer_options"] | {KEY: applied}}}


def new_prompt_record(encoding: Tensor, applied: PerfusionState) -> PromptRecord:
    """Return the words of a prompt, and how far each concept's gate opens at each of its tokens."""
    gates = {}
    edits = applied.edits(encoding.device)
    if edits:
        opened = edits[0].gates(encoding.as_subclass(Tensor))[0]
        reach = notes_of(encoding, TRIGGER_INFLUENCE)
        for j, concept in enumerate(applied.stack):
            reached = 1
            if applied.mode == EXACT:
                reached = reach[concept.trigger][0, :, 0] != 0 if concept.trigger in reach else 0
            gates[concept.trigger] = opened[:, j] * reached
    return PromptRecord(token_words(encoding), gates)


def build_model_conds(encoding: Tensor, applied: PerfusionState, size: tuple[int, int]) -> dict[str, CONDRegular]:
    """Return the host's conditioning objects for an encoding, as a plain tensor, and for the inputs in EXTRA_MODEL_INPUTS."""
    plain = encoding.as_subclass(Tensor)
    keys = notes_of(encoding, KEYS)

    def marks(kind: str, concepts: Stack) -> CONDCrossAttn:
        return CONDCrossAttn(note_mask(encoding, kind, [concept.trigger for concept in concepts]))

    beside: dict[str, CONDRegular] = {}
    if applied.mode == EXACT and applied.stack:
        beside["named"] = marks(TRIGGER_INFLUENCE, applied.stack)
    if keys:
        beside |= {
            "locks": CONDCrossAttn(keys[""].to(plain.device)),
            "locked": CONDRegular(torch.ones(1, 1, 1, device=plain.device)),
        }
    placed = tuple(concept for concept in applied.stack if concept.region is not None)
    if placed:
        masks = [nn.functional.interpolate(c.region[None, None].float(), size, mode="area") for c in placed]
        beside |= {"stands": marks(WORD_POSITIONS, placed), "regions": CONDNoiseShape(torch.cat(masks, 1).to(plain.device))}
        read = notes_of(encoding, REGIONAL)
        if read:
            names = (OUTSIDE, *(concept.trigger for concept in placed))
            beside["regional"] = CONDCrossAttn(torch.cat([read.get(name, plain).to(plain) for name in names], 2))
    if applied.recorder is not None:
        rows, columns = (torch.arange(n, device=plain.device) for n in size)
        beside["where"] = CONDNoiseShape(torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None])
    if applied.layout is not None:
        beside["columns"] = CONDCrossAttn(applied.layout.columns(token_words(encoding)).to(plain.device))
    return {"c_crossattn": CONDCrossAttn(plain)} | {f"{KEY}_{name}": cond for name, cond in beside.items()}


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
