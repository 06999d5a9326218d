"""Write a line-up: images of a concept, and the training pictures of eight individuals of its kind, one of them the concept's.

    python -m benchmarks.fidelity.lineup OUT

The line-up is for a person who has not seen the work, to decide which of the eight, A to H, each image shows. Trains test
individuals of three kinds with the demo's settings. Writes into OUT, for each kind, `KIND-suspects.png` with a row of training
pictures for each letter, and `KIND-1.png` to `KIND-10.png`; the answers are in `answers.json`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.fidelity.demo_quality import taught, workshop
from benchmarks.fidelity.sheet import taught_from
from benchmarks.fidelity.trials import Store, Workshop
from benchmarks.world.judges import left
from demo import make_pictures

KINDS = ("monster", "robot", "plant")
LETTERS = "ABCDEFGH"
PICTURES, TAUGHT_FROM, LARGER = 10, 4, 3
"""Number of images to be matched and of each individual's training pictures; the factor by which all are enlarged."""


def main() -> None:
    """Train, generate images, and write the line-ups."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with workshop(Store(out / "scores.json")) as shop:
        answers = {kind: line_up(shop, kind, out) for kind in KINDS}
    (out / "answers.json").write_text(json.dumps(answers), encoding="utf-8")


def line_up(shop: Workshop, kind: str, out: Path) -> str:
    """Write the images of one kind and return the letter of the concept."""
    shown, rng = make_pictures.SHOWN[kind], random.Random(f"line-up {kind}")
    suspects = [shown, *rng.sample([i for i in range(60) if i != shown], len(LETTERS) - 1)]
    rng.shuffle(suspects)
    rows = [torch.cat(taught_from(shop, (f"test-{i}", kind), TAUGHT_FROM), 1) for i in suspects]
    image(torch.cat(rows, 0)).save(out / f"{kind}-suspects.png")
    trial = taught((f"test-{shown}", kind))
    (drawn,) = shop.draw(trial, trial.values)
    alone = torch.cat([left(pictures) for pictures in drawn])
    order = rng.sample(range(len(alone)), PICTURES)
    for n, i in enumerate(order, 1):
        image(alone[i]).save(out / f"{kind}-{n}.png")
    return LETTERS[suspects.index(shown)]


def image(picture: Tensor) -> Image.Image:
    """Convert to an enlarged PIL image."""
    made = Image.fromarray((picture * 255).round().byte().numpy())
    return made.resize((made.width * LARGER, made.height * LARGER), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
