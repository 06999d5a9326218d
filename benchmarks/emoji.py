"""The emoji world as a bed for trials: held-out designers' pictures, prompts with other backgrounds, and the oracles as judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.concepts import Concept
from benchmarks.methods import PLAIN, Recipe
from benchmarks.oracles import LEFT, RIGHT, WHOLE, Oracles
from benchmarks.trials import Prompt, Scores, Trial
from demo import make_pictures, world
from scripts import bootstrap

SIDE = 64
TAUGHT_ON = ("on a green background", "on the grass", "on a yellow background", "on a gray background")
"""Backgrounds of the training pictures; prompts ask for others."""


def prompts(concept: Concept) -> tuple[Prompt, ...]:
    """What is asked for with a concept."""
    words = list(world.WORDS)
    other = words[(words.index(concept[1]) + 3) % len(words)]
    return (
        Prompt("a photo of a {} on the beach", "on the beach"),
        Prompt("a picture of the {} at night", "at night"),
        Prompt("a {} in the snow", "in the snow"),
        Prompt("a good photo of the {} on a purple background", "on a purple background"),
        Prompt(f"a photo of a {{}} and a {other} on a blue background", "on a blue background", other),
    )


@dataclass(frozen=True)
class EmojiBed:
    """See `trials.Bed`."""

    emoji: Path
    judges: Oracles
    checkpoint: str = bootstrap.CHECKPOINT
    side: int = SIDE

    def pictures(self, folder: Path, concept: Concept, recipe: Recipe) -> list[str]:
        """See `trials.Bed.pictures`."""
        designer, word = concept
        places = [TAUGHT_ON[i % len(TAUGHT_ON)] for i in range(recipe.pictures)]
        make_pictures.write(self.emoji, designer, word, places, folder / designer, SIDE, first_seed=1000)
        names = [f"{designer}/{word}-{i}.png" for i in range(recipe.pictures)]
        if recipe.masks == PLAIN:
            for name in names:
                unsquared(Image.open(folder / name)).save(folder / name.replace(".png", "-plain.png"))
            names = [name.replace(".png", "-plain.png") for name in names]
        return names

    def judge(self, trial: Trial, drawn: list[Tensor]) -> Scores:
        """The probability of the concept's design among those of its word; whether word, background and other thing are right."""
        designer, word = trial.concept
        design, text = [], []
        for prompt, images in zip(trial.prompts, drawn, strict=True):
            box = LEFT if prompt.other else WHOLE
            design.append(self.judges.designs(images, word, box).of(designer))
            said = [self.judges.backgrounds(images).best(), self.judges.words(images, box).best()]
            wanted = [prompt.place, word]
            if prompt.other:
                said.append(self.judges.words(images, RIGHT).best())
                wanted.append(prompt.other)
            text.append(torch.tensor([list(each) == wanted for each in zip(*said, strict=True)]).float())
        return Scores(torch.stack(design).numpy(), torch.stack(text).numpy())


@dataclass(frozen=True)
class DemoBed(EmojiBed):
    """The demo's own pictures of a teddy, which every base directory comes with: no emoji are needed."""

    def pictures(self, folder: Path, concept: Concept, recipe: Recipe) -> list[str]:
        """See `trials.Bed.pictures`."""
        return [f"{concept[1]}-{i}.png" for i in range(recipe.pictures)]


DEMO: Concept = ("fluent-emoji", "teddy")
QUICK = (
    Prompt("a photo of a {} on the grass", "on the grass"),
    Prompt("a {} in the snow", "in the snow"),
    Prompt("a good photo of the {} on a blue background", "on a blue background"),
)
"""Prompts for the demo's concept: backgrounds that its pictures do not have."""


def unsquared(image: Image.Image) -> Image.Image:
    """A training picture whose mask gives each latent its share of the object as its weight: training squares what it is given."""
    alpha = 255 - np.asarray(image.getchannel("A"), dtype=np.float64)
    cells = alpha.reshape(SIDE // 8, 8, SIDE // 8, 8).mean((1, 3))
    root = np.sqrt(cells / cells.max()) * 127
    image.putalpha(Image.fromarray((255 - root.repeat(8, 0).repeat(8, 1)).round().astype(np.uint8)))
    return image
