"""Draw the demo's training pictures: one held-out designer's teddy in four places, with masks.

    python -m demo.make_pictures --emoji DIR

DIR is where `demo.world.fetch` put the emoji sets. Writes demo/pictures/teddy-N.png (256 x 256, RGBA): alpha is
low where the teddy is, as in pictures whose mask was painted in the host's editor, so that its Load Image gives picture and mask.
Half, not 0, so that people see the teddy: training takes masks by their maximum.
"""

import argparse
import random
from pathlib import Path

from demo import world

PLACES = ("on the beach", "on a green background", "at night", "on a purple background")
SIDE = 256


def make(emoji: Path, out: Path) -> None:
    """Write the four pictures into `out`; the same bytes every time."""
    (designer,) = world.HELD_OUT_DESIGNERS["test"]
    teddy = world.sprites(emoji, (designer,), size=384)[designer, "teddy"]
    out.mkdir(parents=True, exist_ok=True)
    for i, place in enumerate(PLACES):
        picture, mask = world.compose([teddy], place, random.Random(i), SIDE)
        picture.putalpha(mask.point(lambda share: 255 - (share + 1) // 2))
        picture.save(out / f"teddy-{i}.png", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emoji", type=Path, required=True)
    make(parser.parse_args().emoji, Path(__file__).parent / "pictures")
