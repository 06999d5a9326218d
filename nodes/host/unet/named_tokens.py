"""Which tokens of a prompt name a concept: from the notes of its encoding or, where a node has lost these, from its values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ....perfusion_core.concept_file import POSITIONS
from ....perfusion_core.gated_edit import Edit
from ..text.annotated_encoding import TRIGGER_INFLUENCE, WORD_POSITIONS
from ..text.encoding_notes import known_tokens, note_mask


def influenced_tokens(
    encoding: Tensor, edit: Edit, triggers: Sequence[str], read: Tensor | None = None, causal: bool = True
) -> Tensor:
    """Return [B, N, J], above 0 at the tokens of an encoding [B, N, ·] that each concept's word can have influenced.

    `read` is what layers read of it, [B, N, d], if that is not the encoding itself. `causal` says whether a token is encoded only
    from those before it; then an encoding may consist of sections.
    """
    numbers = encoding.as_subclass(Tensor) if read is None else read
    by_numbers = edit.influenced(numbers, POSITIONS) if causal else edit.influenced_both_ways(numbers)
    return torch.where(known_tokens(encoding), note_mask(encoding, TRIGGER_INFLUENCE, triggers), by_numbers)


def own_tokens(encoding: Tensor, edit: Edit, triggers: Sequence[str]) -> Tensor:
    """Return [B, N, J], above 0 at the tokens of an encoding [B, N, d] that are each concept's own word."""
    by_numbers = edit.own_tokens(encoding.as_subclass(Tensor)).float()
    return torch.where(known_tokens(encoding), note_mask(encoding, WORD_POSITIONS, triggers), by_numbers)


def decided_by_numbers(encoding: Tensor, edit: Edit, triggers: Sequence[str], read: Tensor | None = None) -> list[str]:
    """Return the trigger words that an encoding names, judged from its values, where its notes are lost; `read` as above."""
    unknown = ~known_tokens(encoding)
    named = (edit.own_tokens(encoding.as_subclass(Tensor) if read is None else read) & unknown).flatten(0, 1).any(0)
    return [trigger for trigger, found in zip(triggers, named.tolist(), strict=True) if found]
