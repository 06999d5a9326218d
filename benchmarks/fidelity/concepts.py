"""Concepts to train: individuals that the base was never trained on, and training pictures of them.

    python -m benchmarks.fidelity.concepts OUT INDIVIDUAL KIND [--count 4] [--side 256] [--seed 0]

INDIVIDUAL is a split and a number, such as test-3. Settings are chosen on DEVELOPMENT; reported numbers are measured on TEST.
Drawing individuals needs packages that nothing else here needs; `check_packages` names them.
"""

from __future__ import annotations

import argparse
import random
from importlib.util import find_spec
from pathlib import Path

from demo import make_pictures, world
from demo.individuals import STYLES, Individual

Concept = tuple[str, str]
"""(individual, kind), such as ("test-3", "monster")."""

DEVELOPMENT: tuple[Concept, ...] = tuple((f"development-{i}", kind) for kind in STYLES for i in range(5))
TEST: tuple[Concept, ...] = tuple((f"test-{i}", kind) for kind in STYLES for i in sorted({0, 1, 2, make_pictures.SHOWN[kind]}))
"""The first three individuals of each kind, and the one that the demo's pictures show."""
MEASURED: tuple[Concept, ...] = tuple(
    (f"test-{i}", kind) for i, kind in sorted((i, kind) for kind, shown in make_pictures.SHOWN.items() for i in (0, shown))
)
"""The first individual of each kind, then those that the demo's pictures show: what is measured unless more are asked for."""
FURTHER: tuple[Concept, ...] = tuple(sorted((each for each in TEST if each not in MEASURED), key=lambda each: each[0]))
"""Test individuals of which nothing is measured before all settings are fixed; see `confirmation`."""
MODULES = ("dicebear", "dicebear_styles", "resvg_py")
PACKAGES = "dicebear-core==10.7.0 dicebear-styles==10.6.0 resvg-py"
"""The packages that contain MODULES."""


def which(concept: Concept) -> tuple[str, int]:
    """Return the split and the number of a concept's individual."""
    split, _, number = concept[0].rpartition("-")
    return split, int(number)


def individual(concept: Concept) -> Individual:
    """Return a concept's character."""
    return make_pictures.individual(concept[1], *which(concept))


def check_packages() -> None:
    """Raise SystemExit if the packages that draw individuals are not installed."""
    missing = [module for module in MODULES if find_spec(module) is None]
    if missing:
        raise SystemExit(f"expected what draws individuals, but there is no {', no '.join(missing)}; run pip install {PACKAGES}")


def pictures(concept: Concept, out: Path, count: int = 4, side: int = 256, seed: int = 0) -> list[Path]:
    """Write `count` training pictures of a concept into `out`, in the form of the demo's: RGBA, alpha low where the character is.

    The same seed gives the same bytes. Places repeat only after all of them were used. Raises ValueError if `concept` is neither
    in DEVELOPMENT nor in TEST.
    """
    if concept not in DEVELOPMENT + TEST:
        raise ValueError(f"expected a concept of DEVELOPMENT or TEST, but got {concept}; take one of these")
    check_packages()
    rounds, rng = -(-count // len(world.PLACES)), random.Random(seed)
    places = [place for _ in range(rounds) for place in rng.sample(world.PLACES, len(world.PLACES))][:count]
    one = individual(concept)
    # Each seed has its own range of picture seeds.
    return make_pictures.write(one, concept[1], out, places, side, first_seed=1000 * (seed + 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("individual")
    parser.add_argument("kind", choices=list(STYLES))
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--side", type=int, default=256, help="in pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        files = pictures((options.individual, options.kind), options.out, options.count, options.side, options.seed)
    except ValueError as error:
        parser.error(str(error))
    for file in files:
        print(file)
