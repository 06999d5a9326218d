"""A graph with the demo's concepts, and what its images are measured by."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.lab import Lab, draw
from demo import make_pictures
from demo.world import SIDE
from scripts.generate.make_workflows import SETTINGS
from scripts.harness.graphs import Graph, Link

BANDS = ("on the grass", "in a room", "in the snow", "under water")
"""Places that consist only of horizontal bands of colour."""
BATCH = 8
PLACES = ("on the beach", "at night", "in the snow", "in the desert", "under water", "in the forest")
"""Places on which the demo's concepts were not trained."""


class DemoGraph(Graph):
    """A graph with the demo's checkpoint and any number of its concepts, given by their kinds."""

    def __init__(self, *kinds: str, **settings: float) -> None:
        super().__init__()
        self.base, self.clip, self.vae = self.checkpoint()
        self.model, self.words = self.base, self.clip
        self.wide = SIDE * len(kinds)
        for kind in kinds:
            loaded = self.load(f"demo-{kind}.safetensors", **SETTINGS | settings)
            self.model, self.words = self.apply(self.model, self.words, loaded)

    def draw(self, model: Link, positive: Link, seed: int) -> tuple[Link, Link]:
        """Sample BATCH images, one square wide for each concept; return the latents and the images."""
        return draw(self, model, positive, self.text(self.words, ""), self.vae, seed, BATCH, wide=self.wide)


def thing(picture: Tensor) -> Tensor:
    """Segment the character in an image [H, W, 3] of one of BANDS: where it differs from the edges of its row, bool [H, W]."""
    edges = torch.cat([picture[:, :2], picture[:, -2:]], 1)
    return (picture - edges.median(1, keepdim=True).values).norm(dim=2) > 0.2


def recognised(lab: Lab, drawn: Tensor, kind: str) -> tuple[list[bool], list[bool]]:
    """Return for each square whether the demo's concept of a kind is recognised, and whether both it and its kind are."""
    known = lab.judges.recognised(drawn, kind, "test", make_pictures.SHOWN[kind]).tolist()
    there = [said == kind for said in lab.judges.say("kind", drawn).best()]
    return known, [a and b for a, b in zip(known, there, strict=True)]
