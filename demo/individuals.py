"""The characters of the demo's world: their kinds, their parts, and the words that describe them.

An individual is defined by the traits that stay the same (body, head, pattern, eyes, colours); its mood varies. Individuals are
drawn by `dicebear-core` from the CC0 styles `critters`, `clay`, `sprouts` and `voxel-bot` of `dicebear-styles`. This module
modifies the styles so that all traits are visible in small pictures: shadows are removed, patterns and heads take the second
colour, and patterns are larger. Only drawing requires these packages and `resvg-py`; the demo's own pictures are committed.
"""

from __future__ import annotations

import colorsys
import functools
import hashlib
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

STYLES = {"monster": "critters", "blob": "clay", "plant": "sprouts", "robot": "voxel-bot"}
HUES = {
    "red": (0.0, 0.78, 0.85),
    "orange": (0.075, 0.83, 0.95),
    "yellow": (0.14, 0.75, 0.96),
    "green": (0.33, 0.62, 0.66),
    "teal": (0.49, 0.66, 0.68),
    "blue": (0.61, 0.66, 0.88),
    "purple": (0.76, 0.52, 0.78),
    "pink": (0.92, 0.40, 0.97),
    "white": (0.1, 0.04, 0.96),
    "gray": (0.6, 0.06, 0.58),
}
"""Colour word -> hue, saturation and value; the shade of an individual lies near these."""
LEAVES = ("#4ade80", "#34d399", "#a3e635", "#22c55e", "#10b981")

PARTS: dict[str, dict[str, dict[str, str]]] = {
    "monster": {
        "body": {
            "block": "square",
            "peak": "pointed",
            "squat": "wide",
            "tower": "tall",
            "round": "",
            "bell": "",
            "dome": "",
            "wedgeInv": "",
        },
        "head": {
            "horns": "with horns",
            "hornsIn": "with horns",
            "antennae": "with antennas",
            "earsRound": "with ears",
            "earsDroop": "with ears",
            "spikes": "with spikes",
            "fin": "with a fin",
            "crown": "with a crown",
            "sprout": "with a leaf",
            "bobble": "with a ball",
        },
        "pattern": {
            "dots": "dotted",
            "stripes": "striped",
            "bars": "barred",
            "ring": "ringed",
            "belly": "spotted",
            "chevron": "wavy",
        },
        "eyes": {
            "round": "",
            "dots": "",
            "bigPupils": "",
            "mono": "one-eyed",
            "trio": "three-eyed",
            "threeRow": "three-eyed",
            "four": "four-eyed",
        },
    },
    "blob": {
        "body": {
            "cube": "square",
            "egg": "",
            "squat": "wide",
            "column": "tall",
            "boulder": "round",
            "pear": "",
            "bell": "",
            "loaf": "wide",
        },
        "head": {
            "horns": "with horns",
            "antenna": "with antennas",
            "spikes": "with spikes",
            "crest": "with a crest",
            "curl": "with a curl",
            "loop": "with a loop",
        },
        "pattern": {"pellets": "dotted", "coil": "ringed", "patch": "patched", "zig": "wavy"},
        "eyes": {"googly": "", "big": "", "tiny": "", "dots": "", "mono": "one-eyed", "trio": "three-eyed"},
    },
    "plant": {
        "body": {"round": "", "bowl": "", "tub": "", "rim": "", "cylinder": ""},
        "head": {
            "flower": "with a flower",
            "tulip": "with a tulip",
            "palm": "with a palm",
            "cactus": "with a cactus",
            "bush": "with a bush",
            "succulent": "with spikes",
            "sprout": "with a leaf",
            "grass": "with grass",
            "buds": "with buds",
        },
        "pattern": {"dots": "dotted", "stripes": "striped", "band": "barred"},
        "eyes": {"round": "", "dots": "", "bigPupils": ""},
    },
    "robot": {
        "head": {
            "antenna": "with an antenna",
            "twin": "with antennas",
            "dish": "with a dish",
            "fin": "with a fin",
            "lightbar": "with a light",
            "studs": "with bolts",
        },
        "pattern": {"heart": "with a heart", "screen": "with a screen", "dial": "with a dial"},
        "eyes": {"round": "", "square": "", "visor": "with a visor", "cyclops": "one-eyed", "plus": ""},
    },
}
"""Kind -> part -> variant, by its name in the style -> wording in captions; "" if there is no word for it."""
PLAIN = {"head": 0.08, "pattern": 0.35}
"""Part -> share of individuals without it. The head of a plant is the plant itself and never missing."""
FLOWERS = ("flower", "tulip", "buds")
"""Heads of plants that are drawn in the second colour."""
BLOOMING = ("bush", "cactus")
"""Green heads of plants in which the second colour can be seen."""
MOODS: dict[str, dict[str, tuple[str, ...]]] = {
    "monster": {"smiling": ("smile", "grin"), "sad": ("frown",), "surprised": ("ooh",), "grumpy": ("teeth", "zigzag")},
    "blob": {"smiling": ("smileBig", "laugh"), "sad": ("frown",), "surprised": ("o",), "grumpy": ("toothy", "zigzag")},
    "plant": {"smiling": ("smile", "grin"), "sad": ("frown",), "surprised": ("ooh",), "grumpy": ("tooth",)},
    "robot": {"": ("smile", "line", "zigzag")},
}
"""Kind -> mood -> mouths. The mouth of a robot is too small to show a mood."""
NAMES: dict[str, tuple[str, ...]] = {
    "monster": tuple(
        "kate monica matt lucky fritz greg bobby bruno diana jessica vincent louis ralph klaus carlos hannah joey fiona fred neil "
        "lauren brian peter dylan".split()
    ),
    "blob": tuple(
        "robert michael john kyle dean karl thomas larry sergio ray charlie pedro stella luna maria dante jerry steve freddie nina "
        "paul rosa tyler luis".split()
    ),
    "plant": tuple(
        "leo miguel james ryan chloe juan scott hugo finn rachel sakura roy julia david pablo lola theo molly max liam "
        "yuki nova sarah diego".split()
    ),
    "robot": tuple(
        "hiro mike rex tony rebecca beth billy wally laura lily richard daniel simon lucy danny kenny megan ziggy kai kurt "
        "hana joseph jack felix".split()
    ),
}
"""Single words of CLIP's vocabulary, each of which the base knows as one individual, as SD knows people by name."""
SPLITS = ("base", "development", "test")


