"""Draw the demo's pictures: test individuals in four places, with masks, and one that the base knows.

    python -m demo.make_pictures

Needs what `demo.draw` needs. Writes demo/pictures/KIND-N.png (256 x 256, RGBA): alpha is low where the character is, as in pictures
whose mask was painted in the host's editor, so that its Load Image gives picture and mask. Half, not 0, so that people see the
character: training takes masks by their maximum. And demo/pictures/plain-monster.png, without a mask: the picture whose layout a
workflow keeps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from demo import world
from demo.individuals import MOODS, Individual, individuals, named

PLACES = ("in a room", "at sunset", "in the city", "in the forest")
"""Where the pictures are taken; the demo's prompts ask for other places."""
SHOWN = {"monster": 3, "robot": 7, "plant": 11, "blob": 12}
"""Kind -> which individual of the test split the demo's pictures show."""
SIDE = 256


def individual(kind: str, split: str, index: int) -> Individual:
    """One of a kind and split, by its number."""
    return next(islice(individuals(kind, split), index, None))


def write(
    one: Individual, name: str, out: Path, places: Sequence[str] = PLACES, side: int = SIDE, first_seed: int = 0
) -> list[Path]:
    """Write NAME-N.png of an individual into `out`, one for each place, its moods in turn; `first_seed + N` is a picture's seed."""
    out.mkdir(parents=True, exist_ok=True)
    moods, files = list(MOODS[one.kind].values()), []
    for i, place in enumerate(places):
        mouths = moods[i % len(moods)]
        drawn = one.picture(mouths[i // len(moods) % len(mouths)], side * 3 // 2)
        picture, mask = world.compose([world.Standing(drawn)], place, random.Random(first_seed + i), side)
        picture.putalpha(mask.point(lambda share: 255 - (share + 1) // 2))
        files.append(out / f"{name}-{i}.png")
        picture.save(files[-1], optimize=True)
    return files


def main() -> None:
    """Write the demo's pictures; the same bytes every time."""
    out = Path(__file__).parent / "pictures"
    for kind, index in SHOWN.items():
        write(individual(kind, "test", index), kind, out)
    plain = next(iter(named("monster").values())).picture("smile", SIDE * 3 // 2)
    world.compose([world.Standing(plain)], "on the beach", random.Random(5), SIDE)[0].save(out / "plain-monster.png", optimize=True)


if __name__ == "__main__":
    main()
