"""What a concept is trained from: pictures in buckets of one size each, and the prompts that go with them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import PerfusionError
from ..prompts import MENTION, TEMPLATES, word_key

MAX_CAPTION = 1000
"""Maximum number of characters of a caption."""


@dataclass(frozen=True)
class Bucket:
    """P pictures of one size.

    Attributes:
        latents: [P, forms, c, h, w]: each picture unchanged and mirrored and, if `small` is above 0, both of these small; for
            models of videos [P, forms, c, 1, h, w].
        masks: the same with one channel, soft, each with a maximum of 1.
        captions: each picture's own prompt with `{}` for the concept, or empty.
    """

    latents: Tensor
    masks: Tensor
    captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.latents)


@dataclass(frozen=True)
class Lesson:
    """Everything that a concept is trained from.

    Attributes:
        buckets: the pictures; those of a step come from the same bucket.
        inverse: C⁻¹, float64 [d, d], on the CPU.
        templates: training prompts with `{}` for the concept.
        captioned: how often a picture comes with its own caption, between 0 and 1, where it has one.
    """

    buckets: tuple[Bucket, ...]
    inverse: Tensor
    templates: tuple[str, ...] = TEMPLATES
    captioned: float = 1.0

    def bucket_of(self, seed: int, step: int) -> Bucket:
        """Return the bucket of a step's pictures; over many steps, all pictures are used equally often."""
        if len(self.buckets) == 1:
            return self.buckets[0]
        return random.Random(f"{seed} {step}").choices(self.buckets, [len(bucket) for bucket in self.buckets])[0]

    def to(self, device: torch.device) -> "Lesson":
        """Return a copy that can take part in a backward pass, with float32 pictures on `device`."""
        # Copied, since tensors created in a node's inference mode cannot take part in a backward pass.
        buckets = (
            Bucket(*(each.to(device, torch.float32, copy=True) for each in (bucket.latents, bucket.masks)), bucket.captions)
            for bucket in self.buckets
        )
        return Lesson(tuple(buckets), self.inverse.clone(), self.templates, self.captioned)


def as_templates(texts: Sequence[str], trigger: str, what: str) -> tuple[str, ...]:
    """Return prompts with `{}` in place of the trigger word, and their own braces doubled, as `str.format` needs them.

    `{}` itself stands for the concept, too. `what` names a text in errors: "Caption" or "Template".

    Raises:
        PerfusionError: a text does not name the concept exactly once, or is too long.
    """
    found = []
    for i, text in enumerate(texts):
        where = f"{what} {i + 1} of {len(texts)}"
        if len(text) > MAX_CAPTION:
            raise PerfusionError(f"{where} has {len(text)} characters, more than the limit of {MAX_CAPTION}; shorten it.")
        parts = "".join("{}" if mentions(each, trigger) else doubled(each) for each in pieces(text.replace("{}", trigger)))
        if parts.replace("{{", "").count("{}") != 1:
            raise PerfusionError(f"{where} should contain {trigger} exactly once, but it reads {text[:80]!r}.")
        found.append(parts)
    return tuple(found)


def pieces(text: str) -> list[str]:
    """Split a text into possible trigger words and what is between them."""
    found, end = [], 0
    for each in MENTION.finditer(text):
        found += [text[end : each.start()], each[0]]
        end = each.end()
    return [*found, text[end:]]


def mentions(piece: str, trigger: str) -> bool:
    """Return whether a piece of a text is the trigger word."""
    found = MENTION.fullmatch(piece)
    return bool(found) and word_key(f"<{found[1]}>") == word_key(trigger)


def doubled(text: str) -> str:
    """Return a text that `str.format` turns back into itself."""
    return text.replace("{", "{{").replace("}", "}}")
