"""The demo's world: characters in places, and captions that describe them.

A scene shows one character in a square of 96 pixels, or two side by side in a picture twice as wide, each as large as alone.
"""

from __future__ import annotations

import io
import random
import zipfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from demo.individuals import MOODS, NAMES, Individual, individuals

SIDE = 96
FORMS = ("a photo of a {}", "a {}", "a good photo of the {}", "a picture of the {}")
MOUTHS = {kind: {mouth: mood for mood, mouths in moods.items() for mouth in mouths} for kind, moods in MOODS.items()}
"""Kind -> mouth -> mood."""
PLACES = (
    "on the grass",
    "on the beach",
    "in the snow",
    "at night",
    "in the desert",
    "at sunset",
    "under water",
    "in the forest",
    "in the city",
    "in a room",
)
CARRIED = "holding a balloon"
_BALLOONS = ((225, 60, 60), (250, 200, 60), (70, 120, 230), (235, 110, 190), (120, 200, 90))


# Places


def background(place: str, rng: random.Random, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Paint one of PLACES, RGB. All lengths are fractions of the height."""
    scale = max(1, 256 // height)
    image = Image.new("RGB", (width * scale, height * scale))
    paper, unit = ImageDraw.Draw(image), height * scale
    _PAINTERS[place](paper, image.width, unit, rng)
    pixels = np.asarray(image.resize((width, height), Image.BOX), np.float32) + rng.uniform(-7, 7)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


Colour = tuple[int, int, int]


def _bands(paper: ImageDraw.ImageDraw, width: int, unit: int, *bands: tuple[float, Colour]) -> None:
    """Paint horizontal bands, each from its start, as a fraction of the height, down to the bottom."""
    for start, colour in bands:
        paper.rectangle((0, round(start * unit), width, unit), fill=colour)


def _shading(paper: ImageDraw.ImageDraw, width: int, unit: int, end: float, top: Colour, bottom: Colour) -> None:
    """Paint a vertical gradient from the top to `end`, as a fraction of the height."""
    for y in range(round(end * unit)):
        share = y / (end * unit)
        paper.line((0, y, width, y), fill=tuple(round(a + (b - a) * share) for a, b in zip(top, bottom, strict=True)))


def _grass(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    _bands(paper, width, unit, (0, (135, 195, 240)), (rng.uniform(0.5, 0.62), (95, 170, 70)))


def _beach(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    sea = rng.uniform(0.42, 0.5)
    _bands(paper, width, unit, (0, (165, 215, 245)), (sea, (45, 135, 195)), (sea + rng.uniform(0.14, 0.2), (236, 212, 150)))


def _snow(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    _bands(paper, width, unit, (0, (178, 194, 216)), (rng.uniform(0.5, 0.62), (244, 248, 252)))


def _night(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    _bands(paper, width, unit, (0, (22, 24, 66)), (rng.uniform(0.6, 0.7), (38, 40, 56)))
    for square in range(round(width / unit)):
        x, y, r = unit * (square + rng.choice((0.13, 0.87))), unit * rng.uniform(0.12, 0.2), unit * 0.075
        paper.ellipse((x - r, y - r, x + r, y + r), fill=(250, 240, 190))


def _desert(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    horizon = rng.uniform(0.52, 0.62)
    _bands(paper, width, unit, (0, (252, 226, 170)), (horizon, (222, 160, 92)))
    for square in range(round(width / unit)):
        x, high = unit * (square + rng.uniform(0.2, 0.8)), unit * rng.uniform(0.12, 0.2)
        paper.polygon(
            [(x - 0.4 * unit, horizon * unit), (x, horizon * unit - high), (x + 0.4 * unit, horizon * unit)], fill=(206, 138, 76)
        )


def _sunset(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    horizon = rng.uniform(0.58, 0.66)
    _shading(paper, width, unit, horizon, (92, 60, 140), (252, 150, 84))
    _bands(paper, width, unit, (horizon, (66, 44, 72)))


def _water(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    floor = rng.uniform(0.78, 0.84)
    _shading(paper, width, unit, floor, (84, 196, 216), (22, 92, 152))
    _bands(paper, width, unit, (floor, (20, 62, 104)))


def _forest(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    ground = rng.uniform(0.7, 0.78)
    _bands(paper, width, unit, (0, (38, 84, 58)), (ground, (60, 74, 42)))
    for square in range(round(width / unit)):
        for place in (0.06, 0.28, 0.5, 0.72, 0.94):
            x, wide = unit * (square + place + rng.uniform(-0.04, 0.04)), unit * 0.035
            paper.rectangle((x - wide, 0, x + wide, ground * unit), fill=(72, 52, 36))


def _city(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    street = rng.uniform(0.7, 0.78)
    _bands(paper, width, unit, (0, (206, 220, 234)))
    x = 0.0
    while x < width:
        wide, high, dark = unit * rng.uniform(0.2, 0.3), rng.uniform(0.12, 0.45), rng.choice((120, 136, 152))
        paper.rectangle((x, high * unit, x + wide, street * unit), fill=(dark, dark + 4, dark + 14))
        x += wide
    _bands(paper, width, unit, (street, (84, 84, 90)))


def _room(paper: ImageDraw.ImageDraw, width: int, unit: int, rng: random.Random) -> None:
    _bands(paper, width, unit, (0, (240, 226, 202)), (rng.uniform(0.68, 0.76), (166, 116, 72)))


_PAINTERS = dict(zip(PLACES, (_grass, _beach, _snow, _night, _desert, _sunset, _water, _forest, _city, _room), strict=True))


# Scenes


class Standing(NamedTuple):
    """A character as placed in a scene."""

    picture: Image.Image
    """RGBA, as returned by `Individual.picture`."""
    carries: bool = False
    """Whether the character holds a balloon."""


def compose(them: list[Standing], place: str, rng: random.Random, side: int = SIDE) -> tuple[Image.Image, Image.Image]:
    """Compose a scene of characters side by side, [side, side * len(them)], and the mask of the characters (mode L)."""
    image = background(place, rng, side * len(them), side)
    mask = Image.new("L", image.size)
    for i, one in enumerate(them):
        left = side * i
        if one.carries:
            _balloon(image, left, side, rng)
        high = side * rng.uniform(0.78, 0.88)
        scale = min(high / one.picture.height, 0.88 * side / one.picture.width)
        drawn = one.picture.resize([max(1, round(n * scale)) for n in one.picture.size], Image.LANCZOS)
        middle, feet = left + side * (0.5 + rng.uniform(-0.04, 0.04)), side * rng.uniform(0.91, 0.97)
        corner = round(middle - drawn.width / 2), round(feet - drawn.height)
        image.paste(drawn, corner, drawn)
        mask.paste(255, corner, drawn.getchannel("A"))
    return image, mask


def _balloon(image: Image.Image, left: int, side: int, rng: random.Random) -> None:
    """Draw a balloon on a string at one of a square's upper corners. The character is pasted over it later."""
    large = Image.new("RGBA", (4 * side, 4 * side))
    paper, unit = ImageDraw.Draw(large), 4 * side
    right = rng.random() < 0.5
    x, y, r = unit * (0.86 if right else 0.14), unit * rng.uniform(0.15, 0.2), unit * 0.105
    paper.line((x, y, unit * (0.68 if right else 0.32), unit * 0.72), fill=(60, 60, 60), width=round(unit * 0.018))
    paper.ellipse((x - r, y - 1.15 * r, x + r, y + 1.15 * r), fill=rng.choice(_BALLOONS))
    small = large.resize((side, side), Image.BOX)
    image.paste(small, (left, 0), small)


# Captions


@dataclass(frozen=True)
class Said:
    """The traits of one character that a caption mentions; a judge is asked about exactly these."""

    kind: str
    name: str = ""
    mood: str = ""
    colour: str = ""
    body: str = ""
    pattern: str = ""
    head: str = ""
    second: str = ""
    """The colour of the head part."""
    eyes: str = ""
    carries: bool = False

    def text(self) -> str:
        """Return the wording in a caption, without the article; `Caption.of` puts "an" where required."""
        after = [words for words in (self.pattern, self.tinted_head(), self.eyes) if words.startswith("with ")]
        before = [self.mood, self.body, *(words for words in (self.eyes,) if words not in after), self.colour]
        before += [words for words in (self.pattern,) if words not in after]
        return " ".join([*filter(None, before), self.name or self.kind, *after, *([CARRIED] if self.carries else [])])

    def tinted_head(self) -> str:
        """Return the wording for the head with its colour: "with teal horns", "with a teal fin"."""
        if not self.second:
            return self.head
        start, _, thing = self.head.rpartition(" ")
        article = " a" if start != "with" else ""
        return f"with{article} {self.second} {thing}"


class Caption(NamedTuple):
    """The contents of a scene, and the text that describes them."""

    them: tuple[Said, ...]
    place: str
    text: str

    @classmethod
    def of(cls, form: str, them: tuple[Said, ...], place: str) -> Caption:
        """Build the caption in one of FORMS; `place` may be ""."""
        both = " and a ".join(one.text() for one in them)
        return cls(them, place, f"{form.format(both)} {place}".strip().replace("a orange", "an orange"))


MOOD, COLOUR, PART, TINT, BARE = 0.5, 0.75, 0.6, 0.6, 0.1
"""Share of captions that mention the mood; among captions that describe looks, the shares that mention the body's colour, each
part, and the colour of the head if the head is mentioned; share of captions without a name that describe no looks."""


def describe(one: Individual, mood: str, carries: bool, rng: random.Random, name: str = "") -> Said:
    """Choose at random the traits of a character that a caption mentions. A name replaces all looks."""
    said = {"mood": mood if rng.random() < MOOD else "", "carries": carries}
    if not name and rng.random() > BARE:
        said["colour"] = one.colours[0] if rng.random() < COLOUR else ""
        said |= {part: one.said(part) for part in one.variants if rng.random() < PART}
        if one.kind == "robot" and said.get("head") and said.get("pattern"):
            said.pop(rng.choice(("head", "pattern")))
        if said.get("head") and one.tinted and rng.random() < TINT:
            said["second"] = one.colours[1]
    return Said(one.kind, name, **said)


# The cast


class Cast:
    """Individuals of one kind and split, with the pictures that `demo.draw` drew of them."""

    def __init__(self, folder: Path, kind: str, split: str) -> None:
        self.kind = kind
        self.pictures: list[dict[str, bytes]] = []
        """For each individual, mouth -> PNG file contents."""
        with zipfile.ZipFile(folder / f"{kind}-{split}.zip") as archive:
            for entry in archive.namelist():
                i, mouth = entry.removesuffix(".png").split("-")
                self.pictures += [{} for _ in range(int(i) + 1 - len(self.pictures))]
                self.pictures[int(i)][mouth] = archive.read(entry)
        self.individuals = list(islice(individuals(kind, split), len(self.pictures)))
        self.names = NAMES[kind] if split == "base" else ()

    def picture(self, i: int, mouth: str) -> Image.Image:
        """Return the picture of individual `i` with a mouth, RGBA."""
        return Image.open(io.BytesIO(self.pictures[i][mouth]))

    def moods(self, i: int) -> dict[str, list[str]]:
        """Return, for each mood, the mouths that individual `i` was drawn with."""
        found: dict[str, list[str]] = {}
        for mouth in self.pictures[i]:
            found.setdefault(MOUTHS[self.kind][mouth], []).append(mouth)
        return found
