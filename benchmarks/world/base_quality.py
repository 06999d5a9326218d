"""Measure how well the base follows prompts without any concept: appearance, place, two characters, characters by name.

    python -m benchmarks.world.base_quality --cast DIR [--checkpoint NAME] [--quick]

`--cast` is the output of `demo.draw`. Generates images with the host's own nodes, lets the judges score them, and measures where
the base's attention goes. `--checkpoint` names another file in the set-up's models/checkpoints; without it, writes
`results/base.md` and a sheet of images beside it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.lab import RESULTS, SAMPLING, Lab, draw, percent
from benchmarks.world import base_attention, judge_training
from benchmarks.world.judges import Judges, left, right
from demo import make_pictures, world
from demo.individuals import MOODS, NAMES, STYLES
from scripts.harness.graphs import Graph
from scripts.harness.server import Server
from scripts.setup import bootstrap

SINGLES, PAIRS, SEEDS = 120, 160, 3
"""Number of prompts with one character of each kind; of prompts with two; of images for each name."""
GUIDANCE = 4.0
"""Classifier-free guidance at which the base is measured, because it follows its prompts best there. The demo samples with less."""
PARTS = ("kind", "colour", "pattern", "head", "second", "eyes", "body", "mood")
"""Features that a caption may mention of a character; the judges' questions have the same names."""
LABELS = {"second": "the head's colour"}
SHEET = "base.png"


def described(kind: str, rng: random.Random) -> world.Said:
    """Describe a character that the base was never trained on, in the manner of its training captions."""
    one = make_pictures.individual(kind, "development", rng.randrange(200))
    return world.describe(one, rng.choice(list(MOODS[kind])), rng.random() < 0.15, rng)


def pictures(
    lab: Lab, checkpoint: str, texts: Sequence[str], first: int, count: int = 1, wide: int = 1, cfg: float = GUIDANCE
) -> Tensor:
    """Generate images [texts * count, 96, 96 * wide, 3]; prompt i has the seed first + i."""
    found = []
    for start in range(0, len(texts), 40):
        graph = Graph()
        model, clip, vae = graph.checkpoint(checkpoint)
        negative = graph.text(clip, "")
        part = list(enumerate(texts))[start : start + 40]
        links = [
            draw(graph, model, graph.text(clip, text), negative, vae, first + i, count, world.SIDE, world.SIDE * wide, cfg)[1]
            for i, text in part
        ]
        found += lab.pictures(graph, *links)
    return torch.cat(found)


class Tally:
    """Counts of requested features and of whether the images show them."""

    def __init__(self) -> None:
        self.found: dict[str, list[bool]] = {}

    def look(self, judges: Judges, images: Tensor, said: Sequence[world.Said]) -> None:
        """Judge images of characters [B, 96, 96, 3] by what the caption said of each."""
        answers = {question: said_of.best() for question, said_of in judges.say_all(images).items()}
        for i, one in enumerate(said):
            for part in PARTS:
                if wanted := getattr(one, part):
                    self.add(LABELS.get(part, part), answers[part][i] == wanted)
            if one.carries:
                self.add(world.CARRIED, answers["balloon"][i] == "yes")

    def add(self, name: str, right: bool) -> None:
        """Count one answer."""
        self.found.setdefault(name, []).append(right)

    def rows(self) -> list[str]:
        """Return a table row for each feature."""
        return [f"| {name} | {percent(found)} |" for name, found in self.found.items()]


def singles(lab: Lab, checkpoint: str, count: int, cfg: float = GUIDANCE) -> tuple[Tally, list[str]]:
    """Measure prompts with one character: return the answers, and a table row for each kind."""
    tally, kinds = Tally(), []
    for n, kind in enumerate(STYLES):
        rng, one = random.Random(f"singles {kind}"), Tally()
        said = [described(kind, rng) for _ in range(count)]
        captions = [world.Caption.of("a photo of a {}", (each,), rng.choice(world.PLACES)) for each in said]
        drawn = pictures(lab, checkpoint, [caption.text for caption in captions], 10000 * n, cfg=cfg)
        places = lab.judges.say("place", drawn).best()
        for each in (tally, one):
            each.look(lab.judges, drawn, said)
            for caption, place in zip(captions, places, strict=True):
                each.add("place", caption.place == place)
        columns = ("kind", "colour", "pattern", "head", "mood", "place")
        kinds.append(f"| {kind} | {' | '.join(percent(one.found[name]) if name in one.found else '–' for name in columns)} |")
    return tally, kinds


def pairs(lab: Lab, checkpoint: str, count: int) -> list[str]:
    """Measure prompts with two characters, each in its half; return table rows."""
    rng, found = random.Random("pairs"), Tally()
    said = [tuple(described(rng.choice(list(STYLES)), rng) for _ in range(2)) for _ in range(count)]
    captions = [world.Caption.of("a photo of a {}", each, rng.choice(world.PLACES)) for each in said]
    drawn = pictures(lab, checkpoint, [caption.text for caption in captions], 50000, wide=2)
    halves = left(drawn), right(drawn)
    kinds, colours = ([lab.judges.say(question, half).best() for half in halves] for question in ("kind", "colour"))
    for i, (one, two) in enumerate(said):
        there = [kinds[side][i] == each.kind for side, each in enumerate((one, two))]
        found.add("the first", there[0])
        found.add("the second", there[1])
        found.add("both", all(there))
        for side, (each, other) in enumerate(((one, two), (two, one))):
            if each.colour:
                found.add("a colour named for one of them, on that one", colours[side][i] == each.colour)
                if not other.colour:
                    found.add(
                        "… and on the other one, for which no colour is named (10 % by chance)",
                        colours[1 - side][i] == each.colour,
                    )
    places = [lab.judges.say("place", half).best() for half in halves]
    for i, caption in enumerate(captions):
        found.add("the place", places[0][i] == places[1][i] == caption.place)
    return found.rows()


