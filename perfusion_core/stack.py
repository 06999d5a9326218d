"""Stacks of concepts that are used together, and their combined edit."""

import itertools

import torch
from torch import Tensor

from . import PerfusionError
from .concept import Concept
from .gated_edit import Edit
from .prompts import word_key

Stack = tuple[Concept, ...]
"""Concepts that are used together; their trigger words are distinct."""


def combine(*stacks: Stack) -> Stack:
    """Return all concepts of the stacks, sorted by trigger word, so that the result does not depend on their order.

    Raises:
        PerfusionError: two concepts have the same trigger word, or their base families differ.
    """
    concepts = sorted((concept for stack in stacks for concept in stack), key=lambda c: word_key(c.trigger))
    for one, other in itertools.pairwise(concepts):
        if word_key(one.trigger) == word_key(other.trigger):
            raise PerfusionError(
                f"Two concepts have the trigger word {one.trigger} (superclasses: {one.superclass} and "
                f"{other.superclass}); give one of them a different trigger word with Concept Settings."
            )
        if one.family != other.family:
            raise PerfusionError(
                f"{one.trigger} was trained on {one.family} and {other.trigger} on {other.family}; concepts that are used together "
                "must have the same base family."
            )
    return tuple(concepts)


def with_outputs(stack: Stack) -> Stack:
    """Return the concepts that edit layers, without those that are only a word."""
    return tuple(concept for concept in stack if concept.values)


def stacked(outputs: list[Tensor]) -> Tensor:
    """Return one layer's target outputs of J concepts, [J, m], or [J, POSITIONS, m] if any of them differ by token position."""
    return torch.stack(torch.broadcast_tensors(*outputs))


def edit_of(stack: Stack, mode: str) -> Edit | None:
    """Return the combined edit of the concepts, in one of `gated_edit.MODES`; None if none of them edits layers.

    Raises:
        PerfusionError: the concepts differ in their layers or in the width of their encodings.
    """
    stack = with_outputs(stack)
    if not stack:
        return None
    layers = stack[0].layers
    for concept in stack[1:]:
        if concept.layers != layers or len(concept.probe) != len(stack[0].probe):
            raise PerfusionError(
                f"{concept.trigger} and {stack[0].trigger} were trained on models of different shapes; combine only concepts "
                "trained on models of the same shape."
            )
    at_word = torch.tensor([c.keys_at_word for c in stack])
    trained = {layer: torch.tensor([layer in c.keys for c in stack]) for layer in layers if any(layer in c.keys for c in stack)}
    return Edit(
        mode=mode,
        target_inputs=torch.stack([c.target_input for c in stack]),
        probes=torch.stack([c.probe / (c.probe @ c.target_input) for c in stack]),
        superclass_encodings=torch.stack([c.superclass_encoding for c in stack]),
        bias=torch.tensor([c.bias for c in stack]),
        temperature=torch.tensor([c.temperature for c in stack]),
        strength=torch.tensor([c.strength for c in stack]),
        values={layer: stacked([c.values[layer] for c in stack]) for layer in layers},
        keys={layer: stacked([c.keys.get(layer, c.values[layer]) for c in stack]) for layer in trained},
        keys_trained=trained,
        keys_at_word=at_word if at_word.any() else None,
        key_lock=torch.tensor([c.key_lock for c in stack]) if at_word.any() else None,
    )
