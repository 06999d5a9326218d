"""Draw the demo's pictures: individuals of the test split in four places, with masks, and one individual that the base knows.

    python -m demo.make_pictures

Has the same requirements as `demo.draw`. Writes demo/pictures/KIND-N.png (256 x 256, RGBA). Alpha is reduced where the character
is, as in pictures whose mask was painted in the host's editor, so that the host's Load Image outputs the picture and the mask.
Alpha is half there rather than 0, so that the character stays visible to people; training scales masks by their maximum. Also
writes demo/pictures/plain-monster.png, without a mask: the picture for the workflow that keeps a picture's layout.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from demo import world
from demo.individuals import MOODS, Individual, individuals, named

PLACES = ("in a room", "at sunset", "in the city", "in the forest")
"""Places shown in the pictures; the demo's prompts ask for other places."""
SHOWN = {"monster": 3, "robot": 7, "plant": 11, "blob": 12}
"""Kind -> index in the test split of the individual that the demo's pictures show."""
SIDE = 256
LAYOUT_OF = "brian"
"""Name of the monster in plain-monster.png."""


def individual(kind: str, split: str, index: int) -> Individual:
    """Return the individual of a kind and split at an index."""
    return next(islice(individuals(kind, split), index, None))


def write(
    one: Individual, name: str, out: Path, places: Sequence[str] = PLACES, side: int = SIDE, first_seed: int = 0
) -> list[Path]:
    """Write NAME-N.png of an individual into `out`, one per place, cycling through its moods.

    Args:
        one: The individual.
        name: Start of the file names.
        out: Folder of the files; created if missing.
        places: Members of `world.PLACES`.
        side: Width and height of a picture in pixels.
        first_seed: Picture N has the seed `first_seed + N`.

    Returns:
        The files, in the order of `places`.
    """
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


def captions(kind: str, count: int) -> list[str]:
    """Return captions with `{}` for the individual, which say the mood and the place of the pictures that `write` makes."""
    moods = list(MOODS[kind])
    said = [moods[i % len(moods)] if kind != "robot" else "" for i in range(count)]  # a robot's mood is not visible
    return [" ".join(f"a photo of a {mood} {{}} {PLACES[i % len(PLACES)]}".split()) for i, mood in enumerate(said)]


def main() -> None:
    """Write the demo's pictures; every run writes the same bytes."""
    out = Path(__file__).parent / "pictures"
    for kind, index in SHOWN.items():
        write(individual(kind, "test", index), kind, out)
    plain = named("monster")[LAYOUT_OF].picture("smile", SIDE * 3 // 2)
    world.compose([world.Standing(plain)], "on the beach", random.Random(5), SIDE)[0].save(out / "plain-monster.png", optimize=True)


if __name__ == "__main__":
    main()
