"""How well the base itself follows prompts, before any concept: the word, the background, and both of two things.

    python -m benchmarks.base_quality [--checkpoint NAME] [--quick] [--emoji DIR]

Draws every word on every background and every pair of words, through the host's own nodes, and lets the oracles judge. Without
`--checkpoint`, which names another file in the set-up's models/checkpoints, it writes `results/base.md`.
"""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lab import RESULTS, SAMPLING, Lab, percent
from benchmarks.oracles import LEFT, RIGHT
from demo import world
from scripts import bootstrap
from scripts.graphs import Graph
from scripts.server import Server

SEEDS = 4
WORDS = tuple(world.WORDS)


def draw(lab: Lab, checkpoint: str, prompts: list[str], seeds: int, first: int) -> Tensor:
    """Pictures [prompts · seeds, 64, 64, 3], those of a prompt side by side; prompt i starts at the seed first + i."""
    graph = Graph()
    model, clip, vae = graph.checkpoint(checkpoint)
    negative = graph.text(clip, "")
    images = []
    for i, prompt in enumerate(prompts):
        empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=seeds)
        links = {"model": model, "positive": graph.text(clip, prompt), "negative": negative, "latent_image": [empty, 0]}
        samples = graph.add("KSampler", seed=first + i, **links, **SAMPLING)
        images.append([graph.add("VAEDecode", samples=[samples, 0], vae=vae), 0])
    return torch.cat(lab.pictures(graph, *images))


def singles(lab: Lab, checkpoint: str, seeds: int) -> list[str]:
    """A row for each word: word, background and both right, over all backgrounds."""
    rows, total = [], []
    for i, word in enumerate(WORDS):
        drawn = draw(lab, checkpoint, [f"a photo of a {word} {place}" for place in world.BACKGROUNDS], seeds, 1000 * i)
        said = [word == best for best in lab.judges.words(drawn).best()]
        wanted = [place for place in world.BACKGROUNDS for _ in range(seeds)]
        kept = [a == b for a, b in zip(lab.judges.backgrounds(drawn).best(), wanted, strict=True)]
        both = [a and b for a, b in zip(said, kept, strict=True)]
        total.append((said, kept, both))
        rows.append(f"| {word} | {' | '.join(percent(each) for each in total[-1])} |")
    sums = [list(itertools.chain(*each)) for each in zip(*total, strict=True)]
    return [*rows, f"| **all** | {' | '.join(percent(each) for each in sums)} |"]


def pairs(lab: Lab, checkpoint: str, seeds: int) -> list[str]:
    """A row for each word that comes first, and one for all: how much of "a … and a …" is there, each in its half."""
    rng, rows, total = random.Random(0), [], []
    for i, first in enumerate(WORDS):
        others = [word for word in WORDS if word != first]
        places = [rng.choice(world.BACKGROUNDS) for _ in others]
        prompts = [f"a photo of a {first} and a {other} {place}" for other, place in zip(others, places, strict=True)]
        drawn = draw(lab, checkpoint, prompts, seeds, 1000 * i + 500)
        halves = zip(lab.judges.words(drawn, LEFT).best(), lab.judges.words(drawn, RIGHT).best(), strict=True)
        wanted = [other for other in others for _ in range(seeds)]
        ours = [(left == first, right == other) for (left, right), other in zip(halves, wanted, strict=True)]
        asked = [place for place in places for _ in range(seeds)]
        kept = [a == b for a, b in zip(lab.judges.backgrounds(drawn).best(), asked, strict=True)]
        total.append(([a for a, _ in ours], [b for _, b in ours], [a and b for a, b in ours], kept))
        rows.append(f"| {first} and … | {' | '.join(percent(each) for each in total[-1])} |")
    sums = [list(itertools.chain(*each)) for each in zip(*total, strict=True)]
    return [*rows, f"| **all** | {' | '.join(percent(each) for each in sums)} |"]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=bootstrap.CHECKPOINT)
    parser.add_argument("--quick", action="store_true", help="one picture of each prompt, and nothing written")
    parser.add_argument("--emoji", type=Path, default=bootstrap.CACHE / "emoji")
    options = parser.parse_args()
    seeds = 1 if options.quick else SEEDS
    with Server(bootstrap.locate()) as server:
        lab = Lab(server, options.emoji)
        page = [
            "# What the base itself can do",
            "",
            f"Written by `python -m benchmarks.base_quality`: {seeds} pictures of each prompt, judged by the oracles. No concept.",
            "",
            "## One thing",
            "",
            'Every word on every background, "a photo of a …".',
            "",
            "| word | word right | background right | both |",
            "| --- | --- | --- | --- |",
            *singles(lab, options.checkpoint, seeds),
            "",
            "## Two things",
            "",
            'Every ordered pair, "a photo of a … and a …" on a background of a fixed draw; a thing counts in its own half: the '
            "first left, the second right, as in the scenes that the base was trained on.",
            "",
            "| pair | first | second | both things | background |",
            "| --- | --- | --- | --- | --- |",
            *pairs(lab, options.checkpoint, seeds),
        ]
    print("\n".join(page))
    if options.checkpoint == bootstrap.CHECKPOINT and not options.quick:
        (RESULTS / "base.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
