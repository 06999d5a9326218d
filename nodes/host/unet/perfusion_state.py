"""The Perfusion state that a MODEL carries: concepts, and what to do with its cross-attention maps."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import torch
from torch import Tensor, nn

from ....perfusion_core.gated_edit import EXACT, Coefficients, Edit
from ....perfusion_core.stack import Stack, edit_of
from ..model.families import FAMILIES, Family
from .attention_recorder import Recorder
from .edited_projections import Comparer, OtherEncodings, Projections
from .layout_injection import Layout
from .projection_cache import ProjectionCache
from .schedules import Biases, ToSigma, biases_at

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
        calls: number of the UNet's calls that ran with the concepts.
        reached: numbers of the concepts in whose part of the run there was a call.
        acted: device, numbers of concepts -> bool, whether each of these changed the keys or values of any token there.
        unplaced: whether concepts with regions ran without them, because a node dropped them.
        missed: layers whose keys have another number of tokens than the encoding, so that regions and maps cannot apply.
    """

    calls: int = 0
    reached: set[int] = field(default_factory=set)
    acted: dict[tuple[torch.device, tuple[int, ...]], Tensor] = field(default_factory=dict)
    unplaced: bool = False
    missed: set[str] = field(default_factory=set)

    def add(self, by: Coefficients, concepts: tuple[int, ...]) -> None:
        """Take the coefficients of an encoding [B, N, d] into account, which are those of the concepts with these numbers.

        Nothing is read from the device until it is needed.
        """
        acted = by.add.flatten(0, -2).any(0)
        key = acted.device, concepts
        self.acted[key] = acted | self.acted.get(key, torch.zeros_like(acted))

    def acting(self) -> set[int]:
        """Return the numbers of the concepts that acted."""
        pairs = [zip(concepts, acted.tolist(), strict=True) for (_, concepts), acted in self.acted.items()]
        return {concept for pair in pairs for concept, did in pair if did}


@dataclass(frozen=True)
class PerfusionState:
    """The state that a MODEL carries: the concepts, and what to do with its cross-attention maps."""

    family: Family = FAMILIES[0]
    stack: Stack = ()
    mode: str = EXACT
    recorder: Recorder | None = None
    layout: Layout | None = None
    comparer: Comparer | None = None
    layers: tuple[str, ...] = ()
    to_sigma: ToSigma | None = None
    """The host's conversion that schedules use; None if there is no model yet."""
    positives: frozenset[UUID] = frozenset()
    """While a sampler runs, the host's ids of its positive prompts."""
    made: dict[tuple[torch.device, tuple[int, ...]], list[Edit]] = field(default_factory=dict)
    kept: dict[torch.device, ProjectionCache] | None = None
    """Projections cached from step to step while a sampler runs; None if the weights may change between steps."""
    report: RunReport = field(default_factory=RunReport)

    @property
    def triggers(self) -> list[str]:
        """The trigger words of the concepts, in their order."""
        return [concept.trigger for concept in self.stack]

    def positive_places(self, options: Mapping[str, Any]) -> list[int]:
        """Return which of the prompts of a call are positive ones.

        The host's numbers for the kinds of prompts do not tell: they differ between guiders.
        """
        return [i for i, key in enumerate(options.get("uuids", ())) if key in self.positives]

    def edits(self, device: torch.device, concepts: tuple[int, ...] | None = None) -> list[Edit]:
        """Return the edits on a device: that outside of all regions, then that of each concept's region in the stack's order.

        In a region, its own concept and all concepts without a region are active. With `concepts`, the edits are only of the
        concepts with these numbers, as if there were no others; the regions are still those of all.
        """
        concepts = tuple(range(len(self.stack))) if concepts is None else concepts
        if concepts and (device, concepts) not in self.made:
            whole = edit_of(tuple(self.stack[i] for i in concepts), self.mode).to(device)
            regional = [concept.region is not None for concept in self.stack]
            owners = [-1, *(i for i, inside in enumerate(regional) if inside)]
            actives = [[not regional[i] or i == own for i in concepts] for own in owners]
            strengths = whole.strength * torch.tensor(actives, device=device)
            self.made[device, concepts] = [replace(whole, strength=strength) for strength in strengths]
        return self.made.get((device, concepts), [])

    def edits_with(self, device: torch.device, biases: Biases) -> tuple[tuple[int, ...], list[Edit]]:
        """Return the edits on a device with these biases, and the numbers of their concepts.

        They are the edits of the concepts that act. If none does, all are included with a strength of 0, which leaves keys and
        values as they are; their regions still keep their words in place.
        """
        acting = tuple(i for i, bias in enumerate(biases) if bias is not None)
        if not acting:
            bare = [replace(edit, strength=torch.zeros_like(edit.strength)) for edit in self.edits(device)]
            return tuple(range(len(self.stack))), bare
        edits, wanted = self.edits(device, acting), [biases[i] for i in acting]
        if wanted == [self.stack[i].bias for i in acting]:
            return acting, edits
        bias = torch.tensor(wanted, device=device)
        return acting, [replace(edit, bias=bias) for edit in edits]

    def everywhere(self, device: torch.device) -> Edit:
        """Return the edit of all concepts, as if none had a region or a schedule."""
        return regardless_of_regions(self.edits(device))

    def projections(self, unet: nn.Module, options: Mapping[str, Any], inputs: Mapping[str, Tensor | None]) -> Projections:
        """Return the edited projections for a call of `unet`."""
        context, named, locked, locks, regional, stands, regions = given = [inputs.get(name) for name in PROJECTION_INPUTS]
        biases = biases_at(self.stack, options, self.to_sigma)
        self.report.reached.update(i for i, bias in enumerate(biases) if bias is not None)

        def make() -> Projections:
            concepts, edits = self.edits_with(context.device, biases)
            regional_prompts = regional
            if regions is None and len(edits) > 1:
                # Everywhere rather than nowhere.
                edits, regional_prompts, self.report.unplaced = [regardless_of_regions(edits)], None, True
            mine = named if named is None or len(concepts) == len(biases) else named[..., list(concepts)]
            keys = None if locks is None else self.family.read(unet, locks)
            made = Projections(edits, self.family.read(unet, context), mine, locked, keys, regional_prompts)
            if edits:
                report = functools.partial(self.report.add, concepts=concepts)
                triggers = [self.stack[i].trigger for i in concepts]
                made.others = OtherEncodings(regardless_of_regions(edits), triggers, report, self.family.causal)
                for by in made.by:
                    report(by)
            if regions is None or not (made.change or bool(stands.any())):  # no region, or none that matters
                made.only_first()
            return made

        if self.kept is None:
            return make()
        kept = self.kept.setdefault(context.device, ProjectionCache())
        return kept.projections(tuple(options.get("uuids", ())), biases, dict(zip(PROJECTION_INPUTS, given, strict=True)), make)


def regardless_of_regions(edits: Sequence[Edit]) -> Edit:
    """Return the edit of all concepts in any of the edits, each with the strength that it has where it is active."""
    return edits[0] if len(edits) == 1 else replace(edits[0], strength=torch.stack([each.strength for each in edits]).amax(0))
