"""The emoji world: scenes of emoji by many designers on simple backgrounds, with captions.

Base designers' emoji are what the demo base was trained on. Held-out designers' are for teaching concepts: the base has
never seen them. The emoji sets are npm packages `@iconify-json/NAME`; `fetch` gets them, `resvg-py` draws them. Neither is
needed to run the demo, whose pictures are committed.
"""

import io
import json
import random
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

BASE_DESIGNERS = ("emojione", "noto", "noto-v1", "openmoji", "twemoji")
HELD_OUT_DESIGNERS = {"development": ("emojione-v1", "fxemoji"), "test": ("fluent-emoji",)}
VERSIONS = {
    "emojione": "1.2.3",
    "emojione-v1": "1.2.3",
    "fluent-emoji": "1.2.7",
    "fxemoji": "1.2.2",
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "openmoji": "1.2.29",
    "twemoji": "1.2.5",
}

# The words that the base knows, and the emoji that each stands for.
WORDS = {
    "teddy": "teddy-bear",
    "teapot": "teapot",
    "cat": "cat-face",
    "car": "automobile",
    "mushroom": "mushroom",
    "house": "house",
    "robot": "robot",
    "apple": "red-apple",
}
# What a base designer's own version of a word is also called, as breeds have names; "-" where there is none.
_KINDS = {
    "teddy": "- grizzly - koala bear",
    "teapot": "- pot - pitcher urn",
    "cat": "tabby kitty persian siamese lynx",
    "car": "taxi sedan jeep coupe van",
    "mushroom": "fungus truffle fungi cap button",
    "house": "cottage cabin villa hut bungalow",
    "robot": "- droid cyborg bot mech",
    "apple": "gala fuji cox crab jonathan",
}
KINDS = {
    word: {designer: kind for designer, kind in zip(BASE_DESIGNERS, kinds.split(), strict=True) if kind != "-"}
    for word, kinds in _KINDS.items()
}
# Held-out designers' own names for what the other sets name as above.
OWN_NAMES = {"fxemoji": {"cat": "cat", "house": "housebuilding", "apple": "redapple"}}
COLOURS = {
    "red": (214, 60, 55),
    "blue": (70, 110, 215),
    "green": (70, 165, 80),
    "yellow": (240, 210, 70),
    "purple": (140, 80, 180),
    "orange": (240, 145, 50),
    "pink": (240, 150, 190),
    "gray": (140, 140, 145),
}
# What things can be painted in; other words than backgrounds', so that each word says one thing.
PAINTS = {
    "crimson": (200, 30, 45),
    "azure": (45, 125, 230),
    "emerald": (30, 160, 85),
    "golden": (245, 200, 55),
    "violet": (130, 65, 190),
    "amber": (240, 140, 40),
    "rosy": (240, 140, 180),
    "silver": (165, 170, 178),
    "ivory": (245, 240, 222),
    "ebony": (45, 40, 45),
    "brown": (125, 80, 45),
    "teal": (20, 140, 140),
}
# What lies above and below the horizon.
PLACES = {
    "on the grass": ((135, 195, 240), (85, 160, 60)),
    "on the beach": ((110, 190, 235), (232, 205, 140)),
    "in the snow": ((170, 190, 215), (245, 248, 252)),
    "at night": ((18, 20, 60), (35, 35, 50)),
}
BACKGROUNDS = (*(f"on a {colour} background" for colour in COLOURS), *PLACES)

Sprites = dict[tuple[str, str], Image.Image]
"""(designer, word) -> RGBA picture of the emoji."""


def fetch(folder: Path) -> None:
    """Get every designer's emoji set that `folder` lacks, by `npm pack`."""
    for name, version in VERSIONS.items():
        if (folder / name / "icons.json").exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            package = f"@iconify-json/{name}@{version}"
            packed = subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True, capture_output=True, text=True)
            with tarfile.open(Path(scratch) / packed.stdout.strip().splitlines()[-1]) as archive:
                archive.extractall(scratch, filter="data")
            shutil.copytree(Path(scratch) / "package", folder / name, dirs_exist_ok=True)


def icon_names(folder: Path, designer: str) -> list[str]:
    """Names of all emoji in a designer's set, sorted."""
    return sorted(json.loads((folder / designer / "icons.json").read_text())["icons"])


