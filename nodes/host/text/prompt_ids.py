"""Prompts of models that read token ids beside an encoding.

An adapter makes of both what layers read, with a token for each id. The host runs it before it samples, so what is known of a
prompt travels with the ids in its conditioning, and becomes notes of what the adapter made.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ..model.families import Family, ids_beside, kind_of
from ..model.loading import adapt, load
from .annotated_encoding import KEYS, TRIGGER_INFLUENCE, WORD_POSITIONS, AnnotatedEncoding, Note
from .encoding_notes import END, notes_of
from .trigger_words import Tokens, token_labels

WORDS = "perfusion_words"
"""The entry of a conditioning that holds the word at each id."""


def words_of_ids(clip: CLIP, tokens: Tokens) -> dict[str, list[str]]:
    """Return what a conditioning is to say of a tokenized prompt's ids; nothing if its models read none."""
    ids = ids_beside(clip)
    return {WORDS: token_labels(tokens, clip.tokenizer, ids)} if ids in tokens else {}


def with_words(context: Tensor, cond: Mapping[str, Any], triggers: Sequence[str], adapted: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what an adapter made [1, N, d], with notes of what it was made from.

    The adapter lets each token see the whole prompt, so a trigger word that is anywhere in it reaches all tokens but padding.

    Args:
        context: what the adapter made; without words of its ids it stays as it is.
        cond: the entries of the conditioning that it was made from, `cross_attn` among them.
        triggers: trigger words.
        adapted: the adapter, with the conditioning's ids.
    """
    if WORDS not in cond:
        return context
    said = (cond[WORDS] + context.shape[1] * [END])[: context.shape[1]]
    encoding, within = cond["cross_attn"], torch.arange(len(said)) <= (said.index(END) if END in said else len(said))
    reached = notes_of(encoding, TRIGGER_INFLUENCE)
    notes = {
        Note(TRIGGER_INFLUENCE, trigger): within[:, None].to(context.device)
        for trigger in triggers
        if trigger in said or (trigger in reached and bool(reached[trigger].any()))
    }
    for word in dict.fromkeys(said):
        notes[Note(WORD_POSITIONS, word)] = torch.tensor([[each == word] for each in said], device=context.device)
    keys = notes_of(encoding, KEYS)
    return AnnotatedEncoding.of(context, notes | ({Note(KEYS): adapted(keys[""])} if keys else {}))


def model_context(model: ModelPatcher, cond: Tensor, more: Mapping[str, Any], triggers: Sequence[str]) -> Tensor:
    """Return the encoding [B, N, ·] that a MODEL is called with for one entry of a conditioning, with its notes, on the CPU."""
    family = kind_of(model)
    if not family.ids:
        return cond
    load(model)

    def adapted(encoding: Tensor) -> Tensor:
        return adapt(model.model, family, model.load_device, encoding, more).to(cond.device)

    return with_words(adapted(cond), {**more, "cross_attn": cond}, triggers, adapted)


def sampled_context(
    base: torch.nn.Module, family: Family, context: Tensor, cond: Mapping[str, Any], triggers: Sequence[str]
) -> Tensor:
    """Return the encoding that a sampler's run calls a model with, with its notes; `cond` is an entry of its conditionings."""
    if not family.ids:
        return context
    return with_words(context, cond, triggers, lambda encoding: adapt(base, family, context.device, encoding, cond))
