"""Edited keys and values, kept from step to step of a sampling run."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .edited_projections import Projections

KEPT_BYTES = 128 * 2**20
"""What a sampling run may keep. SDXL with one picture and guidance takes 51 MB of it."""


Given = Mapping[str, Tensor | None]
"""All of a UNet call's inputs that keys and values depend on, by name."""


class ProjectionCache:
    """The keys and values of a sampling run: they depend on the prompts alone and stay the same from step to step.

    Whether a prompt is one that is known is told by its numbers, so whatever the host or a patch makes of a prompt, what is kept
    is what would have been computed. It holds for weights that do not change: where hooks may change them between steps, nothing
    must be kept.
    """

    def __init__(self) -> None:
        """With nothing kept."""
        self.known: dict[object, tuple[Given, Projections]] = {}

    def projections(self, call: object, given: Given, make: Callable[[], Projections]) -> Projections:
        """Those of an equal call of this name; else those that `make` makes, kept as far as there is room."""
        if call in self.known:
            before, found = self.known[call]
            if same(before, given):
                return found
            del self.known[call]
        made = make()
        size = made.bytes()
        if size <= KEPT_BYTES:
            while self.known and size + sum(each.bytes() for _, each in self.known.values()) > KEPT_BYTES:
                del self.known[next(iter(self.known))]
            made.kept = {}
            self.known[call] = given, made
        return made


def same(one: Given, other: Given) -> bool:
    """Whether two calls have the same inputs, to the last bit."""
    pairs = [(one[name], other[name]) for name in one]
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    found = [(a, b) for a, b in pairs if a is not None and b is not None and a is not b]
    if any((a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device) for a, b in found):
        return False
    # The answers are fetched from the device at once.
    return not found or bool(torch.stack([(a == b).all() for a, b in found]).all())
