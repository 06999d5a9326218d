"""How well the base itself follows prompts, before any concept: the word, the background, both of two things, and the kind.

    python -m benchmarks.base_quality [--checkpoint NAME] [--quick]

Draws every word on every background, every pair of words and every kind, through the host's own nodes, and lets the oracles
judge. Without `--checkpoint`, which names another file in the set-up's models/checkpoints, it writes `results/base.md`.
"""

from __future__ import annotations

import argparse
import itertools
import random

import torch
from torch import Tensor

from benchmarks.lab import RESULTS, Lab, draw, percent
from benchmarks.oracles import LEFT, RIGHT, Judgement
from demo import world
from scripts import bootstrap
from scripts.graphs import Graph
from scripts.server import Server

SEEDS = 4
WORDS = tuple(world.WORDS)


def pictures(lab: Lab, checkpoint: str, prompts: list[str], seeds: int, first: int) -> Tensor:
    """Pictures [prompts · seeds, 64, 64, 3], those of a prompt side by side; prompt i has the seed first + i."""
    graph = Graph()
    model, clip, vae = graph.checkpoint(checkpoint)
    negative = graph.text(clip, "")
    drawn = [draw(graph, model, graph.text(clip, text), negative, vae, first + i, seeds)[1] for i, text in enumerate(prompts)]
    return torch.cat(lab.pictures(graph, *drawn))


def right(said: Judgement, wanted: list[str], seeds: int) -> list[bool]:
    """Whether each picture shows what its prompt asks for; `wanted` has one name for each prompt."""
    return [best == name for best, name in zip(said.best(), (name for name in wanted for _ in range(seeds)), strict=True)]


def both(first: list[bool], second: list[bool]) -> list[bool]:
    """Where both are right."""
    return [a and b for a, b in zip(first, second, strict=True)]


def table(found: dict[str, tuple[list[bool], ...]]) -> list[str]:
    """A row for each name, and one for all."""
    found = found | {"**all**": tuple(list(itertools.chain(*column)) for column in zip(*found.values(), strict=True))}
    return [f"| {name} | {' | '.join(percent(column) for column in columns)} |" for name, columns in found.items()]


def singles(lab: Lab, checkpoint: str, seeds: int) -> list[str]:
    """For each word: word, background and both right, over all backgrounds."""
    found, places = {}, list(world.BACKGROUNDS)
    for i, word in enumerate(WORDS):
        drawn = pictures(lab, checkpoint, [f"a photo of a {word} {place}" for place in places], seeds, 1000 * i)
        there = right(lab.judges.words(drawn), [word] * len(places), seeds)
        kept = right(lab.judges.backgrounds(drawn), places, seeds)
        found[word] = (there, kept, both(there, kept))
    return table(found)


def pairs(lab: Lab, checkpoint: str, seeds: int) -> list[str]:
    """For each word that comes first: how much of "a … and a …" is there, each in its half."""
    rng, found = random.Random(0), {}
    for i, first in enumerate(WORDS):
        others = [word for word in WORDS if word != first]
        places = [rng.choice(world.BACKGROUNDS) for _ in others]
        prompts = [f"a photo of a {first} and a {other} {place}" for other, place in zip(others, places, strict=True)]
        drawn = pictures(lab, checkpoint, prompts, seeds, 1000 * i + 500)
        left = right(lab.judges.words(drawn, LEFT), [first] * len(others), seeds)
        second = right(lab.judges.words(drawn, RIGHT), others, seeds)
        found[f"{first} and …"] = (left, second, both(left, second), right(lab.judges.backgrounds(drawn), places, seeds))
    return table(found)


def kinds(lab: Lab, checkpoint: str, seeds: int) -> list[str]:
    """For each word: what is drawn for the names of its kinds, on some backgrounds; that name's designer is the right one."""
    found = {}
    for i, (word, names) in enumerate(world.KINDS.items()):
        asked = [(who, f"a photo of a {kind} {place}") for who, kind in names.items() for place in world.BACKGROUNDS[::4]]
        drawn = pictures(lab, checkpoint, [text for _, text in asked], seeds, 1000 * i + 750)
        there = right(lab.judges.words(drawn), [word] * len(asked), seeds)
        found[word] = (there, right(lab.judges.designs(drawn, word), [who for who, _ in asked], seeds))
    return table(found)


def kind_pairs(lab: Lab, checkpoint: str, seeds: int) -> list[str]:
    """For each word, its kinds beside a kind of another word: both words, and both designers, each in its half."""
    rng, found = random.Random(1), {}
    for i, (word, names) in enumerate(world.KINDS.items()):
        asked = []
        for who, kind in names.items():
            other = rng.choice([each for each in WORDS if each != word])
            asked.append(((who, kind), other, rng.choice(list(world.KINDS[other].items())), rng.choice(world.BACKGROUNDS)))
        prompts = [f"a photo of a {kind} and a {beside} {place}" for (_, kind), _, (_, beside), place in asked]
        drawn = pictures(lab, checkpoint, prompts, seeds, 1000 * i + 250)
        words = both(
            right(lab.judges.words(drawn, LEFT), [word] * len(asked), seeds),
            right(lab.judges.words(drawn, RIGHT), [other for _, other, _, _ in asked], seeds),
        )
        left = right(lab.judges.designs(drawn, word, LEFT), [who for (who, _), _, _, _ in asked], seeds)
        second: list[bool] = []
        for (_, other, (who, _), _), each in zip(asked, drawn.split(seeds), strict=True):
            second += right(lab.judges.designs(each, other, RIGHT), [who], seeds)
        found[f"{word} and …"] = (words, left, second, both(left, second))
    return table(found)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=bootstrap.CHECKPOINT)
    parser.add_argument("--quick", action="store_true", help="one picture of each prompt, and nothing written")
    options = parser.parse_args()
    seeds = 1 if options.quick else SEEDS
    with Server(bootstrap.locate()) as server:
        lab = Lab(server)
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
            "",
            "## Kinds",
            "",
            "A base designer's own version of a word, called by the name of its kind: how closely the text says what a thing looks "
            "like.",
            "",
            "| kinds of | word right | kind right |",
            "| --- | --- | --- |",
            *kinds(lab, options.checkpoint, seeds),
            "",
            "## Two kinds",
            "",
            "Each kind beside one of another word, of a fixed draw: two designs in one picture, as well as the base knows any.",
            "",
            "| kinds of | both words | first kind | second kind | both kinds |",
            "| --- | --- | --- | --- | --- |",
            *kind_pairs(lab, options.checkpoint, seeds),
        ]
    print("\n".join(page))
    if options.checkpoint == bootstrap.CHECKPOINT and not options.quick:
        (RESULTS / "base.md").write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