@dataclass(frozen=True)
class Individual:
    """A character, defined by its kind and the traits that are the same in all pictures of it."""

    kind: str
    parts: tuple[tuple[str, str], ...]
    """(part, variant) pairs, with "" for a missing part."""
    colours: tuple[str, str]
    """The words for the body's colour and for the second colour."""
    shades: tuple[str, str, str]
    """The exact colours as #rrggbb: those of `colours`, and that of the leaves."""

    @property
    def variants(self) -> dict[str, str]:
        """Part -> variant."""
        return dict(self.parts)

    @property
    def looks(self) -> str:
        """All visible traits except exact shades, as JSON; individuals are distinct if these differ."""
        return json.dumps([self.kind, self.parts, self.colours])

    @property
    def split(self) -> str:
        """The one of SPLITS that the individual belongs to, from a hash of its looks."""
        share = int.from_bytes(hashlib.sha256(self.looks.encode()).digest()[:4], "big") / 2**32
        return "development" if share < 0.04 else "test" if share < 0.08 else "base"

    @property
    def tinted(self) -> bool:
        """Whether it has a head part in the second colour: all head parts are, except green plants."""
        head = self.variants.get("head", "")
        return bool(head) and (self.kind != "plant" or head in FLOWERS)

    @property
    def two_coloured(self) -> bool:
        """Whether the second colour can be seen in pictures of it."""
        parts = self.variants
        return self.kind == "robot" or bool(parts.get("pattern")) or self.tinted or parts.get("head") in BLOOMING

    def said(self, part: str) -> str:
        """Return the wording for a part in captions, or "" if there is none."""
        variant = self.variants.get(part, "")
        return PARTS[self.kind][part].get(variant, "") if variant else ""

    def picture(self, mouth: str, size: int = 128) -> Image.Image:
        """Draw the individual with a mouth as RGBA, cropped to the visible pixels.

        Args:
            mouth: Name of the mouth's variant in the style.
            size: Width and height of the whole canvas in pixels, before cropping.
        """
        import resvg_py
        from dicebear import Avatar

        style, names = _style(self.kind), {"monster": {"head": "top"}, "blob": {"head": "top"}}
        names |= {"plant": {"head": "plant", "body": "pot"}, "robot": {"head": "top", "pattern": "chest"}}
        main, second, leaf = ([shade] for shade in self.shades)
        options: dict[str, Any] = {
            "seed": "a",
            "backgroundColor": ["#00000000"],
            "animationVariant": ["none"],
            "mouthVariant": [mouth],
        }
        options |= {
            "monster": {"bodyColor": main, "accentColor": second, "cheeksProbability": 0},
            "blob": {"bodyColor": main, "accentColor": second},
            "plant": {"potColor": main, "bloomColor": second, "plantColor": leaf, "cheeksProbability": 0},
            "robot": {"bodyColor": main, "accentColor": second, "glowColor": second},
        }[self.kind]
        for part, variant in self.parts:
            name = names[self.kind].get(part, part)
            options |= {f"{name}Variant": [variant]} if variant else {}
            options[f"{name}Probability"] = 100 if variant else 0
        png = bytes(resvg_py.svg_to_bytes(svg_string=str(Avatar(style, options)), width=size, height=size))
        image = Image.open(io.BytesIO(png)).convert("RGBA")
        return image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 40)).getbbox())