def names(lab: Lab, checkpoint: str, seeds: int) -> list[str]:
    """Return a table row for each kind: the share of images by a character's name that are closest to it in its gallery."""
    rows, every = [], []
    for n, kind in enumerate(STYLES):
        rng = random.Random(f"names {kind}")
        gallery = lab.judges.galleries[kind, "base"]
        texts = [f"a photo of a {name} {rng.choice(world.PLACES)}" for name in NAMES[kind]]
        drawn = pictures(lab, checkpoint, texts, 60000 + 1000 * n, seeds)
        nearest = (lab.judges.identity(drawn) @ gallery.T).argmax(1)
        known = (nearest == torch.arange(len(texts)).repeat_interleave(seeds)).tolist()
        kept = [
            place in text
            for place, text in zip(lab.judges.say("place", drawn).best(), (t for t in texts for _ in range(seeds)), strict=True)
        ]
        rows.append(f"| {kind} | {len(texts)} | {percent(known)} | {percent(kept)} |")
        every += known
    return [*rows, f"| **all** | {sum(map(len, NAMES.values()))} | {percent(every)} | |"]


def sheet(lab: Lab, checkpoint: str, cast: Path) -> Image.Image:
    """Draw rows of described characters, of pairs, and of characters by name below a picture of each."""
    rng, rows = random.Random("sheet"), []
    for kind in STYLES:
        texts = [world.Caption.of("a photo of a {}", (described(kind, rng),), rng.choice(world.PLACES)).text for _ in range(12)]
        rows.append(pictures(lab, checkpoint, texts, 90000))
    for _ in range(2):
        both = [tuple(described(rng.choice(list(STYLES)), rng) for _ in range(2)) for _ in range(6)]
        texts = [world.Caption.of("a photo of a {}", each, rng.choice(world.PLACES)).text for each in both]
        rows.append(pictures(lab, checkpoint, texts, 91000, wide=2))
    for kind in STYLES:
        known = world.Cast(cast, kind, "base")
        rows.append(judge_training.scenes(known, list(range(12)), 1, rng).images / 255)
        rows.append(
            pictures(lab, checkpoint, [f"a photo of a {name} {rng.choice(world.PLACES)}" for name in NAMES[kind][:12]], 92000)
        )
    strips = [torch.cat(list(row), 1) for row in rows]
    drawn = (torch.cat(strips, 0) * 255).round().to(torch.uint8)
    image = Image.fromarray(np.asarray(drawn))
    return image


def main() -> None:
    """Measure, print the page, and write the sheet and, for the default checkpoint, the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cast", type=Path, required=True)
    parser.add_argument("--checkpoint", default=bootstrap.CHECKPOINT)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images; write nothing")
    options = parser.parse_args()
    share, seeds = (10, 1) if options.quick else (1, SEEDS)
    setup = bootstrap.locate()
    with Server(setup) as server:
        lab = Lab(server)
        followed, by_kind = singles(lab, options.checkpoint, SINGLES // share)
        with_less, _ = singles(lab, options.checkpoint, SINGLES // share, SAMPLING["cfg"])
        both = pairs(lab, options.checkpoint, PAIRS // share)
        called = names(lab, options.checkpoint, seeds)
        drawn = sheet(lab, options.checkpoint, options.cast)
    looks = base_attention.rows(setup, options.checkpoint, options.cast)
    page = [
        "# What the base model can do",
        "",
        "Written by `python -m benchmarks.world.base_quality`; the [judges](judges.md) decide what an image shows. No concepts "
        "are used.",
        "",
        f"![Rows of described characters, of pairs, and of named characters below a picture of each]({SHEET})",
        "",
        "*Four rows of described characters and two rows of pairs. Then, for each kind, a row of named characters and, below it, "
        "the base model's images of them by name, in other places and moods.*",
        "",
        "## Features named in the prompt",
        "",
        f"{SINGLES // share} prompts for each kind, with characters that the base model never saw: how often the image shows a "
        "feature that the prompt names.",
        "",
        f"| feature | shown at a guidance of {GUIDANCE:g} | shown at the demo's guidance of {SAMPLING['cfg']:g} |",
        "| --- | --- | --- |",
        *(f"| {name} | {percent(found)} | {percent(with_less.found[name])} |" for name, found in followed.found.items()),
        "",
        f"Everything below is measured at a guidance of {GUIDANCE:g}.",
        "",
        "| | kind | colour | pattern | head | mood | place |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *by_kind,
        "",
        "## Two characters",
        "",
        f'{PAIRS // share} prompts "a photo of a … and a …", the first on the left, the second on the right.',
        "",
        "| | correct |",
        "| --- | --- |",
        *both,
        "",
        "## Characters by name",
        "",
        f'"a photo of a NAME" in some place, {seeds} images each. *Recognised*: a classifier picks the right character out of '
        f"{len(lab.judges.galleries['monster', 'base'])} of its kind.",
        "",
        "| kind | names | recognised | place |",
        "| --- | --- | --- | --- |",
        *called,
        "",
        "## Where attention goes",
        "",
        *looks,
    ]
    print("\n".join(page))
    kept = options.checkpoint == bootstrap.CHECKPOINT and not options.quick
    drawn.save((RESULTS if kept else setup.base / "output") / SHEET, optimize=True)
    if kept:
        (RESULTS / "base.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
