"""The Perfusion state that a MODEL carries: concepts, and what to do with its cross-attention maps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ....perfusion_core.gated_edit import EXACT, Coefficients, Edit
from ....perfusion_core.stack import Stack, edit_of
from .attention_recorder import Recorder
from .edited_projections import Comparer, OtherEncodings, Projections
from .layout_injection import Layout
from .projection_cache import ProjectionCache

KEY = "perfusion"


EXTRA_MODEL_INPUTS = "named stands locks locked regional regions where columns".split()
"""Model inputs passed along with an encoding, as `perfusion_…`, for J concepts of which R have a region:

`named` [B, N, J]: nonzero where a concept's trigger word can have reached a token; only in exact mode.
`locks` [B, N, d], `locked` [B, 1, 1]: under global key-locking, the encoding that keys read, and whether they read it.
`regional` [B, N, (1 + R) d]: the encodings that are read outside of all regions and in each of them, if they are not all the same.
`regions` [B, R, h, w], `stands` [B, N, R]: where concepts may appear, and the tokens of their words.
`where` [B, 2, h, w]: row and column of each latent pixel, for recording attention maps.
`columns` [B, N, 1]: the token of another image's prompt whose map a token takes, or -1.
"""


PROJECTION_INPUTS = "context named locked locks regional stands regions".split()
"""Names of the UNet inputs on which keys and values depend."""


OVERRIDE = "optimized_attention_override"


@dataclass
class RunReport:
    """What concepts did in a run of a sampler.

    Attributes:
        calls: number of the UNet's calls that the concepts were brought to.
        acted: device -> bool [J], whether each concept changed the keys or values of any token there.
    """

    calls: int = 0
    acted: dict[torch.device, Tensor] = field(default_factory=dict)

    def add(self, by: Coefficients) -> None:
        """Take the coefficients of an encoding [B, N, d] into account; nothing is read from the device until it is asked for."""
        acted = by.add.flatten(0, -2).any(0)
        self.acted[acted.device] = acted | self.acted.get(acted.device, torch.zeros_like(acted))

    def acting(self) -> list[bool]:
        """Return whether each concept acted; empty if none did."""
        return torch.stack([each.cpu() for each in self.acted.values()]).any(0).tolist() if self.acted else []


@dataclass(frozen=True)
class PerfusionState:
    """The state that a MODEL carries: the concepts, and what to do with its cross-attention maps."""

    stack: Stack = ()
    mode: str = EXACT
    recorder: Recorder | None = None
    layout: Layout | None = None
    comparer: Comparer | None = None
    layers: tuple[str, ...] = ()
    made: dict[torch.device, list[Edit]] = field(default_factory=dict)
    kept: dict[torch.device, ProjectionCache] | None = None
    """Projections cached from step to step while a sampler runs; None if the weights may change between steps."""
    report: RunReport = field(default_factory=RunReport)

    @property
    def triggers(self) -> list[str]:
        """The trigger words of the concepts, in their order."""
        return [concept.trigger for concept in self.stack]

    def edits(self, device: torch.device) -> list[Edit]:
        """Return the edits on a device: that outside of all regions, then that of each concept's region in the stack's order.

        In a region, its own concept and all concepts without a region are active.
        """
        if self.stack and device not in self.made:
            whole, regional = edit_of(self.stack, self.mode).to(device), [concept.region is not None for concept in self.stack]
            owners = [-1, *(i for i, inside in enumerate(regional) if inside)]
            actives = [[not inside or i == own for i, inside in enumerate(regional)] for own in owners]
            strengths = whole.strength * torch.tensor(actives, device=device)
            self.made[device] = [replace(whole, strength=strength) for strength in strengths]
        return self.made.get(device, [])

    def everywhere(self, device: torch.device) -> Edit:
        """Return the edit of all concepts, as if none had a region."""
        edits = self.edits(device)
        return edits[0] if len(edits) == 1 else replace(edits[0], strength=torch.stack([each.strength for each in edits]).amax(0))

    def projections(self, options: Mapping[str, Any], inputs: Mapping[str, Tensor | None]) -> Projections:
        """Return the edited projections for a UNet call."""
        context, named, locked, locks, regional, stands, regions = given = [inputs.get(name) for name in PROJECTION_INPUTS]
        edits = self.edits(context.device)

        def make() -> Projections:
            made = Projections(edits, context, named, locked, locks, regional)
            if edits:
                made.others = OtherEncodings(self.everywhere(context.device), self.triggers, self.report)
                for by in made.by:
                    self.report.add(by)
            if regions is None or not (made.change or bool(stands.any())):
                made.only_first()
            return made

        if self.kept is None:
            return make()
        kept = self.kept.setdefault(context.device, ProjectionCache())
        return kept.projections(tuple(options.get("uuids", ())), dict(zip(PROJECTION_INPUTS, given, strict=True)), make)
