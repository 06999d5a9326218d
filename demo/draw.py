"""Draw the characters of the demo's world, from which its base and its judges are trained.

    python -m demo.draw DIR

Requires `dicebear-core` 10.7.0, `dicebear-styles` 10.6.0 and `resvg-py`. Writes DIR/KIND-SPLIT.zip; a picture takes about 4 ms.
Running the demo requires none of this.
"""

import argparse
import io
import multiprocessing
import random
import zipfile
from itertools import islice
from pathlib import Path

from demo.individuals import MOODS, NAMES, SPLITS, STYLES, individuals

COUNTS = {"base": 5000, "development": 240, "test": 240}
"""Split -> number of individuals of each kind. The individuals that the base knows by name are the first ones of its split."""
IN_TWO_MOODS = 2
"""Number of pictures per unnamed individual of the base split; all other individuals are drawn with every mouth."""


def draw(kind: str, split: str, out: Path) -> None:
    """Draw all pictures of one kind and split into a zip file of INDEX-MOUTH.png, RGBA."""
    rng, mouths = random.Random(f"mouths {kind} {split}"), sorted({mouth for group in MOODS[kind].values() for mouth in group})
    part = out.with_suffix(".part")
    with zipfile.ZipFile(part, "w") as archive:
        for i, one in enumerate(islice(individuals(kind, split), COUNTS[split])):
            nameless = split == "base" and i >= len(NAMES[kind])
            for mouth in rng.sample(mouths, IN_TWO_MOODS) if nameless else mouths:
                png = io.BytesIO()
                one.picture(mouth).save(png, "PNG")
                archive.writestr(f"{i}-{mouth}.png", png.getvalue())
    part.replace(out)


def main() -> None:
    """Draw the files that are missing in DIR, on all cores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(kind, split, folder / f"{kind}-{split}.zip") for split in SPLITS for kind in STYLES]
    with multiprocessing.Pool() as pool:
        pool.starmap(draw, [each for each in wanted if not each[2].exists()], chunksize=1)


if __name__ == "__main__":
    main()