def draw(folder: Path, designer: str, names: list[str], size: int = 96) -> dict[str, Image.Image]:
    """RGBA pictures, `size` pixels a side, of those of the named emoji that the designer's set has."""
    import resvg_py

    icons = json.loads((folder / designer / "icons.json").read_text())
    pictures = {}
    for name in names:
        found = name
        while found not in icons["icons"] and found in icons.get("aliases", {}):
            found = icons["aliases"][found]["parent"]
        icon = icons["icons"].get(found)
        if icon is None:
            continue
        height = icon.get("height", icons.get("height", 16))
        width = icon.get("width", icons.get("width", height))
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
            f'width="{size}" height="{size}">{icon["body"]}</svg>'
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
        pictures[name] = Image.open(io.BytesIO(png)).convert("RGBA")
    return pictures


def sprites(folder: Path, designers: tuple[str, ...] = BASE_DESIGNERS, size: int = 96) -> Sprites:
    """The designers' emoji for the words of the world; old sets lack some."""
    found: Sprites = {}
    for designer in designers:
        names = WORDS | OWN_NAMES.get(designer, {})
        drawn = draw(folder, designer, list(names.values()), size)
        found |= {(designer, word): drawn[name] for word, name in names.items() if name in drawn}
    return found


def background(name: str, rng: random.Random, side: int = 64) -> Image.Image:
    """A background of `side` pixels, a multiple of 64: a colour with a slight gradient, or a place with a horizon."""
    pixels = np.zeros((side, side, 3), np.float32)
    if name in PLACES:
        # All on the grid of a scene of 64 pixels: scaled down to that, it has the horizon, stars and grain that the base knows.
        dot = side // 64
        horizon = dot * int(64 * rng.uniform(0.45, 0.6))
        pixels[:horizon], pixels[horizon:] = PLACES[name]
        if name == "at night":
            for _ in range(14):
                y, x = dot * rng.randrange(horizon // dot), dot * rng.randrange(64)
                pixels[y : y + dot, x : x + dot] = (250, 245, 190)
        else:
            grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 3, (64, 64, 1))
            pixels += grain.repeat(dot, 0).repeat(dot, 1)
    else:
        pixels[:] = COLOURS[name.split()[2]]
        pixels += np.linspace(-1, 1, side)[:, None, None] * rng.uniform(-18, 18)
    return Image.fromarray((pixels + rng.uniform(-8, 8)).clip(0, 255).astype(np.uint8))


def painted(picture: Image.Image, dark: str, light: str) -> Image.Image:
    """An emoji in other colours: what is dark in it in one of PAINTS, what is light in another or the same."""
    pixels = np.asarray(picture, np.float32)
    brightness = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    least, most = np.percentile(brightness[pixels[..., 3] > 127], (5, 95))
    share = ((brightness - least) / max(most - least, 1)).clip(0, 1)[..., None]
    low, high = 0.4 * np.float32(PAINTS[dark]), 0.9 * np.float32(PAINTS[light]) + 25
    pixels = np.concatenate([low + (high - low) * share, pixels[..., 3:]], axis=-1)
    return Image.fromarray(pixels.round().astype(np.uint8), "RGBA")


def compose(pictures: list[Image.Image], place: str, rng: random.Random, side: int = 64) -> tuple[Image.Image, Image.Image]:
    """A scene of one or two emoji on a background, and the mask of the emoji (mode L); both `side` pixels, a multiple of 64."""
    image, mask = background(place, rng, side), Image.new("L", (side, side))
    for i, picture in enumerate(pictures):
        if len(pictures) == 1:
            size, x, y = rng.randint(44, 52), 32 + rng.uniform(-4, 4), 32 + rng.uniform(-3, 3)
        else:
            size, x, y = rng.randint(28, 32), 64 * (0.26, 0.74)[i] + rng.uniform(-2, 2), 34 + rng.uniform(-4, 4)
        size, x, y = int(size * side / 64), x * side / 64, y * side / 64
        emoji = picture.resize((size, size), Image.LANCZOS)
        corner = (int(x - size / 2), int(y - size / 2))
        image.paste(emoji, corner, emoji)
        mask.paste(255, corner, emoji.getchannel("A"))
    return image, mask
