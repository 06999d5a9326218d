"""The demo's world of characters as a bed for trials.

It provides pictures of individuals that the base was never trained on, prompts for places not in these pictures, and the judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.fidelity import concepts
from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.methods import PLAIN, Recipe
from benchmarks.fidelity.trials import Prompt, Scores, Trial
from benchmarks.world.judges import Judges, left, right
from demo import make_pictures
from demo.world import SIDE
from scripts.setup import bootstrap

TAUGHT_ON = make_pictures.PLACES
"""Places of the training pictures; the prompts ask for others."""


def prompts(concept: Concept) -> tuple[Prompt, ...]:
    """Return the prompts for a concept. A robot's prompts ask for no mood, because its mood is not visible."""
    moody = concept[1] != "robot"
    other = "robot" if moody else "monster"
    return (
        Prompt("a photo of a {} on the beach", "on the beach"),
        Prompt("a picture of the {} at night", "at night"),
        Prompt("a {} in the snow", "in the snow"),
        Prompt("a photo of a sad {} under water", "under water", mood="sad")
        if moody
        else Prompt("a good photo of the {} under water", "under water"),
        Prompt("a photo of a {} holding a balloon in the desert", "in the desert", carries=True),
        Prompt(f"a photo of a {{}} and a {other} on the beach", "on the beach", other=other),
    )


@dataclass(frozen=True)
class CharacterBed:
    """A `trials.Bed` of the demo's world."""

    judges: Judges
    checkpoint: str = bootstrap.CHECKPOINT
    side: int = SIDE

    def pictures(self, folder: Path, concept: Concept, recipe: Recipe) -> list[str]:
        """See `trials.Bed.pictures`."""
        concepts.check_packages()
        one = concepts.individual(concept)
        places = [TAUGHT_ON[i % len(TAUGHT_ON)] for i in range(recipe.pictures)]
        files = make_pictures.write(one, concept[1], folder / concept[0], places, SIDE, first_seed=1000)
        names = [f"{concept[0]}/{file.name}" for file in files]
        if recipe.masks == PLAIN:
            for name in names:
                unsquared(Image.open(folder / name)).save(folder / name.replace(".png", "-plain.png"))
            names = [name.replace(".png", "-plain.png") for name in names]
        return names

    def judge(self, trial: Trial, drawn: list[Tensor]) -> Scores:
        """Score images by the individual's judges.

        Likeness is the mean of identity and `details`; text is the share of the prompt's elements, its kind included.
        """
        split, number = concepts.which(trial.concept)
        kind, likeness, text, identity = trial.concept[1], [], [], []
        for prompt, images in zip(trial.prompts, drawn, strict=True):
            squares = [left(images), right(images)] if prompt.wide else [images]
            identity.append(self.judges.recognised(squares[0], kind, split, number).float())
            likeness.append((identity[-1] + self.details(trial.concept, squares[0])) / 2)
            text.append(self.there(prompt, kind, squares))
        return Scores(*(torch.stack(part).numpy() for part in (likeness, text, identity)))

    def details(self, concept: Concept, images: Tensor) -> Tensor:
        """Return the share of the individual's features, both of its colours included if they show, that each image shows, [B]."""
        one = concepts.individual(concept)
        looks = {part: one.said(part) for part, variant in one.parts if not variant or one.said(part)}
        looks |= {"colour": one.colours[0]} | ({"second": one.colours[1]} if one.two_coloured else {})
        found = self.judges.say_all(images, tuple(looks))
        return torch.tensor([[best == answer for best in found[part].best()] for part, answer in looks.items()]).float().mean(0)

    def there(self, prompt: Prompt, kind: str, squares: list[Tensor]) -> Tensor:
        """Return the share of a prompt's elements that the images show, [B]; the place must be right in both halves."""

        def said(question: str, answer: str, images: Tensor) -> Tensor:
            return torch.tensor([best == answer for best in self.judges.say(question, images).best()])

        found = [said("kind", kind, squares[0])]
        if prompt.place:
            found.append(torch.stack([said("place", prompt.place, images) for images in squares]).all(0))
        if prompt.mood:
            found.append(said("mood", prompt.mood, squares[0]))
        if prompt.carries:
            found.append(said("balloon", "yes", squares[0]))
        if prompt.other:
            found.append(said("kind", prompt.other, squares[1]))
        return torch.stack(found).float().mean(0)


@dataclass(frozen=True)
class DemoBed(CharacterBed):
    """A bed with the demo's committed pictures, which every base directory contains, so that none have to be drawn."""

    def pictures(self, folder: Path, concept: Concept, recipe: Recipe) -> list[str]:
        """See `trials.Bed.pictures`."""
        return [f"{concept[1]}-{i}.png" for i in range(recipe.pictures)]


DEMO: Concept = (f"test-{make_pictures.SHOWN['monster']}", "monster")
QUICK = (
    Prompt("a photo of a {} on the beach", "on the beach"),
    Prompt("a photo of a sad {} in the snow", "in the snow", mood="sad"),
)
"""Prompts for DEMO, for places that its pictures do not show."""


def unsquared(image: Image.Image) -> Image.Image:
    """Change a training picture's mask so that each latent is weighted by its share of the object.

    Training squares the mask, so this takes its square root.
    """
    alpha = 255 - np.asarray(image.getchannel("A"), dtype=np.float64)
    cells = alpha.reshape(SIDE // 8, 8, SIDE // 8, 8).mean((1, 3))
    root = np.sqrt(cells / cells.max()) * 127
    image.putalpha(Image.fromarray((255 - root.repeat(8, 0).repeat(8, 1)).round().astype(np.uint8)))
    return image