def individuals(kind: str, split: str) -> Iterator[Individual]:
    """Yield the individuals of a kind and split, always in the same order.

    No two individuals have the same looks, and no individual belongs to two splits. There are about ten thousand different robots
    in all splits together, and far more of the other kinds. Once all are exhausted, the iterator loops forever without yielding.
    """
    rng, seen = random.Random(f"{kind} of {split}"), set()
    while True:
        one = _individual(kind, rng)
        if one.split == split and one.looks not in seen:
            seen.add(one.looks)
            yield one


def named(kind: str) -> dict[str, Individual]:
    """Return the individuals that the base knows by name."""
    return dict(zip(NAMES[kind], individuals(kind, "base"), strict=False))


def _individual(kind: str, rng: random.Random) -> Individual:
    parts = []
    for part, variants in PARTS[kind].items():
        # Draw the word first, then one of its variants, so that all words are equally frequent.
        words = sorted(set(variants.values()))
        word = rng.choice(words)
        variant = rng.choice([variant for variant, said in variants.items() if said == word])
        missing = rng.random() < PLAIN.get(part, 0) and (kind, part) != ("plant", "head")
        parts.append((part, "" if missing else variant))
    colours = tuple(rng.sample(list(HUES), 2))
    return Individual(kind, tuple(parts), colours, (*(_shade(rng, name) for name in colours), rng.choice(LEAVES)))


def _shade(rng: random.Random, name: str) -> str:
    h, s, v = HUES[name]
    h, s, v = (h + rng.uniform(-0.02, 0.02)) % 1, s + rng.uniform(-0.1, 0.1) * (s > 0.1), v + rng.uniform(-0.07, 0.04)
    shade = colorsys.hsv_to_rgb(h, min(1, max(0, s)), min(1, max(0, v)))
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in shade)


_LARGER = {"monster": (16, 13, 1.4), "blob": (15, 8, 1.5), "plant": (14, 9, 1.1)}
"""Kind -> centre (x, y) of the pattern, and the factor by which the pattern is enlarged."""


@functools.cache
def _style(kind: str) -> Any:
    """Load the style of a kind, modified as described in the module's docstring."""
    import dicebear_styles
    from dicebear import Style

    file = Path(next(iter(dicebear_styles.__path__))) / f"{STYLES[kind]}.json"
    style = json.loads(file.read_text())
    second = {"type": "color", "name": "bloom" if kind == "plant" else "accent"}
    for name, component in style["components"].items():
        for variant in component["variants"].values():
            taken = (name == "pattern") or (kind, name) == ("blob", "top")
            variant["elements"] = _elements(variant["elements"], second if taken else None)
            if name == "pattern":
                x, y, scale = _LARGER[kind]
                placed = {"transform": f"translate({x} {y}) scale({scale}) translate({-x} {-y})"}
                variant["elements"] = [{"name": "g", "type": "element", "attributes": placed, "children": variant["elements"]}]
    return Style(style)


def _elements(elements: list[dict[str, Any]], colour: dict[str, str] | None) -> list[dict[str, Any]]:
    """Return a style's elements without shadows, recoloured if a colour is given."""
    kept = []
    for element in elements:
        attributes = dict(element.get("attributes", {}))
        if attributes.get("opacity") == ".15":
            continue
        if colour:
            attributes = {key: value for key, value in attributes.items() if not key.endswith("opacity")}
            attributes |= {key: colour for key in ("fill", "stroke") if attributes.get(key, "none") != "none"}
        changed = {"attributes": attributes} if "attributes" in element else {}
        if "children" in element:
            changed["children"] = _elements(element["children"], colour)
        kept.append(element | changed)
    return kept
