"""Draw the demo's pictures: one held-out designer's teddy in four places, with masks, and a plain one that the base knows.

    python -m demo.make_pictures --emoji DIR

DIR is where `demo.world.fetch` put the emoji sets. Writes demo/pictures/teddy-N.png (256 x 256, RGBA): alpha is
low where the teddy is, as in pictures whose mask was painted in the host's editor, so that its Load Image gives picture and mask.
Half, not 0, so that people see the teddy: training takes masks by their maximum. And demo/pictures/plain-teddy.png, without a
mask: the picture whose layout a workflow keeps.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from demo import world

PLACES = ("on the beach", "on a green background", "at night", "on a purple background")
SIDE = 256
PLAIN = ("noto", "on the beach", 5)
"""Whose plain teddy, where, and the picture's seed."""


def make(emoji: Path, out: Path) -> None:
    """Write the demo's pictures into `out`; the same bytes every time."""
    (designer,) = world.HELD_OUT_DESIGNERS["test"]
    write(emoji, designer, "teddy", PLACES, out)
    designer, place, seed = PLAIN
    sprite = world.sprites(emoji, (designer,), size=SIDE * 3 // 2)[designer, "teddy"]
    picture, _ = world.compose([sprite], place, random.Random(seed), SIDE)
    picture.save(out / "plain-teddy.png", optimize=True)


def write(
    emoji: Path,
    designer: str,
    word: str,
    places: Sequence[str],
    out: Path,
    side: int = SIDE,
    first_seed: int = 0,
) -> None:
    """Write WORD-N.png of one designer's emoji, one for each place, into `out`; `first_seed + N` is a picture's seed.

    ValueError if the designer has no such emoji.
    """
    drawn = world.sprites(emoji, (designer,), size=side * 3 // 2)
    if (designer, word) not in drawn:
        raise ValueError(f"{designer} should have a {word}, but has only {', '.join(w for _, w in drawn)}; take one of these")
    out.mkdir(parents=True, exist_ok=True)
    for i, place in enumerate(places):
        picture, mask = world.compose([drawn[designer, word]], place, random.Random(first_seed + i), side)
        picture.putalpha(mask.point(lambda share: 255 - (share + 1) // 2))
        picture.save(out / f"{word}-{i}.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emoji", type=Path, required=True)
    make(parser.parse_args().emoji, Path(__file__).parent / "pictures")
