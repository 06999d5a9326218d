"""Cache of edited keys and values across the steps of a sampling run."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .edited_projections import Projections
from .schedules import Biases

KEPT_BYTES = 256 * 2**20
"""Bytes that the cache of a sampling run may contain. SDXL with one image and guidance uses 51 MB of it, and 154 MB with two
regions."""


Given = Mapping[str, Tensor | None]
"""All inputs of a UNet call on which keys and values depend, by name."""


class ProjectionCache:
    """Cache of a sampling run's keys and values, which depend only on the prompts and on the concepts' biases at a step.

    Both are compared by value, so whatever the host or a patch does to a prompt, a cached result equals the one that would have
    been computed. This requires that the weights do not change: do not use a cache if hooks may change them between steps.
    """

    def __init__(self) -> None:
        """Create an empty cache."""
        self.known: dict[object, tuple[Biases, Given, Projections]] = {}

    def projections(self, call: object, biases: Biases, given: Given, make: Callable[[], Projections]) -> Projections:
        """Return the cached projections of `call` if biases and inputs are equal; otherwise those from `make`, cached if they fit.

        They replace earlier ones of the same call. The oldest entries are evicted to make room.
        """
        if call in self.known:
            then, before, found = self.known[call]
            if then == biases and same(before, given):
                return found
            del self.known[call]
        made = make()
        size = made.bytes()
        if size <= KEPT_BYTES:
            while self.known and size + sum(each.bytes() for *_, each in self.known.values()) > KEPT_BYTES:
                del self.known[next(iter(self.known))]
            made.kept = {}
            self.known[call] = biases, given, made
        return made


def same(one: Given, other: Given) -> bool:
    """Whether two calls have exactly the same inputs."""
    pairs = [(one[name], other[name]) for name in one]
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    found = [(a, b) for a, b in pairs if a is not None and b is not None and a is not b]
    if any((a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device) for a, b in found):
        return False
    # Stacked, so that all results are fetched from the device in one transfer.
    return not found or bool(torch.stack([(a == b).all() for a, b in found]).all())
