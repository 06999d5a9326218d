"""A CLIP that knows trigger words."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from comfy.sd import CLIP
from torch import Tensor

from ....perfusion_core import PerfusionError
from ....perfusion_core.prompts import bare_triggers, has_trigger, word_key
from ....perfusion_core.stack import Stack, combine, with_outputs
from ..model.families import encoders_causal, encoders_of
from .annotated_encoding import REGIONAL, TRIGGER_INFLUENCE, WORD_POSITIONS, AnnotatedEncoding, Note
from .picture_window import PLACES, place_map
from .prompt_ids import words_of_ids
from .regional_prompts import regional_prompts
from .trigger_words import Tokens, prompt_tokens, token_labels, tokenizer_with_words, trigger_masks, understood

T = TypeVar("T")
log = logging.getLogger("perfusion")


class ClipWithWords(CLIP):
    """A CLIP that knows the trigger words of `stack` and returns `AnnotatedEncoding` encodings."""

    stack: Stack = ()

    def clone(self, *args: Any, **kwargs: Any) -> "ClipWithWords":  # noqa: D102
        cloned = super().clone(*args, **kwargs)
        cloned.__class__ = ClipWithWords
        cloned.stack = self.stack
        return cloned

    def tokenize(self, text: str | list[str], *args: Any, **kwargs: Any) -> Tokens:  # noqa: D102
        for each in [text] if isinstance(text, str) else text:
            for warning in self._unread(each):
                log.warning("%s", warning)
        return super().tokenize(text, *args, **kwargs)

    def _unread(self, text: str) -> list[str]:
        """Return a sentence for each trigger word that a prompt means but that will not be read as one."""
        triggers, superclasses = [c.trigger for c in self.stack], {word_key(c.superclass) for c in self.stack}
        bare = [trigger for trigger in bare_triggers(text, triggers) if word_key(trigger)[1:-1] not in superclasses]
        lines = [
            f"A prompt contains {trigger[1:-1]}, which is not a trigger word without its brackets; write {trigger}."
            for trigger in bare
        ]
        if any("tokenize_with_weights" in vars(part) for part in encoders_of(self).values()):
            lines += [
                f"Another node pack is reading this prompt with its own tokenizer, which does not know {trigger}; encode the "
                "prompt with CLIP Text Encode."
                for trigger in triggers
                if has_trigger(text, trigger)
            ]
        return lines

    def encode_from_tokens(self, tokens: Tokens, return_pooled: bool | str = False, return_dict: bool = False) -> Any:  # noqa: D102
        out = super().encode_from_tokens(tokens, return_pooled, return_dict)
        regional = self._of_regions(tokens, super().encode_from_tokens)
        if return_dict:
            return out | {"cond": self._note(out["cond"], tokens, regional)} | self._beside(tokens)
        return (self._note(out[0], tokens, regional), *out[1:]) if return_pooled else self._note(out, tokens, regional)

    def encode_from_tokens_scheduled(self, tokens: Tokens, *args: Any, **kwargs: Any) -> list[list]:  # noqa: D102
        encoded = super().encode_from_tokens_scheduled(tokens, *args, **kwargs)
        if all(isinstance(cond, AnnotatedEncoding) for cond, *_ in encoded):
            return encoded
        # With hooks on its weights the host encodes by itself, once for each of their strengths.
        beside = self._beside(tokens)
        scheduled = super().encode_from_tokens_scheduled
        regional = self._of_regions(tokens, lambda each: scheduled(each, *args, **kwargs))
        return [
            [self._note(cond, tokens, {name: found[i][0].as_subclass(Tensor) for name, found in regional.items()}), extra | beside]
            for i, (cond, extra) in enumerate(encoded)
        ]

    def _beside(self, tokens: Tokens) -> dict[str, list]:
        """Return what a conditioning is to hold beside the encoding.

        The words of its ids, if models read such; and what tells a sampler's run which part of the picture it draws, for which only
        regions ask.
        """
        placed = {PLACES: [place_map()]} if any(concept.region is not None for concept in self.stack) else {}
        return placed | (words_of_ids(self, tokens) if understood(tokens) else {})

    def _of_regions(self, tokens: Tokens, encode: Callable[[Tokens], T]) -> dict[str, T]:
        """Return what regions read if that is not the whole prompt; see `regional_prompts`."""
        superclasses = {concept.trigger: concept.superclass for concept in self.stack if concept.region is not None}
        return regional_prompts(self, tokens, superclasses, encode) if superclasses and understood(tokens) else {}

    def _note(self, cond: Tensor, tokens: Tokens, regional: Mapping[str, Tensor]) -> Tensor:
        """Attach notes to an encoding: where each word is, which tokens each trigger word can have reached, what regions read.

        With causal encoders a word reaches its own tokens and those after it in the same section, with others the whole section
        except its padding. The reach of concepts that are only a word is not needed, since they edit no layer. If another pack
        returned more encodings than the prompt has tokens, it is unknown which belongs to which, and the encoding gets no notes.
        """
        section = len(next(iter(tokens.values()))[0])
        if (
            isinstance(cond, AnnotatedEncoding)
            or not understood(tokens)
            or cond.shape[1] > max(map(len, tokens.values())) * section
        ):
            return cond

        def column(true: Tensor) -> Tensor:
            return true[: cond.shape[1], None].to(cond.device)

        editing = {concept.trigger for concept in with_outputs(self.stack)}
        notes = {Note(REGIONAL, name): encoding for name, encoding in regional.items()}
        for trigger, places in trigger_masks(tokens, self.tokenizer).items():
            if trigger in editing:
                if encoders_causal(self):
                    reached = torch.cat([part.cumsum(0) > 0 for part in places.split(section)])
                else:
                    whole = torch.cat([part.any().expand(len(part)) for part in places.split(section)])
                    reached = whole & prompt_tokens(tokens, self.tokenizer)
                notes[Note(TRIGGER_INFLUENCE, trigger)] = column(reached)
        said = token_labels(tokens, self.tokenizer)
        for word in dict.fromkeys(said):
            notes[Note(WORD_POSITIONS, word)] = column(torch.tensor([one == word for one in said]))
        return AnnotatedEncoding.of(cond, notes)


def clip_with_words(clip: CLIP, stack: Stack) -> ClipWithWords:
    """Return a clone of a CLIP that also knows the trigger words of the concepts.

    Raises:
        PerfusionError: a concept's word was trained for other text encoders, or the concepts cannot be combined with those that
            the CLIP knows already.
    """
    encoders = encoders_of(clip)
    for concept in stack:
        for name, tokenizer in encoders.items():
            if name not in concept.word or concept.word[name].shape[1] != tokenizer.embedding_size:
                taught = ", ".join(f"{name} (width {vectors.shape[1]})" for name, vectors in concept.word.items())
                found = ", ".join(f"{name} (width {each.embedding_size})" for name, each in encoders.items())
                raise PerfusionError(
                    f"{concept.trigger} was trained for these text encoders: {taught}; this CLIP has: {found}. Connect the CLIP "
                    "of a matching checkpoint."
                )
    cloned = clip.clone()
    cloned.__class__ = ClipWithWords
    # Vectors are recognised by their storage, so no two words may share one, not even one concept under two trigger words.
    words = {c.trigger: {name: vectors.clone() for name, vectors in c.word.items()} for c in stack}
    cloned.tokenizer = tokenizer_with_words(clip, words, {concept.trigger: concept.superclass for concept in stack})
    cloned.stack = combine(getattr(clip, "stack", ()), stack)
    return cloned
