"""The prompts that regions read.

The text encoders are causal: a concept's word changes the encodings of all words after it, other concepts' words among them. Where
concepts have regions, each region reads the prompt with the words of all other regions replaced by their superclasses.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from comfy.sd import CLIP
from torch import Tensor

from ..model.families import encoders_of
from .trigger_words import Tokens, literal, own_tokens, trigger_masks

T = TypeVar("T")
OUTSIDE = ""
"""The name for what is outside of all regions, where no concept with a region is."""


def regional_prompts(clip: CLIP, tokens: Tokens, superclasses: Mapping[str, str], encode: Callable[[Tokens], T]) -> dict[str, T]:
    """Return what each region reads, and OUTSIDE, by trigger word; those that read the prompt as it is are left out.

    Args:
        clip: a CLIP whose tokenizer knows the trigger words.
        tokens: a tokenized prompt.
        superclasses: trigger word -> superclass, for all concepts with a region.
        encode: encodes a tokenized prompt; called once for each prompt that differs.
    """
    named = [trigger for trigger in trigger_masks(tokens, clip.tokenizer) if trigger in superclasses]
    made: dict[tuple[str, ...], T] = {}
    found = {}
    for name in (OUTSIDE, *superclasses):
        others = tuple(trigger for trigger in named if trigger != name)
        if others:
            if others not in made:
                made[others] = encode(replaced(clip, tokens, {trigger: superclasses[trigger] for trigger in others}))
            found[name] = made[others]
    return found


def replaced(clip: CLIP, tokens: Tokens, superclasses: Mapping[str, str]) -> Tokens:
    """Return a tokenized prompt with trigger words replaced by their superclasses; all other tokens stay at their places.

    A word of as many vectors as its superclass has tokens is replaced one by one. Otherwise vectors and tokens are matched from the
    last one backwards, and surplus vectors become the superclass's first token.
    """
    result = dict(tokens)
    for name, tokenizer in encoders_of(clip).items():
        plain: dict[int, int | Tensor] = {}
        for trigger, superclass in superclasses.items():
            vectors = tokenizer.words[trigger]
            own = list(own_tokens(tokenizer.tokenize_with_weights(literal(superclass)), tokenizer))
            plain |= {vector.data_ptr(): token for vector, token in zip(vectors, fitted(own, len(vectors)), strict=True)}
        key = name.removeprefix("clip_")
        result[key] = [
            [(plain.get(token.data_ptr(), token) if isinstance(token, Tensor) else token, *rest) for token, *rest in section]
            for section in tokens[key]
        ]
    return result


def fitted(tokens: Sequence, count: int) -> list:
    """Return the last `count` of the tokens; where there are fewer, the first one is repeated."""
    return ([tokens[0]] * count + list(tokens))[-count:]
