"""What a MODEL carries of Perfusion: concepts, and what is to be done with its cross-attention maps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ....perfusion_core.gated_edit import EXACT, Edit
from ....perfusion_core.stack import Stack, edit_of
from .attention_recorder import Recorder
from .edited_projections import Comparer, Projections
from .layout_injection import Layout
from .projection_cache import ProjectionCache

KEY = "perfusion"


BESIDE = "named stands locks locked regions where columns".split()
"""What travels beside an encoding to the model, as `perfusion_…`, for J concepts of which R have a region:

`named` [B, N, J]: other than 0 where a concept's trigger word can have reached a token; in exact mode.
`locks` [B, N, d], `locked` [B, 1, 1]: under global key-locking, the encoding that keys read, and whether they do.
`regions` [B, R, h, w], `stands` [B, N, R]: where concepts may show, and the tokens of their words.
`where` [B, 2, h, w]: row and column of each latent pixel, for maps that are recorded.
`columns` [B, N, 1]: the token of another picture's prompt whose map a token takes, or -1.
"""


GIVEN = "context named locked locks stands regions".split()
"""What keys and values depend on."""


OVERRIDE = "optimized_attention_override"


@dataclass(frozen=True)
class Applied:
    """What a MODEL carries: the concepts, and what is to be done with its cross-attention maps."""

    stack: Stack = ()
    mode: str = EXACT
    recorder: Recorder | None = None
    layout: Layout | None = None
    comparer: Comparer | None = None
    layers: tuple[str, ...] = ()
    made: dict[torch.device, list[Edit]] = field(default_factory=dict)
    kept: dict[torch.device, ProjectionCache] | None = None
    """While a sampler runs, what is kept from one step to the next, unless the weights may change between them."""

    def edits(self, device: torch.device) -> list[Edit]:
        """The edit outside all regions, then that of each concept's region in the stack's order, on a device.

        In a region there is its own concept beside those that have none.
        """
        if self.stack and device not in self.made:
            whole, regional = edit_of(self.stack, self.mode).to(device), [concept.region is not None for concept in self.stack]
            owners = [-1, *(i for i, inside in enumerate(regional) if inside)]
            actives = [[not inside or i == own for i, inside in enumerate(regional)] for own in owners]
            strengths = whole.strength * torch.tensor(actives, device=device)
            self.made[device] = [replace(whole, strength=strength) for strength in strengths]
        return self.made.get(device, [])

    def projections(self, options: Mapping[str, Any], inputs: Mapping[str, Tensor | None]) -> Projections:
        """Those of a UNet call."""
        context, named, locked, locks, stands, regions = given = [inputs.get(name) for name in GIVEN]
        edits = self.edits(context.device)

        def make() -> Projections:
            made = Projections(edits, context, named, locked, locks)
            if regions is None or not (made.change or bool(stands.any())):
                made.only_first()
            return made

        if self.kept is None:
            return make()
        kept = self.kept.setdefault(context.device, ProjectionCache())
        return kept.projections(tuple(options["uuids"]), dict(zip(GIVEN, given, strict=True)), make)
