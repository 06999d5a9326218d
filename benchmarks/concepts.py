"""Concepts to be taught: one held-out designer's version of a word, and training pictures of it.

    python -m benchmarks.concepts OUT DESIGNER WORD [--count 4] [--side 256] [--seed 0] [--emoji DIR]

Settings are chosen on DEVELOPMENT; what is reported is measured on TEST.
"""

import argparse
import random
from pathlib import Path

from demo import make_pictures, world
from scripts import bootstrap

Concept = tuple[str, str]
"""(designer, word)."""

DEVELOPMENT: tuple[Concept, ...] = (
    *(("emojione-v1", word) for word in ("cat", "car", "mushroom", "house", "apple")),
    *(("fxemoji", word) for word in ("cat", "car", "mushroom", "house", "apple")),
)
TEST: tuple[Concept, ...] = tuple(("fluent-emoji", word) for word in world.WORDS)


def pictures(emoji: Path, concept: Concept, out: Path, count: int = 4, side: int = 256, seed: int = 0) -> list[Path]:
    """Write `count` training pictures of a concept into `out`, as the demo's are: RGBA, alpha low where the thing is.

    The same bytes for the same seed. Backgrounds differ as long as there are enough. ValueError for what is no concept.
    """
    if concept not in DEVELOPMENT + TEST:
        raise ValueError(f"expected a held-out designer's word, but got {concept}; take one of DEVELOPMENT or TEST")
    designer, word = concept
    rounds = -(-count // len(world.BACKGROUNDS))
    rng = random.Random(seed)
    places = [place for _ in range(rounds) for place in rng.sample(world.BACKGROUNDS, len(world.BACKGROUNDS))][:count]
    # Each seed has a stretch of the pictures' own seeds for itself.
    make_pictures.write(emoji, designer, word, places, out, side, first_seed=1000 * (seed + 1))
    return [out / f"{word}-{i}.png" for i in range(count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("designer", choices=sorted({designer for designer, _ in DEVELOPMENT + TEST}))
    parser.add_argument("word", choices=list(world.WORDS))
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--side", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--emoji", type=Path, default=bootstrap.CACHE / "emoji", help="the emoji sets; fetched if missing")
    options = parser.parse_args()
    world.fetch(options.emoji)
    for file in pictures(options.emoji, (options.designer, options.word), options.out, options.count, options.side, options.seed):
        print(file)
